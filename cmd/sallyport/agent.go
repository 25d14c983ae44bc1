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
	"github.com/sallyport/sallyport/controlplane/audit"
	"github.com/sallyport/sallyport/controlplane/client"
	"github.com/sallyport/sallyport/dataplane/access"
	"github.com/sallyport/sallyport/dataplane/agent"
	"github.com/sallyport/sallyport/dataplane/protocol/postgres"
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
	spool     *audit.Spool
	databases atomic.Pointer[databases]
	agent     *agent.Agent
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
	return out
}

func hostname() string {
	name, err := os.Hostname()
	if err != nil || name == "" {
		return "localhost"
	}
	return name
}

// openAgent makes the agent; nothing is dialed yet.
func openAgent(cfg *config, host *client.Host, gateways []string, log *slog.Logger) (*agentRole, error) {
	r := &agentRole{cfg: cfg, log: log, host: host}
	var err error
	if r.spool, err = audit.OpenSpool(audit.SpoolConfig{Dir: filepath.Join(agentDir(cfg), "spool"), Host: host.ID(), Log: log}); err != nil {
		return nil, err
	}
	all, err := new(databases).change(cfg.Agent.Databases, r.openDatabase)
	if err != nil {
		r.close()
		return nil, err
	}
	r.databases.Store(all)
	keeper := host.Keeper()
	shell := &sshserver.Server{
		HostSigner: func() (ssh.Signer, error) { return host.SSHSigner() },
		UserCAs: func() ([][]byte, error) {
			t, err := keeper.Trust()
			if err != nil {
				return nil, err
			}
			return t.SSHUserCAs, nil
		},
		Cluster: host.Cluster(), HostID: host.ID(), Hostname: hostname(), Version: version, Events: r.spool, Log: log,
	}
	r.agent = &agent.Agent{
		Door: &access.Door{
			Cluster: host.Cluster(), AgentID: host.ID(), Snapshot: keeper, Decider: keeper, Events: r.spool, Credentials: host, Log: log,
		},
		Tunnel: tunnel.AgentConfig{
			AgentID: host.ID(), Cluster: host.Cluster(), Version: version, Gateways: gateways, TLS: r.tls, Log: log, Cancel: r.cancel,
			Proxy: proxyFor(httpproxy.FromEnvironment().ProxyFunc()),
		},
		Services: []agent.Service{
			{Kind: sallyport.KindNode, Serve: shell.Serve},
			{Kind: sallyport.KindDatabase, Protocol: "postgres", Serve: r.database},
			{Kind: sallyport.KindTCP, Serve: (&tcp.Server{Dial: dialTarget, Log: log}).Serve},
		},
		Resources: cfg.resources(),
		Assigned:  host.Resources,
		Log:       log,
	}
	return r, nil
}

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

// openDatabase makes the server of one database: each has a target of its own.
func (r *agentRole) openDatabase(d databaseConfig) (*postgres.Server, error) {
	s := &postgres.Server{
		Cluster: r.host.Cluster(), CancelTag: r.host.CancelTag, Certificate: r.host.DatabaseCertificate, Log: r.log,
		Target: postgres.Target{Address: d.Address, TLS: postgres.TLSMode(d.TLS.Mode), ServerName: d.TLS.ServerName},
		Roots: func() *x509.CertPool {
			t, _ := r.host.Keeper().Trust()
			if t == nil {
				return nil
			}
			return client.Pool(t.DatabaseCAs)
		},
	}
	if d.TLS.CA != "" {
		pool, err := certPool(d.TLS.CA)
		if err != nil {
			return nil, fmt.Errorf("agent.databases %s: %w", d.Name, err)
		}
		s.Target.Roots = pool
	}
	return s, nil
}

func (r *agentRole) database(ctx context.Context, c *session.Candidate, conn net.Conn) error {
	s := r.databases.Load().servers[c.Resource.Name]
	if s == nil {
		return fmt.Errorf("%w: database %s is not configured here", session.ErrCut, c.Resource.Name)
	}
	return s.Serve(ctx, c, conn)
}

// cancel asks each database: a process id belongs to one of them.
func (r *agentRole) cancel(_ context.Context, processID uint32, secretKey []byte) {
	if len(secretKey) != 4 {
		return
	}
	key := uint32(secretKey[0])<<24 | uint32(secretKey[1])<<16 | uint32(secretKey[2])<<8 | uint32(secretKey[3])
	all := r.databases.Load()
	for _, s := range all.servers {
		s.Cancel(processID, key)
	}
	for _, s := range all.retired {
		s.Cancel(processID, key)
	}
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

// run serves until ctx is done; then sessions end and the spool is closed.
func (r *agentRole) run(ctx context.Context) error {
	defer r.close()
	defer newHeapFloor().release()
	assignments := make(chan []byte)
	r.agent.Tunnel.Assignments = assignments
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return r.host.Run(ctx) })
	g.Go(func() error { return client.Ship(ctx, r.spool, r.host.API(), r.log) })
	g.Go(func() error { return r.feed(ctx, assignments) })
	g.Go(func() error {
		if err := r.agent.Run(ctx); ctx.Err() == nil {
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

func (r *agentRole) close() {
	if err := r.spool.Close(); err != nil {
		r.log.Error("close the audit spool", "error", err)
	}
}
