package tunnel

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sallyport/sallyport/alpn"
	tunnelv1 "github.com/sallyport/sallyport/wire/sallyport/tunnel/v1"
)

// An agent's link to one gateway's address:
//
//	dial ─▶ TLS ─▶ hello ─▶ welcome ─▶ up ─┬─▶ (dead, goodbye, error) ─▶ back-off ─▶ dial
//	  ▲                                    ├─▶ drain ─▶ goodbye ─▶ the time told ─┐
//	  │                                    └─▶ drain, successor ─▶ the time told ─┤
//	  └───────────────────────────────────────────────────────────────────────────┘
//
// With a successor the link stays until the next one is up, and so does one whose
// certificates end soon: see follow.go.

// Reconnecting: dialLimit and the longest pause together are below the 5 s in
// which an agent must be back after its gateway is.
const (
	dialLimit     = 2 * time.Second
	greetLimit    = 10 * time.Second
	firstPause    = 100 * time.Millisecond
	longestPause  = 2 * time.Second
	refusedPause  = 30 * time.Second // the longest for an agent that is turned away: see turnedAway
	foreignPause  = 5 * time.Minute  // the same where the gateway is of another cluster
	standbyPause  = 30 * time.Second // the gateway is reached by another address already
	longestAbsent = time.Minute      // what a drain may ask for
	steady        = 10 * time.Second
)

// errStandby ends an attempt at a gateway that has a tunnel already.
var errStandby = errors.New("the gateway is reached by another address")

// link is one control connection to one gateway, and the data connections that
// belong to it.
type link struct {
	agent   *agent
	addr    string
	target  string // what to dial in place of addr; "" for addr
	gateway string // its id
	reached string // where it was reached: the address that its name had
	tunnel  ID
	keys    keys
	data    string // where data connections go
	ceiling int
	talk    *talk
	parked  context.Context // done when parked connections are worth nothing any more
	voice   *voice          // shared with the gateway's next process
	elder   *link           // whose place this one takes; nil for none
	leaving chan struct{}   // closed when the next link to the gateway is to be made
	why     error           // of that; set before
	ends    time.Time       // the certificate that it has shown; the zero time when not known
	renew   time.Time       // when to make the next one: the certificates end soon
	end     context.CancelCauseFunc

	counter atomic.Uint64
	dialing chan struct{} // one slot per connection being dialed

	choosing sync.Mutex // held while carriers are tried
	chosen   Carrier    // guarded by choosing; "" before
	tried    time.Time  // when all before the chosen one were tried last; guarded by choosing

	mu     sync.Mutex
	held   int                // data connections dialed or parked
	back   time.Duration      // after a drain: when to come back
	unpark context.CancelFunc // ends parked
	ended  bool               // the control connection has
}

// keepLink keeps one address connected until the agent stops or no welcome
// names the address any more.
func (a *agent) keepLink(addr string) {
	pause, first := firstPause, true
	var next successor
	for a.Gate.pass(a.linkCtx) && a.wanted(addr) {
		began := time.Now()
		l := a.newLink(addr, next.address(began))
		err := l.run(a.linkCtx)
		if a.linkCtx.Err() != nil {
			return
		}
		if time.Since(began) > steady {
			pause = firstPause
		}
		wait := jitter(pause)
		pause = min(2*pause, mostPause(err))
		switch {
		case errors.Is(err, errStandby):
			wait = jitter(standbyPause)
		case errors.Is(err, errLeaving):
			next = successor{l.reached, time.Now()}
			wait, pause, first = l.comeBack(), firstPause, false
			a.Log.Info("the gateway has a new process", "gateway", addr, "dial_in", wait)
		case errors.Is(err, errRenewing):
			next = successor{l.reached, time.Now()}
			wait, pause, first = 0, firstPause, false
		case l.comeBack() > 0:
			wait = l.comeBack()
		}
		level := slog.LevelDebug
		if (l.talk != nil || first) && !l.isLeaving() { // it was up, or this is the first try; the rest is repetition
			level = slog.LevelInfo
		}
		first = false
		a.Log.Log(a.ctx, level, "no tunnel", "gateway", addr, "err", err, "again_in", wait)
		if turnedAway(err) && !a.rest(wait, l) || !turnedAway(err) && !sleep(a.linkCtx, wait) {
			return
		}
	}
}

// rest is the pause of an agent that was turned away. One that is long ends when it has
// something new to show: another certificate, or another assignment.
func (a *agent) rest(wait time.Duration, l *link) bool {
	_, changed := a.currentAssignment()
	for end := time.Now().Add(wait); ; {
		left := time.Until(end)
		if left <= longestPause {
			return sleep(a.linkCtx, max(left, 0))
		}
		select {
		case <-a.linkCtx.Done():
			return false
		case <-changed:
			return true
		case <-time.After(longestPause):
			if cfg, err := a.TLS(l.addr); err == nil && !certificateEnd(cfg).Equal(l.ends) {
				return true
			}
		}
	}
}

// run makes one tunnel and returns why it ended. With errLeaving, its gateway has a
// successor, and errRenewing the tunnel goes on until the next one is up.
func (l *link) run(ctx context.Context) error {
	open, stop := l.agent.Gate.while(ctx)
	defer stop()
	conn, err := l.connect(open)
	if err != nil {
		return err
	}
	if !l.agent.enter(l) {
		conn.NetConn().Close()
		return errStandby
	}
	sent, err := l.greet(open, conn)
	if err == nil {
		err = l.takeOver(conn)
	}
	if err != nil {
		conn.NetConn().Close()
		l.agent.leave(l)
		return err
	}
	l.agent.Log.Info("tunnel up", "gateway", l.addr, "gateway_id", l.gateway)
	return l.serve(ctx, sent)
}

func tunnelTLS(cfg *tls.Config, addr string) *tls.Config {
	cfg = cfg.Clone()
	cfg.MinVersion = tls.VersionTLS13
	cfg.NextProtos = []string{alpn.Tunnel1}
	if host, _, err := net.SplitHostPort(addr); err == nil && cfg.ServerName == "" {
		cfg.ServerName = host
	}
	return cfg
}

// greet says hello, with the assignment that it returns, and hears the welcome.
func (l *link) greet(ctx context.Context, conn *tls.Conn) (sent []byte, err error) {
	defer context.AfterFunc(ctx, func() { conn.NetConn().Close() })()
	if err := conn.SetDeadline(time.Now().Add(greetLimit)); err != nil { // lifted by talk
		return nil, err
	}
	sent, _ = l.agent.currentAssignment()
	hello := &tunnelv1.Hello{AgentId: l.agent.AgentID, Version: l.agent.Version, Assignment: sent, Follows: true}
	if err := putControl(conn, &tunnelv1.Control{Message: &tunnelv1.Control_Hello{Hello: hello}}, greetLimit); err != nil {
		return nil, err
	}
	m, err := ReadControl(conn)
	if err != nil {
		return nil, fmt.Errorf("welcome: %w", err)
	}
	if m.GetGoodbye() != nil {
		if newest, _ := l.agent.currentAssignment(); m.GetGoodbye().GetReason() == byeReason(errAssignment) && bytes.Equal(newest, sent) {
			l.agent.Outdated()
		}
		return nil, &goodbyeError{m.GetGoodbye().GetReason()}
	}
	if err := l.accept(m.GetWelcome(), conn); err != nil {
		return nil, err
	}
	return sent, conn.SetDeadline(time.Time{})
}

// goodbyeError is a goodbye in place of a welcome.
type goodbyeError struct{ reason string }

func (e *goodbyeError) Error() string { return ErrGoodbye.Error() + ": " + word(e.reason) }
func (e *goodbyeError) Unwrap() error { return ErrGoodbye }

// turnedAway says that a gateway has been reached, and takes no tunnel of this agent, or
// none is made to it, for a reason that does not go away by itself in a moment. Thousands
// of agents that are turned away are not to keep a gateway busy.
func turnedAway(err error) bool {
	if bye := new(goodbyeError); errors.As(err, &bye) {
		return bye.reason != byeReason(errDrained) && bye.reason != byeReason(context.Canceled)
	}
	if op := new(net.OpError); errors.As(err, &op) && op.Op == "remote error" { // so crypto/tls calls an alert
		return op.Err.Error() != "tls: internal error" // it is not ready
	}
	invalid := x509.CertificateInvalidError{}
	return isForeign(err) || errors.As(err, &invalid)
}

// isForeign says that who answers is of another cluster.
func isForeign(err error) bool {
	unknown := x509.UnknownAuthorityError{}
	return errors.As(err, &unknown)
}

// mostPause is the longest pause after this.
func mostPause(err error) time.Duration {
	switch {
	case isForeign(err):
		return foreignPause
	case turnedAway(err):
		return refusedPause
	}
	return longestPause
}

// accept takes over what the welcome says, within this side's own bounds.
func (l *link) accept(w *tunnelv1.Welcome, conn *tls.Conn) (err error) {
	if w == nil || len(w.GetTunnelId()) != idSize {
		return errors.New("the first message is not a welcome")
	}
	if w.GetGatewayId() != l.gateway {
		return errors.New("the welcome names another gateway than the certificate")
	}
	l.tunnel = ID(w.GetTunnelId())
	if l.keys, err = deriveKeys(conn.ConnectionState(), l.tunnel); err != nil {
		return err
	}
	l.data = dataAddress(w.GetDataAddress(), l.reached)
	l.ceiling = min(int(w.GetPoolCeiling()), l.agent.MaxPool)
	l.talk = newTalk(conn, pingTime(w.GetPingIntervalMs(), 2*time.Second), pingTime(w.GetDeadAfterMs(), 5*time.Second), time.Now)
	until := l.talk.until
	if !l.ends.IsZero() && l.ends.Before(until) {
		until = l.ends
	}
	l.renew = l.agent.renewal(time.Now(), until)
	if named := w.GetGateways(); len(named) > 0 {
		l.agent.dialAll(nil, named)
	}
	return nil
}

// dataAddress is where the very gateway is that the control connection
// reached: what it says, with its own host when it says only a port.
func dataAddress(said, reached string) string {
	host, port, err := net.SplitHostPort(said)
	if err != nil {
		return reached
	}
	if host != "" {
		return said
	}
	if host, _, err = net.SplitHostPort(reached); err != nil {
		return said
	}
	return net.JoinHostPort(host, port)
}

// pingTime keeps what a gateway says about times within reason: 100 ms to 60 s.
func pingTime(ms uint32, otherwise time.Duration) time.Duration {
	if ms == 0 {
		return otherwise
	}
	return min(max(time.Duration(ms)*time.Millisecond, 100*time.Millisecond), time.Minute)
}

// serve runs the control connection. Parked connections end with it, unless the
// gateway's next process has them; streams that run do not.
func (l *link) serve(ctx context.Context, sent []byte) error {
	userTimeout(l.talk.conn.NetConn(), l.talk.dead)
	l.parked, l.unpark = context.WithCancel(ctx)
	ctx, l.end = context.WithCancelCause(ctx)
	l.talk.tick = l.tick
	over := make(chan error, 1)
	l.agent.tasks.Go(func() { l.upserts(ctx, sent) })
	l.agent.tasks.Go(func() {
		err := l.talk.run(ctx, l.hear, l.over)
		l.end(err)
		l.talk.conn.NetConn().Close()
		if !l.isLeaving() { // else its place is the next one's
			l.agent.leave(l)
		}
		over <- err
	})
	select {
	case err := <-over:
		return err
	case <-l.leaving:
		return l.why
	}
}

// over is called when the control connection has ended, or is about to.
func (l *link) over() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = true
	l.unparkLocked()
}

// unparkLocked ends what is parked when it is worth nothing any more.
func (l *link) unparkLocked() {
	if l.ended && (l.held == 0 || !l.isLeaving()) {
		l.unpark()
	}
}

// upserts sends each assignment that is newer than the one that was sent last.
func (l *link) upserts(ctx context.Context, sent []byte) {
	for {
		now, changed := l.agent.currentAssignment()
		if string(now) != string(sent) {
			sent = now
			l.send(&tunnelv1.Control{Message: &tunnelv1.Control_Upsert{Upsert: &tunnelv1.Upsert{Assignment: now}}})
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

// hear acts on one message of the gateway. What later versions say is skipped.
func (l *link) hear(m *tunnelv1.Control) error {
	switch m := m.Message.(type) {
	case *tunnelv1.Control_Need:
		l.need(int(min(m.Need.GetConnections(), 1<<20)))
	case *tunnelv1.Control_PgCancel:
		l.pgCancel(m.PgCancel)
	case *tunnelv1.Control_Drain:
		l.drain(m.Drain)
	case *tunnelv1.Control_Welcome:
		return errors.New("a second welcome")
	}
	return nil
}

func (l *link) pgCancel(c *tunnelv1.PgCancel) {
	a := l.agent
	if len(c.GetSecretKey()) > maxSecretKey {
		return
	}
	select {
	case a.cancels <- struct{}{}:
	default:
		a.Log.Warn("cancel request dropped", "gateway_id", l.gateway, "under_way", maxCancels)
		return
	}
	a.tasks.Go(func() {
		defer func() { <-a.cancels }()
		a.Cancel(a.ctx, c.GetProcessId(), c.GetSecretKey())
	})
}

func (l *link) drain(d *tunnelv1.Drain) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if d.GetSuccessor() && !l.isLeaving() {
		l.voice.hush(l)
		defer l.leaveLocked(errLeaving)
	}
	l.back = min(max(time.Duration(d.GetComeBackAfterMs())*time.Millisecond, time.Millisecond), longestAbsent)
}

func (l *link) comeBack() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.back
}

func (l *link) streamUp(id ID) {
	l.voice.say(&tunnelv1.Control{Message: &tunnelv1.Control_StreamUp{StreamUp: &tunnelv1.StreamUp{ConnectionId: id[:]}}})
}

func (l *link) streamRefused(id ID, reason string) {
	l.voice.say(&tunnelv1.Control{Message: &tunnelv1.Control_StreamRefused{
		StreamRefused: &tunnelv1.StreamRefused{ConnectionId: id[:], Reason: word(reason)},
	}})
}

// send leaves a message for the writer. A gateway that does not read a thousand
// of them is cut off: it is tried again, with a new tunnel.
func (l *link) send(m *tunnelv1.Control) {
	if !l.talk.send(m) {
		l.talk.conn.NetConn().Close()
	}
}

// jitter spreads a pause over its upper half, so that agents do not come in step.
func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d/2) }

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
