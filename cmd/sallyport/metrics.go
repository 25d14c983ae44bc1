package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/sallyport/sallyport/dataplane/gateway"
)

// meter is one metric: docs/metrics.md has a line for each, and a test holds
// the two together.
type meter struct {
	name   string
	kind   string // "gauge", "counter" or "histogram"
	labels []string
	help   string
}

// meters are all metrics of our own. What a label may say is bounded by the
// configuration, by who is connected with a certificate of the cluster, or by
// words of this program: nothing that a stranger sends is in one.
func meters() []meter {
	none, route := []string(nil), []string{"route"}
	return []meter{
		{"sallyport_info", "gauge", []string{"version", "roles", "go"}, "Always 1."},
		{"sallyport_start_time_seconds", "gauge", none, "When the process started, Unix time."},
		{"sallyport_reload_time_seconds", "gauge", none, "When the configuration was read again the last time, Unix time; absent before."},
		{"sallyport_reload_success", "gauge", none, "1 when that took effect, 0 when it was refused."},
		{"sallyport_reload_needs_restart", "gauge", none, "Fields that have changed and take effect at the next start only."},
		{"sallyport_log_lost_lines_total", "counter", none, "Lines of the log that were lost, since whoever reads it did not; 1 MiB waits for him."},

		{"sallyport_gateway_connections_total", "counter", []string{"outcome"}, "Steps of connections at the public port: accepted, parked, leased, relayed and so on."},
		{"sallyport_gateway_refused_total", "counter", []string{"reason"}, "Connections that were turned away, or ended before they got anywhere."},
		{"sallyport_gateway_relays", "gauge", none, "Relays that run."},
		{"sallyport_gateway_waiting", "gauge", none, "Connections that are not served yet; gateway.limits.waiting bounds them."},
		{"sallyport_gateway_web_connections", "gauge", none, "Connections of the web origin whose client has shown no certificate; gateway.limits.web bounds them."},
		{"sallyport_gateway_bytes_total", "counter", []string{"direction"}, "Bytes of relays that have ended: in from clients, with what the gateway puts before them (an open frame, a PROXY header), out to clients."},
		{"sallyport_gateway_first_byte_seconds", "histogram", none, "From accepting a connection to the first byte of its server or agent."},
		{"sallyport_gateway_connect_seconds", "histogram", none, "From the route to a server's connection, failed tries included."},
		{"sallyport_gateway_lease_wait_seconds", "histogram", none, "From asking for an agent's data connection to having one."},
		{"sallyport_gateway_canary_share", "gauge", none, "Share of new connections that a canary gets; 0 without one. What it counts is in the other metrics, too."},
		{"sallyport_gateway_static_routes", "gauge", none, "Static routes that are configured."},
		{"sallyport_gateway_static_servers", "gauge", none, "Servers of static routes, by their different addresses."},
		{"sallyport_gateway_server_down", "gauge", []string{"server", "reason"}, "1 for each server of static routes to which the last client's connection failed, or whose name is not resolved."},

		{"sallyport_route_connections_total", "counter", []string{"route", "result"}, "Connections by route and what came of them."},
		{"sallyport_route_relays", "gauge", route, "Relays that run."},
		{"sallyport_route_bytes_total", "counter", []string{"route", "direction"}, "Bytes of relays that have ended, as of sallyport_gateway_bytes_total."},

		{"sallyport_loop_delay_seconds", "gauge", []string{"loop"}, "How long the loop took to answer the scrape; everything else on it waits as long. A loop that did not answer within a second shows the time until then."},
		{"sallyport_loop_up", "gauge", []string{"loop"}, "1 when the loop answered within a second."},
		{"sallyport_loop_connections", "gauge", []string{"loop"}, "Connections on the loop that are not served yet, or are being closed."},
		{"sallyport_loop_relays", "gauge", []string{"loop"}, "Relays on the loop."},
		{"sallyport_loop_large_hellos", "gauge", []string{"loop"}, "ClientHellos of more than 16 KiB; gateway.limits.large_hellos bounds them."},
		{"sallyport_loop_io_uring", "gauge", []string{"loop"}, "1 when the loop closes connections by io_uring, many at once (gateway.io_uring)."},
		{"sallyport_loop_io_uring_batches_total", "counter", []string{"loop"}, "How often it has done so."},
		{"sallyport_loop_io_uring_calls_total", "counter", []string{"loop"}, "Connections' ends that were closed so."},
		{"sallyport_loop_io_uring_failed_total", "counter", []string{"loop"}, "Of these, the ones that came to nothing, or had to be closed singly."},

		{"sallyport_tunnel_agents", "gauge", none, "Agents that are connected."},
		{"sallyport_tunnel_half_open", "gauge", none, "Streams whose client has not proved itself yet, and clients that wait for one."},
		{"sallyport_tunnel_waiting", "gauge", none, "Clients that wait for a data connection."},
		{"sallyport_tunnel_events_total", "counter", []string{"event"}, "What has happened to data connections, leases and control connections."},
		{"sallyport_tunnel_parked", "gauge", []string{"agent"}, "Data connections that are ready."},
		{"sallyport_tunnel_pending", "gauge", []string{"agent"}, "Data connections that were asked for and are not there yet."},
		{"sallyport_tunnel_target", "gauge", []string{"agent"}, "Data connections that should be ready."},
		{"sallyport_tunnel_streams", "gauge", []string{"agent"}, "Streams that run."},
		{"sallyport_tunnel_round_trip_seconds", "gauge", []string{"agent"}, "Round trip of the control connection."},

		{"sallyport_store_bytes", "gauge", none, "Size of auth's embedded store: records, 15 minutes of their history, and what is free in it."},
		{"sallyport_store_in_use_bytes", "gauge", none, "Of these, what is not free."},
		{"sallyport_store_quota_bytes", "gauge", none, "What the store may have; auth.etcd.quota_mib is it. A reserve for locks and removals is not in it."},

		{"sallyport_agent_sessions", "gauge", none, "Sessions that run."},
		{"sallyport_agent_streams", "gauge", none, "Streams that are served, strangers included."},
		{"sallyport_agent_resources", "gauge", none, "Resources that auth has assigned."},
		{"sallyport_agent_contact_time_seconds", "gauge", none, "Of when the newest word of auth is, Unix time."},
		{"sallyport_door_refused_total", "counter", []string{"reason"}, "Clients that the door turned away."},
		{"sallyport_audit_spool_bytes", "gauge", none, "Size of the audit spool."},
		{"sallyport_audit_spool_max_bytes", "gauge", none, "What it may be."},
		{"sallyport_audit_spool_unacknowledged", "gauge", none, "Events that auth has not acknowledged."},
		{"sallyport_audit_spool_refusing", "gauge", none, "1 while new sessions are refused because of it."},
	}
}

// loopWait is how long a scrape waits for the loops.
const loopWait = time.Second

// book makes metrics of a node's state when it is asked. It holds no counts of
// its own: those are the gateway's, the hub's and the agent's.
type book struct {
	node   *node
	meters map[string]described
}

type described struct {
	desc  *prometheus.Desc
	value prometheus.ValueType
}

func newBook(n *node) *book {
	b := &book{node: n, meters: map[string]described{}}
	for _, m := range meters() {
		value := prometheus.GaugeValue
		if m.kind == "counter" {
			value = prometheus.CounterValue
		}
		b.meters[m.name] = described{prometheus.NewDesc(m.name, m.help, m.labels, nil), value}
	}
	return b
}

// Describe implements prometheus.Collector.
func (b *book) Describe(out chan<- *prometheus.Desc) {
	for _, m := range b.meters {
		out <- m.desc
	}
}

// Collect implements prometheus.Collector.
func (b *book) Collect(out chan<- prometheus.Metric) {
	p := page{b, out}
	s := b.node.status()
	p.process(s)
	if lines := b.node.lines; lines != nil {
		p.log(lines.Lost())
	}
	if g := b.node.shownGateway.Load(); g != nil {
		p.gateway(g.gateway.Snapshot())
		p.loops(g.gateway.Loops(loopWait))
	}
	if s.Gateway != nil && s.Gateway.Tunnel != nil {
		p.tunnels(s.Gateway)
	}
	if s.Auth != nil && s.Auth.Store != nil {
		p.store(s.Auth.Store)
	}
	if s.Agent != nil {
		p.agent(s.Agent)
	}
}

// page is one scrape.
type page struct {
	*book
	out chan<- prometheus.Metric
}

// put writes one value. The name is in meters, and the labels are as many as there.
func (p page) put(name string, value float64, labels ...string) {
	m := p.meters[name]
	p.out <- prometheus.MustNewConstMetric(m.desc, m.value, value, valid(labels)...)
}

func (p page) counts(name string, values map[string]uint64, labels ...string) {
	for _, k := range sortedKeys(values) {
		p.put(name, float64(values[k]), append(labels[:len(labels):len(labels)], k)...)
	}
}

func (p page) timings(name string, t gateway.Timings) {
	buckets := make(map[float64]uint64, len(t.Buckets))
	for _, b := range t.Buckets {
		buckets[b.Most.Seconds()] = b.Count
	}
	p.out <- prometheus.MustNewConstHistogram(p.meters[name].desc, t.Count, t.Sum.Seconds(), buckets)
}

// valid are label values as the format takes them.
func valid(labels []string) []string {
	for i := range labels {
		labels[i] = strings.ToValidUTF8(labels[i], "\uFFFD")
	}
	return labels
}

func (p page) process(s nodeStatus) {
	p.put("sallyport_info", 1, s.Version, strings.Join(s.Roles, ","), runtime.Version())
	p.put("sallyport_start_time_seconds", unixTime(s.Since))
	if r := s.Reload; r != nil {
		p.put("sallyport_reload_time_seconds", unixTime(r.Time))
		p.put("sallyport_reload_success", truth(r.Problem == ""))
		p.put("sallyport_reload_needs_restart", float64(len(r.NeedsRestart)))
	}
	if s.Gateway != nil {
		share := 0.0
		if s.Canary != nil {
			share = s.Canary.Share
		}
		p.put("sallyport_gateway_canary_share", share)
	}
}

func (p page) log(lost uint64) { p.put("sallyport_log_lost_lines_total", float64(lost)) }

func (p page) store(s *storeStatus) {
	p.put("sallyport_store_bytes", float64(s.Bytes))
	p.put("sallyport_store_in_use_bytes", float64(s.InUse))
	p.put("sallyport_store_quota_bytes", float64(s.Quota))
}

func (p page) gateway(g gateway.Snapshot) {
	steps := map[string]uint64{}
	for o, n := range g.Outcomes {
		if _, refused := g.Refusals[o]; !refused {
			steps[o] = n
		}
	}
	p.counts("sallyport_gateway_connections_total", steps)
	p.counts("sallyport_gateway_refused_total", g.Refusals)
	p.put("sallyport_gateway_relays", float64(g.Relays))
	p.put("sallyport_gateway_waiting", float64(g.Waiting))
	p.put("sallyport_gateway_web_connections", float64(g.Ended))
	p.counts("sallyport_gateway_bytes_total", map[string]uint64{"in": g.BytesIn, "out": g.BytesOut})
	p.timings("sallyport_gateway_first_byte_seconds", g.FirstByte)
	p.timings("sallyport_gateway_connect_seconds", g.Connect)
	p.timings("sallyport_gateway_lease_wait_seconds", g.Lease)
	p.put("sallyport_gateway_static_routes", float64(g.Static))
	p.put("sallyport_gateway_static_servers", float64(g.Servers))
	for _, s := range g.Down {
		if !s.Failed.IsZero() {
			p.put("sallyport_gateway_server_down", 1, s.Address, "unreachable")
		}
		if s.Unresolved {
			p.put("sallyport_gateway_server_down", 1, s.Address, "unresolved")
		}
	}
	for _, r := range g.Routes {
		p.counts("sallyport_route_connections_total", r.Results, r.Name)
		p.put("sallyport_route_relays", float64(r.Relays), r.Name)
		p.counts("sallyport_route_bytes_total", map[string]uint64{"in": r.BytesIn, "out": r.BytesOut}, r.Name)
	}
}

func (p page) loops(all []gateway.LoopSnapshot) {
	for i, l := range all {
		loop := strconv.Itoa(i)
		p.put("sallyport_loop_delay_seconds", l.Delay.Seconds(), loop)
		p.put("sallyport_loop_up", truth(l.Answered), loop)
		if l.Answered {
			p.put("sallyport_loop_connections", float64(l.Connections), loop)
			p.put("sallyport_loop_relays", float64(l.Relays), loop)
			p.put("sallyport_loop_large_hellos", float64(l.LargeHellos), loop)
		}
		p.put("sallyport_loop_io_uring", truth(l.Batching.On), loop)
		p.put("sallyport_loop_io_uring_batches_total", float64(l.Batching.Made), loop)
		p.put("sallyport_loop_io_uring_calls_total", float64(l.Batching.Calls), loop)
		p.put("sallyport_loop_io_uring_failed_total", float64(l.Batching.Failed), loop)
	}
}

func (p page) tunnels(g *gatewayStatus) {
	p.put("sallyport_tunnel_agents", float64(len(byAgent(g.Tunnels))))
	p.put("sallyport_tunnel_half_open", float64(g.HalfOpen))
	p.put("sallyport_tunnel_waiting", float64(g.LeasesWaiting))
	p.counts("sallyport_tunnel_events_total", g.Tunnel)
	for _, t := range byAgent(g.Tunnels) {
		p.put("sallyport_tunnel_parked", float64(t.Parked), t.Agent)
		p.put("sallyport_tunnel_pending", float64(t.Pending), t.Agent)
		p.put("sallyport_tunnel_target", float64(t.Target), t.Agent)
		p.put("sallyport_tunnel_streams", float64(t.Streams), t.Agent)
		p.put("sallyport_tunnel_round_trip_seconds", (time.Duration(t.RTTMicros) * time.Microsecond).Seconds(), t.Agent)
	}
}

// byAgent adds up an agent's tunnels: while one takes over from another there are two,
// which share their streams.
func byAgent(tunnels []tunnelStatus) []tunnelStatus {
	var out []tunnelStatus
	at := make(map[string]int, len(tunnels))
	for _, t := range tunnels {
		i, there := at[t.Agent]
		if !there {
			at[t.Agent], out = len(out), append(out, t)
			continue
		}
		sum := &out[i]
		sum.Parked, sum.Pending, sum.Target, sum.Streams = sum.Parked+t.Parked, sum.Pending+t.Pending, sum.Target+t.Target, max(sum.Streams, t.Streams)
		sum.RTTMicros = max(sum.RTTMicros, t.RTTMicros)
	}
	return out
}

func (p page) agent(a *agentStatus) {
	p.put("sallyport_agent_sessions", float64(a.Sessions))
	p.put("sallyport_agent_streams", float64(a.Streams))
	p.put("sallyport_agent_resources", float64(len(a.Resources)))
	if !a.Contact.IsZero() {
		p.put("sallyport_agent_contact_time_seconds", unixTime(a.Contact))
	}
	p.counts("sallyport_door_refused_total", a.Refused)
	p.put("sallyport_audit_spool_bytes", float64(a.Spool.Bytes))
	p.put("sallyport_audit_spool_max_bytes", float64(a.Spool.MaxBytes))
	p.put("sallyport_audit_spool_unacknowledged", float64(a.Spool.Sequence-a.Spool.Acknowledged))
	p.put("sallyport_audit_spool_refusing", truth(a.Spool.Refusing))
}

func unixTime(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// scrapesAtOnce bounds what everybody who may scrape can take.
const scrapesAtOnce = 4

// metricsHandler serves our metrics and those of process and runtime.
func metricsHandler(n *node) http.Handler {
	reg := prometheus.NewRegistry()
	reg.MustRegister(newBook(n), collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return promhttp.HandlerFor(reg, promhttp.HandlerOpts{
		MaxRequestsInFlight: scrapesAtOnce, Timeout: statusTimeout, ErrorLog: slog.NewLogLogger(n.log.Handler(), slog.LevelWarn),
	})
}

// runMetrics serves the metrics and the health, and nothing else, on metrics.listen.
func (n *node) runMetrics(ctx context.Context, l net.Listener) error {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", metricsHandler(n))
	mux.HandleFunc("GET /healthz", n.serveHealth)
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: statusTimeout, WriteTimeout: 2 * statusTimeout, IdleTimeout: time.Minute}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("metrics.listen: %w", err)
	}
	return nil
}
