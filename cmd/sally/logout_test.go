package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sallyport/sallyport"
)

// TestLogoutAll: one login that could not be ended altogether kept all others in.
func TestLogoutAll(t *testing.T) {
	p := newProgram(t)
	agent := startAgent(t)
	other := alice()
	other.proxy, other.cluster = "other.test:443", "other.test"
	for _, w := range []who{other, alice()} {
		if _, err := p.login(w); err != nil {
			t.Fatal(err)
		}
	}
	agent.unlisted = errors.New("busy")
	var said strings.Builder
	p.stdout = &said
	err := (&logoutCmd{}).Run(p)
	if err == nil || !strings.Contains(err.Error(), "gw.test") || !strings.Contains(err.Error(), "other.test") || said.Len() > 0 {
		t.Errorf("%v, said %q", err, said.String())
	}
	if list, err := p.home.List(); err != nil || len(list) > 0 {
		t.Errorf("left: %+v, %v", list, err)
	}
}

// TestLogoutOfUsersBefore: who had logged in at the same gateway before as another
// user left a key in ssh-agent and sections in the service file.
func TestLogoutOfUsersBefore(t *testing.T) {
	p := newProgram(t)
	agent := startAgent(t)
	file := filepath.Join(t.TempDir(), "services")
	t.Setenv("PGSERVICEFILE", file)
	const theirs = "[theirs]\nhost=a\n"
	if err := os.WriteFile(file, []byte(theirs), 0o600); err != nil {
		t.Fatal(err)
	}
	foreignKey(t, agent, "mine@home")
	if err := p.dbLogin(someDatabase(t, p)); err != nil {
		t.Fatal(err)
	}
	bob := alice()
	bob.user = "bob"
	if _, err := p.login(bob); err != nil {
		t.Fatal(err)
	}
	if err := (&logoutCmd{}).Run(p); err != nil {
		t.Fatal(err)
	}
	if got := agent.comments(t); len(got) != 1 || got[0] != "mine@home" {
		t.Errorf("keys: %q", got)
	}
	if b, err := os.ReadFile(file); err != nil || strings.TrimSpace(string(b)) != strings.TrimSpace(theirs) {
		t.Errorf("the service file: %q, %v", b, err)
	}
}

// TestLogoutOfOne: who was not the last to log in at a gateway was said not to be logged
// in, and his keys stayed good for --user.
func TestLogoutOfOne(t *testing.T) {
	p := newProgram(t)
	agent := startAgent(t)
	file := filepath.Join(t.TempDir(), "services")
	t.Setenv("PGSERVICEFILE", file)
	db, both := someDatabase(t, p), someDatabase(t, p)
	both.name, both.service = "shop", serviceName(both.cred.Profile, "shop")
	both.cert, both.key = databaseFile(p.home, both.cred.Profile, "shop", ".crt"), databaseFile(p.home, both.cred.Profile, "shop", ".key")
	must(t, p.dbLogin(db))
	must(t, p.dbLogin(both))
	bob := alice()
	bob.user = "bob"
	f, err := p.login(bob)
	if err != nil {
		t.Fatal(err)
	}
	both.cred.Profile.User, both.cert, both.key = "bob", databaseFile(p.home, f, "shop", ".crt"), databaseFile(p.home, f, "shop", ".key")
	must(t, p.dbLogin(both))
	p.User = "alice"
	if err := (&logoutCmd{}).Run(p); err != nil {
		t.Fatal(err)
	}
	if left, err := filepath.Glob(p.home.KeyPath(db.cred.Profile, "*")); err != nil || len(left) > 0 {
		t.Errorf("left: %q, %v", left, err)
	}
	if b, err := os.ReadFile(file); err != nil || !strings.Contains(string(b), "["+both.service+"]") || strings.Contains(string(b), "["+db.service+"]") {
		t.Errorf("services: %q, %v", b, err)
	}
	if got := agent.comments(t); len(got) != 1 || got[0] != agentComment(f) {
		t.Errorf("keys: %q", got)
	}
	if err := (&logoutCmd{}).Run(p); !errors.Is(err, sallyport.ErrNotFound) {
		t.Errorf("once more: %v", err)
	}
	p.User = ""
	if c, err := p.loadValid(); err != nil || c.Identity.Name != "bob" {
		t.Errorf("bob: %+v, %v", c, err)
	}
}
