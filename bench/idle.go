package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sync/errgroup"
)

// idleBar is the memory of the agent for one idle SSH session, beside the
// shell: 2 MiB.
const idleBar = 2048 // KiB

// idleMeasures compare the memory that sessions cost the two servers.
func (w *world) idleMeasures(z sizes) []comparison {
	m := comparison{Measure: Measure{
		Name: "ssh-idle", Title: "Memory per idle SSH session", A: "the agent's process", B: "sshd: the processes it makes per connection",
		Load: fmt.Sprintf("%d sessions with a terminal and a login shell, left alone for %s; the agent is a new process that has served one session before", z.idle, z.settle),
		Quantities: []Quantity{
			{Key: "rss_kib", Title: "resident (RSS) per session", Unit: " KiB", Bar: idleBar},
			{Key: "pss_kib", Title: "proportional (PSS) per session", Unit: " KiB", Bar: idleBar},
			{Key: "opened", Title: "sessions opened", Unit: "/s", More: true},
		},
	}}
	if w.sshMissing != nil {
		m.Missing = w.sshMissing.(missingPeer).name
		return []comparison{m}
	}
	m.a = func(ctx context.Context) (Sample, error) { return w.idleAgent(ctx, z) }
	m.b = func(ctx context.Context) (Sample, error) { return w.idleSSHD(ctx, z) }
	return []comparison{m}
}

// idleAgent starts the agent anew, since memory that was used once is not
// given back at once, and reads what it grows by.
func (w *world) idleAgent(ctx context.Context, z sizes) (Sample, error) {
	w.agent.stop()
	if err := w.startAgent(ctx); err != nil {
		return nil, err
	}
	if err := w.awaitResources(ctx); err != nil {
		return nil, err
	}
	to, err := w.inside()
	if err != nil {
		return nil, err
	}
	return idle(ctx, to, z, func() (memory, error) { return memoryWithChildren(w.agent.pid(), "sallyport") })
}

func (w *world) idleSSHD(ctx context.Context, z sizes) (Sample, error) {
	return idle(ctx, w.straight(), z, func() (memory, error) { return memoryWithChildren(w.sshd.process.pid(), "sshd") })
}

// memoryWithChildren is a process's memory with that of its descendants whose names
// begin like its own: the shells and what runs in them are not counted. From OpenSSH
// 9.8 on a connection's process is sshd-session.
func memoryWithChildren(pid int, name string) (memory, error) {
	sum, err := memoryOf(pid)
	if err != nil {
		return sum, err
	}
	below, err := descendants(pid)
	if err != nil {
		return sum, err
	}
	for _, s := range below {
		if !strings.HasPrefix(s.comm, name) {
			continue
		}
		m, err := memoryOf(s.pid)
		if err != nil {
			return sum, err
		}
		sum.RSS += m.RSS
		sum.PSS += m.PSS
	}
	return sum, nil
}

// idle opens sessions and returns what memory has grown by, for each.
func idle(ctx context.Context, to connect, z sizes, read func() (memory, error)) (Sample, error) {
	n := z.idle
	if _, err := execOnce(ctx, to); err != nil { // what the first session costs is not of each
		return nil, err
	}
	if err := pause(ctx, z.settle); err != nil {
		return nil, err
	}
	before, err := read()
	if err != nil {
		return nil, err
	}
	began := time.Now()
	clients, err := openShells(ctx, to, n)
	defer func() {
		for _, c := range clients {
			if c != nil {
				c.Close()
			}
		}
	}()
	if err != nil {
		return nil, err
	}
	took := time.Since(began).Seconds()
	if err := pause(ctx, z.settle); err != nil {
		return nil, err
	}
	after, err := read()
	if err != nil {
		return nil, err
	}
	each := func(bytes float64) float64 { return bytes / 1024 / float64(n) }
	return Sample{"rss_kib": each(after.RSS - before.RSS), "pss_kib": each(after.PSS - before.PSS), "opened": float64(n) / took}, nil
}

// openShells opens sessions, a few at a time. What it returns is the caller's
// to close, with an error too.
func openShells(ctx context.Context, to connect, n int) ([]*ssh.Client, error) {
	const atOnce = 4
	clients := make([]*ssh.Client, n)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(atOnce)
	for i := range n {
		g.Go(func() error {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			c, err := to(ctx)
			if err != nil {
				return fmt.Errorf("session %d: %w", i+1, err)
			}
			clients[i] = c
			return shell(c)
		})
	}
	return clients, g.Wait()
}

// shell starts a login shell on a terminal and returns when it has said its
// first word.
func shell(c *ssh.Client) error {
	s, err := c.NewSession()
	if err != nil {
		return err
	}
	out, err := s.StdoutPipe()
	if err != nil {
		return err
	}
	if _, err := s.StdinPipe(); err != nil {
		return err
	}
	if err := s.RequestPty("xterm", 24, 80, ssh.TerminalModes{}); err != nil {
		return err
	}
	if err := s.Shell(); err != nil {
		return err
	}
	_, err = out.Read(make([]byte, 1))
	return err
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
