package halfclose

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport/test/leak"
)

// TestMain fails when goroutines are left behind.
func TestMain(m *testing.M) {
	os.Exit(leak.CodeOf(m.Run(), "dataplane/halfclose."))
}

// conn is one end of a connection whose directions end one by one.
type conn struct {
	net.Conn // nil
	in       *io.PipeReader
	out      *io.PipeWriter
}

func (c *conn) Read(p []byte) (int, error)  { return c.in.Read(p) }
func (c *conn) Write(p []byte) (int, error) { return c.out.Write(p) }
func (c *conn) CloseWrite() error           { return c.out.Close() }

// deafen makes what the other end writes fail.
func (c *conn) deafen() { c.in.CloseWithError(errors.New("takes no more")) }

func (c *conn) Close() error {
	c.in.CloseWithError(errors.New("reset"))
	return c.out.Close()
}

func pair() (near, far *conn) {
	a, b := io.Pipe()
	c, d := io.Pipe()
	return &conn{in: a, out: d}, &conn{in: c, out: b}
}

// hijacked is a writer whose connection is far.
type hijacked struct {
	http.ResponseWriter
	far *conn
}

func (h hijacked) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return h.far, bufio.NewReadWriter(bufio.NewReader(h.far), bufio.NewWriter(h.far)), nil
}

// switches answers that the server behind conn switches protocols.
type switches struct{ io.ReadWriteCloser }

func (s switches) RoundTrip(r *http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: http.StatusSwitchingProtocols, ProtoMajor: 1, ProtoMinor: 1, Request: r, Body: s.ReadWriteCloser,
		Header: http.Header{"Connection": {"Upgrade"}, "Upgrade": {"test"}}}, nil
}

// stretch is a stream under test: the client's end, and the server's.
type stretch struct {
	client, server *conn
	lines          *bufio.Reader // of client
	cancel         context.CancelFunc
	ended          chan struct{} // closed when the handler has returned
}

// begin makes a stream. reach changes the connection to the server; nil leaves it.
func begin(t *testing.T, reach func(*conn) io.ReadWriteCloser) *stretch {
	t.Helper()
	client, clientFar := pair()
	serverNear, server := pair()
	s := &stretch{client: client, server: server, lines: bufio.NewReader(client), ended: make(chan struct{})}
	var backend io.ReadWriteCloser = serverNear
	if reach != nil {
		backend = reach(serverNear)
	}
	h := Proxy(&httputil.ReverseProxy{Rewrite: func(*httputil.ProxyRequest) {}, Transport: switches{backend}})
	r := httptest.NewRequest("GET", "http://x/", nil)
	r.Header = http.Header{"Connection": {"Upgrade"}, "Upgrade": {"test"}}
	ctx, cancel := context.WithCancel(t.Context())
	s.cancel = cancel
	go func() {
		defer close(s.ended)
		h.ServeHTTP(hijacked{httptest.NewRecorder(), clientFar}, r.WithContext(ctx))
	}()
	res, err := http.ReadResponse(s.lines, nil)
	if err != nil || res.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("%v %+v", err, res)
	}
	return s
}

// isOver says that the handler has returned, or waits for something.
func (s *stretch) isOver() bool {
	synctest.Wait()
	select {
	case <-s.ended:
		return true
	default:
		return false
	}
}

// say writes, and read reads as much.
func say(t *testing.T, w io.Writer, r io.Reader, text string) {
	t.Helper()
	go io.WriteString(w, text) // ends with its connection
	b := make([]byte, len(text))
	if _, err := io.ReadFull(r, b); err != nil || string(b) != text {
		t.Fatalf("%q %v, want %q", b, err, text)
	}
}

// TestServerTakesNoMore: what a server still said was lost when it took no more, as
// the output of a command that leaves its input unread.
func TestServerTakesNoMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := begin(t, nil)
		say(t, s.client, s.server, "ping")
		s.server.deafen()
		for range 3 { // it sends on
			if _, err := io.WriteString(s.client, "more"); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		say(t, s.server, s.lines, strings.Repeat("output", 1<<16))
		s.server.CloseWrite()
		if rest, err := io.ReadAll(s.lines); len(rest) != 0 || err != nil {
			t.Errorf("%q %v", rest, err)
		}
		if s.isOver() {
			t.Error("closed while the client sends: that would reset it")
		}
		s.client.CloseWrite()
		<-s.ended
	})
}

// TestClientTakesNoMore: the other way round.
func TestClientTakesNoMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := begin(t, nil)
		s.client.deafen()
		for range 3 {
			if _, err := io.WriteString(s.server, "output"); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		say(t, s.client, s.server, "last words")
		s.client.CloseWrite()
		if rest, err := io.ReadAll(s.server); len(rest) != 0 || err != nil {
			t.Errorf("%q %v", rest, err)
		}
		s.server.CloseWrite()
		<-s.ended
	})
}

// TestReset: a side that is reset ends its direction, and not the other.
func TestReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := begin(t, nil)
		s.server.out.CloseWithError(errors.New("reset"))
		if rest, err := io.ReadAll(s.lines); len(rest) != 0 || err != nil {
			t.Errorf("%q %v", rest, err)
		}
		say(t, s.client, s.server, "on its way")
		s.client.CloseWrite()
		<-s.ended
	})
}

// TestLinger: after the end of one direction the other has all the time that it
// needs while it passes something, and an end when it does not.
func TestLinger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := begin(t, nil)
		time.Sleep(100 * Linger) // both may be silent
		s.client.CloseWrite()
		if rest, err := io.ReadAll(s.server); len(rest) != 0 || err != nil {
			t.Errorf("%q %v", rest, err)
		}
		for range 100 {
			say(t, s.server, s.lines, "output")
			time.Sleep(Linger * 9 / 10)
		}
		if s.isOver() {
			t.Fatal("over while output comes")
		}
		since := time.Now()
		<-s.ended
		if d := time.Since(since); d > 2*Linger {
			t.Errorf("over after %s", d)
		}
		if _, err := s.server.Write([]byte("x")); err == nil {
			t.Error("the server's side stays open")
		}
	})
}

// TestThrownAway: what nobody takes keeps no stream.
func TestThrownAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := begin(t, nil)
		s.server.deafen()
		for n := 0; ; n++ {
			if _, err := io.WriteString(s.client, "more"); err != nil {
				break
			}
			if n > 1000 {
				t.Fatal("the stream goes on")
			}
			time.Sleep(Linger / 10)
		}
		<-s.ended
	})
}

// mute has no CloseWrite.
type mute struct{ io.ReadWriteCloser }

// TestWithoutCloseWrite: a server that cannot be told of the client's end is not cut
// off by it.
func TestWithoutCloseWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := begin(t, func(c *conn) io.ReadWriteCloser { return mute{c} })
		s.client.CloseWrite()
		synctest.Wait()
		say(t, s.server, s.lines, "output")
		s.server.CloseWrite()
		<-s.ended
	})
}

// TestContext: who ends the request closes both sides at once, whatever they do.
func TestContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, prepare := range map[string]func(s *stretch){
			"both pass":                   func(*stretch) {},
			"the server has ended":        func(s *stretch) { s.server.CloseWrite() },
			"the client has ended":        func(s *stretch) { s.client.CloseWrite() },
			"the client takes nothing":    func(s *stretch) { go io.WriteString(s.server, "output") },
			"the server takes no more":    func(s *stretch) { s.server.deafen(); io.WriteString(s.client, "x") },
			"the server takes nothing":    func(s *stretch) { go io.WriteString(s.client, "input") },
			"both directions stand still": func(s *stretch) { go io.WriteString(s.client, "input"); go io.WriteString(s.server, "output") },
		} {
			s := begin(t, nil)
			prepare(s)
			synctest.Wait()
			began := time.Now()
			s.cancel()
			<-s.ended
			if d := time.Since(began); d != 0 {
				t.Errorf("%s: over after %s", name, d)
			}
			for _, c := range []*conn{s.client, s.server} {
				if _, err := c.Write([]byte("x")); err == nil {
					t.Errorf("%s: a side stays open", name)
				}
			}
		}
	})
}

// TestNoStream: other answers pass as they are, and what changes them is asked.
func TestNoStream(t *testing.T) {
	far := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Header.Get("Upgrade")) }))
	defer far.Close()
	changed := 0
	h := Proxy(&httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host = "http", strings.TrimPrefix(far.URL, "http://")
		},
		ModifyResponse: func(*http.Response) error { changed++; return nil },
	})
	for _, header := range []http.Header{{}, {"Connection": {"Upgrade"}, "Upgrade": {"test"}}} {
		w, r := httptest.NewRecorder(), httptest.NewRequest("GET", "http://x/", nil)
		r.Header = header
		h.ServeHTTP(w, r)
		if w.Code != 200 || w.Body.String() != header.Get("Upgrade") {
			t.Errorf("%d %q", w.Code, w.Body)
		}
	}
	if changed != 2 {
		t.Errorf("%d answers were changed", changed)
	}
}
