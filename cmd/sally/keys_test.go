package main

import (
	"bytes"
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/cmd/internal/profile"
)

// TestReadWhileLogin: who read a login's files while the next one replaced them, one
// by one, met a key and the certificate of another. The one that is read first is a
// pipe here, which gives what was there before.
func TestReadWhileLogin(t *testing.T) {
	tls := func(p *program, f profile.Profile) error {
		_, err := p.home.Credentials(f)
		return err
	}
	ssh := func(p *program, f profile.Profile) error {
		_, done, err := p.signer(f)
		if err != nil {
			return err
		}
		return done()
	}
	for _, tt := range []struct {
		name  string
		where string // --add-keys-to-agent
		late  func(*program, profile.Profile) string
		read  func(*program, profile.Profile) error
	}{
		{"tls", "no", func(p *program, f profile.Profile) string { return p.home.KeyPath(f, ".crt") }, tls},
		{"ssh", "no", func(p *program, f profile.Profile) string { return p.home.KeyPath(f, "") }, ssh},
		{"ssh by the agent alone", "only", func(p *program, f profile.Profile) string { return p.home.SSHCertPath(f) }, ssh},
	} {
		p := newProgram(t)
		startAgent(t)
		p.AddKeysToAgent = tt.where
		f, err := p.login(alice())
		if err != nil {
			t.Fatal(err)
		}
		late := tt.late(p, f)
		before, err := os.ReadFile(late)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.login(alice()); err != nil {
			t.Fatal(err)
		}
		after, err := os.ReadFile(late)
		if err != nil || bytes.Equal(before, after) {
			t.Fatalf("%s: %v, or the login changed nothing", tt.name, err)
		}
		got := make(chan error, 1)
		err = p.home.Locked(func() error {
			if err := errors.Join(os.Remove(late), unix.Mkfifo(late, 0o600)); err != nil {
				return err
			}
			go func() { got <- tt.read(p, f) }()
			// It is open when it is being read.
			pipe, err := os.OpenFile(late, os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			_, err = pipe.Write(before)
			return errors.Join(err, profile.WriteFile(late, after), pipe.Close())
		})
		if err := errors.Join(err, <-got); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}
