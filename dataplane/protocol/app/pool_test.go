package app

import (
	"crypto/x509"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sallyport/sallyport/dataplane/oneconn"
)

// lines is an application that tells by which connection a request came.
func lines(t testing.TB) *rig {
	srv, _ := application(t, func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, r.RemoteAddr)
	})
	return newRig(t, Target{URI: srv.URL})
}

// once makes a request on a connection of its own, and waits for the end of that.
func (r *rig) once(t testing.TB, headers ...string) string {
	t.Helper()
	out := r.raw("GET / HTTP/1.1\r\nHost: " + appHost + "\r\n" + strings.Join(append(headers, "Connection: close"), "\r\n") + "\r\n\r\n")
	r.finished.Wait()
	addr, ok := strings.CutPrefix(strings.TrimSpace(out), "200 ")
	if !ok {
		t.Fatalf("%q", out)
	}
	return addr
}

// reused is the connection by which two came in a row. net/http gives one up that
// a busy machine keeps from being ready for a moment.
func reused(t testing.TB, ask func() string) string {
	t.Helper()
	last := ask()
	for range 20 {
		now := ask()
		if now == last {
			return now
		}
		last = now
	}
	t.Fatal("no connection is used again")
	return ""
}

// TestPool: who comes again by the same certificate finds the connection to the
// application, and nobody else does.
func TestPool(t *testing.T) {
	r := lines(t)
	first := reused(t, func() string { return r.once(t) })
	other := r.as(selfSigned(t))
	theirs := other.once(t)
	if theirs == first {
		t.Error("another certificate's holder got the same connection")
	}
	if last := reused(t, func() string { return r.once(t, "Authorization: Bearer x") }); last == theirs {
		t.Error("a connection of another certificate's holder")
	} else {
		first = last
	}
	r.server.Close()
	if again := r.once(t); again == first {
		t.Error("a connection outlives the application's server")
	}
	if n := len(r.server.pools.all); n != 0 {
		t.Errorf("%d pools are left", n)
	}
}

// TestBound: whose credentials an application may bind to a connection has
// connections of its own from then on, and leaves none behind.
func TestBound(t *testing.T) {
	r := lines(t)
	shared := reused(t, func() string { return r.once(t) })
	seen := map[string]bool{shared: true}
	for _, credentials := range []string{"NTLM TlRMTVNTUAAB", "Negotiate YII", "negotiate YII", "Unheard-Of x", "NTLM", ""} {
		addr := r.once(t, "Authorization: "+credentials)
		if seen[addr] {
			t.Errorf("%q came by a connection that others had", credentials)
		}
		seen[addr] = true
	}
	c := r.keep()
	ask := func(credentials string) string {
		_, body := r.get(c, "/", func(q *http.Request) {
			if credentials != "" {
				q.Header.Set("Authorization", credentials)
			}
		})
		return body
	}
	seen[ask("")] = true
	bound := ask("NTLM x")
	if seen[bound] {
		t.Error("credentials came by a connection that others had")
	}
	if addr := reused(t, func() string { return ask("") }); seen[addr] {
		t.Error("a connection that is bound was left")
	} else {
		bound = addr
	}
	if addr := r.as(r.cert).once(t); addr == bound {
		t.Error("another one of the holder's came by a connection that is bound")
	}
}

// TestA36_AskedToUpgrade: a request for another protocol comes by a connection of its
// own, also when the application does not go along: who of the two reads on how is not
// known then.
func TestA36_AskedToUpgrade(t *testing.T) {
	r := lines(t)
	shared := reused(t, func() string { return r.once(t) })
	seen := map[string]bool{shared: true}
	for range 3 {
		addr := r.once(t, "Upgrade: websocket")
		if seen[addr] {
			t.Error("it came by a connection that others had")
		}
		seen[addr] = true
	}
	delete(seen, shared)
	if addr := r.once(t); seen[addr] {
		t.Error("a request came by a connection that was asked to change")
	}
}

// TestPoolFull: more requests at a time than a pool is for do not wait for each
// other.
func TestPoolFull(t *testing.T) {
	const many = oneconn.MaxStreams + upstreamSpares + 10
	here, release := make(chan struct{}, many), make(chan struct{})
	srv, _ := application(t, func(w http.ResponseWriter, r *http.Request) {
		here <- struct{}{}
		<-release
	})
	r := newRig(t, Target{URI: srv.URL})
	c := r.client("http/1.1")
	var all sync.WaitGroup
	for range many {
		all.Go(func() {
			resp, err := c.Get("https://" + appHost + "/")
			if err != nil {
				t.Error(err)
				return
			}
			resp.Body.Close()
		})
	}
	late := time.After(patience)
	for n := 0; n < many; n++ {
		select {
		case <-here:
		case <-late:
			t.Errorf("%d are here, the others wait for them", n)
			n = many
		}
	}
	close(release)
	all.Wait()
}

// TestPools: pools without a visit are bounded in number, and end by themselves.
func TestPools(t *testing.T) {
	s := &Server{Target: Target{URI: "http://localhost:1"}}
	if err := s.setUp(); err != nil {
		t.Fatal(err)
	}
	var all []*pool
	for i := range poolsKept + 10 {
		cert := x509.Certificate{Raw: []byte{byte(i), byte(i >> 8)}}
		all = append(all, s.enter(&cert))
		if again := s.enter(&cert); again != all[i] {
			t.Fatal("one certificate, two pools")
		}
		s.pools.leave(all[i])
	}
	if n := len(s.pools.all); n != len(all) {
		t.Fatalf("%d pools for %d certificates", n, len(all))
	}
	for _, one := range all {
		s.pools.leave(one)
	}
	if n := len(s.pools.all); n != poolsKept || s.pools.idle != n {
		t.Errorf("%d pools are kept, %d without a visit", n, s.pools.idle)
	}
	one := all[0]
	s.pools.expire(one)
	if s.pools.all[one.key] != nil || s.pools.idle != poolsKept-1 {
		t.Error("a pool outlives its time")
	}
	s.pools.expire(one)
	s.Close()
	if len(s.pools.all) != 0 || s.pools.idle != 0 {
		t.Errorf("%d pools are left, %d without a visit", len(s.pools.all), s.pools.idle)
	}
}
