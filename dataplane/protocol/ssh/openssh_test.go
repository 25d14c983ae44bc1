package ssh

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/creack/pty"
	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/session"
	"github.com/sallyport/sallyport/tools/peers"
	"golang.org/x/crypto/ssh"
)

// stock is OpenSSH's own client with alice's certificate.
type stock struct {
	*host
	dir string
}

func newStock(t *testing.T, change func(*host)) *stock {
	t.Helper()
	if _, err := exec.LookPath("ssh"); err != nil {
		peers.Missing(t, "ssh")
	}
	h := newHost(t, change)
	s := &stock{host: h, dir: t.TempDir()}
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	_ = public
	writePrivate(t, filepath.Join(s.dir, "key"), privateSigner{signer, private})
	cert := h.certificate(signer.PublicKey(), nil)
	s.write("key-cert.pub", string(ssh.MarshalAuthorizedKey(cert)))
	s.write("known_hosts", "@cert-authority * "+string(ssh.MarshalAuthorizedKey(h.hostCA.PublicKey())))
	s.write("config", fmt.Sprintf("Host web1\n HostName 127.0.0.1\n Port %s\n User %s\n IdentityFile %s/key\n CertificateFile %s/key-cert.pub\n"+
		" IdentitiesOnly yes\n UserKnownHostsFile %s/known_hosts\n GlobalKnownHostsFile /dev/null\n StrictHostKeyChecking yes\n"+
		" HostKeyAlias web1\n BatchMode yes\n IdentityAgent none\n LogLevel INFO\n", port(h.addr), h.login, s.dir, s.dir, s.dir))
	return s
}

func (s *stock) write(name, text string) {
	s.t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// privateSigner keeps the private key beside the signer, to be written down.
type privateSigner struct {
	ssh.Signer
	key ed25519.PrivateKey
}

// writePrivate writes a key file for OpenSSH, with its .pub.
func writePrivate(t testing.TB, file string, signer ssh.Signer) {
	t.Helper()
	p, ok := signer.(privateSigner)
	if !ok {
		t.Fatal("the private key is not known")
	}
	block, err := ssh.MarshalPrivateKey(p.key, "test")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file+".pub", ssh.MarshalAuthorizedKey(signer.PublicKey()), 0o600); err != nil {
		t.Fatal(err)
	}
}

func decode64(t testing.TB, s string) []byte {
	t.Helper()
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// command is "ssh -F config …" or another program of the family.
func (s *stock) command(program string, args ...string) *exec.Cmd {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	s.t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, program, append([]string{"-F", filepath.Join(s.dir, "config")}, args...)...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "LANG=C")
	return cmd
}

func (s *stock) run(in []byte, args ...string) result {
	s.t.Helper()
	var out, errs bytes.Buffer
	cmd := s.command("ssh", args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(in), &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		s.t.Errorf("ssh %q: %v", args, err)
	}
	return result{out: out.String(), err: errs.String(), status: cmd.ProcessState.ExitCode()}
}

func TestOpenSSH(t *testing.T) {
	s := newStock(t, nil)
	for _, c := range []struct {
		args     []string
		in       string
		out, err string // err: contained
		status   int
	}{
		{args: []string{"web1", "true"}},
		{args: []string{"web1", "exit 1"}, status: 1},
		{args: []string{"web1", "exit 130"}, status: 130},
		{args: []string{"web1", "kill -9 $$"}, status: 255},
		{args: []string{"web1", "echo a; echo b >&2"}, out: "a\n", err: "b\n"},
		{args: []string{"web1", "cat"}, in: "in\n", out: "in\n"},
		{args: []string{"-T", "web1"}, in: "echo from a shell; exit 5\n", out: "from a shell\n", status: 5},
		{args: []string{"-n", "web1", "cat; echo end"}, out: "end\n"},
		{args: []string{"-o", "SetEnv=LC_TEST=1 LD_PRELOAD=/x TZ=UTC", "web1", "echo $LC_TEST-$LD_PRELOAD-$TZ"}, out: "1--UTC\n"},
		{args: []string{"-W", "127.0.0.1:1", "web1"}, status: 255, err: "open failed: connect failed: connection refused"},
		{args: []string{"-s", "web1", "netconf"}, status: 1, err: `this version does not serve the subsystem "netconf"`},
		{args: []string{"-o", "ControlMaster=no", "-o", "ServerAliveInterval=1", "-o", "ServerAliveCountMax=60", "web1", "sleep 1.5; echo alive"}, out: "alive\n"},
		{args: []string{"-o", "RekeyLimit=1M", "web1", "head -c 5000000 /dev/zero | tr '\\0' x | wc -c"}, out: "5000000\n"},
		{args: []string{"-o", "Ciphers=chacha20-poly1305@openssh.com", "-o", "KexAlgorithms=curve25519-sha256", "web1", "echo on"}, out: "on\n"},
		{args: []string{"-o", "Ciphers=aes256-ctr", "-o", "MACs=hmac-sha2-512-etm@openssh.com", "-o", "KexAlgorithms=ecdh-sha2-nistp256", "web1", "echo on"}, out: "on\n"},
		{args: []string{"-o", "Ciphers=aes128-cbc", "web1", "echo on"}, status: 255, err: "no matching cipher"},
		{args: []string{"-o", "KexAlgorithms=diffie-hellman-group14-sha256", "web1", "echo on"}, status: 255, err: "no matching key exchange"},
		{args: []string{"-C", "web1", "echo on"}, out: "on\n"}, // compression is asked for and not given
		{args: []string{"-l", "root2", "web1", "true"}, status: 255, err: `ERROR: the certificate does not allow login "root2"`},
	} {
		t.Run(strings.Join(c.args, " "), func(t *testing.T) {
			got := s.run([]byte(c.in), c.args...)
			if got.out != c.out || got.status != c.status || !strings.Contains(got.err, c.err) || c.err == "" && got.err != "" {
				t.Errorf("got %+v, want %+v", got, c)
			}
		})
	}
}

func TestOpenSSHBulk(t *testing.T) {
	s := newStock(t, nil)
	data := make([]byte, 20<<20)
	if _, err := rand.Read(data); err != nil {
		t.Fatal(err)
	}
	if got := s.run(data, "web1", "cat"); got.out != string(data) || got.status != 0 || got.err != "" {
		t.Errorf("%d bytes came back, status %d, stderr %q", len(got.out), got.status, got.err)
	}
}

// TestOpenSSHDenial: the reason of a denial stands on the person's terminal.
func TestOpenSSHDenial(t *testing.T) {
	s := newStock(t, func(h *host) {
		h.gate.refuse = func(session.Use) *sallyport.Problem {
			return sallyport.Denied("no role of yours allows login tester on web1", "sally request create")
		}
	})
	got := s.run(nil, "web1", "true")
	if got.status != 255 || !strings.Contains(got.err, "ERROR: no role of yours allows login tester on web1\r\nhint: sally request create\r\n") {
		t.Errorf("got %+v", got)
	}
}

// onTerminal runs ssh under a terminal of the test's own.
func (s *stock) onTerminal(size *pty.Winsize, args ...string) (*os.File, *exec.Cmd) {
	s.t.Helper()
	cmd := s.command("ssh", args...)
	cmd.Env = append(cmd.Env, "TERM=xterm-256color")
	f, err := pty.StartWithSize(cmd, size)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { f.Close() })
	return f, cmd
}

// until reads until a text has come.
func until(t *testing.T, f *os.File, text string) string {
	t.Helper()
	var got strings.Builder
	buf := make([]byte, 4096)
	waitFor(t, text, func() {
		for !strings.Contains(got.String(), text) {
			n, err := f.Read(buf)
			got.Write(buf[:n])
			if err != nil {
				t.Errorf("want %q, got %q: %v", text, got.String(), err)
				return
			}
		}
	})
	return got.String()
}

func TestOpenSSHTerminal(t *testing.T) {
	s := newStock(t, nil)
	f, cmd := s.onTerminal(&pty.Winsize{Rows: 31, Cols: 99}, "web1")
	fmt.Fprint(f, "PS1='$ '; stty size; echo T=$TERM; tty; echo rea''dy\n")
	if got := until(t, f, "ready\r\n"); !strings.Contains(got, "31 99") || !strings.Contains(got, "T=xterm-256color") || !strings.Contains(got, "/dev/pts/") {
		t.Errorf("got %q", got)
	}
	if err := pty.Setsize(f, &pty.Winsize{Rows: 50, Cols: 120}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the window change", func() bool {
		fmt.Fprint(f, "stty size; echo o''k\n")
		return strings.Contains(until(t, f, "ok\r\n"), "50 120")
	})
	fmt.Fprint(f, "sh -c 'echo the''re; exec sleep 600'\n")
	until(t, f, "there\r\n")
	fmt.Fprint(f, "\x03echo after $?\n")
	until(t, f, "after 130\r\n")
	fmt.Fprint(f, "exit 42\n")
	waitFor(t, "ssh to end", func() { _ = cmd.Wait() })
	if cmd.ProcessState.ExitCode() != 42 {
		t.Errorf("status %d", cmd.ProcessState.ExitCode())
	}
}

func TestOpenSSHForcedTerminal(t *testing.T) {
	s := newStock(t, nil)
	if got := s.run(nil, "-tt", "web1", "tty; echo out; echo err >&2; exit 3"); got.status != 3 ||
		!strings.HasPrefix(got.out, "/dev/pts/") || !strings.HasSuffix(got.out, "out\r\nerr\r\n") {
		t.Errorf("got %+v", got)
	}
}

// TestOpenSSHKilled: the remote program dies with the local client.
func TestOpenSSHKilled(t *testing.T) {
	s := newStock(t, nil)
	cmd := s.command("ssh", "web1", "echo $$; exec sleep 61")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Fscan(out, &pid); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	eventually(t, "the program to die", func() bool { return !alive(pid) })
}

// TestOpenSSHMultiplexing: several sessions on one connection, by ControlMaster.
func TestOpenSSHMultiplexing(t *testing.T) {
	s := newStock(t, nil)
	socket := filepath.Join(s.dir, "s")
	master := s.command("ssh", "-M", "-N", "-S", socket, "web1")
	if err := master.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = master.Process.Kill()
		_ = master.Wait()
	}()
	eventually(t, "the master", func() bool { _, err := os.Stat(socket); return err == nil })
	for i := range 5 {
		if got := s.run(nil, "-S", socket, "web1", fmt.Sprintf("exit %d", i)); got.status != i {
			t.Errorf("session %d: %+v", i, got)
		}
	}
	if n := len(s.gate.named("session.start")); n != 1 {
		t.Errorf("%d sessions for one connection", n)
	}
}
