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
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/cmd/internal/sock"
	"github.com/sallyport/sallyport/controlplane/api"
	"github.com/sallyport/sallyport/controlplane/audit"
	"github.com/sallyport/sallyport/controlplane/ca"
	"github.com/sallyport/sallyport/controlplane/ca/signed"
	"github.com/sallyport/sallyport/controlplane/durable"
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
	cfg   *config
	log   *slog.Logger
	admin api.Gate // the API on the admin socket; shut while nothing is served

	// What stands on the open store: replaced as a whole by open, while nothing
	// is served.
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
	failed    chan error    // what ends run
	broken    chan struct{} // thaw could not open the store

	changing sync.Mutex // held while serving begins or ends
	serving  *serving   // nil while nothing is served
	frozen   bool       // from freeze on, until thaw

	shownStore atomic.Pointer[etcd.Store] // store, for the status; nil while none is open

	mu   sync.Mutex
	cert *tls.Certificate
}

// listening is a socket of the API, by a name that is the same in every process.
type listening struct {
	net.Listener
	name    string
	gateway bool // a gateway of this machine is behind it
}

func newAuth(cfg *config, log *slog.Logger) *auth {
	return &auth{cfg: cfg, log: log, failed: make(chan error, 1), broken: make(chan struct{}, 1)}
}

// openAuth opens the store and everything that stands on it, and the sockets.
// Nothing is served yet.
func openAuth(ctx context.Context, cfg *config, log *slog.Logger) (*auth, error) {
	a := newAuth(cfg, log)
	err := a.open(ctx)
	if err == nil {
		err = a.listen(nil)
	}
	if err != nil {
		a.close()
		return nil, err
	}
	return a, nil
}

// open opens the store and everything that stands on it. What was opened before
// an error is for shut.
func (a *auth) open(ctx context.Context) error {
	dir := filepath.Join(a.cfg.DataDir, "auth")
	if err := durable.MkdirAll(dir); err != nil {
		return err
	}
	s, err := openStore(ctx, a.cfg, dir, a.log)
	if err != nil {
		return err
	}
	a.store = s
	a.shownStore.Store(s)
	sealer, err := ca.OpenKeyFile(filepath.Join(dir, "kek"))
	if err != nil {
		return err
	}
	if a.keys, err = ca.Open(ctx, ca.Config{Store: a.store, Sealer: sealer, Cluster: a.cfg.Cluster}); err != nil {
		return err
	}
	if a.id, err = hostID(filepath.Join(dir, "host-id")); err != nil {
		return err
	}
	a.events, err = audit.OpenLog(audit.LogConfig{Dir: filepath.Join(dir, "audit"), Host: a.id, Sign: a.signHead, Log: a.log})
	if err != nil {
		return err
	}
	a.users, err = login.New(login.Config{Store: a.store, Sealer: sealer, Issuer: a.cfg.Cluster, SecondFactor: login.Policy(a.cfg.Auth.SecondFactor)})
	if err != nil {
		return err
	}
	a.tokens = join.New(a.store, nil)
	a.inventory = inventory.New(inventory.Config{Store: a.store})
	a.server, err = api.New(ctx, api.Config{
		Store: a.store, CA: a.keys, Users: a.users, Tokens: a.tokens, Inventory: a.inventory, Audit: a.events,
		Version: version, PublicAddress: a.cfg.pagesAddress(), SecondFactor: a.cfg.Auth.SecondFactor,
		OfflineMaxAge: a.cfg.Auth.Offline.maxAge(), Log: a.log,
	})
	if err != nil {
		return err
	}
	if a.key == nil {
		a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	return err
}

// shut closes what open has opened. It may be called again.
func (a *auth) shut() error {
	var errs []error
	if a.events != nil {
		errs = append(errs, a.events.Close())
	}
	if a.store != nil {
		errs = append(errs, a.store.Close())
	}
	a.events, a.store = nil, nil
	a.shownStore.Store(nil)
	return errors.Join(errs...)
}

func openStore(ctx context.Context, cfg *config, dir string, log *slog.Logger) (*etcd.Store, error) {
	if e := cfg.Auth.Etcd; len(e.Endpoints) > 0 {
		t, err := clientTLS(e.TLS)
		if err != nil {
			return nil, err
		}
		return etcd.OpenCluster(ctx, etcd.ClusterConfig{Endpoints: e.Endpoints, TLS: t})
	}
	return etcd.OpenEmbedded(ctx, etcd.EmbeddedConfig{Dir: filepath.Join(dir, "etcd"), Quota: cfg.Auth.Etcd.quota(), Log: log})
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

// hostID is made once and kept. An empty file is of a start that a power cut
// ended: nothing has had an id from it.
func hostID(path string) (string, error) {
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	if text := strings.TrimSpace(string(b)); text != "" {
		id, err := uuid.Parse(text)
		if err != nil {
			return "", fmt.Errorf("%s: %w", path, err)
		}
		return id.String(), nil
	}
	id := uuid.NewString()
	return id, durable.WriteFile(path, []byte(id+"\n"))
}

// signHead signs a head of the audit log with the host CA.
func (a *auth) signHead(head []byte) ([]byte, error) {
	s, err := a.keys.Sign(signed.AuditHead, head)
	if err != nil {
		return nil, err
	}
	return s.GetSignature(), nil
}

// listen opens the sockets that are not inherited: auth's own, and those of
// auth.listen.
func (a *auth) listen(inherited map[string]bool) error {
	if !inherited[authSocket] {
		ln, err := unixListener(a.cfg.DataDir, authSocket)
		if err != nil {
			return err
		}
		a.listeners = append(a.listeners, listening{ln, authSocket, true})
	}
	for _, addr := range a.cfg.Auth.Listen {
		if inherited[tcpName(addr)] {
			continue
		}
		ln, err := net.Listen("tcp", addr)
		if err != nil {
			return err
		}
		a.listeners = append(a.listeners, listening{ln, tcpName(addr), false})
	}
	return nil
}

// tcpName names a socket by its address in the configuration.
func tcpName(addr string) string { return "tcp:" + addr }

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

// serving is the time from one opening to the next closing.
type serving struct {
	cancel    context.CancelFunc
	listeners []*api.Listener
	group     sync.WaitGroup
}

// run serves until ctx is done or something fails. Meanwhile auth may be frozen
// and thawed (auth_handover.go).
func (a *auth) run(ctx context.Context) error {
	if err := a.serve(); err != nil {
		return err
	}
	defer a.halt()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-a.failed:
			return err
		case <-a.broken:
			a.reopen(ctx)
		}
	}
}

// serve begins to serve on all sockets.
func (a *auth) serve() error {
	a.changing.Lock()
	defer a.changing.Unlock()
	return a.serveLocked()
}

func (a *auth) serveLocked() error {
	pages, err := a.pages()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &serving{cancel: cancel}
	root := api.FromWeb(a.server.Handler(pages))
	server := a.server
	s.group.Go(func() { a.report(server.Run(ctx)) })
	for _, ln := range a.listeners {
		l := &api.Listener{
			Handler: root, Certificate: a.certificate, Cluster: a.cfg.Cluster, BehindGateway: ln.gateway, Standing: server.Standing, Log: a.log,
			UserCAs: func() *x509.CertPool { return a.keys.Pool(ca.User) },
			HostCAs: func() *x509.CertPool { return a.keys.Pool(ca.Host) },
		}
		s.listeners = append(s.listeners, l)
		s.group.Go(func() { a.report(l.Serve(ctx, ln.Listener)) })
	}
	a.serving = s
	a.admin.Open(a.server.Handler(nil))
	return nil
}

// report ends run with the first error.
func (a *auth) report(err error) {
	if err == nil {
		return
	}
	select {
	case a.failed <- err:
	default:
	}
}

// halt ends serving at once; connections are closed.
func (a *auth) halt() {
	a.changing.Lock()
	defer a.changing.Unlock()
	if a.serving == nil {
		return
	}
	a.serving.cancel()
	a.serving.group.Wait()
	a.serving = nil
}

func (a *auth) pages() (http.Handler, error) {
	set, err := a.keys.KeySet()
	if err != nil {
		return nil, err
	}
	return web.Handler(web.Config{
		KeySet: set, Accounts: a.users, Desk: a.server.Browser(), Cluster: a.cfg.Cluster, Address: a.cfg.pagesAddress(), Pins: a.keys.Pins(), Log: a.log,
		Visitor: func(r *http.Request) netip.Addr { return api.VisitorAddr(r.Context()) },
		Claimed: func(ctx context.Context, user, device string, from netip.Addr) error {
			return claims{a.cfg.Cluster, a.events}.record(ctx, user, device, from)
		},
	})
}

// claims records that people claim their accounts.
type claims struct {
	cluster string
	log     interface {
		Emit(ctx context.Context, e sallyport.Event, durable bool) error
	}
}

func (c claims) record(ctx context.Context, user, device string, from netip.Addr) error {
	e := sallyport.Event{Name: audit.UserPasswordChange, Code: audit.UserPasswordChangeCode, Cluster: c.cluster, User: user, UserKind: "human",
		Addr: from.String(), Fields: map[string]any{}}
	if device != "" {
		e.Fields["with_mfa"] = device
	}
	if err := c.log.Emit(ctx, e, true); err != nil || device == "" {
		return err
	}
	e.Name, e.Code, e.Fields = audit.MFAAdd, audit.MFAAddCode, map[string]any{"mfa_device_uuid": device, "mfa_device_type": "TOTP"}
	return c.log.Emit(ctx, e, true)
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

// hostRoots are the CAs of the cluster's own hosts.
func (a *auth) hostRoots() *x509.CertPool {
	pool := x509.NewCertPool()
	for _, c := range a.keys.Authority(ca.Host).Certificates {
		pool.AddCert(c)
	}
	return pool
}

// localToken lets a role of this very process join: single use, one minute.
func (a *auth) localToken(ctx context.Context, kind sallyport.IdentityKind) (string, error) {
	secret, _, err := a.tokens.Create(ctx, join.Spec{Roles: []sallyport.IdentityKind{kind}, TTL: time.Minute, SingleUse: true})
	return secret, err
}

func (a *auth) close() {
	a.changing.Lock()
	defer a.changing.Unlock()
	for _, l := range a.listeners {
		l.Close()
	}
	a.listeners = nil
	if err := a.shut(); err != nil {
		a.log.Error("close the store and the audit log", "error", err)
	}
}
