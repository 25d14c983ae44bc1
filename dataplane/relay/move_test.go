//go:build unix

package relay

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestRelaySize: what an idle session takes is mostly this. What a hand-over needs
// to know has to fit in what is there.
func TestRelaySize(t *testing.T) {
	if got := unsafe.Sizeof(Relay{}); got > 176 {
		t.Errorf("a relay takes %d bytes, more than 176, its size class", got)
	}
}

// dup is another process's descriptor of the same thing.
func dup(t testing.TB, fd int) int {
	t.Helper()
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Error(err)
	}
	return own
}

// moves takes a relay to another loop as to another process, with bytes in it and
// without having said a word. One that is over is left where it is.
func (r *run) moves(t *testing.T, to Loop) {
	t.Helper()
	var state State
	var early Image
	on(t, r.loop, func() {
		if r.relay.over {
			return
		}
		a, b := r.relay.Descriptors()
		early = r.relay.Image()
		r.relay.Share()
		state = State{ID: r.relay.ID(), A: End{FD: dup(t, a)}, B: End{FD: dup(t, b)}}
	})
	if state.A.FD == 0 {
		return
	}
	next := Hold(to)
	defer next.Release()
	var heir *Relay
	next.Do(func() {
		var err error
		if heir, err = Adopt(to, state, r.ended); err != nil {
			t.Error(err)
		}
		if !early.Holds() {
			heir.Restore(early)
		}
		Sift(to)
	})
	old := Hold(r.loop)
	defer old.Release()
	if r.relay.over {
		next.Do(heir.Forsake)
		return
	}
	var m Image
	changed := false
	old.Do(func() { m, changed = r.relay.Image(), r.relay.Changed() })
	if !changed {
		m = early
	}
	m.A.Pending, m.B.Pending = bytes.Clone(m.A.Pending), bytes.Clone(m.B.Pending)
	for _, p := range []*Pipe{&m.A.Pipe, &m.B.Pipe} {
		if p.Held > 0 {
			p.R, p.W = dup(t, p.R), dup(t, p.W)
		}
	}
	next.Do(func() {
		if changed {
			heir.Restore(m)
		}
		Sift(to)
	})
	next.Begin(func() {
		if changed || m.A.told() || m.B.told() {
			heir.Resume()
		}
	})
	old.Do(r.relay.Forsake)
	r.loop, r.relay = to, heir
	t.Cleanup(func() { to.Post(heir.Abort) })
}

// told says that there is something to do, whatever events come.
func (s Side) told() bool { return s.ReadClosed || s.WriteClosed || s.Reset || s.Readable || s.Ending }

// TestRelayChanged: what has happened since another process was told of a relay
// shows, and nothing else does.
func TestRelayChanged(t *testing.T) {
	eachKind(t, 1, func(t *testing.T, loops []Loop) {
		r := startRelay(t, loops[0], 0)
		say(t, r.left, "before")
		want(t, r.right, "before")
		changed := func() (yes bool) {
			h := Hold(r.loop)
			defer h.Release()
			h.Do(func() { yes = r.relay.Changed() })
			return yes
		}
		if !changed() {
			t.Error("a relay that nobody was told of has not changed")
		}
		on(t, r.loop, r.relay.Share)
		say(t, r.left, "after")
		want(t, r.right, "after")
		if !changed() {
			t.Error("bytes have moved, and it has not changed")
		}
		r.left.CloseWrite()
		wantEOF(t, r.right)
		until(t, "it changes by itself no more", func() bool { // the loop may have been told of its end once more
			on(t, r.loop, r.relay.Share)
			return !changed()
		})
		r.right.CloseWrite()
		wantEOF(t, r.left)
		r.wantEnd(t, EndedClosed)
	})
	t.Run("holding", func(t *testing.T) {
		eachKind(t, 1, func(t *testing.T, loops []Loop) {
			r := startLinks(t, loops[0], tcpBuffers(t, 8<<10), tcpBuffers(t, 8<<10), State{})
			go r.left.Write(make([]byte, 8<<20))
			until(t, "it holds bytes", func() (holds bool) {
				on(t, r.loop, func() { holds = r.relay.Image().Holds() })
				return holds
			})
			on(t, r.loop, func() {
				if r.relay.Share(); !r.relay.Changed() {
					t.Error("it holds what nobody was told of, and has not changed")
				}
			})
			resetPeer(t, r.right)
		})
	})
}

// TestRelayMoves: streams both ways through relays that move all the time.
func TestRelayMoves(t *testing.T) {
	const relays, size, moves = 4, 16 << 20, 12
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
		for m := range moves {
			for i, one := range all {
				one.run.moves(t, loops[(i+m+1)%len(loops)])
			}
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

// TestRelayMovesHolding: bytes that have been read and not yet written come along,
// from memory and from a pipe, and the end or the reset behind them.
func TestRelayMovesHolding(t *testing.T) {
	big := make([]byte, 8<<20)
	rand.NewChaCha8([32]byte{3}).Read(big)
	// full returns when the relay holds bytes for a peer that reads none.
	full := func(t *testing.T, l Loop) (r *run, written chan error) {
		r = startLinks(t, l, tcpBuffers(t, 8<<10), tcpBuffers(t, 8<<10), State{})
		written = make(chan error, 1)
		go func() {
			_, err := r.left.Write(big)
			if err == nil {
				err = r.left.CloseWrite()
			}
			written <- err
		}()
		until(t, "it holds bytes", func() (holds bool) {
			on(t, r.loop, func() { holds = r.relay.Image().Holds() })
			return holds
		})
		return r, written
	}
	t.Run("end", func(t *testing.T) {
		eachKind(t, 3, func(t *testing.T, loops []Loop) {
			r, written := full(t, loops[0])
			r.moves(t, loops[1])
			r.moves(t, loops[2])
			want(t, r.right, string(big))
			wantEOF(t, r.right)
			if err := wait(t, written, "the end"); err != nil {
				t.Error(err)
			}
		})
	})
	t.Run("reset", func(t *testing.T) {
		eachKind(t, 3, func(t *testing.T, loops []Loop) {
			r, written := full(t, loops[0])
			resetPeer(t, r.left)
			wait(t, written, "the end")
			r.moves(t, loops[1])
			r.moves(t, loops[2])
			got, err := io.ReadAll(r.right)
			if len(got) == 0 || !bytes.HasPrefix(big, got) || !errors.Is(err, unix.ECONNRESET) {
				t.Errorf("%d bytes, the right ones: %v; %v", len(got), bytes.HasPrefix(big, got), err)
			}
		})
	})
}

// TestRelayMovesBack: a loop that was held, and an image taken, changes nothing.
func TestRelayMovesBack(t *testing.T) {
	eachKind(t, 1, func(t *testing.T, loops []Loop) {
		r := startRelay(t, loops[0], 0)
		done := carry(r.left, r.right, 1, 4<<20)
		for range 20 {
			h := Hold(r.loop)
			h.Do(func() { r.relay.Image() })
			h.Release()
		}
		wait(t, done, "stream").check(t, 4<<20)
		r.right.CloseWrite()
		r.wantEnd(t, EndedClosed)
	})
}

// TestRelayAdoptFails: what cannot be watched is closed.
func TestRelayAdoptFails(t *testing.T) {
	eachKind(t, 1, func(t *testing.T, loops []Loop) {
		k := tcp(t)
		file := openFile(t)
		on(t, loops[0], func() {
			if _, err := Adopt(loops[0], State{A: End{FD: k.fd}, B: End{FD: file}}, make(owner, 1)); err == nil {
				t.Error("a file is a relay's end")
			}
		})
		wantEOF(t, k.peer)
	})
}

func openFile(t *testing.T) int {
	t.Helper()
	fd, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

// TestLingerMoves: an answer of which a part is out.
func TestLingerMoves(t *testing.T) {
	answer := make([]byte, 4<<20)
	rand.NewChaCha8([32]byte{4}).Read(answer)
	eachKind(t, 2, func(t *testing.T, loops []Loop) {
		k := tcpBuffers(t, 8<<10)
		say(t, k.peer, "question")
		closed := make(chan struct{})
		var g *Linger
		on(t, loops[0], func() { g = LingerClose(loops[0], k.fd, answer, nil) })
		until(t, "a part is out", func() (part bool) {
			on(t, loops[0], func() { part = len(g.Progress().Answer) < len(answer) })
			return part
		})
		next, old := Hold(loops[1]), Hold(loops[0])
		fd := dup(t, k.fd)
		next.Do(func() { LingerFrom(loops[1], fd, g.Progress(), func() { close(closed) }) })
		next.Release()
		old.Do(g.Forsake)
		old.Release()
		want(t, k.peer, string(answer))
		wantEOF(t, k.peer)
		k.peer.Close()
		wait(t, closed, "the end")
	})
}

// TestBind: a socket that is bound gets nothing until it listens, and one that
// has ended for all gets nothing any more.
func TestBind(t *testing.T) {
	noLeak(t)
	first, err := Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer Close(first)
	address := LocalAddr(first).String()
	second, err := Bind(address)
	if err != nil {
		t.Fatal(err)
	}
	defer Close(second)
	if !Listening(first) || Listening(second) {
		t.Errorf("listening: %v, %v", Listening(first), Listening(second))
	}
	for range 16 {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
		awaitReadable(t, first)
		fd, _, err := Accept(first)
		if err != nil {
			t.Fatal(err)
		}
		Close(fd)
	}
	if err := BeginListen(second); err != nil {
		t.Fatal(err)
	}
	if !Listening(second) {
		t.Error("it does not listen")
	}
	other := dup(t, second)
	defer Close(other)
	if err := EndListen(second); err != nil {
		t.Fatal(err)
	}
	if Listening(other) {
		t.Error("it has not ended for all")
	}
}

// TestHeldAfterwards: what is given to a loop that goes on is run as if posted.
func TestHeldAfterwards(t *testing.T) {
	eachKind(t, 1, func(t *testing.T, loops []Loop) {
		h := Hold(loops[0])
		h.Release()
		ran := false
		if !h.Do(func() { ran = true }) || !ran {
			t.Error("not run")
		}
		loops[0].Close()
		if h.Do(func() {}) {
			t.Error("run on a closed loop")
		}
	})
}
