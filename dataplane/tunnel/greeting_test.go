package tunnel

import (
	"testing"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/relay"
)

// TestGreetings: the holder of one agent's certificate could hold any number of
// connections, with 1 MiB of a hello in each, before it was welcomed.
func TestGreetings(t *testing.T) {
	loops, err := relay.New(1)
	check0(t, err)
	t.Cleanup(func() { loops[0].Close() })
	g := startGateway(t, newAuthority(t), loops, func(c *HubConfig) { c.Bounds.HelloWait = time.Hour }) // all are held until the end
	cert := g.ca.issue(t, sallyport.KindAgent, agentID)
	full := func() int { return int(g.hub.Status().Counters["greeting_full"]) }
	held := func() greeted {
		g.hub.greetings.mu.Lock()
		defer g.hub.greetings.mu.Unlock()
		return g.hub.greetings.by[agentID]
	}

	// Of large hellos there are four at once; the fifth is told so.
	begun := append([]byte{0, MaxControl >> 16, 0, 0}, make([]byte, 1000)...)
	const large = helloEach / MaxControl
	for range large {
		conn := dialControl(t, g, cert)
		defer conn.Close()
		_, err := conn.Write(begun)
		check0(t, err)
	}
	eventually(t, "room for hellos is used up", func() bool { return held().bytes == helloEach })
	fifth := dialControl(t, g, cert)
	defer fifth.Close()
	_, err = fifth.Write(begun)
	check0(t, err)
	if m, err := ReadControl(fifth); m.GetGoodbye().GetReason() != "full" {
		t.Errorf("one more hello: %v, %v", m, err)
	}
	wantClosed(t, fifth)
	eventually(t, "its place is free", func() bool { return held().conns == large })

	// Of connections there are as many as its agent can need.
	for range greetEach - large {
		defer dialControl(t, g, cert).Close()
	}
	eventually(t, "all places are taken", func() bool { return held().conns == greetEach })
	before := full()
	over := dialControl(t, g, cert)
	defer over.Close()
	wantClosed(t, over)
	if n := full(); n != before+1 {
		t.Errorf("refused: %d", n-before)
	}

	// Other agents do not notice, and its own place comes back.
	byHand(t, g, agent2ID, assigned(1, "tcp/other"))
	g.come(t)
	g.hub.greetings.mu.Lock()
	if n := len(g.hub.greetings.by); n != 1 {
		t.Errorf("%d agents are being greeted", n)
	}
	g.hub.greetings.mu.Unlock()
}

// TestGreetingsInAll: there is a bound over all agents, too, and each place comes back once.
func TestGreetingsInAll(t *testing.T) {
	var g greetings
	var places []*greeting
	for i := range 10 {
		p := g.enter(string(rune('a'+i)), 10)
		if p == nil {
			t.Fatalf("place %d of 10", i)
		}
		places = append(places, p)
	}
	if g.enter("z", 10) != nil {
		t.Error("an eleventh of 10")
	}
	places[0].leave()
	places[0].leave()
	if g.enter("z", 10) == nil || g.enter("y", 10) != nil {
		t.Error("a place that was given back twice is not one")
	}
	var claimed int64
	for i := 0; ; i++ {
		p := g.enter(string(rune(1000+i)), 1<<20)
		if !p.claim(MaxControl) {
			break
		}
		places, claimed = append(places, p), claimed+MaxControl
	}
	if claimed != helloAll {
		t.Errorf("hellos of %d bytes at once, want %d", claimed, helloAll)
	}
}
