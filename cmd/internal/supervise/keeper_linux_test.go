package supervise

import (
	"context"
	"os"
	"os/signal"
	"syscall"
	"testing"
	"time"
)

// runs is a keeper at work.
type runs struct {
	*Keeper
	line    *Line
	signals chan os.Signal
	stop    context.CancelFunc
	ended   chan struct{}
	code    int
	over    bool
}

func run(t *testing.T) *runs {
	t.Helper()
	k, l, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	r := &runs{Keeper: k, line: l, signals: make(chan os.Signal), stop: stop, ended: make(chan struct{})}
	children := make(chan os.Signal, 1)
	signal.Notify(children, syscall.SIGCHLD)
	go func() {
		defer close(r.ended)
		r.code, r.over = k.Run(ctx, Duties{Signals: r.signals, Children: children})
	}()
	t.Cleanup(func() {
		stop()
		<-r.ended
		signal.Stop(children)
		k.Close()
		l.Close()
	})
	return r
}

func (r *runs) await(t *testing.T) {
	t.Helper()
	select {
	case <-r.ended:
	case <-time.After(time.Minute):
		t.Fatal("the supervisor goes on")
	}
}

// passOn sends SIGTERM until it has reached main: what was said before it may be
// heard after it.
func (r *runs) passOn(main int) {
	for syscall.Kill(main, 0) == nil {
		r.signals <- syscall.SIGTERM
	}
}

// child starts a process that nobody here waits for.
func child(t *testing.T, script string) int {
	t.Helper()
	p, err := os.StartProcess("/bin/sh", []string{"sh", "-c", script}, &os.ProcAttr{})
	if err != nil {
		t.Fatal(err)
	}
	pid := p.Pid
	if err := p.Release(); err != nil {
		t.Fatal(err)
	}
	return pid
}

// TestKeeper: signals reach the newest main process, and its end is the
// supervisor's.
func TestKeeper(t *testing.T) {
	tests := []struct {
		name string
		ends func(r *runs, main int)
		code int
	}{
		{"by a signal that was passed on", (*runs).passOn, 128 + 15},
		{"by SIGKILL", func(_ *runs, main int) { syscall.Kill(main, syscall.SIGKILL) }, 128 + 9},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := run(t)
			old, now := child(t, "exit 0"), child(t, "exec sleep 600")
			for _, err := range []error{r.line.Main(1, old), r.line.Main(2, now), r.line.Main(2, now)} {
				if err != nil {
					t.Fatal(err)
				}
			}
			tt.ends(r, now)
			if err := r.line.Close(); err != nil {
				t.Fatal(err)
			}
			if r.await(t); !r.over || r.code != tt.code {
				t.Errorf("code %d, over %v; want %d", r.code, r.over, tt.code)
			}
		})
	}
}

// TestKeeperWord: of a main process that is no child, its word counts.
func TestKeeperWord(t *testing.T) {
	r := run(t)
	if err := r.line.Main(1, os.Getpid()); err != nil {
		t.Fatal(err)
	}
	if err := r.line.Over(1, 3); err != nil {
		t.Fatal(err)
	}
	if err := r.line.Close(); err != nil {
		t.Fatal(err)
	}
	if r.await(t); !r.over || r.code != 3 {
		t.Errorf("code %d, over %v", r.code, r.over)
	}
}

// TestKeeperStops: what was heard before the end of ctx is known after it, and
// the keeper can run again.
func TestKeeperStops(t *testing.T) {
	r := run(t)
	r.stop()
	if r.await(t); r.over {
		t.Fatal("it is over although a main process may come")
	}
	fd, err := r.line.Dup()
	if err != nil {
		t.Fatal(err)
	}
	other := OpenLine(fd)
	if err := other.Main(1, 4711); err != nil {
		t.Fatal(err)
	}
	if err := other.Over(1, 5); err != nil {
		t.Fatal(err)
	}
	if err := r.line.Close(); err != nil {
		t.Fatal(err)
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	if code, over := r.Run(t.Context(), Duties{}); !over || code != 5 || r.state.Main != 4711 {
		t.Errorf("code %d, over %v, main %d", code, over, r.state.Main)
	}
}

// TestLine: a main process learns that its supervisor is gone.
func TestLine(t *testing.T) {
	k, l, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	gone := make(chan error, 1)
	go func() { gone <- l.Wait() }()
	if err := k.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-gone; err != nil {
		t.Errorf("%v", err)
	}
	if err := l.Main(1, 2); err == nil {
		t.Error("nobody was told")
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := l.Wait(); err == nil {
		t.Error("a line that was closed reports the end of the supervisor")
	}
}

func TestResume(t *testing.T) {
	for _, tt := range []struct{ fd, main int }{{-1, 1}, {0, 1}, {2, 1}, {1 << 20, 1}, {3, 0}} {
		if k, err := Resume(tt.fd, State{Main: tt.main}); err == nil {
			t.Errorf("%v: %v", tt, k)
		}
	}
}
