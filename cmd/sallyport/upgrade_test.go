package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/handover"
	"github.com/sallyport/sallyport/test/executable"
)

// TestUpgradeRefused: whatever is wrong, the process goes on as it was, and says
// why: to who asked, and in the record of upgrades.
func TestUpgradeRefused(t *testing.T) {
	one := backend(t, "one")
	s := serve(t, fmt.Sprintf("  routes: [{names: [a.example.com], to: [%q]}]\n", one))
	path := filepath.Join(t.TempDir(), "program")
	answers := func(check string) {
		script := "#!/bin/sh\ncase $1 in version) echo '{\"version\":\"v9\",\"handover\":{\"oldest\":1,\"newest\":1}}';; start) " + check + ";; esac\n"
		if err := executable.Write(path, []byte(script), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	same := fmt.Sprintf("echo '{\"data_dir\":%q,\"roles\":[\"gateway\"]}'", s.cfg.DataDir)
	failed := func(context.Context, []handover.Stage) (handover.Report, error) {
		return handover.Report{PID: 4711, To: "v9", Failed: handover.StepCopy}, errors.New("it crashed")
	}
	tests := []struct {
		name    string
		arrange func()
		outcome string
		want    string
	}{
		{"not offered", func() { s.upgrades.program, s.upgrades.refuse = "", errNoUpgrade }, upgradeRefused, "Linux only"},
		{"refuses the configuration", func() {
			s.upgrades.program, s.upgrades.give = path, failed
			answers("echo 'ERROR: bad' >&2; exit 1")
		}, upgradeRefused, "refuses the configuration: bad"},
		{"another directory", func() { answers(`echo '{"data_dir":"/elsewhere","roles":["gateway"]}'`) }, upgradeRefused, "data_dir has changed"},
		{"another role", func() { answers(strings.Replace(same, "gateway", "agent", 1)) }, upgradeRefused, "roles has changed"},
		{"crashes", func() { answers(same) }, upgradeUndone, "it crashed"},
	}
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.arrange()
			r, err := s.upgrade("test", false)
			if err == nil || !strings.Contains(err.Error(), tt.want) || r.Problem != err.Error() || r.Outcome != tt.outcome {
				t.Errorf("%v, %+v", err, r)
			}
			if all := readHistory(s.cfg.DataDir); len(all) != i+1 || all[i].Outcome != tt.outcome || all[i].Problem != r.Problem {
				t.Errorf("%+v", all)
			}
			if a := s.reaches("a.example.com"); a != "one" {
				t.Errorf("a is %q", a)
			}
		})
	}
	if r := readHistory(s.cfg.DataDir)[len(tests)-1]; r.ToVersion != "v9" || r.ToPID != 4711 || r.Step != string(handover.StepCopy) {
		t.Errorf("%+v", r)
	}

	run := func(args ...string) (string, error) {
		var out strings.Builder
		err := (&program{ctx: t.Context(), stdout: &out}).run(append(args, "-c", s.file))
		return out.String(), err
	}
	if out, err := run("upgrade", "--check-only"); err != nil || !strings.HasPrefix(out, "Version v9 can take over") {
		t.Errorf("%q, %v", out, err)
	}
	if _, err := run("upgrade"); !errors.Is(err, sallyport.ErrUnavailable) || !strings.Contains(err.Error(), "it crashed") {
		t.Errorf("%v", err)
	}
	if out, err := run("status"); err != nil || !strings.Contains(out, "UNDONE: it crashed") {
		t.Errorf("%q, %v", out, err)
	}
	w := httptest.NewRecorder()
	if s.serveUpgrade(w, httptest.NewRequest(http.MethodPost, "/upgrade", nil)); w.Code != http.StatusForbidden {
		t.Errorf("a stranger: %d", w.Code)
	}
	s.upgrades.end()
	if _, err := s.upgrade("test", false); !errors.Is(err, sallyport.ErrUnavailable) {
		t.Errorf("at the end of the process: %v", err)
	}
}

// TestUpgradeEnds: who had asked for an upgrade during which the process was told to
// end read "context canceled", or that the new program had not answered, and that the
// old process goes on.
func TestUpgradeEnds(t *testing.T) {
	s := serve(t, "  routes: [{names: [a.example.com], to: [\"127.0.0.1:1\"]}]\n")
	path := filepath.Join(t.TempDir(), "program")
	script := fmt.Sprintf("#!/bin/sh\necho '{\"data_dir\":%q,\"roles\":[\"gateway\"],\"program\":{\"version\":\"v9\",\"handover\":{\"oldest\":1,\"newest\":1}}}'\n", s.cfg.DataDir)
	if err := executable.Write(path, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	ctx, end := context.WithCancel(t.Context())
	s.upgrades.ctx, s.upgrades.program = ctx, path
	s.upgrades.give = func(ctx context.Context, _ []handover.Stage) (handover.Report, error) {
		end()
		return handover.Report{Failed: handover.StepCopy}, ctx.Err()
	}
	for _, outcome := range []string{upgradeUndone, upgradeRefused} { // during the hand-over; while the program is asked
		r, err := s.upgrade("test", false)
		if err == nil || !strings.Contains(err.Error(), "told to end") || r.Problem != err.Error() || !strings.Contains(r.Hint, "started again") || r.Outcome != outcome {
			t.Errorf("%v, %+v", err, r)
		}
	}
}

// TestUpgradeOneAtATime: a second one does not wait behind the first.
func TestUpgradeOneAtATime(t *testing.T) {
	s := serve(t, "  routes: [{names: [a.example.com], to: [\"127.0.0.1:1\"]}]\n")
	s.upgrades.turn.take(false)
	defer s.upgrades.turn.end()
	if r, err := s.upgrade("test", false); !errors.Is(err, sallyport.ErrConflict) || r.Outcome != upgradeRefused {
		t.Errorf("%v", err)
	}
}

// TestReloadBesideUpgrade: what a reload applied while an upgrade ran ended with the
// process, and the reload had said that all was well.
func TestReloadBesideUpgrade(t *testing.T) {
	one := backend(t, "one")
	route := func(name string) string { return fmt.Sprintf("  routes: [{names: [%s], to: [%q]}]\n", name, one) }
	s := serve(t, route("a.example.com"))
	s.upgrades.turn.take(false)
	s.write(route("b.example.com"))
	if r, err := s.reload(t.Context(), "test"); !errors.Is(err, sallyport.ErrConflict) || r.Problem != err.Error() {
		t.Errorf("%+v, %v", r, err)
	}
	signals, ctx := make(chan os.Signal), t.Context()
	go s.reloadOn(ctx, signals)
	signals <- syscall.SIGHUP
	if a := s.reaches("b.example.com"); a != "" {
		t.Errorf("b is %q while the upgrade runs", a)
	}
	s.upgrades.turn.end() // undone
	await(t, "the reload", func() bool { return s.reaches("b.example.com") == "one" })
}

// TestReloadBehindSignal: a SIGHUP that waited for the end of an upgrade let sallyport
// reload wait with it, without a word. The SIGHUP is passed on to the new process.
func TestReloadBehindSignal(t *testing.T) {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	synctest.Test(t, func(t *testing.T) {
		n := newNode(&config{}, slog.New(slog.DiscardHandler))
		n.upgrades.turn.take(false)
		done := make(chan struct{})
		go func() { defer close(done); n.reloadOnceFree(t.Context(), "SIGHUP") }()
		synctest.Wait()
		r, err := n.reload(t.Context(), "test")
		if !errors.Is(err, sallyport.ErrConflict) || r.Problem != "an upgrade is under way" || r.Hint == "" {
			t.Errorf("%+v, %v", r, err)
		}
		n.upgrades.heir = os.Getpid()
		close(n.upgrades.handed)
		n.upgrades.turn.end()
		<-done
		if now := n.reloads.last.Load(); now != r {
			t.Errorf("the old process reloads: %+v", now)
		}
	})
	select {
	case <-hup:
	case <-time.After(time.Minute):
		t.Error("the new process is not told to reload")
	}
}

// TestTurn: who would have waited for a reload alone waited for the upgrade that came
// between, without a word. A reload itself is over soon, so nobody is sent away for it.
func TestTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var u turn
		u.take(false)
		if u.take(false) || u.take(true) {
			t.Fatal("it is taken from an upgrade")
		}
		took := make(chan string, 3)
		go func() { u.await(); took <- "signal" }()
		synctest.Wait()
		u.end()
		if by := <-took; by != "signal" {
			t.Fatal(by)
		}
		for range 2 {
			go func() { took <- map[bool]string{true: "upgrade", false: "none"}[u.take(false)] }()
		}
		synctest.Wait()
		select {
		case by := <-took:
			t.Fatalf("%s is had beside the reload", by)
		default:
		}
		u.end()
		if first, second := <-took, <-took; first == second {
			t.Errorf("of two upgrades behind a reload the one is %s, the other %s", first, second)
		}
		if _, soon := u.tryTake(true); soon {
			t.Error("an upgrade is taken for a reload")
		}
		u.end()
	})
}

func await(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within a minute", what)
		}
	}
}

// TestDrainAfterCanary: a canary that is good after all has become an upgrade when
// the drain has waited for it.
func TestDrainAfterCanary(t *testing.T) {
	s := serve(t, "  routes: [{names: [a.example.com], to: [\"127.0.0.1:1\"]}]\n")
	c := &canary{orders: make(chan canaryOrder, 1), done: make(chan struct{})}
	c.orders <- canaryOrder{finish: true}
	s.canary.Store(c)
	drained := make(chan error, 1)
	go func() {
		_, err := s.drain(t.Context(), 0)
		drained <- err
	}()
	select {
	case err := <-drained:
		t.Fatalf("it did not wait for the canary: %v", err)
	case <-time.After(10 * time.Millisecond):
	}
	s.canary.Store(nil)
	s.upgrades.turn.take(false)
	s.upgrades.heir = os.Getpid()
	s.upgrades.ended = true
	close(s.upgrades.handed)
	s.upgrades.turn.end()
	close(c.done)
	if err := <-drained; !errors.Is(err, sallyport.ErrConflict) || s.drains.on.Load() {
		t.Errorf("%v; drains: %v", err, s.drains.on.Load())
	}
}

// TestHealth: red from the drain on, which ends when nothing is left.
func TestHealth(t *testing.T) {
	s := serve(t, fmt.Sprintf("  routes: [{names: [a.example.com], to: [%q]}]\n", backend(t, "one")))
	healthz := func() (int, string) {
		w := httptest.NewRecorder()
		s.serveHealth(w, httptest.NewRequest(http.MethodGet, "/healthz", nil))
		return w.Code, w.Body.String()
	}
	if code, text := healthz(); code != http.StatusOK || text != "ok\n" {
		t.Errorf("%d %q", code, text)
	}
	if a := s.reaches("a.example.com"); a != "one" {
		t.Fatalf("a is %q", a)
	}
	run := func(args ...string) (string, error) {
		var out strings.Builder
		err := (&program{ctx: t.Context(), stdout: &out}).run(append([]string{"drain", "-c", s.file}, args...))
		return out.String(), err
	}
	if _, err := run("--timeout=25h"); !errors.Is(err, sallyport.ErrInvalid) {
		t.Errorf("%v", err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if r, err := s.drain(gone, time.Hour); err == nil || r.Ended || s.drains.sent.Load() {
		t.Errorf("drained before the time of the notice: %+v, %v", r, err)
	}
	if code, text := healthz(); code != http.StatusServiceUnavailable || text != "draining\n" {
		t.Errorf("%d %q", code, text)
	}
	if out, err := run("--timeout=1m", "--notice=0s"); err != nil || !strings.Contains(out, "nothing is left") {
		t.Errorf("%q, %v", out, err)
	}
	if a := s.reaches("a.example.com"); a != "" {
		t.Errorf("the port is open: %q", a)
	}
	if _, err := s.upgrade("test", false); err == nil {
		t.Error("a process that drains was upgraded")
	}
	w := httptest.NewRecorder()
	if s.serveDrain(w, httptest.NewRequest(http.MethodPost, "/drain?timeout=1s&notice=0s", nil)); w.Code != http.StatusForbidden {
		t.Errorf("a stranger: %d", w.Code)
	}
}
