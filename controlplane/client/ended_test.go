package client

import (
	"context"
	"errors"
	"log/slog"
	"net/http/httptrace"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/ca"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
)

// returning is a host that comes back when its certificate has ended.
func (w *world) returning(t *testing.T, cfg HostConfig) *Host {
	t.Helper()
	h := w.host(t, cfg)
	if err := writeJSON(filepath.Join(cfg.Dir, hostFile), w.aged(t, h, ca.HostTTL+2*time.Second)); err != nil {
		t.Fatal(err)
	}
	h, err := OpenHost(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.http.CloseIdleConnections)
	if !h.ended() {
		t.Fatalf("the certificate is good until %v", h.leaf().NotAfter)
	}
	return h
}

// TestReturn: a host that was off for longer than its certificate lived was out of
// the cluster for ever. It renews, and only then asks for anything else.
func TestReturn(t *testing.T) {
	w := the()
	for _, kind := range []sallyport.IdentityKind{sallyport.KindAgent, sallyport.KindGateway} {
		lines := &logged{}
		cfg := w.config(t, kind)
		cfg.Log = slog.New(lines)
		if kind == sallyport.KindAgent {
			cfg.Resources = []sallyport.Resource{{Kind: sallyport.KindTCP, Name: "returns-" + uuid.NewString()[:8], Address: "localhost:7"}}
		}
		h := w.returning(t, cfg)
		_, err := h.api.AppendEvents(t.Context(), connect.NewRequest(&sallyportv1.AppendEventsRequest{}))
		if err == nil || !strings.Contains(err.Error(), "and auth has not renewed it yet") {
			t.Errorf("%s: called something else before: %v", kind, err)
		}
		stop := run(t, h)
		heard(t, h)
		stop()
		if h.ended() {
			t.Errorf("%s: heard with a certificate that has ended", kind)
		}
		if again, err := OpenHost(cfg); err != nil || again.ended() || again.ID() != h.ID() {
			t.Errorf("%s: not on disk: %v", kind, err)
		}
		if i := slices.IndexFunc(lines.all(), func(l string) bool { return strings.Contains(l, "trying again") }); i >= 0 {
			t.Errorf("%s: asked too early: %s", kind, lines.all()[i])
		}
	}
}

// TestReturnRefused: a host that is not to come back says why, and what to do.
func TestReturnRefused(t *testing.T) {
	w := the()
	warned := make(chan string, 1)
	cfg := w.config(t, sallyport.KindAgent)
	lines := &logged{warned: warned}
	cfg.Log = slog.New(lines)
	h := w.returning(t, cfg)
	if _, err := w.inventory.Remove(t.Context(), h.ID(), time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	run(t, h)
	select {
	case line := <-warned:
		if !strings.Contains(line, "removed from the cluster") || !strings.Contains(line, "hint=join again with a new token") {
			t.Errorf("told: %s", line)
		}
	case <-time.After(soon):
		t.Fatal("no warning")
	}
}

// TestReturnWarns: that a certificate has ended and is not renewed was told once.
func TestReturnWarns(t *testing.T) {
	w := the()
	lines := &logged{}
	cfg := w.config(t, sallyport.KindAgent)
	h := w.returning(t, cfg)
	h.cfg.Log = slog.New(lines)
	h.cfg.Addresses = func() []string { return nil }
	present := time.Now()
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(time.Until(present))
		ctx, cancel := context.WithTimeout(t.Context(), 10*warnEvery)
		defer cancel()
		if err := h.renew(ctx); err != nil {
			t.Error(err)
		}
	})
	n := 0
	for _, l := range lines.all() {
		if strings.HasPrefix(l, "WARN the host certificate has ended") {
			n++
			if !strings.Contains(l, "no address of auth is known") || !strings.Contains(l, cfg.Dir+" moved away") {
				t.Errorf("told: %s", l)
			}
		}
	}
	if n < 9 || n > 11 {
		t.Errorf("%d warnings in %v", n, 10*warnEvery)
	}
}

// TestUntilGood: a clock that was ahead and is put right makes a certificate good
// again without a renewal.
func TestUntilGood(t *testing.T) {
	h := the().host(t, the().config(t, sallyport.KindAgent))
	if err := h.untilGood(t.Context()); err != nil {
		t.Errorf("a good certificate: %v", err)
	}
	aged := the().aged(t, h, ca.HostTTL+2*time.Second)
	h.mu.Lock()
	good := h.standing
	h.standing = aged
	h.mu.Unlock()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := h.untilGood(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("one that has ended: %v", err)
	}
	done := make(chan error, 1)
	go func() { done <- h.untilGood(t.Context()) }()
	h.mu.Lock()
	h.standing = good
	h.mu.Unlock()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// logged keeps lines: level, message and fields.
type logged struct {
	slog.Handler
	warned chan<- string // gets the first line that says that a certificate has ended; nil: nobody is told

	mu    sync.Mutex
	lines []string
}

func (l *logged) Enabled(context.Context, slog.Level) bool { return true }

func (l *logged) Handle(_ context.Context, r slog.Record) error {
	line := r.Level.String() + " " + r.Message
	r.Attrs(func(a slog.Attr) bool {
		line += " " + a.String()
		return true
	})
	l.mu.Lock()
	l.lines = append(l.lines, line)
	l.mu.Unlock()
	if r.Level == slog.LevelWarn && strings.Contains(r.Message, "has ended") {
		select {
		case l.warned <- line:
		default:
		}
	}
	return nil
}

func (l *logged) all() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.lines)
}

// TestRenewedConnection: after its renewal a host asks by a connection that knows the new
// certificate.
func TestRenewedConnection(t *testing.T) {
	w := the()
	h := w.host(t, w.config(t, sallyport.KindAgent))
	t.Cleanup(h.http.CloseIdleConnections)
	var reused []bool
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) { reused = append(reused, i.Reused) }})
	ask := func() {
		if _, err := h.announceOnce(ctx); err != nil {
			t.Fatal(err)
		}
	}
	ask()
	ask()
	if err := h.renewOnce(t.Context()); err != nil {
		t.Fatal(err)
	}
	ask()
	if want := []bool{false, true, false}; !slices.Equal(reused, want) {
		t.Errorf("used again: %v, want %v", reused, want)
	}
}

// TestUntilAnnounced: the next time, or something to announce, whichever is first.
func TestUntilAnnounced(t *testing.T) {
	for name, row := range map[string]struct{ news, want time.Duration }{
		"nothing": {0, 12 * time.Hour}, "news": {5*time.Hour + time.Second, 5*time.Hour + time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := &Host{announced: make(chan struct{}, 1)}
				if row.news > 0 {
					time.AfterFunc(row.news, func() { h.announced <- struct{}{} })
				}
				begun := time.Now()
				if err := h.untilAnnounced(t.Context(), begun.Add(12*time.Hour)); err != nil || time.Since(begun) != row.want {
					t.Errorf("%v after %s", err, time.Since(begun))
				}
			})
		})
	}
}
