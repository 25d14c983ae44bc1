package api

import (
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
	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/identity"
)

// Protocol ids of auth's two doors.
const (
	protocolAuth = "sallyport-auth/1"
	protocolJoin = "sallyport-join/1"
)

const (
	handshakeTimeout = 10 * time.Second
	idleTimeout      = 2 * time.Minute
	headerTimeout    = 10 * time.Second

	// maxConnections bounds what one listener holds at a time.
	maxConnections = 20000

	// clientAddrHeader carries a web visitor's address. Only gateways are
	// believed, and a gateway removes what visitors send by that name.
	clientAddrHeader = "Sallyport-Client-Addr"
)

// Listener serves the API over TLS.
type Listener struct {
	Handler     http.Handler
	Certificate func() (*tls.Certificate, error) // auth's own, with its CA behind it
	UserCAs     func() *x509.CertPool
	HostCAs     func() *x509.CertPool
	Cluster     string

	// BehindGateway reads a PROXY header before TLS: for the Unix socket that
	// only this machine's gateway opens.
	BehindGateway bool

	Log *slog.Logger

	mu    sync.Mutex
	conns map[net.Conn]struct{}
}

// Serve accepts until ctx is done. Connections that are open then are closed.
func (l *Listener) Serve(ctx context.Context, ln net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(ctx, func() {
		ln.Close()
		l.closeAll()
	})
	defer stop()
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer l.closeAll()
	for {
		conn, err := ln.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return err
			}
			l.Log.Warn("accept", "error", err)
			if pause(ctx, 100*time.Millisecond) != nil {
				return nil
			}
			continue
		}
		if !l.add(conn) {
			conn.Close()
			continue
		}
		wg.Go(func() {
			defer l.remove(conn)
			l.serve(ctx, conn)
		})
	}
}

func (l *Listener) add(c net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conns == nil {
		l.conns = map[net.Conn]struct{}{}
	}
	if len(l.conns) >= maxConnections {
		return false
	}
	l.conns[c] = struct{}{}
	return true
}

func (l *Listener) remove(c net.Conn) {
	c.Close()
	l.mu.Lock()
	delete(l.conns, c)
	l.mu.Unlock()
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
	conn := raw
	if l.BehindGateway {
		pc := proxyproto.NewConn(raw, proxyproto.SetReadHeaderTimeout(handshakeTimeout), proxyproto.WithPolicy(proxyproto.USE))
		conn = pc
	}
	tc := tls.Server(conn, l.tlsConfig())
	hctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	if err := tc.HandshakeContext(hctx); err != nil {
		l.Log.Debug("handshake", "from", conn.RemoteAddr(), "error", err)
		return
	}
	caller, err := l.caller(tc)
	if err != nil {
		l.Log.Debug("caller", "from", conn.RemoteAddr(), "error", err)
		return
	}
	(&http2.Server{MaxConcurrentStreams: 100, IdleTimeout: idleTimeout}).ServeConn(tc, &http2.ServeConnOpts{
		Context:    WithCaller(ctx, caller),
		Handler:    l.Handler,
		BaseConfig: &http.Server{ReadHeaderTimeout: headerTimeout, MaxHeaderBytes: 64 << 10, ErrorLog: slog.NewLogLogger(l.Log.Handler(), slog.LevelDebug)},
	})
}

func (l *Listener) tlsConfig() *tls.Config {
	base := &tls.Config{
		MinVersion:             tls.VersionTLS13,
		SessionTicketsDisabled: true,
		GetCertificate:         func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return l.Certificate() },
	}
	auth, join := base.Clone(), base.Clone()
	auth.NextProtos, auth.ClientAuth = []string{protocolAuth}, tls.RequireAnyClientCert // caller checks the chain
	auth.VerifyConnection = func(cs tls.ConnectionState) error {
		_, err := l.verify(cs)
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

// verify takes a person's certificate by the user CA, or an agent's or
// gateway's by the host CA, and never one for the other (A67).
func (l *Listener) verify(cs tls.ConnectionState) (sallyport.Identity, error) {
	if cs.NegotiatedProtocol != protocolAuth {
		return sallyport.Identity{}, errors.New("no protocol was agreed on")
	}
	want := identity.Want{Roots: l.UserCAs(), Cluster: l.Cluster, Kinds: []sallyport.IdentityKind{sallyport.KindUser}, Usage: x509.ExtKeyUsageClientAuth, Now: time.Now()}
	id, userErr := identity.VerifyPeer(cs.PeerCertificates, want)
	if userErr == nil {
		if id.Usage != "" {
			return sallyport.Identity{}, errors.New("a certificate that is held for a browser is not for this API")
		}
		return id, nil
	}
	want.Roots, want.Kinds = l.HostCAs(), []sallyport.IdentityKind{sallyport.KindAgent, sallyport.KindGateway}
	id, hostErr := identity.VerifyPeer(cs.PeerCertificates, want)
	if hostErr == nil {
		return id, nil
	}
	return sallyport.Identity{}, errors.Join(userErr, hostErr)
}

func (l *Listener) caller(tc *tls.Conn) (Caller, error) {
	c := Caller{Addr: addrOf(tc.RemoteAddr())}
	cs := tc.ConnectionState()
	if cs.NegotiatedProtocol == protocolJoin {
		return c, nil
	}
	id, err := l.verify(cs)
	if err != nil {
		return c, err
	}
	if id.PinnedAddr != "" && c.Addr.Addr().Unmap().String() != id.PinnedAddr {
		return c, errors.New("the certificate is bound to another address")
	}
	c.Identity = id
	return c, nil
}

func addrOf(a net.Addr) netip.AddrPort {
	if a == nil {
		return netip.AddrPort{}
	}
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// FromWeb lets a gateway speak for a visitor of its web origin: such a request
// has the visitor's address and nothing of the gateway's rights.
func FromWeb(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		value := r.Header.Get(clientAddrHeader)
		r.Header.Del(clientAddrHeader)
		if value == "" {
			next.ServeHTTP(w, r)
			return
		}
		addr, err := netip.ParseAddrPort(value)
		if err != nil || callerOf(r.Context()).Identity.Kind != sallyport.KindGateway {
			http.Error(w, "only a gateway may speak for a visitor", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r.WithContext(WithCaller(r.Context(), Caller{Web: true, Addr: addr})))
	})
}

// ServeAdmin serves the admin socket, a Unix socket with mode 0600: who can
// open it is root or the owner of the data directory, and is audited by uid.
func ServeAdmin(ctx context.Context, ln net.Listener, handler http.Handler) error {
	srv := &http.Server{
		Handler: handler, ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: 64 << 10,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			uid, err := peerUID(c)
			if err != nil {
				return ctx // nobody: the table refuses
			}
			return WithCaller(ctx, Caller{Identity: sallyport.Identity{Kind: sallyport.KindLocalAdmin, Name: uid}})
		},
	}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// peerUID asks the kernel who is at the other end (unix(7), SO_PEERCRED).
func peerUID(c net.Conn) (string, error) {
	uc, ok := c.(*net.UnixConn)
	if !ok {
		return "", errors.New("not a Unix socket")
	}
	rc, err := uc.SyscallConn()
	if err != nil {
		return "", err
	}
	var cred *unix.Ucred
	var cerr error
	if err := rc.Control(func(fd uintptr) { cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return "", err
	}
	if cerr != nil {
		return "", cerr
	}
	return formatUID(cred.Uid), nil
}
