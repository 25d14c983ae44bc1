package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/net/http/httpproxy"
	"golang.org/x/sync/errgroup"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/cmd/internal/shell"
	"github.com/sallyport/sallyport/cmd/internal/sock"
	"github.com/sallyport/sallyport/controlplane/audit"
	"github.com/sallyport/sallyport/controlplane/client"
	"github.com/sallyport/sallyport/controlplane/remnant"
	"github.com/sallyport/sallyport/dataplane/access"
	"github.com/sallyport/sallyport/dataplane/agent"
	"github.com/sallyport/sallyport/dataplane/database"
	"github.com/sallyport/sallyport/dataplane/protocol/mysql"
	"github.com/sallyport/sallyport/dataplane/protocol/postgres"
	"github.com/sallyport/sallyport/dataplane/protocol/redis"
	sshserver "github.com/sallyport/sallyport/dataplane/protocol/ssh"
	"github.com/sallyport/sallyport/dataplane/protocol/tcp"
	"github.com/sallyport/sallyport/dataplane/session"
	"github.com/sallyport/sallyport/dataplane/tunnel"
	"github.com/sallyport/sallyport/identity"
)

// agentRole is the agent in this process.
type agentRole struct {
	cfg       *config
	log       *slog.Logger
	host      *client.Host
	spool     *remnant.Spool
	databases atomic.Pointer[databases]
	clusters  atomic.Pointer[clusters]
	anywhere  atomic.Bool // agent.ssh.listen_anywhere
	apps      atomic.Pointer[apps]
	agent     *agent.Agent
	gate      tunnel.Gate // of its tunnels, in an upgrade

	drained atomic.Bool             // it has said goodbye to its gateways, and stays
	ends    chan *sallyport.Problem // why all sessions end: see goodbye
	over    chan struct{}           // closed when run has returned
}

// resources are what the configuration asks to serve.
func (c *config) resources() []sallyport.Resource {
	var out []sallyport.Resource
	a := c.Agent
	if a.SSH.Enabled {
		out = append(out, sallyport.Resource{Kind: sallyport.KindNode, Name: a.SSH.Name, Hostname: orText(a.SSH.Name, hostname()), Labels: a.SSH.Labels, Group: a.Group, Version: version})
	}
	for _, d := range a.Databases {
		out = append(out, sallyport.Resource{Kind: sallyport.KindDatabase, Name: d.Name, Protocol: d.Protocol, Address: d.Address, Description: d.Description, Labels: d.Labels, Group: a.Group, Version: version})
	}
	for _, t := range a.TCP {
		out = append(out, sallyport.Resource{Kind: sallyport.KindTCP, Name: t.Name, Address: t.Address, Description: t.Description, Labels: t.Labels, Group: a.Group, Version: version})
	}
	for _, k := range a.Kubernetes {
		out = append(out, sallyport.Resource{Kind: sallyport.KindKube, Name: k.Name, Description: k.Description, Labels: k.Labels, Group: a.Group, Version: version})
	}
	for _, w := range a.Apps {
		protocol := ""
		if w.isAWS() {
			protocol = sallyport.ProtocolAWS
		}
		out = append(out, sallyport.Resource{Kind: sallyport.KindApp, Name: w.Name, Protocol: protocol, Address: w.URI, Description: w.Description, Labels: w.Labels, Group: a.Group, Version: version})
	}
	return out
}

// fileServer is how this program is started to serve sftp; "" when it does not
// know where it is.
func fileServer() string {
	path, err := os.Executable()
	if err != nil {
		return ""
	}
	return shell.Word(path) + " sftp-server"
}

// sftpServerCmd runs as a login, started by its shell.
type sftpServerCmd struct{}

func (*sftpServerCmd) Run(p *program) error { return sshserver.ServeFiles(os.Stdin, os.Stdout) }

func hostname() string {
	name, err := os.Hostname()
	if err != nil || name == "" {
		return "localhost"
	}
	return name
}

// openAgent makes the agent. Nothing is dialed yet, and the audit spool is not
// open: own opens it, or in an upgrade the agent's Taker.
func openAgent(cfg *config, host *client.Host, gateways []string, log *slog.Logger) (*agentRole, error) {
	r := &agentRole{cfg: cfg, log: log, host: host, ends: make(chan *sallyport.Problem, 1), over: make(chan struct{})}
	var err error
	if r.spool, err = r.newSpool(); err != nil {
		return nil, err
	}
	all, err := new(databases).change(cfg.Agent.Databases, r.openDatabase)
	if err != nil {
		return nil, err
	}
	r.databases.Store(all)
	served, err := new(clusters).change(cfg.Agent.Kubernetes, r.openCluster)
	if err != nil {
		return nil, err
	}
	r.clusters.Store(served)
	web, err := apps{}.change(cfg.Agent.Apps, r.openApp)
	if err != nil {
		return nil, err
	}
	r.apps.Store(&web)
	keeper := host.Keeper()
	nodes := &sshserver.Server{
		HostSigner: func() (ssh.Signer, error) { return host.SSHSigner() },
		UserCAs: func() ([][]byte, error) {
			t, err := keeper.Trust()
			if err != nil {
				return nil, err
			}
			return t.SSHUserCAs, nil
		},
		Cluster: host.Cluster(), HostID: host.ID(), Version: version, Events: r.spool, Log: log,
		ListenAnywhere: r.anywhere.Load, FileServer: fileServer(),
	}
	r.anywhere.Store(cfg.Agent.SSH.ListenAnywhere)
	r.agent = &agent.Agent{
		Door: &access.Door{
			Cluster: host.Cluster(), AgentID: host.ID(), Snapshot: keeper, Decider: keeper, Events: r.spool, Credentials: host, Log: log,
			Elsewhere: r.spool.UserSessions,
		},
		Tunnel: tunnel.AgentConfig{
			AgentID: host.ID(), Cluster: host.Cluster(), Version: version, Gateways: gateways, TLS: r.tls, Log: log, Cancel: r.cancel, Gate: &r.gate,
			Own:      func(chain []*x509.Certificate) bool { return identity.LeadsTo(keeper.Roots(), chain, time.Now()) },
			Refused:  func(gateway string) error { return standing(keeper, gateway) },
			Outdated: host.AnnounceAgain,
			Listed: func() ([]string, <-chan struct{}) {
				changed := keeper.Changed() // before what it is about
				return keeper.Gateways(), changed
			},
			Proxy: proxyFor(httpproxy.FromEnvironment().ProxyFunc()),
		},
		Services: []agent.Service{
			{Kind: sallyport.KindNode, Serve: nodes.Serve},
			{Kind: sallyport.KindDatabase, Protocol: protocolPostgres, Serve: r.database},
			{Kind: sallyport.KindDatabase, Protocol: protocolMySQL, Serve: r.database},
			{Kind: sallyport.KindDatabase, Protocol: protocolRedis, Serve: r.database},
			{Kind: sallyport.KindKube, Serve: r.kubernetes},
			{Kind: sallyport.KindTCP, Serve: (&tcp.Server{Dial: dialTarget, Log: log}).Serve},
			{Kind: sallyport.KindApp, Serve: r.app},
		},
		Resources: cfg.resources(),
		Assigned:  host.Resources,
		Log:       log,
	}
	return r, nil
}

// newSpool makes the agent's audit spool, which its processes share.
func (r *agentRole) newSpool() (*remnant.Spool, error) {
	dir := agentDir(r.cfg)
	if err := os.Chmod(dir, 0o700); err != nil {
		return nil, unusable(dir, err)
	}
	socket, err := sock.Path(dir, remnantSocket)
	if err != nil {
		return nil, err
	}
	return remnant.New(remnant.Config{
		Socket: socket, Host: r.host.ID(), Version: version, Log: r.log,
		Open: func() (*audit.Spool, error) {
			return audit.OpenSpool(audit.SpoolConfig{Dir: filepath.Join(dir, "spool"), Host: r.host.ID(), Log: r.log})
		},
		Ship: func(ctx context.Context, s *audit.Spool) {
			_ = client.Ship(ctx, s, r.host.API(), r.log) // ends with ctx only
		},
		Cancel:   r.cancelFromOwner,
		Sessions: r.sessions,
	}), nil
}

// own opens the audit spool of an agent that starts without an upgrade.
func (r *agentRole) own(ctx context.Context) error { return r.spool.Open(ctx) }

// proxyFor says by which proxy a gateway is reached: what HTTPS_PROXY and NO_PROXY say.
func proxyFor(ask func(*url.URL) (*url.URL, error)) func(string) (*url.URL, error) {
	return func(address string) (*url.URL, error) { return ask(&url.URL{Scheme: "https", Host: address}) }
}

// dialTarget reaches a TCP service at host:port, or at "unix:" and a path.
func dialTarget(ctx context.Context, network, address string) (net.Conn, error) {
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		network, address = "unix", path
	}
	return (&net.Dialer{}).DialContext(ctx, network, address)
}

// Protocols of databases.
const (
	protocolPostgres = "postgres"
	protocolMySQL    = "mysql"
	protocolRedis    = "redis"
)

// databaseServer serves one database; those whose statements are cancelled by
// another connection's first message are cancellers too.
type databaseServer interface {
	Serve(ctx context.Context, c *session.Candidate, conn net.Conn) error
}

// openDatabase makes the server of one database: each has a target of its own.
func (r *agentRole) openDatabase(d databaseConfig) (databaseServer, error) {
	target := database.Target{Address: d.Address, TLS: database.TLSMode(d.TLS.Mode), ServerName: d.TLS.ServerName}
	if d.TLS.CA != "" {
		pool, err := certPool(d.TLS.CA)
		if err != nil {
			return nil, fmt.Errorf("agent.databases %s: %w", d.Name, err)
		}
		target.Roots = pool
	}
	switch d.Protocol {
	case protocolMySQL:
		return &mysql.Server{Cluster: r.host.Cluster(), Certificate: r.host.DatabaseCertificate, Roots: r.databaseRoots, Target: target}, nil
	case protocolRedis:
		return &redis.Server{Cluster: r.host.Cluster(), Certificate: r.host.DatabaseCertificate, Roots: r.databaseRoots, Target: target}, nil
	}
	return &postgres.Server{
		Cluster: r.host.Cluster(), CancelTag: r.host.CancelTag, Certificate: r.host.DatabaseCertificate, Log: r.log,
		CancelElsewhere: r.cancelElsewhere, Target: target, Roots: r.databaseRoots,
	}, nil
}

// databaseRoots are the cluster's database CAs of this moment.
func (r *agentRole) databaseRoots() *x509.CertPool {
	t, _ := r.host.Keeper().Trust()
	if t == nil {
		return nil
	}
	return client.Pool(t.DatabaseCAs)
}

func (r *agentRole) database(ctx context.Context, c *session.Candidate, conn net.Conn) error {
	s := r.databases.Load().servers[c.Resource.Name]
	if s == nil {
		return fmt.Errorf("%w: database %s is not configured here", session.ErrCut, c.Resource.Name)
	}
	return s.Serve(ctx, c, conn)
}

// tls is how gateways are dialed: with our certificate, and who answers must be
// a gateway of the cluster.
func (r *agentRole) tls(string) (*tls.Config, error) {
	cert, err := r.host.Certificate()
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		ServerName: r.host.Cluster(), Certificates: []tls.Certificate{*cert}, SessionTicketsDisabled: true,
		InsecureSkipVerify: true, // VerifyConnection does the whole check: gateways are named by SPIFFE ids
		VerifyConnection: func(cs tls.ConnectionState) error {
			_, err := identity.VerifyPeer(cs.PeerCertificates, identity.Want{
				Roots: r.host.Keeper().Roots(), Cluster: r.host.Cluster(), Kinds: []sallyport.IdentityKind{sallyport.KindGateway},
				Usage: x509.ExtKeyUsageServerAuth, Now: time.Now(),
			})
			return err
		},
	}, nil
}

// run serves until ctx is done, or the agent has left and its last session has
// ended; then sessions end and the spool is closed.
func (r *agentRole) run(ctx context.Context) error {
	defer close(r.over)
	defer r.close()
	defer newHeapFloor().release()
	assignments := make(chan []byte)
	r.agent.Tunnel.Assignments = assignments
	r.spool.Start()
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	g, here := errgroup.WithContext(ctx)
	here, served := context.WithCancel(here)
	g.Go(func() error { return r.host.Run(here) })
	g.Go(func() error { return r.feed(here, assignments) })
	g.Go(func() error { return r.endAll(here, end) })
	g.Go(func() error {
		defer served()
		err := r.agent.Run(here)
		if r.drained.Load() {
			<-here.Done() // what old processes and the last sessions have to say is still taken
		}
		if here.Err() == nil {
			return err
		}
		return nil
	})
	return g.Wait()
}

// feed passes each assignment on to the tunnels.
func (r *agentRole) feed(ctx context.Context, out chan<- []byte) error {
	for {
		changed := r.host.AssignmentChanged()
		if a := r.host.Assignment(); a != nil {
			select {
			case out <- a:
			case <-ctx.Done():
				return nil
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

// lastEvents is how long the events of the last sessions may take.
const lastEvents = 15 * time.Second

func (r *agentRole) close() {
	ctx, cancel := context.WithTimeout(context.Background(), lastEvents)
	defer cancel()
	if err := r.spool.Close(ctx); err != nil {
		r.log.Error("close the audit spool", "error", err)
	}
}
