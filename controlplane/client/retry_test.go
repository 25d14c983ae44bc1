package client

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"

	"github.com/sallyport/sallyport"
)

// TestRetryingBack: however long auth was away, a host is back within five
// seconds of its return; and it does not hammer while it waits.
func TestRetryingBack(t *testing.T) {
	for _, away := range []time.Duration{100 * time.Millisecond, 10 * time.Second, time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			start, calls := time.Now(), 0
			err := retrying(ctx, slog.New(slog.DiscardHandler), "call", func(context.Context, func()) error {
				calls++
				if time.Since(start) < away {
					return errors.New("away")
				}
				cancel()
				return nil
			})
			if late := time.Since(start) - away; err != nil || late > 5*time.Second-dialTimeout/2 {
				t.Errorf("away %v: back %v after its return, %v", away, late, err)
			}
			if most := int(away/time.Second) + 10; calls > most {
				t.Errorf("away %v: %d calls", away, calls)
			}
		})
	}
}

// TestRetryingProgress: a connection that worked starts the waits anew, and a
// row of failures is one warning.
func TestRetryingProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var logged bytes.Buffer
		var last time.Time
		calls := 0
		log := slog.New(slog.NewTextHandler(&logged, &slog.HandlerOptions{Level: slog.LevelWarn}))
		retrying(ctx, log, "call", func(_ context.Context, progress func()) error {
			switch calls++; {
			case calls == 20:
				progress()
			case calls == 21:
				if waited := time.Since(last); waited > 2*retryFirst {
					t.Errorf("waited %v after progress", waited)
				}
			case calls == 40:
				cancel()
			}
			last = time.Now()
			return errors.New("away")
		})
		if n := strings.Count(logged.String(), "level=WARN"); n != 2 {
			t.Errorf("%d warnings:\n%s", n, logged.String())
		}
	})
}

// TestRetryingReasons: auth was away, came back and refused, and the log said for
// ever that it was away.
func TestRetryingReasons(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		var logged bytes.Buffer
		log := slog.New(slog.NewTextHandler(&logged, &slog.HandlerOptions{Level: slog.LevelWarn}))
		start, calls := time.Now(), 0
		retrying(ctx, log, "call", func(context.Context, func()) error {
			switch calls++; {
			case time.Since(start) < 10*time.Minute:
				return errors.New("away")
			case time.Since(start) < 20*time.Minute:
				return &sallyport.Problem{Kind: sallyport.ErrConflict, Fact: "refused", Hint: "remove it"}
			}
			return fmt.Errorf("call %d", calls)
		})
		lines := strings.Split(strings.TrimSpace(logged.String()), "\n")
		if len(lines) < 3 || !strings.Contains(lines[0], "away") || !strings.Contains(lines[1], "refused") || !strings.Contains(lines[1], `hint="remove it"`) {
			t.Fatalf("warned of\n%s", logged.String())
		}
		if most := 2 + int(40*time.Minute/warnEvery) + 1; len(lines) > most {
			t.Errorf("%d warnings within the hour, at most %d", len(lines), most)
		}
	})
}

// TestRetryingEnds: the end of the context ends the wait at once.
func TestRetryingEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		start := time.Now()
		retrying(ctx, slog.New(slog.DiscardHandler), "call", func(context.Context, func()) error { return errors.New("away") })
		if took := time.Since(start); took != 100*time.Millisecond {
			t.Errorf("ended after %v", took)
		}
	})
}

// TestProblem: what auth says arrives as the words' kinds.
func TestProblem(t *testing.T) {
	for code, kind := range map[connect.Code]error{
		connect.CodePermissionDenied: sallyport.ErrDenied, connect.CodeUnauthenticated: sallyport.ErrUnauthorized, connect.CodeNotFound: sallyport.ErrNotFound,
		connect.CodeAlreadyExists: sallyport.ErrExists, connect.CodeInvalidArgument: sallyport.ErrInvalid, connect.CodeResourceExhausted: sallyport.ErrExhausted,
		connect.CodeAborted: sallyport.ErrConflict, connect.CodeUnavailable: sallyport.ErrUnavailable, connect.CodeInternal: sallyport.ErrUnavailable,
	} {
		ce := connect.NewError(code, errors.New("the fact"))
		ce.Meta().Set(HintHeader, "the hint")
		err := Problem(fmt.Errorf("wrapped: %w", ce))
		var p *sallyport.Problem
		if !errors.As(err, &p) || !errors.Is(err, kind) || p.Fact != "the fact" || p.Hint != "the hint" {
			t.Errorf("%v: %#v", code, err)
		}
	}
	plain := errors.New("plain")
	if Problem(plain) != plain || Problem(nil) != nil {
		t.Error("what is no answer of auth was changed")
	}
}

// TestRetryingRefused: a host that is refused comes less and less often, and one that
// only finds nobody as often as ever.
func TestRetryingRefused(t *testing.T) {
	for _, row := range []struct {
		name    string
		err     error
		refused bool
	}{
		{"denied", problem(connect.NewError(connect.CodePermissionDenied, errors.New("locked"))), true},
		{"unknown", problem(connect.NewError(connect.CodeUnauthenticated, errors.New("who?"))), true},
		{"its certificate", handshakeProblem("a:1", &net.OpError{Op: "remote error", Err: errors.New("tls: bad certificate")}), true},
		{"auth's certificate", handshakeProblem("a:1", x509.UnknownAuthorityError{}), true},
		{"auth away", handshakeProblem("a:1", &net.OpError{Op: "remote error", Err: errors.New("tls: internal error")}), false},
		{"busy", problem(connect.NewError(connect.CodeUnavailable, errors.New("busy"))), false},
		{"nobody", errors.New("away"), false},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
				defer cancel()
				calls := 0
				if err := retrying(ctx, slog.New(slog.DiscardHandler), "call", func(context.Context, func()) error { calls++; return row.err }); err != nil {
					t.Error(err)
				}
				if few := calls < 2*int(time.Hour/refusedMost); few != row.refused || refused(row.err) != row.refused {
					t.Errorf("%d calls in an hour", calls)
				}
			})
		})
	}
}
