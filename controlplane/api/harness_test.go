package api

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"github.com/pires/go-proxyproto"
	"golang.org/x/crypto/ssh"
	"golang.org/x/net/http2"

	"github.com/sallyport/sallyport"
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

//lint:file-ignore SA1019 net/http speaks HTTP/2 by the protocol id h2 alone; ours are sallyport-auth/1 and sallyport-join/1

const (
	cluster  = "gw.example.com"
	password = "correct horse battery staple"
)

// world is one auth process with all its doors. Tests share it and keep to
// users and hosts of their own.
type world struct {
	dir       string
	store     store.Store
	sealer    *ca.FileKey
	keys      *ca.Keys
	users     *login.Login
	tokens    *join.Tokens
	inventory *inventory.Inventory
	log       *audit.Log
	server    *Server
	handler   http.Handler

	unix, tcp, admin string // addresses
	own              tls.Certificate

	stop func()
}

// the returns the world; the first test makes it, TestMain ends it. In each test
// strangers begin anew: by their hashes sources share places in the quotas, and what
// one test's flood has used up another's one try, which is to be recorded, would lack.
func the() *world {
	w := theOnly()
	q := &w.server.quotas
	q.mu.Lock()
	defer q.mu.Unlock()
	q.slots, q.total = nil, quota{}
	return w
}

var theOnly = sync.OnceValue(func() *world {
	w, err := newWorld()
	if err != nil {
		panic(err)
	}
	return w
})

var made = false // the world was made

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
	dir, err := os.MkdirTemp("", "api")
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			cancel()
		}
	}()
	w = &world{dir: dir, unix: filepath.Join(dir, "auth.sock"), admin: filepath.Join(dir, "admin.sock")}
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
	w.inventory = inventory.New(inventory.Config{Store: w.store, PresenceTTL: time.Minute})
	w.log, err = audit.OpenLog(audit.LogConfig{Dir: filepath.Join(dir, "audit"), Host: uuid.NewString(), Sign: func([]byte) ([]byte, error) { return []byte("signed"), nil }})
	if err != nil {
		return nil, err
	}
	if w.server, err = w.serverOn(ctx, w.store, w.log); err != nil {
		return nil, err
	}
	pages := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { fmt.Fprint(rw, "page for ", VisitorAddr(r.Context())) })
	w.handler = w.server.Handler(pages)
	return w, w.serve(ctx, cancel)
}

// serverOn is another server of the same cluster.
func (w *world) serverOn(ctx context.Context, s store.Store, log *audit.Log) (*Server, error) {
	return New(ctx, Config{Store: s, CA: w.keys, Users: w.users, Tokens: w.tokens, Inventory: w.inventory, Audit: log, Version: "1.2.3",
		PublicAddress: "gw.example.com:443", SecondFactor: "optional", OfflineMaxAge: time.Hour, Log: slog.New(slog.DiscardHandler)})
}

func (w *world) serve(ctx context.Context, cancel func()) error {
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
	leaf, err := x509.ParseCertificate(own.X509)
	if err != nil {
		return err
	}
	w.own = tls.Certificate{Certificate: [][]byte{own.X509, w.keys.Authority(ca.Host).Certificates[0].Raw}, PrivateKey: key, Leaf: leaf}
	local, err := net.Listen("unix", w.unix)
	if err != nil {
		return err
	}
	remote, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	admin, err := net.Listen("unix", w.admin)
	if err != nil {
		return err
	}
	w.tcp = remote.Addr().String()
	var wg sync.WaitGroup
	wg.Go(func() { w.server.Run(ctx) })
	for ln, behind := range map[net.Listener]bool{local: true, remote: false} {
		l := w.listener(behind)
		l.Standing = w.server.Standing
		wg.Go(func() { l.Serve(ctx, ln) })
	}
	wg.Go(func() { ServeAdmin(ctx, admin, w.handler) })
	w.stop = func() {
		cancel()
		wg.Wait()
		if err := errors.Join(w.log.Close(), w.store.Close(), os.RemoveAll(w.dir)); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
	return nil
}

// listener asks the store nothing, so it may be in a bubble.
func (w *world) listener(behind bool) *Listener {
	return &Listener{
		Handler: w.handler, Cluster: cluster, BehindGateway: behind, Log: slog.New(slog.DiscardHandler),
		Certificate: func() (*tls.Certificate, error) { return &w.own, nil },
		UserCAs:     func() *x509.CertPool { return w.keys.Pool(ca.User) },
		HostCAs:     func() *x509.CertPool { return w.keys.Pool(ca.Host) },
	}
}

// keyPair is somebody's keys in the forms that the API takes.
type keyPair struct {
	tls    *ecdsa.PrivateKey
	tlsPub []byte
	sshPub []byte
}

func newKeyPair(t testing.TB) keyPair {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(k.Public())
	if err != nil {
		t.Fatal(err)
	}
	pub, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	sp, err := ssh.NewPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	return keyPair{k, der, bytes.TrimSpace(ssh.MarshalAuthorizedKey(sp))}
}

func (k keyPair) with(der []byte) *tls.Certificate {
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: k.tls}
}

// user makes a user with these roles and gives a certificate as a login would.
func (w *world) user(t testing.TB, change func(*sallyport.Identity), roles ...string) (name string, cert *tls.Certificate) {
	t.Helper()
	name = "user-" + uuid.NewString()[:8]
	if _, err := w.users.CreateUser(t.Context(), login.User{Name: name, Roles: roles, Traits: map[string][]string{"logins": {name}}}, 0); err != nil {
		t.Fatal(err)
	}
	return name, w.certify(t, change, name, roles...)
}

func (w *world) certify(t testing.TB, change func(*sallyport.Identity), name string, roles ...string) *tls.Certificate {
	t.Helper()
	k := newKeyPair(t)
	id := sallyport.Identity{Kind: sallyport.KindUser, Name: name, Cluster: cluster, Roles: roles, Traits: map[string][]string{"logins": {name}}, Principals: []string{name}}
	if change != nil {
		change(&id)
	}
	c, err := w.keys.IssueUser(ca.UserRequest{Identity: id, TLSKey: k.tlsPub, TTL: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	return k.with(c.X509)
}

// role stores a role document, if it is not there.
func (w *world) role(t testing.TB, name, allow string) string {
	t.Helper()
	doc := fmt.Sprintf(`{"kind":"role","version":"v7","metadata":{"name":%q},"spec":{"allow":%s}}`, name, allow)
	_, err := w.localAdmin(t).PutDocument(t.Context(), connect.NewRequest(&sallyportv1.PutDocumentRequest{Document: doc, Overwrite: true}))
	if err != nil {
		t.Fatal(err)
	}
	return name
}

// host joins an agent or a gateway.
func (w *world) host(t testing.TB, kind sallyport.IdentityKind) (id string, cert *tls.Certificate) {
	t.Helper()
	return w.hostNamed(t, kind, "host-"+uuid.NewString()[:8])
}

func (w *world) hostNamed(t testing.TB, kind sallyport.IdentityKind, name string) (id string, cert *tls.Certificate) {
	t.Helper()
	k := newKeyPair(t)
	secret, _, err := w.tokens.Create(t.Context(), join.Spec{Roles: []sallyport.IdentityKind{kind}, SingleUse: true})
	if err != nil {
		t.Fatal(err)
	}
	resp, err := w.joiner(t).Join(t.Context(), connect.NewRequest(&sallyportv1.JoinRequest{
		Token: secret, HostName: name, Roles: []string{string(kind)}, TlsPublicKey: k.tlsPub, SshPublicKey: k.sshPub}))
	if err != nil {
		t.Fatal(err)
	}
	return resp.Msg.GetHostId(), k.with(resp.Msg.GetTlsCertificate())
}

// door is a way to the API.
type door struct {
	protocol string
	cert     *tls.Certificate
	address  string            // "": the Unix socket; else TCP
	from     string            // what a PROXY header says; "": none
	header   map[string]string // of each request
}

// dial opens a TLS connection by a door.
func (w *world) dial(ctx context.Context, d door) (*tls.Conn, error) {
	network, address := "unix", w.unix
	if d.address != "" {
		network, address = "tcp", d.address
	}
	raw, err := (&net.Dialer{Timeout: time.Minute}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	if d.from != "" {
		src := net.TCPAddrFromAddrPort(netip.MustParseAddrPort(d.from))
		if _, err := proxyproto.HeaderProxyFromAddrs(2, src, &net.TCPAddr{IP: src.IP, Port: 443}).WriteTo(raw); err != nil {
			raw.Close()
			return nil, err
		}
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: w.keys.Pool(ca.Host), ServerName: cluster, NextProtos: []string{d.protocol}}
	if d.cert != nil {
		// Shown whatever the server asks for, as an attacker would.
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return d.cert, nil }
	}
	conn := tls.Client(raw, cfg)
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, err
	}
	return conn, nil
}

// http returns a client by a door; its connections end with the test.
func (w *world) http(t testing.TB, d door) *http.Client {
	t.Helper()
	var rt http.RoundTripper
	if d.protocol == "" { // the admin socket
		tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", w.admin)
		}}
		t.Cleanup(tr.CloseIdleConnections)
		rt = tr
	} else {
		tr := &http2.Transport{DialTLSContext: func(ctx context.Context, _, _ string, _ *tls.Config) (net.Conn, error) { return w.dial(ctx, d) }}
		t.Cleanup(tr.CloseIdleConnections)
		rt = tr
	}
	return &http.Client{Transport: withHeaders{rt, d.header}, Timeout: time.Minute}
}

type withHeaders struct {
	next   http.RoundTripper
	header map[string]string
}

func (h withHeaders) RoundTrip(r *http.Request) (*http.Response, error) {
	for k, v := range h.header {
		r.Header[k] = []string{v}
	}
	return h.next.RoundTrip(r)
}

const base = "https://auth.test"

func (d door) base() string {
	if d.protocol == "" {
		return "http://admin.test"
	}
	return base
}

func byAuth(cert *tls.Certificate) door { return door{protocol: protocolAuth, cert: cert} }

// visitor comes by a gateway's web origin.
func visitor(gateway *tls.Certificate, from string) door {
	return door{protocol: protocolAuth, cert: gateway, header: map[string]string{clientAddrHeader: from}}
}

func (w *world) localAdmin(t testing.TB) sallyportv1connect.AdminServiceClient {
	d := door{}
	return sallyportv1connect.NewAdminServiceClient(w.http(t, d), d.base())
}

func (w *world) joiner(t testing.TB) sallyportv1connect.JoinServiceClient {
	return sallyportv1connect.NewJoinServiceClient(w.http(t, door{protocol: protocolJoin}), base)
}

func (w *world) asHost(t testing.TB, cert *tls.Certificate) sallyportv1connect.HostServiceClient {
	return sallyportv1connect.NewHostServiceClient(w.http(t, byAuth(cert)), base)
}

func (w *world) asUser(t testing.TB, cert *tls.Certificate) sallyportv1connect.AccessServiceClient {
	return sallyportv1connect.NewAccessServiceClient(w.http(t, byAuth(cert)), base)
}

func (w *world) asAdmin(t testing.TB, cert *tls.Certificate) sallyportv1connect.AdminServiceClient {
	return sallyportv1connect.NewAdminServiceClient(w.http(t, byAuth(cert)), base)
}

func codeIs(t testing.TB, what string, err error, want connect.Code) {
	t.Helper()
	if got := connect.CodeOf(err); err == nil || got != want {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}

// events returns the newest events of a name.
func (w *world) events(t testing.TB, name string) []sallyport.Event {
	t.Helper()
	lines, err := w.log.Search(t.Context(), audit.Query{Names: []string{name}, Limit: 1000})
	if err != nil {
		t.Fatal(err)
	}
	var out []sallyport.Event
	for _, l := range lines {
		e, err := audit.Decode(l)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, e)
	}
	return out
}

// template and sign make certificates that no CA of ours would.
func template(name string) *x509.Certificate {
	return &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, BasicConstraintsValid: true}
}

func sign(t testing.TB, tmpl, parent *x509.Certificate, k keyPair) []byte {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, k.tls.Public(), k.tls)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func mustAddr(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }
