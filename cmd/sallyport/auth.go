package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/google/uuid"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/cmd/internal/sock"
	"github.com/sallyport/sallyport/controlplane/api"
	"github.com/sallyport/sallyport/controlplane/audit"
	"github.com/sallyport/sallyport/controlplane/ca"
	"github.com/sallyport/sallyport/controlplane/ca/signed"
	"github.com/sallyport/sallyport/controlplane/inventory"
	"github.com/sallyport/sallyport/controlplane/join"
	"github.com/sallyport/sallyport/controlplane/login"
	"github.com/sallyport/sallyport/controlplane/store"
	"github.com/sallyport/sallyport/controlplane/store/etcd"
	"github.com/sallyport/sallyport/controlplane/web"
)

const (
	authSocket  = "auth.sock"
	adminSocket = "admin.sock"
)

// auth is the control plane in this process.
type auth struct {
	cfg       *config
	log       *slog.Logger
	id        string
	store     store.Store
	keys      *ca.Keys
	users     *login.Login
	tokens    *join.Tokens
	inventory *inventory.Inventory
	events    *audit.Log
	server    *api.Server
	key       *ecdsa.PrivateKey
	listeners []listening

	mu   sync.Mutex
	cert *tls.Certificate
}

// listening is a socket, and whether a gateway of this machine is behind it.
type listening struct {
	net.Listener
	gateway bool
}

// openAuth opens the store and everything that stands on it. Nothing is served yet.
func openAuth(ctx context.Context, cfg *config, log *slog.Logger) (a *auth, err error) {
	a = &auth{cfg: cfg, log: log}
	opened := a // a is nil once an error is returned
	defer func() {
		if err != nil {
			opened.close()
		}
	}()
	dir := filepath.Join(cfg.DataDir, "auth")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if a.store, err = openStore(ctx, cfg, dir, log); err != nil {
		return nil, err
	}
	sealer, err := ca.OpenKeyFile(filepath.Join(dir, "kek"))
	if err != nil {
		return nil, err
	}
	if a.keys, err = ca.Open(ctx, ca.Config{Store: a.store, Sealer: sealer, Cluster: cfg.Cluster}); err != nil {
		return nil, err
	}
	a.id, err = hostID(filepath.Join(dir, "host-id"))
	if err != nil {
		return nil, err
	}
	a.events, err = audit.OpenLog(audit.LogConfig{Dir: filepath.Join(dir, "audit"), Host: a.id, Sign: a.signHead, Log: log})
	if err != nil {
		return nil, err
	}
	a.users, err = login.New(login.Config{Store: a.store, Sealer: sealer, Issuer: cfg.Cluster, SecondFactor: login.Policy(cfg.Auth.SecondFactor)})
	if err != nil {
		return nil, err
	}
	a.tokens = join.New(a.store, nil)
	a.inventory = inventory.New(inventory.Config{Store: a.store})
	a.server, err = api.New(ctx, api.Config{
		Store: a.store, CA: a.keys, Users: a.users, Tokens: a.tokens, Inventory: a.inventory, Audit: a.events,
		Version: version, PublicAddress: cfg.Gateway.PublicAddress, SecondFactor: cfg.Auth.SecondFactor,
		OfflineMaxAge: time.Duration(cfg.Auth.Offline.MaxAge), Log: log,
	})
	if err != nil {
		return nil, err
	}
	if a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, err
	}
	return a, a.listen()
}

func openStore(ctx context.Context, cfg *config, dir string, log *slog.Logger) (store.Store, error) {
	if e := cfg.Auth.Etcd; len(e.Endpoints) > 0 {
		t, err := clientTLS(e.TLS)
		if err != nil {
			return nil, err
		}
		return etcd.OpenCluster(ctx, etcd.ClusterConfig{Endpoints: e.Endpoints, TLS: t})
	}
	return etcd.OpenEmbedded(ctx, etcd.EmbeddedConfig{Dir: filepath.Join(dir, "etcd"), Log: log})
}

// clientTLS is nil without files: plain endpoints.
func clientTLS(c tlsConfig) (*tls.Config, error) {
	if c == (tlsConfig{}) {
		return nil, nil
	}
	t := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.CA != "" {
		pool, err := certPool(c.CA)
		if err != nil {
			return nil, err
		}
		t.RootCAs = pool
	}
	if c.Cert != "" || c.Key != "" {
		cert, err := tls.LoadX509KeyPair(c.Cert, c.Key)
		if err != nil {
			return nil, err
		}
		t.Certificates = []tls.Certificate{cert}
	}
	return t, nil
}

func certPool(path string) (*x509.CertPool, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(b) {
		return nil, fmt.Errorf("%s: no certificate in it", path)
	}
	return pool, nil
}

// hostID is made once and kept.
func hostID(path string) (string, error) {
	b, err := os.ReadFile(path)
	if err == nil {
		id, perr := uuid.Parse(strings.TrimSpace(string(b)))
		if perr != nil {
			return "", fmt.Errorf("%s: %w", path, perr)
		}
		return id.String(), nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	id := uuid.NewString()
	return id, os.WriteFile(path, []byte(id+"\n"), 0o600)
}

// signHead signs a head of the audit log with the host CA.
func (a *auth) signHead(head []byte) ([]byte, error) {
	s, err := a.keys.Sign(signed.AuditHead, head)
	if err != nil {
		return nil, err
	}
	return s.GetSignature(), nil
}

// listen opens auth's own socket, the admin socket, and auth.listen.
func (a *auth) listen() error {
	ln, err := unixListener(a.cfg.DataDir, authSocket)
	if err != nil {
		return err
	}
	a.listeners = append(a.listeners, listening{ln, true})
	for _, addr := range a.cfg.Auth.Listen {
		ln, err := net.Listen("tcp", addr)
		if err != nil {
			return err
		}
		a.listeners = append(a.listeners, listening{ln, false})
	}
	return nil
}

// unixListener makes a socket with mode 0600. A stale one is replaced: the
// data directory is locked by this process.
func unixListener(dir, name string) (net.Listener, error) {
	path, err := sock.Path(dir, name)
	if err != nil {
		return nil, err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	ln, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	return ln, os.Chmod(path, 0o600)
}

// run serves until ctx is done.
func (a *auth) run(ctx context.Context) error {
	pages, err := a.pages()
	if err != nil {
		return err
	}
	root := api.FromWeb(a.server.Handler(pages))
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return a.server.Run(ctx) })
	for _, ln := range a.listeners {
		l := &api.Listener{
			Handler: root, Certificate: a.certificate, Cluster: a.cfg.Cluster, BehindGateway: ln.gateway, Log: a.log,
			UserCAs: func() *x509.CertPool { return a.keys.Pool(ca.User) },
			HostCAs: func() *x509.CertPool { return a.keys.Pool(ca.Host) },
		}
		g.Go(func() error { return l.Serve(ctx, ln) })
	}
	return g.Wait()
}

func (a *auth) pages() (http.Handler, error) {
	return web.Handler(web.Config{
		Accounts: a.users, Cluster: a.cfg.Cluster, Address: a.cfg.Gateway.PublicAddress, Pins: a.keys.Pins(), Log: a.log,
		Visitor: func(r *http.Request) netip.Addr { return api.VisitorAddr(r.Context()) },
		Claimed: func(ctx context.Context, user string, mfa bool, from netip.Addr) error {
			return a.events.Emit(ctx, sallyport.Event{
				Name: audit.UserPasswordChange, Code: audit.UserPasswordChangeCode, Cluster: a.cfg.Cluster, User: user, UserKind: "human",
				Addr: from.String(), Fields: map[string]any{"with_mfa": mfa},
			}, true)
		},
	})
}

// certificate is auth's own, renewed at half of its life.
func (a *auth) certificate() (*tls.Certificate, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if c := a.cert; c != nil && time.Now().Before(c.Leaf.NotBefore.Add(c.Leaf.NotAfter.Sub(c.Leaf.NotBefore)/2)) {
		return c, nil
	}
	pub, err := x509.MarshalPKIXPublicKey(a.key.Public())
	if err != nil {
		return nil, err
	}
	issued, err := a.keys.IssueHost(ca.HostRequest{Kind: sallyport.KindAuth, ID: a.id, TLSKey: pub})
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(issued.X509)
	if err != nil {
		return nil, err
	}
	a.cert = &tls.Certificate{Certificate: [][]byte{issued.X509}, PrivateKey: a.key, Leaf: leaf}
	for _, c := range a.keys.Authority(ca.Host).Certificates {
		a.cert.Certificate = append(a.cert.Certificate, c.Raw)
	}
	return a.cert, nil
}

// localToken lets a role of this very process join: single use, one minute.
func (a *auth) localToken(ctx context.Context, kind sallyport.IdentityKind) (string, error) {
	secret, _, err := a.tokens.Create(ctx, join.Spec{Roles: []sallyport.IdentityKind{kind}, TTL: time.Minute, SingleUse: true})
	return secret, err
}

func (a *auth) close() {
	for _, l := range a.listeners {
		l.Close()
	}
	if a.events != nil {
		if err := a.events.Close(); err != nil {
			a.log.Error("close the audit log", "error", err)
		}
	}
	if a.store != nil {
		if err := a.store.Close(); err != nil {
			a.log.Error("close the store", "error", err)
		}
	}
}
