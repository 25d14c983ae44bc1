package api

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"

	"github.com/sallyport/sallyport"
)

//lint:file-ignore SA1019 net/http speaks HTTP/2 by the protocol id h2 alone; ours are sallyport-auth/1 and sallyport-join/1

// TestDrain: a connection without a call ends at once, one with a call when
// that is answered, and a stranger in the middle of a handshake soon.
func TestDrain(t *testing.T) {
	w := the()
	_, cert := w.user(t, nil, "access")
	l, present := w.listener(false), time.Now()
	in, out := make(chan struct{}), make(chan struct{})
	l.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			close(in)
			<-out
		}
		io.WriteString(w, strings.Repeat("answer", 10_000))
	})
	synctest.Test(t, func(t *testing.T) {
		in, out = make(chan struct{}), make(chan struct{})
		time.Sleep(time.Until(present))
		p, served := newPipes(), make(chan error, 1)
		go func() { served <- l.Serve(t.Context(), p) }()
		idle := client(t, handshake(t, w, p, protocolAuth, cert))
		used := client(t, handshake(t, w, p, protocolAuth, cert))
		busy := client(t, handshake(t, w, p, protocolAuth, cert))
		get(t, used.RoundTrip, "/")
		slow := make(chan string, 1)
		go func() { slow <- get(t, busy.RoundTrip, "/slow") }()
		<-in
		began, drained := time.Now(), make(chan error, 1)
		go func() { drained <- l.Drain(t.Context()) }()
		synctest.Wait()
		for name, c := range map[string]*http2.ClientConn{"idle": idle, "used": used} {
			if !c.State().Closed {
				t.Errorf("%s: still open", name)
			}
		}
		if busy.State().Closed {
			t.Error("busy: closed before the answer")
		}
		time.Sleep(500 * time.Millisecond)
		close(out)
		if got := <-slow; got != strings.Repeat("answer", 10_000) {
			t.Errorf("the call that was under way was answered by %d bytes", len(got))
		}
		if err := <-drained; err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took != 500*time.Millisecond {
			t.Errorf("drained after %v", took)
		}
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
}

// TestDrainBounds: who does not shake hands is not waited for, and a call that
// does not end is cut when the time is over.
func TestDrainBounds(t *testing.T) {
	w := the()
	_, cert := w.user(t, nil, "access")
	present := time.Now()
	const patience = 3 * time.Second
	for name, c := range map[string]struct {
		dial func(t *testing.T, p *pipes)
		took time.Duration
		err  error
	}{
		"nobody":   {func(*testing.T, *pipes) {}, 0, nil},
		"stranger": {func(t *testing.T, p *pipes) { t.Cleanup(closer(p.dial())) }, shakeTime, nil},
		"endless": {func(t *testing.T, p *pipes) {
			cc := client(t, handshake(t, w, p, protocolAuth, cert))
			r, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, base+"/endless", nil)
			go func() {
				if resp, err := cc.RoundTrip(r); err == nil {
					resp.Body.Close()
				}
			}()
		}, patience, context.DeadlineExceeded},
	} {
		t.Run(name, func(t *testing.T) {
			l := w.listener(false)
			l.Handler = http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
			synctest.Test(t, func(t *testing.T) {
				time.Sleep(time.Until(present))
				p, served := newPipes(), make(chan error, 1)
				go func() { served <- l.Serve(t.Context(), p) }()
				synctest.Wait()
				c.dial(t, p)
				synctest.Wait()
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				began := time.Now()
				if err := l.Drain(ctx); !errors.Is(err, c.err) || (err == nil) != (c.err == nil) {
					t.Errorf("%v, want %v", err, c.err)
				}
				if took := time.Since(began).Truncate(drainEvery); took != c.took {
					t.Errorf("after %v, want %v", took, c.took)
				}
				if err := <-served; err != nil {
					t.Errorf("Serve: %v", err)
				}
				if err := l.Serve(t.Context(), p); err != nil {
					t.Errorf("a drained listener: %v", err)
				}
			})
		})
	}
}

func closer(c net.Conn) func() { return func() { c.Close() } }

// TestDrainKeepsSocket: the same socket is served again, by another listener,
// and who came meanwhile was waiting at it.
func TestDrainKeepsSocket(t *testing.T) {
	w := the()
	_, cert := w.host(t, sallyport.KindAgent)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	door := byAuth(cert)
	door.address = ln.Addr().String()
	for range 3 {
		l, served := w.listener(false), make(chan error, 1)
		go func() { served <- l.Serve(t.Context(), ln) }()
		conn, err := w.dial(t.Context(), door)
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
		if err := l.Drain(t.Context()); err != nil {
			t.Error(err)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
	}
	came := make(chan error, 1)
	go func() {
		conn, err := w.dial(t.Context(), door)
		if err == nil {
			conn.Close()
		}
		came <- err
	}()
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- w.listener(false).Serve(ctx, ln) }()
	if err := <-came; err != nil {
		t.Errorf("who waited: %v", err)
	}
	cancel()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// TestDrainedReadsOn: who is told to go may have said more by then, and has not read
// that yet. Answering it failed, which ended the connection with a reset: no client
// knew any more which of its calls had been served.
func TestDrainedReadsOn(t *testing.T) {
	w := the()
	_, cert := w.user(t, nil, "access")
	l, present := w.listener(false), time.Now()
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(time.Until(present))
		p, served := newPipes(), make(chan error, 1)
		go func() { served <- l.Serve(t.Context(), p) }()
		c := handshake(t, w, p, protocolAuth, cert)
		defer c.Close()
		io.WriteString(c, http2.ClientPreface)
		fr := http2.NewFramer(c, c)
		if err := fr.WriteSettings(); err != nil {
			t.Fatal(err)
		}
		drained := make(chan error, 1)
		go func() { drained <- l.Drain(t.Context()) }()
		for told := false; ; {
			f, err := fr.ReadFrame()
			if err == io.EOF && told {
				break
			}
			if err != nil {
				t.Fatalf("told %v: %v", told, err)
			}
			_, goAway := f.(*http2.GoAwayFrame)
			told = told || goAway
		}
		for n := range byte(10) {
			if err := fr.WritePing(false, [8]byte{n}); err != nil {
				t.Fatalf("after %d frames: %v", n, err)
			}
			synctest.Wait()
		}
		c.NetConn().Close()
		if err := <-drained; err != nil {
			t.Error(err)
		}
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
}

// TestFarewellFollows: a GOAWAY is found however the frames are cut.
func TestFarewellFollows(t *testing.T) {
	frame := func(typ byte, payload int) []byte {
		return append([]byte{byte(payload >> 16), byte(payload >> 8), byte(payload), typ, 0, 0, 0, 0, 0}, bytes.Repeat([]byte{frameGoAway}, payload)...)
	}
	row := slices.Concat(frame(4, 0), frame(0, 70_000), frame(1, 9), frame(frameGoAway, 8))
	for step := 1; step < len(row); step += 1 + step/3 {
		var f farewell
		for at := 0; at < len(row); at += step {
			end := min(at+step, len(row))
			if got, want := f.follow(row[at:end]), end == len(row); got != want {
				t.Fatalf("pieces of %d: at %d of %d: %v", step, end, len(row), got)
			}
		}
	}
}

// TestGate: requests wait while it is shut, those that are in end first, and
// nobody waits for ever.
func TestGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Gate
		release := make(chan struct{})
		slow := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			<-release
			io.WriteString(w, "old")
		})
		through := func() <-chan string {
			out := make(chan string, 1)
			go func() { out <- get(t, handlerTripper{&g}.RoundTrip, "/") }()
			synctest.Wait()
			return out
		}
		early := through()
		g.Open(slow)
		synctest.Wait()
		shut := make(chan error, 1)
		go func() { shut <- g.Shut(t.Context()) }()
		synctest.Wait()
		late := through()
		select {
		case err := <-shut:
			t.Fatalf("shut with a request in it: %v", err)
		default:
		}
		short, cancel := context.WithCancel(t.Context())
		cancel()
		if err := g.Shut(short); !errors.Is(err, context.Canceled) {
			t.Errorf("shut without patience: %v", err)
		}
		close(release)
		if err := <-shut; err != nil {
			t.Error(err)
		}
		if got := <-early; got != "old" {
			t.Errorf("who was in got %q", got)
		}
		g.Open(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "new") }))
		if got := <-late; got != "new" {
			t.Errorf("who waited got %q", got)
		}
		if err := g.Shut(t.Context()); err != nil {
			t.Error(err)
		}
		last := through()
		g.Leave()
		for _, c := range []<-chan string{last, through()} {
			if got := <-c; !strings.HasPrefix(got, "503 again") {
				t.Errorf("after Leave: %q", got)
			}
		}
	})
}

// handlerTripper calls a handler as if over a connection.
type handlerTripper struct{ h http.Handler }

func (h handlerTripper) RoundTrip(r *http.Request) (*http.Response, error) {
	rec := &recorded{header: http.Header{}, status: http.StatusOK}
	h.h.ServeHTTP(rec, r)
	rec.mu.Lock()
	defer rec.mu.Unlock()
	return &http.Response{StatusCode: rec.status, Header: rec.header, Body: io.NopCloser(bytes.NewReader(rec.body.Bytes()))}, nil
}

type recorded struct {
	mu     sync.Mutex
	header http.Header
	status int
	body   bytes.Buffer
}

func (r *recorded) Header() http.Header { return r.header }

func (r *recorded) WriteHeader(status int) { r.status = status }

func (r *recorded) Write(b []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.body.Write(b)
}

// get returns the body of an answer, after its status when that is not 200.
func get(t *testing.T, trip func(*http.Request) (*http.Response, error), path string) string {
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, base+path, nil)
	if err != nil {
		t.Error(err)
		return ""
	}
	resp, err := trip(r)
	if err != nil {
		t.Error(err)
		return ""
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Error(err)
	}
	text := string(body)
	if resp.StatusCode != http.StatusOK {
		text = "503 " + text
		if resp.Header.Get(AgainHeader) != "" {
			text = "503 again " + text
		}
	}
	return text
}
