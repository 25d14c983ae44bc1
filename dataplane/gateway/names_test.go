//go:build unix

package gateway

import (
	"context"
	"errors"
	"net"
	"testing"

	"github.com/sallyport/sallyport/dataplane/relay"
)

// TestHeirLooksUpFirst: an heir took connections before it had looked up the names
// that are new in its configuration, and refused their first clients.
func TestHeirLooksUpFirst(t *testing.T) {
	was := net.DefaultResolver
	defer func() { net.DefaultResolver = was }()
	// The lookups of one heir: whether its loops still run, so that it has not taken
	// anything yet, tells one that it waits for from one in the background.
	first := func() (first bool) {
		l, err := relay.NewDefault()
		check(t, err)
		defer l.Close()
		inherited, asked := make(chan struct{}), make(chan bool, 1)
		net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
			runs := make(chan struct{})
			l.Post(func() { close(runs) })
			early := false
			select {
			case <-runs:
				early = true
			case <-inherited:
			}
			select {
			case asked <- early:
			default: // it was not the first question
			}
			return nil, errors.New("no such server")
		}}
		h, err := Inherit(Config{Cluster: cluster, Listen: []string{"127.0.0.1:0"}, Loops: []relay.Loop{l}, Static: []StaticRoute{to("a.example.com", "new.example.com:443")}})
		check(t, err)
		defer h.Close()
		close(inherited)
		return <-asked
	}
	for range 5 { // the wait has a bound, which this process may be stopped for
		if first() {
			return
		}
	}
	t.Error("connections are taken before a name is looked up")
}
