package main

import (
	"context"
	"errors"
	"testing"
)

// countingDatabase is a database that counts.
type countingDatabase struct {
	pings, moved, closed int
	fail                 error
}

func (c *countingDatabase) ping(context.Context) error {
	c.pings++
	return c.fail
}

func (c *countingDatabase) fetch(_ context.Context, mb int) error {
	c.moved += mb
	return c.fail
}

func (c *countingDatabase) store(_ context.Context, mb int) error {
	c.moved -= mb
	return c.fail
}

func (c *countingDatabase) close() { c.closed++ }

func TestEngineSides(t *testing.T) {
	c := &countingDatabase{}
	open := func(context.Context) (databaseClient, error) { return c, nil }
	s, err := pings(open, 100, uncounted)(t.Context())
	if err != nil || s["rate"] <= 0 || s["p99"] < s["p50"] || c.pings != 100+warmPings || c.closed != 1 {
		t.Errorf("pings: %v, %v, %+v", s, err, c)
	}
	if s, err = moving(open, databaseClient.fetch, 7)(t.Context()); err != nil || s["rate"] <= 0 || c.moved != 7 || c.closed != 2 {
		t.Errorf("fetch: %v, %v, %+v", s, err, c)
	}
	if _, err = moving(open, databaseClient.store, 7)(t.Context()); err != nil || c.moved != 0 || c.closed != 3 {
		t.Errorf("store: %v, %+v", err, c)
	}
	c.fail = errors.New("no")
	if _, err := pings(open, 1, uncounted)(t.Context()); !errors.Is(err, c.fail) || c.closed != 4 {
		t.Errorf("a ping that fails: %v, %+v", err, c)
	}
}

// TestEnginesMissing: a database that is not here is named, and the others are measured.
func TestEnginesMissing(t *testing.T) {
	all := (&world{}).engineMeasures(sizesFor(options{quick: true}))
	if len(all) != 9 {
		t.Fatalf("%d measures", len(all))
	}
	for _, m := range all {
		if m.Missing == "" || m.take(t.Context()) != nil || len(m.Pairs) != 0 {
			t.Errorf("%s: missing %q, %d pairs", m.Name, m.Missing, len(m.Pairs))
		}
	}
	if all[0].Name != "db/postgres-ping" || all[0].Missing != "postgres" || all[3].Missing != "mariadbd" || all[6].Missing != "redis-server" {
		t.Errorf("%s %q, %q, %q", all[0].Name, all[0].Missing, all[3].Missing, all[6].Missing)
	}
}
