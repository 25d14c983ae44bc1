package jump

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/session"
	"github.com/sallyport/sallyport/dataplane/sshauth"
)

// Server is the jump server of one gateway. All connections share one; its
// exported fields are not changed after the first Serve.
type Server struct {
	Cluster   string
	GatewayID string // UUID
	Version   string // of this program, for the identification string; may be empty

	// HostSigner is the host key, with a host certificate for the cluster's name.
	// Called once per connection, concurrently.
	HostSigner func() (ssh.Signer, error)

	// UserCAs are the keys that may sign user certificates, in wire form. Called
	// at each attempt to authenticate, concurrently.
	UserCAs func() ([][]byte, error)

	// Admit says whether this is somebody to talk to, now and at this address:
	// expiry, locks, pinned address, cluster, freshness of the snapshot. Called
	// concurrently; it must not block.
	Admit func(id sallyport.Identity, client netip.AddrPort) *sallyport.Problem

	// Changed returns a channel that is closed when Admit may say something else.
	Changed func() <-chan struct{}

	// Reach opens a stream to a node for a client: inside the TLS of its agent.
	// Called concurrently; the error's Problem is told to the client.
	Reach func(ctx context.Context, node string, client netip.AddrPort) (net.Conn, error)

	// Events takes what is to be in the audit log. Nil: it is only logged.
	Events session.Sink
	Log    *slog.Logger // nil: silent

	HandshakeTimeout time.Duration // until keys are agreed; 0: 10 s
	LoginGrace       time.Duration // until the user is proven, from the start; 0: 30 s
	MaxAuthTries     int           // 0: 6
	ReachTimeout     time.Duration // until a node's agent has answered; 0: 15 s
	KeepAlive        time.Duration // between questions whether the client lives; 0: 1 min

	MaxConnections     int // of all; 0: 4,096
	MaxUserConnections int // of one user; 0: 128
	MaxChannels        int // open at once on one connection; 0: 64
	MaxUserChannels    int // and on all of one user; 0: 128

	mu    sync.Mutex
	open  map[*connection]struct{} // guarded by mu
	users map[string]*usage        // those with a connection, or refusals not long ago; guarded by mu
	swept time.Time                // when users was last looked through; guarded by mu
	all   int                      // connections; guarded by mu
	left  bool                     // another process has the port; guarded by mu
}

func (s *Server) handshakeTimeout() time.Duration { return orElse(s.HandshakeTimeout, 10*time.Second) }
func (s *Server) loginGrace() time.Duration       { return orElse(s.LoginGrace, 30*time.Second) }
func (s *Server) maxAuthTries() int               { return orElse(s.MaxAuthTries, 6) }
func (s *Server) reachTimeout() time.Duration     { return orElse(s.ReachTimeout, 15*time.Second) }
func (s *Server) keepAlive() time.Duration        { return orElse(s.KeepAlive, time.Minute) }
func (s *Server) maxConnections() int             { return orElse(s.MaxConnections, 4096) }
func (s *Server) maxUserConnections() int         { return orElse(s.MaxUserConnections, 128) }
func (s *Server) maxChannels() int                { return orElse(s.MaxChannels, 64) }
func (s *Server) maxUserChannels() int            { return orElse(s.MaxUserChannels, 128) }

func (s *Server) log() *slog.Logger {
	if s.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return s.Log
}

func orElse[T int | time.Duration](v, fallback T) T {
	if v > 0 {
		return v
	}
	return fallback
}

// Conn is a client's connection, of which nothing has been read.
type Conn interface {
	net.Conn

	// Proven is called once the client has proved who it is.
	Proven()
}

// Serve speaks SSH on conn until the client leaves, must leave, or ctx is done.
// It closes conn; when it returns, none of its goroutines runs.
func (s *Server) Serve(ctx context.Context, conn Conn) error {
	defer conn.Close()
	graced, cancel := context.WithTimeout(ctx, s.loginGrace())
	defer cancel()
	stop := context.AfterFunc(graced, func() { conn.Close() })
	defer stop()

	h := &handshake{server: s, ctx: ctx, conn: conn, client: addrPort(conn.RemoteAddr())}
	a, err := h.run()
	if err != nil {
		return err
	}
	defer a.place.leave()
	if !stop() {
		a.discard()
		return context.Cause(graced)
	}
	// The client has proved who it is: from here the keep-alive watches it.
	if err := conn.SetDeadline(time.Time{}); err != nil {
		a.discard()
		return err
	}
	conn.Proven()
	c := &connection{server: s, place: a.place, identity: a.place.identity, client: h.client, ssh: a.conn, done: make(chan struct{})}
	c.life, c.endLife = context.WithCancel(ctx)
	defer c.endLife()
	return c.serve(a)
}

func addrPort(a net.Addr) netip.AddrPort {
	if t, ok := a.(*net.TCPAddr); ok {
		p := t.AddrPort()
		return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
	}
	return netip.AddrPort{}
}

// Leave says that another process has the port and the tunnels. What runs goes
// on; nothing begins any more, and a connection ends with its last channel.
func (s *Server) Leave() {
	s.mu.Lock()
	s.left = true
	var idle []*connection
	for c := range s.open {
		if c.channels == 0 {
			idle = append(idle, c)
		}
	}
	s.mu.Unlock()
	for _, c := range idle {
		c.ssh.Close()
	}
}

// Open is how many connections have authenticated and not ended.
func (s *Server) Open() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.open)
}

// connection is one authenticated client.
type connection struct {
	server   *Server
	place    *place
	identity sallyport.Identity
	client   netip.AddrPort
	ssh      *ssh.ServerConn

	done     chan struct{} // closed when the client is gone
	cutOnce  sync.Once
	life     context.Context // of what is carried
	endLife  context.CancelFunc
	running  sync.WaitGroup
	channels int // open; guarded by server.mu
}

// recheck is how often a connection is looked at without a change: at the clock,
// which may have jumped or slept.
const recheck = 10 * time.Second

// serve runs the connection. The client's channels arrive on this goroutine.
func (c *connection) serve(a *accepted) error {
	if !c.server.add(c) {
		a.discard()
		return errLeft
	}
	defer c.server.remove(c)
	c.running.Go(func() { c.answerGlobal(a.requests) })
	c.running.Go(c.watch)
	c.running.Go(c.keepAlive)
	for offer := range a.channels {
		c.answerChannel(offer)
	}
	close(c.done)
	c.endLife()
	c.ssh.Close()
	c.running.Wait()
	if err := c.ssh.Wait(); err != nil && !isNetwork(err) {
		return err
	}
	return nil
}

// errLeft: the port is another process's.
var errLeft = errors.New("another process has the port")

func (s *Server) add(c *connection) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.left {
		return false
	}
	if s.open == nil {
		s.open = make(map[*connection]struct{})
	}
	s.open[c] = struct{}{}
	return true
}

func (s *Server) remove(c *connection) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, c)
}

func (c *connection) answerChannel(offer ssh.NewChannel) {
	r := channelRuleOf(offer.ChannelType())
	if r.serve != nil {
		r.serve(c, offer)
		return
	}
	reason := ssh.Prohibited
	if r.fact == unknownType {
		reason = ssh.UnknownChannelType
	}
	// An error means that the connection is gone, which ends the loop.
	_ = offer.Reject(reason, r.tell(c.server.Cluster))
	c.refused(r.rule, "")
}

// tell is the fact with what to do instead.
func (r rule) tell(cluster string) string {
	if r.fact != noShell {
		return r.fact
	}
	return r.fact + ": ssh -J " + cluster + " LOGIN@NODE." + cluster
}

func (c *connection) answerGlobal(requests <-chan *ssh.Request) {
	for q := range requests {
		r := globalRuleOf(q.Type)
		if r.fact != "" {
			c.refused(r.rule, "")
		}
		// An error means that the connection is gone, which ends the loop.
		_ = q.Reply(r.granted, nil)
	}
}

// watch ends the connection when its person must leave, or the gateway closes.
func (c *connection) watch() {
	tick := time.NewTicker(recheck)
	defer tick.Stop()
	for {
		changed := c.server.Changed() // taken before the question: no change is missed
		if p := c.judge(time.Now()); p != nil {
			c.cut(p)
			return
		}
		select {
		case <-c.done:
			return
		case <-c.life.Done():
			c.ssh.Close()
			return
		case <-changed:
		case <-tick.C:
		}
	}
}

// judge asks whether the connection may stay. A lock ends it at once. An expired
// certificate opens nothing more, and ends a connection that carries nothing;
// what is carried ends at the node when the roles there say so, as it does for
// somebody who came without us. An old view of the control plane ends nothing.
func (c *connection) judge(now time.Time) *sallyport.Problem {
	id := c.identity
	if c.carrying() && !now.Before(id.NotAfter) {
		id.NotAfter = now.Add(time.Hour)
	}
	p := c.server.Admit(id, c.client)
	if p != nil && errors.Is(p, sallyport.ErrStaleSnapshot) {
		return nil
	}
	return p
}

func (c *connection) carrying() bool {
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	return c.channels > 0
}

// cut ends the connection, and all that it carries. The first reason counts.
func (c *connection) cut(why *sallyport.Problem) {
	c.cutOnce.Do(func() {
		c.endLife()
		c.ssh.Close()
		c.disconnected(why)
	})
}

// keepAlive asks whether the client lives, and hangs up when no answer comes
// within two more periods.
func (c *connection) keepAlive() {
	period := c.server.keepAlive()
	tick := time.NewTicker(period)
	defer tick.Stop()
	for {
		select {
		case <-c.done:
			return
		case <-tick.C:
		}
		late := time.AfterFunc(2*period, func() { c.ssh.Close() })
		_, _, err := c.ssh.SendRequest("keepalive@openssh.com", true, nil)
		late.Stop()
		if err != nil {
			return
		}
	}
}

// openDirect takes a client to a node.
func (c *connection) openDirect(offer ssh.NewChannel) {
	to, ok := parse(offer.ExtraData(), c.server.Cluster)
	if !ok {
		_ = offer.Reject(ssh.ConnectionFailed, "the address is malformed")
		return
	}
	reason, p := c.mayOpen(to)
	if p != nil {
		_ = offer.Reject(reason, sshauth.Printable(p.Fact, sshauth.MaxText))
		c.refused(rule{name: offer.ChannelType(), fact: p.Fact}, to.text)
		return
	}
	c.running.Go(func() {
		defer c.closeOne()
		c.direct(offer, to)
	})
}

// mayOpen decides about a channel, and counts it when it may be. Whether the
// person may be here is asked each time: locks come while connections live.
func (c *connection) mayOpen(to destination) (ssh.RejectionReason, *sallyport.Problem) {
	if to.node == "" {
		return ssh.Prohibited, elsewhere(to, c.server.Cluster)
	}
	if p := c.server.Admit(c.identity, c.client); p != nil {
		return ssh.Prohibited, p
	}
	return ssh.ResourceShortage, c.openOne()
}

// direct opens the stream, and carries bytes.
func (c *connection) direct(offer ssh.NewChannel, to destination) {
	ctx, cancel := context.WithTimeout(c.life, c.server.reachTimeout())
	defer cancel()
	far, err := c.server.Reach(ctx, to.node, c.client)
	if err != nil {
		p := problemOf(err, "node "+to.node+" cannot be reached")
		// An error means that the connection is gone.
		_ = offer.Reject(ssh.ConnectionFailed, sshauth.Printable(p.Fact, sshauth.MaxText))
		c.refused(rule{name: offer.ChannelType(), fact: p.Fact}, to.text)
		return
	}
	near, requests, err := offer.Accept()
	if err != nil { // the connection is gone
		far.Close()
		return
	}
	c.carry(near, requests, far, to)
}
