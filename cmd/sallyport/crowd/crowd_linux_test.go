package crowd

import (
	"context"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sallyport/sallyport/test/leak"
)

// plain is a relay as simple as can be, which breaks what a test wants broken.
type plain struct {
	t       testing.TB
	l       net.Listener
	servers []string
	bend    bend
	next    atomic.Int64
	tasks   sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]bool // guarded by mu
	shut  bool              // guarded by mu
}

// bend says what is done with a connection's bytes. nil is nothing.
type bend func(k kind, id uint64) *fold

// fold is what goes wrong with a connection.
type fold struct {
	before func(client net.Conn) bool // with the client, instead of serving it
	up     func(b []byte) []byte      // with each piece
	down   func(b []byte) []byte
	ended  bool // ends are kept from the other side
}

func startPlain(t testing.TB, servers []string, b bend) *plain {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &plain{t: t, l: l, servers: servers, bend: b, conns: map[net.Conn]bool{}}
	p.tasks.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			p.tasks.Go(func() { p.serve(conn) })
		}
	})
	t.Cleanup(p.stop)
	return p
}

func (p *plain) stop() {
	p.l.Close()
	p.mu.Lock()
	p.shut = true
	for c := range p.conns {
		c.Close()
	}
	p.mu.Unlock()
	p.tasks.Wait()
}

// keep notes a connection; drop closes it.
func (p *plain) keep(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conns[c] = true
	return !p.shut
}

func (p *plain) drop(c net.Conn) {
	c.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
}

func (p *plain) serve(client net.Conn) {
	defer p.drop(client)
	if !p.keep(client) {
		return
	}
	head := make([]byte, recordHead)
	if _, err := io.ReadFull(client, head); err != nil {
		return
	}
	rest := make([]byte, recordLength(head)+cardSize)
	if _, err := io.ReadFull(client, rest); err != nil {
		return
	}
	k, id, ok := readCard(rest[len(rest)-cardSize:])
	if !ok {
		p.t.Error("no card behind the hello")
		return
	}
	f := p.bend(k, id)
	if f == nil {
		f = &fold{}
	}
	if f.before != nil && f.before(client) {
		return
	}
	server, err := net.Dial("tcp4", p.servers[int(p.next.Add(1))%len(p.servers)])
	if err != nil {
		return
	}
	defer p.drop(server)
	if !p.keep(server) {
		return
	}
	if _, err := server.Write(append(head, rest...)); err != nil {
		return
	}
	var ways sync.WaitGroup
	ways.Go(func() { carry(server, client, f.up, f.ended) })
	carry(client, server, f.down, f.ended)
	ways.Wait()
}

// carry moves bytes one way. A change to nil cuts the connection.
func carry(to, from net.Conn, change func([]byte) []byte, keepEnd bool) {
	b := make([]byte, 64<<10)
	for {
		n, err := from.Read(b)
		piece := b[:n]
		if n > 0 && change != nil {
			if piece = change(piece); piece == nil {
				to.Close()
				from.Close()
				return
			}
		}
		if _, werr := to.Write(piece); werr != nil || err != nil {
			break
		}
	}
	if !keepEnd {
		_ = to.(*net.TCPConn).CloseWrite()
	}
}

// gathered is a small crowd before a plain relay.
func gathered(t testing.TB, c Config, b bend) (*Crowd, *plain) {
	t.Helper()
	c.Name = "crowd.test"
	crowd, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(crowd.Close)
	p := startPlain(t, crowd.Servers(), b)
	if err := crowd.Open(t.Context(), p.l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	return crowd, p
}

const upWait = 3 * time.Minute // on a busy machine, with the race detector

// await polls what the crowd has seen.
func await(t testing.TB, c *Crowd, what string, holds func(Report) bool) Report {
	t.Helper()
	for deadline := time.Now().Add(upWait); ; time.Sleep(5 * time.Millisecond) {
		r := c.SoFar()
		if holds(r) {
			return r
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s; %+v", upWait, what, r)
		}
	}
}

func finish(t testing.TB, c *Crowd) Report {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), upWait)
	defer cancel()
	r, err := c.Finish(ctx)
	if err != nil {
		t.Fatalf("%v; %+v", err, r)
	}
	return r
}

var small = Config{Kept: 60, Busy: 20, Rate: 100, Pace: 64 << 10, Patience: upWait}

// TestSound: a relay that does nothing wrong is said to do nothing wrong.
func TestSound(t *testing.T) {
	startPlain(t, nil, nil).stop() // the runtime's own descriptors are opened now
	same := leak.Descriptors(t)
	c, p := gathered(t, small, func(kind, uint64) *fold { return nil })
	for range 3 {
		if err := c.Begin(t.Context()); err != nil {
			t.Fatal(err)
		}
		await(t, c, "new connections", func(r Report) bool { return r.Served > 20 })
		w := c.End()
		if len(w.Gaps) != 2*maxPulses || len(w.Control) != 2*controls {
			t.Errorf("%d gaps, %d of controls", len(w.Gaps), len(w.Control))
		}
		if err := c.Check(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	await(t, c, "some bytes", func(r Report) bool { return r.Verified > 1<<20 })
	r := finish(t, c)
	if !r.Sound() || r.Kept != small.Kept || len(r.Reasons) != 0 {
		t.Errorf("%+v", r)
	}
	if r.Served == 0 || r.Fresh.Max == 0 || r.Fresh.P50 > r.Fresh.Max {
		t.Errorf("new connections: %d, %+v", r.Served, r.Fresh)
	}
	c.Close()
	p.stop()
	same()
}

// once bends one connection of a kind, from some byte on.
func once(of kind, after int64, f func(started func() bool) *fold) bend {
	var taken atomic.Bool
	return func(k kind, _ uint64) *fold {
		if k != of || !taken.CompareAndSwap(false, true) {
			return nil
		}
		var seen atomic.Int64
		return f(func() bool { return seen.Add(1) > after })
	}
}

// TestBroken: whatever a relay does wrong is found, and called by its name.
func TestBroken(t *testing.T) {
	flip := func(b []byte) []byte { b[len(b)/2] ^= 1; return b }
	lose := func(b []byte) []byte { return b[:len(b)-1] }
	double := func(b []byte) []byte { return append(b[:len(b):len(b)], b...) }
	cut := func([]byte) []byte { return nil }
	nothing := func(b []byte) []byte { return b[:0] }
	when := func(started func() bool, what func([]byte) []byte) func([]byte) []byte {
		return func(b []byte) []byte {
			if started() {
				return what(b)
			}
			return b
		}
	}
	up := func(what func([]byte) []byte) func(func() bool) *fold {
		return func(started func() bool) *fold { return &fold{up: when(started, what)} }
	}
	down := func(what func([]byte) []byte) func(func() bool) *fold {
		return func(started func() bool) *fold { return &fold{down: when(started, what)} }
	}
	hasty := small
	hasty.Patience = 2 * time.Second // for what never comes; others may meet it too, on a busy machine
	for name, tc := range map[string]struct {
		c    Config
		bend bend
		want fault
		say  string // a part of a reason
	}{
		"bulk up, a byte changed":       {small, once(bulk, 3, up(flip)), corrupted, "another byte"},
		"bulk down, a byte changed":     {small, once(bulk, 3, down(flip)), corrupted, "another byte"},
		"bulk up, a byte lost":          {small, once(bulk, 3, up(lose)), corrupted, "another byte"},
		"bulk down, a piece doubled":    {small, once(bulk, 3, down(double)), corrupted, "another byte"},
		"bulk, cut":                     {small, once(bulk, 3, up(cut)), lost, ""},
		"pulse, cut":                    {small, once(pulse, 3, down(cut)), lost, ""},
		"pulse, a byte changed":         {small, once(pulse, 3, up(flip)), corrupted, "another byte"},
		"bulk, stands still":            {hasty, once(bulk, 3, up(nothing)), lost, "stood still"},
		"idle, cut at its first word":   {small, once(idle, 0, up(cut)), lost, "idle"},
		"idle, another question":        {small, once(idle, 0, up(flip)), corrupted, "idle: another word"},
		"idle, another answer":          {small, once(idle, 1, down(flip)), corrupted, "idle: another word"},
		"idle, no answer":               {hasty, once(idle, 0, up(nothing)), lost, "idle, no answer"},
		"new, another answer":           {small, once(fresh, 0, down(flip)), corrupted, "somebody else"},
		"new, cut before its answer":    {small, once(fresh, 0, down(cut)), refused, "before the answer"},
		"new, no answer":                {hasty, once(fresh, 0, down(nothing)), refused, "no answer"},
		"new, an end that never comes":  {hasty, once(fresh, 0, func(func() bool) *fold { return &fold{ended: true} }), lost, "behind the answer"},
		"new, bytes behind the answer":  {small, once(fresh, 0, down(double)), corrupted, "behind the answer"},
		"new, refused by a TLS alert":   {small, once(fresh, 0, alerted), refused, "TLS alert"},
		"new, closed without a word":    {small, once(fresh, 0, closed), refused, "before the answer"},
		"new, served by another server": {small, once(fresh, 0, elsewhere), corrupted, "somebody else"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, _ := gathered(t, tc.c, tc.bend)
			checking := make(chan error, 1)
			go func() { checking <- c.Check(t.Context()) }()
			count := func(r Report) int {
				return map[fault]int{lost: r.Lost, corrupted: r.Corrupted, refused: r.Refused}[tc.want]
			}
			if err := <-checking; err != nil {
				t.Fatal(err)
			}
			r := await(t, c, tc.want.String(), func(r Report) bool { return count(r) > 0 && said(r, tc.want.String()+": ", tc.say) })
			if r.Sound() {
				t.Errorf("sound: %+v", r)
			}
			stays := !strings.HasPrefix(name, "new")
			if r := finish(t, c); r.Sound() || tc.c.Patience == upWait && (r.Kept == small.Kept) == stays {
				t.Errorf("in the end: %+v", r)
			}
		})
	}
}

func said(r Report, class, part string) bool {
	for why := range r.Reasons {
		if strings.HasPrefix(why, class) && strings.Contains(why, part) {
			return true
		}
	}
	return false
}

func alerted(func() bool) *fold {
	return &fold{before: func(c net.Conn) bool {
		_, _ = c.Write([]byte{alertRecord, 3, 3, 0, 2, 2, 112})
		return true
	}}
}

func closed(func() bool) *fold {
	return &fold{before: func(net.Conn) bool { return true }}
}

// elsewhere gives the client the answer to another card.
func elsewhere(func() bool) *fold {
	return &fold{before: func(c net.Conn) bool {
		_, _ = c.Write(answer(fresh, 1<<40))
		_, _ = io.Copy(io.Discard, c)
		return true
	}}
}

// TestCrossed: two connections whose servers a relay has mixed up.
func TestCrossed(t *testing.T) {
	var mu sync.Mutex
	var pair []*fold
	var swap atomic.Bool
	// What each sends goes to the other, once both flow.
	streams := [2]chan []byte{make(chan []byte, 1), make(chan []byte, 1)}
	c, _ := gathered(t, small, func(k kind, _ uint64) *fold {
		mu.Lock()
		defer mu.Unlock()
		if k != bulk || len(pair) == 2 {
			return nil
		}
		own, other := streams[len(pair)], streams[1-len(pair)]
		f := &fold{up: func(b []byte) []byte {
			if !swap.Load() {
				return b
			}
			own <- append([]byte(nil), b...)
			select {
			case got := <-other:
				return got
			case <-t.Context().Done():
				return nil
			}
		}}
		pair = append(pair, f)
		return f
	})
	await(t, c, "bytes", func(r Report) bool { return r.Verified > 1<<19 })
	swap.Store(true)
	await(t, c, "corrupted", func(r Report) bool { return r.Corrupted > 0 })
}

// TestRefused: a port that nobody listens on, for a while.
func TestRefused(t *testing.T) {
	c, p := gathered(t, small, func(kind, uint64) *fold { return nil })
	await(t, c, "new connections", func(r Report) bool { return r.Served > 20 })
	p.l.Close()
	r := await(t, c, "refused ones", func(r Report) bool { return r.Refused > 5 && said(r, "refused: ", "connection refused") })
	if r.Lost != 0 || r.Kept != small.Kept {
		t.Errorf("%+v", r)
	}
}

// TestRestart: a relay that ends takes all connections with it, and each is
// counted once.
func TestRestart(t *testing.T) {
	c, p := gathered(t, small, func(kind, uint64) *fold { return nil })
	p.stop()
	await(t, c, "all lost", func(r Report) bool { return r.Kept == 0 })
	r := finish(t, c)
	if r.Kept != 0 || r.Lost < small.Kept {
		t.Errorf("%+v", r)
	}
}

// TestStall: a relay that stops for a moment is seen to have.
func TestStall(t *testing.T) {
	const pause = 2 * time.Second // half of it is what a busy machine may pause in between
	var gate sync.RWMutex
	wait := func(b []byte) []byte {
		gate.RLock()
		defer gate.RUnlock()
		return b
	}
	c, _ := gathered(t, small, func(kind, uint64) *fold { return &fold{up: wait, down: wait} })
	if err := c.Begin(t.Context()); err != nil {
		t.Fatal(err)
	}
	gate.Lock()
	time.Sleep(pause) // the stall itself
	gate.Unlock()
	w := c.End()
	for _, g := range w.Gaps {
		if g < pause/2 { // what was under way came after the stop
			t.Errorf("a gap of %s, the relay stood still for %s", g, pause)
		}
	}
	if w.Late < pause/2 || w.Longest() < pause/2 {
		t.Errorf("bulk was late by %s, the longest is %s", w.Late, w.Longest())
	}
	if r := finish(t, c); !r.Sound() || r.Kept != small.Kept {
		t.Errorf("%+v", r)
	}
}

// TestNobody: a gateway that serves nobody is an error at once.
func TestNobody(t *testing.T) {
	c, err := New(Config{Name: "crowd.test", Kept: 4, Busy: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if err := c.Open(t.Context(), l.Addr().String()); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("%v", err)
	}
	for _, bad := range []Config{{Kept: 1}, {Kept: 1, Busy: 2}, {Kept: 1, Busy: 1, Rate: -1}} {
		if c, err := New(bad); err == nil {
			c.Close()
			t.Errorf("%+v is a crowd", bad)
		}
	}
}
