package main

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5/pgconn"
)

// megabyte is a value that is stored.
const megabyte = 1_000_000

// byteaOID is the type bytea (catalog pg_type).
const byteaOID = 17

func (w *world) postgresEngine() engine {
	e := engine{name: "postgres", title: "PostgreSQL", client: "pgx"}
	if w.postgres == nil {
		e.missing = "postgres"
		return e
	}
	e.through = openPG(func() (*pgconn.Config, error) { return w.through(realDatabase) })
	e.straight = openPG(func() (*pgconn.Config, error) { return w.directly(w.postgres.Addr) })
	return e
}

func openPG(way func() (*pgconn.Config, error)) func(context.Context) (databaseClient, error) {
	return func(ctx context.Context) (databaseClient, error) {
		cfg, err := way()
		if err != nil {
			return nil, err
		}
		conn, err := pgconn.ConnectConfig(ctx, cfg)
		if err != nil {
			return nil, err
		}
		return pgClient{conn}, nil
	}
}

type pgClient struct{ conn *pgconn.PgConn }

func (c pgClient) ping(ctx context.Context) error {
	_, err := c.conn.Exec(ctx, "SELECT 1").ReadAll()
	return err
}

func (c pgClient) fetch(ctx context.Context, mb int) error {
	want := mb * 1000
	all := c.conn.Exec(ctx, fmt.Sprintf("SELECT repeat('x', 1000) FROM generate_series(1, %d)", want))
	got := 0
	for all.NextResult() {
		for rows := all.ResultReader(); rows.NextRow(); {
			got += len(rows.Values())
		}
	}
	if err := all.Close(); err != nil {
		return err
	}
	return exactly(got, want)
}

func (c pgClient) store(ctx context.Context, mb int) error {
	value := make([]byte, megabyte)
	for range mb {
		r := c.conn.ExecParams(ctx, "SELECT octet_length($1)", [][]byte{value}, []uint32{byteaOID}, []int16{1}, nil).Read()
		if r.Err != nil {
			return r.Err
		}
		if len(r.Rows) != 1 || string(r.Rows[0][0]) != fmt.Sprint(megabyte) {
			return fmt.Errorf("the server got %s bytes of %d", r.Rows, megabyte)
		}
	}
	return nil
}

func (c pgClient) close() { _ = c.conn.Close(context.Background()) }

// exactly says that not all rows came.
func exactly(got, want int) error {
	if got != want {
		return fmt.Errorf("%d rows of %d", got, want)
	}
	return nil
}
