package client

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"time"

	"connectrpc.com/connect"

	"github.com/sallyport/sallyport"
)

const (
	retryFirst = 200 * time.Millisecond
	retryMost  = 2 * time.Second // a host is back within 5 s of auth's return

	// refusedMost is retryMost for one that auth has refused: thousands of them are not to
	// keep it busy.
	refusedMost = 30 * time.Second
)

// retrying runs work until ctx is done; after a failure it waits, longer each
// time until work calls progress. Of a row of failures the third is a warning: a
// connection that broke and came back at once is not worth one. So is, once in
// warnEvery at most, each that has another reason than the last warning: what was
// away may be back and refuse.
func retrying(ctx context.Context, log *slog.Logger, what string, work func(ctx context.Context, progress func()) error) error {
	wait, failures := retryFirst, 0
	var warned struct {
		of string
		at time.Time
	}
	for {
		err := work(ctx, func() { wait, failures = retryFirst, 0 })
		if ctx.Err() != nil {
			return nil
		}
		failures++
		reason := []any{"error", err}
		var p *sallyport.Problem
		if errors.As(err, &p) && p.Hint != "" {
			reason = append(reason, "hint", p.Hint)
		}
		level, said := slog.LevelDebug, fmt.Sprint(reason...)
		if failures == 3 || failures > 3 && said != warned.of && time.Since(warned.at) >= warnEvery {
			level = slog.LevelWarn
			warned.of, warned.at = said, time.Now()
		}
		log.Log(ctx, level, what+": trying again", append(reason, "in", wait)...)
		if sleepUntil(ctx, time.Now().Add(jitter(wait))) != nil {
			return nil
		}
		most := retryMost
		if refused(err) {
			most = refusedMost
		}
		wait = min(2*wait, most)
	}
}

// refused says that auth has been reached and does not let the host in, or is not
// believed by it.
func refused(err error) bool {
	if errors.Is(err, sallyport.ErrDenied) || errors.Is(err, sallyport.ErrUnauthorized) {
		return true
	}
	if op := new(net.OpError); errors.As(err, &op) && op.Op == "remote error" { // so crypto/tls calls an alert
		return !unanswered(err)
	}
	invalid := x509.CertificateInvalidError{}
	return isForeign(err) || errors.As(err, &invalid)
}

// isForeign says that who has answered is of another cluster: no more is to be expected soon.
func isForeign(err error) bool {
	unknown := x509.UnknownAuthorityError{}
	return errors.As(err, &unknown)
}

// jitter spreads by a quarter either way, so that hosts do not come in step.
func jitter(d time.Duration) time.Duration {
	return d*3/4 + rand.N(d/2)
}

func sleepUntil(ctx context.Context, at time.Time) error {
	t := time.NewTimer(time.Until(at))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// problem turns a call's error into the words' kinds.
func problem(err error) error {
	var ce *connect.Error
	if err == nil || !errors.As(err, &ce) {
		return err
	}
	kind := sallyport.ErrUnavailable
	switch ce.Code() {
	case connect.CodePermissionDenied:
		kind = sallyport.ErrDenied
	case connect.CodeUnauthenticated:
		kind = sallyport.ErrUnauthorized
	case connect.CodeNotFound:
		kind = sallyport.ErrNotFound
	case connect.CodeAlreadyExists:
		kind = sallyport.ErrExists
	case connect.CodeInvalidArgument, connect.CodeFailedPrecondition, connect.CodeOutOfRange:
		kind = sallyport.ErrInvalid
	case connect.CodeResourceExhausted:
		kind = sallyport.ErrExhausted
	case connect.CodeAborted:
		kind = sallyport.ErrConflict
	}
	return &sallyport.Problem{Kind: kind, Fact: ce.Message(), Hint: ce.Meta().Get(HintHeader), Cause: err}
}

// Problem turns the error of an API call into a *sallyport.Problem with the
// kind, fact and hint that auth gave.
func Problem(err error) error { return problem(err) }

// HintHeader carries the hint of an error beside its fact.
const HintHeader = "Sallyport-Hint"
