package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
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
			remove := p.removeLogin
			if p.stays(f) {
				remove = p.removeUser
			}
			if err := remove(f); err != nil {
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
			continue
		}
		// --user hears also who was there before: selected.
		if f.User = p.User; !profile.ValidName(f.User) {
			continue
		}
		if _, err := os.Stat(p.home.KeyPath(f, ".crt")); err == nil {
			out = append(out, f)
		}
	}
	if len(out) == 0 && len(list) > 0 {
		return nil, problem(sallyport.ErrNotFound, fmt.Sprintf("user %q is not logged in", p.User), "sally status shows who is")
	}
	return out, nil
}

// stays says that the profile is another user's, who has logged in there since, and
// stays so.
func (p *program) stays(f profile.Profile) bool {
	last, err := p.home.Load(f.Name())
	return err == nil && last.User != f.User
}

// removeUser deletes what is the profile's user's only, and leaves the others at the
// gateway in. The keys go first: what fails after them harms nobody.
func (p *program) removeUser(f profile.Profile) error {
	last, err := p.home.Load(f.Name())
	if err != nil {
		return err
	}
	kept := p.servicesOf(last) // a section's name has no user in it
	services := slices.DeleteFunc(p.servicesOf(f), func(name string) bool { return slices.Contains(kept, name) })
	for _, end := range []string{"", ".key", ".crt", ".pub", "-ssh", "-db", "-app", "-kube"} {
		err = errors.Join(err, os.RemoveAll(p.home.KeyPath(f, end)))
	}
	return errors.Join(err, forget(services, func(comment string) bool { return comment == agentComment(f) }))
}

// removeLogin deletes a profile's keys, agent entries and service file
// sections, and the profile itself: also those of users who were logged in at
// this gateway before, whose keys are in the same directory. The keys go first:
// what fails after them harms nobody.
func (p *program) removeLogin(f profile.Profile) error {
	services := p.servicesAt(f)
	err := errors.Join(os.RemoveAll(p.home.KeyDir(f)), p.home.Delete(f), p.home.SetKnownHosts(f, nil), forgetKube(f))
	return errors.Join(err, forget(services, func(comment string) bool { return atGateway(comment, f) }))
}

// forget takes sections out of the service file, and keys of ours with such comments
// out of ssh-agent.
func forget(services []string, ours func(comment string) bool) error {
	var err error
	for _, name := range services {
		err = errors.Join(err, editService(func(text string) string { return libpq.Remove(text, name) }))
	}
	a, closer, aerr := sshAgent()
	if aerr != nil {
		return err // no agent: nothing of ours in it
	}
	defer closer()
	if aerr := removeFromAgent(a, func(k *agent.Key) bool { return ours(k.Comment) }); aerr != nil {
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
		names = append(names, p.servicesOf(of)...)
	}
	return names
}

// servicesOf are those of the profile's user.
func (p *program) servicesOf(f profile.Profile) (names []string) {
	clusters, _ := os.ReadDir(filepath.Dir(p.home.DBDir(f))) // a file of that name has none
	for _, cluster := range clusters {
		f.Cluster = cluster.Name()
		for _, name := range p.databasesOf(f) {
			names = append(names, serviceName(f, name))
		}
	}
	return names
}
