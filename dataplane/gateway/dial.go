//go:build unix

package gateway

import (
	"context"
	"crypto/rand"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/relay"
	"github.com/sallyport/sallyport/dataplane/tunnel"
)

// Destination is a resource, and for whom it is asked.
type Destination struct {
	Kind   sallyport.Kind
	Name   string
	Client netip.AddrPort // the agent is told
}

// Greeting speaks TLS on a stream to an agent, as the client. What it returns
// owns the stream; with an error the stream is Dial's.
type Greeting func(ctx context.Context, stream net.Conn) (net.Conn, error)

// dialRetry is the pause before a client that has proved who it is asks again
// where there was no room for it.
const dialRetry = 50 * time.Millisecond

// Dial connects to an agent in place of a client whose own TLS ends here. As for
// a client's first flight, a data connection that ends before the agent's first
// byte gives way to another one. It returns when ctx is done, at the latest. When
// another process has the tunnels who waits for one learns it at once: the answer
// would never come.
func (g *Gateway) Dial(ctx context.Context, to Destination, greet Greeting) (net.Conn, error) {
	if g.cfg.Tunnels == nil || len(g.lanes) == 0 {
		return nil, noWay(to, "no tunnels")
	}
	r := tunnel.LeaseRequest{Kind: string(to.Kind), Name: to.Name, Source: unmap(to.Client)}
	_, _ = rand.Read(r.ConnectionID[:]) // crypto/rand never fails
	for {
		s, err := g.leased(ctx, r)
		if err != nil {
			return nil, err
		}
		conn, err := greet(ctx, s)
		if err == nil {
			return conn, nil
		}
		s.Close()
		r.Attempt++
		if s.heard.Load() || ctx.Err() != nil || r.Attempt >= maxAttempts {
			return nil, err
		}
	}
}

// leased leases a stream, again where that is a question of moments.
func (g *Gateway) leased(ctx context.Context, r tunnel.LeaseRequest) (*dialed, error) {
	for {
		s, reason, err := g.ask(ctx, r)
		if err != nil || s != nil {
			return s, err
		}
		switch reason {
		case tunnel.FailSourceHalfOpen, tunnel.FailSourceRate, tunnel.FailAgentHalfOpen, tunnel.FailGatewayHalfOpen:
		default:
			return nil, noWay(Destination{Kind: sallyport.Kind(r.Kind), Name: r.Name}, reason)
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-g.names.Done():
			return nil, g.away(r)
		case <-time.After(dialRetry):
		}
	}
}

// away says why nothing is leased here any more.
func (g *Gateway) away(r tunnel.LeaseRequest) error {
	if g.ctx.Err() != nil {
		return errClosed
	}
	return noWay(Destination{Kind: sallyport.Kind(r.Kind), Name: r.Name}, "another process has the tunnels")
}

// noWay does not tell a name without an agent from one that does not exist.
func noWay(to Destination, reason string) error {
	if reason == tunnel.FailNoTunnel || reason == tunnel.FailBadName {
		return &sallyport.Problem{Kind: sallyport.ErrUnavailable, Cause: errors.New(reason),
			Fact: string(to.Kind) + " " + to.Name + " is unknown, or no agent that serves it is connected", Hint: "try again in a moment, or tell its owner"}
	}
	return &sallyport.Problem{Kind: sallyport.ErrUnavailable, Cause: errors.New(reason),
		Fact: string(to.Kind) + " " + to.Name + " cannot be reached at the moment", Hint: "try again in a moment, or tell its owner"}
}

// ask asks for one lease on the next loop.
func (g *Gateway) ask(ctx context.Context, r tunnel.LeaseRequest) (*dialed, string, error) {
	if g.names.Err() != nil {
		return nil, "", g.away(r)
	}
	q := &question{answers: make(chan answer, 1)}
	loop := g.nextLane().loop
	if !loop.Post(func() { q.ask(g.cfg.Tunnels, loop, r) }) {
		return nil, "", errClosed
	}
	var err error
	select {
	case a := <-q.answers:
		if a.reason != "" {
			return nil, a.reason, nil
		}
		s, err := newStream(a.stream)
		return s, "", err
	case <-ctx.Done():
		err = context.Cause(ctx)
	case <-g.names.Done():
		err = g.away(r)
	}
	if !loop.Post(q.takeBack) {
		q.drop() // the loop has ended: nobody else has the question
	}
	return nil, "", err
}

// question waits for a lease. Its fields belong to the loop's thread, and answers
// to who asks.
type question struct {
	answers chan answer // room for the one
	cancel  func()
	over    bool
}

type answer struct {
	stream Stream
	reason string // "" with a stream
}

func (q *question) ask(t Tunnels, l relay.Loop, r tunnel.LeaseRequest) {
	if cancel := t.Lease(l, r, q); !q.over {
		q.cancel = cancel
	}
}

// Leased implements Waiter.
func (q *question) Leased(s Stream) { q.say(answer{stream: s}) }

// LeaseFailed implements Waiter.
func (q *question) LeaseFailed(reason string) { q.say(answer{reason: reason}) }

func (q *question) say(a answer) {
	q.over = true
	q.answers <- a
}

// takeBack: nobody waits any more.
func (q *question) takeBack() {
	if !q.over {
		q.over = true
		q.cancel()
	}
	q.drop()
}

// drop closes what came for nobody.
func (q *question) drop() {
	select {
	case a := <-q.answers:
		if a.reason == "" {
			relay.Close(a.stream.FD)
			a.stream.Lease.Ended()
		}
	default:
	}
}

// dialed is a leased data connection as a net.Conn. The open frame goes out with
// the first bytes: an agent gets no frame without a ClientHello behind it.
type dialed struct {
	net.Conn
	head  []byte // until the first Write; one goroutine writes a handshake
	heard atomic.Bool
	lease Lease
	once  sync.Once
}

func newStream(s Stream) (*dialed, error) {
	conn, err := relay.NetConn(s.FD, nil) // closes the descriptor when it fails
	if err != nil {
		s.Lease.Ended()
		return nil, err
	}
	return &dialed{Conn: conn, head: s.Frame, lease: s.Lease}, nil
}

func (s *dialed) Write(p []byte) (int, error) {
	if s.head == nil {
		return s.Conn.Write(p)
	}
	first := append(s.head[:len(s.head):len(s.head)], p...)
	head := len(s.head)
	s.head = nil
	n, err := s.Conn.Write(first)
	return max(n-head, 0), err
}

func (s *dialed) Read(p []byte) (int, error) {
	n, err := s.Conn.Read(p)
	if n > 0 {
		s.heard.Store(true)
	}
	return n, err
}

// Close gives the lease back when the descriptor is closed.
func (s *dialed) Close() error {
	err := s.Conn.Close()
	s.once.Do(s.lease.Ended)
	return err
}
