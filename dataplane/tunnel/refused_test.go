package tunnel

import (
	"errors"
	"sync/atomic"
	"testing"

	"github.com/sallyport/sallyport/dataplane/relay"
)

// TestRefusedGateway: an agent leaves a gateway that is not believed any more,
// though its certificate is good, and does not come back to it.
func TestRefusedGateway(t *testing.T) {
	loops, err := relay.New(1)
	check0(t, err)
	t.Cleanup(func() { loops[0].Close() })
	ca := newAuthority(t)
	g := startGateway(t, ca, loops, nil)
	var removed atomic.Bool
	asked := make(chan string, 1000)
	stop := startAgent(t, ca, []string{g.control.Addr().String()}, func(c *AgentConfig) {
		c.Refused = func(id string) error {
			if !removed.Load() {
				return nil
			}
			asked <- id
			return errors.New("removed")
		}
	})
	g.come(t)
	removed.Store(true)
	if err := receive(t, g.ended); err == nil {
		t.Error("the tunnel ended without a reason")
	}
	for range 3 { // its end, and then tries to come back
		if id := receive(t, asked); id != gatewayID {
			t.Errorf("asked about %q", id)
		}
	}
	if g.hub.Live("tcp", "echo") {
		t.Error("the agent came back")
	}
	stop()
}
