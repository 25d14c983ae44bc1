package ssh

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/session"
	"github.com/sallyport/sallyport/dataplane/sshauth"
	"golang.org/x/crypto/ssh"
)

// Server serves SSH to clients that the door has let in. All connections share
// one; its fields are not changed after the first Serve.
type Server struct {
	// HostSigner is the host key, with its host certificate. Called once per
	// connection, concurrently.
	HostSigner func() (ssh.Signer, error)

	// UserCAs are the keys that may sign user certificates, in wire form.
	// Called at each attempt to authenticate, concurrently.
	UserCAs func() ([][]byte, error)

	Cluster string
	HostID  string // the agent's UUID
	Version string // of this program, for the identification string; may be empty

	// Events takes refused authentications: they have no session whose events
	// the gate could write. Nil: they are only logged.
	Events session.Sink
	Log    *slog.Logger // nil: silent

	HandshakeTimeout time.Duration // until keys are agreed; 0: 10 s
	LoginGrace       time.Duration // until the user is proven, from the start; 0: 30 s
	MaxAuthTries     int           // 0: 6
	MaxChannels      int           // open at once on one connection; 0: 10
	MaxForwards      int           // forwarded connections open at once on one connection; 0: 64
	MaxForwardsInAll int           // and on all together; 0: 512
	MaxListeners     int           // that one client may have listen here; 0: 16
	KeepAlive        time.Duration // between questions whether the client lives; 0: 1 min
	KillGrace        time.Duration // from SIGHUP to SIGKILL; 0: 2 s

	// ListenAnywhere says whether ssh -R listens at the address that the client
	// names, as GatewayPorts of sshd_config(5) with "clientspecified"; otherwise
	// only programs of this host reach what is forwarded. Called for each, and
	// concurrently; nil for never.
	ListenAnywhere func() bool

	// FileServer is a shell command that serves sftp, when the host has no
	// sftp-server of OpenSSH's; "" for none.
	FileServer string

	parent     parent       // of all programs
	forwarding atomic.Int64 // forwarded connections of all clients

	// etc stands for /etc in tests, places for those of fileServers, tell for
	// tellTimeout, and drain for drainIdle.
	etc    string
	places []string
	tell   time.Duration
	drain  time.Duration
}

func (s *Server) handshakeTimeout() time.Duration { return orElse(s.HandshakeTimeout, 10*time.Second) }
func (s *Server) loginGrace() time.Duration       { return orElse(s.LoginGrace, 30*time.Second) }
func (s *Server) maxAuthTries() int               { return orElse(s.MaxAuthTries, 6) }
func (s *Server) maxChannels() int                { return orElse(s.MaxChannels, 10) }
func (s *Server) maxForwards() int                { return orElse(s.MaxForwards, 64) }
func (s *Server) maxForwardsInAll() int           { return orElse(s.MaxForwardsInAll, 512) }
func (s *Server) maxListeners() int               { return orElse(s.MaxListeners, 16) }
func (s *Server) keepAlive() time.Duration        { return orElse(s.KeepAlive, time.Minute) }
func (s *Server) killGrace() time.Duration        { return orElse(s.KillGrace, 2*time.Second) }
func (s *Server) tellTime() time.Duration         { return orElse(s.tell, tellTimeout) }
func (s *Server) drainTime() time.Duration        { return orElse(s.drain, drainIdle) }
func (s *Server) accounts() accounts              { return accounts{etc: s.etc} }

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

// tellTimeout is how long a person's terminal may take to show why the
// connection ends; with it, the end comes within a second.
const tellTimeout = 500 * time.Millisecond

// Serve speaks SSH on conn until the client leaves, the session must end or ctx
// is done. It closes conn. When it returns, no process of the connection runs
// in its process group, and none of its goroutines.
func (s *Server) Serve(ctx context.Context, c *session.Candidate, conn net.Conn) error {
	defer conn.Close()
	graced, cancel := context.WithTimeout(ctx, s.loginGrace())
	defer cancel()
	stop := context.AfterFunc(graced, func() { conn.Close() })
	defer stop()

	local := addrPort(conn.LocalAddr())
	h := &handshake{server: s, ctx: ctx, candidate: c, conn: asClient(conn, c.ClientAddr)}
	a, err := h.run()
	if err != nil {
		return err
	}
	run := &connection{
		server: s, session: a.grant.session, account: a.grant.account, permit: a.grant.permit,
		ssh: a.conn, local: local, done: make(chan struct{}), channels: make(map[*channel]struct{}),
		inlets: make(map[string]*inlet),
	}
	run.life, run.endLife = context.WithCancel(context.Background())
	defer run.endLife()
	defer run.end()
	if !stop() {
		a.discard()
		return context.Cause(graced)
	}
	// The client has proved who it is: from here the keep-alive watches it.
	if err := conn.SetDeadline(time.Time{}); err != nil {
		a.discard()
		return err
	}
	return run.serve(ctx, a)
}

// asClient shows the SSH library the client's address in place of the tunnel's.
func asClient(conn net.Conn, client netip.AddrPort) net.Conn {
	return clientConn{Conn: conn, addr: net.TCPAddrFromAddrPort(client)}
}

type clientConn struct {
	net.Conn
	addr *net.TCPAddr
}

func (c clientConn) RemoteAddr() net.Addr { return c.addr }

// connection is one authenticated client: one session of the gate, and a
// channel for each shell or command.
type connection struct {
	server  *Server
	session *session.Session
	account account
	permit  permit
	ssh     *ssh.ServerConn
	local   netip.AddrPort

	done        chan struct{}   // closed when the client is gone
	life        context.Context // of what is forwarded: done when the session ends, or the client is gone
	endLife     context.CancelFunc
	running     sync.WaitGroup
	interactive atomic.Bool
	active      atomic.Int64 // Unix nanoseconds of the last byte of a channel
	opened      atomic.Int64 // session channels so far
	sealed      atomic.Bool  // no-more-sessions@openssh.com
	refusals    allowance
	resizes     allowance
	forwarding  atomic.Int64 // forwarded connections that are open
	denials     atomic.Int64 // of the gate: see ask

	mu       sync.Mutex
	inlets   map[string]*inlet     // that listen for the client; guarded by mu
	agent    string                // the socket of the forwarded ssh-agent; "" without; guarded by mu
	channels map[*channel]struct{} // open; guarded by mu
	noticed  []string              // refusals that have been told or will be; guarded by mu
	notices  []string              // those of them that wait for a channel; guarded by mu
}

// serve runs the connection. The client's channels arrive on this goroutine.
func (c *connection) serve(ctx context.Context, a *accepted) error {
	c.touch()
	c.running.Go(func() { c.answerGlobal(a.requests) })
	c.running.Go(func() { c.watch(ctx) })
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
	_ = offer.Reject(reason, r.fact)
	c.refused(r.rule, nil)
}

func (c *connection) answerGlobal(requests <-chan *ssh.Request) {
	for q := range requests {
		r := globalRuleOf(q.Type)
		ok, reply := false, []byte(nil)
		if r.serve != nil {
			ok, reply = r.serve(c, q.Payload)
		}
		if r.fact != "" {
			c.notice(r.fact)
			c.refused(r.rule, nil)
		}
		// An error means that the connection is gone, which ends the loop.
		_ = q.Reply(ok, reply)
	}
}

func (c *connection) keptAlive([]byte) (bool, []byte) { return true, nil }

func (c *connection) noMoreSessions([]byte) (bool, []byte) {
	c.sealed.Store(true)
	return true, nil
}

// openSession admits a session channel. The use is decided again for each one
// after the first: roles change while connections live (threat A05).
func (c *connection) openSession(offer ssh.NewChannel) {
	if reason, fact := c.mayOpen(); fact != "" {
		_ = offer.Reject(reason, fact)
		return
	}
	ch := &channel{conn: c}
	if !c.add(ch) {
		c.full()
		_ = offer.Reject(ssh.ResourceShortage, tooManySessions)
		return
	}
	accepted, requests, err := offer.Accept()
	if err != nil { // the connection is gone
		c.remove(ch)
		return
	}
	ch.attach(accepted)
	c.running.Go(func() {
		defer c.remove(ch)
		ch.serve(requests)
	})
}

func (c *connection) mayOpen() (ssh.RejectionReason, string) {
	switch {
	case c.session.Context.Err() != nil:
		return ssh.Prohibited, sshauth.Printable(problemOf(context.Cause(c.session.Context), "the session has ended").Fact, sshauth.MaxText)
	case c.sealed.Load():
		return ssh.Prohibited, "no more sessions on this connection"
	case c.opened.Add(1) > 1:
		if p := c.ask(sallyport.ActionConnect); p != nil {
			return ssh.Prohibited, sshauth.Printable(p.Fact, sshauth.MaxText)
		}
	}
	return 0, ""
}

func (c *connection) allow(a sallyport.Action) *sallyport.Problem {
	if c.session.Allow == nil {
		return nil
	}
	return c.session.Allow(a)
}

// add counts a channel as open until the client has closed it too, so that
// nobody keeps more than the bound by never answering a close.
func (c *connection) add(ch *channel) bool {
	limit := c.server.maxChannels()
	if c.limitedByRole() {
		limit = int(c.session.Options.MaxSessions)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.channels) >= limit {
		return false
	}
	c.channels[ch] = struct{}{}
	return true
}

// limitedByRole says that max_sessions is less than what this host has for anybody.
func (c *connection) limitedByRole() bool {
	n := c.session.Options.MaxSessions
	return n > 0 && n < int64(c.server.maxChannels())
}

const tooManySessions = "too many sessions on this connection"

// full writes down that max_sessions has refused a channel. The host's own bound is
// the protocol's everyday answer.
func (c *connection) full() {
	if c.limitedByRole() {
		e := session.TooMany(c.session.Options.MaxSessions, nil)
		c.refused(rule{name: "session", fact: tooManySessions, event: e}, e.Fields)
	}
}

func (c *connection) remove(ch *channel) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.channels, ch)
}

// maxNotices bounds what one connection is told.
const maxNotices = 16

// notice shows a fact once, on a channel that is open or else on the next one:
// a global request has no words in its refusal.
func (c *connection) notice(fact string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if slices.Contains(c.noticed, fact) || len(c.noticed) >= maxNotices {
		return
	}
	c.noticed = append(c.noticed, fact)
	for ch := range c.channels {
		if ch.running {
			// A client that does not read holds nothing up but this.
			c.running.Go(func() { ch.warn(fact) })
			return
		}
	}
	c.notices = append(c.notices, fact)
}

// takeNotices gives what the first program of the connection has to show.
func (c *connection) takeNotices(ch *channel) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	ch.running = true
	list := c.notices
	c.notices = nil
	return list
}

func (c *connection) touch() { c.active.Store(time.Now().UnixNano()) }

// watch ends the connection when the session, the agent or the client's
// patience does.
func (c *connection) watch(ctx context.Context) {
	idle := c.session.Options.ClientIdleTimeout
	var late <-chan time.Time // nil, and never ready, without a limit
	timer := time.NewTimer(idle)
	defer timer.Stop()
	if idle > 0 {
		late = timer.C
	}
	for {
		select {
		case <-c.done:
			return
		case <-c.session.Context.Done():
			c.disconnect(problemOf(context.Cause(c.session.Context), "the session has ended"))
			return
		case <-ctx.Done():
			c.disconnect(problemOf(context.Cause(ctx), "the agent is stopping"))
			return
		case <-late:
			rest := idle - time.Since(time.Unix(0, c.active.Load()))
			if rest <= 0 {
				c.cancel("the session was idle for " + idle.String())
				return
			}
			timer.Reset(rest)
		}
	}
}

// cancel ends the session for a reason of ours. The gate hears of it, and
// writes it down, as it does with its own reasons.
func (c *connection) cancel(fact string) {
	p := sallyport.Denied(fact, "")
	if c.session.Cancel != nil {
		c.session.Cancel(p)
	}
	c.disconnect(p)
}

// disconnect tells every terminal why, ends the channels in order, and closes.
func (c *connection) disconnect(p *sallyport.Problem) {
	c.endLife() // what is forwarded needs no words
	told := make(chan struct{})
	c.running.Go(func() {
		defer close(told)
		c.dismiss(p)
	})
	select {
	case <-told:
	case <-time.After(c.server.tellTime()): // a client that does not read
	}
	c.ssh.Close()
	c.server.log().Info("ssh: session ended", "session", c.session.ID, "user", c.session.Identity.Name, "reason", p.Fact)
}

func (c *connection) dismiss(p *sallyport.Problem) {
	c.mu.Lock()
	open := make(map[*channel]bool, len(c.channels)) // whether a program runs there
	for ch := range c.channels {
		open[ch] = ch.running
	}
	c.mu.Unlock()
	var each sync.WaitGroup
	for ch, running := range open {
		each.Go(func() {
			ch.say("\r\n" + sshauth.Message(p))
			if running {
				ch.dismiss(p.Fact)
			}
		})
	}
	each.Wait()
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
		late := time.AfterFunc(2*period, func() {
			if c.session.Cancel != nil { // watch tells what can still be told
				c.session.Cancel(sallyport.Denied("the client stopped answering", ""))
			}
			c.ssh.Close()
		})
		_, _, err := c.ssh.SendRequest("keepalive@openssh.com", true, nil)
		late.Stop()
		if err != nil {
			return
		}
	}
}
