package remnant

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/audit"
)

const host = "5b8f6f1c-6d3f-4c1e-8a44-0d5f0e8f2a11"

// house is one agent's directory, and the log of auth that it ships to.
type house struct {
	t     *testing.T
	dir   string
	log   *audit.Log
	bytes int64 // of the spool; 0: the default

	mu    sync.Mutex
	lines [][]byte // as auth has them
	last  uint64   // number of the last
}

func newHouse(t *testing.T) *house {
	t.Helper()
	h := &house{t: t, dir: t.TempDir()}
	var err error
	if h.log, err = audit.OpenLog(audit.LogConfig{Dir: filepath.Join(h.dir, "log"), Sign: sign}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.log.Close() })
	return h
}

// sign and checkSign are no cryptography: the chain is what is tested.
func sign(head []byte) ([]byte, error) { return append([]byte("signed "), head...), nil }

func checkSign(head, signature []byte) error {
	if string(signature) != "signed "+string(head) {
		return errors.New("not signed")
	}
	return nil
}

func (h *house) config() Config {
	return Config{
		Socket: filepath.Join(h.dir, "s"), Host: host, Version: "test",
		Patience: time.Minute, // a busy machine starts an owner in more than the usual time
		Open: func() (*audit.Spool, error) {
			return audit.OpenSpool(audit.SpoolConfig{Dir: filepath.Join(h.dir, "spool"), Host: host, Ballast: 4096, MaxBytes: h.bytes})
		},
	}
}

// shipping is config with auth within reach.
func (h *house) shipping() Config {
	c := h.config()
	c.Ship = func(ctx context.Context, s *audit.Spool) { h.ship(ctx, s) }
	return c
}

func (h *house) ship(ctx context.Context, s *audit.Spool) error {
	for {
		records, err := s.Next(ctx, 0, 512)
		if err != nil {
			return err
		}
		done, err := h.log.Append(ctx, s.ID(), records)
		if err != nil {
			return err
		}
		h.keep(records, done)
		if err := s.Acknowledge(done); err != nil {
			return err
		}
	}
}

func (h *house) keep(records []audit.Record, done uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, r := range records {
		if r.Sequence > h.last && r.Sequence <= done {
			h.lines, h.last = append(h.lines, r.JSON), r.Sequence
		}
	}
}

func start(t *testing.T, c Config) *Spool {
	t.Helper()
	s := New(c)
	if err := s.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.Start()
	return s
}

// move is an upgrade: what old owns goes to a new Spool, which is returned.
func move(t *testing.T, old *Spool, c Config) *Spool {
	t.Helper()
	mark, err := old.Yield()
	if err != nil {
		t.Fatal(err)
	}
	s := New(c)
	if err := s.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Check(mark); err != nil {
		t.Fatal(err)
	}
	s.Start()
	old.Follow()
	return s
}

func shut(t *testing.T, s *Spool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := s.Close(ctx); err != nil {
		t.Error(err)
	}
}

func event(session string, n int64) sallyport.Event {
	return sallyport.Event{Name: "db.session.query", Code: "TDB02I", SessionID: session, Fields: map[string]any{"n": n}}
}

// hammer writes numbered events of one session until stop is closed. Every third
// waits for the disk. It returns how many were taken.
func hammer(s *Spool, session string, stop <-chan struct{}) (n int64, err error) {
	for {
		select {
		case <-stop:
			return n, nil
		default:
		}
		if err := s.Emit(context.Background(), event(session, n+1), n%3 == 0); err != nil {
			return n, fmt.Errorf("event %d of %s: %w", n+1, session, err)
		}
		n++
	}
}

// line is what the tests look at.
type line struct {
	Event string `json:"event"`
	SID   string `json:"sid"`
	N     int64  `json:"n"`
	UID   string `json:"uid"`
}

// logged are the events in the log, in its order. It fails when the chain does
// not verify.
func (h *house) logged() []line {
	h.t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	report, err := audit.Verify(filepath.Join(h.dir, "log"), checkSign)
	if err != nil {
		h.t.Fatal(err)
	}
	if report.Events != uint64(len(h.lines))+1 { // the log's own, audit.opened
		h.t.Fatalf("the log has %d events; %d were shipped", report.Events, len(h.lines))
	}
	out := make([]line, len(h.lines))
	for i, b := range h.lines {
		if err := json.Unmarshal(b, &out[i]); err != nil {
			h.t.Fatal(err)
		}
	}
	return out
}

// numbers are those of each session's events, in the log's order.
func numbers(all []line) map[string][]int64 {
	out := map[string][]int64{}
	for _, l := range all {
		if l.SID != "" {
			out[l.SID] = append(out[l.SID], l.N)
		}
	}
	return out
}

// settle waits until auth has all that the owner's spool holds.
func (h *house) settle(s *Spool) {
	h.t.Helper()
	for st := s.Status(); st.Acknowledged < st.Sequence; st = s.Status() {
		time.Sleep(time.Millisecond) // the test's own deadline ends it
	}
}

// TestMoves moves the spool twice while sessions of all three processes write.
func TestMoves(t *testing.T) {
	h := newHouse(t)
	stop := make(chan struct{})
	var writers sync.WaitGroup
	var mu sync.Mutex
	taken := map[string]int64{}
	write := func(s *Spool, session string) {
		writers.Go(func() {
			n, err := hammer(s, session, stop)
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			taken[session] = n
		})
	}
	progress := func(s *Spool) { // a durable event of its own: everybody else got on too
		for range 20 {
			if err := s.Emit(t.Context(), event("", 0), true); err != nil {
				t.Fatal(err)
			}
		}
	}
	a := start(t, h.shipping())
	for i := range 3 {
		write(a, fmt.Sprintf("a%d", i))
	}
	progress(a)
	b := move(t, a, h.shipping())
	for i := range 3 {
		write(b, fmt.Sprintf("b%d", i))
	}
	progress(a)
	c := move(t, b, h.shipping())
	write(c, "c0")
	progress(a)
	progress(b)
	close(stop)
	writers.Wait()
	shut(t, a)
	shut(t, b)
	if err := c.Emit(t.Context(), event("", 0), true); err != nil { // what was taken before is durable now
		t.Fatal(err)
	}
	h.settle(c)
	shut(t, c)
	for session, got := range numbers(h.logged()) {
		n := taken[session]
		if n == 0 || int64(len(got)) != n {
			t.Errorf("session %s: %d events in the log, %d were taken", session, len(got), n)
		}
		for i, v := range got {
			if v != int64(i+1) {
				t.Fatalf("session %s: event %d stands at place %d", session, v, i+1)
			}
		}
		delete(taken, session)
	}
	if len(taken) > 0 {
		t.Errorf("sessions without an event in the log: %v", taken)
	}
}

// TestOnce pins that an owner that leaves in order makes nothing twice.
func TestOnce(t *testing.T) {
	h := newHouse(t)
	s := start(t, h.shipping())
	first := s
	for range 5 {
		next := move(t, s, h.shipping())
		for i := range 20 {
			if err := first.Emit(t.Context(), event("x", int64(i)), i%4 == 3); err != nil {
				t.Fatal(err)
			}
		}
		if s != first {
			shut(t, s)
		}
		s = next
	}
	shut(t, first)
	if err := s.Emit(t.Context(), event("", 0), true); err != nil {
		t.Fatal(err)
	}
	h.settle(s)
	shut(t, s)
	if n := len(h.logged()); n != 101 {
		t.Errorf("%d events in the log, not 101", n)
	}
}

// TestWayBack: the new process died before the commit.
func TestWayBack(t *testing.T) {
	h := newHouse(t)
	s := start(t, h.shipping())
	if _, err := s.Yield(); err != nil {
		t.Fatal(err)
	}
	other := New(h.config())
	if err := other.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	waited := make(chan error, 1)
	for i := range 10 {
		if err := s.Emit(t.Context(), event("x", int64(i+1)), false); err != nil {
			t.Fatal(err)
		}
	}
	go func() { waited <- s.Emit(context.Background(), event("x", 11), true) }()
	for s.queued() < 11 {
		time.Sleep(time.Millisecond)
	}
	shut(t, other) // the kernel would let go of the lock
	if err := s.Return(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-waited; err != nil {
		t.Fatal(err)
	}
	if err := s.Return(t.Context()); err != nil { // also when nothing is to be done
		t.Fatal(err)
	}
	if err := s.Emit(t.Context(), event("x", 12), true); err != nil {
		t.Fatal(err)
	}
	h.settle(s)
	shut(t, s)
	if got := numbers(h.logged())["x"]; !slices.IsSorted(got) || len(got) != 12 {
		t.Errorf("the log has %v", got)
	}
}

func (s *Spool) queued() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.queue)
}

// TestNobody: without an owner what begins is refused, and what ends is kept.
func TestNobody(t *testing.T) {
	h := newHouse(t)
	c := h.config()
	c.Patience = time.Nanosecond
	s := start(t, c)
	if _, err := s.Yield(); err != nil {
		t.Fatal(err)
	}
	s.Follow()
	begin := sallyport.Event{Name: "session.start", Code: "T2000I", SessionID: "begin"}
	end := sallyport.Event{Name: "session.end", Code: "T2004I", SessionID: "end"}
	for _, durable := range []bool{true, false} {
		if err := s.Emit(t.Context(), begin, durable); !errors.Is(err, sallyport.ErrExhausted) {
			t.Errorf("a start, durable %v: %v", durable, err)
		}
	}
	if err := s.Emit(t.Context(), end, true); !errors.Is(err, sallyport.ErrExhausted) {
		t.Errorf("an end: %v", err)
	}
	if st := s.Status(); !st.Refusing || st.Problem == "" {
		t.Errorf("status %+v", st)
	}
	next := start(t, h.shipping())
	for s.queued() > 0 {
		time.Sleep(time.Millisecond)
	}
	if err := s.Emit(t.Context(), begin, false); err != nil { // somebody serves
		t.Errorf("with an owner: %v", err)
	}
	shut(t, s)
	if err := next.Emit(t.Context(), event("", 0), true); err != nil {
		t.Fatal(err)
	}
	h.settle(next)
	shut(t, next)
	if got := numbers(h.logged()); len(got["end"]) != 1 || len(got["begin"]) != 1 {
		t.Errorf("the log has %v", got)
	}
}

// TestImpatient: what a session does not wait for any more is not told as done.
func TestImpatient(t *testing.T) {
	h := newHouse(t)
	s := start(t, h.config())
	if _, err := s.Yield(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	begin := sallyport.Event{Name: "session.start", Code: "T2000I", SessionID: "x"}
	if err := s.Emit(ctx, begin, true); !errors.Is(err, sallyport.ErrUnavailable) {
		t.Errorf("%v", err)
	}
	if n := s.queued(); n != 0 {
		t.Errorf("%d events wait", n)
	}
	shut(t, s)
	if err := s.Emit(t.Context(), begin, true); !errors.Is(err, audit.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// TestFull: the owner's refusal reaches the remnant's session.
func TestFull(t *testing.T) {
	h := newHouse(t)
	h.bytes = 64 << 10
	a := start(t, h.config())
	b := move(t, a, h.config())
	defer shut(t, b)
	defer shut(t, a)
	for range 4096 {
		err := a.Emit(t.Context(), event("x", 1), true)
		if err == nil {
			continue
		}
		if !errors.Is(err, sallyport.ErrExhausted) {
			t.Errorf("%v", err)
		}
		var p *sallyport.Problem
		if !errors.As(err, &p) || p.Fact != "audit spool is full: new sessions are refused" {
			t.Errorf("the user reads %v", err)
		}
		return
	}
	t.Error("a spool of 64 KiB took 4,096 events")
}

// TestFullIsLearnt: the owner's refusal of an event that nobody waits for reaches
// the next one, whose session can still be ended.
func TestFullIsLearnt(t *testing.T) {
	h := newHouse(t)
	h.bytes = 64 << 10
	a := start(t, h.config())
	b := move(t, a, h.config())
	defer shut(t, b)
	defer shut(t, a)
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); runtime.Gosched() {
		if err := a.Emit(t.Context(), event("x", 1), false); err == nil {
			continue
		} else if !errors.Is(err, sallyport.ErrExhausted) {
			t.Errorf("%v", err)
		}
		return
	}
	t.Error("a spool of 64 KiB took events for a minute")
}

// TestQueueBounds: what waits in memory is bounded.
func TestQueueBounds(t *testing.T) {
	h := newHouse(t)
	s := start(t, h.config())
	if _, err := s.Yield(); err != nil {
		t.Fatal(err)
	}
	large := event("x", 1)
	large.Fields["text"] = string(make([]byte, 40<<10))
	var err error
	n := 0
	impatient, cancel := context.WithCancel(t.Context())
	cancel()
	for ; err == nil && n < 10000; n++ {
		err = s.Emit(impatient, large, false)
	}
	if !errors.Is(err, sallyport.ErrExhausted) {
		t.Errorf("after %d events: %v", n, err)
	}
	if s.Status().Bytes > maxQueue {
		t.Errorf("%d bytes wait", s.Status().Bytes)
	}
	patient := make(chan error, 1) // its event goes in when there is room
	go func() { patient <- s.Emit(t.Context(), large, false) }()
	select {
	case err := <-patient:
		t.Errorf("went into a full queue: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	if err := s.Return(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-patient; err != nil {
		t.Error(err)
	}
	shut(t, s)
}

// TestCheck refuses a spool that is not the one that was left.
func TestCheck(t *testing.T) {
	h := newHouse(t)
	s := start(t, h.config())
	defer shut(t, s)
	if err := s.Emit(t.Context(), event("x", 1), true); err != nil {
		t.Fatal(err)
	}
	id := s.Status().ID
	for _, c := range []struct {
		mark Mark
		ok   bool
	}{
		{Mark{ID: id, Sequence: 1}, true},
		{Mark{ID: id, Sequence: 2}, false},
		{Mark{ID: host + "/" + uuid.NewString(), Sequence: 1}, false},
	} {
		if err := s.Check(c.mark); (err == nil) != c.ok {
			t.Errorf("%+v: %v", c.mark, err)
		}
	}
	if err := New(h.config()).Check(Mark{ID: id}); err == nil {
		t.Error("a spool that is not open was checked")
	}
}

// TestRemnants: the owner knows who is there, and passes cancel requests on.
func TestRemnants(t *testing.T) {
	h := newHouse(t)
	var users atomic.Int64
	users.Store(2)
	cancels := make(chan Cancel, 2)
	c := h.config()
	c.Sessions = func() Sessions {
		n := users.Load()
		return Sessions{Kinds: map[string]int64{"node": n}, Users: map[string]int64{"alice": n}}
	}
	c.Cancel = func(c Cancel) { cancels <- c }
	a := start(t, c)
	b := move(t, a, h.config())
	defer shut(t, b)
	for b.UserSessions("alice") != 2 {
		time.Sleep(time.Millisecond)
	}
	r := b.Remnants()
	if len(r) != 1 || r[0].PID != os.Getpid() || r[0].Version != "test" || r[0].Kinds["node"] != 2 || r[0].Since.IsZero() {
		t.Errorf("remnants %+v", r)
	}
	for _, want := range []Cancel{
		{ProcessID: 7, SecretKey: []byte{1, 2, 3, 4}},
		{ProcessID: 8, SecretKey: []byte{5}, Holder: &Holder{sallyport.KindUser, "c", "alice"}},
	} {
		b.Cancel(want)
		got := <-cancels
		if got.ProcessID != want.ProcessID || string(got.SecretKey) != string(want.SecretKey) {
			t.Errorf("%+v arrived as %+v", want, got)
		}
		if (got.Holder == nil) != (want.Holder == nil) || got.Holder != nil && *got.Holder != *want.Holder {
			t.Errorf("holder %+v arrived as %+v", want.Holder, got.Holder)
		}
	}
	users.Store(1)
	for b.UserSessions("alice") != 1 {
		time.Sleep(time.Millisecond)
	}
	shut(t, a)
	for len(b.Remnants()) > 0 {
		time.Sleep(time.Millisecond)
	}
	if n := b.UserSessions("alice"); n != 0 {
		t.Errorf("%d sessions of a process that is gone", n)
	}
}

// TestReturnLater: the way back finds no descriptor, once. Nobody came back to it, and
// what began after it was refused until a restart.
func TestReturnLater(t *testing.T) {
	h := newHouse(t)
	c := h.shipping()
	open := c.Open
	var tries atomic.Int64
	var fails atomic.Bool // from then on
	exhausted := errors.New("too many open files")
	c.Open = func() (*audit.Spool, error) {
		if n := tries.Add(1); n == 2 || n == 3 || fails.Load() {
			return nil, exhausted
		}
		return open()
	}
	s := start(t, c)
	if _, err := s.Yield(); err != nil {
		t.Fatal(err)
	}
	if err := s.Return(t.Context()); !errors.Is(err, exhausted) {
		t.Fatalf("it is open: %v", err)
	}
	if err := s.Emit(t.Context(), event("a", 1), true); err != nil {
		t.Fatal(err)
	}
	if n := tries.Load(); n != 4 {
		t.Errorf("opened at try %d", n)
	}
	h.settle(s)
	if mark, err := s.Yield(); err != nil || mark.Sequence == 0 {
		t.Errorf("%+v, %v", mark, err)
	}

	// What the spool is to become next is not undone by a Return that failed before.
	fails.Store(true)
	if err := s.Return(t.Context()); !errors.Is(err, exhausted) {
		t.Fatalf("it is open: %v", err)
	}
	s.Follow() // after one try more, or several
	before := tries.Load()
	other := start(t, h.config())
	shut(t, s)
	shut(t, other)
	if n := tries.Load() - before; n != 0 {
		t.Errorf("a remnant has tried %d times to open the spool", n)
	}
}
