package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"golang.org/x/crypto/ssh"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/ca"
	"github.com/sallyport/sallyport/identity"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
	"github.com/sallyport/sallyport/wire/sallyport/v1/sallyportv1connect"
)

// TestJoin makes a standing that a restart finds again.
func TestJoin(t *testing.T) {
	w := the()
	for _, kind := range []sallyport.IdentityKind{sallyport.KindAgent, sallyport.KindGateway} {
		cfg := w.config(t, kind)
		if _, err := OpenHost(cfg); !errors.Is(err, ErrNotJoined) {
			t.Errorf("%s: opened before joining: %v", kind, err)
		}
		h := w.host(t, cfg)
		again, err := OpenHost(cfg)
		if err != nil {
			t.Fatal(err)
		}
		if h.ID() != again.ID() || h.Cluster() != cluster || again.Cluster() != cluster {
			t.Errorf("%s: %s of %s, then %s of %s", kind, h.ID(), h.Cluster(), again.ID(), again.Cluster())
		}
		cert, err := again.Certificate()
		if err != nil {
			t.Fatal(err)
		}
		id, err := identity.FromX509(cert.Leaf)
		if err != nil || id.Kind != kind || id.Name != h.ID() {
			t.Errorf("%s: certificate of %+v %v", kind, id, err)
		}
		if signer, err := again.SSHSigner(); err != nil || signer.PublicKey().(*ssh.Certificate).KeyId != h.ID() {
			t.Errorf("%s: SSH certificate: %v", kind, err)
		}
		entries, err := os.ReadDir(cfg.Dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if info, err := e.Info(); err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("%s has mode %v %v", e.Name(), info.Mode(), err)
			}
			if e.Name() != hostFile {
				t.Errorf("%s is left", e.Name())
			}
		}
		if _, err := OpenHost(HostConfig{Dir: cfg.Dir, Kind: sallyport.KindAuth, Log: cfg.Log}); err == nil {
			t.Error("opened as another kind")
		}
	}
}

// TestJoinRefused: nothing is left of a join that auth, or the host, refuses.
func TestJoinRefused(t *testing.T) {
	w := the()
	good := w.token(t, sallyport.KindAgent)
	for name, c := range map[string]struct {
		token string
		pins  []string
		kind  error
	}{
		"wrong token":   {"0123456789012345678901234567890123456789", w.keys.Pins(), sallyport.ErrUnauthorized},
		"another kind":  {w.token(t, sallyport.KindGateway), w.keys.Pins(), sallyport.ErrUnauthorized},
		"wrong pin":     {good, []string{"sha256:0000000000000000000000000000000000000000000000000000000000000000"}, identity.ErrPin},
		"no pin":        {good, nil, sallyport.ErrUnavailable},
		"half of a pin": {good, []string{w.keys.Pins()[0][:40]}, identity.ErrPin},
	} {
		cfg := w.config(t, sallyport.KindAgent)
		if _, err := Join(t.Context(), cfg, c.token, c.pins); !errors.Is(err, c.kind) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := OpenHost(cfg); !errors.Is(err, ErrNotJoined) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// The token was not shown to who does not have the pin: it is still good.
	if _, err := Join(t.Context(), w.config(t, sallyport.KindAgent), good, w.keys.Pins()); err != nil {
		t.Errorf("the token is used up: %v", err)
	}
}

// TestJoinAnswerLost: a join whose answer did not arrive is repeated with the
// same keys, which a token for one use is bound to.
func TestJoinAnswerLost(t *testing.T) {
	w := the()
	cfg := w.config(t, sallyport.KindAgent)
	token := w.token(t, sallyport.KindAgent)
	k, err := joiningKeys(cfg.Dir)
	if err != nil {
		t.Fatal(err)
	}
	req, err := joinRequest(cfg, k, token)
	if err != nil {
		t.Fatal(err)
	}
	d := &Dialer{Addresses: w.addresses, Pins: w.keys.Pins()}
	hc := d.HTTP(ProtocolJoin)
	defer hc.CloseIdleConnections()
	lost, err := sallyportv1connect.NewJoinServiceClient(hc, BaseURL).Join(t.Context(), connect.NewRequest(req))
	if err != nil {
		t.Fatal(err)
	}
	h, err := Join(t.Context(), cfg, token, w.keys.Pins())
	if err != nil {
		t.Fatal(err)
	}
	if h.ID() != lost.Msg.GetHostId() {
		t.Errorf("joined as %s, then as %s", lost.Msg.GetHostId(), h.ID())
	}
	if _, err := Join(t.Context(), w.config(t, sallyport.KindAgent), token, w.keys.Pins()); !errors.Is(err, sallyport.ErrUnauthorized) {
		t.Errorf("another host by the same token: %v", err)
	}
}

// TestAnswerChecked: an answer that is not for this host is not believed.
func TestAnswerChecked(t *testing.T) {
	w := the()
	k, err := newKeys()
	if err != nil {
		t.Fatal(err)
	}
	tlsPub, _, err := k.public()
	if err != nil {
		t.Fatal(err)
	}
	id := uuid.NewString()
	issue := func(kind sallyport.IdentityKind, id string, key []byte) []byte {
		t.Helper()
		c, err := w.keys.IssueHost(ca.HostRequest{Kind: kind, ID: id, TLSKey: key})
		if err != nil {
			t.Fatal(err)
		}
		return c.X509
	}
	other, err := newKeys()
	if err != nil {
		t.Fatal(err)
	}
	otherPub, _, err := other.public()
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*sallyportv1.JoinResponse){
		"good":        func(*sallyportv1.JoinResponse) {},
		"another key": func(m *sallyportv1.JoinResponse) { m.TlsCertificate = issue(sallyport.KindAgent, id, otherPub) },
		"another host": func(m *sallyportv1.JoinResponse) {
			m.TlsCertificate = issue(sallyport.KindAgent, uuid.NewString(), tlsPub)
		},
		"another kind":    func(m *sallyportv1.JoinResponse) { m.TlsCertificate = issue(sallyport.KindGateway, id, tlsPub) },
		"another cluster": func(m *sallyportv1.JoinResponse) { m.Cluster = "other.example.com" },
		"no cluster":      func(m *sallyportv1.JoinResponse) { m.Cluster = "" },
		"no id":           func(m *sallyportv1.JoinResponse) { m.HostId = "" },
		"no CA":           func(m *sallyportv1.JoinResponse) { m.Authorities = nil },
		"another CA":      func(m *sallyportv1.JoinResponse) { m.Authorities[0].Certificates = [][]byte{newSigner(t).cert.Raw} },
		"no certificate":  func(m *sallyportv1.JoinResponse) { m.TlsCertificate = nil },
	} {
		m := &sallyportv1.JoinResponse{HostId: id, Cluster: cluster, TlsCertificate: issue(sallyport.KindAgent, id, tlsPub),
			Authorities: []*sallyportv1.Authority{{Kind: "host", Certificates: [][]byte{w.keys.Authority(ca.Host).Certificates[0].Raw}}}}
		change(m)
		if _, err := standingOf(m, sallyport.KindAgent, k); (err == nil) != (name == "good") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestLockArrives: a lock is at the hosts within a second of its being stored,
// and whoever waits on Changed is woken by it. On a machine that others use one or
// the other may be late: some must come in time in a row.
func TestLockArrives(t *testing.T) {
	const tries, wanted = 30, 4
	w := the()
	h := w.host(t, w.config(t, sallyport.KindAgent))
	run(t, h)
	heard(t, h)
	inTime := 0 // in a row
	for i := range tries {
		took := lockTakes(t, w, h, fmt.Sprint("arrives-", i))
		if inTime++; took > time.Second {
			t.Logf("lock %d arrived %v after it was stored", i, took)
			inTime = 0
		}
		if inTime == wanted {
			return
		}
	}
	t.Errorf("of %d locks no %d in a row came within a second", tries, wanted)
}

// lockTakes is how long a lock needs to a host once it is stored.
func lockTakes(t *testing.T, w *world, h *Host, name string) time.Duration {
	t.Helper()
	start := time.Now()
	w.put(t, "lock", name, `{"target":{"user":"mallory"}}`)
	stored := time.Since(start)
	locked := func() bool {
		trust, err := h.keeper.Trust()
		return err == nil && slices.ContainsFunc(trust.Locks, func(l sallyport.Lock) bool { return l.Name == name && l.Target.User == "mallory" })
	}
	until(t, "lock", h.keeper.Changed, locked)
	return time.Since(start) - stored
}

// TestAuthAway: a restart while auth is away changes nothing, and the host is
// back within five seconds of auth's return. On a machine that others use it may
// need several tries.
func TestAuthAway(t *testing.T) {
	w := the()
	name := "away-" + uuid.NewString()[:8]
	cfg := w.config(t, sallyport.KindAgent, sallyport.Resource{Kind: sallyport.KindTCP, Name: name, Address: "localhost:7"}, sallyport.Resource{Kind: sallyport.KindNode, Hostname: name})
	h := w.host(t, cfg)
	stop := run(t, h)
	heard(t, h)
	revision := h.keeper.Revision()
	stop()
	w.gone(t)

	h, err := OpenHost(cfg)
	if err != nil {
		t.Fatal(err)
	}
	run(t, h)
	if trust, err := h.keeper.Trust(); err != nil || trust.Revision < revision {
		t.Errorf("no trust: %v", err)
	}
	if len(h.Resources()) != 2 || h.CancelTag() == 0 || h.Assignment() == nil {
		t.Errorf("serves %v, tag %d", h.Resources(), h.CancelTag())
	}
	for _, server := range []string{name + ".tcp." + cluster, name + ".node." + cluster, h.ID() + ".node." + cluster} {
		cert, err := h.ServerCertificate(server)
		if err != nil || !slices.Equal(cert.Leaf.DNSNames, []string{server}) {
			t.Errorf("%s: %v", server, err)
		}
	}
	if _, err := h.ServerCertificate("other.tcp." + cluster); !errors.Is(err, sallyport.ErrNotFound) {
		t.Errorf("another's name: %v", err)
	}
	if signer, err := h.SSHSigner(); err != nil || !slices.Contains(signer.PublicKey().(*ssh.Certificate).ValidPrincipals, name) {
		t.Errorf("SSH: %v", err)
	}

	const tries = 5
	for range tries {
		changed := h.keeper.Changed()
		returned := time.Now()
		if err := w.back(); err != nil {
			t.Fatal(err)
		}
		select {
		case <-changed:
		case <-time.After(soon):
			t.Fatal("not back at all")
		}
		if time.Since(returned) <= 5*time.Second {
			return
		}
		w.away()
	}
	t.Errorf("not back within five seconds, %d times", tries)
	if err := w.back(); err != nil {
		t.Fatal(err)
	}
}

// TestServedDamaged: what does not verify is not served, and auth is asked.
func TestServedDamaged(t *testing.T) {
	w := the()
	name := "damaged-" + uuid.NewString()[:8]
	cfg := w.config(t, sallyport.KindAgent, sallyport.Resource{Kind: sallyport.KindTCP, Name: name})
	h := w.host(t, cfg)
	stop := run(t, h)
	heard(t, h)
	stop()
	path := filepath.Join(cfg.Dir, servedFile)
	var good served
	if _, err := readJSON(path, &good); err != nil {
		t.Fatal(err)
	}
	stranger := w.host(t, w.config(t, sallyport.KindAgent, sallyport.Resource{Kind: sallyport.KindTCP, Name: "other-" + name}))
	stop = run(t, stranger)
	heard(t, stranger)
	stop()
	for what, change := range map[string]func(*served){
		"another agent's assignment": func(s *served) { s.Assignment = stranger.Assignment() },
		"no assignment":              func(s *served) { s.Assignment = nil },
		"cut":                        func(*served) {}, // below
		"assignment changed":         func(s *served) { s.Assignment = append([]byte{}, append(s.Assignment[:10], 'x')...) },
		"another key's certificate": func(s *served) {
			c, err := stranger.ServerCertificate("other-" + name + ".tcp." + cluster)
			if err != nil {
				t.Fatal(err)
			}
			s.Certificates = map[string][]byte{"other-" + name + ".tcp." + cluster: c.Certificate[0]}
		},
		"a certificate under another name": func(s *served) {
			s.Certificates = map[string][]byte{"evil.tcp." + cluster: s.Certificates[name+".tcp."+cluster]}
		},
	} {
		bad := good
		change(&bad)
		if err := writeJSON(path, bad); err != nil {
			t.Fatal(err)
		}
		if what == "cut" {
			if err := writeFile(path, []byte(`{"assignment": "`)); err != nil {
				t.Fatal(err)
			}
		}
		h, err := OpenHost(cfg)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if len(h.Resources()) != 0 || h.Assignment() != nil {
			t.Errorf("%s: served", what)
		}
		stop := run(t, h)
		until(t, what, h.AssignmentChanged, func() bool { return len(h.Resources()) == 1 })
		stop()
	}
}

// TestStandingDamaged: what to do is said.
func TestStandingDamaged(t *testing.T) {
	w := the()
	cfg := w.config(t, sallyport.KindAgent)
	w.host(t, cfg)
	path := filepath.Join(cfg.Dir, hostFile)
	for _, text := range []string{"", `{"id": "`, "{}"} {
		if err := writeFile(path, []byte(text)); err != nil {
			t.Fatal(err)
		}
		_, err := OpenHost(cfg)
		var p *sallyport.Problem
		if !errors.As(err, &p) || !strings.HasPrefix(p.Fact, path+": ") || !strings.Contains(p.Hint, "join again") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// TestRenew: past half its life a certificate is renewed, and the new one is on
// disk and in use.
func TestRenew(t *testing.T) {
	w := the()
	cfg := w.config(t, sallyport.KindGateway)
	cfg.Public = []string{"192.0.2.1:443"}
	h := w.host(t, cfg)
	old := w.aged(t, h, 4*24*time.Hour)
	if err := writeJSON(filepath.Join(cfg.Dir, hostFile), old); err != nil {
		t.Fatal(err)
	}
	h, err := OpenHost(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if !time.Now().After(h.renewAt()) {
		t.Fatalf("renewal only at %v", h.renewAt())
	}
	renewed := make(chan struct{})
	h.cfg.Log = slog.New(onMessage("host certificate renewed", func() { close(renewed) }))
	run(t, h)
	select {
	case <-renewed:
	case <-time.After(soon):
		t.Fatal("not renewed")
	}
	if time.Now().After(h.renewAt()) {
		t.Error("the certificate is still the old one")
	}
	again, err := OpenHost(cfg)
	if err != nil {
		t.Fatal(err)
	}
	leaf := again.leaf()
	if time.Now().After(again.renewAt()) || len(leaf.IPAddresses) != 1 || again.ID() != h.ID() {
		t.Errorf("on disk: until %v, for %v", leaf.NotAfter, leaf.IPAddresses)
	}
}

// TestRenewForName: the SSH certificate of a gateway that joined before there was
// a jump server does not name the cluster, and is renewed at once; an auth that
// gives no other is asked once.
func TestRenewForName(t *testing.T) {
	w := the()
	cfg := w.config(t, sallyport.KindGateway)
	h := w.host(t, cfg)
	if h.lacksName() {
		t.Fatal("a new gateway lacks the cluster's name")
	}
	_, sshPub, err := h.keys.public()
	if err != nil {
		t.Fatal(err)
	}
	node, err := w.keys.IssueNode(h.ID(), sshPub, nil)
	if err != nil {
		t.Fatal(err)
	}
	old := h.standing
	old.SSHCertificate = string(node)
	if err := writeJSON(filepath.Join(cfg.Dir, hostFile), old); err != nil {
		t.Fatal(err)
	}
	if h, err = OpenHost(cfg); err != nil {
		t.Fatal(err)
	}
	if !h.lacksName() || time.Now().After(h.renewAt()) {
		t.Fatalf("lacks its name: %v; renewal at %v", h.lacksName(), h.renewAt())
	}
	renewed := make(chan struct{}, 8)
	h.cfg.Log = slog.New(onMessage("host certificate renewed", func() { renewed <- struct{}{} }))
	stop := run(t, h)
	select {
	case <-renewed:
	case <-time.After(soon):
		t.Fatal("not renewed")
	}
	stop()
	if again, err := OpenHost(cfg); err != nil || again.lacksName() || len(renewed) > 0 {
		t.Errorf("on disk: %v, %d more renewals", err, len(renewed))
	}
}

// aged is a host's standing as if it had joined long ago.
func (w *world) aged(t *testing.T, h *Host, age time.Duration) standing {
	t.Helper()
	old, err := ca.Open(t.Context(), ca.Config{Store: w.store, Sealer: w.sealer, Cluster: cluster, Now: func() time.Time { return time.Now().Add(-age) }})
	if err != nil {
		t.Fatal(err)
	}
	tlsPub, sshPub, err := h.keys.public()
	if err != nil {
		t.Fatal(err)
	}
	c, err := old.IssueHost(ca.HostRequest{Kind: h.cfg.Kind, ID: h.ID(), TLSKey: tlsPub, SSHKey: sshPub})
	if err != nil {
		t.Fatal(err)
	}
	s := h.standing
	s.Certificate, s.SSHCertificate = c.X509, string(c.SSH)
	return s
}

// onMessage calls f when a message is logged.
func onMessage(text string, f func()) slog.Handler { return &messages{text: text, f: f} }

type messages struct {
	slog.Handler
	text string
	f    func()
}

func (m *messages) Enabled(context.Context, slog.Level) bool { return true }

func (m *messages) Handle(_ context.Context, r slog.Record) error {
	if r.Message == m.text {
		m.f()
	}
	return nil
}

// TestA67_DialerServer: auth must be auth: no other holder of a certificate of
// the host CA, and no other cluster's.
func TestA67_DialerServer(t *testing.T) {
	w := the()
	good := w.own
	defer func() { w.own = good }()
	h := w.host(t, w.config(t, sallyport.KindAgent))
	agent, err := h.Certificate()
	if err != nil {
		t.Fatal(err)
	}
	gateway, err := w.host(t, w.config(t, sallyport.KindGateway)).Certificate()
	if err != nil {
		t.Fatal(err)
	}
	dial := func(d *Dialer) error {
		conn, err := d.Dial(t.Context(), ProtocolAuth)
		if err == nil {
			conn.Close()
		}
		return err
	}
	if err := dial(h.dialer); err != nil {
		t.Errorf("auth: %v", err)
	}
	w.away()
	for name, cert := range map[string]*tls.Certificate{"agent": agent, "gateway": gateway} {
		w.own = *cert
		if err := w.back(); err != nil {
			t.Fatal(err)
		}
		if err := dial(h.dialer); !errors.Is(err, sallyport.ErrUnavailable) {
			t.Errorf("%s in auth's place: %v", name, err)
		}
		w.away()
	}
	w.own = good
	if err := w.back(); err != nil {
		t.Fatal(err)
	}
	d := &Dialer{Addresses: w.addresses, Cluster: "other.example.com", Roots: h.keeper.Roots, Certificate: h.Certificate}
	if err := dial(d); err == nil {
		t.Error("another cluster's auth")
	}
	d = &Dialer{Addresses: w.addresses, Cluster: cluster, Roots: func() *x509.CertPool { return Pool([]*x509.Certificate{newSigner(t).cert}) }, Certificate: h.Certificate}
	if err := dial(d); err == nil {
		t.Error("another CA's auth")
	}
}

// TestHostConnect: all connections of a host to auth's addresses, of its joining
// too, are made by Connect, and those to sockets of this machine are not.
func TestHostConnect(t *testing.T) {
	w := the()
	var made atomic.Int32
	cfg := w.config(t, sallyport.KindAgent)
	cfg.Addresses = func() []string { return []string{"gw.test:443"} }
	cfg.Connect = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if network != "tcp" || addr != "gw.test:443" {
			t.Errorf("connect to %s %s", network, addr)
		}
		made.Add(1)
		return (&net.Dialer{}).DialContext(ctx, "unix", w.socket)
	}
	h := w.host(t, cfg)
	joined := made.Load()
	stop := run(t, h)
	heard(t, h)
	stop()
	heardBy := made.Load()
	if err := h.renewOnce(t.Context()); err != nil {
		t.Fatal(err)
	}
	if joined < 1 || heardBy <= joined || made.Load() <= heardBy {
		t.Errorf("%d connections to join, %d with what came then, %d with a renewal", joined, heardBy, made.Load())
	}
	cfg = w.config(t, sallyport.KindAgent)
	cfg.Connect = func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("not for sockets") }
	w.host(t, cfg)
}

// TestHostInside: where something on the way ends TLS a host joins, and hears of
// everything, inside of what Inside makes; from the second connection on at once,
// and where the way has become straight again the straight one.
func TestHostInside(t *testing.T) {
	w := the()
	other := newSigner(t)
	balancer := w.foreign(t, other)
	var straight, inside atomic.Int32
	var open atomic.Bool // nobody ends TLS any more
	cfg := w.config(t, sallyport.KindAgent)
	cfg.Addresses = func() []string { return []string{"gw.test:443"} }
	cfg.Connect = func(ctx context.Context, _, _ string) (net.Conn, error) {
		straight.Add(1)
		if open.Load() {
			return (&net.Dialer{}).DialContext(ctx, "unix", w.socket)
		}
		return (&net.Dialer{}).DialContext(ctx, "tcp", balancer)
	}
	cfg.Inside = func(ctx context.Context, addr string, own func([]*x509.Certificate) bool) (net.Conn, error) {
		if addr != "gw.test:443" || own([]*x509.Certificate{other.cert}) {
			t.Errorf("%s is not what ends TLS", addr)
		}
		if open.Load() {
			return nil, errors.New("nobody ends TLS")
		}
		inside.Add(1)
		return (&net.Dialer{}).DialContext(ctx, "unix", w.socket)
	}
	h := w.host(t, cfg)
	if straight.Load() != 1 || inside.Load() != 1 {
		t.Errorf("joined after %d straight and %d inside", straight.Load(), inside.Load())
	}
	dial := func() {
		t.Helper()
		conn, err := h.dialer.Dial(t.Context(), ProtocolAuth)
		if err != nil {
			t.Fatal(err)
		}
		if !h.dialer.own(conn.ConnectionState().PeerCertificates) {
			t.Error("auth's chain is not the cluster's own")
		}
		conn.Close()
	}
	dial()
	dial()
	if straight.Load() != 2 || inside.Load() != 3 {
		t.Errorf("%d straight and %d inside: what got through is not tried first", straight.Load(), inside.Load())
	}
	open.Store(true)
	dial()
	dial()
	if straight.Load() != 4 || inside.Load() != 3 {
		t.Errorf("%d straight and %d inside with nobody on the way", straight.Load(), inside.Load())
	}
	// A gateway that says that auth is away has been reached: there is no other way to try.
	made := straight.Load()
	h.dialer.Connect = func(ctx context.Context, _, _ string) (net.Conn, error) {
		straight.Add(1)
		ours, theirs := net.Pipe()
		go func() {
			go func() { _, _ = io.Copy(io.Discard, theirs) }()
			_, _ = theirs.Write([]byte{21, 3, 3, 0, 2, 2, 80})
			theirs.Close()
		}()
		return ours, nil
	}
	h.dialer.Inside = func(context.Context, string, func([]*x509.Certificate) bool) (net.Conn, error) {
		t.Error("another way was tried")
		return nil, errors.New("none")
	}
	if _, err := h.dialer.Dial(t.Context(), ProtocolAuth); err == nil || !strings.Contains(err.Error(), "does not answer") || straight.Load() == made {
		t.Errorf("auth away: %v", err)
	}
	h.dialer.Connect = cfg.Connect
	h.dialer.Inside = nil
	open.Store(false)
	if _, err := h.dialer.Dial(t.Context(), ProtocolAuth); !errors.Is(err, sallyport.ErrUnavailable) {
		t.Errorf("without a way inside: %v", err)
	}
}

// foreign ends TLS with a certificate that is none of the cluster's, without a
// protocol.
func (w *world) foreign(t *testing.T, s signer) (addr string) {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{s.cert.Raw}, PrivateKey: s.key}}})
	if err != nil {
		t.Fatal(err)
	}
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns.Go(func() {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(time.Minute))
				_, _ = io.Copy(io.Discard, c)
			})
		}
	})
	t.Cleanup(func() { l.Close(); conns.Wait() })
	return l.Addr().String()
}

// TestDialerOrder: ways are tried in turn, and the one that worked comes first.
func TestDialerOrder(t *testing.T) {
	w := the()
	h := w.host(t, w.config(t, sallyport.KindAgent))
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone := silent.Addr().String()
	silent.Close()
	all := []string{gone, "unix:" + filepath.Join(t.TempDir(), "none"), w.addresses()[0]}
	d := &Dialer{Addresses: func() []string { return all }, Cluster: cluster, Roots: h.keeper.Roots, Certificate: h.Certificate}
	for range 2 {
		conn, err := d.Dial(t.Context(), ProtocolAuth)
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
	}
	if got := d.inOrder(); got[0] != all[2] || len(got) != 3 {
		t.Errorf("order %v", got)
	}
	d.Addresses = func() []string { return all[:2] }
	if _, err := d.Dial(t.Context(), ProtocolAuth); !errors.Is(err, sallyport.ErrUnavailable) {
		t.Errorf("no way: %v", err)
	}
	d.Addresses = func() []string { return nil }
	if _, err := d.Dial(t.Context(), ProtocolAuth); !errors.Is(err, sallyport.ErrUnavailable) {
		t.Errorf("no address: %v", err)
	}
}

// TestRefusalsAreAskedAgain: an agent whose name is another's is told so.
func TestRefusalsAreAskedAgain(t *testing.T) {
	w := the()
	name := "taken-" + uuid.NewString()[:8]
	r := sallyport.Resource{Kind: sallyport.KindTCP, Name: name}
	first := w.host(t, w.config(t, sallyport.KindAgent, r))
	if refused, err := first.announceOnce(t.Context()); refused || err != nil {
		// The keeper has no snapshot yet, but the host CA is known from joining.
		t.Fatalf("first: %v %v", refused, err)
	}
	second := w.host(t, w.config(t, sallyport.KindAgent, r))
	if refused, err := second.announceOnce(t.Context()); !refused || err != nil || len(second.Resources()) != 0 {
		t.Errorf("second: %v %v", refused, err)
	}
	if _, err := w.inventory.Remove(t.Context(), first.ID(), time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if refused, err := second.announceOnce(t.Context()); refused || err != nil || len(second.Resources()) != 1 {
		t.Errorf("second, later: %v %v", refused, err)
	}
}

// TestSetResources: what an agent asks for anew it is assigned soon, and what it
// asks for no more is taken away.
func TestSetResources(t *testing.T) {
	w := the()
	name := "set-" + uuid.NewString()[:8]
	one, two := sallyport.Resource{Kind: sallyport.KindTCP, Name: name + "-1"}, sallyport.Resource{Kind: sallyport.KindTCP, Name: name + "-2"}
	h := w.host(t, w.config(t, sallyport.KindAgent, one))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	defer func() { cancel(); <-done }()
	served := func(want ...string) {
		t.Helper()
		deadline := time.After(time.Minute)
		for {
			changed := h.AssignmentChanged()
			var got []string
			for _, r := range h.Resources() {
				got = append(got, r.Name)
			}
			slices.Sort(got)
			if slices.Equal(got, want) {
				return
			}
			select {
			case <-changed:
			case <-deadline:
				t.Fatalf("serves %q, want %q", got, want)
			}
		}
	}
	served(one.Name)
	h.SetResources([]sallyport.Resource{one, two})
	served(one.Name, two.Name)
	h.SetResources([]sallyport.Resource{two})
	served(two.Name)
}

// TestAnnounceAgain: auth is asked for an assignment that is not older than any that
// it has given, and not again at once.
func TestAnnounceAgain(t *testing.T) {
	w := the()
	h := w.host(t, w.config(t, sallyport.KindAgent, sallyport.Resource{Kind: sallyport.KindTCP, Name: "again-" + uuid.NewString()[:8]}))
	if _, err := h.announceOnce(t.Context()); err != nil {
		t.Fatal(err)
	}
	first := h.served.parsed.GetRevision()
	for i, want := range []bool{true, false} {
		h.AnnounceAgain()
		select {
		case <-h.announced:
			if !want {
				t.Errorf("%d: auth is asked once more", i)
			}
		default:
			if want {
				t.Errorf("%d: auth is not asked", i)
			}
		}
	}
	if _, err := h.announceOnce(t.Context()); err != nil || h.served.parsed.GetRevision() < first {
		t.Errorf("revision %d after %d, %v", h.served.parsed.GetRevision(), first, err)
	}
}

// TestResourceWire: nothing of a resource is lost on the way.
func TestResourceWire(t *testing.T) {
	r := sallyport.Resource{Kind: "db", Name: "a", ID: "b", Description: "c", Protocol: "d", Address: "e", Hostname: "f", Labels: map[string]string{"g": "h"}, AgentID: "i", Group: "j", Version: "k"}
	want, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	got, err := json.Marshal(ResourceFromWire(ResourceToWire(r)))
	if err != nil || string(got) != string(want) {
		t.Errorf("%s, want %s, %v", got, want, err)
	}
}
