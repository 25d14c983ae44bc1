//go:build unix

package gateway

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/dataplane/relay"
	"github.com/sallyport/sallyport/dataplane/tunnel"
	"github.com/sallyport/sallyport/test/leak"
	"github.com/sallyport/sallyport/tools/peers"
)

// TestMain fails when goroutines or descriptors are left behind.
func TestMain(m *testing.M) {
	if os.Getenv(exhaustedChild) != "" {
		runExhausted()
		return
	}
	before := descriptors()
	code := leak.Code(m.Run())
	// The runtime's poller and the like take a few; the pipes of its splices are
	// closed by the collector.
	after := descriptors()
	for end := time.Now().Add(patience); after > before+6 && time.Now().Before(end); after = descriptors() {
		runtime.GC()
	}
	if code == 0 && after > before+6 {
		fmt.Fprintf(os.Stderr, "descriptors left behind: %d before, %d after\n", before, after)
		code = 1
	}
	os.Exit(code)
}

func descriptors() int {
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0
	}
	return len(all)
}

const (
	cluster  = "gw.test"
	patience = time.Minute // the most that anything may take, on a busy machine too
)

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually fails loudly when ok does not become true.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not in %v: %s", patience, what)
		}
		runtime.Gosched()
	}
}

// authority is a throw-away CA.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "host CA"},
		NotBefore: time.Unix(0, 0), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	check(t, err)
	cert, err := x509.ParseCertificate(der)
	check(t, err)
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return &authority{cert, key, pool}
}

// issue makes a certificate for names, and for a SPIFFE path when one is given.
func (a *authority) issue(t testing.TB, path string, names ...string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "test"},
		NotBefore: time.Unix(0, 0), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		DNSNames:    names, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	if path != "" {
		tmpl.URIs = []*url.URL{{Scheme: "spiffe", Host: cluster, Path: path}}
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, &key.PublicKey, a.key)
	check(t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func (a *authority) server(t testing.TB, protocols ...string) *tls.Config {
	return &tls.Config{
		Certificates: []tls.Certificate{a.issue(t, "", cluster, "*."+cluster, "*.db."+cluster, "*.node."+cluster, "*.example.com")},
		NextProtos:   protocols,
	}
}

func (a *authority) client(name string, protocols ...string) *tls.Config {
	return &tls.Config{RootCAs: a.pool, ServerName: name, NextProtos: protocols}
}

// loopKinds are the kinds of loops. Where the kernel gives no io_uring,
// "batched" is one more "default".
func loopKinds() map[string]func() (relay.Loop, error) {
	return map[string]func() (relay.Loop, error){"default": relay.NewDefault, "batched": relay.NewBatched, "portable": relay.NewPortable}
}

// onLoops runs a test on each kind of loop.
func onLoops(t *testing.T, f func(t *testing.T, loops []relay.Loop)) {
	for name, kind := range loopKinds() {
		t.Run(name, func(t *testing.T) { f(t, newLoops(t, kind, 4)) })
	}
}

func newLoops(t testing.TB, kind func() (relay.Loop, error), n int) []relay.Loop {
	t.Helper()
	loops := make([]relay.Loop, n)
	for i := range loops {
		l, err := kind()
		check(t, err)
		loops[i] = l
		t.Cleanup(func() { l.Close() })
	}
	return loops
}

// rig is a gateway and what it needs round it.
type rig struct {
	testing.TB
	*Gateway
	addr    string
	ca      *authority
	tunnels *fakeTunnels
}

// generous bounds, so that tests from one address do not count as a flood, and
// clients that a busy machine holds up are not closed.
func generous() Bounds {
	return Bounds{Stage: patience, WaitingSource: 4000, SourceRate: 1e6}
}

func newRig(t testing.TB, loops []relay.Loop, change func(*Config)) *rig {
	t.Helper()
	r := &rig{TB: t, ca: newAuthority(t), tunnels: newFakeTunnels(t)}
	cfg := Config{Cluster: cluster, Listen: []string{"127.0.0.1:0"}, Loops: loops, Tunnels: r.tunnels, Bounds: generous()}
	if change != nil {
		change(&cfg)
	}
	g, err := Start(cfg)
	check(t, err)
	t.Cleanup(g.Close)
	r.Gateway, r.addr = g, g.Addrs()[0].String()
	return r
}

func (r *rig) dial() *net.TCPConn {
	r.Helper()
	conn, err := net.Dial("tcp", r.addr)
	check(r, err)
	r.Cleanup(func() { conn.Close() })
	check(r, conn.SetDeadline(time.Now().Add(patience)))
	return conn.(*net.TCPConn)
}

// say opens a connection and writes.
func (r *rig) say(b []byte) *net.TCPConn {
	r.Helper()
	conn := r.dial()
	_, err := conn.Write(b)
	check(r, err)
	return conn
}

func (r *rig) count(o outcome) uint64 { return r.Snapshot().Outcomes[o.String()] }

// reaches waits until a counter has a value.
func (r *rig) reaches(o outcome, n uint64) {
	r.Helper()
	eventually(r, fmt.Sprintf("%v is %d", o, n), func() bool { return r.count(o) >= n })
	if got := r.count(o); got != n {
		r.Fatalf("%v is %d, want %d", o, got, n)
	}
}

// waiting waits until the gateway has seen what was sent and wants more.
func (r *rig) waiting(n int) {
	r.Helper()
	eventually(r, fmt.Sprintf("%d connections wait", n), func() bool { return r.Snapshot().Waiting == n })
}

// readAll reads to the end. A reset is an error.
func readAll(t testing.TB, conn net.Conn) []byte {
	t.Helper()
	b, err := io.ReadAll(conn)
	if err != nil {
		t.Fatalf("after %q: %v", b, err)
	}
	return b
}

// closes reads to the end, in order or by a reset; nothing must come before it.
func closes(t testing.TB, conn net.Conn) {
	t.Helper()
	b, err := io.ReadAll(conn)
	if len(b) > 0 || err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("got %q, %v, not the end", b, err)
	}
}

// helloBytes is what crypto/tls sends first.
func helloBytes(t testing.TB, config *tls.Config) []byte {
	t.Helper()
	client, server := net.Pipe()
	defer server.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = tls.Client(client, config).Handshake()
	}()
	head := make([]byte, 5)
	_, err := io.ReadFull(server, head)
	check(t, err)
	body := make([]byte, int(head[3])<<8|int(head[4]))
	_, err = io.ReadFull(server, body)
	check(t, err)
	client.Close()
	<-done
	return append(head, body...)
}

// fakeTunnels stand for the agents: what a lease leads to is a connection to
// the test.
type fakeTunnels struct {
	t      testing.TB
	listen net.Listener
	live   map[string]bool // kind/name

	mu        sync.Mutex
	requests  []tunnel.LeaseRequest
	cancelled int // leases
	ended     int
	adopted   int
	cancels   [][2]uint32
	parked    []parked
	hold      bool // answer no lease
	narrow    bool // leased connections hold little
	stuff     bool // the first leased connection takes nothing: it is full
	parkErr   error
	agents    chan *agentConn
}

// parked is a data connection that was given to Park.
type parked struct {
	conn  net.Conn
	hello []byte
	from  netip.AddrPort
}

// agentConn is an agent's end of a leased connection, after the frame.
type agentConn struct {
	net.Conn
	request tunnel.LeaseRequest
}

// answers makes the first byte go to the client: from here on it is a relay.
func (a *agentConn) answers(client net.Conn) {
	_, err := a.Write([]byte{22})
	got := make([]byte, 1)
	if err == nil {
		_, err = io.ReadFull(client, got)
	}
	if err == nil && got[0] != 22 {
		err = fmt.Errorf("byte %d came to the client, not the agent's", got[0])
	}
	if err != nil {
		panic(err)
	}
}

func newFakeTunnels(t testing.TB) *fakeTunnels {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	f := &fakeTunnels{
		t: t, listen: l, agents: make(chan *agentConn, 1024),
		live: map[string]bool{"db/orders": true, "node/host": true},
	}
	t.Cleanup(f.close) // after the gateway's
	return f
}

// close ends what nobody asked for.
func (f *fakeTunnels) close() {
	f.listen.Close()
	for {
		select {
		case a := <-f.agents:
			a.Close()
		default:
			return
		}
	}
}

// littleRoom is more than a segment: below it the kernel drops what does not fit,
// and sends it again ever later.
const littleRoom = 4 << 10

var frame = []byte("the open frame ")

func (f *fakeTunnels) Lease(l relay.Loop, r tunnel.LeaseRequest, w Waiter) (cancel func()) {
	f.mu.Lock()
	f.requests = append(f.requests, r)
	hold, narrow, stuff := f.hold, f.narrow, f.stuff && len(f.requests) == 1
	f.mu.Unlock()
	if hold {
		return func() { f.mu.Lock(); f.cancelled++; f.mu.Unlock() }
	}
	if !f.live[r.Kind+"/"+r.Name] {
		w.LeaseFailed("no_tunnel")
		return func() {}
	}
	fd, agent := pair(f.listen)
	if narrow {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, littleRoom)
		_ = agent.(*net.TCPConn).SetReadBuffer(littleRoom)
	}
	for stuff {
		if _, err := unix.Write(fd, make([]byte, 1<<16)); err != nil {
			break
		}
	}
	select {
	case f.agents <- &agentConn{Conn: agent, request: r}:
	default: // a loop does not wait
		agent.Close()
	}
	w.Leased(Stream{FD: fd, Frame: frame, Lease: &fakeLease{tunnels: f, connection: r.ConnectionID}})
	return func() {}
}

// fakeLease is a stream of the tunnel that all fakes have.
type fakeLease struct {
	tunnels    *fakeTunnels
	connection tunnel.ID
}

func (l *fakeLease) Ended() { l.tunnels.end() }

func (l *fakeLease) Ref() tunnel.StreamRef {
	return tunnel.StreamRef{Tunnel: tunnel.ID{7}, Connection: l.connection}
}

func (f *fakeTunnels) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ended++
}

// AdoptStream counts the streams of another gateway.
func (f *fakeTunnels) AdoptStream(ref tunnel.StreamRef) (ended func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if ref.Tunnel != (tunnel.ID{7}) || ref.Connection == (tunnel.ID{}) {
		f.t.Errorf("a stream is adopted: %x", ref)
	}
	f.adopted++
	return f.end
}

func (f *fakeTunnels) Park(l relay.Loop, fd int, hello []byte, from netip.AddrPort) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.parkErr != nil {
		relay.Close(fd)
		return f.parkErr
	}
	conn, err := relay.NetConn(fd, nil)
	if err != nil {
		return err
	}
	f.parked = append(f.parked, parked{conn, bytes.Clone(hello), from})
	f.t.Cleanup(func() { conn.Close() })
	return nil
}

func (f *fakeTunnels) Cancel(pid, key uint32) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cancels = append(f.cancels, [2]uint32{pid, key})
	return true
}

// agent is the far end of the next lease, with the frame read from it.
func (f *fakeTunnels) agent() *agentConn {
	f.t.Helper()
	select {
	case a := <-f.agents:
		f.t.Cleanup(func() { a.Close() })
		check(f.t, a.SetDeadline(time.Now().Add(patience)))
		got := make([]byte, len(frame))
		_, err := io.ReadFull(a, got)
		check(f.t, err)
		if !bytes.Equal(got, frame) {
			f.t.Fatalf("the agent got %q before the frame", got)
		}
		return a
	case <-time.After(patience):
		f.t.Fatal("no lease")
		return nil
	}
}

// answerNone leaves all leases from now on without an answer.
func (f *fakeTunnels) answerNone() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hold = true
}

// answerAll ends answerNone.
func (f *fakeTunnels) answerAll() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hold = false
}

func (f *fakeTunnels) asked() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.requests)
}

func (f *fakeTunnels) adoptedNow() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.adopted
}

// stuffFirst makes the first lease lead to a connection that is full.
func (f *fakeTunnels) stuffFirst() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stuff = true
}

// answerNarrow makes all leases from now on have little room.
func (f *fakeTunnels) answerNarrow() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.narrow = true
}

func (f *fakeTunnels) endedNow() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.ended
}

// pair is a TCP connection: a raw descriptor, and its other end.
func pair(l net.Listener) (fd int, other net.Conn) {
	a, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		panic(err)
	}
	defer a.Close()
	b, err := l.Accept()
	if err != nil {
		panic(err)
	}
	raw, err := a.(*net.TCPConn).SyscallConn()
	if err != nil {
		panic(err)
	}
	err = raw.Control(func(p uintptr) { fd, err = unix.FcntlInt(p, unix.F_DUPFD_CLOEXEC, 0) })
	if err != nil {
		panic(err)
	}
	return fd, b
}

// backend is a TLS server that echoes, behind a plain listener.
type backend struct {
	net.Listener
	tasks sync.WaitGroup
}

// newBackend serves each connection with handle, until the test ends.
func newBackend(t testing.TB, network, address string, handle func(net.Conn)) *backend {
	t.Helper()
	l, err := net.Listen(network, address)
	check(t, err)
	b := &backend{Listener: l}
	b.tasks.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_ = conn.SetDeadline(time.Now().Add(patience))
			b.tasks.Go(func() { defer conn.Close(); handle(conn) })
		}
	})
	t.Cleanup(func() { l.Close(); b.tasks.Wait() })
	return b
}

// echoTLS ends TLS and says back what it hears.
func echoTLS(config *tls.Config) func(net.Conn) {
	return func(conn net.Conn) {
		c := tls.Server(conn, config)
		_, _ = io.Copy(c, c)
		_ = c.CloseWrite()
	}
}

// echoes checks that a connection says back what is said, and its end.
func echoes(t testing.TB, conn *tls.Conn) {
	t.Helper()
	check(t, conn.SetDeadline(time.Now().Add(patience)))
	_, err := conn.Write([]byte("hello?"))
	check(t, err)
	check(t, conn.CloseWrite())
	if got := readAll(t, conn); string(got) != "hello?" {
		t.Fatalf("echo %q", got)
	}
}

// tool finds a program, or skips the test; in CI it must be there.
func tool(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		peers.Missing(t, name)
	}
	return path
}

// command runs a program and returns all that it said.
func command(t *testing.T, env []string, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, tool(t, name), args...)
	cmd.Env = append(os.Environ(), env...)
	out, _ := cmd.CombinedOutput()
	check(t, ctx.Err())
	return string(out)
}
