package access

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/session"
)

// recorder keeps what the client sends.
type recorder struct {
	net.Conn
	mu   sync.Mutex
	sent [][]byte
}

func (r *recorder) Write(p []byte) (int, error) {
	r.mu.Lock()
	r.sent = append(r.sent, bytes.Clone(p))
	r.mu.Unlock()
	return r.Conn.Write(p)
}

// TestA32_HalfHello: a client that stops in any stage of the handshake is gone
// after ten seconds, and not before.
func TestA32_HalfHello(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		cert := w.alice()
		c := call{kind: sallyport.KindTCP, name: "echo", cert: &cert}
		stages := map[string]func(client net.Conn){
			"nothing":  func(net.Conn) {},
			"one byte": func(client net.Conn) { client.Write([]byte{0x16}) },
			"a hello minus its last byte": func(client net.Conn) {
				hello := firstFlight(t, w, c)
				client.Write(hello[:len(hello)-1])
			},
			"a hello and silence": func(client net.Conn) {
				client.Write(firstFlight(t, w, c))
				go io.Copy(io.Discard, client)
			},
			"a hello and nobody reads": func(client net.Conn) { client.Write(firstFlight(t, w, c)) },
		}
		for name, stage := range stages {
			near, far := net.Pipe()
			start := time.Now()
			done := w.take(t.Context(), far, c, nil)
			stage(near)
			o := <-done
			if took := time.Since(start); took != DefaultHandshakeTimeout {
				t.Errorf("%s: closed after %s", name, took)
			}
			if o.refused != "timeout" || o.candidate != nil || !errors.Is(o.err, os.ErrDeadlineExceeded) {
				t.Errorf("%s: %+v", name, o)
			}
			if _, err := near.Write([]byte{0}); err == nil {
				t.Errorf("%s: still open", name)
			}
			near.Close()
		}
	})
}

// TestFullRecords: what a session writes goes out in as few writes as TLS lets.
func TestFullRecords(t *testing.T) {
	w := newWorld(t)
	cert := w.alice()
	near, far := net.Pipe()
	out := &recorder{Conn: far}
	c := call{kind: sallyport.KindTCP, name: "echo", cert: &cert}
	const record = 16 << 10
	before := 0
	done := w.take(t.Context(), out, c, func(_ context.Context, _ *session.Candidate, conn net.Conn) error {
		before = out.count()
		_, err := conn.Write(make([]byte, 3*record))
		return err
	})
	tc := tls.Client(near, w.config(c))
	defer tc.Close()
	if _, err := io.CopyN(io.Discard, tc, 3*record); err != nil {
		t.Fatal(err)
	}
	tc.Close()
	<-done
	if n := out.count() - before; n > 4 { // three records and close_notify
		t.Errorf("%d writes for three records", n)
	}
}

func (r *recorder) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.sent)
}

// firstFlight is a whole ClientHello.
func firstFlight(t testing.TB, w *world, c call) []byte {
	t.Helper()
	near, far := net.Pipe()
	defer far.Close()
	go func() {
		tls.Client(near, w.config(c)).Handshake()
		near.Close()
	}()
	hello := make([]byte, 16<<10)
	n, err := far.Read(hello)
	if err != nil {
		t.Fatal(err)
	}
	return hello[:n]
}

// TestA32_AfterHandshake: the deadline of the handshake does not outlive it,
// except for a client that gets no session.
func TestA32_AfterHandshake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		cert := w.alice()
		c := call{kind: sallyport.KindTCP, name: "echo", cert: &cert}
		read := func(_ context.Context, _ *session.Candidate, conn net.Conn) error {
			_, err := conn.Read(make([]byte, 1))
			return err
		}
		tc, done := w.dial(t.Context(), c, read)
		if err := tc.Handshake(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(30 * time.Minute) // of fake time
		go tc.Write([]byte{1})
		if o := <-done; o.err != nil {
			t.Errorf("after half an hour: %v", o.err)
		}
		tc.Close()

		w.snap.change(func(t *sallyport.Trust) { t.Locks = []sallyport.Lock{{Target: sallyport.LockTarget{User: "alice"}}} })
		start := time.Now()
		tc, done = w.dial(t.Context(), c, read)
		if err := tc.Handshake(); err != nil {
			t.Fatal(err)
		}
		if o := <-done; o.candidate == nil || !errors.Is(o.err, os.ErrDeadlineExceeded) {
			t.Errorf("refused client: %+v", o)
		}
		if took := time.Since(start); took > 12*time.Second {
			t.Errorf("refused client stayed %s", took)
		}
		tc.Close()
	})
}

// TestA32_SilentStrangers: strangers who hang in the middle of their handshakes
// hold up nobody, although only one handshake may compute at a time.
func TestA32_SilentStrangers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.door.Handshakes = 1
		cert := w.alice()
		c := call{kind: sallyport.KindTCP, name: "echo", cert: &cert}
		hello := firstFlight(t, w, c)
		var waiting []<-chan outcome
		for i := range 50 {
			near, far := net.Pipe()
			defer near.Close()
			waiting = append(waiting, w.take(t.Context(), far, c, nil))
			go func() { // one half never reads the answer, the other never answers it
				near.Write(hello)
				if i%2 == 0 {
					io.Copy(io.Discard, near)
				}
			}()
		}
		synctest.Wait()
		start := time.Now()
		tc, done := w.dial(t.Context(), c, nil)
		if err := talk(tc); err != nil {
			t.Error(err)
		}
		if o := <-done; o.candidate == nil {
			t.Errorf("not served: %v", o.err)
		}
		if took := time.Since(start); took > time.Second {
			t.Errorf("waited %s for strangers", took)
		}
		for _, done := range waiting {
			<-done
		}
	})
}

// TestBusy: there is a bound on handshakes under way, and it is given back.
func TestBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.door.MaxWaiting = 2
		c := call{kind: sallyport.KindTCP, name: "echo"}
		var silent []<-chan outcome
		for range 2 {
			near, far := net.Pipe()
			defer near.Close()
			silent = append(silent, w.take(t.Context(), far, c, nil))
		}
		synctest.Wait()
		cert := w.alice()
		c.cert = &cert
		tc, done := w.dial(t.Context(), c, nil)
		if err := talk(tc); err == nil {
			t.Error("let in")
		}
		if o := <-done; o.refused != "busy" {
			t.Errorf("got %+v", o)
		}
		for _, done := range silent {
			<-done
		}
		tc, done = w.dial(t.Context(), c, nil)
		if err := talk(tc); err != nil {
			t.Error(err)
		}
		if o := <-done; o.candidate == nil {
			t.Errorf("not let in later: %v", o.err)
		}
	})
}

// TestShutdownInHandshake: the agent does not wait for strangers.
func TestShutdownInHandshake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		ctx, cancel := context.WithCancel(t.Context())
		near, far := net.Pipe()
		defer near.Close()
		start := time.Now()
		done := w.take(ctx, far, call{kind: sallyport.KindTCP, name: "echo"}, nil)
		synctest.Wait()
		cancel()
		if o := <-done; o.refused != "shutdown" || time.Since(start) != 0 {
			t.Errorf("%+v after %s", o, time.Since(start))
		}
	})
}

// TestTruncation: somebody on the way ends a client's TCP stream between two
// records. To a protocol of ours that is no end.
func TestTruncation(t *testing.T) {
	w := newWorld(t)
	cert := w.alice()
	for protocol, want := range map[string]error{"sallyport-tcp/1": io.ErrUnexpectedEOF, "imap": io.EOF} {
		for _, ended := range []bool{false, true} {
			near, far := net.Pipe()
			c := call{kind: sallyport.KindTCP, name: "echo", cert: &cert, alpn: []string{protocol}}
			got := make(chan error, 1)
			done := w.take(t.Context(), far, c, func(_ context.Context, _ *session.Candidate, conn net.Conn) error {
				var err error
				for err == nil {
					_, err = conn.Read(make([]byte, 16))
				}
				got <- err
				return session.ErrCut
			})
			tc := tls.Client(near, w.config(c))
			if _, err := tc.Write([]byte("half of it")); err != nil {
				t.Fatal(err)
			}
			expect := want
			if ended {
				tc.CloseWrite()
				expect = io.EOF
			}
			near.Close()
			if err := <-got; err != expect {
				t.Errorf("%s, ended %v: read %v, want %v", protocol, ended, err, expect)
			}
			<-done
		}
	}
}

// TestA31_StolenTraffic: who has the bytes of somebody's session, or the slot
// it was given, has nothing: neither replaying the bytes nor a certificate
// without its key opens a session.
func TestA31_StolenTraffic(t *testing.T) {
	w := newWorld(t)
	cert := w.alice()
	c := call{kind: sallyport.KindTCP, name: "echo", cert: &cert}
	near, far := net.Pipe()
	rec := &recorder{Conn: near}
	done := w.take(t.Context(), far, c, nil)
	if err := talk(tls.Client(rec, w.config(c))); err != nil {
		t.Fatal(err)
	}
	if o := <-done; o.candidate == nil {
		t.Fatal(o.err)
	}

	near, far = net.Pipe()
	done = w.take(t.Context(), far, c, nil)
	go func() {
		go io.Copy(io.Discard, near)
		for _, b := range rec.sent {
			near.Write(b)
		}
		near.Close()
	}()
	if o := <-done; o.candidate != nil || o.up {
		t.Errorf("replayed bytes became %+v", o.candidate.Identity)
	}

	stolen := cert
	stolen.PrivateKey = newKey(t)
	c.cert = &stolen
	tc, done := w.dial(t.Context(), c, nil)
	if err := talk(tc); !alerted(err) {
		t.Errorf("told %v", err)
	}
	if o := <-done; o.candidate != nil || o.up {
		t.Errorf("a certificate without its key became %+v", o.candidate.Identity)
	}
}

// FuzzStranger: whatever bytes come, nobody gets in and nothing hangs.
func FuzzStranger(f *testing.F) {
	w := newWorld(f)
	cert := w.alice()
	c := call{kind: sallyport.KindTCP, name: "echo", cert: &cert}
	f.Add(firstFlight(f, w, c))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Add([]byte("SSH-2.0-x\r\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		near, far := net.Pipe()
		done := w.take(t.Context(), far, c, nil)
		go func() {
			go io.Copy(io.Discard, near)
			near.Write(in)
			near.Close()
		}()
		if o := <-done; o.candidate != nil || o.up {
			t.Fatalf("let in as %+v", o.candidate.Identity)
		}
	})
}
