package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
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
