package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/cmd/internal/fail"
	"github.com/sallyport/sallyport/cmd/internal/profile"
)

// renewBefore is how long before the end of a login a later one is looked for: a
// session that starts with the old one ends with it.
const renewBefore = 10 * time.Minute

// lasting is a login for what may outlive it: local proxies, and programs that come
// by one. When it has ended, or is about to, it becomes the one that the same person
// has got since by a login elsewhere. What is on the disk does not matter before.
type lasting struct {
	program *program

	mu   sync.Mutex
	cred *credentials // in use; guarded by mu
}

func (p *program) lasting(cred *credentials) *lasting { return &lasting{program: p, cred: cred} }

// to connects to one resource, each time by the login that is good then. The errors
// are a *sallyport.Problem.
func (l *lasting) to(kind sallyport.Kind, name, protocol string) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) {
		cred, err := l.current()
		if err != nil {
			return nil, err
		}
		return cred.dialer().DialResource(ctx, kind, name, protocol)
	}
}

// current is the login in use; an error says that it has ended, and what to do.
func (l *lasting) current() (*credentials, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if time.Until(l.cred.Identity.NotAfter) > renewBefore {
		return l.cred, nil
	}
	// Why there is none does not matter: the one in use is good, or what to do about
	// its end is the same.
	if later, err := l.program.again(l.cred); err == nil && later.Identity.NotAfter.After(l.cred.Identity.NotAfter) {
		l.cred = later
	}
	return l.cred, l.program.valid(l.cred)
}

// again reads where a login came from once more. The login of somebody else is an
// error: a program goes on as the one who started it, or not at all.
func (p *program) again(c *credentials) (*credentials, error) {
	var read *profile.Credentials
	var err error
	if p.held != nil {
		read, err = readIdentity(p.held.path, c.Profile.WebProxyAddr)
	} else {
		read, err = p.home.Credentials(c.Profile)
	}
	switch {
	case err != nil:
		return nil, err
	case read.Identity.Name != c.Identity.Name || read.Identity.Cluster != c.Identity.Cluster:
		return nil, problem(sallyport.ErrConflict, "the login is somebody else's now", "")
	}
	return &credentials{Credentials: read}, nil
}

func readIdentity(path, proxy string) (*profile.Credentials, error) {
	file, err := profile.ReadIdentityFile(path)
	if err != nil {
		return nil, err
	}
	return file.Credentials(path, proxy)
}

// tellEvery is how often at most it is told that connections fail: a client that
// tries again and again does not fill a terminal.
const tellEvery = 10 * time.Second

// failures tells of connections that local programs made and that lead nowhere.
type failures struct {
	to io.Writer

	mu   sync.Mutex
	next time.Time // nothing is told before; guarded by mu
	n    int       // since the last telling; guarded by mu
}

// of is dial whose errors are told.
func (f *failures) of(dial func(context.Context) (net.Conn, error)) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) {
		conn, err := dial(ctx)
		if err != nil && ctx.Err() == nil && !errors.Is(err, context.Canceled) {
			f.tell(err)
		}
		return conn, err
	}
}

func (f *failures) tell(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.n++
	now := time.Now()
	if now.Before(f.next) {
		return
	}
	what := "a connection failed"
	if f.n > 1 {
		what = fmt.Sprintf("%d connections failed, the last one", f.n)
	}
	fail.Report(f.to, fmt.Errorf("%s: %w", what, err))
	f.next, f.n = now.Add(tellEvery), 0
}
