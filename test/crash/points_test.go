package crash

import (
	"context"
	"fmt"
	"testing"
	"time"
)

// TestKilledAtWrites kills auth before, in the middle of and behind its durable
// writes, one after the other over the same directory.
func TestKilledAtWrites(t *testing.T) {
	c := newCluster(t)
	auth := c.proc["auth"]
	// The first start: directories, keys, the host's id.
	for _, point := range []string{
		"durable.mkdir#1", "durable.mkdir#2", "durable.mkdir#2", "ca.key.sync", "ca.key.link", "ca.key.linked", "store.apply#1", "store.applied#1",
		"durable.write", "durable.sync", "durable.rename", "durable.mkdir#1", "audit.create", "audit.write#1", "audit.write.half#1", "audit.synced#1",
		"audit.write.half#2", "audit.truncate", "audit.rename#1", "store.apply#2",
	} {
		auth.start(point + "=kill")
		c.awaitKill("auth", point)
	}
	auth.start("")
	c.status()
	auth.kill()

	// Under changes: what was acknowledged before each of them is there.
	b := newBook()
	i := 0
	for _, point := range []string{"store.apply", "store.applied", "audit.write", "audit.write.half", "audit.sync", "audit.synced", "audit.rename"} {
		for _, nth := range []int{2, 9} {
			at := fmt.Sprintf("%s#%d", point, nth)
			auth.start(at + "=kill")
			i = c.changesUntilKilled(b, i)
			if t.Failed() {
				t.Fatalf("at %s", at)
			}
		}
	}
	auth.start("")
	c.compareThings(b)
}

// awaitKill waits for a process to be killed at a point of its start.
func (c *cluster) awaitKill(role, point string) {
	c.t.Helper()
	p := c.proc[role]
	for deadline := time.Now().Add(patience); !p.ended(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			c.t.Fatalf("%s was not killed at %s", role, point)
		}
	}
	if !killed(p) {
		c.t.Fatalf("%s at %s: ended by itself", role, point)
	}
}

// changesUntilKilled makes and removes things until auth is killed at a point.
func (c *cluster) changesUntilKilled(b *book, i int) int {
	c.t.Helper()
	admin, done := c.admin()
	defer done()
	const most = 500 // calls that it answers in haste; some points are reached once a second, however many there are
	all := makers(admin)
	deadline := time.Now().Add(patience) // for its start
	for answered := 0; time.Now().Before(deadline); {
		m := all[i%len(all)]
		name := fmt.Sprintf("point-%s-%d", m.kind, i)
		i++
		b.set(m.kind, name, asked)
		if c.attempt(m, m.create, name) != nil {
			if killed(c.proc["auth"]) {
				return i
			}
			rest(context.Background()) // it is starting, or has just been killed
			continue
		}
		b.set(m.kind, name, made)
		if answered++; answered <= most {
			deadline = time.Now().Add(patience)
		} else {
			rest(context.Background())
		}
	}
	c.t.Errorf("auth was not killed")
	c.proc["auth"].kill()
	return i
}

func (c *cluster) attempt(m maker, f func(context.Context, string) error, name string) error {
	err := m.call(f, name)
	if refused(err) && !killed(c.proc["auth"]) {
		c.t.Errorf("%s %s: %v", m.kind, name, err)
	}
	return err
}

// TestHostsKilledAtWrites kills gateway and agent at the writes of their first
// start. Their tokens are for one use, and yet both join.
func TestHostsKilledAtWrites(t *testing.T) {
	c := newCluster(t)
	c.proc["auth"].start("")
	c.configure()
	for _, role := range []string{"gateway", "agent"} {
		p := c.proc[role]
		points := []string{
			"durable.mkdir#1", "durable.write#1", "durable.sync#1", "durable.rename#1", // the keys
			"durable.sync#2", "durable.rename#1", "durable.syncdir#1", // what auth said
			"durable.write#1", "durable.rename#1", // the snapshot
		}
		if role == "agent" {
			points = append(points, "durable.sync#2", "durable.rename#2") // and what it serves
		}
		for _, point := range points {
			p.start(point + "=kill")
			c.awaitKill(role, point)
		}
		p.start("")
	}
	p := newPerson(c, "ann")
	await(t, "ann is logged in", func() bool { return p.try(p.login) == nil })
	await(t, "a session", func() bool { return p.try(p.use) == nil })

	// The agent's spool: the session is not carried without its record.
	b := newBook()
	agent := c.proc["agent"]
	for _, point := range []string{"audit.write#1", "audit.write.half#1", "audit.sync#2", "audit.synced#2", "audit.write.half#3", "audit.write#4"} {
		agent.kill()
		agent.start(point + "=kill")
		await(t, "the agent is killed at "+point, func() bool {
			if p.try(p.use) == nil {
				b.sessions++
			}
			return agent.ended()
		})
	}
	agent.start("")
	await(t, "a session", func() bool { return p.try(p.use) == nil })
	await(t, "the sessions' events have come", func() bool { return len(c.events("app.session.start")) >= b.sessions })
}
