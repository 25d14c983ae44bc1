package redis

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"testing"

	"github.com/sallyport/sallyport/dataplane/database"
	"github.com/sallyport/sallyport/dataplane/database/dbtest"
	"github.com/sallyport/sallyport/dataplane/session"
)

func TestNothingBeforeTheStart(t *testing.T) {
	dbtest.Reach{
		Serve: func(ctx context.Context, addr string, c *session.Candidate, conn net.Conn) error {
			s := &Server{Target: database.Target{Address: addr}, Roots: func() *x509.CertPool { return dbtest.DBCA.Pool },
				Certificate: func(context.Context, string, string) (*tls.Certificate, error) {
					return new(dbtest.DBCA.Pair("alice")), nil
				}, Bounds: Bounds{Farewell: unhurried}}
			return s.Serve(ctx, c, conn)
		},
		Login: func(client net.Conn) (string, error) {
			if _, err := client.Write(appendCommand(nil, []byte("AUTH"), []byte("alice"), []byte("none"))); err != nil {
				return "", err
			}
			return readValue(bufio.NewReader(client))
		},
		Unwritten: "-NOPERM audit spool cannot be written",
		Locked:    "-NOPERM user alice is locked: on leave (ask your administrator)",
	}.NothingBeforeTheStart(t)
}
