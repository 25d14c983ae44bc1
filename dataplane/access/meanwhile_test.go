package access

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/session"
)

// TestMeanwhile: the protocol reaches for the resource while the start is on its
// way to the disk, and there is no session before it is there.
func TestMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.spool.disk = make(chan struct{})
		u := use()
		given, goOn := make(chan context.Context, 2), make(chan struct{})
		u.Meanwhile = func(ctx context.Context) {
			given <- ctx
			<-goOn
		}
		opened := make(chan *session.Session, 1)
		go func() {
			s, err := w.candidate(user("alice")).Open(t.Context(), u)
			if err != nil {
				t.Error(err)
			}
			opened <- s
		}()
		synctest.Wait()
		if len(given) != 1 || len(opened) != 0 || len(w.spool.named("app.session.start")) != 0 {
			t.Fatalf("before the disk has it: %d called, %d opened", len(given), len(opened))
		}
		close(w.spool.disk)
		synctest.Wait()
		if len(opened) != 0 || len(w.spool.named("app.session.start")) != 1 {
			t.Fatalf("before the protocol is done: %d opened", len(opened))
		}
		close(goOn)
		synctest.Wait()
		if len(given) != 1 || len(opened) != 1 || len(w.spool.named("app.session.start")) != 1 {
			t.Fatalf("once the disk has it: %d called, %d opened", len(given), len(opened))
		}
		s, ctx := <-opened, <-given
		if ctx.Err() != nil {
			t.Error("the context ended with the start")
		}
		w.snap.change(func(trust *sallyport.Trust) {
			trust.Locks = []sallyport.Lock{{Target: sallyport.LockTarget{User: "alice"}}}
		})
		synctest.Wait()
		if !errors.Is(context.Cause(ctx), sallyport.ErrDenied) {
			t.Errorf("after a lock: %v", context.Cause(ctx))
		}
		s.End(nil)
	})
}

// TestMeanwhileLocked: a lock does not wait for a resource that does not answer,
// nor does the agent's end.
func TestMeanwhileLocked(t *testing.T) {
	for name, end := range map[string]func(w *world, stop context.CancelFunc){
		"lock": func(w *world, _ context.CancelFunc) {
			w.snap.change(func(trust *sallyport.Trust) {
				trust.Locks = []sallyport.Lock{{Target: sallyport.LockTarget{User: "alice"}}}
			})
		},
		"shutdown": func(_ *world, stop context.CancelFunc) { stop() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				u := use()
				u.Meanwhile = func(ctx context.Context) { <-ctx.Done() }
				ctx, stop := context.WithCancel(t.Context())
				defer stop()
				opened := make(chan *session.Session, 1)
				go func() {
					s, _ := w.candidate(user("alice")).Open(ctx, u)
					opened <- s
				}()
				synctest.Wait()
				end(w, stop)
				synctest.Wait()
				if len(opened) != 1 {
					t.Fatal("Open waits on")
				}
				s := <-opened
				if s == nil || s.Context.Err() == nil {
					t.Fatal("the session lives")
				}
				s.End(nil)
			})
		})
	}
}

// TestMeanwhileUnwritten: when the start cannot be written down, there is no
// session, however far the protocol has come, and no end to tell of.
func TestMeanwhileUnwritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.spool.err = errors.New("no space left")
		u := use()
		var given context.Context
		u.Meanwhile = func(ctx context.Context) { given = ctx }
		s, err := w.candidate(user("alice")).Open(t.Context(), u)
		if s != nil || !errors.Is(err, sallyport.ErrUnavailable) || w.door.Sessions() != 0 {
			t.Errorf("opened %v, %v; %d sessions", s, err, w.door.Sessions())
		}
		if given == nil || given.Err() == nil {
			t.Error("the session's context lives on")
		}
		if len(w.spool.codes()) != 0 {
			t.Errorf("audited %v", w.spool.codes())
		}
	})
}

// TestMeanwhileStops: the protocol does not go on reaching for its resource when
// the start cannot be written down, be it by a bug.
func TestMeanwhileStops(t *testing.T) {
	for name, sink := range map[string]session.Sink{"full": &spool{err: errors.New("no space left")}, "bug": buggy{}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.door.Events = sink
				u := use()
				u.Meanwhile = func(ctx context.Context) { <-ctx.Done() }
				s, err := w.candidate(user("alice")).Open(t.Context(), u)
				if s != nil || !errors.Is(err, sallyport.ErrUnavailable) || w.door.Sessions() != 0 {
					t.Errorf("opened %v, %v; %d sessions", s, err, w.door.Sessions())
				}
			})
		})
	}
}

// buggy is a spool with a bug.
type buggy struct{}

func (buggy) Emit(context.Context, sallyport.Event, bool) error { panic("a bug") }

// TestMeanwhileBug: a protocol that breaks leaves no session behind, and the log
// has an end for the start.
func TestMeanwhileBug(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		u := use()
		u.Meanwhile = func(context.Context) { panic("a bug") }
		func() {
			defer func() {
				if recover() == nil {
					t.Error("the bug is hidden from who serves")
				}
			}()
			_, _ = w.candidate(user("alice")).Open(t.Context(), u)
		}()
		if n := w.door.Sessions(); n != 0 {
			t.Errorf("%d sessions are left", n)
		}
		if len(w.spool.named("app.session.start")) != 1 || len(w.spool.named("app.session.end")) != 1 {
			t.Errorf("audited %v", w.spool.codes())
		}
	})
}

// TestMeanwhileDenied: nobody reaches for a resource on behalf of who may not.
func TestMeanwhileDenied(t *testing.T) {
	for name, prepare := range map[string]func(*world){
		"no role": func(w *world) { w.decider.set(deny("no role allows it")) },
		"locked": func(w *world) {
			w.snap.change(func(trust *sallyport.Trust) {
				trust.Locks = []sallyport.Lock{{Target: sallyport.LockTarget{User: "alice"}}}
			})
		},
		"too many": func(w *world) {
			w.decider.set(allow(sallyport.Options{MaxSessions: 1}))
			w.door.Elsewhere = func(string) int64 { return 1 }
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			prepare(w)
			u := use()
			u.Meanwhile = func(context.Context) { t.Error("called") }
			if s, err := w.candidate(user("alice")).Open(t.Context(), u); s != nil || err == nil {
				t.Errorf("opened: %v", err)
			}
		})
	}
}
