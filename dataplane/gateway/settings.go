//go:build unix

package gateway

import (
	"context"
	"fmt"
	"net/netip"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/sallyport/sallyport/alpn"
)

// Settings are what a running gateway can be given anew; the fields are Config's.
type Settings struct {
	Static         []StaticRoute
	Silent         *SilentRoute
	TrustedProxies []netip.Prefix
	Idle           time.Duration
	Bounds         Bounds
}

// Difference is what a reload came to: numbers of static routes. A route is the
// same one for as long as its first name and its protocols are.
type Difference struct {
	Added, Changed, Removed, Kept int
}

// settings are what Settings became. Each loop has a pointer of its own, which
// is changed on the loop's thread only. What it points to is read-only.
type settings struct {
	table   *alpn.Table
	static  []*upstream   // by alpn.Route.Index; behind them the silent clients', if there is one
	silent  time.Duration // after which a silent client goes there; 0 for never
	trusted []netip.Prefix
	idle    time.Duration
	bounds  Bounds

	routes  map[string]*route  // by label
	servers map[string]*server // by address
}

// route is a static route as it is served.
type route struct {
	StaticRoute
	upstream *upstream
}

// label names a route for people and counters. No two routes of a table have
// the same: what shares a name differs in its protocols.
func (s StaticRoute) label() string {
	if s.silent > 0 {
		return silentLabel
	}
	if len(s.Match.SNI) == 0 {
		return ""
	}
	name := strings.ToLower(s.Match.SNI[0])
	for i, id := range s.Match.ALPN {
		if !plainID(id) {
			id = strconv.Quote(id)
		}
		name += [...]string{" ", ","}[min(i, 1)] + id
	}
	return name
}

// plainID says that an id needs no quotes to stand in a list.
func plainID(id string) bool {
	for _, c := range []byte(id) {
		if c <= ' ' || c >= 0x7f || c == ',' || c == '"' {
			return false
		}
	}
	return true
}

// settle makes settings of s. What old has and s has too is taken over: servers
// with the addresses of their names, upstreams with their turns, counters. old
// is not changed.
func (g *Gateway) settle(s Settings, old *settings) (*settings, Difference, error) {
	var d Difference
	matches := make([]alpn.Match, len(s.Static))
	for i, r := range s.Static {
		matches[i] = r.Match
	}
	table, err := alpn.NewTable(g.cfg.Cluster, matches)
	if err != nil {
		return nil, d, err
	}
	all, err := s.all()
	if err != nil {
		return nil, d, err
	}
	n := &settings{
		table: table, static: make([]*upstream, 0, len(all)), trusted: s.TrustedProxies, idle: s.Idle, bounds: s.Bounds.withDefaults(),
		routes: make(map[string]*route, len(all)), servers: map[string]*server{},
	}
	if s.Silent != nil {
		n.silent = s.Silent.After
	}
	for i, r := range all {
		label := r.label()
		var was *route
		if old != nil {
			was = old.routes[label]
		}
		now, err := n.route(r, was, old)
		if err != nil {
			return nil, d, fmt.Errorf("route %d: %w", i, err)
		}
		switch {
		case was == nil:
			d.Added++
		case now == was:
			d.Kept++
		default:
			d.Changed++
		}
		n.routes[label], n.static = now, append(n.static, now.upstream)
	}
	if old != nil {
		d.Removed = len(old.routes) - d.Kept - d.Changed
	}
	return n, d, nil
}

// route is was when nothing has changed.
func (n *settings) route(r StaticRoute, was *route, old *settings) (*route, error) {
	var acct *account
	if was != nil {
		acct = was.upstream.acct
		if reflect.DeepEqual(was.StaticRoute, r) {
			for i, a := range r.Upstreams {
				n.servers[a] = was.upstream.servers[i]
			}
			return was, nil
		}
	} else {
		acct = &account{name: r.label()}
	}
	u, err := n.upstream(r.Upstreams, r.Proxy, old)
	if err != nil {
		return nil, err
	}
	u.direct, u.acct = r.Direct, acct
	return &route{StaticRoute: r, upstream: u}, nil
}

// upstream takes servers that are there already.
func (n *settings) upstream(addresses []string, proxy bool, old *settings) (*upstream, error) {
	if len(addresses) == 0 {
		return nil, fmt.Errorf("no upstream address")
	}
	u := &upstream{proxy: proxy}
	for _, a := range addresses {
		s := n.servers[a]
		if s == nil && old != nil {
			s = old.servers[a]
		}
		if s == nil {
			var err error
			if s, err = newServer(a); err != nil {
				return nil, err
			}
		}
		n.servers[a] = s
		u.servers = append(u.servers, s)
	}
	return u, nil
}

// Reload replaces the settings, as a whole or not at all. It touches only what
// has changed: connections that are routed already go on as they were, whether
// their route is still there or not, and routes that stay keep their turns and
// counters. New bounds hold from the next connection on. It returns when every
// loop has the new settings. Names of new upstreams are looked up first, so that
// no client meets one without an address; ctx bounds that.
func (g *Gateway) Reload(ctx context.Context, s Settings) (Difference, error) {
	g.reloading.Lock()
	defer g.reloading.Unlock()
	if err := g.ctx.Err(); err != nil {
		return Difference{}, fmt.Errorf("gateway is closed: %w", err)
	}
	next, d, err := g.settle(s, g.current.Load())
	if err != nil {
		return Difference{}, fmt.Errorf("gateway: %w", err)
	}
	var fresh []*server
	for _, s := range next.servers {
		if s.host != "" && s.targets.Load() == nil {
			fresh = append(fresh, s)
		}
	}
	g.resolveAll(ctx, fresh)
	g.replace(next)
	g.crowd.bound(next.bounds, g.reserves(next))
	g.each(func(w *lane) { w.settings = next })
	select {
	case g.renamed <- struct{}{}:
	default: // the resolver will look anyway
	}
	return d, nil
}
