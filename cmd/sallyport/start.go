package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/cmd/internal/sock"
	"github.com/sallyport/sallyport/controlplane/api"
	"github.com/sallyport/sallyport/controlplane/client"
	"github.com/sallyport/sallyport/dataplane/gateway"
)

const (
	joinRetry    = 2 * time.Second
	maxTokenFile = 4096
)

type startCmd struct {
	Config string `name:"config" short:"c" env:"SALLY_CONFIG_FILE,TELEPORT_CONFIG_FILE" default:"/etc/sallyport.yaml" help:"Configuration file."`
	Check  bool   `name:"check" help:"Only check the configuration."`
}

// Run runs until it is told to stop.
func (c *startCmd) Run(p *program) error {
	// A SIGHUP waits until the process is up.
	hangUp := make(chan os.Signal, 1)
	signal.Notify(hangUp, syscall.SIGHUP)
	defer signal.Stop(hangUp)
	cfg, err := loadConfig(c.Config)
	if err != nil {
		return err
	}
	if c.Check {
		_, err := fmt.Fprintln(p.stdout, "The configuration is good.")
		return err
	}
	file, err := filepath.Abs(c.Config)
	if err != nil {
		return err
	}
	level := new(slog.LevelVar)
	level.Set(levelOf(cfg.Log))
	log := leveled(p.stderr, cfg.Log, level)
	n := newNode(cfg, log)
	n.reloads.file, n.reloads.level, n.hangUp = file, level, hangUp
	defer n.close()
	if err := n.open(p.ctx); err != nil {
		return err
	}
	log.Info("sallyport is up", "version", version, "roles", strings.Join(cfg.Roles, ","), "cluster", cfg.Cluster)
	return n.run(p.ctx)
}

// node is one process with its roles.
type node struct {
	cfg     *config
	log     *slog.Logger
	lock    *os.File
	admin   net.Listener
	auth    *auth
	authAt  string // its socket
	gateway *gatewayRole
	agent   *agentRole

	since     time.Time
	started   chan error // what has begun and ends only with ctx
	stopAuth  context.CancelFunc
	authDone  chan struct{}
	stopAdmin context.CancelFunc
	adminDone chan struct{}

	reloads reloader
	hangUp  <-chan os.Signal // nil: never

	// What the admin socket shows, as the roles open.
	api          atomic.Pointer[http.Handler]
	shownGateway atomic.Pointer[gatewayRole]
	shownAgent   atomic.Pointer[agentRole]
}

func newNode(cfg *config, log *slog.Logger) *node {
	return &node{cfg: cfg, log: log, since: time.Now(), started: make(chan error, 2)}
}

// open opens the roles in the order in which they need each other: auth, which
// the gateway joins; the gateway, through which an agent reaches auth. What was
// opened before an error is for close.
func (n *node) open(ctx context.Context) error {
	if err := n.prepareDir(); err != nil {
		return err
	}
	n.serveAdmin()
	if n.cfg.has(roleAuth) {
		if err := n.startAuth(ctx); err != nil {
			return err
		}
	}
	if n.cfg.has(roleGateway) {
		if err := n.openGateway(ctx); err != nil {
			return err
		}
	}
	if n.cfg.has(roleAgent) {
		if err := n.openAgent(ctx); err != nil {
			return err
		}
	}
	return nil
}

// prepareDir makes the data directory and keeps a second process out of it.
func (n *node) prepareDir() error {
	if err := ownDir(n.cfg.DataDir); err != nil {
		return err
	}
	path := filepath.Join(n.cfg.DataDir, "lock")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return unusable(n.cfg.DataDir, err)
	}
	n.lock = f
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		pid := make([]byte, 32)
		k, _ := f.Read(pid)
		return &sallyport.Problem{Kind: sallyport.ErrConflict, Cause: err,
			Fact: fmt.Sprintf("%s is in use by another sallyport (process %s)", n.cfg.DataDir, strings.TrimSpace(string(pid[:k]))),
			Hint: "stop it, or use another directory: data_dir in the configuration, --data of the demo"}
	}
	if err := f.Truncate(0); err != nil {
		return err
	}
	if _, err = f.WriteAt(fmt.Appendf(nil, "%d\n", os.Getpid()), 0); err != nil {
		return err
	}
	n.admin, err = unixListener(n.cfg.DataDir, adminSocket)
	return err
}

// serveAdmin answers on the admin socket from the first moment on: state and
// counters in every role, the API where auth is.
func (n *node) serveAdmin() {
	ctx, stop := context.WithCancel(context.Background())
	n.stopAdmin, n.adminDone = stop, make(chan struct{})
	handler := n.serveStatus(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if h := n.api.Load(); h != nil {
			(*h).ServeHTTP(w, r)
			return
		}
		http.Error(w, "auth does not run in this process, or not yet", http.StatusServiceUnavailable)
	}))
	go func() {
		defer close(n.adminDone)
		if err := api.ServeAdmin(ctx, n.admin, handler); err != nil && ctx.Err() == nil {
			n.started <- fmt.Errorf("admin socket: %w", err)
		}
	}()
}

// startAuth opens auth and serves at once: the other roles of this process join
// through it. It ends after them.
func (n *node) startAuth(ctx context.Context) error {
	a, err := openAuth(ctx, n.cfg, n.log)
	if err != nil {
		return err
	}
	n.auth = a
	if n.authAt, err = sock.Path(n.cfg.DataDir, authSocket); err != nil {
		return err
	}
	handler := a.server.Handler(nil)
	n.api.Store(&handler)
	actx, stop := context.WithCancel(context.WithoutCancel(ctx))
	n.stopAuth, n.authDone = stop, make(chan struct{})
	g, gctx := errgroup.WithContext(actx)
	g.Go(func() error { return a.run(gctx) })
	go func() {
		defer close(n.authDone)
		if err := g.Wait(); err != nil && actx.Err() == nil {
			n.started <- fmt.Errorf("auth: %w", err)
		}
	}()
	return nil
}

// authUpstream is where the gateway passes auth's connections on to.
func (n *node) authUpstream() gateway.Upstream {
	if n.auth != nil {
		return gateway.Upstream{Address: "unix:" + n.authAt, Proxy: true}
	}
	return gateway.Upstream{Address: n.cfg.Gateway.Auth}
}

func (n *node) openGateway(ctx context.Context) error {
	var host *client.Host
	if n.auth != nil || n.cfg.Gateway.Auth != "" {
		up := n.authUpstream()
		var err error
		host, err = n.join(ctx, client.HostConfig{
			Dir: gatewayDir(n.cfg), Kind: sallyport.KindGateway, Name: hostname(), Log: n.log,
			Addresses: func() []string { return []string{up.Address} }, Public: n.publicAddresses(),
		}, n.cfg.Gateway.Join)
		if err != nil {
			return fmt.Errorf("gateway: %w", err)
		}
	}
	g, err := startGateway(n.cfg, host, n.authUpstream(), n.log)
	if err != nil {
		return listenProblem(err, "gateway.listen", `gateway.listen: [":8443"]`)
	}
	n.gateway = g
	n.shownGateway.Store(g)
	for _, a := range g.gateway.Addrs() {
		n.log.Info("gateway listens", "address", a)
	}
	return nil
}

// publicAddresses are what the gateway's certificate names besides the cluster.
func (n *node) publicAddresses() []string {
	out := []string{n.cfg.Gateway.PublicAddress}
	for _, l := range n.cfg.Gateway.Listen {
		if host, _, err := net.SplitHostPort(l); err == nil && host != "" {
			out = append(out, l)
		}
	}
	return append(out, "127.0.0.1:0", "[::1]:0")
}

func (n *node) openAgent(ctx context.Context) error {
	gateways := n.cfg.Agent.Gateways
	if n.gateway != nil && len(gateways) == 0 {
		gateways = []string{n.gateway.addr()}
	}
	ways := func() []string { return gateways }
	if n.auth != nil {
		ways = func() []string { return []string{"unix:" + n.authAt} }
	}
	host, err := n.join(ctx, client.HostConfig{
		Dir: agentDir(n.cfg), Kind: sallyport.KindAgent, Name: hostname(), Log: n.log, Addresses: ways, Resources: n.cfg.resources(),
	}, n.cfg.Agent.Join)
	if err != nil {
		return fmt.Errorf("agent: %w", err)
	}
	if n.agent, err = openAgent(n.cfg, host, gateways, n.log); err != nil {
		return err
	}
	n.shownAgent.Store(n.agent)
	return nil
}

// join opens the standing of a host that joined before, or joins: by a token of
// this process's own auth, or by the token file. While auth cannot be reached
// it tries again; a token that is refused is an error.
func (n *node) join(ctx context.Context, hc client.HostConfig, j joinConfig) (*client.Host, error) {
	h, err := client.OpenHost(hc)
	if !errors.Is(err, client.ErrNotJoined) {
		return h, err
	}
	for {
		token, pins, err := n.ticket(ctx, hc.Kind, j)
		if err != nil {
			return nil, err
		}
		h, err := client.Join(ctx, hc, token, pins)
		if err == nil {
			n.log.Info("joined", "kind", hc.Kind, "id", h.ID(), "cluster", h.Cluster())
			return h, nil
		}
		if !errors.Is(err, sallyport.ErrUnavailable) {
			return nil, err
		}
		n.log.Warn("auth cannot be reached to join; trying again", "error", err, "in", joinRetry)
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(joinRetry):
		}
	}
}

func (n *node) ticket(ctx context.Context, kind sallyport.IdentityKind, j joinConfig) (token string, pins []string, err error) {
	if n.auth != nil {
		token, err = n.auth.localToken(ctx, kind)
		return token, n.auth.keys.Pins(), err
	}
	if j.TokenFile == "" {
		return "", nil, &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: "not joined yet, and no join.token_file is configured", Hint: "sallyctl tokens add makes a token"}
	}
	b, err := os.ReadFile(j.TokenFile)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil, &sallyport.Problem{Kind: sallyport.ErrNotFound, Fact: j.TokenFile + ": no such file", Hint: "put the join token there, mode 0600"}
	}
	if err != nil {
		return "", nil, err
	}
	if len(b) > maxTokenFile {
		return "", nil, fmt.Errorf("%s: not a token", j.TokenFile)
	}
	return strings.TrimSpace(string(b)), strings.Split(j.CAPin, ","), nil
}

// run serves until ctx is done, or a role fails; then everything ends in the
// order in which it is needed.
func (n *node) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	if n.cfg.Metrics.Listen != "" {
		l, err := net.Listen("tcp", n.cfg.Metrics.Listen)
		if err != nil {
			return fmt.Errorf("metrics.listen: %w", err)
		}
		g.Go(func() error { return n.runMetrics(ctx, l) })
	}
	n.reloads.up.Store(true)
	g.Go(func() error { return n.reloadOn(ctx, n.hangUp) })
	g.Go(func() error {
		select {
		case err := <-n.started:
			return err
		case <-ctx.Done():
			return nil
		}
	})
	if n.gateway != nil {
		g.Go(func() error { return n.gateway.run(ctx) })
	}
	if n.agent != nil {
		g.Go(func() error { return n.agent.run(ctx) })
	}
	return g.Wait()
}

func (n *node) close() {
	if n.gateway != nil {
		n.gateway.close()
	}
	if n.stopAuth != nil {
		n.stopAuth()
		<-n.authDone
	}
	if n.stopAdmin != nil {
		n.stopAdmin()
		<-n.adminDone
	}
	if n.admin != nil {
		n.admin.Close()
	}
	if n.auth != nil {
		n.auth.close()
	}
	if n.lock != nil {
		n.lock.Close()
	}
}
