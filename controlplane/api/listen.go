package api

import (
	"container/list"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/pires/go-proxyproto"
	"golang.org/x/net/http2"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/identity"
)

//lint:file-ignore SA1019 net/http speaks HTTP/2 by the protocol id h2 alone; ours are sallyport-auth/1 and sallyport-join/1

// Protocol ids of auth's two doors.
const (
	protocolAuth = "sallyport-auth/1"
	protocolJoin = "sallyport-join/1"
)

const (
	handshakeTimeout = 10 * time.Second // PROXY header and TLS
	idleTimeout      = 2 * time.Minute
	headerTimeout    = 10 * time.Second
	bodyTimeout      = 30 * time.Second // of one request
	maxHeader        = 64 << 10

	pingAfter   = 15 * time.Second // of silence
	pingTimeout = 5 * time.Second

	// A host joins in one call.
	joinTimeout = 30 * time.Second
	joinIdle    = 10 * time.Second
	joinStreams = 4

	// maxConnections bounds what one listener holds at a time; maxStrangers
	// what of it has not shown a certificate, or one that is good for nothing
	// now, or for its renewal alone. A stranger too many takes the place of the oldest, so that those who
	// hold connections and say nothing keep nobody out: a handshake takes much
	// less time than they have.
	maxConnections = 20000
	maxStrangers   = 1024

	// maxUsers is what people may have of maxConnections: hosts, which are told
	// of locks, find room whatever people do.
	maxUsers = maxConnections * 3 / 4

	// maxPerCaller bounds what one user or host has of them. Automation runs
	// many programs as one user at a time, each with a connection that it has
	// no more use for but keeps.
	maxPerCaller = 256
)

// Listener serves the API over TLS. Serve may be called for several listeners
// at once; the bounds hold for all of them together.
type Listener struct {
	Handler     http.Handler
	Certificate func() (*tls.Certificate, error) // auth's own, with its CA behind it
	UserCAs     func() *x509.CertPool
	HostCAs     func() *x509.CertPool
	Cluster     string

	// BehindGateway reads a PROXY header before TLS: for the Unix socket that
	// only this machine's gateway and hosts open. Only there is the address of
	// a client known, so only there can certificates be used that are bound to
	// one: the other end of a TCP connection may be a gateway of another
	// machine, whose address would be that of all its clients.
	BehindGateway bool

	// Standing says why somebody with a good certificate may call nothing now:
	// locked, for example. He is told at his calls and counts as a stranger. It
	// is called within the time of a handshake; nil: there is no reason.
	Standing func(ctx context.Context, c Caller) error

	Log *slog.Logger

	mu        sync.Mutex
	conns     map[net.Conn]*held
	strangers *list.List                // of net.Conn, the oldest first
	callers   map[callerName]*list.List // of *held, the oldest first
	users     int                       // of conns, people's
	sockets   map[net.Listener]struct{}
	serving   sync.WaitGroup // calls of Serve
	draining  bool

	entrances func() *entrances // made by the first call of Serve
}

// held is a connection that is open. It is guarded by Listener.mu.
type held struct {
	stranger *list.Element // of strangers, or nil
	shaken   bool          // its handshake has ended

	// Of those who are known.
	caller callerName
	place  *list.Element // of callers, or nil
	conn   *farewell
}

// callerName is whose connections are counted together.
type callerName struct {
	kind sallyport.IdentityKind
	name string
}

// Serve accepts until ctx is done, or Drain is called. When ctx is done ln and
// the connections that are open are closed; Drain leaves ln as it is.
func (l *Listener) Serve(ctx context.Context, ln net.Listener) error {
	if !l.begin(ln) {
		return nil
	}
	defer l.serving.Done()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() {
		ln.Close()
		l.closeAll()
	})
	var wg sync.WaitGroup
	err := l.accept(ctx, ln, &wg)
	if !l.leaving() {
		l.closeAll()
	}
	wg.Wait()
	stop() // after Drain: ln is somebody else's
	return err
}

// accept starts a goroutine of wg for each connection.
func (l *Listener) accept(ctx context.Context, ln net.Listener, wg *sync.WaitGroup) error {
	for {
		conn, err := ln.Accept()
		if ctx.Err() != nil {
			if err == nil {
				conn.Close()
			}
			return nil
		}
		if err == nil {
			if !l.add(conn) {
				conn.Close()
				continue
			}
			wg.Go(func() {
				defer l.remove(conn)
				l.serve(ctx, conn)
			})
			continue
		}
		if l.leaving() {
			return nil
		}
		if errors.Is(err, net.ErrClosed) {
			return err
		}
		l.Log.Warn("accept", "error", err)
		if pause(ctx, 100*time.Millisecond) != nil {
			return nil
		}
	}
}

// add takes a stranger in.
func (l *Listener) add(c net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conns == nil {
		l.conns, l.strangers = map[net.Conn]*held{}, list.New()
	}
	if l.strangers.Len() >= maxStrangers {
		oldest := l.strangers.Front()
		old := l.strangers.Remove(oldest).(net.Conn)
		l.conns[old].stranger = nil // its own goroutine removes it
		old.Close()
	}
	if len(l.conns) >= maxConnections+maxStrangers {
		return false
	}
	l.conns[c] = &held{stranger: l.strangers.PushBack(c)}
	return true
}

// shaken says that the connection's handshake has ended.
func (l *Listener) shaken(c net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if h := l.conns[c]; h != nil {
		h.shaken = true
	}
}

// known says that the connection's other end has shown a certificate that is
// good now. It is false when there is no room for one more of that caller, of
// people, or of all.
func (l *Listener) known(raw net.Conn, c Caller, conn *farewell) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := l.conns[raw]
	if h == nil {
		return false
	}
	if h.stranger != nil {
		l.strangers.Remove(h.stranger)
		h.stranger = nil
	}
	name := callerName{c.Identity.Kind, c.Identity.Name}
	if len(l.conns)-l.strangers.Len() > maxConnections || name.kind == sallyport.KindUser && l.users >= maxUsers {
		return false
	}
	own := l.callers[name]
	if own == nil {
		own = list.New()
	}
	if own.Len() >= maxPerCaller && !l.makeRoomLocked(own) {
		return false
	}
	if l.callers == nil {
		l.callers = map[callerName]*list.List{}
	}
	l.callers[name] = own
	h.caller, h.conn, h.place = name, conn, own.PushBack(h)
	if name.kind == sallyport.KindUser {
		l.users++
	}
	return true
}

// makeRoomLocked closes the oldest of a caller's connections that no call is
// on: its client opens another one when it needs it. It is false when there is
// none.
func (l *Listener) makeRoomLocked(own *list.List) bool {
	for e := own.Front(); e != nil; e = e.Next() {
		if h := e.Value.(*held); h.conn.isQuiet() {
			l.forgetLocked(h)
			h.conn.NetConn().Close() // its own goroutine removes it
			return true
		}
	}
	return false
}

// forgetLocked counts a connection no more as its caller's.
func (l *Listener) forgetLocked(h *held) {
	if h.place == nil {
		return
	}
	own := l.callers[h.caller]
	own.Remove(h.place)
	h.place = nil
	if own.Len() == 0 {
		delete(l.callers, h.caller)
	}
	if h.caller.kind == sallyport.KindUser {
		l.users--
	}
}

func (l *Listener) remove(c net.Conn) {
	c.Close()
	l.mu.Lock()
	defer l.mu.Unlock()
	if h := l.conns[c]; h != nil {
		if h.stranger != nil {
			l.strangers.Remove(h.stranger)
		}
		l.forgetLocked(h)
	}
	delete(l.conns, c)
}

func (l *Listener) closeAll() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for c := range l.conns {
		c.Close()
	}
}

// serve ends TLS, says who is calling, and hands over to HTTP/2.
func (l *Listener) serve(ctx context.Context, raw net.Conn) {
	tc, caller, err := l.handshake(ctx, raw)
	if err != nil {
		l.Log.Debug("handshake", "from", raw.RemoteAddr(), "error", err)
		return
	}
	l.shaken(raw)
	conn := &farewell{Conn: tc}
	in, life, handler := &l.entrances().join, joinTimeout, l.Handler
	if audienceOf(caller)&(nobody|endedHost) == 0 && l.stands(ctx, caller) {
		if !l.known(raw, caller, conn) {
			l.Log.Debug("no room for the connection", "caller", caller.name(), "from", raw.RemoteAddr())
			return
		}
		in, life, handler = &l.entrances().hosts, time.Until(caller.Identity.NotAfter), lastCalls(caller.Identity.NotAfter, l.Handler)
		if caller.Identity.Kind == sallyport.KindUser {
			in = &l.entrances().people
		}
	}
	// A connection ends with the certificate that opened it.
	end := time.AfterFunc(life, func() { raw.Close() })
	defer end.Stop()
	in.h2.ServeConn(conn, &http2.ServeConnOpts{Context: WithCaller(ctx, caller), Handler: handler, BaseConfig: in.base})
}

// lastCalls ends a connection behind the answer to a call that comes after its
// certificate's end: the timer that closes it has stood still while this machine slept,
// and whoever calls by it would be refused for as long as it is late.
func lastCalls(end time.Time, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !time.Now().Before(end) {
			w.Header().Set("Connection", "close") // HTTP/2's server says GOAWAY for it
		}
		next.ServeHTTP(w, r)
	})
}

// stands says whether somebody may call anything now.
func (l *Listener) stands(ctx context.Context, c Caller) bool {
	if l.Standing == nil {
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	return l.Standing(ctx, c) == nil
}

// handshake reads the PROXY header where there may be one, and ends TLS, all
// within handshakeTimeout.
func (l *Listener) handshake(ctx context.Context, raw net.Conn) (*tls.Conn, Caller, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	conn, told := raw, func() bool { return false }
	if l.BehindGateway {
		pc := proxyproto.NewConn(raw, proxyproto.SetReadHeaderTimeout(handshakeTimeout), proxyproto.WithPolicy(proxyproto.USE))
		conn, told = pc, func() bool { return pc.ProxyHeader() != nil }
	}
	tc := tls.Server(conn, l.tlsConfig())
	if err := tc.HandshakeContext(ctx); err != nil {
		return nil, Caller{}, err
	}
	c, err := l.caller(tc, told())
	return tc, c, err
}

func (l *Listener) tlsConfig() *tls.Config {
	base := &tls.Config{
		MinVersion:             tls.VersionTLS13,
		SessionTicketsDisabled: true,
		GetCertificate:         func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return l.Certificate() },
	}
	auth, join := base.Clone(), base.Clone()
	auth.NextProtos, auth.ClientAuth = []string{protocolAuth}, tls.RequireAnyClientCert // VerifyConnection checks the chain
	auth.VerifyConnection = func(cs tls.ConnectionState) error {
		_, _, err := l.verify(cs)
		return err
	}
	join.NextProtos = []string{protocolJoin}
	base.NextProtos = []string{protocolAuth, protocolJoin}
	base.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		for _, p := range h.SupportedProtos {
			switch p {
			case protocolAuth:
				return auth, nil
			case protocolJoin:
				return join, nil
			}
		}
		return auth, nil // answers no_application_protocol, or wants a certificate
	}
	return base
}

// maxChain bounds the certificates that are looked at: a leaf and its CA.
const maxChain = 4

// verify takes a person's certificate by the user CA, or an agent's or
// gateway's by the host CA, and never one for the other. With a host's that has
// ended it returns the public key too, see Caller.EndedKey.
func (l *Listener) verify(cs tls.ConnectionState) (id sallyport.Identity, endedKey []byte, err error) {
	if cs.NegotiatedProtocol != protocolAuth {
		return sallyport.Identity{}, nil, errors.New("no protocol was agreed on")
	}
	if len(cs.PeerCertificates) > maxChain {
		return sallyport.Identity{}, nil, errors.New("too many certificates")
	}
	want := identity.Want{Roots: l.UserCAs(), Cluster: l.Cluster, Kinds: []sallyport.IdentityKind{sallyport.KindUser}, Usage: x509.ExtKeyUsageClientAuth, Now: time.Now()}
	id, userErr := identity.VerifyPeer(cs.PeerCertificates, want)
	if userErr == nil {
		if id.Usage != "" {
			return sallyport.Identity{}, nil, errors.New("a certificate that is held for a browser is not for this API")
		}
		return id, nil, nil
	}
	want.Roots, want.Kinds = l.HostCAs(), []sallyport.IdentityKind{sallyport.KindAgent, sallyport.KindGateway}
	id, hostErr := identity.VerifyPeer(cs.PeerCertificates, want)
	if hostErr == nil {
		return id, nil, nil
	}
	if id, key, err := ended(cs.PeerCertificates, want); err == nil {
		return id, key, nil
	}
	return sallyport.Identity{}, nil, errors.Join(userErr, hostErr)
}

// ended takes a certificate that has ended and was good until then, by a CA that
// is trusted now. How long ago that may be is the call's to say, where the host
// hears of it.
func ended(chain []*x509.Certificate, want identity.Want) (sallyport.Identity, []byte, error) {
	if len(chain) == 0 || !want.Now.After(chain[0].NotAfter) {
		return sallyport.Identity{}, nil, errors.New("no certificate that has ended")
	}
	want.Now = chain[0].NotAfter
	id, err := identity.VerifyPeer(chain, want)
	return id, chain[0].RawSubjectPublicKeyInfo, err
}

// caller says who has shaken hands. told says that a gateway of this machine
// has told the client's address.
func (l *Listener) caller(tc *tls.Conn, told bool) (Caller, error) {
	c := Caller{Addr: addrOf(tc.RemoteAddr())}
	cs := tc.ConnectionState()
	if cs.NegotiatedProtocol == protocolJoin {
		return c, nil
	}
	id, endedKey, err := l.verify(cs)
	if err != nil {
		return c, err
	}
	c.EndedKey = endedKey
	c.Identity, c.Refusal = id, pinned(id, c.Addr.Addr(), told)
	return c, nil
}

// pinned refuses a certificate that is bound to an address, unless the client's
// address is known and is that one.
func pinned(id sallyport.Identity, addr netip.Addr, known bool) *sallyport.Problem {
	if id.PinnedAddr == "" {
		return nil
	}
	if !known || !addr.IsValid() {
		return &sallyport.Problem{Kind: sallyport.ErrDenied, Fact: "this certificate is bound to an address, and by this way auth cannot see yours",
			Hint: "use a gateway on the machine of auth; sessions by this gateway are not affected"}
	}
	want, err := netip.ParseAddr(id.PinnedAddr)
	if err != nil || want.Unmap().WithZone("") != addr.Unmap().WithZone("") {
		return &sallyport.Problem{Kind: sallyport.ErrDenied, Fact: "this certificate is bound to another address than yours", Hint: "log in again from here"}
	}
	return nil
}

func addrOf(a net.Addr) netip.AddrPort {
	if a == nil {
		return netip.AddrPort{}
	}
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.AddrPort{}
	}
	return plain(ap)
}

func plain(ap netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
}
