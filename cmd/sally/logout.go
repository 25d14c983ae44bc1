package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/crypto/ssh/agent"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/cmd/internal/libpq"
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
		var failed error // one that cannot be logged out keeps none of the others in
		for _, f := range list {
			if err := p.removeLogin(f); err != nil {
				failed = errors.Join(failed, fmt.Errorf("logout from %s: %w", f.Name(), err))
				continue
			}
			if p.ProxyAddr != "" || p.User != "" {
				fmt.Fprintf(p.stdout, "Logged out %s from %s.\n", f.User, f.Name())
			}
		}
		switch {
		case failed != nil:
			return failed
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
		f, err = p.lastAt()
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
// sections, and the profile itself: also those of users who were logged in at
// this gateway before, whose keys are in the same directory. The keys go first:
// what fails after them harms nobody.
func (p *program) removeLogin(f profile.Profile) error {
	services := p.servicesAt(f)
	err := errors.Join(os.RemoveAll(p.home.KeyDir(f)), p.home.Delete(f), p.home.SetKnownHosts(f, nil), forgetKube(f))
	for _, name := range services {
		err = errors.Join(err, editService(func(text string) string { return libpq.Remove(text, name) }))
	}
	a, closer, aerr := sshAgent()
	if aerr != nil {
		return err // no agent: nothing of ours in it
	}
	defer closer()
	if aerr := removeFromAgent(a, func(k *agent.Key) bool { return atGateway(k.Comment, f) }); aerr != nil {
		err = errors.Join(err, fmt.Errorf("ssh-agent: %w", aerr))
	}
	return err
}

// servicesAt are the sections of the service file that logins at the profile's
// gateway have made, whoever logged in: profile.Dir.DBDir has one directory for
// each user, with one for each cluster.
func (p *program) servicesAt(f profile.Profile) (names []string) {
	users, _ := os.ReadDir(p.home.KeyDir(f)) // none: no login
	for _, dir := range users {
		user, ok := strings.CutSuffix(dir.Name(), "-db")
		if !ok {
			continue
		}
		of := f
		of.User = user
		clusters, _ := os.ReadDir(filepath.Dir(p.home.DBDir(of))) // a file of that name has none
		for _, cluster := range clusters {
			of.Cluster = cluster.Name()
			for _, name := range p.databasesOf(of) {
				names = append(names, serviceName(of, name))
			}
		}
	}
	return names
}
