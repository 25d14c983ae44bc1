package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/sync/errgroup"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/alpn"
	"github.com/sallyport/sallyport/controlplane/client"
	"github.com/sallyport/sallyport/controlplane/remnant"
	"github.com/sallyport/sallyport/dataplane/carrier"
	"github.com/sallyport/sallyport/dataplane/gateway"
	"github.com/sallyport/sallyport/dataplane/jump"
	"github.com/sallyport/sallyport/dataplane/relay"
	"github.com/sallyport/sallyport/dataplane/tunnel"
	"github.com/sallyport/sallyport/identity"
)

//lint:file-ignore SA1019 HTTP/2 is configured as x/net has it, on the server that gets connections whose TLS has ended

// gatewayRole is the gateway in this process.
type gatewayRole struct {
	cfg      *config
	log      *slog.Logger
	host     *client.Host // nil when only static routes are served
	presence *client.Presence
	hub      *tunnel.Hub
	loops    []relay.Loop
	config   gateway.Config
	gateway  *gateway.Gateway
	heir     *gateway.Heir // what takes the gateway over; nil after a fresh start
	reports  reports
	life     context.Context // until close
	end      context.CancelFunc
	web      *webServer
	browsers *browsers
	jump     *jump.Server                      // nil when only static routes are served
	spool    *remnant.Spool                    // of the jump server's events; nil with it
	certs    atomic.Pointer[[]tls.Certificate] // of the web origin; replaced by a reload
}

// newGateway prepares everything but the port.
func newGateway(cfg *config, host *client.Host, authAddr gateway.Upstream, log *slog.Logger) (r *gatewayRole, err error) {
	r = &gatewayRole{cfg: cfg, log: log, host: host}
	r.life, r.end = context.WithCancel(context.Background())
	opened := r // r is nil once an error is returned
	defer func() {
		if err != nil {
			opened.close()
		}
	}()
	if r.loops, err = startLoops(cfg, log); err != nil {
		return nil, err
	}
	set, err := cfg.settings()
	if err != nil {
		return nil, err
	}
	r.config = gateway.Config{
		Cluster: cfg.Cluster, Listen: cfg.Gateway.Listen, Loops: r.loops, Auth: authAddr, Log: log,
		Static: set.Static, Silent: set.Silent, TrustedProxies: set.TrustedProxies, Idle: set.Idle, Bounds: set.Bounds,
	}
	if host != nil {
		if err := r.withCluster(&r.config); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// startLoops says once what the loops have become.
func startLoops(cfg *config, log *slog.Logger) ([]relay.Loop, error) {
	loops, err := relay.NewWith(loopCount(), relay.Batch(cfg.Gateway.IOUring))
	if err != nil {
		return nil, err
	}
	b := relay.BatchingOf(loops[0])
	if b.Refused != nil {
		log.Warn("connections are closed one by one: the kernel gives no io_uring", "loops", len(loops), "reason", b.Refused)
	} else {
		log.Info("event loops", "loops", len(loops), "io_uring", b.On, "configured", cfg.Gateway.IOUring)
	}
	return loops, nil
}

// start opens the port. From then on connections are served.
func (r *gatewayRole) start() (err error) {
	r.gateway, err = gateway.Start(r.config)
	r.opened()
	return err
}

// opened lets browsers reach applications.
func (r *gatewayRole) opened() {
	if r.browsers != nil {
		r.browsers.gateway.Store(r.gateway)
	}
}

func networks(list []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, s := range list {
		p, err := network(s)
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return out, nil
}

// network reads one; an address is the network of one. An address with a length
// that leaves parts of it out may be meant as either, which decides about who is
// believed.
func network(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" && !a.Is4In6() {
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil || p.Addr().Is4In6():
		return netip.Prefix{}, fmt.Errorf("%q is not a network such as 10.0.0.0/8", s)
	case p != p.Masked():
		return netip.Prefix{}, fmt.Errorf("%q may be the network %s or the address %s: write the one that is meant", s, p.Masked(), p.Addr())
	}
	return p, nil
}

// withCluster adds tunnels and what ends TLS here.
func (r *gatewayRole) withCluster(gc *gateway.Config) error {
	certs, err := loadCertificates(r.cfg.Gateway.Certificates)
	if err != nil {
		return err
	}
	if err := current(r.cfg.Gateway.Certificates, certs, time.Now()); err != nil {
		r.log.Warn("clients will refuse a certificate", "reason", err)
	}
	r.certs.Store(&certs)
	r.presence = &client.Presence{API: r.host.API(), Gateway: r.host.ID(), Address: r.cfg.Gateway.PublicAddress, Log: r.log}
	keeper := r.host.Keeper()
	r.hub = tunnel.NewHub(tunnel.HubConfig{
		GatewayID: r.host.ID(), Cluster: r.host.Cluster(), Gateways: keeper.Gateways, Bounds: r.cfg.tunnelBounds(), Loops: r.loops, Log: r.log,
		Verify: func(assignment []byte, agentID string) (tunnel.Assignment, error) {
			if err := welcome(keeper, agentID); err != nil {
				return tunnel.Assignment{}, err
			}
			a, err := client.VerifyAssignment(keeper, assignment, agentID)
			if err != nil {
				return tunnel.Assignment{}, err
			}
			return tunnel.Assignment{Revision: a.GetRevision(), NotAfter: a.GetNotAfter().AsTime(), Resources: client.ResourcesOf(a), PgCancelTag: uint16(a.GetPgCancelTag())}, nil
		},
		Presence: func(p tunnel.Presence) {
			if p.Up {
				r.presence.Up(p.AgentID, p.Version, p.Assignment)
			} else {
				r.presence.Down(p.AgentID)
			}
		},
		Proven: func(from netip.Addr) {
			if g := r.browsers.gateway.Load(); g != nil {
				g.Proven(from)
			}
		},
	})
	gc.Cluster = r.host.Cluster()
	gc.Tunnels = gateway.Through(r.hub)
	tunnelTLS := &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{alpn.Tunnel1}, SessionTicketsDisabled: true,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return r.host.Certificate() },
		ClientAuth:     tls.RequireAnyClientCert, VerifyConnection: r.verifyAgent,
	}
	r.web = newWebServer(r.besideUpgrades(r.hub.Upgrade(tunnelTLS), onlyOwn(r.host.Cluster(), client.WebOrigin(r.host.Dialer(), r.log))), r.log)
	r.browsers = newBrowsers(r.host, r.log)
	gc.Ends = map[alpn.Class]gateway.End{
		alpn.Web: {
			TLS:      &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}, GetCertificate: r.webCertificate},
			Handlers: map[string]gateway.Handler{"h2": r.web.serve, "http/1.1": r.web.serve, "": r.web.serve},
		},
		alpn.App: r.browsers.end(r.webCertificate),
		alpn.Tunnel: {
			TLS: tunnelTLS,
			Handlers: map[string]gateway.Handler{alpn.Tunnel1: func(ctx context.Context, conn *tls.Conn) {
				if err := r.hub.Serve(ctx, conn); err != nil {
					r.log.Info("tunnel ended", "from", conn.RemoteAddr(), "reason", err)
				}
			}},
		},
	}
	return r.withJump(gc)
}

// besideUpgrades takes WebSockets that carry other connections out of what the web
// origin gets: those of agents, and those that lead to the gateway's port.
func (r *gatewayRole) besideUpgrades(agents, web http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		switch req.URL.Path {
		case tunnel.UpgradePath:
			agents.ServeHTTP(w, req)
		case carrier.ConnectPath:
			if g := r.browsers.gateway.Load(); g != nil {
				g.Inside().ServeHTTP(w, req)
				return
			}
			http.Error(w, "the gateway is starting", http.StatusServiceUnavailable)
		default:
			web.ServeHTTP(w, req)
		}
	})
}

func (r *gatewayRole) verifyAgent(cs tls.ConnectionState) error {
	id, err := identity.VerifyPeer(cs.PeerCertificates, identity.Want{
		Roots: r.host.Keeper().Roots(), Cluster: r.host.Cluster(), Kinds: []sallyport.IdentityKind{sallyport.KindAgent},
		Usage: x509.ExtKeyUsageClientAuth, Now: time.Now(),
	})
	if err != nil {
		return err
	}
	return welcome(r.host.Keeper(), id.Name)
}

// welcome refuses agents that were removed, and those that are locked: nobody is to
// be led to a machine that is in wrong hands, nor to one that refuses everybody
// while another serves the name.
func welcome(keeper *client.Keeper, agent string) error {
	if slices.Contains(keeper.Locked(), agent) {
		return fmt.Errorf("agent %s is locked", agent)
	}
	return standing(keeper, agent)
}

// standing refuses hosts whose certificates are good and stand for nothing any more.
func standing(keeper *client.Keeper, id string) error {
	if slices.Contains(keeper.Removed(), id) {
		return fmt.Errorf("host %s was removed from the cluster", id)
	}
	return nil
}

// mostTunnels of one agent are ended at once; upgrades leave fewer.
const mostTunnels = 64

// evict ends the tunnels of agents that were removed or locked, as soon as a snapshot
// says so. Whoever slips in beside it is found at the next snapshot, within a minute.
func (r *gatewayRole) evict(ctx context.Context) error {
	keeper := r.host.Keeper()
	for {
		changed := keeper.Changed() // taken before the question: no change is missed
		r.turnOut(keeper.Removed(), "the agent was removed from the cluster")
		r.turnOut(keeper.Locked(), "the agent is locked")
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
	}
}

// turnOut ends the agents' tunnels, and what upgrades have left of older ones.
func (r *gatewayRole) turnOut(agents []string, reason string) {
	for _, id := range agents {
		for range mostTunnels {
			if !r.hub.Evict(id) {
				break
			}
			r.log.Warn("tunnel ended: "+reason, "agent", id)
		}
	}
}

// webCertificate is a public one that is good for the name, else the cluster's
// own; who knows the cluster by a pin gets the cluster's own.
func (r *gatewayRole) webCertificate(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if slices.Contains(h.SupportedProtos, alpn.Pinned1) {
		return r.host.Certificate()
	}
	certs := *r.certs.Load()
	for i := range certs {
		if h.SupportsCertificate(&certs[i]) == nil {
			return &certs[i], nil
		}
	}
	return r.host.Certificate()
}

// run serves until ctx is done.
func (r *gatewayRole) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	if r.host != nil {
		g.Go(func() error { return r.host.Run(ctx) })
		r.reports.begin(r.life, r.presence)
		g.Go(func() error { return r.web.run(ctx) })
		g.Go(func() error { return r.browsers.web.run(ctx) })
		g.Go(func() error { return r.browsers.apps.Run(ctx) })
		g.Go(func() error { return r.record(ctx) })
		g.Go(func() error { return r.evict(ctx) })
	}
	g.Go(func() error {
		<-ctx.Done()
		r.close()
		return nil
	})
	return g.Wait()
}

// addr is where the gateway listens, for whoever connects from this machine.
func (r *gatewayRole) addr() string {
	a := r.gateway.Addrs()[0]
	if a.Addr().IsUnspecified() {
		a = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), a.Port())
	}
	return a.String()
}

func (r *gatewayRole) close() {
	r.end()
	r.reports.end()
	if r.heir != nil {
		r.heir.Close() // before its start: nothing of it is ours
	}
	if r.gateway != nil {
		r.gateway.Close()
	}
	for _, l := range r.loops {
		l.Close()
	}
	r.loops = nil
	r.closeSpool() // after what is left to say
}

// webServer gives connections whose TLS has ended to net/http.
type webServer struct {
	server *http.Server
	told   *http.Server // serves nothing itself: by its Shutdown HTTP/2 says GOAWAY, and HTTP/1 goes on
	conns  chan net.Conn
	open   atomic.Int64 // connections, without those that HTTP was left on
	closed chan struct{}
	once   sync.Once

	mu   sync.Mutex
	busy map[net.Conn]struct{} // those of open that have a request under way
}

func newWebServer(h http.Handler, log *slog.Logger) *webServer {
	w := &webServer{told: &http.Server{}, conns: make(chan net.Conn), closed: make(chan struct{}), busy: map[net.Conn]struct{}{}}
	w.server = &http.Server{
		Handler: h, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 30 * time.Second, WriteTimeout: time.Minute, IdleTimeout: 30 * time.Second,
		MaxHeaderBytes: 64 << 10, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug), ConnContext: tunnel.ConnContext, ConnState: w.count,
	}
	return w
}

func (w *webServer) run(ctx context.Context) error {
	if err := http2.ConfigureServer(w.told, &http2.Server{MaxConcurrentStreams: 100, IdleTimeout: w.server.IdleTimeout}); err != nil {
		return err
	}
	w.server.TLSNextProto = w.told.TLSNextProto
	w.server.BaseContext = func(net.Listener) context.Context { return ctx } // ends agents' WebSockets
	stop := context.AfterFunc(ctx, func() {
		w.Close()
		w.server.Close()
	})
	defer stop()
	if err := w.server.Serve(w); !errors.Is(err, http.ErrServerClosed) && ctx.Err() == nil {
		return err
	}
	<-ctx.Done() // after dismiss what runs goes on
	return nil
}

func (w *webServer) count(c net.Conn, s http.ConnState) {
	switch s {
	case http.StateNew:
		w.open.Add(1)
	case http.StateClosed, http.StateHijacked:
		w.open.Add(-1)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if s == http.StateActive {
		w.busy[c] = struct{}{}
	} else {
		delete(w.busy, c)
	}
}

// working is how many connections have a request under way.
func (w *webServer) working() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.busy)
}

// serve is a gateway.Handler: the HTTP server owns the connection from here on.
func (w *webServer) serve(ctx context.Context, conn *tls.Conn) {
	select {
	case w.conns <- conn:
	case <-w.closed:
		conn.Close()
	case <-ctx.Done():
		conn.Close()
	}
}

// Accept meets net.Listener.
func (w *webServer) Accept() (net.Conn, error) {
	select {
	case c := <-w.conns:
		return c, nil
	case <-w.closed:
		return nil, net.ErrClosed
	}
}

// Close meets net.Listener.
func (w *webServer) Close() error {
	w.once.Do(func() { close(w.closed) })
	return nil
}

// Addr meets net.Listener.
func (w *webServer) Addr() net.Addr { return &net.TCPAddr{} }

// gatewayDir and agentDir are where hosts keep their standing.
func gatewayDir(cfg *config) string { return filepath.Join(cfg.DataDir, "gateway") }
func agentDir(cfg *config) string   { return filepath.Join(cfg.DataDir, "agent") }
