package flow

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/panjf2000/gnet/v2"
	"golang.org/x/sys/unix"
)

const (
	chunk      = 128 << 10 // of a stream
	firstRead  = 64 << 10
	clientWait = 30 * time.Second // for a client's first byte
)

// Serve runs the servers until ctx is done. echo and one answer every event
// and run on gnet; sink and source are one blocking call per chunk: gnet
// copies what the sink throws away, and has no back-pressure for a source.
func Serve(ctx context.Context, b Backends) error {
	s := &servers{conns: map[net.Conn]struct{}{}}
	for _, each := range []struct {
		addr  string
		serve func(*net.TCPConn)
	}{{b.Sink, s.sink}, {b.Source, s.source}, {b.Count, s.tell}} {
		if err := s.listen(each.addr, each.serve); err != nil {
			s.close()
			return err
		}
	}
	defer s.close()
	return serveEvents(ctx, b)
}

// servers are those with a goroutine per connection.
type servers struct {
	taken     atomic.Uint64 // by the sink
	listeners []net.Listener
	serving   sync.WaitGroup

	mu     sync.Mutex
	conns  map[net.Conn]struct{} // guarded by mu
	closed bool
}

func (s *servers) listen(addr string, serve func(*net.TCPConn)) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	s.listeners = append(s.listeners, l)
	s.serving.Go(func() { s.accept(l, serve) })
	return nil
}

func (s *servers) accept(l net.Listener, serve func(*net.TCPConn)) {
	for {
		conn, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(10 * time.Millisecond) // out of descriptors: the next may find one
			continue
		}
		if !s.keep(conn) {
			continue
		}
		s.serving.Go(func() {
			defer s.forget(conn)
			serve(conn.(*net.TCPConn))
		})
	}
}

func (s *servers) keep(conn net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		conn.Close()
		return false
	}
	s.conns[conn] = struct{}{}
	return true
}

func (s *servers) forget(conn net.Conn) {
	conn.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, conn)
}

func (s *servers) close() {
	for _, l := range s.listeners {
		l.Close()
	}
	s.mu.Lock()
	s.closed = true
	for conn := range s.conns {
		conn.Close()
	}
	s.mu.Unlock()
	s.serving.Wait()
}

// begun waits for a client's preface.
func begun(conn net.Conn) bool {
	conn.SetReadDeadline(time.Now().Add(clientWait))
	n, err := conn.Read(make([]byte, firstRead))
	conn.SetReadDeadline(time.Time{}) // a stream lasts as long as its client likes
	return n > 0 && err == nil
}

// sink throws away without copying: MSG_TRUNC of tcp(7).
func (s *servers) sink(conn *net.TCPConn) {
	if !begun(conn) {
		return
	}
	if _, err := conn.Write([]byte{1}); err != nil {
		return
	}
	_ = discard(conn, func(n int) { s.taken.Add(uint64(n)) })
}

// discard takes everything from conn until its end.
func discard(conn *net.TCPConn, took func(n int)) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	room := make([]byte, 1<<20)
	for {
		var n int
		var failed error
		err := raw.Read(func(fd uintptr) bool {
			n, _, failed = unix.Recvfrom(int(fd), room, unix.MSG_TRUNC)
			return failed != unix.EAGAIN && failed != unix.EINTR
		})
		if err = errors.Join(err, failed); err != nil {
			return err
		}
		if n <= 0 {
			return nil
		}
		took(n)
	}
}

func (s *servers) source(conn *net.TCPConn) {
	if !begun(conn) {
		return
	}
	for data := make([]byte, chunk); ; {
		if _, err := conn.Write(data); err != nil {
			return
		}
	}
}

func (s *servers) tell(conn *net.TCPConn) {
	b := binary.BigEndian.AppendUint64(nil, s.taken.Load())
	var now unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &now) != nil { // nobody sets this one
		return
	}
	_, _ = conn.Write(binary.BigEndian.AppendUint64(b, uint64(now.Nano())))
}

// serveEvents runs echo and one on one event loop.
func serveEvents(ctx context.Context, b Backends) error {
	h := &events{one: b.One, booted: make(chan gnet.Engine, 1)}
	ended := make(chan error, 1)
	go func() {
		ended <- gnet.Rotate(h, []string{"tcp://" + b.Echo, "tcp://" + b.One}, gnet.WithNumEventLoop(1), gnet.WithTCPNoDelay(gnet.TCPNoDelay), gnet.WithReuseAddr(true), gnet.WithLogger(quiet{}))
	}()
	select {
	case err := <-ended:
		return err
	case engine := <-h.booted:
		<-ctx.Done()
		stop, cancel := context.WithTimeout(context.Background(), clientWait)
		defer cancel()
		return errors.Join(engine.Stop(stop), <-ended)
	}
}

// events answers what comes to echo and one.
type events struct {
	gnet.BuiltinEventEngine
	one    string
	booted chan gnet.Engine
}

// OnBoot implements gnet.EventHandler.
func (h *events) OnBoot(e gnet.Engine) gnet.Action {
	h.booted <- e
	return gnet.None
}

// OnOpen implements gnet.EventHandler: a connection is to one, or to echo.
func (h *events) OnOpen(c gnet.Conn) ([]byte, gnet.Action) {
	c.SetContext(c.LocalAddr().String() == h.one)
	return nil, gnet.None
}

// OnTraffic implements gnet.EventHandler.
func (h *events) OnTraffic(c gnet.Conn) gnet.Action {
	b, err := c.Next(-1)
	if err != nil || len(b) == 0 {
		return gnet.Close
	}
	if one, _ := c.Context().(bool); one {
		b = b[:1]
	}
	if _, err := c.Write(b); err != nil {
		return gnet.Close
	}
	return gnet.None
}

// quiet is a logger that says nothing: clients come and go as they like.
type quiet struct{}

func (quiet) Debugf(string, ...any) {}
func (quiet) Infof(string, ...any)  {}
func (quiet) Warnf(string, ...any)  {}
func (quiet) Errorf(string, ...any) {}

// Fatalf ends the program, as its contract says.
func (quiet) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }
