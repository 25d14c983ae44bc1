package main

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"
)

func TestPairsAlternate(t *testing.T) {
	var order strings.Builder
	say := func(s string) side {
		return func(context.Context) (Sample, error) {
			order.WriteString(s)
			return Sample{"rate": 1}, nil
		}
	}
	c := comparison{pairs: 4, within: time.Minute, a: say("a"), b: say("b")}
	if err := c.take(t.Context()); err != nil || c.Error != "" {
		t.Fatal(err, c.Error)
	}
	if got := order.String(); got != "ab"+"abbaabba" {
		t.Errorf("order %q", got)
	}
	if len(c.Pairs) != 4 || c.Pairs[0].First != "A" || c.Pairs[1].First != "B" {
		t.Errorf("pairs: %+v", c.Pairs)
	}
}

// TestPairsKeepWhatWasTaken: a fault ends a measure, not the run, and says
// which side had it.
func TestPairsKeepWhatWasTaken(t *testing.T) {
	n := 0
	c := comparison{pairs: 9, within: time.Minute,
		a: func(context.Context) (Sample, error) { return Sample{"rate": 1}, nil },
		b: func(context.Context) (Sample, error) {
			if n++; n > 3 {
				return nil, errors.New("no more")
			}
			return Sample{"rate": 1}, nil
		}}
	if err := c.take(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(c.Pairs) != 2 || !strings.Contains(c.Error, "pair 3: side B: no more") {
		t.Errorf("%d pairs, %q", len(c.Pairs), c.Error)
	}
}

func TestPairsEndWithTheRun(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	c := comparison{pairs: 9, within: time.Minute, a: func(context.Context) (Sample, error) {
		cancel()
		return nil, ctx.Err()
	}}
	if err := c.take(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func TestSpread(t *testing.T) {
	done := make(chan struct{}, 20)
	err := spread(t.Context(), 20, 4, func(context.Context) error {
		done <- struct{}{}
		return nil
	})
	if err != nil || len(done) != 20 {
		t.Errorf("%d done, %v", len(done), err)
	}
	if err := spread(t.Context(), 3, 1, func(context.Context) error { return io.EOF }); !errors.Is(err, io.EOF) {
		t.Errorf("%v", err)
	}
}

func TestRows(t *testing.T) {
	b, err := io.ReadAll(&rows{left: 3})
	if err != nil || len(b) != 3000 || strings.Count(string(b), "\n") != 3 || b[999] != '\n' || b[0] != 'x' {
		t.Errorf("%d bytes, %v", len(b), err)
	}
}

func TestWanted(t *testing.T) {
	for only, want := range map[string]bool{"": true, "copy": true, "ssh,copy/out": true, "copy/in": false, "ssh": false} {
		if got := wanted(only, "copy/out"); got != want {
			t.Errorf("-only %q: %v", only, got)
		}
	}
}
