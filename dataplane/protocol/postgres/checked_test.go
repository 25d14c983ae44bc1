package postgres

import (
	"context"
	"crypto/x509"
	"sync/atomic"
	"testing"

	"github.com/sallyport/sallyport/dataplane/database/dbtest"
)

// TestCheckedServerWithoutItsCA: when the cluster's CA is replaced, a server
// that was reached before is so no more.
func TestCheckedServerWithoutItsCA(t *testing.T) {
	var pool atomic.Pointer[x509.CertPool]
	pool.Store(dbtest.DBCA.Pool)
	r := newRig(t, func(r *rig) { r.server.Roots = pool.Load })
	for range 2 {
		conn, err := r.connect("alice")
		if err != nil {
			t.Fatal(err)
		}
		conn.Close(context.Background())
		r.Result()
	}
	pool.Store(dbtest.NewAuthority("databases").Pool)
	_, err := r.connect("alice")
	wantFatal(t, err, stateUnableToConnect, "is not trusted")
}
