//go:build unix

package gateway

import (
	"crypto/rand"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/alpn"
	"github.com/sallyport/sallyport/dataplane/tunnel"
)

// dispatch sends a connection whose hello has been read on its way.
func (c *conn) dispatch(r alpn.Route) {
	if !c.shed && c.elsewhere(r) {
		return
	}
	c.routed, c.acct = r.Class, c.classes.of(r)
	if r.Class == alpn.Static {
		c.acct = c.static[r.Index].acct
	}
	if c.shed {
		c.turnedAway()
		return
	}
	if !c.afterPostgres(r) {
		c.refuseRoute(alpn.NoApplicationProtocol)
		return
	}
	switch r.Class {
	case alpn.Refuse:
		c.refuseRoute(r.Alert)
	case alpn.Resource:
		c.kind, c.name = r.Kind, string(r.Name)
		_, _ = rand.Read(c.id[:]) // crypto/rand never fails
		c.lease()
	case alpn.Auth, alpn.Join:
		c.toUpstream(c.auth, alpn.NoApplicationProtocol)
	case alpn.Static:
		c.route = uint32(r.Index) + 1
		c.toUpstream(c.static[r.Index], alpn.UnrecognizedName)
	default:
		c.handOff(r.Class)
	}
}

// reroute sends a connection on whose route is no more, as the table now says.
// Its flight is where it was.
func (c *conn) reroute() {
	if c.wordless() {
		c.toSilent()
		return
	}
	b, err := c.see()
	if err != nil {
		c.abandon(outcomeReset)
		return
	}
	if need, err := c.hello.Parse(b); err != nil || need > 0 {
		c.abandon(outcomeInternal) // it was whole before
		return
	}
	c.flight, c.up, c.route = len(b), nil, 0
	c.dispatch(c.table.Route(&c.hello))
}

// afterPostgres says that the route is one that a PostgreSQL client can mean. A
// hello behind its requests gets nowhere else: who puts them before another
// client's hello (as Opossum does with upgrades) gains nothing.
func (c *conn) afterPostgres(r alpn.Route) bool {
	if c.said&(saidSSL|saidGSSENC) == 0 {
		return true
	}
	switch r.Class {
	case alpn.Resource:
		return r.Kind == kindDB || r.Kind == kindTCP
	case alpn.Static, alpn.Refuse:
		return true
	}
	return false
}

// The kinds whose clients may speak PostgreSQL.
const (
	kindDB  = string(sallyport.KindDatabase)
	kindTCP = string(sallyport.KindTCP)
)

func (c *conn) refuseRoute(a alpn.Alert) {
	if a == alpn.NoApplicationProtocol {
		c.refuse(a, outcomeNoApplicationProtocol)
		return
	}
	c.refuse(a, outcomeUnrecognizedName)
}

// lease asks for a way to the resource's agent. A name without one is answered
// as one that does not exist.
func (c *conn) lease() {
	if c.cfg.Tunnels == nil {
		c.refuse(alpn.UnrecognizedName, outcomeLeaseFailed)
		return
	}
	attempt := c.attempt
	c.asked = c.loop.Now()
	c.stage = leasing
	cancel := c.cfg.Tunnels.Lease(c.loop, tunnel.LeaseRequest{
		Kind: c.kind, Name: c.name, Source: c.peer, ConnectionID: c.id, Attempt: c.attempt,
	}, c)
	if c.stage != leasing || c.attempt != attempt {
		return // answered from within, and perhaps asked again from within that
	}
	c.cancel = cancel
	c.await(c.bounds.Stage)
}

// await waits for somebody else: the client is watched for its end only. It is
// false when the connection is over.
func (c *conn) await(limit time.Duration) bool {
	c.resetLowat()
	c.loop.Arm(c, limit)
	return c.watched || c.watch()
}

// LeaseFailed implements Waiter.
func (c *conn) LeaseFailed(reason string) {
	c.cancel = nil
	c.log.Debug("no way to a resource", "kind", c.kind, "name", c.name, "reason", reason, "peer", c.peer)
	c.refuse(alpn.UnrecognizedName, outcomeLeaseFailed)
}

// Leased implements Waiter. From here on the tunnels count the connection, as
// half-open until the agent says otherwise.
func (c *conn) Leased(s Stream) {
	c.cancel = nil
	c.counts.add(outcomeLeased)
	c.counts.lease.observe(c.loop.Now().Sub(c.asked))
	if c.slot.held {
		c.crowd.leave(&c.slot, true, c.loop.Now())
	}
	c.held = s.Lease
	c.offer(s.FD, s.Frame)
}
