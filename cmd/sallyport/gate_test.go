package main

import (
	"errors"
	"net"
	"path/filepath"
	"testing"
	"time"
)

// TestGate: what comes while the gate is shut waits at the socket, for this
// process or for the next one.
func TestGate(t *testing.T) {
	dir := t.TempDir()
	for _, address := range [][2]string{{"tcp", "127.0.0.1:0"}, {"unix", filepath.Join(dir, "s")}} {
		t.Run(address[0], func(t *testing.T) {
			l, err := net.Listen(address[0], address[1])
			if err != nil {
				t.Fatal(err)
			}
			g, err := gate(l)
			if err != nil {
				t.Fatal(err)
			}
			defer g.Close()
			accepted, ended := accepting(g)
			comes := func(what string, from <-chan net.Conn) {
				t.Helper()
				c, err := net.Dial(address[0], l.Addr().String())
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				select {
				case s := <-from:
					s.Close()
				case <-time.After(time.Minute):
					t.Fatalf("%s: nobody accepts", what)
				}
			}
			comes("open", accepted)
			if err := g.shut(); err != nil {
				t.Fatal(err)
			}
			waits, err := net.Dial(address[0], l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer waits.Close()
			select {
			case <-accepted:
				t.Fatal("accepted while the gate is shut")
			default:
			}
			if err := g.open(); err != nil {
				t.Fatal(err)
			}
			(<-accepted).Close()
			comes("open again", accepted)

			// Another process has the socket.
			if err := g.shut(); err != nil {
				t.Fatal(err)
			}
			fd, err := dup(g)
			if err != nil {
				t.Fatal(err)
			}
			next, err := inheritedListener(fd, "test")
			if err != nil {
				t.Fatal(err)
			}
			if err := g.leave(); err != nil {
				t.Fatal(err)
			}
			others, othersEnded := accepting(next)
			comes("in the next process", others)
			select {
			case err := <-ended:
				t.Errorf("the old process was told: %v", err)
			default:
			}
			g.Close()
			next.Close()
			for _, e := range []<-chan error{ended, othersEnded} {
				if err := <-e; !errors.Is(err, net.ErrClosed) {
					t.Errorf("%v", err)
				}
			}
		})
	}
}

func accepting(l net.Listener) (<-chan net.Conn, <-chan error) {
	conns, ended := make(chan net.Conn), make(chan error, 1)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				ended <- err
				return
			}
			conns <- c
		}
	}()
	return conns, ended
}

// TestGateShuts: whoever accepts does not try again and again while the gate is
// being shut.
func TestGateShuts(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	const rounds = 500
	counted := &countedListener{listener: l.(listener), calls: make(chan struct{}, 1<<20)}
	g, err := gate(counted)
	if err != nil {
		t.Fatal(err)
	}
	_, ended := accepting(g)
	for range rounds {
		<-counted.calls // it waits there, or is about to
		if err := g.shut(); err != nil {
			t.Fatal(err)
		}
		if n := len(counted.calls); n > 0 {
			t.Fatalf("accepted %d times more while the gate was being shut", n)
		}
		if err := g.open(); err != nil {
			t.Fatal(err)
		}
	}
	g.Close()
	<-ended
}

// countedListener tells who accepts.
type countedListener struct {
	listener
	calls chan struct{}
}

func (l *countedListener) Accept() (net.Conn, error) {
	l.calls <- struct{}{}
	return l.listener.Accept()
}
