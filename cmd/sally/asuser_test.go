package main

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/sallyport/sallyport"
)

// TestAsUser: --user and TELEPORT_USER were not heard by anything but a login: what
// was asked as bob was done as whoever had logged in last.
func TestAsUser(t *testing.T) {
	p := newProgram(t)
	bob := alice()
	bob.user = "bob"
	for _, w := range []who{bob, alice()} {
		if _, err := p.login(w); err != nil {
			t.Fatal(err)
		}
	}
	for user, want := range map[string]string{"": "alice", "alice": "alice", "bob": "bob"} {
		p.User = user
		c, err := p.loadValid()
		if err != nil || c.Identity.Name != want || c.Profile.User != want {
			t.Errorf("--user=%q: %+v, %v", user, c, err)
		}
		out := &bytes.Buffer{}
		p.stdout = out
		if err := (&statusCmd{Format: "text"}).Run(p); err != nil || !strings.Contains(out.String(), "Logged in as:       "+want) {
			t.Errorf("status --user=%q: %v\n%s", user, err, out)
		}
	}
	for _, user := range []string{"carol", "../bob", "a b"} {
		p.User = user
		var told *sallyport.Problem
		if c, err := p.loadValid(); !errors.As(err, &told) || user == "carol" && !strings.Contains(told.Hint, "--user=carol") {
			t.Errorf("--user=%q: %+v, %v", user, c, err)
		}
	}
}

// TestOtherPin: after a cluster was made anew at an address, a login with its pin said
// that all was well, and nothing worked.
func TestOtherPin(t *testing.T) {
	p := newProgram(t)
	f, err := p.login(alice())
	if err != nil {
		t.Fatal(err)
	}
	pin, other := "sha256:"+strings.Repeat("ab", 32), "sha256:"+strings.Repeat("cd", 32)
	f.CAPins = []string{pin}
	must(t, p.home.Save(f))
	for given, want := range map[string]bool{"": true, pin: true, strings.ToUpper(pin): true, other: false} {
		p.CAPin = given
		if _, done, err := (&loginCmd{}).target(p); err != nil || done != want {
			t.Errorf("--ca-pin=%s: %v, %v", given, done, err)
		}
	}
}
