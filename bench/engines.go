package main

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// engine is a kind of database server, and how one client of it gets there:
// straight, and through gateway and agent. Each way is TLS to whoever is next.
type engine struct {
	name, title       string
	missing           string // the server without which it is not measured
	client            string // the program that both sides use
	through, straight func(ctx context.Context) (databaseClient, error)
}

// databaseClient is one connection to a database, used by one goroutine.
type databaseClient interface {
	// ping asks for the least that the server answers.
	ping(ctx context.Context) error
	// fetch has the server send so many megabytes, in rows of a thousand bytes or
	// what comes nearest.
	fetch(ctx context.Context, mb int) error
	// store sends the server so many megabytes, each as one value.
	store(ctx context.Context, mb int) error
	close()
}

// Bars of a session through gateway and agent, to direct TLS.
const (
	pingRateBar = 0.85
	bulkRateBar = 0.60
)

// warmPings come before those that count, on the same connection.
const warmPings = 50

// engines are the kinds of databases that there are measures of.
func (w *world) engines() []engine {
	return []engine{w.postgresEngine(), w.mariaEngine(), w.redisEngine()}
}

// engineMeasures are those of one connection that works.
func (w *world) engineMeasures(z sizes) []comparison {
	var out []comparison
	for _, e := range w.engines() {
		ping := w.engineMeasure(e, "ping", fmt.Sprintf("%s, statements one after the other", e.title))
		ping.Load = fmt.Sprintf("%d statements on one connection, each after the answer to the one before; connecting is not counted", z.statements)
		ping.Quantities = []Quantity{
			{Key: "rate", Title: "statements", Unit: "/s", More: true, Ratio: pingRateBar}, {Key: "p50", Title: "p50", Unit: "µs"}, {Key: "p99", Title: "p99", Unit: "µs"},
			gatewayCPU("statement"), agentCPU("statement"),
		}
		fetch := w.engineMeasure(e, "fetch", e.title+" rows, server to client")
		fetch.Load = fmt.Sprintf("%d MB in one answer, on a connection of its own", z.megabytes)
		store := w.engineMeasure(e, "store", e.title+" values, client to server")
		store.Load = fmt.Sprintf("%d MB, one value of 1 MB after the other, on a connection of its own", z.megabytes)
		for _, m := range []*comparison{&fetch, &store} {
			m.Quantities = bulkQuantities()
			m.Quantities[0].Ratio = bulkRateBar
		}
		if e.missing == "" {
			ping.a = pings(e.through, z.statements, func(s side) side { return w.counted(s, z.statements) })
			ping.b = pings(e.straight, z.statements, uncounted)
			fetch.a, fetch.b = w.counted(moving(e.through, databaseClient.fetch, z.megabytes), z.megabytes), moving(e.straight, databaseClient.fetch, z.megabytes)
			store.a, store.b = w.counted(moving(e.through, databaseClient.store, z.megabytes), z.megabytes), moving(e.straight, databaseClient.store, z.megabytes)
		}
		out = append(out, ping, fetch, store)
	}
	return out
}

func (w *world) engineMeasure(e engine, what, title string) comparison {
	return comparison{Measure: Measure{
		Name: "db/" + e.name + "-" + what, Title: title,
		A: e.client + " through Sallyport", B: e.client + " to " + e.title + ", TLS", Missing: e.missing,
	}}
}

// pings times statements on one connection that is open.
func pings(open func(context.Context) (databaseClient, error), n int, count counting) side {
	return func(ctx context.Context) (Sample, error) {
		c, err := open(ctx)
		if err != nil {
			return nil, err
		}
		defer c.close()
		for range warmPings {
			if err := c.ping(ctx); err != nil {
				return nil, err
			}
		}
		return count(pingsOf(c, n))(ctx)
	}
}

func pingsOf(c databaseClient, n int) side {
	return func(ctx context.Context) (Sample, error) {
		took := make([]time.Duration, n)
		began := time.Now()
		for i := range took {
			sent := time.Now()
			if err := c.ping(ctx); err != nil {
				return nil, fmt.Errorf("number %d of %d: %w", i+1, n, err)
			}
			took[i] = time.Since(sent)
		}
		seconds := time.Since(began).Seconds()
		slices.Sort(took)
		us := func(part int) float64 { return float64(took[n*part/100].Nanoseconds()) / 1000 }
		return Sample{"rate": float64(n) / seconds, "seconds": seconds, "p50": us(50), "p99": us(99)}, nil
	}
}

// moving times megabytes on a connection of its own, whose connecting is part of
// the sample.
func moving(open func(context.Context) (databaseClient, error), move func(databaseClient, context.Context, int) error, mb int) side {
	return timed("rate", func(ctx context.Context) (float64, error) {
		c, err := open(ctx)
		if err != nil {
			return 0, err
		}
		defer c.close()
		return float64(mb), move(c, ctx, mb)
	})
}

// openDatabases starts a cluster with one database of each kind.
func openDatabases(ctx context.Context, r *rig) (opened, error) {
	w := &world{dir: r.dir, bin: r.bin, login: person}
	err := w.begin(ctx, w.startAuth, w.startGateway, w.signServers, w.startPostgres, w.startMariaDB, w.startRedis, w.configureAgent, w.startAgent, w.logIn, w.awaitEngines)
	if err != nil {
		return opened{}, err
	}
	return opened{measures: w.engineMeasures(r.sizes), peers: foreignPrograms(ctx, "postgres", "mariadbd", "redis-server"), close: w.close}, nil
}

// awaitEngines returns when each database that is here answers through the agent.
func (w *world) awaitEngines(ctx context.Context) error {
	for _, e := range w.engines() {
		if e.missing != "" {
			continue
		}
		err := w.agent.await(ctx, func(ctx context.Context) error {
			c, err := e.through(ctx)
			if err != nil {
				return err
			}
			defer c.close()
			return c.ping(ctx)
		})
		if err != nil {
			return fmt.Errorf("%s: %w", e.title, err)
		}
	}
	return nil
}
