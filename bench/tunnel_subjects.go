package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/alpn"
	"github.com/sallyport/sallyport/bench/flow"
)

// tunnels is what tunnels are measured in: the relays' servers, a cluster of
// ours, and what the others' ends of TLS need.
type tunnels struct {
	*relayWorld
	cluster *world
	end     string // an ending, as an argument
	clients flow.TLS
	server  [2]string // certificate and key of the others' agents, in files

	frp, chisel       map[string]string // programs
	frpErr, chiselErr error
}

// openTunnelWorld starts the cluster and builds what is missing of the peers.
func openTunnelWorld(ctx context.Context, dir, bin string) (*tunnels, error) {
	relays, err := openRelayWorld(ctx, dir, bin)
	if err != nil {
		return nil, err
	}
	t := &tunnels{relayWorld: relays}
	if err := t.certificates(); err != nil {
		t.close()
		return nil, err
	}
	if t.cluster, err = openTunnelCluster(ctx, filepath.Join(dir, "cluster"), bin, relays); err != nil {
		t.close()
		return nil, err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	cache = filepath.Join(cache, "sallyport-bench")
	t.frp, t.frpErr = frpModule.find(ctx, cache)
	t.chisel, t.chiselErr = chiselModule.find(ctx, cache)
	return t, ctx.Err()
}

func (t *tunnels) close() {
	if t.cluster != nil {
		t.cluster.close()
	}
	t.relayWorld.close()
}

// certificates are for tunnels of others: the same kinds of keys as ours.
func (t *tunnels) certificates() error {
	write := func(name string, b []byte) string {
		path := filepath.Join(t.dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			return ""
		}
		return path
	}
	cas, cert, key, err := directClient()
	if err != nil {
		return err
	}
	t.clients = flow.TLS{Cert: write("client.crt", cert), Key: write("client.key", key)}
	_, serverCert, serverKey, err := directClient()
	if err != nil {
		return err
	}
	t.server = [2]string{write("server.crt", serverCert), write("server.key", serverKey)}
	end := ending{Routes: t.to.Routes(), Cert: t.server[0], Key: t.server[1], CAs: write("clients.crt", cas)}
	for _, path := range []string{t.clients.Cert, t.clients.Key, end.Cert, end.Key, end.CAs} {
		if path == "" {
			return errors.New("certificates: not written")
		}
	}
	b, err := json.Marshal(end)
	t.end = string(b)
	return err
}

// peers are the programs of others and their versions.
func (t *tunnels) peers() []Peer {
	return []Peer{frpModule.peer(t.frpErr, t.frp), chiselModule.peer(t.chiselErr, t.chisel)}
}

// Resources of the cluster, which lead to the servers.
const (
	sinkResource   = "sink"
	echoResource   = "echo"
	oneResource    = "one"
	sourceResource = "source"
)

// openTunnelCluster starts auth, and on the relays' core gateway and agent.
func openTunnelCluster(ctx context.Context, dir, bin string, relays *relayWorld) (*world, error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	to := relays.to
	w := &world{dir: dir, bin: bin, login: person, cores: &relays.cores, tcp: []flow.Route{
		{Name: sinkResource, Address: to.Sink}, {Name: echoResource, Address: to.Echo}, {Name: oneResource, Address: to.One}, {Name: sourceResource, Address: to.Source},
	}}
	for _, step := range []func(context.Context) error{w.startAuth, w.startGateway, w.configureAgent, w.startAgent, w.logIn, w.awaitTCP} {
		if err := step(ctx); err != nil {
			w.close()
			return nil, err
		}
	}
	return w, nil
}

// awaitTCP returns when a resource answers. It also makes this machine a source
// that the gateway knows.
func (w *world) awaitTCP(ctx context.Context) error {
	d, err := w.dialer()
	if err != nil {
		return err
	}
	return w.agent.await(ctx, func(ctx context.Context) error {
		conn, err := d.DialResource(ctx, sallyport.KindTCP, oneResource, "")
		if err != nil {
			return err
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(upWait))
		b := []byte{0}
		if _, err := conn.Write(b); err != nil {
			return err
		}
		_, err = conn.Read(b)
		return err
	})
}

// ours is the way through gateway and agent, with the door on. fresh starts
// both anew for each sample.
func (t *tunnels) ours(fresh bool) subject {
	w := t.cluster
	name := func(resource string) string { return alpn.ServerName(string(sallyport.KindTCP), resource, cluster) }
	return subject{name: "sallyport", title: "Sallyport: gateway and agent, which ends TLS and decides", start: func(ctx context.Context) (*running, error) {
		if fresh {
			w.agent.stop()
			w.gateway.stop()
			for _, step := range []func(context.Context) error{w.startGateway, w.startAgent, w.awaitTCP} {
				if err := step(ctx); err != nil {
					return nil, err
				}
			}
		}
		return &running{
			to:      flow.Backends{Sink: w.proxy, Echo: w.proxy, One: w.proxy, Source: w.proxy},
			names:   flow.Backends{Sink: name(sinkResource), Echo: name(echoResource), One: name(oneResource), Source: name(sourceResource)},
			tls:     &flow.TLS{Cert: w.profile(person + ".crt"), Key: w.profile(person + ".key")},
			process: []*process{w.gateway, w.agent}, keep: true,
		}, nil
	}}
}

// others are the tunnels that ours is held against.
func (t *tunnels) others() []subject {
	frp := func(name, title string, mux, tls bool) subject {
		s := subject{name: name, title: title}
		if t.frpErr != nil {
			s.missing = "frp"
			return s
		}
		s.start = func(ctx context.Context) (*running, error) { return t.startFRP(ctx, name, mux, tls) }
		return s
	}
	chisel := subject{name: "chisel", title: "chisel; its clients speak no TLS", start: t.startChisel}
	if t.chiselErr != nil {
		chisel.missing = "chisel"
	}
	return []subject{
		{name: "ssh", title: "an SSH channel per connection, its agent ends TLS", start: t.startSSH},
		frp("frp", "frp, default (one TLS connection for all), its agent ends TLS", true, true),
		frp("frp-pool", "frp, a pool of TLS connections, its agent ends TLS", false, true),
		frp("frp-pool-plain", "frp, a pool without TLS of its own, its agent ends TLS", false, false),
		chisel,
	}
}

// plain is no tunnel: a relay of ours before a server that ends TLS.
func (t *tunnels) plain() subject {
	return subject{name: "relay", title: "Sallyport's gateway with a static route to a server that ends TLS", start: func(ctx context.Context) (*running, error) {
		p, err := t.newPlace("relay")
		if err != nil {
			return nil, err
		}
		end, err := freeAddress()
		if err != nil {
			return nil, err
		}
		for i := range p.routes {
			p.routes[i].Address = end
		}
		file := filepath.Join(p.dir, "sallyport.yaml")
		if err := os.WriteFile(file, []byte(sallyportConfig(p)), 0o600); err != nil {
			return nil, err
		}
		return t.startBoth(ctx, p,
			exec.Command(filepath.Join(t.bin, "sallyport"), "start", "-c", file),
			t.role(roleEnder, end, t.end))
	}}
}

func (t *tunnels) startSSH(ctx context.Context) (*running, error) {
	p, err := t.newPlace("ssh")
	if err != nil {
		return nil, err
	}
	agents, err := freeAddress()
	if err != nil {
		return nil, err
	}
	return t.startBoth(ctx, p, t.role(roleSSHGateway, p.listen, agents), t.role(roleSSHAgent, agents, t.end), agents)
}

func (t *tunnels) startFRP(ctx context.Context, name string, mux, tls bool) (*running, error) {
	p, err := t.newPlace(name)
	if err != nil {
		return nil, err
	}
	bind, err := freeAddress()
	if err != nil {
		return nil, err
	}
	f := frpMode{place: p, bind: bind, mux: mux, tls: tls, cert: t.server[0], key: t.server[1]}
	for name, text := range map[string]string{"server.toml": f.server(), "client.toml": f.client()} {
		if err := os.WriteFile(filepath.Join(p.dir, name), []byte(text), 0o600); err != nil {
			return nil, err
		}
	}
	return t.startBoth(ctx, p,
		exec.Command(t.frp["frps"], "-c", filepath.Join(p.dir, "server.toml")),
		exec.Command(t.frp["frpc"], "-c", filepath.Join(p.dir, "client.toml")), bind)
}

func (t *tunnels) startChisel(ctx context.Context) (*running, error) {
	p, err := t.newPlace("chisel")
	if err != nil {
		return nil, err
	}
	to := flow.Backends{}
	args := []string{"client", "http://" + p.listen}
	for _, r := range []struct {
		at     *string
		server string
	}{{&to.Sink, t.to.Sink}, {&to.Echo, t.to.Echo}, {&to.One, t.to.One}, {&to.Source, t.to.Source}} {
		if *r.at, err = freeAddress(); err != nil {
			return nil, err
		}
		args = append(args, "R:"+*r.at+":"+r.server)
	}
	host, port, _ := strings.Cut(p.listen, ":")
	r, err := t.startBoth(ctx, p,
		exec.Command(t.chisel["chisel"], "server", "--host", host, "--port", port, "--reverse"),
		exec.Command(t.chisel["chisel"], args...), p.listen)
	if err != nil {
		return nil, err
	}
	r.to, r.tls = to, nil
	return r, t.awaitThrough(ctx, r)
}

// startBoth starts the two ends of a tunnel on the relays' core, the public one
// first; the agent follows when the addresses listen. Clients speak TLS.
func (t *tunnels) startBoth(ctx context.Context, p place, gateway, agent *exec.Cmd, listening ...string) (*running, error) {
	r := &running{tls: &t.clients, to: flow.Backends{Sink: p.listen, Echo: p.listen, One: p.listen, Source: p.listen}}
	for _, end := range []struct {
		name string
		cmd  *exec.Cmd
	}{{"gateway", gateway}, {"agent", agent}} {
		if end.cmd.Env == nil {
			end.cmd.Env = bareEnv(p.dir, "GOMAXPROCS=2")
		}
		apart(end.cmd)
		var proc *process
		err := t.on(t.cores.relay, func() (err error) {
			proc, err = startProcess(p.dir, end.name, end.cmd)
			return err
		})
		if err != nil {
			r.stop()
			return nil, err
		}
		r.process = append(r.process, proc)
		if end.name == "gateway" {
			for _, addr := range listening {
				if err := proc.await(ctx, listens(addr)); err != nil {
					r.stop()
					return nil, err
				}
			}
		}
	}
	if len(listening) > 0 && listening[0] == p.listen {
		return r, nil // what is public comes with the agent, and the caller waits for it
	}
	return r, t.awaitThrough(ctx, r)
}

// awaitThrough returns when a connection gets through to a server. Else the
// tunnel is stopped.
func (t *tunnels) awaitThrough(ctx context.Context, r *running) error {
	last := r.process[len(r.process)-1]
	err := last.await(ctx, func(ctx context.Context) error {
		_, err := t.traffic(ctx, r, flow.Job{Kind: flow.Idle, Conns: 1, Window: time.Millisecond})
		return err
	})
	if err != nil {
		r.stop()
		return fmt.Errorf("nothing gets through: %w", err)
	}
	return nil
}

// frpMode is one way to run frp. The agent ends the clients' TLS, by frp's
// plugin for that.
type frpMode struct {
	place
	bind      string
	mux, tls  bool
	cert, key string
}

func (f frpMode) server() string {
	host, port, _ := strings.Cut(f.bind, ":")
	publicHost, publicPort, _ := strings.Cut(f.listen, ":")
	return fmt.Sprintf("bindAddr = %q\nbindPort = %s\nproxyBindAddr = %q\nvhostHTTPSPort = %s\ntransport.tcpMux = %v\ntransport.maxPoolCount = 100\nlog.level = \"error\"\n", host, port, publicHost, publicPort, f.mux)
}

func (f frpMode) client() string {
	host, port, _ := strings.Cut(f.bind, ":")
	pool := 50
	if f.mux {
		pool = 0
	}
	var b strings.Builder
	fmt.Fprintf(&b, "serverAddr = %q\nserverPort = %s\ntransport.tcpMux = %v\ntransport.poolCount = %d\ntransport.tls.enable = %v\nlog.level = \"error\"\n", host, port, f.mux, pool, f.tls)
	for _, r := range f.routes {
		fmt.Fprintf(&b, "[[proxies]]\nname = %q\ntype = \"https\"\ncustomDomains = [%q]\n[proxies.plugin]\ntype = \"tls2raw\"\nlocalAddr = %q\ncrtPath = %q\nkeyPath = %q\n", r.Name, r.Name, r.Address, f.cert, f.key)
	}
	return b.String()
}
