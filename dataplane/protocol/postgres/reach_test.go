package postgres

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/sallyport/sallyport/dataplane/database"
	"github.com/sallyport/sallyport/dataplane/database/dbtest"
	"github.com/sallyport/sallyport/dataplane/session"
)

func TestNothingBeforeTheStart(t *testing.T) {
	dbtest.Reach{
		Serve: func(ctx context.Context, addr string, c *session.Candidate, conn net.Conn) error {
			s := &Server{Target: database.Target{Address: addr}, Roots: roots(dbtest.DBCA.Pool),
				Certificate: func(context.Context, string, string) (*tls.Certificate, error) {
					return new(dbtest.DBCA.Pair("alice")), nil
				}, Bounds: Bounds{Farewell: unhurried}}
			return s.Serve(ctx, c, conn)
		},
		Preamble: func(server net.Conn) error {
			if _, err := pgproto3.NewBackend(server, server).ReceiveStartupMessage(); err != nil {
				return err
			}
			_, err := server.Write([]byte{'S'})
			return err
		},
		Login: func(client net.Conn) (string, error) {
			f := pgproto3.NewFrontend(client, client)
			f.Send(&pgproto3.StartupMessage{ProtocolVersion: protocol30, Parameters: map[string]string{"user": "alice", "database": "orders"}})
			if err := f.Flush(); err != nil {
				return "", err
			}
			m, err := f.Receive()
			if told, ok := m.(*pgproto3.ErrorResponse); ok {
				return told.Message, nil
			}
			return fmt.Sprintf("%+v", m), err
		},
		Unwritten: "audit spool cannot be written",
		Locked:    "user alice is locked: on leave",
	}.NothingBeforeTheStart(t)
}
