//go:build unix

package relay

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"hash"
	"io"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// stream writes n random bytes in random pieces and returns their sum.
func stream(w io.Writer, seed uint64, n int) ([]byte, error) {
	rnd := rand.New(rand.NewPCG(seed, 1))
	sum := sha256.New()
	src := rand.NewChaCha8([32]byte{byte(seed)})
	buf := make([]byte, 300<<10)
	for n > 0 {
		size := 1 + rnd.IntN(200)
		if rnd.IntN(2) == 0 {
			size = 1 + rnd.IntN(len(buf))
		}
		b := buf[:min(size, n)]
		src.Read(b)
		sum.Write(b)
		if _, err := w.Write(b); err != nil {
			return nil, err
		}
		n -= len(b)
	}
	return sum.Sum(nil), nil
}

// drain reads to the end in random pieces and returns the sum of it all.
func drain(r io.Reader, seed uint64) ([]byte, int, error) {
	rnd := rand.New(rand.NewPCG(seed, 2))
	sum := sha256.New()
	n, err := copyPieces(sum, r, rnd)
	return sum.Sum(nil), n, err
}

func copyPieces(sum hash.Hash, r io.Reader, rnd *rand.Rand) (total int, err error) {
	buf := make([]byte, 100<<10)
	for {
		n, err := r.Read(buf[:1+rnd.IntN(len(buf))])
		sum.Write(buf[:n])
		total += n
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

// traffic is one stream from one peer to the other, ended in order.
type traffic struct {
	sent, got       []byte
	n               int
	sendErr, getErr error
}

// carry starts a stream and returns a channel with its outcome.
func carry(from, to *net.TCPConn, seed uint64, n int) <-chan traffic {
	done := make(chan traffic, 1)
	sent := make(chan traffic, 1)
	go func() {
		var x traffic
		x.sent, x.sendErr = stream(from, seed, n)
		from.CloseWrite()
		sent <- x
	}()
	go func() {
		sum, got, err := drain(to, seed)
		x := <-sent
		x.got, x.n, x.getErr = sum, got, err
		done <- x
	}()
	return done
}

func (x traffic) check(t *testing.T, n int) {
	t.Helper()
	if x.sendErr != nil || x.getErr != nil || x.n != n || !bytes.Equal(x.sent, x.got) {
		t.Errorf("%d of %d bytes arrived, sums equal: %v, errors: %v, %v",
			x.n, n, bytes.Equal(x.sent, x.got), x.sendErr, x.getErr)
	}
}

func TestRelayIntegrity(t *testing.T) {
	const relays, size = 8, 5 << 20
	eachKind(t, 4, func(t *testing.T, loops []Loop) {
		var all [relays]struct {
			run      *run
			there    <-chan traffic
			backHere <-chan traffic
		}
		for i := range all {
			r := startRelay(t, loops[i%len(loops)], 0)
			all[i].run = r
			all[i].there = carry(r.left, r.right, uint64(i), size)
			all[i].backHere = carry(r.right, r.left, uint64(100+i), size)
		}
		for _, one := range all {
			wait(t, one.there, "stream").check(t, size)
			wait(t, one.backHere, "stream").check(t, size)
			s := one.run.wantEnd(t, EndedClosed)
			if s.A.Written != size || s.B.Written != size {
				t.Errorf("%d and %d bytes counted, want %d", s.A.Written, s.B.Written, size)
			}
		}
	})
}

// Small socket buffers: nearly every write is partial.
func TestRelayIntegrityNarrow(t *testing.T) {
	const size = 2 << 20
	eachKind(t, 2, func(t *testing.T, loops []Loop) {
		for i, l := range loops {
			r := startLinks(t, l, tcpBuffers(t, 4096), tcpBuffers(t, 4096), State{})
			there := carry(r.left, r.right, uint64(i), size)
			back := carry(r.right, r.left, uint64(50+i), size)
			wait(t, there, "stream").check(t, size)
			wait(t, back, "stream").check(t, size)
			r.wantEnd(t, EndedClosed)
		}
	})
}

// Messages of the copying kind between messages of the splicing kind.
func TestRelaySwitches(t *testing.T) {
	eachKind(t, 1, func(t *testing.T, loops []Loop) {
		r := startRelay(t, loops[0], 0)
		rnd := rand.New(rand.NewPCG(7, 7))
		big := make([]byte, 600<<10)
		rand.NewChaCha8([32]byte{9}).Read(big)
		for range 100 {
			size := 1 + rnd.IntN(100)
			if rnd.IntN(4) == 0 {
				size = 1 + rnd.IntN(len(big))
			}
			done := make(chan error, 1)
			go func() {
				_, err := r.left.Write(big[:size])
				done <- err
			}()
			got := make([]byte, size)
			if _, err := io.ReadFull(r.right, got); err != nil || !bytes.Equal(got, big[:size]) {
				t.Fatalf("message of %d bytes: %v", size, err)
			}
			if err := wait(t, done, "write"); err != nil {
				t.Fatal(err)
			}
			say(t, r.right, "ok")
			want(t, r.left, "ok")
		}
		on(t, loops[0], func() {
			if r.relay.a.holds() || r.relay.b.holds() {
				t.Error("an idle relay holds a buffer or a pipe")
			}
		})
	})
}

func TestRelayUnix(t *testing.T) {
	eachKind(t, 1, func(t *testing.T, loops []Loop) {
		a, b := unixLink(t), unixLink(t)
		ended := make(owner, 1)
		on(t, loops[0], func() {
			Start(loops[0], State{A: End{FD: a.fd}, B: End{FD: b.fd}}, ended)
		})
		const size = 1 << 20
		sum := make(chan []byte, 1)
		go func() {
			s, _ := stream(a.peer, 3, size)
			a.peer.CloseWrite()
			sum <- s
		}()
		got, n, err := drain(b.peer, 4)
		if sent := wait(t, sum, "stream"); err != nil || n != size || !bytes.Equal(got, sent) {
			t.Errorf("%d of %d bytes arrived: %v", n, size, err)
		}
		b.peer.CloseWrite()
		wantEOF(t, a.peer)
		if e := wait(t, ended, "the end"); e.why != EndedClosed {
			t.Errorf("ended for reason %d", e.why)
		}
	})
}

type unixEnd struct {
	fd   int
	peer halfConn
}

func unixLink(t *testing.T) unixEnd {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		t.Fatal(err)
	}
	conn, err := NetConn(fds[1], nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return unixEnd{fd: fds[0], peer: conn.(halfConn)}
}

// A stuck stream costs a bounded amount, and its neighbours nothing.
func TestF18_StalledReader(t *testing.T) {
	if pipeSize > 256<<10 || ScratchSize > 256<<10 { // what a system with large buffers fills
		t.Errorf("a pipe of %d bytes, a buffer of %d", pipeSize, ScratchSize)
	}
	eachKind(t, 1, func(t *testing.T, loops []Loop) {
		l := loops[0]
		const size = 8 << 20
		stuck := startLinks(t, l, tcpBuffers(t, 32<<10), tcpBuffers(t, 32<<10), State{})
		other := startRelay(t, l, 0)

		there := make(chan traffic, 1)
		go func() {
			var x traffic
			x.sent, x.sendErr = stream(stuck.left, 11, size)
			stuck.left.CloseWrite()
			there <- x
		}()
		holds := func() int { // on the loop
			b := &stuck.relay.b
			held := len(b.pending())
			if b.pipe != nil {
				held += b.pipe.held
			}
			return held
		}
		var before uint64
		until(t, "standstill", func() bool {
			for range 200 { // the neighbour goes on
				say(t, other.left, "ping")
				want(t, other.right, "ping")
			}
			var now uint64
			var held int
			on(t, l, func() { now, held = stuck.relay.b.written, holds() })
			still := now == before && held > 0 // else who writes has paused
			before = now
			return still
		})
		on(t, l, func() {
			b := &stuck.relay.b
			if held := holds(); held > 256<<10 {
				t.Errorf("the relay holds %d bytes, want at most %d", held, 256<<10)
			}
			if cap(b.pending()) > ScratchSize {
				t.Errorf("the relay holds a buffer of %d bytes", cap(b.pending()))
			}
			// Each of the four socket buffers was asked to be 32 KiB; the
			// system doubles that.
			if written := b.written; written > 512<<10 {
				t.Errorf("%d bytes were pressed into a peer that does not read", written)
			}
		})

		sum, n, err := drain(stuck.right, 1)
		x := wait(t, there, "stream")
		x.got, x.n, x.getErr = sum, n, err
		x.check(t, size)
	})
}

func TestRelayIdle(t *testing.T) {
	eachKind(t, 1, func(t *testing.T, loops []Loop) {
		var r *run
		var last time.Time
		idle := 60 * time.Millisecond
		for kept := false; !kept; idle *= 2 { // the machine may do nothing for as long
			r = startRelay(t, loops[0], idle)
			last, kept = r.busy(t, idle, 4*idle)
		}
		idle /= 2
		r.wantEnd(t, EndedIdle)
		if d := time.Since(last); d < idle {
			t.Errorf("ended %v after the last byte, want %v", d, idle)
		}
		wantEOF(t, r.left)
		wantEOF(t, r.right)
	})
}

// busy lets bytes move for a time, and says when the last one did. It is false when
// there was a pause as long as idle in between, and the relay may have ended.
func (r *run) busy(t *testing.T, idle, whole time.Duration) (last time.Time, kept bool) {
	t.Helper()
	begin := time.Now()
	for last = begin; time.Since(begin) < whole; {
		before := last
		last = time.Now()
		_, err := io.WriteString(r.left, "x")
		if err == nil {
			_, err = io.ReadFull(r.right, make([]byte, 1))
		}
		if time.Since(before) >= idle {
			return last, false
		}
		if err != nil {
			t.Fatalf("ended %v after bytes moved, idle is %v: %v", time.Since(before), idle, err)
		}
	}
	return last, true
}

// An idle relay that is cut in the middle of a transfer must not look complete.
func TestRelayIdleStalled(t *testing.T) {
	eachKind(t, 1, func(t *testing.T, loops []Loop) {
		for idle := time.Second; ; idle *= 2 { // fill pauses for less, but the machine may not
			began := time.Now()
			r := startLinks(t, loops[0], tcpBuffers(t, 4096), tcpBuffers(t, 4096), State{Idle: idle})
			fill(t, r.left)
			kept := time.Since(began) < idle
			r.wantEnd(t, EndedIdle)
			if _, _, err := drain(r.right, 1); err != nil {
				break
			}
			if kept {
				t.Fatal("the cut transfer ended in order")
			}
		}
	})
}

func TestRelayAbort(t *testing.T) {
	eachKind(t, 1, func(t *testing.T, loops []Loop) {
		r := startRelay(t, loops[0], time.Hour)
		say(t, r.left, "x")
		want(t, r.right, "x")
		on(t, loops[0], func() { r.relay.Abort(); r.relay.Abort() })
		wantReset(t, r.left)
		wantReset(t, r.right)
		s := r.wantEnd(t, EndedAborted)
		if s.B.Written != 1 || s.A.Written != 0 {
			t.Errorf("%d and %d bytes counted", s.A.Written, s.B.Written)
		}
		on(t, loops[0], func() {
			if s := r.relay.Take(); s.A.FD != -1 || s.B.FD != -1 {
				t.Error("an aborted relay gave descriptors")
			}
		})
	})
}

// What was kept before the relay began comes first, and ends that were already
// there are passed on.
func TestRelayStartsFromState(t *testing.T) {
	eachKind(t, 1, func(t *testing.T, loops []Loop) {
		hello := bytes.Repeat([]byte("0123456789abcdef"), 4096)
		s := State{ID: 7, Route: 3, Started: time.Unix(1, 0)}
		s.A.Pending, s.A.Written = []byte("for a;"), 5
		s.B.Pending = hello
		s.A.ReadClosed = true
		a, b := tcp(t), tcp(t)
		a.peer.CloseWrite()
		say(t, b.peer, "live")
		r := startLinks(t, loops[0], a, b, s)
		want(t, r.left, "for a;live")
		want(t, r.right, string(hello))
		wantEOF(t, r.right)
		r.right.Close()
		wantEOF(t, r.left)
		end := r.wantEnd(t, EndedClosed)
		if end.ID != 7 || end.Route != 3 || !end.Started.Equal(s.Started) || end.A.Written != 15 || end.B.Written != uint64(len(hello)) {
			t.Errorf("ended as %+v", end)
		}
	})
}

// A connection that was reset before the relay began: no event has told it.
func TestRelayStartsWithReset(t *testing.T) {
	eachKind(t, 1, func(t *testing.T, loops []Loop) {
		check := func(t *testing.T, words string, near, far func(*run) *net.TCPConn) {
			a, b := tcp(t), tcp(t)
			broken := a
			if near(&run{left: a.peer, right: b.peer}) == b.peer {
				broken = b
			}
			say(t, broken.peer, words)
			resetPeer(t, broken.peer)
			until(t, "the reset's way", func() bool { return pollNow(broken.fd)&Failed != 0 })
			r := startLinks(t, loops[0], a, b, State{})
			want(t, far(r), words)
			wantReset(t, far(r))
			r.wantEnd(t, EndedReset)
		}
		for _, words := range []string{"", "last words"} {
			sides(t, func(t *testing.T, near, far func(*run) *net.TCPConn) { check(t, words, near, far) })
		}
	})
}

func TestRelayStartFails(t *testing.T) {
	eachKind(t, 1, func(t *testing.T, loops []Loop) {
		k, gone := tcp(t), tcp(t)
		ended := make(owner, 1)
		on(t, loops[0], func() {
			fd := gone.fd
			if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil {
				t.Error(err)
			}
			unix.Close(fd)
			Start(loops[0], State{A: End{FD: k.fd}, B: End{FD: fd}}, ended)
			if len(ended) != 0 {
				t.Error("the owner was told from within Start")
			}
		})
		if e := wait(t, ended, "the end"); e.why != EndedError {
			t.Errorf("ended for reason %d", e.why)
		}
		wantReset(t, k.peer)
	})
}

// A relay goes round four loops while bytes flow both ways; its state passes
// through an encoding each time.
func TestRelayTake(t *testing.T) {
	eachKind(t, 4, func(t *testing.T, loops []Loop) {
		const relays, size = 3, 6 << 20
		moves, carried := 0, 0
		for round := 0; moves < 20 || carried == 0; round++ { // on a busy machine a stream is short
			if round == 50 {
				t.Fatalf("%d moves carried %d bytes: this tested nothing", moves, carried)
			}
			var runs [relays]*run
			var streams []<-chan traffic
			for i := range runs {
				buffers := 0 // the system's choice
				if i == 0 {
					buffers = 8 << 10
				}
				a, b := tcpBuffers(t, buffers), tcpBuffers(t, buffers)
				runs[i] = startLinks(t, loops[0], a, b, State{Idle: time.Minute})
				streams = append(streams,
					carry(runs[i].left, runs[i].right, uint64(i), size),
					carry(runs[i].right, runs[i].left, uint64(10+i), size))
			}
			for hop := 0; hop < 400; hop++ {
				for _, r := range runs {
					s, ok := takeAway(t, r)
					if !ok {
						continue
					}
					carried += len(s.A.Pending) + len(s.B.Pending)
					moves++
					r.goesOn(t, loops[(hop+1)%len(loops)], recode(t, s))
				}
			}
			for _, c := range streams {
				wait(t, c, "stream").check(t, size)
			}
			for _, r := range runs {
				s := r.wantEnd(t, EndedClosed)
				if s.A.Written != size || s.B.Written != size {
					t.Errorf("%d and %d bytes counted, want %d", s.A.Written, s.B.Written, size)
				}
			}
		}
	})
}

func takeAway(t *testing.T, r *run) (s State, ok bool) {
	on(t, r.loop, func() {
		if ok = !r.relay.over; ok {
			s = r.relay.Take()
		}
	})
	return s, ok
}

// recode sends a state through an encoding, as a hand-over does.
func recode(t *testing.T, s State) (out State) {
	b, err := json.Marshal(s)
	if err != nil {
		t.Error(err)
	}
	if err := json.Unmarshal(b, &out); err != nil {
		t.Error(err)
	}
	return out
}

// A taken relay is silent: no event, no timer, no owner.
func TestRelayTaken(t *testing.T) {
	eachKind(t, 1, func(t *testing.T, loops []Loop) {
		l := loops[0]
		a, b := tcp(t), tcp(t)
		r := &run{loop: l, left: a.peer, right: b.peer, ended: make(owner, 1)}
		var s State
		on(t, l, func() { // in one go, however long the machine then does something else
			s = Start(l, State{Idle: 20 * time.Millisecond, A: End{FD: a.fd}, B: End{FD: b.fd}}, r.ended).Take()
		})
		say(t, r.left, "still there")
		over := make(chan struct{})
		on(t, l, func() { l.Arm(due(func(time.Time) { close(over) }), 100*time.Millisecond) })
		wait(t, over, "a timer")
		if len(r.ended) != 0 {
			t.Fatal("the owner was told")
		}
		s.Idle = 0
		r.goesOn(t, l, s)
		want(t, r.right, "still there")
	})
}

// A reset that waits survives a hand-over, and stays a reset.
func TestRelayTakeWhilePassingReset(t *testing.T) {
	eachKind(t, 2, func(t *testing.T, loops []Loop) {
		r := startLinks(t, loops[0], tcpBuffers(t, 256<<10), tcpBuffers(t, 4096), State{})
		n := fill(t, r.left)
		until(t, "all taken", func() bool { return outstanding(r.left) == 0 || n > 0 })
		resetPeer(t, r.left)
		until(t, "the reset's way", func() bool {
			var passing bool
			on(t, loops[0], func() { passing = r.relay.passing != nil })
			return passing
		})
		s, ok := takeAway(t, r)
		if !ok || !s.A.Reset {
			t.Fatalf("taken %v, reset %v", ok, s.A.Reset)
		}
		r.goesOn(t, loops[1], recode(t, s))
		sum, got, err := drain(r.right, 1)
		if err == nil || got == 0 {
			t.Errorf("%d bytes (%x), then %v; want a reset", got, sum[:4], err)
		}
		r.wantEnd(t, EndedReset)
	})
}

// Many relays come and go on four loops; nothing is left open.
func TestRelayMany(t *testing.T) {
	eachKind(t, 4, func(t *testing.T, loops []Loop) {
		for round := range 60 {
			r := startRelay(t, loops[round%4], time.Hour)
			say(t, r.left, "x")
			want(t, r.right, "x")
			switch round % 3 {
			case 0:
				r.left.Close()
				wantEOF(t, r.right)
				r.right.Close()
			case 1:
				resetPeer(t, r.right)
			case 2:
				on(t, r.loop, r.relay.Abort)
			}
			wait(t, r.ended, "the end")
		}
		for _, l := range loops {
			on(t, l, func() {
				if n := armedOn(l); n != 0 {
					t.Errorf("%d timers of ended relays are armed", n)
				}
			})
		}
	})
}

func armedOn(l Loop) int {
	ts := l.(interface{ armed() *timers }).armed()
	return len(ts.heap) + len(ts.by)
}

// TestSpent: a relay's memory is free when it has ended and has no turn to come. Turns
// are given to what is there: a relay that took the place of another would get them.
func TestSpent(t *testing.T) {
	eachKind(t, 1, func(t *testing.T, loops []Loop) {
		r := startRelay(t, loops[0], 0)
		spent := func() (yes bool) {
			on(t, loops[0], func() { yes = r.relay.Spent() })
			return yes
		}
		if spent() {
			t.Error("a relay that runs is spent")
		}
		on(t, loops[0], func() {
			r.relay.later()
			r.relay.Abort()
			if r.relay.Spent() {
				t.Error("a relay that waits for its turn is spent")
			}
		})
		r.wantEnd(t, EndedAborted)
		if !spent() {
			t.Error("a relay that has ended is not spent")
		}
	})
}
