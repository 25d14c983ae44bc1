//go:build unix

package relay

import (
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/test/leak"
)

// patience is how long anything in these tests may take at most.
const patience = time.Minute

// TestMain fails when goroutines are left behind.
func TestMain(m *testing.M) { leak.Main(m) }

// eachKind runs f with n loops of each implementation, and looks for lost
// descriptors.
func eachKind(t *testing.T, n int, f func(t *testing.T, loops []Loop)) {
	for name, start := range kinds() {
		t.Run(name, func(t *testing.T) {
			noLeak(t)
			loops := make([]Loop, n)
			for i := range loops {
				l, err := start()
				if err != nil {
					t.Fatal(err)
				}
				loops[i] = l
				t.Cleanup(func() { l.Close() })
			}
			f(t, loops)
		})
	}
}

// noLeak compares the open descriptors at the end with those now.
func noLeak(t *testing.T) {
	t.Helper()
	k := tcp(t) // the poller's own descriptors come with the first use
	Close(k.fd)
	k.peer.Close()
	fds := openDescriptors(t)
	t.Cleanup(func() {
		deadline := time.Now().Add(patience)
		for openDescriptors(t) > fds {
			if time.Now().After(deadline) {
				t.Errorf("%d descriptors open at the end, %d at the start", openDescriptors(t), fds)
				return
			}
			runtime.Gosched()
		}
	})
}

func openDescriptors(t *testing.T) int {
	t.Helper()
	dir := "/dev/fd"
	if runtime.GOOS == "linux" {
		dir = "/proc/self/fd"
	}
	all, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

// on runs f on the loop and waits for it.
func on(t *testing.T, l Loop, f func()) {
	t.Helper()
	done := make(chan struct{})
	if !l.Post(func() { defer close(done); f() }) {
		t.Fatal("the loop is closed")
	}
	wait(t, done, "a posted function")
}

func wait[T any](t *testing.T, c <-chan T, what string) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(patience):
		t.Fatalf("%s: nothing after %v", what, patience)
	}
	return v
}

// until asks again and again, and fails loudly.
func until(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !f(); runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatalf("%s: not after %v", what, patience)
		}
	}
}

// link is one TCP connection: our descriptor, and the peer.
type link struct {
	fd   int
	peer *net.TCPConn
}

// tcp makes a connection over the loopback. The peer is closed with the test;
// the descriptor is the caller's.
func tcp(t testing.TB) link { return tcpBuffers(t, 0) }

// tcpBuffers sets the socket buffers on both ends, before anything is sent.
func tcpBuffers(t testing.TB, size int) link {
	t.Helper()
	l, err := Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer Close(l)
	if size > 0 {
		setBuffers(l, size)
	}
	dialer := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) error {
		return raw.Control(func(fd uintptr) {
			if size > 0 {
				setBuffers(int(fd), size)
			}
		})
	}}
	conn, err := dialer.Dial("tcp", LocalAddr(l).String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(3 * patience)); err != nil {
		t.Fatal(err)
	}
	awaitReadable(t, l)
	fd, _, err := Accept(l)
	if err != nil {
		t.Fatal(err)
	}
	return link{fd: fd, peer: conn.(*net.TCPConn)}
}

func setBuffers(fd, size int) {
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, size)
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, size)
}

func awaitReadable(t testing.TB, fd int) {
	t.Helper()
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, int(patience/time.Millisecond))
		if err == unix.EINTR { // the runtime's own signals
			continue
		}
		if n != 1 {
			t.Fatalf("descriptor not readable: %v", err)
		}
		return
	}
}

// ending is what the owner was told.
type ending struct {
	state State
	why   Reason
}

type owner chan ending

func (o owner) Ended(s State, why Reason) { o <- ending{s, why} }

// run is one relay under test, between two peers.
type run struct {
	loop        Loop
	relay       *Relay
	left, right *net.TCPConn // the peers of A and of B
	ended       owner
}

func startRelay(t *testing.T, l Loop, idle time.Duration) *run {
	t.Helper()
	return startLinks(t, l, tcp(t), tcp(t), State{Idle: idle})
}

func startLinks(t *testing.T, l Loop, a, b link, s State) *run {
	t.Helper()
	r := &run{loop: l, left: a.peer, right: b.peer, ended: make(owner, 1)}
	s.A.FD, s.B.FD = a.fd, b.fd
	r.goesOn(t, l, s)
	return r
}

// goesOn starts the relay, once more if it has been taken. What is started ends with
// the test, before its loop does: a loop leaves descriptors to those who watch
// them, and does not wait until they have heard that the peers are gone.
func (r *run) goesOn(t *testing.T, l Loop, s State) {
	t.Helper()
	r.loop = l
	on(t, l, func() { r.relay = StartIn(spent(), l, s, r.ended) })
	started := r.relay // it may move, and is another one then
	t.Cleanup(func() { l.Post(started.Abort) })
}

// spent is a relay that has ended with all that one can end with.
func spent() *Relay {
	r := &Relay{id: 1 << 40, idle: 1, started: 1, moved: 1, passing: &passing{pause: 1}, route: 9, cause: EndedError, over: true, shared: true, copied: true}
	for _, s := range []*side{&r.a, &r.b} {
		*s = side{relay: r, kept: &kept{bytes: []byte("left")}, written: 1, fd: -1, readable: true, ending: true, readClosed: true, writeClosed: true, reset: true, splicing: true, small: splicesSmall}
	}
	return r
}

func (r *run) wantEnd(t *testing.T, why Reason) State {
	t.Helper()
	e := wait(t, r.ended, "the end of the relay")
	if e.why != why {
		t.Errorf("ended for reason %d, want %d", e.why, why)
	}
	if e.state.A.FD != -1 || e.state.B.FD != -1 {
		t.Errorf("descriptors %d and %d after the end", e.state.A.FD, e.state.B.FD)
	}
	return e.state
}

// sides runs f both ways round.
func sides(t *testing.T, f func(t *testing.T, near, far func(*run) *net.TCPConn)) {
	left := func(r *run) *net.TCPConn { return r.left }
	right := func(r *run) *net.TCPConn { return r.right }
	t.Run("a", func(t *testing.T) { f(t, left, right) })
	t.Run("b", func(t *testing.T) { f(t, right, left) })
}

func say(t *testing.T, c net.Conn, s string) {
	t.Helper()
	if _, err := io.WriteString(c, s); err != nil {
		t.Fatal(err)
	}
}

func want(t *testing.T, c net.Conn, s string) {
	t.Helper()
	b := make([]byte, len(s))
	if n, err := io.ReadFull(c, b); err != nil || string(b) != s {
		t.Fatalf("read %d bytes %.40q, %v; want %.40q", n, b[:n], err, s)
	}
}

func wantEOF(t *testing.T, c net.Conn) {
	t.Helper()
	if n, err := c.Read(make([]byte, 1)); err != io.EOF {
		t.Fatalf("read %d, %v; want the end of the stream", n, err)
	}
}

func wantReset(t *testing.T, c net.Conn) {
	t.Helper()
	if n, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("read %d, %v; want a reset", n, err)
	}
}

func resetPeer(t *testing.T, c *net.TCPConn) {
	t.Helper()
	if err := c.SetLinger(0); err != nil {
		t.Fatal(err)
	}
	c.Close()
}

func collect() { runtime.GC() }

// armed shows the timers of either loop.
func (ts *timers) armed() *timers { return ts }
