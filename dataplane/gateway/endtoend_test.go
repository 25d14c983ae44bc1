//go:build unix

package gateway

import (
	"context"
	"crypto/tls"
	"testing"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/alpn"
	"github.com/sallyport/sallyport/dataplane/relay"
	"github.com/sallyport/sallyport/dataplane/tunnel"
)

const (
	e2eGateway = "6a3d4bd6-0000-4000-8000-0000000000a1"
	e2eAgent   = "6a3d4bd6-0000-4000-8000-0000000000b1"
)

// startEndToEnd is a gateway with a real hub, and a real agent that has dialed
// it and serves db/orders.
func startEndToEnd(t *testing.T, loops []relay.Loop) *rig {
	t.Helper()
	ca := newAuthority(t)
	h := newHub(loops)
	control := &tls.Config{
		Certificates: []tls.Certificate{ca.issue(t, "/gateway/"+e2eGateway, cluster)}, MinVersion: tls.VersionTLS13,
		NextProtos: []string{alpn.Tunnel1}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: ca.pool,
	}
	r := newRig(t, loops, func(c *Config) {
		c.Tunnels = Through(h)
		c.Ends = tunnelEnd(control, h)
		c.Bounds = Bounds{} // as in life
	})
	r.ca = ca
	runAgent(t, r)
	eventually(t, "the agent is there", func() bool { return h.Live("db", "orders") })
	return r
}

func newHub(loops []relay.Loop) *tunnel.Hub {
	return tunnel.NewHub(tunnel.HubConfig{
		GatewayID: e2eGateway, Cluster: cluster, Loops: loops,
		Bounds: tunnel.Bounds{LeaseWait: patience, DeadAfter: patience}, // however busy the machine
		Verify: func([]byte, string) (tunnel.Assignment, error) {
			return tunnel.Assignment{Revision: 1, Resources: []sallyport.Resource{{Kind: sallyport.KindDatabase, Name: "orders"}}}, nil
		},
	})
}

func tunnelEnd(control *tls.Config, h *tunnel.Hub) map[alpn.Class]End {
	return map[alpn.Class]End{alpn.Tunnel: {TLS: control, Handlers: map[string]Handler{
		alpn.Tunnel1: func(ctx context.Context, conn *tls.Conn) { _ = h.Serve(ctx, conn) },
	}}}
}

func runAgent(t *testing.T, r *rig) {
	t.Helper()
	assignments := make(chan []byte, 1)
	assignments <- []byte("all")
	client := r.ca.client(cluster)
	client.Certificates = []tls.Certificate{r.ca.issue(t, "/agent/"+e2eAgent)}
	served := r.ca.server(t, alpn.DB1, alpn.PostgreSQL)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = tunnel.RunAgent(ctx, tunnel.AgentConfig{
			AgentID: e2eAgent, Cluster: cluster, Gateways: []string{r.addr}, Assignments: assignments,
			TLS: func(string) (*tls.Config, error) { return client.Clone(), nil },
			Serve: func(_ context.Context, s *tunnel.Stream) {
				_ = s.Conn.SetDeadline(time.Now().Add(patience))
				s.Up()
				echoTLS(served)(s.Conn)
			},
		})
	}()
	t.Cleanup(func() { cancel(); <-done })
}
