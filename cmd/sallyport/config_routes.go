package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sallyport/sallyport/alpn"
	"github.com/sallyport/sallyport/dataplane/gateway"
	"github.com/sallyport/sallyport/dataplane/tunnel"
)

// routesAlone says that this process is a gateway without auth: it serves static
// routes, and knows no cluster.
func (c *config) routesAlone() bool {
	return c.has(roleGateway) && !c.has(roleAuth) && c.Gateway.Auth == ""
}

// matches is what a route takes, whichever way it is written.
func (r *routeConfig) matches() alpn.Match {
	if len(r.Names) > 0 {
		return alpn.Match{SNI: r.Names, ALPN: r.ALPN}
	}
	return alpn.Match{SNI: r.Match.SNI, ALPN: r.Match.ALPN}
}

// staticRoutes are the routes as the gateway takes them.
func (g *gatewayConfig) staticRoutes() []gateway.StaticRoute {
	out := make([]gateway.StaticRoute, len(g.Routes))
	for i := range g.Routes {
		r := &g.Routes[i]
		out[i] = gateway.StaticRoute{Match: r.matches(), Upstreams: r.To, Proxy: r.SendProxy != "", Direct: r.Postgres == postgresDirect}
		if r.Upstream != "" {
			u := g.Upstreams[r.Upstream]
			out[i].Upstreams, out[i].Proxy, out[i].Direct = u.Servers, u.SendProxy != "", u.Postgres == postgresDirect
		}
	}
	return out
}

// routes finds what is wrong with single routes, and then with all of them as one table.
func (k *checker) routes(g *gatewayConfig) {
	before := len(k.found)
	matches := make([]alpn.Match, len(g.Routes))
	for i := range g.Routes {
		k.route(fmt.Sprintf("gateway.routes[%d]", i), &g.Routes[i], g.Upstreams)
		matches[i] = g.Routes[i].matches()
	}
	if len(k.found) == before {
		k.table(g, matches)
	}
}

func (k *checker) route(where string, r *routeConfig, upstreams map[string]upstream) {
	inMatch := len(r.Match.SNI) > 0 || len(r.Match.ALPN) > 0
	switch {
	case inMatch && len(r.Names) > 0:
		k.add(where+".match", "names and match say the same; write one of them")
	case inMatch && len(r.ALPN) > 0:
		k.add(where+".alpn", "the route's names are in match, so its protocol ids belong there too: match.alpn")
	case len(r.Match.ALPN) > 0 && len(r.Match.SNI) == 0:
		k.add(where+".match.sni", "at least one name is needed")
	case len(r.Names) == 0 && !inMatch:
		k.add(where+".names", "at least one name is needed; \"*\" is every name that nothing else has")
	}
	switch _, known := upstreams[r.Upstream]; {
	case r.Upstream == "" && len(r.To) == 0:
		k.add(where+".to", "at least one server is needed, or an upstream")
	case r.Upstream != "" && len(r.To) > 0:
		k.add(where+".upstream", "to and upstream exclude each other")
	case r.Upstream != "" && r.SendProxy != "":
		k.add(where+".send_proxy", "belongs to the upstream: gateway.upstreams.%s.send_proxy", r.Upstream)
	case r.Upstream != "" && r.Postgres != "":
		k.add(where+".postgres", "belongs to the upstream: gateway.upstreams.%s.postgres", r.Upstream)
	case r.Upstream != "" && !known:
		k.add(where+".upstream", "no upstream %q%s", r.Upstream, didYouMean(r.Upstream, upstreams))
	}
	switch r.Mode {
	case "", "passthrough":
	case "terminate-tcp", "terminate-http":
		k.add(where+".mode", "this version does not serve %s, only passthrough", r.Mode)
	default:
		k.add(where+".mode", "%q is none of passthrough", r.Mode)
	}
	k.servers(where+".to", r.To)
	k.sendProxy(where, r.SendProxy)
	k.postgres(where, r.Postgres)
}

// The bounds of silent.after. The default is more than what a hello needs that was
// lost once on the way and sent again, and less than people wait.
const (
	silentLeast   = 100 * time.Millisecond
	silentDefault = 2 * time.Second
)

// silent finds what is wrong with the place of silent clients.
func (k *checker) silent(g *gatewayConfig) {
	const where = "gateway.silent"
	s := &g.Silent
	if len(s.To) == 0 {
		if s.After != nil || s.SendProxy != "" {
			k.add(where+".to", "at least one server is needed")
		}
		return
	}
	if after, most := g.silentAfter(), g.stage(); after < silentLeast || after > most {
		k.add(where+".after", "%s; from %s to %s, which is gateway.limits.handshake", after, silentLeast, most)
	}
	k.servers(where+".to", s.To)
	k.sendProxy(where, s.SendProxy)
}

// silentRoute is the place of silent clients as the gateway takes it.
func (g *gatewayConfig) silentRoute() *gateway.SilentRoute {
	if len(g.Silent.To) == 0 {
		return nil
	}
	return &gateway.SilentRoute{After: g.silentAfter(), Upstreams: g.Silent.To, Proxy: g.Silent.SendProxy != ""}
}

func (g *gatewayConfig) silentAfter() time.Duration {
	if g.Silent.After == nil {
		return min(silentDefault, g.stage())
	}
	return time.Duration(*g.Silent.After)
}

// stage is the time of a step.
func (g *gatewayConfig) stage() time.Duration { return g.Limits.stage() }

func (l *limitsConfig) stage() time.Duration {
	if l.Handshake == nil {
		return gateway.DefaultStage
	}
	return time.Duration(*l.Handshake)
}

// table finds names that are none, that are the cluster's, or that two routes claim.
func (k *checker) table(g *gatewayConfig, matches []alpn.Match) {
	_, err := alpn.NewTable(k.cluster, matches)
	var claims alpn.MatchErrors
	if !errors.As(err, &claims) {
		return // what is wrong with the cluster's name is said elsewhere
	}
	for _, c := range claims {
		names, ids := "names", "alpn"
		if len(g.Routes[c.Route].Names) == 0 {
			names, ids = "match.sni", "match.alpn"
		}
		field := names
		if c.ALPN {
			field = ids
		}
		k.add(fmt.Sprintf("gateway.routes[%d].%s[%d]", c.Route, field, c.Name), "%s", c.Fact)
	}
}

func (k *checker) upstreams(g *gatewayConfig) {
	for _, name := range sortedKeys(g.Upstreams) {
		u, where := g.Upstreams[name], "gateway.upstreams."+name
		if len(u.Servers) == 0 {
			k.add(where+".servers", "at least one is needed")
		}
		switch u.Policy {
		case "", "round_robin":
		case "least_connections", "power_of_two", "source_hash":
			k.add(where+".policy", "this version does not serve %s, only round_robin", u.Policy)
		default:
			k.add(where+".policy", "%q is none of round_robin", u.Policy)
		}
		k.servers(where+".servers", u.Servers)
		k.sendProxy(where, u.SendProxy)
		k.postgres(where, u.Postgres)
	}
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func (k *checker) sendProxy(where, version string) {
	switch version {
	case "", "v2":
	case "v1":
		k.add(where+".send_proxy", "this version sends v2 only")
	default:
		k.oneOf(where+".send_proxy", version, "v2")
	}
}

// What servers get of a PostgreSQL client that has asked for TLS.
const (
	postgresRequest = "request"
	postgresDirect  = "direct"
)

func (k *checker) postgres(where, how string) {
	if how != "" {
		k.oneOf(where+".postgres", how, postgresRequest, postgresDirect)
	}
}

func (k *checker) servers(where string, list []string) {
	for i, a := range list {
		k.server(fmt.Sprintf("%s[%d]", where, i), a)
	}
}

// maxSocketPath is what a Unix socket's address has room for (unix(7)).
const maxSocketPath = 107

// server is an address to connect to: it has a host, and a port that is not 0.
func (k *checker) server(where, a string) {
	if path, ok := strings.CutPrefix(a, "unix:"); ok {
		if !strings.HasPrefix(path, "/") || len(path) > maxSocketPath || strings.ContainsRune(path, 0) {
			k.add(where, "%q is not unix: and an absolute path of at most %d bytes", a, maxSocketPath)
		}
		return
	}
	host, port, err := net.SplitHostPort(a)
	if err != nil || host == "" {
		k.add(where, "%q is not host:port", a)
		return
	}
	if !isHost(host) {
		k.add(where, "%q: %q is neither an IP address nor a host name", a, host)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		k.add(where, "%q has no port from 1 to 65535", a)
	}
}

// isHost: what ends in a number is an address, or a slip of the pen in one.
func isHost(host string) bool {
	if _, err := netip.ParseAddr(host); err == nil {
		return true
	}
	name, ok := alpn.NormalName(strings.TrimSuffix(host, "."))
	last := name[strings.LastIndexByte(name, '.')+1:]
	return ok && strings.Trim(last, "0123456789") != ""
}

// limitRange is what a limit may be.
type limitRange struct {
	name        string
	value       *int64 // nil for the default; nanoseconds, when it is a time
	least, most int64
	time        bool
}

const (
	manyLimit    = 1_000_000             // more than descriptors of a process
	agentHolds   = tunnel.DefaultMaxPool // parked connections per gateway: an agent dials no more, whatever it is asked for
	longestLimit = 100 * 365 * 24 * time.Hour
)

func (l *limitsConfig) ranges() []limitRange {
	count := func(name string, v *int, least, most int) limitRange {
		return limitRange{name, wide(v), int64(least), int64(most), false}
	}
	span := func(name string, v *duration, least, most time.Duration) limitRange {
		return limitRange{name, wide(v), int64(least), int64(most), true}
	}
	return []limitRange{
		span("handshake", l.Handshake, time.Second, 5*time.Minute),
		span("connect", l.Connect, 100*time.Millisecond, time.Minute),
		span("idle", l.Idle, 10*time.Second, longestLimit),
		count("waiting_per_source", l.WaitingPerSource, 1, manyLimit),
		count("waiting", l.Waiting, 16, manyLimit),
		count("rate_per_source", l.RatePerSource, 1, manyLimit),
		count("large_hellos", l.LargeHellos, 1, 1<<16),
		count("web_per_source", l.WebPerSource, 1, manyLimit),
		count("web", l.Web, 16, manyLimit),
		count("half_open_per_source", l.HalfOpenPerSource, 1, manyLimit),
		count("half_open_per_agent", l.HalfOpenPerAgent, 4, manyLimit),
		count("half_open", l.HalfOpen, 16, manyLimit),
		count("stream_rate", l.StreamsPerSource, 1, manyLimit),
		count("parked_min", l.ParkedMin, 1, agentHolds),
		count("parked_per_agent", l.ParkedPerAgent, max(1, given(l.ParkedMin)), agentHolds),
		count("parked", l.Parked, 16, manyLimit),
		span("parked_for", l.ParkedFor, 30*time.Second, time.Hour),
		count("carried", l.Carried, 1, manyLimit),
		span("lease_wait", l.LeaseWait, 10*time.Millisecond, min(time.Minute, l.stage())),
		count("agents", l.Agents, 1, manyLimit),
		count("resources_per_agent", l.ResourcesPerAgent, 1, manyLimit),
	}
}

// wide is a number that may not be there.
func wide[T int | duration](v *T) *int64 {
	if v == nil {
		return nil
	}
	n := int64(*v)
	return &n
}

// given is a field's value, 0 when it is not written down.
func given[T int | duration](v *T) T {
	if v == nil {
		return 0
	}
	return *v
}

func (k *checker) limits(l *limitsConfig) {
	for _, r := range l.ranges() {
		if r.value == nil || r.least <= *r.value && *r.value <= r.most {
			continue
		}
		show := func(v int64) string {
			if r.time {
				return time.Duration(v).String()
			}
			return strconv.FormatInt(v, 10)
		}
		if r.most == int64(longestLimit) {
			k.add("gateway.limits."+r.name, "%s; %s or more", show(*r.value), show(r.least))
			continue
		}
		k.add("gateway.limits."+r.name, "%s; from %s to %s", show(*r.value), show(r.least), show(r.most))
	}
}

// What one address may take where there are static routes alone: nobody is to be
// kept from locking out agents, and behind one address there may be an office or
// another load balancer.
const (
	routesAloneWaiting = 1024
	routesAloneRate    = 1000
)

// bounds are the limits as the gateway takes them.
func (c *config) bounds() gateway.Bounds {
	l := &c.Gateway.Limits
	b := gateway.Bounds{
		Stage: time.Duration(given(l.Handshake)), Connect: time.Duration(given(l.Connect)),
		WaitingSource: given(l.WaitingPerSource), WaitingGateway: given(l.Waiting), SourceRate: given(l.RatePerSource), LargeHellos: given(l.LargeHellos),
		EndedSource: given(l.WebPerSource), EndedGateway: given(l.Web),
	}
	if c.routesAlone() {
		if b.WaitingSource == 0 {
			b.WaitingSource = routesAloneWaiting
		}
		if b.SourceRate == 0 {
			b.SourceRate = routesAloneRate
		}
	}
	return b
}

// tunnelBounds are the limits as the tunnels take them.
func (c *config) tunnelBounds() tunnel.Bounds {
	l := &c.Gateway.Limits
	return tunnel.Bounds{
		PoolFloor: given(l.ParkedMin), PoolCeiling: given(l.ParkedPerAgent), PoolGateway: given(l.Parked), ParkedFor: time.Duration(given(l.ParkedFor)), Carried: given(l.Carried),
		HalfOpenSource: given(l.HalfOpenPerSource), HalfOpenAgent: given(l.HalfOpenPerAgent), HalfOpenGateway: given(l.HalfOpen), SourceRate: given(l.StreamsPerSource),
		LeaseWait: time.Duration(given(l.LeaseWait)), Tunnels: given(l.Agents), Resources: given(l.ResourcesPerAgent),
	}
}

// settings are what a running gateway takes from a configuration.
func (c *config) settings() (gateway.Settings, error) {
	trusted, err := networks(c.Gateway.ProxyProtocol.Trusted)
	return gateway.Settings{
		Static: c.Gateway.staticRoutes(), Silent: c.Gateway.silentRoute(), TrustedProxies: trusted, Idle: time.Duration(given(c.Gateway.Limits.Idle)), Bounds: c.bounds(),
	}, err
}
