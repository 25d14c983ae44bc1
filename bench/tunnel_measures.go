package main

import (
	"context"
	"slices"
	"strings"

	"github.com/sallyport/sallyport/bench/flow"
)

// tunnelBars are ratios to the peer's figures.
var tunnelBars = bars{
	"tunnel-up-4/ssh cpu": 0.70, "tunnel-down-4/ssh cpu": 0.70, "tunnel-up-4/frp cpu": 1.0, "tunnel-down-4/frp cpu": 1.0,
	"tunnel-up-4/relay gateway_cpu": 1.10, "tunnel-down-4/relay gateway_cpu": 1.10,
	"tunnel-first/ssh p50": 1.0, "tunnel-ping-1/ssh p50": 0.90,
	"tunnel-ping-beside/ssh p90": 0.30, "tunnel-ping-beside/frp p90": 0.70,
}

// besideRate is the stream beside which the pings are measured: 200 MB/s.
const besideRate = 200e6

// tunnelTasks are the relays', of two processes.
func tunnelTasks(z sizes) []task {
	connect := connectTask(z)
	connect.job.Conns = 32
	connect.load = "32 at a time: connect, TLS with a client certificate, the server's first byte, close"
	first := connectTask(z)
	first.name, first.title, first.job.Conns = "first", "First byte", 1
	first.load = "one after the other: connect, TLS with a client certificate, the server's first byte, close"
	beside := pingTask(4, 500, z)
	beside.name, beside.title, beside.job.Beside = "ping-beside", "Ping-pong of 64 bytes beside a stream of 200 MB/s", besideRate
	tasks := []task{
		bulkTask(flow.Up, 4, z), bulkTask(flow.Down, 4, z), bulkTask(flow.Up, 64, z), bulkTask(flow.Down, 64, z),
		connect, first, pingTask(1, 0, z), beside, idleTask(z.tunnelled, z),
	}
	if z.quick {
		tasks = []task{tasks[0], first, tasks[6], beside}
	}
	for i := range tasks {
		tasks[i].title = "Tunnel: " + lowerFirst(tasks[i].title)
		if tasks[i].name == "idle" {
			for j := range tasks[i].quantities {
				tasks[i].quantities[j].Bar = 0 // those are of a relay
			}
			continue
		}
		unit := tasks[i].quantities[slices.IndexFunc(tasks[i].quantities, func(q Quantity) bool { return q.Key == "cpu" })].Unit
		tasks[i].quantities = append(tasks[i].quantities,
			Quantity{Key: "gateway_cpu", Title: "of it the gateway", Unit: unit}, Quantity{Key: "agent_cpu", Title: "of it the agent", Unit: unit})
	}
	return tasks
}

// tunnelMeasures hold gateway and agent together against tunnels of others, and
// the gateway alone against itself as a relay.
func (t *tunnels) tunnelMeasures(z sizes) []comparison {
	var out []comparison
	for _, task := range tunnelTasks(z) {
		peers := t.others()
		if task.job.Kind == flow.Up || task.job.Kind == flow.Down {
			peers = append(peers, t.plain())
		}
		for _, peer := range peers {
			if z.quick && !slices.Contains(quickTunnels, peer.name) {
				continue
			}
			c := t.compare("tunnel-", task, t.ours(task.fresh), peer, z)
			if peer.name == "relay" {
				c.Quantities = slices.DeleteFunc(slices.Clone(c.Quantities), func(q Quantity) bool { return q.Key != "gateway_cpu" && !q.Note })
			}
			out = append(out, c)
		}
	}
	return out
}

// quickTunnels are those of a quick run.
var quickTunnels = []string{"ssh", "frp", "relay"}

func openTunnels(ctx context.Context, r *rig) (opened, error) {
	t, err := openTunnelWorld(ctx, r.dir, r.bin)
	if err != nil {
		return opened{}, err
	}
	return opened{measures: t.tunnelMeasures(r.sizes), peers: t.peers(), close: t.close}, nil
}

// lowerFirst is for a title that comes after another word.
func lowerFirst(s string) string { return strings.ToLower(s[:1]) + s[1:] }
