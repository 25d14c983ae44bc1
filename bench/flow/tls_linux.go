package flow

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// tally is what several goroutines have found within the window.
type tally struct {
	mu     sync.Mutex
	open   bool            // guarded by mu, as all below
	took   []time.Duration // so long did each take
	failed int
}

func (t *tally) add(d time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.open {
		t.took = append(t.took, d)
	}
}

func (t *tally) fail() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.open {
		t.failed++
	}
}

func (t *tally) set(open bool) (found int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.open = open
	return len(t.took)
}

// measured runs workers, lets them get warm, and counts for the window, or for
// longer until there is something to count.
func (r *runner) measured(ctx context.Context, t *tally, work func(ctx context.Context, i int) error) (Result, error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	g, ctx := errgroup.WithContext(ctx)
	for i := range r.Conns {
		g.Go(func() error { return work(ctx, i) })
	}
	res, err := r.windowOf(ctx, t)
	stop()
	if failed := g.Wait(); failed != nil && !errors.Is(failed, context.Canceled) {
		return res, failed
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if err == nil && len(t.took) == 0 {
		err = fmt.Errorf("nothing came back, %d were cut", t.failed)
	}
	res.Units, res.Latencies, res.Failed = float64(len(t.took)), latencies(t.took), t.failed
	return res, err
}

func (r *runner) windowOf(ctx context.Context, t *tally) (Result, error) {
	if err := pause(ctx, r.Warm); err != nil {
		return Result{}, err
	}
	w, err := r.begin(0)
	if err != nil {
		return Result{}, err
	}
	t.set(true)
	for wait := time.Duration(0); wait < r.most; wait += r.Window {
		if err := pause(ctx, r.Window); err != nil {
			return Result{}, err
		}
		if t.set(true) > 0 {
			break
		}
	}
	t.set(false)
	return r.end(w, 0)
}

// handshakes opens connections with TLS, a number at a time, each until the
// server's first byte.
func (r *runner) handshakes(ctx context.Context) (Result, error) {
	t := &tally{}
	to := r.server(OneName)
	return r.measured(ctx, t, func(ctx context.Context, i int) error {
		for ctx.Err() == nil {
			began := time.Now()
			c, err := r.open(ctx, to, i)
			if err != nil {
				t.fail()
				if err := pause(ctx, time.Millisecond); err != nil { // a relay that refuses is not stormed
					return err
				}
				continue
			}
			t.add(time.Since(began))
			c.Close()
		}
		return ctx.Err()
	})
}

// pingTLS is ping with a goroutine per connection: what TLS brings cannot be
// polled for.
func (r *runner) pingTLS(ctx context.Context, conns []net.Conn) (Result, error) {
	t := &tally{}
	stop := context.AfterFunc(ctx, func() { interrupt(conns) })
	defer stop()
	return r.measured(ctx, t, func(ctx context.Context, i int) error {
		stop := context.AfterFunc(ctx, func() { interrupt(conns[i : i+1]) })
		defer stop()
		err := r.pingOne(ctx, conns[i], i, t)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return err
	})
}

// interrupt ends reads and writes that wait.
func interrupt(conns []net.Conn) {
	for _, c := range conns {
		c.SetDeadline(time.Unix(1, 0))
	}
}

// pingOne pings on one connection: at its share of the rate, or one after the
// other.
func (r *runner) pingOne(ctx context.Context, c net.Conn, i int, t *tally) error {
	var b [pingSize]byte
	every := time.Duration(0)
	if r.Rate > 0 {
		every = time.Duration(float64(time.Second) * float64(r.Conns) / r.Rate)
	}
	due := time.Now().Add(every * time.Duration(i) / time.Duration(r.Conns))
	for ctx.Err() == nil {
		if every == 0 {
			due = time.Now()
		} else if err := pause(ctx, time.Until(due)); err != nil {
			return err
		}
		if _, err := c.Write(b[:]); err != nil {
			return fmt.Errorf("ping: %w", err)
		}
		if _, err := io.ReadFull(c, b[:]); err != nil {
			return fmt.Errorf("pong: %w", err)
		}
		t.add(time.Since(due))
		due = due.Add(every)
	}
	return ctx.Err()
}
