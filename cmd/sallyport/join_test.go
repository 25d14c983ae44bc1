package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/client"
)

// TestTokenThatOthersRead: a join token that every user of the machine could read
// was taken without a word.
func TestTokenThatOthersRead(t *testing.T) {
	for mode, warned := range map[os.FileMode]string{0o600: "", 0o400: "", 0o640: "0640", 0o604: "0604", 0o644: "0644"} {
		dir := t.TempDir()
		file := filepath.Join(dir, "token")
		if err := errors.Join(os.WriteFile(file, []byte("secret\n"), 0o600), os.Chmod(file, mode)); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		n := &node{log: slog.New(slog.NewTextHandler(&out, nil))}
		gone, cancel := context.WithCancel(t.Context())
		cancel() // nobody is there to join
		hc := client.HostConfig{Dir: filepath.Join(dir, "agent"), Kind: sallyport.KindAgent, Name: "host", Addresses: func() []string { return []string{"127.0.0.1:1"} }}
		if _, err := n.join(gone, hc, joinConfig{TokenFile: file, CAPin: "sha256:" + strings.Repeat("0", 64)}); err == nil {
			t.Fatal("joined nobody")
		}
		got := out.String()
		if n := strings.Count(got, "chmod 600"); warned == "" && n != 0 || warned != "" && (n != 1 || !strings.Contains(got, file) || !strings.Contains(got, warned)) {
			t.Errorf("mode %04o: %s", mode, got)
		}
		if strings.Contains(got, "secret") {
			t.Errorf("the log holds the token: %s", got)
		}
	}
}

// TestJoinSaysWhy: of an address at which nobody answers, and of a name that the DNS
// does not know, the log had the same word, again and again.
func TestJoinSaysWhy(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	free := l.Addr().String()
	l.Close()
	dir := t.TempDir()
	file := filepath.Join(dir, "token")
	if err := os.WriteFile(file, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	out := &firstSaid{then: cancel}
	n := &node{log: slog.New(slog.NewTextHandler(out, nil))}
	hc := client.HostConfig{Dir: filepath.Join(dir, "agent"), Kind: sallyport.KindAgent, Name: "host", Addresses: func() []string { return []string{free} }}
	if _, err := n.join(ctx, hc, joinConfig{TokenFile: file, CAPin: "sha256:" + strings.Repeat("0", 64)}); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if !strings.Contains(out.line, "cause=") || !strings.Contains(out.line, syscall.ECONNREFUSED.Error()) || strings.Contains(out.line, "secret") {
		t.Error(out.line)
	}
}

// firstSaid keeps the first that is written, and does something then.
type firstSaid struct {
	line string
	then func()
}

func (f *firstSaid) Write(b []byte) (int, error) {
	if f.line == "" {
		f.line = string(b)
		f.then()
	}
	return len(b), nil
}

// TestAgentReachesAuthByProxy: the tunnel went by HTTPS_PROXY, and the agent's own
// way to auth did not: where only the proxy leads out it never joined.
func TestAgentReachesAuthByProxy(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	asked, done := make(chan string, 16), make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.SetDeadline(time.Now().Add(time.Minute))
			if req, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
				select {
				case asked <- req.Method + " " + req.Host:
				default:
				}
			}
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	t.Setenv("HTTPS_PROXY", "http://"+l.Addr().String())
	t.Setenv("NO_PROXY", "inside.test")
	dir := t.TempDir()
	token := filepath.Join(dir, "token")
	if err := os.WriteFile(token, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	open := func(ctx context.Context, gateway string) error {
		cfg := &config{DataDir: filepath.Join(dir, gateway[:2]), Roles: []string{roleAgent}, Agent: agentConfig{
			Gateways: []string{gateway}, Join: joinConfig{TokenFile: token, CAPin: "sha256:" + strings.Repeat("0", 64)}}}
		n := newNode(cfg, slog.New(slog.DiscardHandler))
		return n.openAgent(ctx, false)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- open(ctx, "gw.test:443") }()
	select {
	case got := <-asked:
		if got != "CONNECT gw.test:443" {
			t.Errorf("asked for %q", got)
		}
	case <-time.After(time.Minute):
		t.Error("the proxy was not asked")
	}
	cancel()
	if err := <-ended; err == nil {
		t.Error("joined nobody")
	}
	for len(asked) > 0 {
		<-asked
	}
	// Nobody is there; that the proxy is not asked is what counts.
	brief, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := open(brief, "inside.test:443"); err == nil {
		t.Error("joined nobody")
	}
	if len(asked) > 0 {
		t.Errorf("asked for %q, which NO_PROXY excepts", <-asked)
	}
}
