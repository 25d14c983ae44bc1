package soak

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

var (
	duration = flag.Duration("soak", 5*time.Second, "how long the load lasts")
	workers  = flag.Int("soak-workers", 48, "connections at any time, beside those that stay")
)

const (
	// staying connections are open from before the load until after it.
	staying = 100

	// pipeEndsKept is what the loops may keep for reuse: 16 pipes each.
	pipeEndsKept = 32

	// memoryRoom is for the caches of the runtime, whose size the moment decides.
	memoryRoom = 16 << 10 // KiB
)

// load is one gateway with servers behind it, and what happened.
type load struct {
	gateway  string
	hellos   map[string][]byte
	verified atomic.Int64 // bytes that came back as they were sent

	mu     sync.Mutex
	uses   map[string]int
	faults []string
}

const faultsKept = 20

// TestSoak loads the gateway, and wants every byte as it was sent, every reset
// as a reset, and the process in the end as it was at the start.
func TestSoak(t *testing.T) {
	flapping := startBackend(t, greet)
	routes := map[string][]string{
		"echo":  {startBackend(t, echo).address},
		"slow":  {startBackend(t, slow).address},
		"reset": {startBackend(t, resetSoon).address},
		"stall": {startBackend(t, stall).address},
		"down":  {deadAddress(t)},
		"flap":  {flapping.address, startBackend(t, greet).address},
	}
	p := startGateway(t, routes)
	g := &load{gateway: p.address, hellos: map[string][]byte{"nobody": hello("nobody")}, uses: map[string]int{}}
	for name := range routes {
		g.hellos[name] = hello(name)
	}

	// Once for the caches, which are then as large as they get.
	g.run(max(*duration/10, time.Second), flapping)
	before := p.settled()
	t.Logf("at the start: %v", before)

	stayed := g.stay(t)
	t0 := time.Now()
	g.run(*duration, flapping)
	took := time.Since(t0)
	for i, c := range stayed {
		if err := c.SetDeadline(time.Now().Add(clientPatience)); err != nil {
			t.Fatal(err)
		}
		if err := pings(c, 1); err != nil {
			t.Errorf("connection %d, open all the time: %v", i, err)
		}
		c.Close()
	}

	g.report(t, took)
	after := p.settled()
	t.Logf("at the end:   %v", after)
	if after.sockets != before.sockets || after.others != before.others {
		t.Errorf("descriptors: %v; before: %v", after, before)
	}
	if most := pipeEndsKept * runtime.NumCPU(); after.pipes > most {
		t.Errorf("%d pipe ends; at most %d may be kept", after.pipes, most)
	}
	if after.memory > before.memory*5/4+memoryRoom {
		t.Errorf("memory: %d KiB; before: %d KiB", after.memory, before.memory)
	}
}

// stay opens connections that say something now, and next when all is over.
func (g *load) stay(t *testing.T) []*net.TCPConn {
	t.Helper()
	var all []*net.TCPConn
	for range staying {
		c, err := g.open("echo")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		if err := pings(c, 1); err != nil {
			t.Fatal(err)
		}
		all = append(all, c)
	}
	return all
}

// run is the load, for a time.
func (g *load) run(d time.Duration, flapping *backend) {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	var tasks sync.WaitGroup
	tasks.Go(func() { g.flap(ctx, flapping) })
	for range *workers {
		tasks.Go(func() {
			for ctx.Err() == nil {
				g.use(pick())
			}
		})
	}
	tasks.Wait()
}

func pick() client {
	all := clients()
	total := 0
	for _, c := range all {
		total += c.weight
	}
	n := rand.IntN(total)
	for _, c := range all {
		if n -= c.weight; n < 0 {
			return c
		}
	}
	panic("soak: weights")
}

func (g *load) use(c client) {
	err := c.use(g)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.uses[c.name]++
	if err == nil {
		return
	}
	g.uses[c.name+", faults"]++
	if len(g.faults) < faultsKept {
		g.faults = append(g.faults, fmt.Sprintf("%s: %v", c.name, err))
	}
}

// flap takes a server away and brings it back.
func (g *load) flap(ctx context.Context, b *backend) {
	for ctx.Err() == nil {
		wait(ctx, time.Duration(rand.Int64N(int64(300*time.Millisecond))))
		b.silence()
		wait(ctx, time.Duration(rand.Int64N(int64(300*time.Millisecond))))
		for err := b.listen(); err != nil; err = b.listen() {
			wait(ctx, 10*time.Millisecond) // a connection has the port for its own
		}
	}
}

func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

func (g *load) report(t *testing.T, took time.Duration) {
	t.Helper()
	total := 0
	for _, n := range g.uses {
		total += n
	}
	t.Logf("%d connections in %v; %d MiB there and back, verified", total, took.Round(time.Millisecond), g.verified.Load()>>20)
	for _, c := range clients() {
		t.Logf("  %-28s %8d", c.name, g.uses[c.name])
		if g.uses[c.name] == 0 && *duration >= time.Minute {
			t.Errorf("nobody was: %s", c.name)
		}
	}
	for _, f := range g.faults {
		t.Error(f)
	}
}

// settled waits until the process has no connection any more, or for as long as
// anything may take, and then until it neither takes nor gives back. Quiet alone
// is also a process that has not come to close what has ended.
func (g *gatewayProcess) settled() belongings {
	deadline := time.Now().Add(clientPatience)
	g.await("without connections", func() bool { return g.belongings().connections == 0 || time.Now().After(deadline) })
	last := g.belongings()
	quiet := time.Now()
	g.await("quiet", func() bool {
		b := g.belongings()
		if b.sockets != last.sockets || b.pipes != last.pipes || b.others != last.others {
			last, quiet = b, time.Now()
		}
		last.memory = b.memory
		return time.Since(quiet) > 3*time.Second
	})
	return last
}
