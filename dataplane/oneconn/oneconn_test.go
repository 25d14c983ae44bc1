package oneconn

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/sallyport/sallyport/test/leak"
)

// patience is the most that anything may take, on a busy machine too.
const patience = time.Minute

// TestMain fails when goroutines are left behind.
func TestMain(m *testing.M) {
	os.Exit(leak.CodeOf(m.Run(), "dataplane/oneconn."))
}

// counted is a handler that begins and ends as a server wants it.
func counted(s *Server, h http.HandlerFunc) {
	s.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !s.Begin() {
			return
		}
		defer s.End()
		h(w, r)
	})
}

// serve serves the far end of a connection; ended is closed when Serve has returned.
func serve(ctx context.Context, s *Server) (near net.Conn, ended chan struct{}) {
	near, far := net.Pipe()
	ended = make(chan struct{})
	go func() {
		defer close(ended)
		s.Serve(ctx, far)
	}()
	return near, ended
}

// isOver says that Serve has returned, or waits for something.
func isOver(ended chan struct{}) bool {
	synctest.Wait()
	select {
	case <-ended:
		return true
	default:
		return false
	}
}

// ask sends a request and returns the answer.
func ask(t *testing.T, conn net.Conn, path string) string {
	t.Helper()
	if _, err := io.WriteString(conn, "GET "+path+" HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestRequests: a connection has many, until its client leaves; then none begins.
func TestRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &Server{}
		counted(s, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.URL.Path) })
		conn, ended := serve(t.Context(), s)
		for _, path := range []string{"/one", "/two"} {
			if got := ask(t, conn, path); got != path {
				t.Errorf("%q, want %q", got, path)
			}
		}
		if isOver(ended) {
			t.Error("over while the client is there")
		}
		conn.Close()
		if !isOver(ended) {
			t.Error("not over when the client has left")
		}
		if s.Begin() {
			t.Error("a request begins after the end")
		}
	})
}

// TestIdle: a client that says nothing is let go.
func TestIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &Server{}
		counted(s, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "ok") })
		began := time.Now()
		conn, ended := serve(t.Context(), s)
		defer conn.Close()
		<-ended
		if d := time.Since(began); d != readHeadTimeout {
			t.Errorf("without a request after %s", d)
		}
		conn, ended = serve(t.Context(), &Server{Handler: http.NotFoundHandler()})
		defer conn.Close()
		ask(t, conn, "/")
		began = time.Now()
		<-ended
		if d := time.Since(began); d != idleTimeout {
			t.Errorf("after a request, after %s", d)
		}
	})
}

// TestOwnBounds: who wants other times and protocols has them.
func TestOwnBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const head, idle = 3 * readHeadTimeout, 3 * idleTimeout
		own := func(h http.Handler) *Server { return &Server{Handler: h, HeadTime: head, IdleTime: idle} }
		began := time.Now()
		conn, ended := serve(t.Context(), own(nil))
		<-ended
		conn.Close()
		if d := time.Since(began); d != head {
			t.Errorf("without a request after %s", d)
		}
		conn, ended = serve(t.Context(), own(http.NotFoundHandler()))
		ask(t, conn, "/")
		began = time.Now()
		<-ended
		conn.Close()
		if d := time.Since(began); d != idle {
			t.Errorf("after a request, after %s", d)
		}
		s := own(http.NotFoundHandler())
		s.Protocols.SetUnencryptedHTTP2(true)
		s.HTTP2 = &http.HTTP2Config{MaxConcurrentStreams: 7}
		conn, ended = serve(t.Context(), s)
		go io.WriteString(conn, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00") // and settings, none (RFC 9113, section 3.4)
		frame := make([]byte, 9)
		if _, err := io.ReadFull(conn, frame); err != nil || frame[3] != 4 {
			t.Fatalf("%x, %v", frame, err)
		}
		settings := make([]byte, int(frame[1])<<8+int(frame[2]))
		if _, err := io.ReadFull(conn, settings); err != nil || !bytes.Contains(settings, []byte{0, 3, 0, 0, 0, 7}) {
			t.Errorf("%x, %v", settings, err)
		}
		conn.Close()
		<-ended
	})
}

// TestStop: who stops closes the connection, and waits for what runs.
func TestStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, release := &Server{}, make(chan struct{})
		counted(s, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done(); <-release })
		ctx, cancel := context.WithCancel(t.Context())
		conn, ended := serve(ctx, s)
		defer conn.Close()
		go io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		synctest.Wait()
		cancel()
		if n, err := conn.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Errorf("%d bytes, %v", n, err)
		}
		if isOver(ended) {
			t.Error("over while a request runs")
		}
		close(release)
		if !isOver(ended) {
			t.Error("not over when the request is")
		}
	})
}

// frames reads frames of HTTP/2 until the connection has ended.
func frames(conn net.Conn, see func(http2.Frame)) error {
	for f := http2.NewFramer(io.Discard, conn); ; {
		frame, err := f.ReadFrame()
		if err != nil {
			return err
		}
		see(frame)
	}
}

// TestCutIsTold: some clients of HTTP/2 take the end of the connection for that of an
// answer whose length they do not know, so each one that runs is reset before it; one
// that waits for its client too.
func TestCutIsTold(t *testing.T) {
	for name, h := range map[string]http.HandlerFunc{
		"sends nothing": func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, "some")
			w.(http.Flusher).Flush()
			<-r.Context().Done()
			panic(http.ErrAbortHandler)
		},
		"waits for the client": func(w http.ResponseWriter, r *http.Request) {
			for {
				if _, err := w.Write(make([]byte, 1<<10)); err != nil { // more than the window
					panic(http.ErrAbortHandler)
				}
			}
		},
		"ends by itself": func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
	} {
		synctest.Test(t, func(t *testing.T) {
			s := &Server{ErrorLog: log.New(io.Discard, "", 0)}
			s.Protocols.SetUnencryptedHTTP2(true)
			counted(s, h)
			ctx, cancel := context.WithCancel(t.Context())
			conn, ended := serve(ctx, s)
			defer conn.Close()
			go func() {
				var head bytes.Buffer
				for e, name := hpack.NewEncoder(&head), []string{":method", "GET", ":scheme", "https", ":path", "/", ":authority", "x"}; len(name) > 0; name = name[2:] {
					e.WriteField(hpack.HeaderField{Name: name[0], Value: name[1]})
				}
				io.WriteString(conn, http2.ClientPreface)
				f := http2.NewFramer(conn, nil)
				f.WriteSettings()
				f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: head.Bytes(), EndStream: true, EndHeaders: true})
			}()
			reset, away := 0, 0
			whole := false
			closed := make(chan error, 1)
			go func() {
				closed <- frames(conn, func(f http2.Frame) {
					switch f := f.(type) {
					case *http2.DataFrame:
						whole = whole || f.StreamEnded()
					case *http2.RSTStreamFrame:
						if f.StreamID == 1 && f.ErrCode != http2.ErrCodeNo {
							reset++
						}
					case *http2.GoAwayFrame:
						away++
					}
				})
			}()
			synctest.Wait()
			began := time.Now()
			cancel()
			if err := <-closed; err != io.EOF || reset != 1 || away != 1 || whole {
				t.Errorf("%s: ended by %v, %d resets, %d GOAWAY, whole: %t", name, err, reset, away, whole)
			}
			<-ended
			if d := time.Since(began); d > farewell {
				t.Errorf("%s: after %s", name, d)
			}
		})
	}
}

// TestHijacked: a connection that is no longer HTTP is its handler's, and is over
// when that has returned. Who stops does not close it.
func TestHijacked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, release := &Server{}, make(chan struct{})
		counted(s, func(w http.ResponseWriter, _ *http.Request) {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			<-release
			io.WriteString(conn, "farewell")
		})
		ctx, cancel := context.WithCancel(t.Context())
		conn, ended := serve(ctx, s)
		defer conn.Close()
		go io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		synctest.Wait()
		cancel()
		if isOver(ended) {
			t.Error("over while the handler runs")
		}
		close(release)
		if b, err := io.ReadAll(conn); string(b) != "farewell" || err != nil {
			t.Errorf("%q, %v", b, err)
		}
		<-ended
	})
}

// TestOverBefore: connections that come as the agent stops are let go. Which of the two
// comes first differs, hence many.
func TestOverBefore(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 500 {
		near, ended := serve(ctx, &Server{Handler: http.NotFoundHandler()})
		near.SetReadDeadline(time.Now().Add(patience))
		if n, err := near.Read(make([]byte, 1)); n != 0 || err != nil && strings.Contains(err.Error(), "timeout") {
			t.Fatalf("%d bytes, %v", n, err)
		}
		<-ended
		near.Close()
	}
}
