package main

import (
	"context"
	"fmt"
	"io"
	"net"

	"github.com/jackc/pgx/v5/pgconn"
)

// through is the way of a stock client to a database: SSLRequest, TLS with the
// agent, the person's certificate.
func (w *world) through(database string) (*pgconn.Config, error) {
	_, port, err := net.SplitHostPort(w.proxy)
	if err != nil {
		return nil, err
	}
	return config(fmt.Sprintf("host=%s.db.%s port=%s sslrootcert='%s' sslcert='%s' sslkey='%s'",
		database, cluster, port, w.clusterCAs(), w.profile(person+".crt"), w.profile(person+".key")))
}

// directly is the same client's way to a server: TLS with the server, a
// certificate that the server takes.
func (w *world) directly(addr string) (*pgconn.Config, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	return config(fmt.Sprintf("host=%s port=%s sslrootcert='%s' sslcert='%s' sslkey='%s'",
		host, port, w.databases.serverCA, w.databases.clientCert, w.databases.clientKey))
}

// config completes a connection string. All names are of this machine.
func config(s string) (*pgconn.Config, error) {
	cfg, err := pgconn.ParseConfig(s + " user=" + person + " dbname=" + databaseName + " sslmode=verify-full connect_timeout=30")
	if err != nil {
		return nil, err
	}
	cfg.LookupFunc = func(context.Context, string) ([]string, error) { return []string{"127.0.0.1"}, nil }
	return cfg, nil
}

// session logs in and out.
func session(ctx context.Context, cfg *pgconn.Config) error {
	conn, err := pgconn.ConnectConfig(ctx, cfg)
	if err != nil {
		return err
	}
	return conn.Close(ctx)
}

func (w *world) sessionThrough(ctx context.Context, database string) error {
	cfg, err := w.through(database)
	if err != nil {
		return err
	}
	return session(ctx, cfg)
}

// sessions logs in and out n times, by workers at once.
func sessions(n, workers int, way func() (*pgconn.Config, error)) func(context.Context) (float64, error) {
	return func(ctx context.Context) (float64, error) {
		cfg, err := way()
		if err != nil {
			return 0, err
		}
		return float64(n), spread(ctx, n, workers, func(ctx context.Context) error { return session(ctx, cfg) })
	}
}

// Bars of DESIGN section 12, for a session with the stub.
const (
	gatewaySessionBar = 150  // µs
	agentSessionBar   = 1500 // µs
)

// sessionMeasures are the set-ups of database sessions.
func (w *world) sessionMeasures(z sizes) []comparison {
	rate := Quantity{Key: "rate", Title: "sessions", Unit: "/s", More: true}
	measure := func(name, title, b, database string, workers int) comparison {
		m := comparison{Measure: Measure{
			Name: "db-session/" + name, Title: title, A: "pgx through Sallyport", B: b,
			Load:       fmt.Sprintf("%d sessions, log in and out, %d at a time", z.sessions, workers),
			Quantities: []Quantity{rate, gatewayCPU("session"), agentCPU("session")},
		}}
		m.a = w.counted(timed("rate", sessions(z.sessions, workers, func() (*pgconn.Config, error) { return w.through(database) })), z.sessions)
		return m
	}
	stub := measure("stub", "Database session, protocol stub", "pgx to the stub, TLS", stubDatabase, z.workers)
	stub.Quantities[1].Bar, stub.Quantities[2].Bar = gatewaySessionBar, agentSessionBar
	stub.b = timed("rate", sessions(z.sessions, z.workers, func() (*pgconn.Config, error) { return w.directly(w.stub.addr()) }))

	one := measure("stub-serial", "Database session, protocol stub, one at a time", "pgx to the stub, TLS", stubDatabase, 1)
	one.b = timed("rate", sessions(z.sessions, 1, func() (*pgconn.Config, error) { return w.directly(w.stub.addr()) }))

	server := measure("postgres", "Database session, PostgreSQL", "pgx to PostgreSQL, TLS", realDatabase, z.workers)
	if w.postgres == nil {
		server.Missing = "postgres"
	} else {
		server.b = timed("rate", sessions(z.sessions, z.workers, func() (*pgconn.Config, error) { return w.directly(w.postgres.Addr) }))
	}
	return []comparison{stub, one, server}
}

// copyOut reads rows of a thousand bytes that the server makes up.
func copyOut(mb int, way func() (*pgconn.Config, error)) func(context.Context) (float64, error) {
	query := fmt.Sprintf("COPY (SELECT repeat('x', 999) FROM generate_series(1, %d)) TO STDOUT", mb*1000)
	return copying(way, func(ctx context.Context, conn *pgconn.PgConn) (float64, error) {
		var n counter
		_, err := conn.CopyTo(ctx, &n, query)
		return float64(n) / 1e6, err
	})
}

// copyIn sends such rows. The server reads every one and keeps none, so that
// its disk is not measured.
func copyIn(mb int, way func() (*pgconn.Config, error)) func(context.Context) (float64, error) {
	return copying(way, func(ctx context.Context, conn *pgconn.PgConn) (float64, error) {
		_, err := conn.CopyFrom(ctx, &rows{left: mb * 1000}, "COPY sink FROM STDIN WHERE false")
		return float64(mb), err
	})
}

// copying does one copy on a connection of its own. The time of connecting is
// part of the sample.
func copying(way func() (*pgconn.Config, error), do func(context.Context, *pgconn.PgConn) (float64, error)) func(context.Context) (float64, error) {
	return func(ctx context.Context) (float64, error) {
		cfg, err := way()
		if err != nil {
			return 0, err
		}
		conn, err := pgconn.ConnectConfig(ctx, cfg)
		if err != nil {
			return 0, err
		}
		defer conn.Close(ctx)
		return do(ctx, conn)
	}
}

type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}

// rows is a reader of lines of a thousand bytes.
type rows struct {
	left int
	at   int // within the line
}

func (r *rows) Read(p []byte) (int, error) {
	if r.left == 0 {
		return 0, io.EOF
	}
	n := 0
	for n < len(p) && r.left > 0 {
		p[n] = 'x'
		if r.at++; r.at == 1000 {
			p[n], r.at = '\n', 0
			r.left--
		}
		n++
	}
	return n, nil
}

// copyMeasures are COPY's bytes per second.
func (w *world) copyMeasures(z sizes) []comparison {
	var out []comparison
	for _, d := range []struct {
		name, title string
		copy        func(int, func() (*pgconn.Config, error)) func(context.Context) (float64, error)
	}{{"out", "PostgreSQL COPY TO, server to client", copyOut}, {"in", "PostgreSQL COPY FROM, client to server", copyIn}} {
		m := comparison{Measure: Measure{
			Name: "copy/" + d.name, Title: d.title, A: "pgx through Sallyport", B: "pgx to PostgreSQL, TLS",
			Load:       fmt.Sprintf("%d MB in rows of 1,000 bytes, on a connection of its own", z.megabytes),
			Quantities: bulkQuantities(),
		}}
		if w.postgres == nil {
			m.Missing = "postgres"
			out = append(out, m)
			continue
		}
		m.a = w.counted(timed("rate", d.copy(z.megabytes, func() (*pgconn.Config, error) { return w.through(realDatabase) })), z.megabytes)
		m.b = timed("rate", d.copy(z.megabytes, func() (*pgconn.Config, error) { return w.directly(w.postgres.Addr) }))
		out = append(out, m)
	}
	return out
}

// bulkQuantities are those of one that moves megabytes.
func bulkQuantities() []Quantity {
	return []Quantity{{Key: "rate", Title: "throughput", Unit: " MB/s", More: true}, gatewayCPU("MB"), agentCPU("MB")}
}
