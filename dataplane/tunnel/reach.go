package tunnel

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/alpn"
	"github.com/sallyport/sallyport/dataplane/carrier"
)

// How an agent gets through to a gateway. A control connection is TLS: it goes
// directly, or inside a WebSocket where what is on the way ends TLS, or, as often as
// straightTries say, lets no TLS of this kind through:
//
//	handshake ─ done ─▶ the control connection
//	    └─ failed ─▶ who ends TLS there? ─ the gateway ─▶ the failure
//	                         └─ somebody else ─▶ WebSocket ─▶ handshake inside
//
// For data connections the carriers are tried in order, once per tunnel, by one
// connection that asks for an answer. Where that was none of the first, another such
// connection tries those before it again each fasterEvery: networks get better, too,
// and an answer may merely have been late.
//
//	TCP ─ no answer ─▶ TLS ─ no answer ─▶ WebSocket ─ no answer ─▶ the next request
//	 └───────── answer ─┴───────── answer ──┴─▶ all others of this tunnel

// answerLimit is how long the answer to a data hello may take.
const answerLimit = 3 * time.Second

// knownFor is how long an agent remembers what got through to an address. Then
// it tries again from the first.
const knownFor = time.Hour

// fasterEvery is how often a tunnel with a slower carrier tries the faster ones.
const fasterEvery = 5 * time.Minute

// straightTries is how many handshakes in a row that the gateway itself must have
// failed before the control connection goes inside a WebSocket nevertheless: something
// on the way may let no other TLS through than that of the web.
const straightTries = 5

// way is what got through to an address.
type way struct {
	control Carrier // CarrierTLS, or CarrierWebSocket
	data    Carrier // "" when not known yet
	since   time.Time
	failed  int // handshakes that went straight, since the last that was done
}

func (a *agent) knownWay(addr string) way {
	a.mu.Lock()
	defer a.mu.Unlock()
	w := a.known[addr]
	if time.Since(w.since) > knownFor {
		return way{}
	}
	return w
}

// learn notes what got through; the time counts from the first of it.
func (a *agent) learn(addr string, change func(*way)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	w := a.known[addr]
	if time.Since(w.since) > knownFor {
		w = way{since: time.Now()}
	}
	change(&w)
	a.known[addr] = w
}

// connect makes the control connection; then the gateway is known by its
// certificate.
func (l *link) connect(ctx context.Context) (*tls.Conn, error) {
	ways := []Carrier{CarrierTLS}
	if slices.Contains(l.agent.Carriers, CarrierWebSocket) {
		ways = append(ways, CarrierWebSocket)
	}
	if l.agent.knownWay(l.addr).control == CarrierWebSocket {
		slices.Reverse(ways)
	}
	var all []error
	for _, by := range ways {
		conn, err := l.control(ctx, by)
		if err == nil {
			l.through(by)
			return conn, nil
		}
		if !errors.Is(err, carrier.ErrNotEnded) {
			all = append(all, err)
		}
		if ctx.Err() != nil || errors.Is(err, errNobody) {
			break
		}
	}
	return nil, errors.Join(all...)
}

// errNobody: there was no TCP connection, so there is none inside a WebSocket.
var errNobody = errors.New("cannot be reached")

func (l *link) through(by Carrier) {
	if by != CarrierTLS {
		l.agent.Log.Info("control connection goes inside a WebSocket: what is on the way lets nothing else through", "gateway", l.addr)
	}
	l.agent.learn(l.addr, func(w *way) { w.control, w.failed = by, 0 })
}

// control makes a control connection directly, or inside a WebSocket.
func (l *link) control(ctx context.Context, by Carrier) (*tls.Conn, error) {
	cfg, err := l.agent.TLS(l.addr)
	if err != nil {
		return nil, err
	}
	var under net.Conn
	if by == CarrierWebSocket {
		under, l.reached, err = l.dialWebSocket(ctx, l.where(), l.straight())
	} else {
		under, l.reached, err = l.dialTCP(ctx, l.where())
	}
	if err != nil {
		return nil, err
	}
	l.ends = certificateEnd(cfg)
	conn, id, err := l.handshake(ctx, under, cfg)
	if err != nil {
		if by == CarrierTLS && ctx.Err() == nil {
			l.agent.learn(l.addr, func(w *way) { w.failed++ })
		}
		return nil, err
	}
	l.gateway = id
	return conn, nil
}

// straight says that the control connection goes straight where nothing on the way
// ends TLS: it has not failed often enough yet.
func (l *link) straight() bool {
	w := l.agent.knownWay(l.addr)
	return w.control != CarrierWebSocket && w.failed < straightTries
}

// handshake ends TLS with a gateway, and says which one it is. It owns under.
func (l *link) handshake(ctx context.Context, under net.Conn, cfg *tls.Config) (*tls.Conn, string, error) {
	conn := tls.Client(under, tunnelTLS(cfg, l.addr))
	hctx, cancel := context.WithTimeout(ctx, greetLimit)
	defer cancel()
	if err := conn.HandshakeContext(hctx); err != nil {
		under.Close()
		return nil, "", err
	}
	id, err := peerID(conn.ConnectionState(), sallyport.KindGateway, l.agent.Cluster)
	if err == nil && l.agent.Refused != nil {
		err = l.agent.Refused(id)
	}
	if err != nil {
		under.Close()
		return nil, "", err
	}
	return conn, id, nil
}

// dialTCP connects to an address, by its proxy if it has one, and says which
// address of its name it was. Behind a proxy that is not known.
func (l *link) dialTCP(ctx context.Context, addr string) (conn net.Conn, reached string, err error) {
	ctx, cancel := context.WithTimeout(ctx, dialLimit)
	defer cancel()
	a := l.agent
	if a.Proxy != nil {
		proxy, err := a.Proxy(l.named(addr))
		if err != nil {
			return nil, "", fmt.Errorf("%w: %w", errNobody, err)
		}
		if proxy != nil {
			conn, err := connectBy(ctx, a.Dial, proxy, addr)
			if err != nil {
				return nil, "", fmt.Errorf("%w: %w", errNobody, err)
			}
			return conn, addr, nil
		}
	}
	if conn, err = a.Dial(ctx, "tcp", addr); err != nil {
		return nil, "", fmt.Errorf("%w: %w", errNobody, err)
	}
	return conn, conn.RemoteAddr().String(), nil
}

// dialWebSocket makes a WebSocket to a gateway's web origin, and returns the
// other end of the pair that it is pumped into. Nothing is believed of the TLS
// around it: what is inside is authenticated by itself, as on plain TCP. With
// needed it fails where nothing on the way ends TLS.
func (l *link) dialWebSocket(ctx context.Context, addr string, needed bool) (conn net.Conn, reached string, err error) {
	under, reached, err := l.dialTCP(ctx, addr)
	if err != nil {
		return nil, "", err
	}
	cfg, err := l.agent.TLS(l.addr)
	if err != nil {
		under.Close()
		return nil, "", err
	}
	name := tunnelTLS(cfg, l.addr).ServerName
	ctx, cancel := context.WithTimeout(ctx, greetLimit)
	defer cancel()
	to := carrier.Origin{Name: name, Path: UpgradePath, Pinned: alpn.Pinned1}
	if needed {
		to.Own = l.agent.Own
	}
	s, err := carrier.DialSocket(ctx, under, to)
	if err != nil {
		under.Close()
		return nil, "", fmt.Errorf("WebSocket: %w", err)
	}
	far, local, err := carrier.ConnPair()
	if err != nil {
		s.Abort()
		return nil, "", err
	}
	l.agent.tasks.Go(func() { carrier.Pump(l.agent.ctx, s, local) })
	return far, reached, nil
}

// open makes a data connection and says its hello. The first of a tunnel finds
// out how; the others wait for it.
func (l *link) open() (net.Conn, Binding, error) {
	l.choosing.Lock()
	if by := l.chosen; by != "" {
		faster := l.faster()
		l.choosing.Unlock()
		if conn, at, used, err := l.openFirst(faster); err == nil {
			l.choosing.Lock()
			defer l.choosing.Unlock()
			l.choose(used)
			return conn, at, nil
		}
		return l.openBy(by, false)
	}
	defer l.choosing.Unlock()
	conn, at, by, err := l.openFirst(l.order())
	if err == nil {
		l.choose(by)
	}
	return conn, at, err
}

// openFirst opens by the first carrier that gets through.
func (l *link) openFirst(carriers []Carrier) (conn net.Conn, at Binding, by Carrier, err error) {
	all := []error{errNoCarrier}
	for _, by := range carriers {
		if err := l.parked.Err(); err != nil {
			return nil, Binding{}, "", err
		}
		conn, at, err := l.openBy(by, true)
		if err == nil {
			return conn, at, by, nil
		}
		all = append(all, fmt.Errorf("%s: %w", by, err))
	}
	return nil, Binding{}, "", errors.Join(all...)
}

var errNoCarrier = errors.New("no data connection gets through")

// faster are the carriers before the chosen one when it is time to try them again,
// with choosing held.
func (l *link) faster() []Carrier {
	at := slices.Index(l.agent.Carriers, l.chosen)
	if at <= 0 || time.Since(l.tried) < l.agent.fasterEvery {
		return nil
	}
	l.tried = time.Now()
	return l.agent.Carriers[:at]
}

// order is what to try: first what got through the last time.
func (l *link) order() []Carrier {
	all := slices.Clone(l.agent.Carriers)
	if i := slices.Index(all, l.agent.knownWay(l.addr).data); i > 0 {
		all[0], all[i] = all[i], all[0]
		slices.SortStableFunc(all[1:], func(a, b Carrier) int {
			return slices.Index(l.agent.Carriers, a) - slices.Index(l.agent.Carriers, b)
		})
	}
	return all
}

// choose makes it the carrier of the tunnel, with choosing held.
func (l *link) choose(by Carrier) {
	l.chosen, l.tried = by, time.Now()
	l.agent.learn(l.addr, func(w *way) { w.data = by })
	if by != l.agent.Carriers[0] {
		l.agent.Log.Warn("data connections take a slower carrier: what is on the way lets no other through", "gateway", l.addr, "carrier", string(by))
		return
	}
	l.agent.Log.Debug("data connections", "gateway", l.addr, "carrier", string(by))
}

// chooseAgain makes the next data connection find out anew how to get through.
func (l *link) chooseAgain() {
	l.choosing.Lock()
	defer l.choosing.Unlock()
	l.chosen = ""
}

// openBy makes a data connection inside a carrier, and says its hello.
func (l *link) openBy(by Carrier, answer bool) (conn net.Conn, at Binding, err error) {
	switch by {
	case CarrierTCP:
		conn, _, err = l.dialTCP(l.parked, l.data)
	case CarrierTLS:
		conn, err = l.dialTLS()
	case CarrierWebSocket:
		conn, _, err = l.dialWebSocket(l.parked, l.data, false)
	default:
		err = fmt.Errorf("unknown carrier %q", string(by))
	}
	if err != nil {
		return nil, at, err
	}
	at = Binding{Tunnel: l.tunnel, Counter: l.counter.Add(1)}
	opened := conn // what is returned may be nil
	stop := context.AfterFunc(l.parked, func() { opened.Close() })
	defer stop()
	if err = l.sayHello(conn, DataHello{at.Tunnel, at.Counter, answer}, l.agent.answerWait(by)); err != nil {
		conn.Close()
		return nil, at, err
	}
	return conn, at, nil
}

// dialTLS makes TLS to the very gateway of this tunnel.
func (l *link) dialTLS() (net.Conn, error) {
	cfg, err := l.agent.TLS(l.addr)
	if err != nil {
		return nil, err
	}
	under, _, err := l.dialTCP(l.parked, l.data)
	if err != nil {
		return nil, err
	}
	conn, id, err := l.handshake(l.parked, under, cfg)
	if err != nil {
		return nil, err
	}
	if id != l.gateway {
		conn.Close()
		return nil, errors.New("the data address is another gateway's")
	}
	return conn, nil
}
