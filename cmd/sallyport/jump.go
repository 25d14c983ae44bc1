package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/alpn"
	"github.com/sallyport/sallyport/cmd/internal/sock"
	"github.com/sallyport/sallyport/controlplane/audit"
	"github.com/sallyport/sallyport/controlplane/client"
	"github.com/sallyport/sallyport/controlplane/remnant"
	"github.com/sallyport/sallyport/dataplane/access"
	"github.com/sallyport/sallyport/dataplane/dial"
	"github.com/sallyport/sallyport/dataplane/gateway"
	"github.com/sallyport/sallyport/dataplane/jump"
)

// withJump adds the SSH jump server, and the audit spool that it writes to.
func (r *gatewayRole) withJump(gc *gateway.Config) error {
	var err error
	if r.spool, err = r.newSpool(); err != nil {
		return err
	}
	keeper := r.host.Keeper()
	gate := &access.Door{Cluster: r.host.Cluster(), AgentID: r.host.ID(), Snapshot: keeper, Log: r.log}
	r.jump = &jump.Server{
		Cluster: r.host.Cluster(), GatewayID: r.host.ID(), Version: version, Log: r.log, Events: r.spool,
		HostSigner: r.host.SSHSigner, Admit: gate.Admit, Changed: keeper.Changed, Reach: r.reachNode,
		UserCAs: func() ([][]byte, error) {
			t, err := keeper.Trust()
			if err != nil {
				return nil, err
			}
			return t.SSHUserCAs, nil
		},
	}
	gc.SSH = func(ctx context.Context, conn gateway.Stranger) {
		from := conn.RemoteAddr()
		if err := r.jump.Serve(ctx, conn); err != nil {
			r.log.Debug("jump: connection ended", "peer", from, "reason", err)
		}
	}
	return nil
}

// reachNode opens a stream to a node as the gateway, which opens the SSH
// handshake only: who is inside proves that to the node.
func (r *gatewayRole) reachNode(ctx context.Context, node string, from netip.AddrPort) (net.Conn, error) {
	g := r.browsers.gateway.Load()
	if g == nil {
		return nil, &sallyport.Problem{Kind: sallyport.ErrUnavailable, Fact: "the gateway is starting", Hint: "try again in a moment"}
	}
	return g.Dial(ctx, gateway.Destination{Kind: sallyport.KindNode, Name: node, Client: from}, func(ctx context.Context, stream net.Conn) (net.Conn, error) {
		d := &dial.Dialer{
			Proxy: r.host.Cluster(), Cluster: r.host.Cluster(), Roots: r.host.Keeper().Roots(), Certificate: r.host.Certificate,
			Dial: func(context.Context, string, string) (net.Conn, error) { return stream, nil },
		}
		return d.DialResource(ctx, sallyport.KindNode, node, alpn.SSH1)
	})
}

// newSpool makes the gateway's audit spool, which its processes share.
func (r *gatewayRole) newSpool() (*remnant.Spool, error) {
	dir := gatewayDir(r.cfg)
	if err := os.Chmod(dir, 0o700); err != nil {
		return nil, unusable(dir, err)
	}
	socket, err := sock.Path(dir, remnantSocket)
	if err != nil {
		return nil, err
	}
	return remnant.New(remnant.Config{
		Socket: socket, Host: r.host.ID(), Version: version, Log: r.log,
		Open: func() (*audit.Spool, error) {
			return audit.OpenSpool(audit.SpoolConfig{Dir: filepath.Join(dir, "spool"), Host: r.host.ID(), Log: r.log})
		},
		Ship: func(ctx context.Context, s *audit.Spool) {
			_ = client.Ship(ctx, s, r.host.API(), r.log) // ends with ctx only
		},
	}), nil
}

// spoolRetry is how soon a spool that cannot be opened is tried again. Until
// then events wait in memory.
const spoolRetry = 2 * time.Second

// record opens the spool, unless that was done, and serves it. An heir does it
// here: while connections stand still nobody waits for a disk.
func (r *gatewayRole) record(ctx context.Context) error {
	for {
		err := r.spool.Open(ctx)
		if err == nil {
			r.spool.Start()
			return nil
		}
		r.log.Error("the gateway's audit spool cannot be opened; trying again", "error", err, "in", spoolRetry)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(spoolRetry):
		}
	}
}

// ownSpool opens the audit spool of a gateway that starts without an upgrade.
func (r *gatewayRole) ownSpool(ctx context.Context) error {
	if r.spool == nil {
		return nil
	}
	if err := r.spool.Open(ctx); err != nil {
		return fmt.Errorf("gateway: %w", err)
	}
	return nil
}

func (r *gatewayRole) closeSpool() {
	if r.spool == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), lastEvents)
	defer cancel()
	if err := r.spool.Close(ctx); err != nil {
		r.log.Error("close the gateway's audit spool", "error", err)
	}
}
