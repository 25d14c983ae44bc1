//go:build unix

package gateway

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
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

// TestHeirLooksUpNothing: what the heir is to listen at is known by name only, and
// while connections stand still nobody waits for a name.
func TestHeirLooksUpNothing(t *testing.T) {
	r := newRig(t, newLoops(t, relay.NewDefault, 2), nil)
	was := net.DefaultResolver
	defer func() { net.DefaultResolver = was }()
	var asked atomic.Bool
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		asked.Store(true)
		return nil, errors.New("no such server")
	}}
	port := r.Addrs()[0].Port()
	h := r.heir(newLoops(t, relay.NewDefault, 2), func(c *Config) {
		c.Listen = []string{fmt.Sprintf("here.example.com:%d", port), fmt.Sprintf("localhost:%d", port)}
	})
	if !asked.Swap(false) {
		t.Error("the name was not looked up")
	}
	w := &wire{heir: h}
	check(t, r.Giver().Copy(t.Context(), w))
	check(t, r.Giver().Freeze(t.Context(), w))
	if asked.Load() {
		t.Error("a name is looked up while the loops stand still")
	}
	if got := h.Gateway().Addrs(); got[0].IsValid() || got[1] != r.Addrs()[0] {
		t.Errorf("the socket is that of %v", got)
	}
	h.Close()
	check(t, r.Giver().Thaw())
}
