package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/cmd/internal/profile"
)

type logoutCmd struct{}

// Run deletes the profile that --proxy names, or all; nobody to log out is no error.
func (c *logoutCmd) Run(p *program) error {
	return p.home.Locked(func() error {
		list, err := p.leaving()
		if err != nil {
			return err
		}
		for _, f := range list {
			if err := p.removeLogin(f); err != nil {
				return err
			}
			if p.ProxyAddr != "" || p.User != "" {
				fmt.Fprintf(p.stdout, "Logged out %s from %s.\n", f.User, f.Name())
			}
		}
		switch {
		case len(list) == 0:
			fmt.Fprintln(p.stdout, "All users logged out.")
		case p.ProxyAddr == "" && p.User == "":
			fmt.Fprintln(p.stdout, "Logged out all users from all proxies.")
		}
		return nil
	})
}

// leaving are the profiles to log out.
func (p *program) leaving() ([]profile.Profile, error) {
	list, err := p.home.List()
	if p.ProxyAddr != "" {
		var f profile.Profile
		f, err = p.selected()
		list = []profile.Profile{f}
	}
	if err != nil || p.User == "" {
		return list, err
	}
	var out []profile.Profile
	for _, f := range list {
		if f.User == p.User {
			out = append(out, f)
		}
	}
	if len(out) == 0 && len(list) > 0 {
		return nil, problem(sallyport.ErrNotFound, fmt.Sprintf("user %q is not logged in", p.User), "sally status shows who is")
	}
	return out, nil
}

// removeLogin deletes a profile's keys, agent entries and service file
// sections, and the profile itself. The keys go first: what fails after them
// harms nobody.
func (p *program) removeLogin(f profile.Profile) error {
	databases := p.databasesOf(f)
	err := errors.Join(os.RemoveAll(p.home.KeyDir(f)), p.home.Delete(f), p.home.SetKnownHosts(f, nil), forgetKube(f))
	for _, name := range databases {
		err = errors.Join(err, removeService(f, name))
	}
	a, closer, aerr := sshAgent()
	if aerr != nil {
		return err // no agent: nothing of ours in it
	}
	defer closer()
	return errors.Join(err, removeFromAgent(a, f))
}
