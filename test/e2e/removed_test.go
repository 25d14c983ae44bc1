package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// TestHostRemoved: an agent that is removed while somebody works on it is gone at
// once, does not come back by the certificate that it still has, and leaves its
// name to the next; a gateway that is removed carries nothing any more.
func TestHostRemoved(t *testing.T) {
	const atOnce = 30 * time.Second // on a busy machine: else all would go on until the certificates end
	p := newPerson(t)
	c := startCluster(t, p, func(*cluster) string { return "  ssh: {enabled: true}\n" }, func(c *cluster) string { return c.gateway })
	c.user(p, "ann")
	c.online(p, "node")
	node := nodeName(t, p)
	old := c.host(p, "agent")

	session := startSession(t, p, node)
	p.refused(1, []string{"is online", "nodes rm --force " + old}, "sallyctl", "--data-dir="+c.path("auth"), "nodes", "rm", old)
	out := c.admin(p, "nodes", "rm", "--force", old)
	if !strings.Contains(out, "agent "+old) || !strings.Contains(out, "Free names: node/"+node) {
		t.Errorf("said %q", out)
	}
	if took := session.end(t); took > atOnce {
		t.Errorf("the session went on for %s", took)
	}
	await(t, "the gateway has ended its tunnel", atOnce, func() bool { return len(c.tunnels(p).Tunnels) == 0 })
	p.refused(1, []string{"ERROR"}, "sally", "ssh", login(t)+"@"+node, "true")
	if out := c.admin(p, "nodes", "ls", "--all", "-f", "json"); strings.Contains(out, old) {
		t.Errorf("still listed: %s", out)
	}

	// It has its keys and its certificate, and starts anew with them.
	c.proc["agent"].stop()
	turned := c.tunnels(p).Outcomes["handshake_failed"]
	c.up("agent")
	await(t, "the gateway has turned it away", upWait, func() bool {
		s := c.tunnels(p)
		if len(s.Tunnels) > 0 {
			t.Fatal("it has a tunnel again")
		}
		return s.Outcomes["handshake_failed"] > turned
	})
	await(t, "the old agent is refused", upWait, func() bool {
		return strings.Contains(c.admin(p, "audit", "search", "--event=access.denied", "--limit=1000"), "agent:"+old)
	})
	c.write("agent2.yaml", fmt.Sprintf("version: 1\ndata_dir: agent2\nroles: [agent]\nagent:\n  gateways: [%q]\n  join: {token_file: %q, ca_pin: %q}\n  ssh: {enabled: true}\n", c.gateway, c.token(p, "agent"), c.pin))
	c.up("agent2")
	await(t, "another agent has its name", upWait, func() bool {
		return p.try("", "sally", "ssh", login(t)+"@"+node, "true").code == 0
	})
	if id := c.host(p, "agent"); id == old {
		t.Error("the agent that was removed is back")
	}

	gateway := c.host(p, "gateway")
	c.admin(p, "nodes", "rm", "--force", gateway)
	await(t, "no agent keeps a tunnel to a gateway that was removed", atOnce, func() bool { return len(c.tunnels(p).Tunnels) == 0 })
	file := c.write("password", clusterPassword+"\n")
	if r := p.try("", "sally", "login", "--force", "--proxy="+c.gateway, "--ca-pin="+c.pin, "--user=ann", "--password-file="+file); r.code == 0 {
		t.Error("a gateway that was removed lets people in")
	}
	if out := c.admin(p, "audit", "search", "--event=instance.remove"); strings.Count(out, "\n") != 2 || !strings.Contains(out, gateway) || !strings.Contains(out, old) {
		t.Errorf("recorded %q", out)
	}
}

// TestAgentLocked: an agent that is locked gets no client any more, whatever it makes
// of the lock itself, and serves again without it. Gateways went on leading clients
// to it, also those whom another agent of its group could have served.
func TestAgentLocked(t *testing.T) {
	p := newPerson(t)
	c := startCluster(t, p, func(*cluster) string { return "  ssh: {enabled: true}\n" }, func(c *cluster) string { return c.gateway })
	c.user(p, "ann")
	c.online(p, "node")
	node, id := nodeName(t, p), c.host(p, "agent")

	session := startSession(t, p, node)
	c.admin(p, "create", c.write("lock.yaml", "kind: lock\nversion: v2\nmetadata: {name: stop}\nspec: {target: {server_id: "+id+"}}\n"))
	session.end(t)
	await(t, "the gateway has ended its tunnel", upWait, func() bool { return len(c.tunnels(p).Tunnels) == 0 })
	turned := c.tunnels(p).Outcomes["handshake_failed"]
	await(t, "the gateway has turned it away", upWait, func() bool { return c.tunnels(p).Outcomes["handshake_failed"] > turned })
	if s := c.tunnels(p); len(s.Tunnels) != 0 {
		t.Errorf("it has a tunnel again: %v", s.Tunnels)
	}
	p.refused(1, []string{"ERROR"}, "sally", "ssh", login(t)+"@"+node, "true")

	c.admin(p, "rm", "lock/stop")
	await(t, "it serves again", upWait, func() bool { return p.try("", "sally", "ssh", login(t)+"@"+node, "true").code == 0 })
}

// tunnelsStatus is what the gateway says of agents' tunnels.
type tunnelsStatus struct {
	Tunnels []struct {
		Agent string `json:"agent"`
	} `json:"tunnels"`
	Outcomes map[string]uint64 `json:"outcomes"`
}

func (c *cluster) tunnels(p *person) tunnelsStatus {
	c.t.Helper()
	var s struct {
		Gateway tunnelsStatus `json:"gateway"`
	}
	if err := json.Unmarshal([]byte(p.run("sallyport", "status", "-c", c.path("gateway.yaml"), "-f", "json")), &s); err != nil {
		c.t.Fatal(err)
	}
	return s.Gateway
}

// host is the id of the only host of a kind.
func (c *cluster) host(p *person, kind string) string {
	c.t.Helper()
	var all []struct {
		ID   string `json:"id"`
		Kind string `json:"kind"`
	}
	out := c.admin(p, "nodes", "ls", "--all", "-f", "json")
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		c.t.Fatal(err)
	}
	var ids []string
	for _, h := range all {
		if h.Kind == kind {
			ids = append(ids, h.ID)
		}
	}
	if len(ids) != 1 {
		c.t.Fatalf("not one %s: %s", kind, out)
	}
	return ids[0]
}

// openSession is a shell on a node that waits.
type openSession struct {
	cmd  *exec.Cmd
	over chan struct{}
}

func startSession(t *testing.T, p *person, node string) *openSession {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cmd := p.command(ctx, "sally", "ssh", login(t)+"@"+node, "echo up; sleep 600")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s := &openSession{cmd: cmd, over: make(chan struct{})}
	line, err := bufio.NewReader(out).ReadString('\n')
	go func() {
		_ = cmd.Wait() // how it ends is not what is asked
		close(s.over)
	}()
	t.Cleanup(func() {
		cancel()
		<-s.over
	})
	if err != nil || line != "up\n" {
		t.Fatalf("the session says %q: %v", line, err)
	}
	return s
}

// end waits for the end, and says how long that took.
func (s *openSession) end(t *testing.T) time.Duration {
	t.Helper()
	began := time.Now()
	select {
	case <-s.over:
	case <-time.After(upWait):
		t.Error("the session goes on")
	}
	return time.Since(began)
}
