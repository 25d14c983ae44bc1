package ssh

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
)

// maxIdle is the bar: what an idle session may cost the agent beside the shell.
const maxIdle = 2 << 20

// serveEnv makes the test binary a server alone, so that its memory can be seen
// without the clients'.
const serveEnv = "SALLYPORT_SSH_TEST_SERVER"

// BenchmarkIdleSession measures the agent's resident memory per idle session: a
// connection with a terminal and a login shell that wait.
func BenchmarkIdleSession(b *testing.B) {
	per := idleMemory(b, 200)
	for b.Loop() {
	}
	b.ReportMetric(float64(per)/1024, "KiB/session")
	b.ReportMetric(0, "ns/op")
}

func TestIdleMemory(t *testing.T) {
	if raceEnabled() {
		t.Skip("the race detector's own memory would be measured")
	}
	if per := idleMemory(t, 40); per > maxIdle {
		t.Errorf("%d KiB per idle session, at most %d", per>>10, maxIdle>>10)
	}
}

// idleMemory opens connections with idle shells and says what each costs.
func idleMemory(t testing.TB, sessions int) int {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	h := &host{t: t, login: "tester", userCA: newKey(t), hostCA: newKey(t)}
	dir := t.TempDir()
	writePrivate(t, filepath.Join(dir, "user"), h.userCA)
	writePrivate(t, filepath.Join(dir, "host"), h.hostCA)
	cmd := exec.Command(exe, "-test.run=^TestServeAlone$")
	cmd.Env = append(os.Environ(), serveEnv+"="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		in.Close()
		_ = cmd.Wait()
	}()
	if h.addr, err = bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	h.addr = strings.TrimSpace(h.addr)
	h.idleShell() // what all sessions share is there afterwards
	before := resident(t, cmd.Process.Pid)
	for range sessions {
		h.idleShell()
	}
	return (resident(t, cmd.Process.Pid) - before) / sessions
}

// idleShell opens a shell on a terminal and waits for its prompt.
func (h *host) idleShell() {
	h.t.Helper()
	s := h.session()
	if err := s.RequestPty("xterm", 24, 80, ssh.TerminalModes{}); err != nil {
		h.t.Fatal(err)
	}
	out, err := s.StdoutPipe()
	if err != nil {
		h.t.Fatal(err)
	}
	if err := s.Shell(); err != nil {
		h.t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil {
		h.t.Fatal(err)
	}
}

func resident(t testing.TB, pid int) int {
	t.Helper()
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		t.Skip("no /proc")
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.Atoi(strings.Fields(rest)[0])
			if err != nil {
				t.Fatal(err)
			}
			return kib << 10
		}
	}
	t.Fatal("no VmRSS")
	return 0
}

// TestServeAlone is the server of idleMemory, in a process of its own.
func TestServeAlone(t *testing.T) {
	dir := os.Getenv(serveEnv)
	if dir == "" {
		t.Skip("it is a helper of other tests")
	}
	h := newHost(t, func(h *host) {
		h.userCA, h.hostCA = readKey(t, dir, "user"), readKey(t, dir, "host")
		key := hostSigner(t, h.hostCA)
		h.server.HostSigner = func() (ssh.Signer, error) { return key, nil }
	})
	fmt.Println(h.addr)
	_, _ = io.Copy(io.Discard, os.Stdin)
}

func readKey(t testing.TB, dir, name string) ssh.Signer {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	s, err := ssh.ParsePrivateKey(text)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// BenchmarkExec is a connection of its own for each command.
func BenchmarkExec(b *testing.B) {
	h := newHost(b, nil)
	signer := h.signer(nil)
	for b.Loop() {
		c, err := h.dialAs(h.login, signer)
		if err != nil {
			b.Fatal(err)
		}
		s, err := c.NewSession()
		if err != nil {
			b.Fatal(err)
		}
		if err := s.Run("true"); err != nil {
			b.Fatal(err)
		}
		c.Close()
	}
}

// BenchmarkExecSameConnection is a channel for each command.
func BenchmarkExecSameConnection(b *testing.B) {
	c := newHost(b, nil).dial()
	for b.Loop() {
		s, err := c.NewSession()
		if err != nil {
			b.Fatal(err)
		}
		if err := s.Run("true"); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkOutput is bytes from a program to the client.
func BenchmarkOutput(b *testing.B) {
	const size = 64 << 20
	c := newHost(b, nil).dial()
	b.SetBytes(size)
	for b.Loop() {
		s, err := c.NewSession()
		if err != nil {
			b.Fatal(err)
		}
		s.Stdout = io.Discard
		if err := s.Run("head -c " + strconv.Itoa(size) + " /dev/zero"); err != nil {
			b.Fatal(err)
		}
	}
}
