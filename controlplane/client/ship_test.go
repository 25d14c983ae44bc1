package client

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/audit"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
	"github.com/sallyport/sallyport/wire/sallyport/v1/sallyportv1connect"
)

// events returns auth's events of a name.
func (w *world) events(t testing.TB, name string) []sallyport.Event {
	t.Helper()
	lines, err := w.log.Search(t.Context(), audit.Query{Names: []string{name}, Limit: 10000})
	if err != nil {
		t.Fatal(err)
	}
	var out []sallyport.Event
	for _, l := range lines {
		e, err := audit.Decode(l)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, e)
	}
	return out
}

// background runs f until the test ends or until the function that it returns
// is called.
func background(t testing.TB, f func(context.Context) error) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := f(ctx); err != nil {
			t.Error(err)
		}
	}()
	stop = func() {
		cancel()
		<-done
	}
	t.Cleanup(stop)
	return stop
}

// TestShip: every event arrives once and in order, also large ones, also over
// auth's absence, and the spool forgets them.
func TestShip(t *testing.T) {
	w := the()
	h := w.host(t, w.config(t, sallyport.KindAgent))
	spool, err := audit.OpenSpool(audit.SpoolConfig{Dir: filepath.Join(t.TempDir(), "spool"), Host: h.ID()})
	if err != nil {
		t.Fatal(err)
	}
	defer spool.Close()
	name := "ship." + uuid.NewString()[:8]
	emit := func(from, to int) {
		t.Helper()
		for i := from; i < to; i++ {
			e := sallyport.Event{Name: name, Code: "X", Fields: map[string]any{"n": int64(i), "query": strings.Repeat("q", 60<<10)}}
			if err := spool.Emit(t.Context(), e, i%20 == 19); err != nil {
				t.Fatal(err)
			}
		}
	}
	const first, all = 40, 60 // MiB, several calls
	emit(0, first)
	background(t, func(ctx context.Context) error { return Ship(ctx, spool, h.API(), slog.New(slog.DiscardHandler)) })
	until(t, "first", func() <-chan struct{} { return tick(t) }, func() bool { return w.log.Acknowledged(spool.ID()) == first })
	w.away()
	emit(first, all)
	if err := w.back(); err != nil {
		t.Fatal(err)
	}
	until(t, "all", func() <-chan struct{} { return tick(t) }, func() bool { return w.log.Acknowledged(spool.ID()) == all })
	var got []sallyport.Event
	until(t, "found", func() <-chan struct{} { return tick(t) }, func() bool {
		got = w.events(t, name)
		return len(got) >= all
	})
	for i, e := range got {
		if e.Fields["n"] != int64(i) && e.Fields["n"] != float64(i) || e.ServerID != h.ID() {
			t.Fatalf("event %d is %v of %s", i, e.Fields["n"], e.ServerID)
		}
	}
	if len(got) != all {
		t.Errorf("%d events, want %d", len(got), all)
	}
	until(t, "forgotten", func() <-chan struct{} { return tick(t) }, func() bool { return spool.Status().Acknowledged == all })
}

// fakeSpool is a spool in memory.
type fakeSpool struct {
	mu      sync.Mutex
	records []audit.Record
	acked   uint64
}

func (f *fakeSpool) ID() string { return "host/spool" }

func (f *fakeSpool) Next(ctx context.Context, after uint64, most int) ([]audit.Record, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, r := range f.records {
		if r.Sequence > after && r.Sequence > f.acked {
			return f.records[i:min(len(f.records), i+most)], nil
		}
	}
	f.mu.Unlock()
	<-ctx.Done()
	f.mu.Lock()
	return nil, ctx.Err()
}

func (f *fakeSpool) Acknowledge(seq uint64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.acked = seq
	return nil
}

// fakeAuth answers as a test says.
type fakeAuth struct {
	sallyportv1connect.HostServiceClient
	appended func(*sallyportv1.AppendEventsRequest) (uint64, error)
	reported func(*sallyportv1.ReportPresenceRequest) (bool, error)
}

func (f fakeAuth) AppendEvents(_ context.Context, r *connect.Request[sallyportv1.AppendEventsRequest]) (*connect.Response[sallyportv1.AppendEventsResponse], error) {
	n, err := f.appended(r.Msg)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&sallyportv1.AppendEventsResponse{Acknowledged: n}), nil
}

func (f fakeAuth) ReportPresence(_ context.Context, r *connect.Request[sallyportv1.ReportPresenceRequest]) (*connect.Response[sallyportv1.ReportPresenceResponse], error) {
	full, err := f.reported(r.Msg)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&sallyportv1.ReportPresenceResponse{NeedFull: full}), nil
}

// TestShipAcknowledged: an answer that makes no sense loses nothing and makes
// no storm.
func TestShipAcknowledged(t *testing.T) {
	for name, c := range map[string]struct {
		answer func(first, last uint64) uint64
		acked  uint64
	}{
		"all":               {func(_, last uint64) uint64 { return last }, 3},
		"one by one":        {func(first, _ uint64) uint64 { return first }, 3},
		"none":              {func(first, _ uint64) uint64 { return first - 1 }, 0},
		"more than sent":    {func(_, last uint64) uint64 { return last + 1000 }, 3},
		"the most there is": {func(uint64, uint64) uint64 { return 1<<64 - 1 }, 3},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &fakeSpool{records: []audit.Record{{Sequence: 1, JSON: []byte("{}")}, {Sequence: 2, JSON: []byte("{}")}, {Sequence: 3, JSON: []byte("{}")}}}
				calls := 0
				auth := fakeAuth{appended: func(r *sallyportv1.AppendEventsRequest) (uint64, error) {
					calls++
					e := r.GetEvents()
					return c.answer(e[0].GetSequence(), e[len(e)-1].GetSequence()), nil
				}}
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				if err := Ship(ctx, s, auth, slog.New(slog.DiscardHandler)); err != nil {
					t.Error(err)
				}
				if s.acked != c.acked || calls > 20 {
					t.Errorf("acknowledged %d after %d calls, want %d", s.acked, calls, c.acked)
				}
			})
		})
	}
}

// TestShipGathers: single events go in few calls and soon, and a backlog goes
// as fast as auth takes it.
func TestShipGathers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &growingSpool{grown: make(chan struct{}, 1)}
		var calls, sent atomic.Int64
		auth := fakeAuth{appended: func(r *sallyportv1.AppendEventsRequest) (uint64, error) {
			calls.Add(1)
			sent.Add(int64(len(r.GetEvents())))
			return r.GetEvents()[len(r.GetEvents())-1].GetSequence(), nil
		}}
		stop := background(t, func(ctx context.Context) error { return Ship(ctx, s, auth, slog.New(slog.DiscardHandler)) })
		defer stop()
		s.grow(1)
		synctest.Wait()
		if n := sent.Load(); n != 1 {
			t.Errorf("%d events at once, want 1", n)
		}
		for range 1000 { // one each millisecond
			time.Sleep(time.Millisecond)
			s.grow(1)
		}
		time.Sleep(shipEvery)
		synctest.Wait()
		if n := calls.Load(); sent.Load() != 1001 || n > 25 {
			t.Errorf("%d events in %d calls", sent.Load(), n)
		}
		s.grow(20 * shipBatch)
		time.Sleep(shipEvery)
		synctest.Wait()
		if n := sent.Load() - 1001; n != 20*shipBatch {
			t.Errorf("%d events of the backlog after %s", n, shipEvery)
		}
	})
}

// growingSpool is a spool whose Next waits for what comes.
type growingSpool struct {
	fakeSpool
	grown chan struct{} // capacity 1
}

func (g *growingSpool) grow(n int) {
	g.mu.Lock()
	for range n {
		g.records = append(g.records, audit.Record{Sequence: uint64(len(g.records) + 1), JSON: []byte("{}")})
	}
	g.mu.Unlock()
	select {
	case g.grown <- struct{}{}:
	default:
	}
}

func (g *growingSpool) Next(ctx context.Context, after uint64, most int) ([]audit.Record, error) {
	for {
		g.mu.Lock()
		some := uint64(len(g.records)) > after
		g.mu.Unlock()
		if some {
			return g.fakeSpool.Next(ctx, after, most)
		}
		select {
		case <-g.grown:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// TestFitting: a call carries at most shipBytes, or one event.
func TestFitting(t *testing.T) {
	batch := func(sizes ...int) (out []audit.Record) {
		for i, n := range sizes {
			out = append(out, audit.Record{Sequence: uint64(i + 1), JSON: make([]byte, n)})
		}
		return out
	}
	for _, c := range []struct {
		in   []audit.Record
		want int
	}{{nil, 0}, {batch(1), 1}, {batch(shipBytes), 1}, {batch(2*shipBytes, 1), 1}, {batch(shipBytes, 1), 1}, {batch(shipBytes/2, shipBytes/2, 1), 2}} {
		if got := fitting(c.in); len(got) != c.want {
			t.Errorf("%d of %d, want %d", len(got), len(c.in), c.want)
		}
	}
}

// TestPresence: auth knows who is there: the full set first, then changes, and
// the full set again after its absence.
func TestPresence(t *testing.T) {
	w := the()
	g := w.host(t, w.config(t, sallyport.KindGateway))
	name := "seen-" + uuid.NewString()[:8]
	a := w.host(t, w.config(t, sallyport.KindAgent, sallyport.Resource{Kind: sallyport.KindTCP, Name: name}))
	if _, err := a.announceOnce(t.Context()); err != nil {
		t.Fatal(err)
	}
	online := func(want bool) {
		t.Helper()
		until(t, fmt.Sprintf("online %v", want), func() <-chan struct{} { return tick(t) }, func() bool {
			got, err := w.inventory.Online(t.Context(), sallyport.KindTCP, name)
			return err == nil && got == want
		})
	}
	p := &Presence{API: g.API(), Gateway: g.ID(), Address: "gw.example.com:443", Log: slog.New(slog.DiscardHandler)}
	p.Up(a.ID(), "1.0", []byte("an assignment"))
	background(t, p.Run)
	online(true)
	p.Down(a.ID())
	online(false)
	w.away()
	p.Up(a.ID(), "1.0", nil)
	if err := w.back(); err != nil {
		t.Fatal(err)
	}
	online(true)
}

// TestPresenceReports: what is sent, and when.
func TestPresenceReports(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got []string
		var fail atomic.Bool
		auth := fakeAuth{reported: func(r *sallyportv1.ReportPresenceRequest) (bool, error) {
			if fail.Load() {
				return false, connect.NewError(connect.CodeUnavailable, errors.New("away"))
			}
			kind := "changes"
			if r.GetFull() {
				kind = "full"
			}
			up := 0
			for _, u := range r.GetUp() {
				if up++; len(u.GetAssignment()) > 0 {
					t.Error("the assignment is sent back")
				}
			}
			got = append(got, fmt.Sprintf("%d %s +%d -%d", r.GetSequence(), kind, up, len(r.GetDown())))
			return len(got) == 3, nil // the third is lost on auth's side
		}}
		p := &Presence{API: auth, Gateway: "g", Log: slog.New(slog.DiscardHandler)}
		p.Up("a", "1", []byte("x"))
		p.Up("b", "1", nil)
		p.Down("b")
		stop := background(t, p.Run)
		synctest.Wait()
		p.Up("c", "1", nil)
		synctest.Wait()
		p.Down("a")
		synctest.Wait()
		p.Up("d", "1", nil)
		synctest.Wait()
		time.Sleep(presenceEvery + time.Millisecond)
		synctest.Wait()
		fail.Store(true)
		p.Down("c")
		synctest.Wait()
		fail.Store(false)
		time.Sleep(time.Second)
		synctest.Wait()
		stop()
		want := []string{"1 full +1 -0", "2 changes +1 -0", "3 changes +0 -1", "4 full +1 -0", "5 changes +1 -0", "6 changes +0 -0", "8 full +1 -0"}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("reports\n%q, want\n%q", got, want)
		}
	})
}

// TestPresenceNoStorm: an auth that always asks for the full set is not asked
// without a pause.
func TestPresenceNoStorm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		auth := fakeAuth{reported: func(*sallyportv1.ReportPresenceRequest) (bool, error) { calls++; return true, nil }}
		p := &Presence{API: auth, Gateway: "g", Log: slog.New(slog.DiscardHandler)}
		stop := background(t, p.Run)
		time.Sleep(time.Minute)
		stop()
		if calls > 60 {
			t.Errorf("%d calls in a minute", calls)
		}
	})
}
