//go:build unix

package gateway

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/sallyport/sallyport/alpn"
	"github.com/sallyport/sallyport/dataplane/relay"
)

// A client that says nothing may be one whose server speaks first: MySQL's, SMTP,
// FTP. Nothing tells where it wants to go, so there is one place for all of them,
// and none unless the operator has named it. Behind a whole or half first message
// nobody gets there.

// SilentRoute leads clients that have said nothing to upstreams, as a StaticRoute
// does those that have.
type SilentRoute struct {
	After     time.Duration // how long a client must have said nothing; at most Bounds.Stage counts
	Upstreams []string
	Proxy     bool
}

// silentLabel is the route's: no name has a colon.
const silentLabel = "silent:clients"

// static is the route as one of a table in which nothing is looked up.
func (s *SilentRoute) static() (StaticRoute, error) {
	if s.After <= 0 {
		return StaticRoute{}, fmt.Errorf("silent clients: after %v", s.After)
	}
	return StaticRoute{Upstreams: s.Upstreams, Proxy: s.Proxy, silent: s.After}, nil
}

// all are the static routes, and behind them the silent clients'.
func (s *Settings) all() ([]StaticRoute, error) {
	if s.Silent == nil {
		return s.Static, nil
	}
	r, err := s.Silent.static()
	return append(slices.Clip(s.Static), r), err
}

// patience is how long the client may say nothing before somebody acts on it.
func (c *conn) patience() time.Duration {
	if c.silent > 0 {
		return min(c.silent, c.bounds.Stage)
	}
	return c.bounds.Stage
}

// unheard: the client has not said in time what it wants. One that has begun to
// speak has what is left of a stage.
func (c *conn) unheard() {
	left := c.bounds.Stage - c.loop.Now().Sub(c.since)
	switch {
	case c.silent > 0 && c.mute():
		c.counts.add(outcomeSilent)
		c.toSilent()
	case left > 0:
		c.loop.Arm(c, left)
	default:
		c.abandon(outcomeTimeout)
	}
}

// mute says that nothing has come from the client. What a trusted proxy has said
// about it does not count.
func (c *conn) mute() bool {
	if c.said&^saidProxy != 0 || c.buf != nil || c.ending {
		return false
	}
	_, err := c.peek(1)
	return errors.Is(err, relay.ErrAgain)
}

// toSilent begins a connection for a silent client. It has no flight: what it says
// from here on goes through the relay.
func (c *conn) toSilent() {
	if c.silent == 0 { // no longer
		c.abandon(outcomeNoUpstream)
		return
	}
	at := len(c.static) - 1
	up := c.static[at]
	c.routed, c.route, c.acct = alpn.Static, uint32(at)+1, up.acct
	c.toUpstream(up, alpn.UnrecognizedName)
}

// wordless says that the connection was routed without a word of its client,
// which must not be told anything in TLS either.
func (c *conn) wordless() bool { return c.routed == alpn.Static && c.flight == 0 }
