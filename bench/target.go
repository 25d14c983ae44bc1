package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"time"

	"github.com/sallyport/sallyport/bench/flow"
)

// target is a gateway of the user's own, which runs already.
type target struct {
	addr    string // resolved
	name    string // what a hello asks for, when the servers are the user's too
	servers string // the first of five ports for the harness's servers; "" without
	pid     int    // of the gateway, when it runs on this machine; else 0
}

func newTarget(o options) (target, error) {
	host, _, err := net.SplitHostPort(o.target)
	if err != nil {
		return target{}, fmt.Errorf("-target %q: %w", o.target, err)
	}
	addr, err := net.ResolveTCPAddr("tcp", o.target)
	if err != nil {
		return target{}, fmt.Errorf("-target %q: %w", o.target, err)
	}
	at := addr.AddrPort()
	t := target{addr: netip.AddrPortFrom(at.Addr().Unmap(), at.Port()).String(), name: o.name, servers: o.servers, pid: o.pid}
	if t.name == "" {
		t.name = host
	}
	switch _, err := netip.ParseAddr(t.name); {
	case t.servers != "" && o.name != "":
		return t, errors.New("-name and -servers exclude each other: the harness's servers have names of their own")
	case t.servers == "" && err == nil:
		return t, errors.New("-name: a gateway routes by names; say one that it knows, or use -servers")
	}
	return t, nil
}

// consecutive gives the servers five ports, from that of the address on.
func consecutive(first string) (flow.Backends, error) {
	host, port, err := net.SplitHostPort(first)
	if err != nil {
		return flow.Backends{}, fmt.Errorf("-servers %q: %w", first, err)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 || n > 65535-4 {
		return flow.Backends{}, fmt.Errorf("-servers %q: five ports are needed, from this one on", first)
	}
	at := func(i uint64) string { return net.JoinHostPort(host, strconv.FormatUint(n+i, 10)) }
	return flow.Backends{Sink: at(0), Echo: at(1), One: at(2), Source: at(3), Count: at(4)}, nil
}

// measureTarget measures a gateway of the user's own and prints what it found.
// Nothing of it is kept among the results.
func measureTarget(ctx context.Context, o options, out io.Writer) (err error) {
	t, err := newTarget(o)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "sallybench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	w := &relayWorld{dir: dir, loose: true}
	if w.self, err = os.Executable(); err != nil {
		return err
	}
	if t.servers != "" {
		if w.to, err = consecutive(t.servers); err != nil {
			return err
		}
		if err := w.startServers(ctx); err != nil {
			return err
		}
		defer w.close()
		fmt.Fprint(out, t.routes(w.to))
	}
	run := &Run{Started: time.Now().UTC(), Command: os.Args[1:], Programs: true, Machine: machine()}
	run.Commit, run.Dirty = commit(ctx)
	run.Settings = []Setting{raiseFiles()}
	z := sizesFor(o)
	for _, m := range w.targetMeasures(t, z) {
		m.pairs, m.within = z.pairs, z.within
		fmt.Fprintln(os.Stderr, m.Name)
		if err := m.take(ctx); err != nil {
			return err
		}
		run.Measures = append(run.Measures, m.Measure)
	}
	run.Ended = time.Now().UTC()
	var b bytes.Buffer
	writeMachine(&b, run)
	writeMeasures(&b, run)
	_, err = out.Write(b.Bytes())
	return err
}

// routes says what the gateway must lead where.
func (t target) routes(to flow.Backends) string {
	var b bytes.Buffer
	b.WriteString("The gateway must pass these names through, TLS unopened:\n\n")
	for _, r := range to.Routes() {
		fmt.Fprintf(&b, "    %s -> %s\n", r.Name, r.Address)
	}
	b.WriteString("\n")
	return b.String()
}

// subject is the target as a side of comparisons.
func (t target) subject() subject {
	return subject{name: "target", title: "the gateway at " + t.addr, start: func(context.Context) (*running, error) {
		r := &running{hello: true, to: flow.Backends{Sink: t.addr, Echo: t.addr, One: t.addr, Source: t.addr}}
		if t.servers == "" {
			r.names = flow.Backends{One: t.name}
		}
		if t.pid != 0 {
			r.pids = map[string]int{"gateway": t.pid}
		}
		return r, nil
	}}
}

// targetMeasures are those that need nothing of the gateway but its port. With
// the harness's servers behind it there is more to measure, and a floor.
func (w *relayWorld) targetMeasures(t target, z sizes) []comparison {
	one := connectTask(z)
	one.name, one.title, one.job.Conns = "first", "First byte", 1
	one.load = fmt.Sprintf("one after the other for %s: connect, hello, the server's first byte, close", z.window)
	tasks := []task{one, connectTask(z)}
	if t.servers != "" {
		tasks = append(tasks, bulkTask(flow.Up, 4, z), bulkTask(flow.Down, 4, z), bulkTask(flow.Up, 64, z), bulkTask(flow.Down, 64, z), pingTask(1, 0, z), pingTask(64, z.pings, z))
	}
	var out []comparison
	for _, task := range tasks {
		c := w.compare("target-", task, t.subject(), w.direct(), z)
		c.Floor = true
		if t.servers == "" {
			c.B, c.b = "", nil
		}
		c.Quantities = withoutUnknown(c.Quantities, t.pid)
		out = append(out, c)
	}
	return out
}

// withoutUnknown leaves out what can only be read of a process of this machine,
// and what is about a core that is the relay's alone.
func withoutUnknown(all []Quantity, pid int) []Quantity {
	var out []Quantity
	for _, q := range all {
		if q.Key != "others" && (q.Key != "cpu" || pid != 0) {
			out = append(out, q)
		}
	}
	return out
}
