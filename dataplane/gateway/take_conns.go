//go:build unix

package gateway

import (
	"time"

	"github.com/sallyport/sallyport/alpn"
	"github.com/sallyport/sallyport/dataplane/handover"
	"github.com/sallyport/sallyport/dataplane/relay"
	handoverv1 "github.com/sallyport/sallyport/wire/sallyport/handover/v1"
)

// takeConnections watches connections that are no relay yet.
func (h *Heir) takeConnections(m *handoverv1.GatewayConnections, in *incoming) error {
	if len(m.Connection) > handover.MaxFDs {
		return errRecord
	}
	w := h.lane(m.Lane)
	return h.on(w, func() error {
		for _, image := range m.Connection {
			c, err := w.connOf(image)
			if err != nil {
				return err
			}
			need := 1
			if image.Far {
				need = 2
			}
			if len(in.fds) < need {
				return errRecord
			}
			if err := c.adopt(image, in); err != nil {
				return err
			}
			h.conns[w.index] = append(h.conns[w.index], c)
		}
		return nil
	})
}

// connOf makes the connection without its descriptors.
func (w *lane) connOf(m *handoverv1.GatewayConnection) (*conn, error) {
	c := &conn{
		lane: w, fd: -1, other: -1, since: ago(m.Age), asked: w.loop.Now(), said: preambles(m.Said),
		watched: m.Watched, ending: m.Ending, ended: m.Ended, lowat: int(m.Lowat), slot: slot{exempt: m.Exempt, paid: m.Paid},
		kind: m.Kind, name: m.Name, attempt: int(m.Attempt), choice: choice{turn: m.Turn & turnMask, tried: m.Tried},
		head: m.Head, flight: int(m.Flight), sent: int(m.Sent), acked: m.Acked, more: m.More,
	}
	var err error
	if c.peer, err = address(m.Peer); err != nil {
		return nil, err
	}
	if c.local, err = address(m.Local); err != nil {
		return nil, err
	}
	if err := c.place(m); err != nil {
		return nil, err
	}
	if c.stage == lingering { // it has been answered; an older process still says what it would have sent
		c.head, c.flight, c.sent, m.Head, m.Flight, m.Sent = nil, 0, 0, nil, 0, 0
	}
	if m.Account != "" {
		if err := c.onWay(m); err != nil {
			return nil, err
		}
	}
	return c, c.sound(m)
}

// place is where in its life the connection is.
func (c *conn) place(m *handoverv1.GatewayConnection) error {
	for s := reading; s < gone; s++ {
		if s.image() == m.Stage {
			c.stage = s
			return nil
		}
	}
	return errRecord
}

// onWay: the route is known.
func (c *conn) onWay(m *handoverv1.GatewayConnection) error {
	if len(m.Connection) != len(c.id) {
		return errRecord
	}
	copy(c.id[:], m.Connection)
	c.acct, c.routed = c.accountOf(m.Account)
	switch c.routed {
	case alpn.Auth, alpn.Join:
		c.up = c.auth
	case alpn.Static:
		c.up, c.route = c.staticOf(m.Account)
	}
	if c.up == nil && c.routed != alpn.Resource {
		c.up = &upstream{gone: true}
	}
	if c.up != nil {
		c.choice.at = c.servers[m.Server]
	}
	if c.up == c.auth && c.up != nil {
		c.choice.at = c.up.servers[0]
	}
	if c.choice.at == nil {
		c.choice.at = &server{} // what is said of it is of no account
	}
	if c.stage == offering {
		c.hadFlight()
	}
	if c.choice.at.size() == 1 {
		c.choice.to, _ = c.choice.at.target(0)
	}
	return nil
}

// staticOf finds a route by its label; nil when it is no more.
func (w *lane) staticOf(label string) (*upstream, uint32) {
	r := w.routes[label]
	if r == nil {
		return nil, 0
	}
	for i, u := range w.static {
		if u == r.upstream {
			return u, uint32(i) + 1
		}
	}
	return nil, 0
}

// sound checks what the other functions rely on.
func (c *conn) sound(m *handoverv1.GatewayConnection) error {
	way := c.stage == leasing || c.stage == connecting || c.stage == offering
	total := len(c.head) + c.flight
	switch {
	case m.Said > uint32(saidProxy|saidSSL|saidGSSENC):
	case m.Lowat < 1 || m.Lowat > viewSize:
	case len(m.Buffer) > alpn.MaxHello || !m.Buffered && len(m.Buffer) > 0:
	case len(m.Head) > prefixRoom:
	case len(m.Tunnel) > 0 && (len(m.Tunnel) != len(c.id) || len(m.Connection) != len(c.id) || c.stage != offering):
	case m.Flight > alpn.MaxHello || !m.Buffered && m.Flight > viewSize || m.Buffered && way && c.flight > len(m.Buffer):
	case int64(m.Sent) > int64(total):
	case m.Attempt > maxAddresses:
	case m.Eaten > lingerMost || len(m.Answer) > lingerMost:
	case way != (m.Account != "") && c.stage != lingering:
	case m.Far && c.stage != connecting && c.stage != offering, !m.Far && c.stage == offering:
	case c.stage == leasing && c.routed != alpn.Resource:
	case c.stage == connecting && c.up == nil:
	default:
		return nil
	}
	return errRecord
}

// lingerMost is more than an answer has, and than is consumed for one.
const lingerMost = 4 << 20

// ago is when something was that is so many nanoseconds old.
func ago(age int64) time.Time { return time.Now().Add(-time.Duration(max(age, 0))) }

// adopt gives the connection its descriptors, and its place in the crowd.
func (c *conn) adopt(m *handoverv1.GatewayConnection, in *incoming) error {
	c.fd = in.next()
	if m.Far {
		c.other = in.next()
	}
	if len(m.Tunnel) > 0 {
		var err error
		if c.held, err = c.stream(m.Tunnel, m.Connection); err != nil {
			return err // cannot be: see sound
		}
	}
	c.conns[c] = struct{}{}
	if m.Placed {
		c.crowd.restore(&c.slot, c.peer.Addr())
	}
	if m.Buffered && c.stage != lingering {
		c.large++
		c.buf = append(make([]byte, 0, alpn.MaxHello), m.Buffer...)
	}
	if c.stage == lingering {
		from := relay.Lingering{Answer: m.Answer, Eaten: int(m.Eaten), Shut: m.Shut}
		c.bye = relay.LingerFrom(c.loop, c.fd, from, c.farewell)
		return nil
	}
	if c.other >= 0 {
		if err := c.loop.Watch(c.other, (*far)(c)); err != nil {
			return err
		}
	}
	if c.watched {
		return c.loop.Watch(c.fd, c)
	}
	return nil
}

// resume goes on where the other process has stopped. Times begin again.
func (c *conn) resume() {
	c.asked = c.loop.Now()
	switch c.stage {
	case reading:
		c.loop.Arm(c, c.patience())
		c.look()
	case leasing:
		c.lease()
	case connecting:
		if c.queued() {
			c.tryQueue()
			return
		}
		if c.up.gone {
			c.dropFar()
			c.reroute()
			return
		}
		c.askAnew()
		c.loop.Arm(c, min(c.bounds.Connect, c.bounds.Stage))
		c.progress(0)
	case offering:
		limit := c.bounds.Stage
		if c.up == nil {
			limit = min(limit, c.bounds.Connect)
			c.acked = false
		}
		c.loop.Arm(c, limit)
		c.progress(0)
	}
}
