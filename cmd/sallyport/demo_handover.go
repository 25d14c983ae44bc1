package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"github.com/sallyport/sallyport/cmd/internal/sock"
	"github.com/sallyport/sallyport/dataplane/handover"
)

// A demo in an upgrade: its two small services are served by the new process, by
// the same sockets; its servers are kept by the leash, which moves as it does in
// every upgrade; and where they listen the new process reads in the demo's
// configuration.

const demoPart = "demo"

// demoSockets are in the order of their records' kinds, from 1 on.
var demoSockets = [...]string{echoSocket, whoamiSocket}

// openSockets opens the demo's own services, on Unix sockets: the demo opens one
// port.
func (d *demo) openSockets() error {
	for i, name := range demoSockets {
		l, err := unixListener(d.node.cfg.DataDir, name)
		if err != nil {
			return err
		}
		if d.sockets[i], err = gate(l); err != nil {
			return err
		}
	}
	return d.nameSockets()
}

// nameSockets tells the agent where they are, which a process with a long path
// knows by a name of its own.
func (d *demo) nameSockets() error {
	var at [len(demoSockets)]string
	for i, name := range demoSockets {
		path, err := sock.Path(d.node.cfg.DataDir, name)
		if err != nil {
			return err
		}
		at[i] = "unix:" + path
	}
	label := map[string]string{"env": "demo"}
	a := &d.node.cfg.Agent
	a.TCP = []tcpConfig{{Name: "echo", Address: at[0], Description: "says what you say", Labels: label}}
	a.Apps = []appConfig{{Name: whoamiName, URI: at[1], Description: "shows who an application thinks you are",
		Labels: label, Rewrite: appRewrite{Headers: []string{"X-Demo-Logins: {{internal.logins}}"}}}}
	return nil
}

// serveSockets serves both.
func (d *demo) serveSockets() {
	go serveEcho(d.sockets[0])
	d.whoami = serveWhoami(d.sockets[1], d.node.cfg.Gateway.PublicAddress, d.node.auth.hostRoots(), d.node.log)
}

// serveEcho ends with the listener.
func serveEcho(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			_, _ = io.Copy(conn, conn) // ends with who speaks
		}()
	}
}

// demoGiver is the demo in the old process.
type demoGiver struct {
	*demo
	shut []*gated
}

func (d *demo) giver() handover.Giver { return &demoGiver{demo: d} }

// Name meets handover.Giver.
func (*demoGiver) Name() string { return demoPart }

// Copy sends everything: none of it changes.
func (g *demoGiver) Copy(ctx context.Context, w handover.Writer) error {
	for i, s := range g.sockets {
		fd, err := dup(s)
		if err != nil {
			return err
		}
		err = w.Send(ctx, handover.Record{Part: demoPart, Kind: uint32(i + 1), FDs: []int{fd}})
		closeFDs([]int{fd})
		if err != nil {
			return err
		}
	}
	return nil
}

// Freeze stops accepting. Who is connected is served on.
func (g *demoGiver) Freeze(context.Context, handover.Writer) error {
	for _, s := range g.sockets {
		if err := s.shut(); err != nil {
			return err
		}
		g.shut = append(g.shut, s)
	}
	return nil
}

// Thaw accepts again.
func (g *demoGiver) Thaw() (err error) {
	for _, s := range g.shut {
		err = errors.Join(err, s.open())
	}
	g.shut = nil
	return err
}

// Leave lets go of the sockets.
func (g *demoGiver) Leave() {
	for _, s := range g.shut {
		_ = s.leave() // nothing that could be lost
	}
	g.shut = nil
}

// demoTaker is the demo in the new process.
type demoTaker struct {
	*demo

	mu  sync.Mutex
	fds [len(demoSockets)]int // 0: none
}

func (d *demo) taker() handover.Taker { return &demoTaker{demo: d} }

// Name meets handover.Taker.
func (*demoTaker) Name() string { return demoPart }

// Take keeps the descriptors until Complete.
func (t *demoTaker) Take(r handover.Record) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if r.Kind < 1 || int(r.Kind) > len(t.fds) || len(r.FDs) != 1 || t.fds[r.Kind-1] != 0 {
		closeFDs(r.FDs)
		return fmt.Errorf("demo: record of kind %d with %d descriptors", r.Kind, len(r.FDs))
	}
	t.fds[r.Kind-1] = r.FDs[0]
	return nil
}

// Complete makes of the descriptors what open has otherwise opened.
func (t *demoTaker) Complete(context.Context) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i, fd := range t.fds {
		if fd == 0 {
			return fmt.Errorf("the old process did not pass on %s", demoSockets[i])
		}
		l, err := inheritedListener(fd, demoSockets[i])
		if err != nil {
			return err
		}
		t.sockets[i] = l
	}
	return nil
}

// Start serves.
func (t *demoTaker) Start() { t.serveSockets() }
