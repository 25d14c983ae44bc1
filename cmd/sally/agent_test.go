package main

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"github.com/sallyport/sallyport"
)

// watched is a real agent that remembers what it was asked to add.
type watched struct {
	agent.ExtendedAgent
	mu       sync.Mutex
	added    []agent.AddedKey
	refuse   error
	unlisted error
}

func (w *watched) List() ([]*agent.Key, error) {
	w.mu.Lock()
	unlisted := w.unlisted
	w.mu.Unlock()
	if unlisted != nil {
		return nil, unlisted
	}
	return w.ExtendedAgent.List()
}

func (w *watched) Add(k agent.AddedKey) error {
	w.mu.Lock()
	w.added = append(w.added, k)
	refuse := w.refuse
	w.mu.Unlock()
	if refuse != nil {
		return refuse
	}
	return w.ExtendedAgent.Add(k)
}

func (w *watched) comments(t *testing.T) []string {
	t.Helper()
	keys, err := w.List()
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, k := range keys {
		out = append(out, k.Comment)
	}
	slices.Sort(out)
	return out
}

// startAgent serves an agent on a Unix socket, which SSH_AUTH_SOCK names.
func startAgent(t *testing.T) *watched {
	t.Helper()
	dir, err := os.MkdirTemp("", "agent")
	if err != nil {
		t.Fatal(err)
	}
	w := &watched{ExtendedAgent: agent.NewKeyring().(agent.ExtendedAgent)}
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	var served sync.WaitGroup
	served.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			served.Go(func() {
				agent.ServeAgent(w, c)
				c.Close()
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		served.Wait()
		os.RemoveAll(dir)
	})
	t.Setenv("SSH_AUTH_SOCK", filepath.Join(dir, "s"))
	return w
}

func foreignKey(t *testing.T, w *watched, comment string) {
	t.Helper()
	_, k, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.ExtendedAgent.Add(agent.AddedKey{PrivateKey: &k, Comment: comment}); err != nil {
		t.Fatal(err)
	}
}

// TestAgent: our key comes with its certificate, a lifetime and our comment;
// only ours goes.
func TestAgent(t *testing.T) {
	p := newProgram(t)
	w := startAgent(t)
	for _, c := range []string{"mine@home", "teleport:gw.test:gw.test:alice", "sallyport:other.test:gw.test:alice", "sallyport:gw.test.b:gw.test:alice", "sallyport:gw.test::1:gw.test:alice", ""} {
		foreignKey(t, w, c)
	}
	before := w.comments(t)
	f, err := p.login(alice())
	if err != nil {
		t.Fatal(err)
	}
	const ours = "sallyport:gw.test:gw.test:alice"
	if got := w.comments(t); len(got) != len(before)+1 || !slices.Contains(got, ours) {
		t.Fatalf("keys: %q", got)
	}
	k := w.added[0]
	if want := uint32((12 * time.Hour).Seconds()); k.LifetimeSecs > want || k.LifetimeSecs < want-120 || k.Certificate == nil || k.Comment != ours {
		t.Errorf("added with lifetime %d, certificate %v, comment %q", k.LifetimeSecs, k.Certificate != nil, k.Comment)
	}
	if _, err := p.login(alice()); err != nil {
		t.Fatal(err)
	}
	if got := w.comments(t); len(got) != len(before)+1 {
		t.Errorf("after the second login: %q", got)
	}
	if err := p.removeLogin(f); err != nil {
		t.Fatal(err)
	}
	if got := w.comments(t); !slices.Equal(got, before) {
		t.Errorf("after the logout: %q, want %q", got, before)
	}
}

func TestAgentWhen(t *testing.T) {
	for _, tt := range []struct {
		when          string
		agent, refuse bool
		added         int
		fails         bool
		warns         bool
		onDisk        bool
	}{
		{when: "auto", agent: true, added: 1, onDisk: true},
		{when: "auto", onDisk: true},
		{when: "auto", agent: true, refuse: true, added: 1, warns: true, onDisk: true},
		{when: "no", agent: true, onDisk: true},
		{when: "yes", agent: true, added: 1, onDisk: true},
		{when: "yes", fails: true, onDisk: true},
		{when: "yes", agent: true, refuse: true, added: 1, fails: true, onDisk: true},
		{when: "only", agent: true, added: 1},
		{when: "only", fails: true},
		{when: "only", agent: true, refuse: true, added: 1, fails: true},
	} {
		p := newProgram(t)
		var said strings.Builder
		p.AddKeysToAgent, p.stderr = tt.when, &said
		w := &watched{}
		if tt.agent {
			w = startAgent(t)
		}
		if tt.refuse {
			w.refuse = errors.New("locked")
		}
		f, err := p.login(alice())
		if (err != nil) != tt.fails || len(w.added) != tt.added || strings.Contains(said.String(), "WARNING") != tt.warns {
			t.Errorf("%+v: %v, %d added, said %q", tt, err, len(w.added), said.String())
		}
		if _, err := os.Stat(p.home.KeyPath(f, "")); (err == nil) != tt.onDisk {
			t.Errorf("%+v: the private key on disk: %v", tt, err)
		}
	}
}

// TestAgentOnlyRefused: a login that must go to an agent that is not there, or
// does not take it, left the login before without its key.
func TestAgentOnlyRefused(t *testing.T) {
	for _, before := range []string{"auto", "only"} {
		for _, reached := range []bool{true, false} {
			p := newProgram(t)
			w := startAgent(t)
			p.AddKeysToAgent = before
			f, err := p.login(alice())
			if err != nil {
				t.Fatal(err)
			}
			want, done, err := p.signer(f)
			if err != nil {
				t.Fatal(err)
			}
			done()
			w.refuse = errors.New("locked")
			socket := os.Getenv("SSH_AUTH_SOCK")
			if !reached {
				t.Setenv("SSH_AUTH_SOCK", filepath.Join(t.TempDir(), "nobody"))
			}
			p.AddKeysToAgent = "only"
			later := alice()
			later.proxy = "gw.test:9443"
			if _, err := p.login(later); err == nil {
				t.Fatal("the login is good")
			}
			t.Setenv("SSH_AUTH_SOCK", socket)
			s, done, err := p.signer(f)
			if err != nil || !bytes.Equal(s.PublicKey().Marshal(), want.PublicKey().Marshal()) {
				t.Errorf("%s, reached %v: %v", before, reached, err)
				continue
			}
			done()
			if now, _ := p.home.Current(); now.WebProxyAddr != f.WebProxyAddr {
				t.Errorf("%s, reached %v: the profile is that of %s", before, reached, now.WebProxyAddr)
			}
		}
	}
}

// TestAgentOnly: a key that is only in the agent signs from there, and its
// absence is told.
func TestAgentOnly(t *testing.T) {
	p := newProgram(t)
	p.AddKeysToAgent = "only"
	w := startAgent(t)
	foreignKey(t, w, "mine@home")
	f, err := p.login(alice())
	if err != nil {
		t.Fatal(err)
	}
	s, done, err := p.signer(f)
	if err != nil {
		t.Fatal(err)
	}
	defer done()
	pub, err := ssh.ParsePublicKey(s.PublicKey().Marshal())
	cert, ok := pub.(*ssh.Certificate)
	if !ok || cert.KeyId != "alice" {
		t.Fatalf("%T %v", pub, err)
	}
	sig, err := s.Sign(rand.Reader, []byte("x"))
	if err != nil || cert.Key.Verify([]byte("x"), sig) != nil {
		t.Errorf("signature: %v", err)
	}
	if err := w.RemoveAll(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := p.signer(f); !errors.Is(err, sallyport.ErrUnauthorized) || !strings.Contains(err.Error(), "no longer there") {
		t.Errorf("gone from the agent: %v", err)
	}
	t.Setenv("SSH_AUTH_SOCK", "")
	if _, _, err := p.signer(f); !errors.Is(err, sallyport.ErrUnavailable) {
		t.Errorf("no agent: %v", err)
	}
}

// TestSaveLogin: what a login writes, with which modes; nothing of others is touched.
func TestSaveLogin(t *testing.T) {
	p := newProgram(t)
	ssh := filepath.Join(os.Getenv("HOME"), ".ssh")
	foreign := map[string]string{"id_ed25519": "KEY", "config": "Host x\n", "known_hosts": "a b c\n"}
	for name, text := range foreign {
		if err := errors.Join(os.MkdirAll(ssh, 0o755), os.WriteFile(filepath.Join(ssh, name), []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	f, err := p.login(alice())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	err = filepath.WalkDir(string(p.home), func(path string, e fs.DirEntry, err error) error {
		if err != nil || path == string(p.home) {
			return err
		}
		info, err := e.Info()
		if want := map[bool]fs.FileMode{true: 0o700, false: 0o600}[e.IsDir()]; err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: mode %v, %v", path, info.Mode(), err)
		}
		if !e.IsDir() {
			rel, _ := filepath.Rel(string(p.home), path)
			got = append(got, rel)
		}
		return nil
	})
	want := []string{"current-profile", "gw.test.yaml", "keys/gw.test/alice", "keys/gw.test/alice-ssh/gw.test-cert.pub", "keys/gw.test/alice.crt", "keys/gw.test/alice.key",
		"keys/gw.test/alice.pub", "keys/gw.test/cas/gw.test.pem", "known_hosts"}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%v:\n got %q\nwant %q", err, got, want)
	}
	if err := p.removeLogin(f); err != nil {
		t.Fatal(err)
	}
	for name, text := range foreign {
		if b, err := os.ReadFile(filepath.Join(ssh, name)); err != nil || string(b) != text {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(string(p.home), "*")); !slices.Equal(left, []string{filepath.Join(string(p.home), "keys")}) {
		t.Errorf("left: %q", left)
	}
}

// TestA29_AnswerStaysInside: the user's and the cluster's name come from the
// gateway; they never lead to other files.
func TestA29_AnswerStaysInside(t *testing.T) {
	for _, name := range []string{"../../../evil", "a/b", "..", "a\nb", ""} {
		for _, change := range []func(*who){func(w *who) { w.user = name }, func(w *who) { w.cluster = name }} {
			p := newProgram(t)
			w := alice()
			change(&w)
			f := p.profileOf(w)
			k, err := newKeyPair()
			if err != nil {
				t.Fatal(err)
			}
			m, err := alice().answer(k)
			if err != nil {
				t.Fatal(err)
			}
			if err := p.saveLogin(f, k, m); !errors.Is(err, sallyport.ErrInvalid) {
				t.Errorf("%q: %v", name, err)
			}
			if files, _ := os.ReadDir(string(p.home)); len(files) > 0 {
				t.Errorf("%q: files were written", name)
			}
		}
	}
}

func TestSignerFromDisk(t *testing.T) {
	p := newProgram(t)
	f, err := p.login(alice())
	if err != nil {
		t.Fatal(err)
	}
	s, done, err := p.signer(f)
	if err != nil {
		t.Fatal(err)
	}
	defer done()
	line, _ := os.ReadFile(p.home.SSHCertPath(f))
	want, _, _, _, err := ssh.ParseAuthorizedKey(line)
	if err != nil || !bytes.Equal(s.PublicKey().Marshal(), want.Marshal()) {
		t.Errorf("another key: %v", err)
	}
}
