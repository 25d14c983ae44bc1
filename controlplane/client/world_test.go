package client

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/api"
	"github.com/sallyport/sallyport/controlplane/audit"
	"github.com/sallyport/sallyport/controlplane/ca"
	"github.com/sallyport/sallyport/controlplane/inventory"
	"github.com/sallyport/sallyport/controlplane/join"
	"github.com/sallyport/sallyport/controlplane/login"
	"github.com/sallyport/sallyport/controlplane/store"
	"github.com/sallyport/sallyport/controlplane/store/etcd"
	"github.com/sallyport/sallyport/test/leak"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
	"github.com/sallyport/sallyport/wire/sallyport/v1/sallyportv1connect"
)

// soon bounds what happens at once, on a machine that is busy.
const soon = time.Minute

// world is auth, with a door that tests close and open.
type world struct {
	dir       string
	store     store.Store
	sealer    *ca.FileKey
	keys      *ca.Keys
	users     *login.Login
	tokens    *join.Tokens
	inventory *inventory.Inventory
	log       *audit.Log
	server    *api.Server
	own       tls.Certificate
	socket    string
	admin     string

	ctx  context.Context
	stop func()

	mu    sync.Mutex
	close func() // nil while the door is closed
	seen  []*http.Request
}

var the = sync.OnceValue(func() *world {
	w, err := newWorld()
	if err != nil {
		panic(err)
	}
	return w
})

var made = false

// TestMain fails when goroutines are left behind.
func TestMain(m *testing.M) {
	leak.Main(m, func() {
		if made {
			the().stop()
		}
	})
}

func newWorld() (w *world, err error) {
	made = true
	dir, err := os.MkdirTemp("", "client")
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			cancel()
		}
	}()
	w = &world{dir: dir, ctx: ctx, socket: filepath.Join(dir, "auth.sock"), admin: filepath.Join(dir, "admin.sock")}
	if w.store, err = etcd.OpenEmbedded(ctx, etcd.EmbeddedConfig{Dir: filepath.Join(dir, "etcd"), Log: slog.New(slog.DiscardHandler)}); err != nil {
		return nil, err
	}
	if w.sealer, err = ca.OpenKeyFile(filepath.Join(dir, "kek")); err != nil {
		return nil, err
	}
	if w.keys, err = ca.Open(ctx, ca.Config{Store: w.store, Sealer: w.sealer, Cluster: cluster}); err != nil {
		return nil, err
	}
	w.users, err = login.New(login.Config{Store: w.store, Sealer: w.sealer, Issuer: cluster, Cost: login.Cost{Time: 1, Memory: 64, Threads: 1}})
	if err != nil {
		return nil, err
	}
	w.tokens = join.New(w.store, nil)
	w.inventory = inventory.New(inventory.Config{Store: w.store})
	w.log, err = audit.OpenLog(audit.LogConfig{Dir: filepath.Join(dir, "audit"), Host: uuid.NewString(), Sign: func([]byte) ([]byte, error) { return []byte("signed"), nil }})
	if err != nil {
		return nil, err
	}
	w.server, err = api.New(ctx, api.Config{Store: w.store, CA: w.keys, Users: w.users, Tokens: w.tokens, Inventory: w.inventory, Audit: w.log,
		Version: "1.2.3", PublicAddress: "gw.example.com:443", SecondFactor: "optional", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, err
	}
	admin, err := net.Listen("unix", w.admin)
	if err != nil {
		return nil, err
	}
	if err := w.certify(); err != nil {
		return nil, err
	}
	var wg sync.WaitGroup
	wg.Go(func() { w.server.Run(ctx) })
	wg.Go(func() { api.ServeAdmin(ctx, admin, w.server.Handler(nil)) })
	w.stop = func() {
		w.away()
		cancel()
		wg.Wait()
		if err := errors.Join(w.log.Close(), w.store.Close(), os.RemoveAll(w.dir)); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
	return w, w.back()
}

func (w *world) certify() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return err
	}
	own, err := w.keys.IssueHost(ca.HostRequest{Kind: sallyport.KindAuth, ID: uuid.NewString(), TLSKey: der})
	if err != nil {
		return err
	}
	w.own = tls.Certificate{Certificate: [][]byte{own.X509, w.keys.Authority(ca.Host).Certificates[0].Raw}, PrivateKey: key}
	return nil
}

// pages shows what of a visitor's request arrives.
func (w *world) pages(rw http.ResponseWriter, r *http.Request) {
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		return // the gateway gave up
	}
	w.mu.Lock()
	w.seen = append(w.seen, r.Clone(context.Background()))
	w.mu.Unlock()
	fmt.Fprintf(rw, "page for %s", api.VisitorAddr(r.Context()))
}

// back opens the door.
func (w *world) back() error {
	ln, err := net.Listen("unix", w.socket)
	if err != nil {
		return err
	}
	l := &api.Listener{
		Handler: w.server.Handler(http.HandlerFunc(w.pages)), Cluster: cluster, BehindGateway: true, Standing: w.server.Standing, Log: slog.New(slog.DiscardHandler),
		Certificate: func() (*tls.Certificate, error) { return &w.own, nil },
		UserCAs:     func() *x509.CertPool { return w.keys.Pool(ca.User) },
		HostCAs:     func() *x509.CertPool { return w.keys.Pool(ca.Host) },
	}
	ctx, cancel := context.WithCancel(w.ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		l.Serve(ctx, ln)
	}()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.close = func() {
		cancel()
		<-done
	}
	return nil
}

// away closes the door and all connections.
func (w *world) away() {
	w.mu.Lock()
	f := w.close
	w.close = nil
	w.mu.Unlock()
	if f != nil {
		f()
	}
}

// gone closes the door for the rest of a test.
func (w *world) gone(t *testing.T) {
	w.away()
	t.Cleanup(func() {
		w.mu.Lock()
		open := w.close != nil
		w.mu.Unlock()
		if open {
			return
		}
		if err := w.back(); err != nil {
			t.Error(err)
		}
	})
}

func (w *world) addresses() []string { return []string{"unix:" + w.socket} }

func (w *world) asAdmin(t testing.TB) sallyportv1connect.AdminServiceClient {
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", w.admin)
	}}
	t.Cleanup(tr.CloseIdleConnections)
	return sallyportv1connect.NewAdminServiceClient(&http.Client{Transport: tr}, "http://admin")
}

// put stores a document for the length of the test.
func (w *world) put(t testing.TB, kind, name, spec string) {
	t.Helper()
	version := map[string]string{"role": "v7"}[kind]
	c := w.asAdmin(t)
	doc := fmt.Sprintf(`{"kind":%q,"version":%q,"metadata":{"name":%q},"spec":%s}`, kind, version, name, spec)
	if _, err := c.PutDocument(t.Context(), connect.NewRequest(&sallyportv1.PutDocumentRequest{Document: doc, Overwrite: true})); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.DeleteDocument(context.Background(), connect.NewRequest(&sallyportv1.DeleteDocumentRequest{Kind: kind, Name: name}))
	})
}

func (w *world) token(t testing.TB, kind sallyport.IdentityKind) string {
	t.Helper()
	secret, _, err := w.tokens.Create(t.Context(), join.Spec{Roles: []sallyport.IdentityKind{kind}, SingleUse: true})
	if err != nil {
		t.Fatal(err)
	}
	return secret
}

func (w *world) config(t testing.TB, kind sallyport.IdentityKind, resources ...sallyport.Resource) HostConfig {
	return HostConfig{Dir: t.TempDir(), Kind: kind, Name: "host", Addresses: w.addresses, Resources: resources, Log: slog.New(slog.DiscardHandler)}
}

// host joins. Its connections end with the test.
func (w *world) host(t testing.TB, cfg HostConfig) *Host {
	t.Helper()
	h, err := Join(t.Context(), cfg, w.token(t, cfg.Kind), w.keys.Pins())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.http.CloseIdleConnections)
	return h
}

// run runs a host until the test ends, or until the function that it returns is
// called.
func run(t testing.TB, h *Host) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := h.Run(ctx); err != nil {
			t.Error(err)
		}
	}()
	stop = func() {
		cancel()
		<-done
	}
	t.Cleanup(stop)
	return stop
}

// until waits for ok, which is asked again each time that changed closes.
func until(t testing.TB, what string, changed func() <-chan struct{}, ok func() bool) {
	t.Helper()
	end := time.After(soon)
	for {
		c := changed()
		if ok() {
			return
		}
		select {
		case <-c:
		case <-end:
			t.Fatalf("%s: not within %v", what, soon)
		}
	}
}

// heard waits for a host's first snapshot and assignment.
func heard(t testing.TB, h *Host) {
	t.Helper()
	until(t, "snapshot", h.keeper.Changed, func() bool { return h.keeper.Revision() > 0 })
	if h.cfg.Kind == sallyport.KindAgent {
		until(t, "assignment", h.AssignmentChanged, func() bool { return h.Assignment() != nil })
	}
}
