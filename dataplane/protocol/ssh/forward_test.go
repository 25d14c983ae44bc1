package ssh

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport/sallyport"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

// echo answers each connection with its own bytes, after a mark.
func echo(t testing.TB, network, addr string) net.Listener {
	t.Helper()
	l, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	serveEcho(t, l)
	return l
}

func serveEcho(t testing.TB, l net.Listener) {
	var served sync.WaitGroup
	served.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			served.Go(func() {
				defer conn.Close()
				_, _ = io.WriteString(conn, "echo:")
				_, _ = io.Copy(conn, conn)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		waitFor(t, "the echo server", served.Wait)
	})
}

// exchange sends data, ends that half, and reads the answer to its end.
func exchange(t testing.TB, conn net.Conn, data []byte) []byte {
	t.Helper()
	var sending sync.WaitGroup
	sending.Go(func() {
		_, _ = conn.Write(data)
		_ = closeWrite(conn)
	})
	var got []byte
	waitFor(t, "the echo", func() { got, _ = io.ReadAll(conn) })
	sending.Wait()
	conn.Close()
	return got
}

func tcpPort(t testing.TB, addr string) int {
	t.Helper()
	n, err := strconv.Atoi(port(addr))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func randomBytes(t testing.TB, n int) []byte {
	t.Helper()
	b := make([]byte, n)
	if _, err := rand.Read(b); err != nil {
		t.Fatal(err)
	}
	return b
}

func (h *host) portEvents(code string) (list []sallyport.Event) {
	for _, e := range h.gate.named("port") {
		if e.Code == code {
			list = append(list, e)
		}
	}
	return list
}

// TestForwardLocal: bytes and half-closes pass both ways, and each connection is
// two lines in the audit log.
func TestForwardLocal(t *testing.T) {
	h := newHost(t, nil)
	l := echo(t, "tcp", "127.0.0.1:0")
	c := h.dial()
	data := randomBytes(t, 5<<20)
	for range 3 {
		conn, err := c.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if got := exchange(t, conn, data); !bytes.Equal(got, append([]byte("echo:"), data...)) {
			t.Fatalf("%d bytes came back", len(got))
		}
	}
	eventually(t, "the ends in the audit log", func() bool { return len(h.portEvents("T3003S")) == 3 })
	e := h.portEvents("T3003S")[0]
	if n := len(h.portEvents("T3003I")); n != 3 || e.Fields["addr"] != l.Addr().String() || e.Fields["mode"] != "local" ||
		e.Fields["bytes_sent"] != int64(len(data)) || e.Fields["bytes_received"] != int64(len(data)+5) || e.Login != h.login {
		t.Errorf("%d starts, end %+v", n, e)
	}
	if _, err := c.Dial("tcp", "127.0.0.1:1"); err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("a closed port: %v", err)
	}
	eventually(t, "the failure", func() bool { return len(h.portEvents("T3003E")) == 1 })
}

// TestForwardUnix: the login's rights decide which sockets can be reached, not
// ours.
func TestForwardUnix(t *testing.T) {
	h := newHost(t, nil)
	c := h.dial()
	l := echo(t, "unix", filepath.Join(h.home, "s"))
	if err := os.Chmod(l.Addr().String(), 0o666); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{l.Addr().String(), "s"} {
		conn, err := c.Dial("unix", path)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		if got := exchange(t, conn, []byte("hello")); string(got) != "echo:hello" {
			t.Errorf("%s: %q", path, got)
		}
	}
	if os.Geteuid() != 0 {
		t.Skip("only root can be somebody else: the rest is not tested")
	}
	private := echo(t, "unix", filepath.Join(h.home, "root"))
	if err := os.Chmod(private.Addr().String(), 0o600); err != nil { // root's, as this process is
		t.Fatal(err)
	}
	if _, err := c.Dial("unix", private.Addr().String()); err == nil || !strings.Contains(err.Error(), "permission denied") {
		t.Errorf("root's socket for another login: %v", err)
	}
}

// TestForwardRemote: what listens here is reached from here, ends with a cancel
// and with the connection.
func TestForwardRemote(t *testing.T) {
	h := newHost(t, nil)
	c := h.dial()
	l, err := c.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serveEcho(t, l)
	data := randomBytes(t, 3<<20)
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if got := exchange(t, conn, data); !bytes.Equal(got, append([]byte("echo:"), data...)) {
		t.Errorf("%d bytes came back", len(got))
	}
	if err := l.Close(); err != nil {
		t.Errorf("cancel: %v", err)
	}
	if _, err := net.Dial("tcp", l.Addr().String()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("after the cancel: %v", err)
	}
	second, err := c.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	eventually(t, "the socket to close with the connection", func() bool {
		_, err := net.Dial("tcp", second.Addr().String())
		return errors.Is(err, syscall.ECONNREFUSED)
	})
}

// TestForwardRemoteLoopback: whatever address a client names, only this host
// reaches it.
func TestForwardRemoteLoopback(t *testing.T) {
	h := newHost(t, nil)
	c := h.dial()
	for _, host := range []string{"", "0.0.0.0", "::", "*", "192.0.2.1", "localhost"} {
		ok, reply, err := c.SendRequest("tcpip-forward", true, ssh.Marshal(listenTCP{Host: host}))
		if err != nil || !ok {
			t.Fatalf("%q: %v, %v", host, ok, err)
		}
		var r listeningTCP
		if err := ssh.Unmarshal(reply, &r); err != nil {
			t.Fatal(err)
		}
		for _, addr := range listenersOf(t, int(r.Port)) {
			if ip := net.ParseIP(addr); !ip.IsLoopback() {
				t.Errorf("%q listens on %s", host, addr)
			}
		}
	}
}

// listenersOf gives the addresses that listen on a port, as the kernel has them.
func listenersOf(t *testing.T, port int) (addrs []string) {
	t.Helper()
	for _, file := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		b, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			if len(f) < 4 || f[3] != "0A" || !strings.HasSuffix(f[1], fmt.Sprintf(":%04X", port)) {
				continue
			}
			hex, _, _ := strings.Cut(f[1], ":")
			var ip net.IP
			for i := 0; i < len(hex); i += 8 {
				var word [4]byte
				for j := range 4 {
					v, err := strconv.ParseUint(hex[i+2*j:i+2*j+2], 16, 8)
					if err != nil {
						t.Fatal(err)
					}
					word[3-j] = byte(v)
				}
				ip = append(ip, word[:]...)
			}
			addrs = append(addrs, ip.String())
		}
	}
	if len(addrs) == 0 {
		t.Skip("/proc/net does not show sockets here")
	}
	return addrs
}

// TestForwardLowPort: low ports are root's, whoever we are.
func TestForwardLowPort(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to be somebody else")
	}
	h := newHost(t, nil)
	first, err := os.ReadFile("/proc/sys/net/ipv4/ip_unprivileged_port_start")
	if err != nil || strings.TrimSpace(string(first)) != "1024" {
		t.Skipf("this host lets everybody bind low ports: %s, %v", first, err)
	}
	if ok, _, err := h.dial().SendRequest("tcpip-forward", true, ssh.Marshal(listenTCP{Host: "localhost", Port: 1})); err != nil || ok {
		t.Errorf("port 1 for %s: %v, %v", h.login, ok, err)
	}
}

// TestForwardRemoteUnix: the socket is the login's alone, and is removed.
func TestForwardRemoteUnix(t *testing.T) {
	h := newHost(t, nil)
	c := h.dial()
	path := filepath.Join(h.home, "listening")
	l, err := c.ListenUnix(path)
	if err != nil {
		t.Fatal(err)
	}
	serveEcho(t, l)
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("%v, %v", info, err)
	}
	acc := h.loginAccount(t)
	if owner := info.Sys().(*syscall.Stat_t).Uid; owner != acc.uid {
		t.Errorf("owned by %d", owner)
	}
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	if got := exchange(t, conn, []byte("hello")); string(got) != "echo:hello" {
		t.Errorf("%q", got)
	}
	if _, err := h.dial().ListenUnix(path); err == nil {
		t.Error("a second one took the path over")
	}
	c.Close()
	eventually(t, "the socket to be removed", func() bool { _, err := os.Lstat(path); return errors.Is(err, os.ErrNotExist) })
}

func (h *host) loginAccount(t testing.TB) account {
	t.Helper()
	acc, p := h.server.accounts().find(context.Background(), h.login)
	if p != nil {
		t.Fatal(p)
	}
	return acc
}

// TestA85_AgentForwarding: off unless the roles and the certificate say so; the
// socket is the login's alone and goes with the connection.
func TestA85_AgentForwarding(t *testing.T) {
	var revoked atomic.Bool
	h := newHost(t, func(h *host) {
		h.gate.allow = func(a sallyport.Action) *sallyport.Problem {
			if a == sallyport.ActionForwardAgent && revoked.Load() {
				return sallyport.Denied("no role allows agent forwarding", "")
			}
			return nil
		}
	})
	c := h.dial()
	keys := agent.NewKeyring()
	key := newKey(t).(privateSigner)
	if err := keys.Add(agent.AddedKey{PrivateKey: &key.key, Comment: "forwarded"}); err != nil {
		t.Fatal(err)
	}
	if err := agent.ForwardToAgent(c.Client, keys); err != nil {
		t.Fatal(err)
	}
	s, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	if err := agent.RequestAgentForwarding(s); err != nil {
		t.Fatal(err)
	}
	got := runOn(t, s, `echo "$SSH_AUTH_SOCK"; stat -c '%a %U %u' "$SSH_AUTH_SOCK" "$(dirname "$SSH_AUTH_SOCK")"`)
	socket, rest, _ := strings.Cut(got.out, "\n")
	uid := h.loginAccount(t).uid
	lines := strings.Split(rest, "\n")
	if len(lines) < 2 || !strings.HasPrefix(lines[0], "600 ") || !strings.HasPrefix(lines[1], "700 ") ||
		!strings.HasSuffix(lines[0], fmt.Sprint(uid)) || !strings.HasSuffix(lines[1], fmt.Sprint(uid)) {
		t.Errorf("got %+v", got)
	}
	conn, err := net.Dial("unix", socket) // as ourselves: the login, or root
	if err != nil {
		t.Fatal(err)
	}
	list, err := agent.NewClient(conn).List()
	if err != nil || len(list) != 1 || list[0].Comment != "forwarded" {
		t.Errorf("keys %v, %v", list, err)
	}
	conn.Close()
	revoked.Store(true) // each connection is decided again
	conn, err = net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	if list, err := agent.NewClient(conn).List(); err == nil {
		t.Errorf("keys %v after the right was gone", list)
	}
	conn.Close()
	c.Close()
	eventually(t, "the socket to be removed", func() bool {
		_, err := os.Lstat(filepath.Dir(socket))
		return errors.Is(err, os.ErrNotExist)
	})
	denied, err := h.dial().NewSession()
	if err != nil {
		t.Fatal(err)
	}
	if err := agent.RequestAgentForwarding(denied); err == nil {
		t.Error("forwarded against the roles")
	}
	if got := runOn(t, denied, `echo "[$SSH_AUTH_SOCK]"`); got.out != "[]\n" || !strings.Contains(got.err, "no role allows agent forwarding") {
		t.Errorf("got %+v", got)
	}
	revoked.Store(false)
	bare, err := h.dialAs(h.login, h.signer(func(c *ssh.Certificate) { delete(c.Extensions, "permit-agent-forwarding") }))
	if err != nil {
		t.Fatal(err)
	}
	defer bare.Close()
	if denied, err = bare.NewSession(); err != nil {
		t.Fatal(err)
	}
	if err := agent.RequestAgentForwarding(denied); err == nil {
		t.Error("forwarded against the certificate")
	}
	if got := runOn(t, denied, `echo "[$SSH_AUTH_SOCK]"`); got.out != "[]\n" || !strings.Contains(got.err, "the certificate does not permit agent forwarding") {
		t.Errorf("got %+v", got)
	}
}

// TestA05_ForwardsByRole: each direction has its right, asked at each use; the
// certificate must permit forwarding too.
func TestA05_ForwardsByRole(t *testing.T) {
	var mu sync.Mutex
	denied := map[sallyport.Action]bool{}
	deny := func(a sallyport.Action, no bool) {
		mu.Lock()
		defer mu.Unlock()
		denied[a] = no
	}
	h := newHost(t, func(h *host) {
		h.gate.allow = func(a sallyport.Action) *sallyport.Problem {
			mu.Lock()
			defer mu.Unlock()
			if denied[a] {
				return sallyport.Denied("the roles do not allow "+string(a), "")
			}
			return nil
		}
	})
	l := echo(t, "tcp", "127.0.0.1:0")
	c := h.dial()
	remote, err := c.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serveEcho(t, remote)
	deny(sallyport.ActionForwardLocal, true)
	if _, err := c.Dial("tcp", l.Addr().String()); err == nil || !strings.Contains(err.Error(), "the roles do not allow forward-local") {
		t.Errorf("local: %v", err)
	}
	if _, err := c.Dial("unix", "/run/x"); err == nil || !strings.Contains(err.Error(), "the roles do not allow forward-local") {
		t.Errorf("local socket: %v", err)
	}
	deny(sallyport.ActionForwardLocal, false)
	deny(sallyport.ActionForwardRemote, true)
	if conn, err := c.Dial("tcp", l.Addr().String()); err != nil {
		t.Errorf("local, with remote denied: %v", err)
	} else {
		conn.Close()
	}
	if _, err := c.Listen("tcp", "127.0.0.1:0"); err == nil {
		t.Error("remote against the roles")
	}
	if _, err := c.ListenUnix(filepath.Join(h.home, "x")); err == nil {
		t.Error("remote socket against the roles")
	}
	conn, err := net.Dial("tcp", remote.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if got := exchange(t, conn, []byte("x")); len(got) > 0 {
		t.Errorf("%q through a forward whose right is gone", got)
	}
	if n := len(h.portEvents("T3003E")); n < 4 {
		t.Errorf("%d refusals in the audit log", n)
	}
	bare, err := h.dialAs(h.login, h.signer(func(c *ssh.Certificate) { delete(c.Extensions, "permit-port-forwarding") }))
	if err != nil {
		t.Fatal(err)
	}
	defer bare.Close()
	if _, err := bare.Dial("tcp", l.Addr().String()); err == nil || !strings.Contains(err.Error(), "the certificate does not permit") {
		t.Errorf("without permit-port-forwarding: %v", err)
	}
}

// TestForwardDenialsAreBounded: a client cannot have the gate write a line for
// each of its tries.
func TestForwardDenialsAreBounded(t *testing.T) {
	var asked atomic.Int64
	h := newHost(t, func(h *host) {
		h.gate.allow = func(sallyport.Action) *sallyport.Problem {
			asked.Add(1)
			return sallyport.Denied("no", "")
		}
	})
	c := h.dial()
	for range 3 * maxDenials {
		if _, err := c.Dial("tcp", "127.0.0.1:1"); err == nil {
			t.Fatal("forwarded")
		}
	}
	c.Close()
	eventually(t, "the end", func() bool { h.gate.mu.Lock(); defer h.gate.mu.Unlock(); return h.gate.ended == 1 })
	if n := asked.Load(); n != maxDenials {
		t.Errorf("the gate was asked %d times", n)
	}
}

// TestForwardBounds: connections and listeners of one client are counted, and a
// place comes back when both sides have closed.
func TestForwardBounds(t *testing.T) {
	h := newHost(t, func(h *host) { h.server.MaxForwards, h.server.MaxListeners, h.server.MaxForwardsInAll = 3, 2, 5 })
	l := echo(t, "tcp", "127.0.0.1:0")
	c, other := h.dial(), h.dial()
	var open []net.Conn
	for range 3 {
		conn, err := c.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, conn)
	}
	if _, err := c.Dial("tcp", l.Addr().String()); err == nil || !strings.Contains(err.Error(), "too many") {
		t.Errorf("a fourth: %v", err)
	}
	for range 2 {
		if _, err := other.Dial("tcp", l.Addr().String()); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := other.Dial("tcp", l.Addr().String()); err == nil {
		t.Error("more than all may have together")
	}
	open[0].Close()
	eventually(t, "a place", func() bool {
		conn, err := c.Dial("tcp", l.Addr().String())
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	for range 2 {
		if _, err := c.Listen("tcp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.Listen("tcp", "127.0.0.1:0"); err == nil {
		t.Error("a third listener")
	}
}

// TestForwardsEndWithTheSession: a lock cuts what is forwarded within a second,
// though nobody closes anything.
func TestForwardsEndWithTheSession(t *testing.T) {
	ctx, lock := context.WithCancelCause(context.Background())
	h := newHost(t, func(h *host) { h.gate.ctx = ctx })
	far, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	c := h.dial()
	if _, err := c.Dial("tcp", far.Addr().String()); err != nil {
		t.Fatal(err)
	}
	conn, err := far.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	remote, err := c.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	locked := time.Now()
	lock(sallyport.Denied("a lock is in force", ""))
	waitFor(t, "the forwarded connection to end", func() {
		if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("the far end sees %v, which is not a stream that broke off", err)
		}
	})
	eventually(t, "the listener to end", func() bool {
		_, err := net.Dial("tcp", remote.Addr().String())
		return errors.Is(err, syscall.ECONNREFUSED)
	})
	t.Logf("ended after %v", time.Since(locked))
}

// TestForwardedDataWithoutMeaning: a client that sends extended data where bytes
// are forwarded loses its connection.
func TestForwardedDataWithoutMeaning(t *testing.T) {
	h := newHost(t, nil)
	far, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	c := h.dial()
	ch, requests, err := c.OpenChannel("direct-tcpip", ssh.Marshal(directTCP{Host: "127.0.0.1", Port: uint32(far.Addr().(*net.TCPAddr).Port), OriginHost: "127.0.0.1", OriginPort: 1}))
	if err != nil {
		t.Fatal(err)
	}
	go ssh.DiscardRequests(requests)
	if _, err := ch.Stderr().Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the end of the connection", func() { _ = c.Wait() })
}

// TestForwardClosedByClient: a far end that sends nothing and never closes does
// not keep a place that its client has given up.
func TestForwardClosedByClient(t *testing.T) {
	h := newHost(t, func(h *host) { h.server.MaxForwards = 1 })
	far, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	c := h.dial()
	for range 3 {
		var conn net.Conn
		eventually(t, "a place", func() bool {
			var err error
			conn, err = c.Dial("tcp", far.Addr().String())
			return err == nil
		})
		there, err := far.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer there.Close()
		conn.Close()
	}
}

// TestMalformedForwards: what is no address is refused, and the connection lives.
func TestMalformedForwards(t *testing.T) {
	h := newHost(t, nil)
	c := h.dial()
	for name, payload := range map[string][]byte{
		"empty": nil, "cut": {0, 0, 0, 9, 'a'}, "no host": ssh.Marshal(directTCP{Port: 1}), "no port": ssh.Marshal(directTCP{Host: "a"}),
		"port": ssh.Marshal(directTCP{Host: "a", Port: 1 << 16}), "newline": ssh.Marshal(directTCP{Host: "a\nb", Port: 1}),
		"long": ssh.Marshal(directTCP{Host: strings.Repeat("a", 300), Port: 1}), "slash": ssh.Marshal(directTCP{Host: "/etc", Port: 1}),
	} {
		if _, _, err := c.OpenChannel("direct-tcpip", payload); err == nil || !strings.Contains(err.Error(), "malformed") {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, payload := range map[string][]byte{
		"empty": nil, "no path": ssh.Marshal(directUnix{}), "zero": ssh.Marshal(directUnix{Path: "/a\x00b"}), "long": ssh.Marshal(directUnix{Path: "/" + strings.Repeat("a", 200)}),
	} {
		if _, _, err := c.OpenChannel("direct-streamlocal@openssh.com", payload); err == nil || !strings.Contains(err.Error(), "malformed") {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range []string{"tcpip-forward", "cancel-tcpip-forward", "streamlocal-forward@openssh.com", "cancel-streamlocal-forward@openssh.com"} {
		for _, payload := range [][]byte{nil, {0}, {0xff, 0xff, 0xff, 0xff}, ssh.Marshal(listenTCP{Host: "x", Port: 1 << 17}), str("")} {
			if ok, _, err := c.SendRequest(name, true, payload); err != nil || ok {
				t.Errorf("%s %x: %v, %v", name, payload, ok, err)
			}
		}
	}
	s, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	if got := runOn(t, s, "echo on"); got.out != "on\n" {
		t.Errorf("got %+v", got)
	}
}
