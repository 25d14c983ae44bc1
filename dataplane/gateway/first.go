//go:build unix

package gateway

import (
	"errors"
	"net/netip"

	"github.com/sallyport/sallyport/alpn"
	"github.com/sallyport/sallyport/dataplane/preamble"
	"github.com/sallyport/sallyport/dataplane/relay"
	"github.com/sallyport/sallyport/dataplane/tunnel"
)

// decide acts on what the client has sent so far. need is the length that it
// must reach first; 0 when something was done: the connection has moved to
// another stage, or a preamble was answered and it is time to look again.
func (c *conn) decide(b []byte) (need int) {
	protocol, answer, need := alpn.Probe(b)
	switch answer {
	case alpn.More:
		return need
	case alpn.No:
		c.abandon(outcomeUnknown)
		return 0
	}
	if !c.inOrder(protocol) {
		c.abandon(outcomeOutOfOrder)
		return 0
	}
	switch protocol {
	case alpn.TLS:
		return c.clientHello(b)
	case alpn.Data:
		return c.dataHello(b)
	case alpn.SSLRequest, alpn.GSSENCRequest, alpn.CancelRequest, alpn.StartupMessage:
		return c.postgres(b)
	case alpn.ProxyV1, alpn.ProxyV2:
		return c.proxy(b)
	case alpn.HTTP:
		return c.http(b)
	case alpn.TPKT:
		return c.rdp(b)
	case alpn.SSH:
		c.ssh()
	}
	return 0
}

// inOrder says that the protocol may come after what was said before. Behind
// 'S' only TLS may, or a GSSENCRequest that is told no; behind 'N' only TLS and
// PostgreSQL.
func (c *conn) inOrder(p alpn.Protocol) bool {
	switch p {
	case alpn.TLS:
		return true
	case alpn.GSSENCRequest:
		return c.said&saidGSSENC == 0
	case alpn.SSLRequest, alpn.CancelRequest, alpn.StartupMessage:
		return c.said&saidSSL == 0
	case alpn.ProxyV1, alpn.ProxyV2:
		return c.said == 0
	default:
		return c.said&^saidProxy == 0
	}
}

// proxy takes the client's address from a trusted proxy's header.
func (c *conn) proxy(b []byte) (need int) {
	if !c.trusts(c.peer.Addr()) {
		c.abandon(outcomeProxyRefused)
		return 0
	}
	p, need, err := preamble.ParseProxy(b)
	if err != nil {
		c.abandon(outcomeMalformed)
		return 0
	}
	if need > 0 {
		return need
	}
	if !c.consume(p.Size) {
		c.abandon(outcomeReset)
		return 0
	}
	c.said |= saidProxy
	if p.Local {
		return 0
	}
	c.peer, c.local = unmap(p.Source), unmap(p.Destination)
	if c.slot.held {
		// From here on it is the client that is counted.
		c.crowd.leave(&c.slot, false, c.loop.Now())
		c.slot = slot{}
		c.hold()
	}
	c.slot.exempt = false
	return 0
}

// postgres answers what comes before a StartupMessage inside TLS.
func (c *conn) postgres(b []byte) (need int) {
	p, need, err := preamble.ParsePostgres(b)
	if err != nil {
		c.abandon(outcomeMalformed)
		return 0
	}
	if need > 0 {
		return need
	}
	// Whoever asks waits for the answer. What comes before it was put there by
	// somebody else (CVE-2021-23214).
	if len(b) > p.Size {
		c.abandon(outcomeEarlyBytes)
		return 0
	}
	switch p.Kind {
	case preamble.PostgresSSL:
		c.say(p.Size, saidSSL, preamble.PostgresYes)
	case preamble.PostgresGSSENC:
		c.say(p.Size, saidGSSENC, preamble.PostgresNo)
	case preamble.PostgresCancel:
		c.cancelRequest(p)
	case preamble.PostgresStartup:
		c.answer(preamble.Refused28000("this server takes connections over TLS only", "connect with sslmode=verify-full"), outcomeStartupInClear)
	}
	return 0
}

// say consumes a request and answers it with one byte, for which there always
// is room: nothing else has been sent.
func (c *conn) say(size int, said preambles, answer byte) {
	c.said |= said
	if !c.consume(size) {
		c.abandon(outcomeReset)
		return
	}
	if early, err := c.see(); err == nil && len(early) > 0 {
		c.abandon(outcomeEarlyBytes)
		return
	}
	if _, err := relay.Write(c.fd, []byte{answer}); err != nil {
		c.abandon(outcomeReset)
	}
}

// cancelRequest passes a cancellation on. There is no answer to it, whatever
// comes of it; guessing keys is slow.
func (c *conn) cancelRequest(p preamble.Postgres) {
	switch {
	case !c.consume(p.Size):
		c.abandon(outcomeReset)
	case c.cfg.Tunnels == nil || !c.crowd.charge(c.peer.Addr(), c.loop.Now()) || !c.cfg.Tunnels.Cancel(p.PID, p.Key):
		c.abandon(outcomeCancelRefused)
	default:
		c.abandon(outcomeCancelled)
	}
}

// http sends plain HTTP to https.
func (c *conn) http(b []byte) (need int) {
	h, need, err := preamble.ParseHTTP(b)
	if err != nil {
		c.abandon(outcomeMalformed)
		return 0
	}
	if need > 0 {
		return need
	}
	local := c.local
	if !local.IsValid() {
		local = relay.LocalAddr(c.fd)
	}
	c.answer(h.Redirect(c.cfg.Cluster, local.Port()), outcomeRedirected)
	return 0
}

// rdp recognises a connection request. There is nothing to lead it to: without
// a server name it could only reach a default, and there is none.
func (c *conn) rdp(b []byte) (need int) {
	_, need, err := preamble.ParseRDP(b)
	if err != nil {
		c.abandon(outcomeMalformed)
		return 0
	}
	if need > 0 {
		return need
	}
	c.abandon(outcomeRDP)
	return 0
}

// dataHello hands an agent's data connection to the tunnels, which check it.
func (c *conn) dataHello(b []byte) (need int) {
	if c.cfg.Tunnels == nil {
		c.abandon(outcomeUnknown)
		return 0
	}
	if len(b) < tunnel.HelloSize {
		return tunnel.HelloSize
	}
	if len(b) > tunnel.HelloSize {
		c.abandon(outcomeEarlyBytes) // a parked connection says nothing
		return 0
	}
	hello, ok := c.take(b, tunnel.HelloSize)
	if !ok {
		c.abandon(outcomeReset)
		return 0
	}
	if c.ended {
		c.abandon(outcomeEndedEarly)
		return 0
	}
	if c.shed {
		c.abandon(outcomeShed)
		return 0
	}
	w, peer, place := c.lane, c.peer, c.slot
	c.slot = slot{} // kept until it is known whether the connection is good
	err := w.cfg.Tunnels.Park(w.loop, c.release(), hello, peer)
	if place.held {
		w.crowd.leave(&place, err == nil, w.loop.Now())
	}
	if err != nil {
		w.counts.add(outcomeParkRefused)
		return 0
	}
	w.counts.add(outcomeParked)
	w.crowd.prove(peer.Addr(), w.loop.Now())
	return 0
}

// unmap shows an IPv4 address as one.
func unmap(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// clientHello reads the hello and routes it.
func (c *conn) clientHello(b []byte) (need int) {
	need, err := c.hello.Parse(b)
	if err != nil {
		c.faulty(err)
		return 0
	}
	if need > 0 {
		return need
	}
	c.flight = len(b)
	c.dispatch(c.table.Route(&c.hello))
	return 0
}

// faulty refuses a hello that cannot be read: it has no name that a route could
// be found for.
func (c *conn) faulty(err error) {
	var fault alpn.Fault
	if !errors.As(err, &fault) {
		c.abandon(outcomeInternal)
		return
	}
	why := outcomeHelloSyntax
	switch fault {
	case alpn.FaultRecord:
		why = outcomeHelloRecord
	case alpn.FaultLarge:
		why = outcomeHelloLarge
	case alpn.FaultName:
		why = outcomeHelloName
	}
	c.refuse(fault.Alert(), why)
}
