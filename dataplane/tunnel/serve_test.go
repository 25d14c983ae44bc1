package tunnel

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/relay"
	tunnelv1 "github.com/sallyport/sallyport/wire/sallyport/tunnel/v1"
)

func TestUpsertAndDelete(t *testing.T) {
	loops, err := relay.New(1)
	check0(t, err)
	t.Cleanup(func() { loops[0].Close() })
	g := startGateway(t, newAuthority(t), loops, nil)
	a := byHand(t, g, agentID, assigned(5, "tcp/one", "node/web", "tcp/BAD"))
	g.come(t)
	h := g.hub
	if !h.Live("tcp", "one") || !h.Live("node", "web") || !h.Live("node", agentID) || h.Live("tcp", "BAD") || h.Live("tcp", agentID) {
		t.Error("names of the first assignment")
	}
	a.say(&tunnelv1.Control{Message: &tunnelv1.Control_Delete{Delete: &tunnelv1.Delete{Names: []string{"node/web", "odd"}}}})
	eventually(t, "delete", func() bool { return !h.Live("node", "web") && h.Live("tcp", "one") })
	upsert := func(b []byte) {
		a.say(&tunnelv1.Control{Message: &tunnelv1.Control_Upsert{Upsert: &tunnelv1.Upsert{Assignment: b}}})
	}
	upsert(assigned(6, "tcp/two"))
	if p := g.come(t); !p.Up || string(p.Assignment) != "6 tcp/two" {
		t.Errorf("presence after upsert: %+v", p)
	}
	if h.Live("tcp", "one") || h.Live("node", agentID) || !h.Live("tcp", "two") {
		t.Error("names of the second assignment")
	}
	for i, bad := range [][]byte{assigned(5, "tcp/one"), nil, []byte("garbage"), assigned(7, "tcp/one", "until=1")} {
		upsert(bad)
		eventually(t, "refusal", func() bool { return h.Status().Counters["upsert_refused"] == uint64(i+1) })
		if h.Live("tcp", "one") || !h.Live("tcp", "two") {
			t.Errorf("%q changed what is routed", bad)
		}
	}
	// What a later version says is skipped.
	unknown := protowire.AppendBytes(protowire.AppendTag(nil, 999, protowire.BytesType), []byte("news"))
	_, err = a.conn.Write(append([]byte{0, 0, 0, byte(len(unknown))}, unknown...))
	check0(t, err)
	upsert(assigned(8, "tcp/three"))
	g.come(t)
	a.close()
	if p := g.come(t); p.Up || p.AgentID != agentID || h.Live("tcp", "three") {
		t.Errorf("presence at the end: %+v", p)
	}
	old := dialControl(t, g, g.ca.issue(t, sallyport.KindAgent, agentID))
	defer old.Close()
	hello := &tunnelv1.Hello{AgentId: agentID, Assignment: assigned(5, "tcp/one")}
	check0(t, putControl(old, &tunnelv1.Control{Message: &tunnelv1.Control_Hello{Hello: hello}}, patience))
	if m, err := ReadControl(old); m.GetGoodbye().GetReason() != "assignment" {
		t.Errorf("an older assignment after a reconnect: %v, %v", m, err)
	}
}

// TestResourcesCountedOnce: a node was counted twice in the status, by its name
// and by its agent's id.
func TestResourcesCountedOnce(t *testing.T) {
	loops, err := relay.New(1)
	check0(t, err)
	t.Cleanup(func() { loops[0].Close() })
	g := startGateway(t, newAuthority(t), loops, nil)
	a := byHand(t, g, agentID, assigned(1, "tcp/one", "node/web"))
	g.come(t)
	count := func() int { return g.hub.Status().Tunnels[0].Resources }
	if n := count(); n != 2 {
		t.Errorf("a node and a TCP service are %d resources", n)
	}
	a.say(&tunnelv1.Control{Message: &tunnelv1.Control_Delete{Delete: &tunnelv1.Delete{Names: []string{"node/web"}}}})
	eventually(t, "delete", func() bool { return !g.hub.Live("node", "web") })
	if n := count(); n != 1 {
		t.Errorf("a TCP service and a node that was deleted are %d resources", n)
	}
	for i, c := range []struct {
		names []string
		want  int
	}{{[]string{"tcp/one", "node/" + agentID}, 2}, {[]string{"node/web"}, 1}, {[]string{"tcp/one", "db/one"}, 2}, {nil, 0}} {
		a.say(&tunnelv1.Control{Message: &tunnelv1.Control_Upsert{Upsert: &tunnelv1.Upsert{Assignment: assigned(uint64(i+2), c.names...)}}})
		g.come(t)
		if n := count(); n != c.want {
			t.Errorf("%q are %d resources, want %d", c.names, n, c.want)
		}
	}
}

func TestExpiredAssignment(t *testing.T) {
	loops, err := relay.New(1)
	check0(t, err)
	t.Cleanup(func() { loops[0].Close() })
	start := time.Now()
	var later atomic.Int64
	g := startGateway(t, newAuthority(t), loops, func(c *HubConfig) {
		c.Now = func() time.Time { return start.Add(time.Duration(later.Load())) }
	})
	until := fmt.Sprintf("until=%d", start.Add(time.Hour).Unix())
	byHand(t, g, agentID, assigned(1, "tcp/one", until))
	g.come(t)
	if !g.hub.Live("tcp", "one") {
		t.Fatal("not live")
	}
	later.Store(int64(2 * time.Hour))
	eventually(t, "expiry", func() bool { return !g.hub.Live("tcp", "one") })
}

// TestA20_ControlEndsWithCertificate: a control connection does not outlive
// the certificate that it was made with.
func TestA20_ControlEndsWithCertificate(t *testing.T) {
	loops, err := relay.New(1)
	check0(t, err)
	t.Cleanup(func() { loops[0].Close() })
	var expired atomic.Bool
	ca := newAuthority(t)
	cert := ca.issue(t, sallyport.KindAgent, agentID)
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	check0(t, err)
	g := startGateway(t, ca, loops, func(c *HubConfig) {
		c.Now = func() time.Time {
			if expired.Load() {
				return leaf.NotAfter.Add(time.Hour)
			}
			return leaf.NotAfter.Add(-time.Hour)
		}
	})
	a := byHand(t, g, agentID, assigned(1, "tcp/echo"))
	g.come(t)
	parked := a.park(g)
	expired.Store(true)
	if err := receive(t, g.ended); !errors.Is(err, errExpired) {
		t.Errorf("Serve: %v", err)
	}
	wantClosed(t, parked)
	if g.hub.Live("tcp", "echo") {
		t.Error("still live")
	}
}

func TestEvict(t *testing.T) {
	loops, err := relay.New(1)
	check0(t, err)
	t.Cleanup(func() { loops[0].Close() })
	g := startGateway(t, newAuthority(t), loops, nil)
	a := byHand(t, g, agentID, assigned(1, "tcp/echo"))
	g.come(t)
	parked := a.park(g)
	if !g.hub.Evict(agentID) || g.hub.Live("tcp", "echo") || g.hub.Evict(agent2ID) {
		t.Error("evict")
	}
	if err := receive(t, g.ended); !errors.Is(err, errEvicted) {
		t.Errorf("Serve: %v", err)
	}
	wantClosed(t, parked)
}

func TestPgCancel(t *testing.T) {
	loops, err := relay.New(1)
	check0(t, err)
	t.Cleanup(func() { loops[0].Close() })
	clock := time.Now()
	g := startGateway(t, newAuthority(t), loops, func(c *HubConfig) {
		c.Bounds.CancelRate = 3
		c.Now = func() time.Time { return clock }
	})
	a := byHand(t, g, agentID, append(assigned(1, "db/orders"), []byte(" tag=513")...))
	g.come(t)
	if g.hub.Cancel(512<<16|7, 1) {
		t.Error("a cancel with an unknown tag was passed on")
	}
	for range 3 {
		if !g.hub.Cancel(513<<16|7, 0x01020304) {
			t.Error("cancel refused")
		}
	}
	if g.hub.Cancel(513<<16|7, 0x01020304) {
		t.Error("a fourth cancel in one second was passed on")
	}
	for {
		m := receive(t, a.heard)
		if m == nil {
			t.Fatal("no cancel came")
		}
		if c := m.GetPgCancel(); c != nil {
			if c.ProcessId != 513<<16|7 || !bytes.Equal(c.SecretKey, []byte{1, 2, 3, 4}) {
				t.Errorf("cancel: %v", c)
			}
			break
		}
	}
	a.close()
	g.come(t)
	if g.hub.Cancel(513<<16|7, 1) {
		t.Error("a cancel was passed to an agent that has gone")
	}
}

// TestControlRefused: who is not the agent that he says gets no tunnel.
func TestControlRefused(t *testing.T) {
	loops, err := relay.New(1)
	check0(t, err)
	t.Cleanup(func() { loops[0].Close() })
	g := startGateway(t, newAuthority(t), loops, func(c *HubConfig) { c.Bounds.HelloWait = patience })
	hello := func(id string, assignment []byte) *tunnelv1.Control {
		return &tunnelv1.Control{Message: &tunnelv1.Control_Hello{Hello: &tunnelv1.Hello{AgentId: id, Assignment: assignment}}}
	}
	ping := &tunnelv1.Control{Message: &tunnelv1.Control_Ping{Ping: &tunnelv1.Ping{Sequence: 1}}}
	for _, c := range []struct {
		name string
		kind sallyport.IdentityKind
		say  *tunnelv1.Control
		told string // agents of the cluster are told a word
	}{
		{"another agent's id", sallyport.KindAgent, hello(agent2ID, assigned(1, "tcp/echo")), "protocol"},
		{"a user's certificate", sallyport.KindUser, hello(agentID, assigned(1, "tcp/echo")), ""},
		{"a gateway's certificate", sallyport.KindGateway, hello(agentID, assigned(1, "tcp/echo")), ""},
		{"no assignment", sallyport.KindAgent, hello(agentID, nil), "assignment"},
		{"an expired assignment", sallyport.KindAgent, hello(agentID, assigned(1, "tcp/echo", "until=1")), "assignment"},
		{"no hello", sallyport.KindAgent, ping, "protocol"},
	} {
		conn := dialControl(t, g, g.ca.issue(t, c.kind, agentID))
		check0(t, conn.SetDeadline(time.Now().Add(patience)))
		check0(t, putControl(conn, c.say, patience))
		if m, err := ReadControl(conn); c.told != "" && (err != nil || m.GetGoodbye().GetReason() != c.told) {
			t.Errorf("%s: told %v, %v; want %q", c.name, m, err, c.told)
		}
		wantClosed(t, conn)
		conn.Close()
		if err := receive(t, g.ended); err == nil {
			t.Errorf("%s: no error", c.name)
		}
	}
	if s := g.hub.Status(); len(s.Tunnels) != 0 || g.hub.Live("tcp", "echo") {
		t.Errorf("a tunnel was made: %+v", s)
	}
}
