package app

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestAnswerSizes: answers of all sizes around those of the buffers arrive whole, with
// their length told or not, on connections that go on and that end.
func TestAnswerSizes(t *testing.T) {
	whole := bytes.Repeat([]byte("0123456789abcdef"), 8<<10)
	srv, _ := application(t, func(w http.ResponseWriter, r *http.Request) {
		n, _ := strconv.Atoi(r.FormValue("n"))
		if r.FormValue("told") != "" {
			w.Header().Set("Content-Length", strconv.Itoa(n))
		}
		w.Write(whole[:n])
	})
	r := newRig(t, Target{URI: srv.URL})
	c := r.client("http/1.1")
	for _, base := range []int{0, 2048, 4096, 8192, gatherSize, copyBuffer, copyBuffer + gatherSize, 3 * copyBuffer} {
		for _, told := range []string{"", "yes"} {
			for d := -400; d <= 0; d += 57 { // a head has some hundred bytes
				n := max(base+d, 0)
				path, ends := fmt.Sprintf("/?n=%d&told=%s", n, told), d > -57
				_, body := r.get(c, path, func(q *http.Request) { q.Close = ends })
				if body != string(whole[:n]) {
					t.Fatalf("%s, ends %v: %d bytes", path, ends, len(body))
				}
			}
		}
	}
}

// TestFewWrites: an answer of a few KiB is one piece for the client's connection,
// unless its parts come so slowly that the first do not wait for the last: then it
// is asked for again.
func TestFewWrites(t *testing.T) {
	srv, _ := application(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "12288")
		w.Write(make([]byte, 12288))
	})
	r := newRig(t, Target{URI: srv.URL})
	conn := r.dial()
	p := make([]byte, 16<<10)
	for soon := 0; soon < 3; {
		asked := time.Now()
		io.WriteString(conn, "GET / HTTP/1.1\r\nHost: "+appHost+"\r\n\r\n")
		n, err := conn.Read(p) // one record
		took := time.Since(asked)
		if err != nil || n < 12288 && took < gatherTime {
			t.Fatalf("%d bytes after %v, %v", n, took, err)
		}
		if n >= 12288 {
			soon++
			continue
		}
		conn.Close()
		conn = r.dial()
	}
}

// pieces keeps what was written, by pieces.
type pieces struct {
	net.Conn
	all   bytes.Buffer
	count int
}

func (s *pieces) Write(p []byte) (int, error) {
	s.count++
	return s.all.Write(p)
}

func (s *pieces) SetWriteDeadline(time.Time) error { return nil }

func (s *pieces) CloseWrite() error { return nil }

// TestGathered: whatever is written, held and let go comes out once, in order, and
// nothing waits any more when the server is done with an answer.
func TestGathered(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 60 {
		var want bytes.Buffer
		under := &pieces{}
		g := &gathered{Conn: under, buffers: &Server{}}
		for range 3 {
			write := func(most int) {
				p := []byte(strings.Repeat(string(rune('a'+random.IntN(26))), random.IntN(most)))
				want.Write(p)
				if n, err := g.Write(p); n != len(p) || err != nil {
					t.Fatal(n, err)
				}
			}
			write(100)
			g.hold()
			for range random.IntN(8) {
				write([]int{10, 5000, 40000}[random.IntN(3)])
				if random.IntN(4) == 0 {
					g.flush()
				}
			}
			g.release()
			if random.IntN(2) == 0 {
				write(5000)
			}
			if random.IntN(2) == 0 {
				g.SetWriteDeadline(time.Time{})
			} else {
				g.CloseWrite()
			}
			if !bytes.Equal(under.all.Bytes(), want.Bytes()) {
				t.Fatalf("%d bytes of %d came out", under.all.Len(), want.Len())
			}
			if g.held != nil {
				t.Fatal("a connection that waits has a buffer")
			}
		}
	}
}

// TestSlowAnswer: what an application says of a long answer arrives, also when
// the rest is long in coming.
func TestSlowAnswer(t *testing.T) {
	more := make(chan struct{})
	srv, _ := application(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "20000")
		w.Write(make([]byte, 10000))
		http.NewResponseController(w).Flush()
		<-more
		w.Write(make([]byte, 10000))
	})
	r := newRig(t, Target{URI: srv.URL})
	conn := r.dial()
	io.WriteString(conn, "GET / HTTP/1.1\r\nHost: "+appHost+"\r\n\r\n")
	if n, err := io.ReadFull(conn, make([]byte, 8000)); err != nil {
		t.Fatalf("%d bytes, %v", n, err)
	}
	close(more)
	if n, err := io.ReadFull(conn, make([]byte, 12000)); err != nil {
		t.Fatalf("%d more bytes, %v", n, err)
	}
}

// TestGatheredReads: a client that takes nothing does not keep its own bytes from
// being read.
func TestGatheredReads(t *testing.T) {
	far, near := net.Pipe()
	defer far.Close()
	g := &gathered{Conn: near, buffers: &Server{}}
	g.hold()
	var all sync.WaitGroup
	all.Go(func() { g.Write(make([]byte, 2*gatherSize)) }) // until the end
	all.Go(func() { far.Write([]byte("x")) })
	if n, err := g.Read(make([]byte, 1)); n != 1 || err != nil {
		t.Error(n, err)
	}
	g.Close()
	all.Wait()
}
