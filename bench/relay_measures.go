package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/sallyport/sallyport/bench/flow"
)

// bars are ratios to peers, by measure and quantity (DESIGN, section 12).
type bars map[string]float64

// relayBars hold for the median's interval: its lower end must be below.
var relayBars = bars{
	"relay-up-4/haproxy-tuned cpu": 1.05, "relay-up-64/haproxy-tuned cpu": 1.05, "relay-down-4/haproxy-tuned cpu": 1.05, "relay-down-64/haproxy-tuned cpu": 1.05,
	"relay-up-4/haproxy-default cpu": 0.70, "relay-down-4/haproxy-default cpu": 0.70, "relay-up-64/haproxy-default cpu": 0.30, "relay-down-64/haproxy-default cpu": 0.30,
	"relay-up-4/nginx cpu": 0.35, "relay-up-64/nginx cpu": 0.35, "relay-down-4/nginx cpu": 0.35, "relay-down-64/nginx cpu": 0.35,
	"relay-up-4/go cpu": 1.0, "relay-up-64/go cpu": 1.0, "relay-down-4/go cpu": 1.0, "relay-down-64/go cpu": 1.0,
	"relay-connect/haproxy-default cpu": 1.0, "relay-connect/haproxy-tuned cpu": 1.0, "relay-connect/nginx cpu": 1.10,
	"relay-ping-1/haproxy-default p50": 0.60, "relay-ping-1/haproxy-tuned p50": 0.60,
	"relay-idle/haproxy-default rss": 0.20, "relay-idle/haproxy-tuned rss": 0.20,
}

// idleRelayBytes and idleRelayFDs are the bars of an idle relay itself.
const (
	idleRelayBytes = 600
	idleRelayFDs   = 2
	noPipe         = 0.01 // a bar of 0 is none
)

// task is what both sides of a comparison do.
type task struct {
	name, title, load string
	job               flow.Job
	fresh             bool // new processes for each sample: memory once used is not given back
	quantities        []Quantity
	sample            func(flow.Result) Sample
}

// clientSources: a relay that bounds what one source may take sees 64 of them.
const clientSources = 64

func bulkTask(kind flow.Kind, streams int, z sizes) task {
	way := map[flow.Kind]string{flow.Up: "client to server", flow.Down: "server to client"}[kind]
	return task{
		name: fmt.Sprintf("%s-%d", kind, streams), title: fmt.Sprintf("%d streams, %s", streams, way),
		load:       fmt.Sprintf("%d streams for %s, counted where they arrive", streams, z.window),
		job:        flow.Job{Kind: kind, Conns: streams},
		quantities: []Quantity{{Key: "cpu", Title: "CPU per GB", Unit: " s"}, {Key: "rate", Title: "throughput", Unit: " GB/s", More: true}},
		sample: func(r flow.Result) Sample {
			return Sample{"rate": r.Units / 1e9 / r.Seconds}.withCPU(r, 1e9, 1)
		},
	}
}

func connectTask(z sizes) task {
	return task{
		name: "connect", title: "Routed connections",
		load: fmt.Sprintf("64 at a time for %s: connect, hello, the server's first byte, close", z.window),
		job:  flow.Job{Kind: flow.Connect, Conns: 64},
		quantities: []Quantity{
			{Key: "cpu", Title: "CPU per connection", Unit: "µs"}, {Key: "rate", Title: "connections", Unit: "/s", More: true},
			{Key: "p50", Title: "until the first byte, p50", Unit: "µs"}, {Key: "p99", Title: "p99", Unit: "µs"},
			{Key: "failed", Title: "cut before the first byte", Unit: "/s"},
		},
		sample: func(r flow.Result) Sample {
			return Sample{"rate": r.Units / r.Seconds, "failed": float64(r.Failed) / r.Seconds}.withLatencies(r).withCPU(r, 1, 1e6)
		},
	}
}

// pingTask is one connection with one ping at a time when rate is 0.
func pingTask(conns int, rate float64, z sizes) task {
	t := task{
		name: fmt.Sprintf("ping-%d", conns), title: "Ping-pong of 64 bytes, one connection",
		load: fmt.Sprintf("one after the other for %s", z.window),
		job:  flow.Job{Kind: flow.Ping, Conns: conns, Rate: rate},
		quantities: []Quantity{
			{Key: "p50", Title: "p50", Unit: "µs"}, {Key: "p90", Title: "p90", Unit: "µs"}, {Key: "p99", Title: "p99", Unit: "µs"},
			{Key: "cpu", Title: "CPU per round trip", Unit: "µs"},
		},
		sample: func(r flow.Result) Sample { return Sample{}.withLatencies(r).withCPU(r, 1, 1e6) },
	}
	if rate > 0 {
		t.title = fmt.Sprintf("Ping-pong of 64 bytes, %d connections, %.0f/s", conns, rate)
		t.load = fmt.Sprintf("%.0f per second over all connections for %s, timed from when each should have been sent", rate, z.window)
		t.quantities = append(t.quantities, Quantity{Key: "missed", Title: "not sent in time", Unit: "/s"})
		plain := t.sample
		t.sample = func(r flow.Result) Sample {
			s := plain(r)
			s["missed"] = float64(r.Missed) / r.Seconds
			return s
		}
	}
	return t
}

func idleTask(conns int, z sizes) task {
	return task{
		name: "idle", title: fmt.Sprintf("Idle relayed connections, %d", conns), fresh: true,
		load: fmt.Sprintf("%d connections that have said their hello and nothing since; new processes for each sample", conns),
		job:  flow.Job{Kind: flow.Idle, Conns: conns},
		quantities: []Quantity{
			{Key: "rss", Title: "resident memory per connection", Unit: " B", Bar: idleRelayBytes},
			{Key: "fds", Title: "descriptors per connection", Bar: idleRelayFDs + noPipe},
			{Key: "pipes", Title: "pipes' ends per connection", Bar: noPipe},
		},
		sample: func(r flow.Result) Sample {
			s := Sample{"rss": 0, "fds": 0, "pipes": 0}
			for _, f := range r.Grown {
				s["rss"] += f.RSS / r.Units
				s["fds"] += f.FDs / r.Units
				s["pipes"] += f.Pipes / r.Units
			}
			return s
		},
	}
}

// withCPU adds what all watched processes used per so many units, and each by
// its name where there are several. scale turns seconds into the quantity's unit.
func (s Sample) withCPU(r flow.Result, per, scale float64) Sample {
	if r.Units == 0 || len(r.CPU) == 0 {
		return s
	}
	for name, d := range r.CPU {
		v := d.Seconds() * scale * per / r.Units
		s["cpu"] += v
		if len(r.CPU) > 1 {
			s[name+"_cpu"] = v
		}
	}
	return s
}

func (s Sample) withLatencies(r flow.Result) Sample {
	s["p50"], s["p90"], s["p99"] = r.Latencies.P50, r.Latencies.P90, r.Latencies.P99
	return s
}

// quickPeers are those of a quick run.
var quickPeers = []string{"haproxy-default", "haproxy-tuned", "nginx", "go"}

// relayMeasures are those of the gateway without identity.
func (w *relayWorld) relayMeasures(z sizes) []comparison {
	tasks := []task{
		bulkTask(flow.Up, 4, z), bulkTask(flow.Down, 4, z), bulkTask(flow.Up, 64, z), bulkTask(flow.Down, 64, z),
		connectTask(z), pingTask(1, 0, z), pingTask(64, z.pings, z), idleTask(z.relays, z),
	}
	if z.quick {
		tasks = []task{tasks[0], connectTask(z), pingTask(1, 0, z), idleTask(z.relays, z)}
	}
	var out []comparison
	for _, t := range tasks {
		peers := w.relayPeers()
		if t.name != "idle" { // nothing holds nothing
			peers = append([]subject{w.direct()}, peers...)
		}
		for _, peer := range peers {
			if z.quick && !slices.Contains(quickPeers, peer.name) {
				continue
			}
			c := w.compare("relay-", t, w.ours(), peer, z)
			c.Floor = peer.name == "direct"
			out = append(out, c)
		}
	}
	if z.quick {
		return out
	}
	return append(append(out, w.crowdMeasures(z)...), w.batchMeasure(z))
}

// batchMeasure holds the gateway against itself: what gateway.io_uring is worth.
// It decides what "auto" means.
func (w *relayWorld) batchMeasure(z sizes) comparison {
	t := connectTask(z)
	t.name, t.title = "connect-batched", "Routed connections, closed by io_uring"
	on := w.oursWith(subject{name: "batched", title: "Sallyport's gateway, gateway.io_uring: on"}, "  io_uring: on\n")
	off := w.oursWith(subject{name: "single", title: "the same, gateway.io_uring: off"}, "  io_uring: off\n")
	return w.compare("relay-", t, on, off, z)
}

// crowdPeer is the one whose pairs' other side stands for us in the picture.
const crowdPeer = "haproxy-tuned"

// crowdMeasures are what many connections do to few: from 1 to 9,000.
func (w *relayWorld) crowdMeasures(z sizes) []comparison {
	var out []comparison
	most := place{files: files()}.relays()
	for _, n := range []int{1, 100, 1000, 9000} {
		t := pingTask(min(n, most-100), z.crowdPings, z)
		t.name = fmt.Sprintf("crowd-%d", n)
		for _, peer := range w.relayPeers() {
			if peer.name == crowdPeer || peer.name == "nginx" {
				out = append(out, w.compare("relay-", t, w.ours(), peer, z))
			}
		}
	}
	t := connectTask(z)
	t.name, t.title = "connect-held", "Routed connections while 9,000 idle ones are held"
	held := w.ours()
	held.title += fmt.Sprintf(", holding %d", min(9000, most-200))
	empty := w.ours()
	empty.name, empty.title = "empty", "the same, holding none"
	c := w.compare("relay-", t, held, empty, z)
	c.holdA(min(9000, most-200))
	return append(out, c)
}

// compare makes a measure of a task.
func (w *relayWorld) compare(prefix string, t task, a, b subject, z sizes) comparison {
	c := comparison{Measure: Measure{Name: prefix + t.name + "/" + b.name, Title: t.title, A: a.title, B: b.title, Load: t.load}}
	for _, q := range t.quantities {
		q.Ratio = cmp.Or(relayBars[c.Name+" "+q.Key], tunnelBars[c.Name+" "+q.Key])
		c.Quantities = append(c.Quantities, q)
	}
	if !t.fresh {
		c.Quantities = append(c.Quantities, Quantity{Key: "others", Title: "of the relay's core went to others", Unit: " %", Note: true})
	}
	if c.Missing = cmp.Or(a.missing, b.missing); c.Missing != "" {
		return c
	}
	job := t.job
	job.Count, job.Sources, job.Warm, job.Window = w.to.Count, clientSources, z.warm, z.window
	if w.loose {
		job.Sources = 0 // what is elsewhere cannot answer to the loopback
	}
	for _, most := range []int{a.most, b.most} {
		if most > 0 && job.Conns > most {
			job.Conns = most
			c.Load += fmt.Sprintf(" (%d here, on both sides: the peer carries no more)", most)
		}
	}
	sideA, sideB := &contender{world: w, subject: a, task: t, job: job}, &contender{world: w, subject: b, task: t, job: job}
	c.a, c.b = sideA.take, sideB.take
	c.holdA = func(n int) { sideA.job.Held = n }
	if !t.fresh {
		c.open = func(ctx context.Context) (func(), error) { return openBoth(ctx, sideA, sideB) }
	}
	return c
}

// contender is one side of a comparison of relays.
type contender struct {
	world   *relayWorld
	subject subject
	task    task
	job     flow.Job
	running *running
}

func openBoth(ctx context.Context, a, b *contender) (func(), error) {
	stop := func() { a.close(); b.close() }
	for _, c := range []*contender{a, b} {
		if err := c.open(ctx); err != nil {
			stop()
			return nil, fmt.Errorf("%s: %w", c.subject.name, err)
		}
	}
	return stop, nil
}

func (c *contender) open(ctx context.Context) (err error) {
	if c.running, err = c.subject.start(ctx); err != nil {
		return err
	}
	return c.rest()
}

func (c *contender) close() {
	c.running.stop()
	c.running = nil
}

// rest keeps a subject that spins from taking the other side's core.
func (c *contender) rest() error {
	if !c.subject.spins {
		return nil
	}
	return c.running.signal(syscall.SIGSTOP)
}

func (c *contender) wake() error {
	if !c.subject.spins {
		return nil
	}
	return c.running.signal(syscall.SIGCONT)
}

// take is one sample.
func (c *contender) take(ctx context.Context) (s Sample, err error) {
	if c.task.fresh {
		if err := c.open(ctx); err != nil {
			return nil, err
		}
		defer c.close()
	}
	if err := c.wake(); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.rest()) }()
	r, err := c.world.traffic(ctx, c.running, c.job)
	if err != nil {
		return nil, err
	}
	s = c.task.sample(r)
	if !c.task.fresh {
		s["others"] = 100 * r.Others
	}
	return s, nil
}

// sampleWait is for a sample beside its window: connections to open and close.
const sampleWait = 2 * time.Minute

// traffic has a job done by a process of its own.
func (w *relayWorld) traffic(ctx context.Context, r *running, j flow.Job) (res flow.Result, err error) {
	ctx, cancel := context.WithTimeout(ctx, sampleWait+j.Warm+j.Window)
	defer cancel()
	j.To, j.Hello, j.Names, j.TLS = r.to, r.hello, r.names, r.tls
	pids, err := r.watched()
	if err != nil {
		return res, err
	}
	b, err := json.Marshal(order{Job: j, PIDs: pids, Core: w.cores.relay})
	if err != nil {
		return res, err
	}
	role := w.role(roleTraffic)
	cmd := exec.CommandContext(ctx, role.Path, role.Args[1:]...)
	var out, says bytes.Buffer
	cmd.SysProcAttr, cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = role.SysProcAttr, role.Env, bytes.NewReader(b), &out, &says
	if err := w.on(w.cores.traffic, cmd.Start); err != nil {
		return res, err
	}
	if err := cmd.Wait(); err != nil {
		for _, p := range r.process {
			select {
			case <-p.done:
				return res, fmt.Errorf("%s ended: %s", p.name, p.tail())
			default:
			}
		}
		return res, fmt.Errorf("traffic: %w: %s", err, strings.TrimSpace(says.String()))
	}
	return res, json.Unmarshal(out.Bytes(), &res)
}
