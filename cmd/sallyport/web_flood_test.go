package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// floodWait is the most that anything here may take.
const floodWait = 3 * time.Minute

// entrance is the server of strangers' web connections, on a port.
type entrance struct {
	t       *testing.T
	addr    string
	cert    tls.Certificate
	now     atomic.Int64 // requests under way
	most    atomic.Int64
	release chan struct{} // requests for /wait end when it is closed
}

func newEntrance(t *testing.T) *entrance {
	e := &entrance{t: t, cert: selfSigned(t, time.Hour, "gw.example.com"), release: make(chan struct{})}
	w := newWebServer(http.HandlerFunc(e.serve), slog.New(slog.DiscardHandler))
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{e.cert}, NextProtos: []string{"h2", "http/1.1"}})
	if err != nil {
		t.Fatal(err)
	}
	e.addr = l.Addr().String()
	life, end := context.WithCancel(context.Background())
	ran, accepted := make(chan error, 1), make(chan struct{})
	go func() { ran <- w.run(life) }()
	go func() {
		defer close(accepted)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conn := c.(*tls.Conn)
			go func() {
				if conn.HandshakeContext(life) == nil {
					w.serve(life, conn)
				}
			}()
		}
	}()
	t.Cleanup(func() {
		close(e.release)
		l.Close()
		<-accepted
		end()
		if err := <-ran; err != nil {
			t.Error(err)
		}
	})
	return e
}

func (e *entrance) serve(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/wait" {
		io.WriteString(w, "answer")
		return
	}
	n := e.now.Add(1)
	defer e.now.Add(-1)
	for m := e.most.Load(); n > m && !e.most.CompareAndSwap(m, n); m = e.most.Load() {
	}
	<-e.release // it does not look whether anybody still wants the answer
}

// honest asks as anybody does.
func (e *entrance) honest() {
	e.t.Helper()
	tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true}
	defer tr.CloseIdleConnections()
	resp, err := (&http.Client{Transport: tr, Timeout: floodWait}).Get("https://" + e.addr + "/")
	if err != nil {
		e.t.Error("meanwhile, somebody else:", err)
		return
	}
	defer resp.Body.Close()
	if b, err := io.ReadAll(resp.Body); err != nil || string(b) != "answer" || resp.ProtoMajor != 2 {
		e.t.Errorf("meanwhile, somebody else: %s %q, %v", resp.Proto, b, err)
	}
}

// TestA70_Floods: who sends frames of HTTP/2 without end holds little, and others are
// served. What makes work or memory beyond the frame itself is cut off soon.
func TestA70_Floods(t *testing.T) {
	e := newEntrance(t)
	const (
		cutWithin  = 64 << 20 // bytes that a flood may send until it is cut off
		long       = 1 << 20  // bytes of one that costs no more than to read it
		mostMemory = 64 << 20
		streams    = 100 // of one connection at a time
	)
	head := func(path string) []byte {
		var b bytes.Buffer
		enc := hpack.NewEncoder(&b)
		for _, f := range [][2]string{{":method", "GET"}, {":scheme", "https"}, {":authority", "gw.example.com"}, {":path", path}} {
			if err := enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]}); err != nil {
				t.Fatal(err)
			}
		}
		return b.Bytes()
	}
	wait := head("/wait")
	// One field that is taken from the table again costs a byte, and counts in full.
	bomb := func() []byte {
		var b bytes.Buffer
		enc := hpack.NewEncoder(&b)
		b.Write(head("/"))
		for range 8 << 10 {
			if err := enc.WriteField(hpack.HeaderField{Name: "x", Value: string(bytes.Repeat([]byte("y"), 3000))}); err != nil {
				t.Fatal(err)
			}
		}
		return b.Bytes()
	}()
	id := func(n int) uint32 { return uint32(2*n + 1) }
	open := func(f *http2.Framer, n int, block []byte) error {
		return f.WriteHeaders(http2.HeadersFrameParam{StreamID: id(n), BlockFragment: block, EndHeaders: true, EndStream: true})
	}
	type flood func(f *http2.Framer, n int) error
	cut := map[string]flood{
		"rapid reset": func(f *http2.Framer, n int) error {
			if err := open(f, n, wait); err != nil {
				return err
			}
			return f.WriteRSTStream(id(n), http2.ErrCodeCancel)
		},
		"reset by the server": func(f *http2.Framer, n int) error { // CVE-2025-8671
			if err := open(f, n, wait); err != nil {
				return err
			}
			return f.WriteWindowUpdate(id(n), 0)
		},
		"CONTINUATION": func(f *http2.Framer, n int) error {
			if n == 0 {
				return f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: wait})
			}
			return f.WriteContinuation(1, false, bytes.Repeat([]byte{0x00, 0x01, 'x', 0x01, 'y'}, 3000))
		},
		"PING": func(f *http2.Framer, n int) error { return f.WritePing(false, [8]byte{1}) },
	}
	borne := map[string]flood{
		"empty CONTINUATION": func(f *http2.Framer, n int) error {
			if n == 0 {
				return f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: wait})
			}
			return f.WriteContinuation(1, false, nil)
		},
		"empty DATA": func(f *http2.Framer, n int) error {
			if n == 0 {
				return f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: wait, EndHeaders: true})
			}
			return f.WriteData(1, false, nil)
		},
		"answers to no PING": func(f *http2.Framer, n int) error { return f.WritePing(true, [8]byte{1}) },
		"WINDOW_UPDATE":      func(f *http2.Framer, n int) error { return f.WriteWindowUpdate(0, 1) },
		"PRIORITY":           func(f *http2.Framer, n int) error { return f.WritePriority(id(n), http2.PriorityParam{Weight: 1}) },
		"unknown frames":     func(f *http2.Framer, n int) error { return f.WriteRawFrame(0x77, 0, id(n), nil) },
		"SETTINGS":           func(f *http2.Framer, n int) error { return f.WriteSettings() }, // one answer stands for all that came
		"HPACK":              func(f *http2.Framer, n int) error { return open(f, n, bomb) },
	}
	run := func(send flood, within int64, ends bool) func(t *testing.T) {
		return func(t *testing.T) {
			before := heap()
			conn, err := tls.Dial("tcp", e.addr, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(floodWait))
			if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
				t.Fatal(err)
			}
			counted := &counting{Conn: conn}
			f := http2.NewFramer(counted, nil) // nothing is read: what the server says waits there
			f.AllowIllegalWrites = true
			if err := f.WriteSettings(); err != nil {
				t.Fatal(err)
			}
			over := false
			for n := 0; counted.sent < within && !over; n++ {
				err := send(f, n)
				if over = err != nil; errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("neither read nor cut off, after %d MiB", counted.sent>>20)
				}
				if n == 500 {
					e.honest()
				}
			}
			if ends && !over {
				t.Errorf("not cut off after %d MiB", counted.sent>>20)
			}
			if grown := heap() - before; grown > mostMemory {
				t.Errorf("%d MiB more are held", grown>>20)
			}
			e.honest()
		}
	}
	for name, send := range cut {
		t.Run(name, run(send, cutWithin, true))
	}
	for name, send := range borne {
		t.Run(name, run(send, long, false))
	}
	// Three of the floods ask for what waits, by one connection each; one of them once.
	if most := e.most.Load(); most > 2*streams+1 {
		t.Errorf("%d requests under way at once", most)
	}
}

// heap is what is held, in bytes.
func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// counting counts what is sent.
type counting struct {
	net.Conn
	sent int64
}

func (c *counting) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.sent += int64(n)
	return n, err
}
