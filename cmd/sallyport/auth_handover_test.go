package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"golang.org/x/crypto/ssh"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/api"
	"github.com/sallyport/sallyport/controlplane/audit"
	"github.com/sallyport/sallyport/controlplane/client"
	"github.com/sallyport/sallyport/dataplane/handover"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
	"github.com/sallyport/sallyport/wire/sallyport/v1/sallyportv1connect"
)

// toTaker passes records on with descriptors of their own, as SCM_RIGHTS does.
type toTaker struct{ t handover.Taker }

func (w toTaker) Send(_ context.Context, r handover.Record) error {
	fds := make([]int, len(r.FDs))
	for i, fd := range r.FDs {
		var err error
		if fds[i], err = syscall.Dup(fd); err != nil {
			return err
		}
	}
	r.FDs = fds
	return w.t.Take(r)
}

func (w toTaker) TrySend(r handover.Record) (bool, error) {
	return true, w.Send(context.Background(), r)
}

// authProcess is what auth has of a process.
type authProcess struct {
	t     *testing.T
	cfg   *config
	a     *auth
	admin net.Listener
	stop  context.CancelFunc
	ended sync.WaitGroup
}

func authOnly(t *testing.T) *config {
	t.Helper()
	dir, err := os.MkdirTemp("", "sp") // short, for Unix sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	c, err := parseConfig([]byte(fmt.Sprintf("version: 1\ncluster: gw.test\ndata_dir: %s\nroles: [auth]\nauth: {listen: [\"127.0.0.1:0\"]}\n", dir)))
	if err != nil {
		t.Fatal(err)
	}
	c.DataDir = dir
	return c
}

func startAuthProcess(t *testing.T) *authProcess {
	t.Helper()
	return startAuthProcessOf(t, authOnly(t))
}

func startAuthProcessOf(t *testing.T, cfg *config) *authProcess {
	t.Helper()
	a, err := openAuth(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	admin, err := unixListener(cfg.DataDir, adminSocket)
	if err != nil {
		t.Fatal(err)
	}
	p := &authProcess{t: t, cfg: cfg, admin: admin}
	p.run(a)
	return p
}

func (p *authProcess) run(a *auth) {
	ctx, stop := context.WithCancel(context.Background())
	p.a, p.stop = a, stop
	p.ended.Go(func() {
		if err := a.run(ctx); err != nil {
			p.t.Errorf("auth: %v", err)
		}
	})
	p.ended.Go(func() {
		if err := api.ServeAdmin(ctx, p.admin, &a.admin); err != nil {
			p.t.Errorf("admin socket: %v", err)
		}
	})
}

func (p *authProcess) end() {
	p.stop()
	p.ended.Wait()
	p.a.close()
}

// upgrade moves auth to a new process, and says how long the API was away.
func (p *authProcess) upgrade() (next *authProcess, away time.Duration) {
	p.t.Helper()
	next = &authProcess{t: p.t, cfg: p.cfg}
	taker := newAuthTaker(p.cfg, slog.New(slog.DiscardHandler), next.run)
	ctx, cancel := context.WithTimeout(p.t.Context(), time.Minute) // a busy machine
	defer cancel()
	giver := &authGiver{p.a}
	check := func(err error) {
		p.t.Helper()
		if err != nil {
			p.t.Fatal(err)
		}
	}
	check(giver.Copy(ctx, toTaker{taker}))
	began := time.Now()
	check(giver.Freeze(ctx, toTaker{taker}))
	check(taker.Complete(ctx))
	// The admin socket moves with the process.
	rc, err := p.admin.(*net.UnixListener).SyscallConn()
	check(err)
	check(rc.Control(func(fd uintptr) {
		copied, err := syscall.Dup(int(fd))
		check(err)
		next.admin, err = listenerOf(copied, adminSocket)
		check(err)
	}))
	taker.Start()
	away = time.Since(began)
	giver.Leave()
	keepFile(p.admin)
	p.end()
	return next, away
}

func (p *authProcess) adminAPI() sallyportv1connect.AdminServiceClient {
	path := filepath.Join(p.cfg.DataDir, adminSocket)
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}, DisableKeepAlives: true} // as sallyctl does
	return sallyportv1connect.NewAdminServiceClient(&http.Client{Transport: client.Again(tr)}, "http://admin")
}

// join makes a host that reaches auth by one of its sockets.
func (p *authProcess) join(kind sallyport.IdentityKind, addr string) *client.Host {
	p.t.Helper()
	token, err := p.a.localToken(p.t.Context(), kind)
	if err != nil {
		p.t.Fatal(err)
	}
	h, err := client.Join(p.t.Context(), client.HostConfig{
		Dir: p.t.TempDir(), Kind: kind, Name: "host", Addresses: func() []string { return []string{addr} }, Log: slog.New(slog.DiscardHandler),
	}, token, p.a.keys.Pins())
	if err != nil {
		p.t.Fatal(err)
	}
	return h
}

func (p *authProcess) socket() string { return "unix:" + filepath.Join(p.cfg.DataDir, authSocket) }

func (p *authProcess) tcp() string {
	for _, ln := range p.a.listeners {
		if !ln.gateway {
			return ln.Addr().String()
		}
	}
	p.t.Fatal("no TCP socket")
	return ""
}

// load calls the API all the time, and remembers what was acknowledged.
type load struct {
	t      *testing.T
	ctx    context.Context
	stop   context.CancelFunc
	ended  sync.WaitGroup
	calls  atomic.Int64
	failed atomic.Int64

	mu     sync.Mutex
	took   []time.Duration
	tokens []string          // created
	events map[string]uint64 // acknowledged, by spool
}

// loop repeats a call until the load ends.
func (l *load) loop(what string, call func(ctx context.Context) error) {
	l.ended.Go(func() {
		for l.ctx.Err() == nil {
			began := time.Now()
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			err := call(ctx)
			cancel()
			took := time.Since(began)
			if err != nil {
				l.failed.Add(1)
				l.t.Errorf("%s after %s: %v", what, took.Round(time.Millisecond), err)
			}
			l.mu.Lock()
			l.took = append(l.took, took)
			l.mu.Unlock()
			l.calls.Add(1)
		}
	})
}

// someCalls waits until every loop had the time for several.
func (l *load) someCalls() {
	for want := l.calls.Load() + 30; l.calls.Load() < want && !l.t.Failed(); {
		time.Sleep(time.Millisecond)
	}
}

// worst returns a quantile of how long calls took.
func (l *load) worst(q float64) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	slices.Sort(l.took)
	return l.took[int(float64(len(l.took)-1)*q)]
}

func startLoad(p *authProcess) *load {
	l := &load{t: p.t, events: map[string]uint64{}}
	l.ctx, l.stop = context.WithCancel(context.Background())
	admin := p.adminAPI()
	l.loop("create a token", func(ctx context.Context) error {
		r, err := admin.CreateToken(ctx, connect.NewRequest(&sallyportv1.CreateTokenRequest{Roles: []string{"agent"}}))
		if err == nil {
			l.mu.Lock()
			l.tokens = append(l.tokens, r.Msg.GetToken().GetName())
			l.mu.Unlock()
		}
		return err
	})
	l.loop("list users", func(ctx context.Context) error {
		_, err := admin.ListUsers(ctx, connect.NewRequest(&sallyportv1.ListUsersRequest{}))
		return err
	})
	for _, addr := range []string{p.socket(), p.tcp()} {
		h := p.join(sallyport.KindAgent, addr)
		pub, err := hostKey(h)
		if err != nil {
			p.t.Fatal(err)
		}
		l.loop("announce by "+addr, func(ctx context.Context) error {
			_, err := h.API().Announce(ctx, connect.NewRequest(&sallyportv1.AnnounceRequest{
				TlsPublicKey: pub, SshPublicKey: sshKey(p.t), Resources: []*sallyportv1.Resource{{Kind: "tcp", Name: "echo-" + h.ID()[:8], Address: "127.0.0.1:7"}}}))
			return err
		})
		l.loop("append events by "+addr, l.appender(h))
		// Connections that are new each time meet the change in their handshake.
		l.loop("a new connection by "+addr, func(ctx context.Context) error {
			hc := h.Dialer().HTTP(client.ProtocolAuth)
			defer hc.CloseIdleConnections()
			_, err := sallyportv1connect.NewHostServiceClient(hc, client.BaseURL).RenewHost(ctx, connect.NewRequest(&sallyportv1.RenewHostRequest{TlsPublicKey: pub, SshPublicKey: sshKey(p.t)}))
			return err
		})
		l.ended.Go(func() { _ = h.Run(l.ctx) }) // watches snapshots
	}
	return l
}

func (l *load) appender(h *client.Host) func(context.Context) error {
	spool := h.ID() + "/" + uuid.NewString()
	return func(ctx context.Context) error {
		l.mu.Lock()
		next := l.events[spool] + 1
		l.mu.Unlock()
		line := audit.Encode(sallyport.Event{Name: "session.start", Code: "T2000I", UID: uuid.NewString(), Time: time.Now(), ServerID: h.ID()})
		r, err := h.API().AppendEvents(ctx, connect.NewRequest(&sallyportv1.AppendEventsRequest{Spool: spool, Events: []*sallyportv1.SpooledEvent{{Sequence: next, Json: line}}}))
		if err != nil {
			return err
		}
		if r.Msg.GetAcknowledged() != next {
			return fmt.Errorf("event %d was sent, %d acknowledged", next, r.Msg.GetAcknowledged())
		}
		l.mu.Lock()
		l.events[spool] = next
		l.mu.Unlock()
		return nil
	}
}

// hostKey is the TLS key that a host's certificate is for.
func hostKey(h *client.Host) ([]byte, error) {
	cert, err := h.Certificate()
	if err != nil {
		return nil, err
	}
	return x509.MarshalPKIXPublicKey(cert.Leaf.PublicKey)
}

// sshKey is some public key.
func sshKey(t *testing.T) []byte {
	t.Helper()
	pub, _, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ssh.NewPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	return bytes.TrimSpace(ssh.MarshalAuthorizedKey(key))
}

// TestAuthChangesHands: twenty changes under calls of all kinds, by all ways:
// none fails, none is lost, none is done twice.
func TestAuthChangesHands(t *testing.T) {
	changes := 20
	if testing.Short() {
		changes = 3
	}
	p := startAuthProcess(t)
	defer func() { p.end() }()
	if mode := socketModes(t, p.cfg.DataDir); mode != "admin.sock 0600, auth.sock 0600" {
		t.Errorf("sockets: %s", mode)
	}
	l := startLoad(p)
	var away []time.Duration
	for range changes {
		l.someCalls()
		if t.Failed() {
			break
		}
		next, d := p.upgrade()
		p, away = next, append(away, d)
	}
	l.someCalls()
	l.stop()
	l.ended.Wait()
	slices.Sort(away)
	t.Logf("%d changes, the API away for %s in the middle, %s at most; %d calls, %d failed, p99 %s, the longest %s", len(away),
		away[len(away)/2].Round(time.Millisecond), away[len(away)-1].Round(time.Millisecond), l.calls.Load(), l.failed.Load(),
		l.worst(0.99).Round(time.Millisecond), l.worst(1).Round(time.Millisecond))
	if mode := socketModes(t, p.cfg.DataDir); mode != "admin.sock 0600, auth.sock 0600" {
		t.Errorf("sockets: %s", mode)
	}
	l.compare(p)
}

// compare looks for what was acknowledged.
func (l *load) compare(p *authProcess) {
	l.t.Helper()
	tokens, err := p.a.tokens.List(l.t.Context())
	if err != nil {
		l.t.Fatal(err)
	}
	there := map[string]int{}
	for _, tok := range tokens {
		there[tok.Name]++
	}
	for _, name := range l.tokens {
		if there[name] != 1 {
			l.t.Errorf("token %s: %d times", name, there[name])
		}
	}
	for spool, seq := range l.events {
		if got := p.a.events.Acknowledged(spool); got != seq {
			l.t.Errorf("spool %s: %d acknowledged, the log has %d", spool, seq, got)
		}
	}
	report, err := audit.Verify(filepath.Join(p.cfg.DataDir, "auth", "audit"), func([]byte, []byte) error { return nil })
	if err != nil || len(report.Faults) > 0 {
		l.t.Errorf("the audit log: %v, %v", err, report.Faults)
	}
}

func socketModes(t *testing.T, dir string) string {
	t.Helper()
	var out []string
	for _, name := range []string{adminSocket, authSocket} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, fmt.Sprintf("%s %04o", name, info.Mode().Perm()))
	}
	return strings.Join(out, ", ")
}

// TestAuthThaws: after an upgrade that was given up auth serves as before,
// wherever it was given up, and calls that came meanwhile are answered.
func TestAuthThaws(t *testing.T) {
	p := startAuthProcess(t)
	defer func() { p.end() }()
	l := startLoad(p)
	giver := &authGiver{p.a}
	spent, cancel := context.WithCancel(t.Context())
	cancel()
	for name, give := range map[string]func() error{
		"never begun": func() error { return nil },
		"copied":      func() error { return giver.Copy(t.Context(), toTaker{newAuthTaker(p.cfg, p.a.log, nil)}) },
		"frozen":      func() error { return giver.Freeze(t.Context(), nil) },
	} {
		l.someCalls()
		if err := give(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := giver.Thaw(); err != nil {
			t.Errorf("%s: thaw: %v", name, err)
		}
		l.someCalls()
	}
	l.stop()
	l.ended.Wait()
	if err := giver.Freeze(spent, nil); err != nil {
		t.Errorf("frozen in no time: %v", err)
	}
	if err := giver.Thaw(); err != nil {
		t.Error(err)
	}
	l.compare(p)
	next, _ := p.upgrade()
	p = next
	l.compare(p)
}

// TestAuthTakerRefuses: what is no socket of this data directory is refused,
// and its descriptor closed.
func TestAuthTakerRefuses(t *testing.T) {
	p := startAuthProcess(t)
	defer p.end()
	ln := p.a.listeners[0]
	other := *p.cfg
	other.DataDir = "/elsewhere"
	for name, c := range map[string]struct {
		taker  *authTaker
		change func(*handover.Record)
		want   string
	}{
		"another directory": {newAuthTaker(&other, p.a.log, nil), nil, "data_dir"},
		"kind":              {newAuthTaker(p.cfg, p.a.log, nil), func(r *handover.Record) { r.Kind = 99 }, "not known"},
		"garbage":           {newAuthTaker(p.cfg, p.a.log, nil), func(r *handover.Record) { r.Body = []byte{0xff} }, ""},
	} {
		w := &changed{t: c.taker, change: c.change}
		if err := p.a.send(t.Context(), w, ln); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
		if len(c.taker.fds) != 0 {
			t.Errorf("%s: taken", name)
		}
	}
	// Its own end of a pair tells that a descriptor was closed.
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(pair[0])
	w := &changed{t: newAuthTaker(p.cfg, p.a.log, nil), change: func(r *handover.Record) {
		syscall.Close(r.FDs[0])
		r.FDs[0] = pair[1]
	}}
	if err := p.a.send(t.Context(), w, ln); err == nil || !strings.Contains(err.Error(), "does not listen") {
		t.Errorf("no listening socket: %v", err)
	}
	if n, err := syscall.Read(pair[0], make([]byte, 1)); n != 0 || err != nil {
		t.Errorf("the descriptor was left open: %d, %v", n, err)
	}
}

// changed is a writer that spoils a record on its way.
type changed struct {
	t      handover.Taker
	change func(*handover.Record)
}

func (w *changed) Send(_ context.Context, r handover.Record) error {
	fd, err := syscall.Dup(r.FDs[0])
	if err != nil {
		return err
	}
	r.FDs, r.Body = []int{fd}, bytes.Clone(r.Body)
	if w.change != nil {
		w.change(&r)
	}
	return w.t.Take(r)
}

func (w *changed) TrySend(handover.Record) (bool, error) { return false, nil }
