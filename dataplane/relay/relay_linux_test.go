package relay

import (
	"errors"
	"math/rand/v2"
	"net"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// deafen makes the peer's kernel drop all that arrives for it, as if the cable
// was cut: nothing is acknowledged. hear ends it.
func deafen(t *testing.T, c *net.TCPConn) (hear func()) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	drop := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: 0}}
	control := func(f func(fd int) error) {
		t.Helper()
		var inner error
		if err := raw.Control(func(fd uintptr) { inner = f(int(fd)) }); err != nil || inner != nil {
			t.Fatal(err, inner)
		}
	}
	control(func(fd int) error {
		prog := unix.SockFprog{Len: uint16(len(drop)), Filter: (*unix.SockFilter)(unsafe.Pointer(&drop[0]))}
		return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &prog)
	})
	return func() {
		control(func(fd int) error {
			return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0)
		})
	}
}

// A peer that vanishes without a word ends the relay by TCP_USER_TIMEOUT, and
// the other side hears of it as a reset.
func TestRelayDeadPeer(t *testing.T) {
	eachKind(t, 1, func(t *testing.T, loops []Loop) {
		sides(t, func(t *testing.T, near, far func(*run) *net.TCPConn) {
			a, b := tcp(t), tcp(t)
			for _, k := range []link{a, b} {
				if err := Tune(k.fd, Tuning{NoDelay: true, KeepAlive: time.Minute, UserTimeout: 300 * time.Millisecond}); err != nil {
					t.Fatal(err)
				}
			}
			r := startLinks(t, loops[0], a, b, State{})
			deafen(t, near(r))
			say(t, far(r), "anybody there?")
			wantReset(t, far(r))
			r.wantEnd(t, EndedError)
		})
	})
}

// The reset of one side must not overtake bytes of its that are on their way to
// the other: to reset takes away what is not acknowledged.
func TestF15_ResetWaitsForAcknowledgement(t *testing.T) {
	eachKind(t, 1, func(t *testing.T, loops []Loop) {
		sides(t, func(t *testing.T, near, far func(*run) *net.TCPConn) {
			r := startRelay(t, loops[0], 0)
			hear := deafen(t, far(r))
			say(t, near(r), "the reply")
			resetPeer(t, near(r))
			until(t, "the reset's way", func() (waits bool) {
				on(t, loops[0], func() { waits = r.relay.passing != nil || r.relay.over })
				return waits
			})
			hear()
			want(t, far(r), "the reply")
			wantReset(t, far(r))
			r.wantEnd(t, EndedReset)
		})
	})
}

// The patience with a peer that takes bytes slowly begins anew with each that it takes.
func TestF15_SlowReaderBeforeReset(t *testing.T) {
	eachKind(t, 1, func(t *testing.T, loops []Loop) {
		r := startLinks(t, loops[0], tcpBuffers(t, 512<<10), tcpBuffers(t, 16<<10), State{})
		answer := make([]byte, 256<<10)
		rand.NewChaCha8([32]byte{6}).Read(answer)
		if _, err := r.left.Write(answer); err != nil {
			t.Fatal(err)
		}
		until(t, "the answer's way", func() bool { return outstanding(r.left) == 0 })
		resetPeer(t, r.left)
		waits := func(f func(p *passing)) {
			on(t, loops[0], func() {
				if p := r.relay.passing; p != nil && !r.relay.over {
					f(p)
				}
			})
		}
		until(t, "the reset's way", func() (is bool) {
			waits(func(p *passing) {
				is = true
				loops[0].Disarm((*deadline)(r.relay)) // from here on time passes when this says so
				if p.acked >= r.relay.b.written {
					t.Errorf("%d of %d bytes are said to have arrived", p.acked, r.relay.b.written)
				}
			})
			return is
		})
		read, tried := 0, 0
		for ; read < len(answer); read += 4 << 10 {
			want(t, r.right, string(answer[read:read+4<<10]))
			waits(func(p *passing) {
				if r.relay.b.acked() == p.acked {
					return
				}
				tried++
				p.since = time.Now().Add(-2 * resetPatience)
				(*deadline)(r.relay).Due(time.Now())
				loops[0].Disarm((*deadline)(r.relay))
			})
		}
		waits(func(*passing) { loops[0].Arm((*deadline)(r.relay), 1) })
		if tried == 0 {
			t.Error("no byte was taken while the reset waited: this tests nothing")
		}
		wantReset(t, r.right)
		r.wantEnd(t, EndedReset)
	})
}

// Where no pipe is to be had bytes are copied, and nothing else changes.
func TestRelayWithoutPipes(t *testing.T) {
	const size = 4 << 20
	eachKind(t, 1, func(t *testing.T, loops []Loop) {
		on(t, loops[0], func() { storesOf(loops[0]).retry = time.Now().Add(time.Hour) })
		r := startRelay(t, loops[0], 0)
		there := carry(r.left, r.right, 1, size)
		back := carry(r.right, r.left, 2, size)
		wait(t, there, "stream").check(t, size)
		wait(t, back, "stream").check(t, size)
		r.wantEnd(t, EndedClosed)
		on(t, loops[0], func() {
			if n := storesOf(loops[0]).open; n != 0 {
				t.Errorf("%d pipes", n)
			}
		})
	})
}

// Stalled streams cannot take more pipes than the loop may have.
func TestRelayPipesBounded(t *testing.T) {
	var s stores
	defer s.close()
	var lent []*pipe
	for range 2 * pipesMost {
		if p := s.pipe(time.Now()); p != nil {
			lent = append(lent, p)
		}
	}
	if len(lent) > pipesMost {
		t.Errorf("%d pipes lent, want at most %d", len(lent), pipesMost)
	}
	for _, p := range lent {
		s.putPipe(p)
	}
	if len(s.pipes) != pipesKeep || s.open != pipesKeep {
		t.Errorf("%d pipes kept, %d open, want %d", len(s.pipes), s.open, pipesKeep)
	}
}

// No descriptors left for a pipe: the same.
func TestRelayPipeRefused(t *testing.T) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 0, Max: limit.Max}); err != nil {
		t.Fatal(err)
	}
	var s stores
	now := time.Now()
	first, again := s.pipe(now), s.pipe(now.Add(pipeRetry/2))
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if first != nil || again != nil || s.open != 0 {
		t.Error("a pipe without descriptors")
	}
	if p := s.pipe(now.Add(pipeRetry / 2)); p != nil {
		t.Error("asked again too soon")
	}
	p := s.pipe(now.Add(pipeRetry))
	if p == nil {
		t.Fatal("no pipe after the pause")
	}
	s.dropPipe(p)
}

// Splicing is used for what is large.
func TestRelaySplices(t *testing.T) {
	eachKind(t, 1, func(t *testing.T, loops []Loop) {
		r := startRelay(t, loops[0], 0)
		const size = 8 << 20
		wait(t, carry(r.left, r.right, 1, size), "stream").check(t, size)
		on(t, loops[0], func() {
			s := storesOf(loops[0])
			if s.open == 0 || len(s.pipes) != s.open {
				t.Errorf("%d pipes open, %d given back", s.open, len(s.pipes))
			}
		})
	})
}

// A pipe that still holds bytes when its relay ends is closed, not lent again.
func TestRelayAbortWithFullPipe(t *testing.T) {
	eachKind(t, 1, func(t *testing.T, loops []Loop) {
		l := loops[0]
		r := startLinks(t, l, tcpBuffers(t, 512<<10), tcpBuffers(t, 512<<10), State{})
		fill(t, r.left)
		on(t, l, func() {
			if p := r.relay.b.pipe; p == nil || p.held == 0 {
				t.Error("nothing is in a pipe: this tests nothing")
			}
			r.relay.Abort()
			s := storesOf(l)
			if s.open != len(s.pipes) {
				t.Errorf("%d pipes open, %d in the store", s.open, len(s.pipes))
			}
			for _, p := range s.pipes {
				if n, err := unix.Read(p.r, make([]byte, 1)); err != unix.EAGAIN {
					t.Errorf("a stored pipe holds bytes: read %d, %v", n, err)
				}
			}
		})
		r.wantEnd(t, EndedAborted)
	})
}

// After some small moves in a row a direction copies again.
func TestRelayCopiesAgain(t *testing.T) {
	eachKind(t, 1, func(t *testing.T, loops []Loop) {
		l := loops[0]
		r := startRelay(t, l, 0)
		splicing := func() (is bool) {
			on(t, l, func() { is = r.relay.b.splicing })
			return is
		}
		on(t, l, func() { r.relay.b.splicing = true })
		for i := range splicesSmall {
			if !splicing() {
				t.Errorf("copies again after %d small moves, want %d", i, splicesSmall)
			}
			say(t, r.left, "small")
			want(t, r.right, "small")
		}
		if splicing() {
			t.Error("small moves are still spliced")
		}
	})
}

// The steady state of the loop and the relay allocates nothing.
func TestRelayAllocations(t *testing.T) {
	l, err := NewEpoll()
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, c := range []struct {
		name    string
		size    int
		buffers int
		runs    int
		retry   time.Duration // until then there are no pipes
	}{
		{name: "ping", size: 64, runs: 500},
		{name: "spliced", size: 1 << 20, runs: 100},
		{name: "copied", size: 1 << 20, runs: 100, retry: time.Hour},
		{name: "partial writes", size: 64 << 10, buffers: 16 << 10, runs: 10, retry: time.Hour},
	} {
		t.Run(c.name, func(t *testing.T) {
			on(t, l, func() {
				s := storesOf(l)
				s.close()
				s.retry = time.Now().Add(c.retry)
			})
			a, b := rawPair(t, c.buffers), rawPair(t, c.buffers)
			ended := make(owner, 1)
			var r *Relay
			on(t, l, func() {
				r = Start(l, State{A: End{FD: a.fd}, B: End{FD: b.fd}, Idle: time.Hour}, ended)
			})
			out, in := make([]byte, c.size), make([]byte, c.size)
			exchange := func() {
				pass(t, a.peer, b.peer, out, in)
				pass(t, b.peer, a.peer, out, in)
			}
			for range 10 {
				exchange()
			}
			if n := testing.AllocsPerRun(c.runs, exchange); n != 0 {
				t.Errorf("%v allocations an exchange", n)
			}
			on(t, l, r.Abort)
		})
	}
}

type raw struct{ fd, peer int }

// rawPair is a TCP connection with a bare descriptor as the peer.
func rawPair(t testing.TB, buffers int) raw {
	t.Helper()
	l, err := Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer Close(l)
	if buffers > 0 {
		setBuffers(l, buffers)
	}
	peer, err := Connect(LocalAddr(l))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { Close(peer) })
	awaitReadable(t, l)
	fd, _, err := Accept(l)
	if err != nil {
		t.Fatal(err)
	}
	return raw{fd, peer}
}

// pass sends out from one peer and takes it at the other, without blocking
// calls that could hide a stall.
func pass(t testing.TB, from, to int, out, in []byte) {
	sent, got := 0, 0
	for got < len(in) {
		n, err := send(from, out[sent:])
		if err != nil && err != unix.EAGAIN {
			t.Fatal(err)
		}
		sent += n
		n, err = recv(to, in[got:])
		if err == unix.EAGAIN {
			pollOne(to)
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		got += n
	}
}

// pollOne waits a little for fd, without an allocation.
func pollOne(fd int) {
	fds := [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	_, _ = unix.Poll(fds[:], 1)
}

func BenchmarkRelayPing(b *testing.B) { benchmarkRelay(b, 64) }
func BenchmarkRelayBulk(b *testing.B) { benchmarkRelay(b, 1<<20) }

func benchmarkRelay(b *testing.B, size int) {
	for name, start := range kinds() {
		b.Run(name, func(b *testing.B) {
			l, err := start()
			if err != nil {
				b.Fatal(err)
			}
			defer l.Close()
			left, right := rawPair(b, 0), rawPair(b, 0)
			ended := make(owner, 1)
			started := make(chan *Relay)
			l.Post(func() {
				started <- Start(l, State{A: End{FD: left.fd}, B: End{FD: right.fd}}, ended)
			})
			r := <-started
			out, in := make([]byte, size), make([]byte, size)
			b.SetBytes(int64(2 * size))
			b.ReportAllocs()
			for b.Loop() {
				pass(b, left.peer, right.peer, out, in)
				pass(b, right.peer, left.peer, out, in)
			}
			l.Post(r.Abort)
			<-ended
		})
	}
}

// A relay thread blocks as an ordinary system call: the collector does not wait
// for the network, whatever the number of sleeping loops.
func TestLoopLetsCollectorRun(t *testing.T) {
	loops, err := New(4)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range loops {
		defer l.Close()
		on(t, l, func() {})
	}
	done := make(chan struct{})
	go func() {
		collect()
		close(done)
	}()
	wait(t, done, "the collector")
}

// A wait that is cut short would spin until the deadline.
func TestMillis(t *testing.T) {
	for d, want := range map[time.Duration]int{-1: -1, 1: 1, time.Millisecond: 1, time.Millisecond + 1: 2, 1000 * time.Hour: 3600000} {
		if got := millis(d); got != want {
			t.Errorf("%v is %d ms, want %d", d, got, want)
		}
	}
}

func TestLoopOneThread(t *testing.T) {
	l, err := NewEpoll()
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var first int
	on(t, l, func() { first = syscall.Gettid() })
	for range 100 {
		on(t, l, func() {
			if id := syscall.Gettid(); id != first {
				t.Errorf("thread %d, and then %d", first, id)
			}
		})
	}
}

func TestLoopWatchBlockingRefused(t *testing.T) {
	l, err := NewPortable()
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	k := tcp(t)
	defer Close(k.fd)
	if err := unix.SetNonblock(k.fd, false); err != nil {
		t.Fatal(err)
	}
	on(t, l, func() {
		if err := l.Watch(k.fd, ready(func(Readiness) {})); err == nil {
			t.Error("a blocking descriptor was taken")
		}
	})
}

func TestConnectRefused(t *testing.T) {
	bound, err := Bind("127.0.0.1:0") // nobody else gets the port, and nobody listens
	if err != nil {
		t.Fatal(err)
	}
	defer Close(bound)
	fd, err := Connect(LocalAddr(bound))
	if err != nil {
		t.Fatal(err)
	}
	defer Close(fd)
	for end := time.Now().Add(patience); ; {
		ok, err := Connected(fd)
		if errors.Is(err, syscall.ECONNREFUSED) {
			return
		}
		if ok || err != nil || time.Now().After(end) {
			t.Fatalf("connected %v, %v; want refused", ok, err)
		}
	}
}
