package tunnel

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/sallyport/sallyport"
	tunnelv1 "github.com/sallyport/sallyport/wire/sallyport/tunnel/v1"
)

// Why the gateway ends a control connection.
var (
	errReplaced = errors.New("the agent has a newer tunnel")
	errDrained  = errors.New("the gateway drains")
	errTooMany  = errors.New("too many control connections")
	errEvicted  = errors.New("the agent was sent away")

	errGreetings = errors.New("too many connections, or too much in their hellos, before a welcome")

	errNoCarriers     = errors.New("no loops for carried data connections")
	errTooManyCarried = errors.New("too many carried data connections")

	errAssignment = errors.New("assignment refused")
)

// Serve serves one agent's connection until it ends, and closes it: a control
// connection, or a data connection inside TLS. The TLS layer has checked, or will
// check during the handshake, that the peer's certificate chains to the host CA.
// The error says why a control connection ended; there is always one.
func (h *Hub) Serve(ctx context.Context, conn *tls.Conn) error {
	return h.serve(ctx, conn, func() {})
}

// serve is Serve that calls lift when it is known who is at the other end.
func (h *Hub) serve(ctx context.Context, conn *tls.Conn, lift func()) error {
	h.greeted.Add(1)
	greeted := sync.OnceFunc(func() { h.greeted.Add(-1) })
	defer greeted()
	place, head, err := h.meet(ctx, conn)
	if err != nil {
		conn.NetConn().Close()
		h.counters.add("control_refused")
		return err
	}
	defer place.leave()
	if string(head) == Magic {
		greeted()
		return h.serveData(ctx, inbound{Conn: conn, kind: carriedTLS, head: head, from: addrOf(conn), lift: func() {
			lift()
			place.leave()
			_ = conn.SetDeadline(time.Time{}) // fails on a closed connection: the pump finds out
		}})
	}
	lift()
	return h.serveControl(ctx, conn, place, head)
}

func (h *Hub) serveControl(ctx context.Context, conn *tls.Conn, place *greeting, head []byte) error {
	t, err := h.greet(ctx, conn, place, head)
	place.leave()
	if err != nil {
		conn.NetConn().Close()
		h.counters.add("control_refused")
		return err
	}
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	defer context.AfterFunc(h.over, func() { conn.NetConn().Close() })()
	t.end = end
	if err = h.begin(t); err == nil {
		err = h.talk(ctx, t)
	} else {
		h.turnAway(conn, err)
	}
	conn.NetConn().Close()
	h.counters.add(endReason(err))
	return fmt.Errorf("agent %s: %w", t.agent, err)
}

// begin makes a tunnel findable, unless another process has them all.
func (h *Hub) begin(t *tunnel) error {
	h.gate.RLock()
	defer h.gate.RUnlock()
	if h.left.Load() {
		return errDrained
	}
	h.open(t)
	return nil
}

// talk is a tunnel's life from the welcome to its end.
func (h *Hub) talk(ctx context.Context, t *tunnel) error {
	ended := func() {
		h.gate.RLock()
		defer h.gate.RUnlock()
		h.close(t)
	}
	defer ended()
	if err := h.welcome(t); err != nil {
		return err
	}
	h.gate.RLock()
	h.announce(t)
	h.gate.RUnlock()
	hear := func(m *tunnelv1.Control) error {
		t.pace(m)
		return h.hear(t, m)
	}
	return t.talk.run(ctx, hear, ended)
}

// meet ends the handshake, takes a place among those that are greeted, and reads
// what the agent says first.
func (h *Hub) meet(ctx context.Context, conn *tls.Conn) (place *greeting, head []byte, err error) {
	deadline := time.Now().Add(h.bounds.HelloWait) // lifted by greet or serveData, once the agent is known
	if err := conn.SetDeadline(deadline); err != nil {
		return nil, nil, err
	}
	defer context.AfterFunc(ctx, func() { conn.NetConn().Close() })()
	defer context.AfterFunc(h.over, func() { conn.NetConn().Close() })()
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, nil, fmt.Errorf("control connection: %w", err)
	}
	agent, err := peerID(conn.ConnectionState(), sallyport.KindAgent, h.cfg.Cluster)
	if err != nil {
		return nil, nil, err
	}
	if place = h.greetings.enter(agent, h.bounds.Greetings); place == nil {
		h.counters.add("greeting_full")
		return nil, nil, fmt.Errorf("agent %s: %w", agent, errGreetings)
	}
	if c, ok := conn.NetConn().(*innerConn); ok {
		if err := c.settle(); err != nil {
			place.leave()
			return nil, nil, fmt.Errorf("agent %s: %w", agent, err)
		}
	}
	head = make([]byte, magicSize)
	if _, err := io.ReadFull(conn, head); err != nil {
		place.leave()
		return nil, nil, fmt.Errorf("agent %s: hello: %w", agent, err)
	}
	return place, head, nil
}

// greet does what must be done before anything is promised: the agent's hello,
// the check of its assignment, and the tunnel's keys.
func (h *Hub) greet(ctx context.Context, conn *tls.Conn, place *greeting, head []byte) (*tunnel, error) {
	defer context.AfterFunc(ctx, func() { conn.NetConn().Close() })()
	defer context.AfterFunc(h.over, func() { conn.NetConn().Close() })()
	t, err := h.hello(conn, place, head)
	if err != nil {
		h.turnAway(conn, err)
		return nil, fmt.Errorf("agent %s: %w", place.agent, err)
	}
	if t.keys, err = deriveKeys(conn.ConnectionState(), t.id); err != nil {
		return nil, err
	}
	return t, conn.SetDeadline(time.Time{})
}

// turnAway tells an agent of this cluster in a word why it gets no tunnel.
func (h *Hub) turnAway(conn *tls.Conn, why error) {
	bye := &tunnelv1.Goodbye{Reason: byeReason(why)}
	if putControl(conn, &tunnelv1.Control{Message: &tunnelv1.Control_Goodbye{Goodbye: bye}}, lastWords) == nil {
		conn.Close()
	}
}

func (h *Hub) hello(conn *tls.Conn, place *greeting, head []byte) (*tunnel, error) {
	agent, size := place.agent, controlSize(head)
	if size > MaxControl {
		return nil, fmt.Errorf("hello: %w", ErrTooLarge)
	}
	if !place.claim(size) {
		h.counters.add("greeting_full")
		return nil, fmt.Errorf("hello: %w", errGreetings)
	}
	m, err := ReadControl(io.MultiReader(bytes.NewReader(head), conn))
	if err != nil {
		return nil, fmt.Errorf("hello: %w", err)
	}
	hello := m.GetHello()
	if hello == nil {
		return nil, errors.New("the first message is not a hello")
	}
	if hello.GetAgentId() != agent {
		return nil, errors.New("the hello names another agent than the certificate")
	}
	t := &tunnel{
		id: newID(), agent: agent, version: word(hello.GetVersion()), since: h.cfg.Now(), follows: hello.GetFollows(),
		pool: newPool(h.bounds, h.parking), talk: newTalk(conn, h.bounds.PingInterval, h.bounds.DeadAfter, h.cfg.Now),
	}
	t.names.Store(&map[resourceName]bool{})
	t.talk.pull = func() []*tunnelv1.Control { return h.needs(t) }
	t.talk.tick = func(time.Time) { h.tick(t) }
	if err := h.room(); err != nil {
		return nil, err
	}
	return t, h.adopt(t, hello.GetAssignment())
}

func (h *Hub) room() error {
	if h.draining.Load() {
		return errDrained
	}
	h.mu.RLock()
	defer h.mu.RUnlock()
	if len(h.tunnels)-len(h.orphans) >= h.bounds.Tunnels {
		return errTooMany
	}
	return nil
}

// adopt checks an assignment and makes it the tunnel's own. What is routed
// changes with route.
func (h *Hub) adopt(t *tunnel, raw []byte) error {
	a, err := h.examine(raw, t.agent)
	if err != nil {
		return err
	}
	if err := h.renew(t.agent, a); err != nil {
		return err
	}
	t.assignment.Store(&assignmentView{Assignment: a, raw: raw})
	return nil
}

// examine checks an assignment of an agent.
func (h *Hub) examine(raw []byte, agent string) (Assignment, error) {
	a, err := h.cfg.Verify(raw, agent)
	if err != nil {
		return a, fmt.Errorf("%w: %w", errAssignment, err)
	}
	if h.expired(a) {
		return a, fmt.Errorf("%w: expired", errAssignment)
	}
	if len(a.Resources) > h.bounds.Resources {
		return a, fmt.Errorf("%w: %d resources, at most %d", errAssignment, len(a.Resources), h.bounds.Resources)
	}
	return a, nil
}

// renew refuses an older assignment than one that was shown before.
func (h *Hub) renew(agent string, a Assignment) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if a.Revision < h.revisions[agent].number {
		return fmt.Errorf("%w: revision %d, but %d was shown before", errAssignment, a.Revision, h.revisions[agent].number)
	}
	h.revisions[agent] = revision{a.Revision, a.NotAfter}
	return nil
}

func (h *Hub) expired(a Assignment) bool {
	return !a.NotAfter.IsZero() && !h.cfg.Now().Before(a.NotAfter)
}

// welcome is written when the tunnel's key can be found already: the agent's
// first data connection may be faster than anything that is done after it.
func (h *Hub) welcome(t *tunnel) error {
	w := &tunnelv1.Welcome{
		GatewayId:      h.cfg.GatewayID,
		TunnelId:       t.id[:],
		DataAddress:    h.cfg.DataAddress,
		Gateways:       h.cfg.Gateways(),
		PoolFloor:      uint32(h.bounds.PoolFloor),
		PoolCeiling:    uint32(h.bounds.PoolCeiling),
		PingIntervalMs: uint32(h.bounds.PingInterval.Milliseconds()),
		DeadAfterMs:    uint32(h.bounds.DeadAfter.Milliseconds()),
	}
	return t.talk.put(&tunnelv1.Control{Message: &tunnelv1.Control_Welcome{Welcome: w}})
}

// What an agent says of its names is verified, logged and reported to auth: of
// such messages changesAtOnce are heard at once, and then one each changeEvery.
// A message that comes sooner waits, and so does what is behind it.
const (
	changesAtOnce = 20
	changeEvery   = time.Second / 2
)

// pace holds an agent up that changes its names too fast. It is the reader's: the
// agent goes on hearing what this side has to say.
func (t *tunnel) pace(m *tunnelv1.Control) {
	switch m.Message.(type) {
	case *tunnelv1.Control_Upsert, *tunnelv1.Control_Delete:
		time.Sleep(t.changes.delay(time.Now(), changeEvery, changesAtOnce))
	}
}

// hear acts on one message of an agent. An error ends the tunnel; what later
// versions say is skipped. While tunnels are frozen it waits; what comes when
// another process has them is nobody's: the agent says it again there.
func (h *Hub) hear(t *tunnel, m *tunnelv1.Control) error {
	h.gate.RLock()
	defer h.gate.RUnlock()
	if h.left.Load() {
		return nil
	}
	switch m := m.Message.(type) {
	case *tunnelv1.Control_Upsert:
		h.upsert(t, m.Upsert.GetAssignment())
	case *tunnelv1.Control_Delete:
		h.unroute(t, m.Delete.GetNames())
	case *tunnelv1.Control_Retire:
		h.retire(t, m.Retire.GetCounters())
	case *tunnelv1.Control_StreamUp:
		h.streamUp(t, m.StreamUp.GetConnectionId())
	case *tunnelv1.Control_StreamRefused:
		h.streamRefused(t, m.StreamRefused)
	case *tunnelv1.Control_Hello:
		return errors.New("a second hello")
	}
	return nil
}

// upsert takes a new assignment over. A bad one is logged, and the old one
// stays: an agent does not lose its resources by a late message. The present one
// brings back what a Delete has taken, and is no news to anybody.
func (h *Hub) upsert(t *tunnel, raw []byte) {
	if now := t.assignment.Load(); bytes.Equal(now.raw, raw) && !h.expired(now.Assignment) {
		h.reroute(t, now)
		return
	}
	if err := h.adopt(t, raw); err != nil {
		h.counters.add("upsert_refused")
		h.cfg.Log.Warn("new assignment refused", "agent", t.agent, "err", err)
		return
	}
	h.announce(t)
}

func (h *Hub) retire(t *tunnel, counters []uint64) {
	counters = counters[:min(len(counters), h.bounds.PoolCeiling)]
	h.drop(t, t.pool.byCounter(counters))
}

func (h *Hub) drop(t *tunnel, entries []*entry) {
	discard(entries)
	for range entries {
		h.counters.add("retired")
	}
	t.askForMore()
}

func (h *Hub) streamUp(t *tunnel, id []byte) {
	l := t.leased(id)
	if l == nil {
		return // ended meanwhile
	}
	h.settle(l, true)
	if h.cfg.Proven != nil {
		h.cfg.Proven(l.admission.source.Addr())
	}
	l.up.Store(true) // who sees it finds its source known
	h.counters.add("stream_up")
}

func (h *Hub) streamRefused(t *tunnel, r *tunnelv1.StreamRefused) {
	l := t.leased(r.GetConnectionId())
	if l == nil {
		return
	}
	h.settle(l, false)
	h.counters.add("stream_refused")
	h.cfg.Log.Debug("stream refused", "agent", t.agent, "resource", l.Kind+"/"+l.Name, "reason", word(r.GetReason()))
}

func (t *tunnel) leased(id []byte) *Lease {
	if len(id) != idSize {
		return nil
	}
	if l := t.pool.leased(ID(id)); l != nil {
		return l
	}
	if elders := t.elders.Load(); elders != nil {
		for _, e := range *elders {
			if l := e.pool.leased(ID(id)); l != nil {
				return l
			}
		}
	}
	return nil
}

// needs is what the writer says when it was poked. The writer pings: it does
// not wait for a thaw, which pokes it again.
func (h *Hub) needs(t *tunnel) []*tunnelv1.Control {
	if !h.gate.TryRLock() {
		return nil
	}
	defer h.gate.RUnlock()
	if h.left.Load() {
		return nil
	}
	n := t.pool.need()
	if n == 0 {
		return nil
	}
	return []*tunnelv1.Control{{Message: &tunnelv1.Control_Need{Need: &tunnelv1.Need{Connections: uint32(n)}}}}
}

// tick follows the demand, and stops serving what has expired. It does not wait
// for a thaw either.
func (h *Hub) tick(t *tunnel) {
	if !h.gate.TryRLock() {
		return
	}
	defer h.gate.RUnlock()
	if h.left.Load() {
		return
	}
	retired, lost := t.pool.tick(h.cfg.Now())
	h.counters.m["need_lost"].Add(uint64(lost))
	h.drop(t, retired)
	if a := t.assignment.Load(); h.expired(a.Assignment) && len(*t.names.Load()) > 0 {
		h.cfg.Log.Warn("assignment expired", "agent", t.agent)
		h.setNames(t, map[resourceName]bool{})
	}
}

// addrOf is where a connection comes from; the zero value for one that is
// inside another.
func addrOf(c net.Conn) netip.AddrPort {
	if a, ok := c.RemoteAddr().(*net.TCPAddr); ok {
		return a.AddrPort()
	}
	return netip.AddrPort{}
}

func endReason(err error) string {
	if errors.Is(err, ErrDead) || isTimeout(err) {
		return "control_dead"
	}
	return "control_ended"
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}
