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

	"connectrpc.com/connect"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/cmd/internal/logsink"
	"github.com/sallyport/sallyport/cmd/internal/output"
	"github.com/sallyport/sallyport/cmd/internal/sock"
	"github.com/sallyport/sallyport/controlplane/api"
	"github.com/sallyport/sallyport/controlplane/client"
	"github.com/sallyport/sallyport/dataplane/dial"
	"github.com/sallyport/sallyport/dataplane/gateway"
	"github.com/sallyport/sallyport/dataplane/handover"
	"github.com/sallyport/sallyport/identity"
)

const (
	joinRetry    = 2 * time.Second
	maxTokenFile = 4096

	// thriftyFor is how long a new process saves memory: until the old one has
	// ended, if nothing keeps it.
	thriftyFor = readyWithin + 2*time.Second
)

type startCmd struct {
	Config string `name:"config" short:"c" env:"SALLY_CONFIG_FILE,TELEPORT_CONFIG_FILE" default:"/etc/sallyport.yaml" help:"Configuration file."`
	Check  bool   `name:"check" help:"Only check the configuration."`
	Format string `name:"format" short:"f" enum:"text,json,yaml" default:"text" help:"What --check prints: text, json or yaml."`
	PID    string `name:"pid-file" placeholder:"FILE" help:"Write the process id there, of the new process after an upgrade too: for init systems that follow such a file."`
}

// Run runs until it is told to stop, or has handed over.
func (c *startCmd) Run(p *program) error {
	if c.Check {
		return c.check(p)
	}
	if kept, err := keepAsFirst(p.ctx, os.Getpid()); kept {
		return err
	}
	// Signals wait until the process is up.
	hangUp, renew := make(chan os.Signal, 1), make(chan os.Signal, 1)
	signal.Notify(hangUp, syscall.SIGHUP)
	signal.Notify(renew, syscall.SIGUSR2)
	defer signal.Stop(hangUp)
	defer signal.Stop(renew)
	saving := &p.saving
	flip, err := handover.New(handover.Config{Program: handover.Program{Version: version}, Timeout: readyWithin, Step: saving.onStep})
	if err != nil {
		return err
	}
	heir, err := flip.Inherited(p.ctx)
	if err != nil {
		return fmt.Errorf("taking over: %w", err)
	}
	if heir == nil {
		saving.end()
	} else {
		defer time.AfterFunc(thriftyFor, saving.end).Stop()
	}
	n, err := c.node(p)
	if err != nil {
		if heir != nil {
			heir.Refuse(err)
		}
		return err
	}
	n.hangUp, n.renew = hangUp, renew
	flip.Log = n.log
	n.upgrades.offer(flip, saving)
	return n.live(p.ctx, heir)
}

// check reads the configuration and the files without which none of its roles
// starts, and says what an upgrade asks for.
func (c *startCmd) check(p *program) error {
	cfg, err := loadConfig(c.Config)
	if err != nil {
		return err
	}
	if err := cfg.readFiles(); err != nil {
		return err
	}
	if c.Format != "text" {
		own := ownVersion()
		return output.Write(p.stdout, c.Format, checkReport{DataDir: cfg.DataDir, Roles: cfg.Roles, Program: &own})
	}
	_, err = fmt.Fprintln(p.stdout, "The configuration is good.")
	return err
}

// node is a process with this configuration. Nothing is open yet.
func (c *startCmd) node(p *program) (*node, error) {
	cfg, read, err := loadConfigAgain(c.Config, "", nil)
	if err != nil {
		return nil, err
	}
	file, err := filepath.Abs(c.Config)
	if err != nil {
		return nil, err
	}
	level := new(slog.LevelVar)
	level.Set(levelOf(cfg.Log))
	n := newNode(cfg, leveled(p.sink(), cfg.Log, level))
	n.lines = p.sink()
	n.reloads.file, n.reloads.level, n.reloads.read = file, level, read
	n.keeping, err = keepingOf(c.PID)
	return n, err
}

// live opens the roles, or takes them over from heir's process, and runs them
// until asked is done, a role fails, or another process has them. Signals are
// the new process's then, when this one keeps the place for it.
func (n *node) live(asked context.Context, heir *handover.Heir) error {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	n.asked = asked
	defer context.AfterFunc(asked, func() {
		if !n.upgrades.standIn.Load() {
			stop()
		}
	})()
	err := n.begin(ctx, heir)
	if errors.Is(err, context.Canceled) && asked.Err() != nil {
		n.log.Info("stopped before it was up")
		err = nil
	} else if err == nil {
		n.tell(n.keeping.ready())
		err = n.run(ctx)
	}
	n.close()
	if n.demo != nil {
		n.demo.close()
	}
	if errors.Is(err, errHanded) {
		return n.stepBack()
	}
	n.end(err)
	return err
}

func (n *node) begin(ctx context.Context, heir *handover.Heir) error {
	if heir != nil {
		if err := n.inherit(ctx, heir); err != nil {
			return fmt.Errorf("taking over from process %d: %w", heir.PID, err)
		}
		n.log.Info("sallyport has taken over", "version", version, "from", heir.From, "pid", heir.PID)
		return nil
	}
	open := n.open
	if n.demo != nil {
		open = n.demo.open
	}
	if err := open(ctx); err != nil {
		return err
	}
	if err := n.keeping.present(); err != nil {
		return err
	}
	n.log.Info("sallyport is up", "version", version, "roles", strings.Join(n.cfg.Roles, ","), "cluster", n.cluster())
	return nil
}

// node is one process with its roles.
type node struct {
	cfg     *config
	log     *slog.Logger
	lines   *logsink.Sink // where log's lines go; nil for elsewhere
	lock    *os.File
	admin   *gated
	metrics *gated // nil without metrics.listen
	auth    *auth
	authAt  string // its socket
	gateway *gatewayRole
	agent   *agentRole
	demo    *demo // nil but in a demo

	since     time.Time
	started   chan error // what has begun and ends only with ctx
	stopAuth  context.CancelFunc
	authDone  chan struct{}
	stopAdmin context.CancelFunc
	adminDone chan struct{}

	reloads reloader
	hangUp  <-chan os.Signal // nil: never

	upgrades upgrader
	canary   atomic.Pointer[canary] // nil for none
	watched  atomic.Int64           // its process, from before it is on record until it was left; 0 for none
	renew    <-chan os.Signal       // asks for an upgrade; nil: never
	next     keeping                // the new process's, while an upgrade runs
	keeping  keeping
	stand    *standIn        // in the first process, once it has handed over
	asked    context.Context // done when somebody wants the process to end; nil: never
	first    time.Time       // when the service's first process began
	stopping atomic.Bool
	remnant  *remnantFile // this process's place among the remnants; nil for none
	heirOnly bool         // not the owner of what it inherits yet
	drains   drains

	// What the admin socket shows, as the roles open.
	api          atomic.Pointer[http.Handler]
	shownGateway atomic.Pointer[gatewayRole]
	shownAgent   atomic.Pointer[agentRole]
	shownAuth    atomic.Pointer[auth]
}

func newNode(cfg *config, log *slog.Logger) *node {
	now := time.Now()
	return &node{cfg: cfg, log: log, since: now, first: now, started: make(chan error, 2), upgrades: newUpgrader()}
}

// open opens the roles in the order in which they need each other: auth, which
// the gateway joins; the gateway, through which an agent reaches auth. What was
// opened before an error is for close.
func (n *node) open(ctx context.Context) error {
	if err := n.prepareDir(); err != nil {
		return err
	}
	n.serveAdmin()
	if err := n.listenMetrics(); err != nil {
		return err
	}
	if n.cfg.has(roleAuth) {
		if err := n.startAuth(ctx); err != nil {
			return err
		}
	}
	if n.cfg.has(roleGateway) {
		if err := n.openGateway(ctx, false); err != nil {
			return err
		}
	}
	if n.cfg.has(roleAgent) {
		if err := n.openAgent(ctx, false); err != nil {
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
	if err := n.writeLock(); err != nil {
		return err
	}
	sweepHistory(n.cfg.DataDir)
	l, err := unixListener(n.cfg.DataDir, adminSocket)
	if err != nil {
		return err
	}
	n.admin, err = gate(l)
	return err
}

// writeLock names this process, for whoever finds the lock taken.
func (n *node) writeLock() error {
	if err := n.lock.Truncate(0); err != nil {
		return err
	}
	_, err := n.lock.WriteAt(fmt.Appendf(nil, "%d\n", os.Getpid()), 0)
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
		noAuth(w, r, n.cfg)
	}))
	go func() {
		defer close(n.adminDone)
		if err := api.ServeAdmin(ctx, n.admin, handler); err != nil && ctx.Err() == nil {
			n.started <- fmt.Errorf("admin socket: %w", err)
		}
	}()
}

// noAuth answers a call of auth's API where auth is not, or not yet: in the words
// of the call's protocol, so that who asked can tell why.
func noAuth(w http.ResponseWriter, r *http.Request, cfg *config) {
	why := &sallyport.Problem{Kind: sallyport.ErrUnavailable, Fact: "auth is not up yet in this process", Hint: "try again; its log says what it waits for"}
	if !cfg.has("auth") {
		why.Fact, why.Hint = "this sallyport has no role auth", "run sallyctl on auth's machine, or by your login: sally login --proxy=HOST, then sallyctl --proxy=HOST"
	}
	if call := connect.NewErrorWriter(); call.IsSupported(r) {
		e := connect.NewError(connect.CodeUnavailable, why)
		e.Meta().Set(client.HintHeader, why.Hint)
		_ = call.Write(w, r, e) // who has gone away reads nothing
		return
	}
	http.Error(w, why.Fact, http.StatusServiceUnavailable)
}

// startAuth opens auth and serves at once: the other roles of this process join
// through it. It ends after them.
func (n *node) startAuth(ctx context.Context) error {
	a, err := openAuth(ctx, n.cfg, n.log)
	if err != nil {
		return err
	}
	n.auth = a
	if err := n.nameAuth(); err != nil {
		return err
	}
	n.serveAuth(ctx, a)
	return nil
}

// nameAuth finds out where auth of this process is reached.
func (n *node) nameAuth() (err error) {
	n.authAt, err = sock.Path(n.cfg.DataDir, authSocket)
	return err
}

// serveAuth serves what is open, until close.
func (n *node) serveAuth(ctx context.Context, a *auth) {
	handler := http.Handler(&a.admin)
	n.api.Store(&handler)
	n.shownAuth.Store(a)
	actx, stop := context.WithCancel(context.WithoutCancel(ctx))
	n.stopAuth, n.authDone = stop, make(chan struct{})
	go func() {
		defer close(n.authDone)
		if err := a.run(actx); err != nil && actx.Err() == nil {
			n.started <- fmt.Errorf("auth: %w", err)
		}
	}()
}

// authUpstream is where the gateway passes auth's connections on to.
func (n *node) authUpstream() gateway.Upstream {
	if n.cfg.has(roleAuth) {
		return gateway.Upstream{Address: "unix:" + n.authAt, Proxy: true}
	}
	return gateway.Upstream{Address: n.cfg.Gateway.Auth}
}

// openGateway opens the port. A gateway that inherits takes it over later.
func (n *node) openGateway(ctx context.Context, inherits bool) error {
	var host *client.Host
	if n.cfg.has(roleAuth) || n.cfg.Gateway.Auth != "" {
		up := n.authUpstream()
		var err error
		host, err = n.join(ctx, client.HostConfig{
			Dir: gatewayDir(n.cfg), Kind: sallyport.KindGateway, Name: hostname(), Log: n.log,
			Addresses: func() []string { return []string{up.Address} }, Public: n.publicAddresses(), Held: inherits,
		}, n.cfg.Gateway.Join)
		if err != nil {
			return fmt.Errorf("gateway: %w", err)
		}
	}
	g, err := newGateway(n.cfg, host, n.authUpstream(), n.log)
	if err != nil {
		return err
	}
	n.gateway = g
	if inherits {
		return g.inherit()
	}
	if err := g.ownSpool(ctx); err != nil {
		return err
	}
	if err := g.start(); err != nil {
		return listenProblem(err, "gateway.listen", `gateway.listen: [":8443"]`)
	}
	n.showGateway()
	return nil
}

// showGateway lets operators see a gateway that serves.
func (n *node) showGateway() {
	n.shownGateway.Store(n.gateway)
	for _, a := range n.gateway.gateway.Addrs() {
		n.log.Info("gateway listens", "address", a)
	}
}

// publicAddresses are those at which the gateway is reached. Its certificate has the IP
// addresses among them besides the cluster.
func (n *node) publicAddresses() []string {
	out := []string{n.cfg.Gateway.PublicAddress}
	for _, l := range n.cfg.Gateway.Listen {
		if host, _, err := net.SplitHostPort(l); err == nil && host != "" {
			out = append(out, l)
		}
	}
	return append(out, "127.0.0.1:0", "[::1]:0")
}

// agentGateways are those that the agent connects to. Where this process's own
// listens is known once it does.
func (n *node) agentGateways() []string {
	if g := n.cfg.Agent.Gateways; n.gateway == nil || len(g) > 0 {
		return g
	}
	return []string{n.gateway.addr()}
}

// openAgent opens the agent. One that inherits gets its audit spool later.
func (n *node) openAgent(ctx context.Context, inherits bool) error {
	ways := n.agentGateways
	if n.cfg.has(roleAuth) {
		ways = func() []string { return []string{"unix:" + n.authAt} }
	}
	host, err := n.join(ctx, client.HostConfig{
		Dir: agentDir(n.cfg), Kind: sallyport.KindAgent, Name: hostname(), Log: n.log, Addresses: ways, Resources: n.cfg.resources(), Held: inherits, Connect: dial.ByEnvironment,
		Inside: dial.Inside,
	}, n.cfg.Agent.Join)
	if err != nil {
		return fmt.Errorf("agent: %w", err)
	}
	if n.agent, err = openAgent(n.cfg, host, nil, n.log); err != nil || inherits {
		return err
	}
	if err := n.agent.own(ctx); err != nil {
		return err
	}
	n.showAgent()
	return nil
}

// showAgent lets operators see an agent that serves, or is about to.
func (n *node) showAgent() {
	n.agent.agent.Tunnel.Gateways = n.agentGateways()
	n.shownAgent.Store(n.agent)
}

// join opens the standing of a host that joined before, or joins: by a token of
// this process's own auth, or by the token file. While auth cannot be reached
// it tries again; a token that is refused is an error.
func (n *node) join(ctx context.Context, hc client.HostConfig, j joinConfig) (*client.Host, error) {
	h, err := client.OpenHost(hc)
	if !errors.Is(err, client.ErrNotJoined) || hc.Held {
		return h, err
	}
	if n.auth == nil {
		n.warnOfReaders(j.TokenFile)
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
		if errors.Is(err, identity.ErrPin) {
			return nil, &sallyport.Problem{Kind: sallyport.ErrUnauthorized, Fact: err.Error(), Hint: "compare join.ca_pin with what sallyctl status on the auth host prints; if it is right, somebody else answers at this address", Cause: err}
		}
		if !errors.Is(err, sallyport.ErrUnavailable) {
			return nil, err
		}
		n.log.Warn("auth cannot be reached to join; trying again", append(reasons(err), "in", joinRetry)...)
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(joinRetry):
		}
	}
}

// reasons are an error for the log of whoever runs this host: with what lies at its
// bottom, such as a name that the DNS does not know, of which the fact is silent.
func reasons(err error) []any {
	cause := err
	for p := (*sallyport.Problem)(nil); errors.As(cause, &p) && p.Cause != nil; {
		cause = p.Cause
	}
	if cause == err {
		return []any{"error", err}
	}
	return []any{"error", err, "cause", cause}
}

// warnOfReaders tells that others can read a join token. It is no error, as with an
// identity file: what a container's secrets are mounted with cannot be changed.
func (n *node) warnOfReaders(token string) {
	if info, err := os.Stat(token); err == nil && info.Mode().Perm()&0o077 != 0 {
		n.log.Warn("others can read the join token, and join by it: chmod 600", "file", token, "mode", fmt.Sprintf("%04o", info.Mode().Perm()))
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

// run serves until ctx is done, a role fails, or another process has taken over;
// then everything ends in the order in which it is needed.
func (n *node) run(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	// What moves is not to be closed while it does: the roles end after an
	// upgrade that runs, which ctx ends.
	roles, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	g, roles := errgroup.WithContext(roles)
	if l := n.keeping.line; l != nil {
		g.Go(func() error { return n.heed(roles, l, stop) })
	}
	n.upgrades.begin(ctx) // from now on keeping is the upgrade's
	g.Go(func() error {
		select {
		case <-ctx.Done():
		case <-roles.Done():
			stop()
		}
		n.stopping.Store(true)
		if !n.upgrades.isHanded() {
			n.log.Info("stopping")
			n.tell(n.keeping.manager.Stopping())
		}
		n.upgrades.end()
		n.shutPort()
		if c := n.canary.Load(); c != nil {
			<-c.done // it ends with ctx
		}
		n.endRemnants() // while there is somebody who takes what they have to say
		end()
		return nil
	})
	if n.metrics != nil {
		g.Go(func() error { return n.runMetrics(roles, n.metrics) })
	}
	n.reloads.up.Store(true)
	g.Go(func() error { return n.reloadOn(roles, n.hangUp) })
	g.Go(func() error { return n.upgradeOn(roles, n.renew) })
	g.Go(func() error { return n.afterwards(roles) })
	g.Go(func() error { return n.reassure(roles) })
	g.Go(func() error { return n.watchClock(roles) })
	g.Go(func() error { return n.endLateOn(roles) })
	g.Go(func() error {
		select {
		case err := <-n.started:
			return err
		case <-roles.Done():
			return nil
		}
	})
	if n.demo != nil {
		g.Go(func() error { return n.demo.announce(roles) })
	}
	if n.gateway != nil {
		g.Go(func() error { return n.gateway.run(roles) })
	}
	if n.agent != nil {
		g.Go(func() error { return n.agent.run(roles) })
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
	n.leaveRemnants()
	n.closeSockets()
	if n.auth != nil {
		n.auth.close()
	}
	if !n.upgrades.isHanded() && !n.heirOnly {
		n.keeping.over()
	}
	if n.lock != nil {
		n.lock.Close()
	}
}

// closeSockets closes those of operators. The name goes with the last process
// that has it.
func (n *node) closeSockets() {
	if n.metrics != nil {
		n.metrics.Close()
	}
	if n.admin == nil {
		return
	}
	n.admin.Close()
	if !n.upgrades.isHanded() && !n.heirOnly {
		_ = os.Remove(filepath.Join(n.cfg.DataDir, adminSocket))
	}
}
