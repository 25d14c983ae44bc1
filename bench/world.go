package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strings"

	"github.com/sallyport/sallyport/bench/flow"
	"github.com/sallyport/sallyport/tools/peers/mariadb"
	"github.com/sallyport/sallyport/tools/peers/postgres"
	"github.com/sallyport/sallyport/tools/peers/redis"
)

// Names in the benchmark's cluster.
const (
	cluster      = "bench.test"
	realDatabase = "real" // PostgreSQL
	stubDatabase = "stub"
	person       = "bench" // the user, and the databases' user
	databaseName = "postgres"
	kubeGroup    = "bench"
)

// world is everything that runs beside the harness: auth, gateway and agent as
// processes of their own, and the servers that clients are held against.
type world struct {
	dir, bin string
	login    string // the OS user that sessions run as
	bare     login  // how the servers that run shells are started
	setting  Setting
	cores    *cores       // where gateway and agent run, for tunnels; nil: anywhere
	tcp      []flow.Route // resources
	nodes    bool         // the agent's machine is a resource
	node     string       // the name that it got
	more     string       // further resources, as the agent's configuration has them

	authAddr, proxy string
	pin             string

	auth, gateway, agent *process

	sshd       *sshServer
	postgres   *postgres.Server
	mariadb    *mariadb.Server
	redis      *redis.Server
	stub       *stubServer
	databases  credentials // of servers' certificates and of who comes straight
	sshMissing error
}

// openWorld starts everything and logs the person in.
func openWorld(ctx context.Context, dir, bin string) (*world, error) {
	w := &world{dir: dir, bin: bin, nodes: true}
	me, err := user.Current()
	if err != nil {
		return nil, err
	}
	w.login = me.Username
	w.bare, w.setting = bareLogin(ctx, dir, w.login)
	return w, w.begin(ctx, w.startAuth, w.startGateway, w.signServers, w.startStub, w.startPostgres, w.configureAgent, w.startAgent,
		w.startSSHD, w.logIn, w.awaitResources)
}

// begin takes one step after the other, and ends everything when one fails.
func (w *world) begin(ctx context.Context, steps ...func(context.Context) error) error {
	for _, step := range steps {
		if err := step(ctx); err != nil {
			w.close()
			return err
		}
	}
	return nil
}

// close ends all processes, those that need others first.
func (w *world) close() {
	w.sshd.close()
	w.agent.stop()
	w.gateway.stop()
	w.auth.stop()
	w.stub.close()
	if w.postgres != nil {
		w.postgres.Stop()
	}
	if w.mariadb != nil {
		w.mariadb.Stop()
	}
	if w.redis != nil {
		w.redis.Stop()
	}
}

// watched are the processes whose CPU counts.
func (w *world) watched() map[string]int {
	return map[string]int{"gateway": w.gateway.pid(), "agent": w.agent.pid()}
}

func (w *world) path(name string) string { return filepath.Join(w.dir, name) }

func (w *world) write(name, text string) error {
	return os.WriteFile(w.path(name), []byte(text), 0o600)
}

// role starts one process with one role.
func (w *world) role(name string) (*process, error) {
	return w.startOn(name, w.roleCommand(name))
}

// startOn keeps gateway and agent on a core of their own where one is given, and auth
// away from it.
func (w *world) startOn(name string, cmd *exec.Cmd) (p *process, err error) {
	start := func() (err error) {
		p, err = startProcess(w.dir, name, cmd)
		return err
	}
	if w.cores == nil {
		return p, start()
	}
	apart(cmd)
	cpu := w.cores.relay
	if name == "auth" {
		cpu = w.cores.traffic
	}
	err = pinned(cpu, start)
	return p, err
}

func (w *world) roleCommand(name string) *exec.Cmd {
	return exec.Command(filepath.Join(w.bin, "sallyport"), "start", "-c", w.path(name+".yaml"))
}

// ctl runs sallyctl on auth's machine.
func (w *world) ctl(ctx context.Context, args ...string) ([]byte, error) {
	return output(exec.CommandContext(ctx, filepath.Join(w.bin, "sallyctl"), append([]string{"--data-dir=" + w.path("auth")}, args...)...))
}

func (w *world) startAuth(ctx context.Context) (err error) {
	if w.authAddr, err = freeAddress(); err != nil {
		return err
	}
	if w.proxy, err = freeAddress(); err != nil {
		return err
	}
	text := fmt.Sprintf(`version: 1
cluster: %s
data_dir: %s
roles: [auth]
auth: {second_factor: "off", listen: [%q]}
gateway: {public_address: %q}
log: {level: warn}
`, cluster, w.path("auth"), w.authAddr, w.proxy)
	if err := w.write("auth.yaml", text); err != nil {
		return err
	}
	if w.auth, err = w.role("auth"); err != nil {
		return err
	}
	return w.auth.await(ctx, func(ctx context.Context) error {
		out, err := w.ctl(ctx, "status", "--format=json")
		if err != nil {
			return err
		}
		var s struct {
			CAPins []string `json:"ca_pins"`
		}
		if err := json.Unmarshal(out, &s); err != nil || len(s.CAPins) == 0 {
			return fmt.Errorf("status without pins: %w", err)
		}
		w.pin = s.CAPins[0]
		return nil
	})
}

// token makes a join token and returns the file that holds it.
func (w *world) token(ctx context.Context, kind string) (string, error) {
	out, err := w.ctl(ctx, "tokens", "add", "--type="+kind, "--format=json")
	if err != nil {
		return "", err
	}
	var t struct {
		Secret string `json:"token"`
	}
	if err := json.Unmarshal(out, &t); err != nil {
		return "", err
	}
	return w.path(kind + ".token"), w.write(kind+".token", t.Secret)
}

func (w *world) startGateway(ctx context.Context) error {
	token, err := w.token(ctx, "gateway")
	if err != nil {
		return err
	}
	text := fmt.Sprintf(`version: 1
cluster: %s
data_dir: %s
roles: [gateway]
gateway:
  listen: [%q]
  public_address: %q
  auth: %q
  join: {token_file: %s, ca_pin: %q}
log: {level: warn}
`, cluster, w.path("gateway"), w.proxy, w.proxy, w.authAddr, token, w.pin)
	if err := w.write("gateway.yaml", text); err != nil {
		return err
	}
	if w.gateway, err = w.role("gateway"); err != nil {
		return err
	}
	return w.gateway.await(ctx, listens(w.proxy))
}

// configureAgent needs the databases' addresses.
func (w *world) configureAgent(ctx context.Context) error {
	token, err := w.token(ctx, "agent")
	if err != nil {
		return err
	}
	var b strings.Builder
	fmt.Fprintf(&b, `version: 1
data_dir: %s
roles: [agent]
agent:
  gateways: [%q]
  join: {token_file: %s, ca_pin: %q}
`, w.path("agent"), w.proxy, token, w.pin)
	w.agentResources(&b)
	b.WriteString("log: {level: warn}\n")
	return w.write("agent.yaml", b.String())
}

// agentResources writes what there is.
func (w *world) agentResources(b *strings.Builder) {
	if len(w.tcp) > 0 {
		b.WriteString("  tcp:\n")
	}
	for _, r := range w.tcp {
		fmt.Fprintf(b, "    - {name: %s, address: %q, labels: {env: bench}}\n", r.Name, r.Address)
	}
	if w.nodes {
		b.WriteString("  ssh: {enabled: true, labels: {env: bench}}\n")
	}
	b.WriteString(w.more)
	w.agentDatabases(b)
}

func (w *world) agentDatabases(b *strings.Builder) {
	all := map[string]string{} // name: protocol and address
	if w.stub != nil {
		all[stubDatabase] = fmt.Sprintf("protocol: postgres, address: %q", w.stub.addr())
	}
	if w.postgres != nil {
		all[realDatabase] = fmt.Sprintf("protocol: postgres, address: %q", w.postgres.Addr)
	}
	if w.mariadb != nil {
		all[mariaDatabase] = fmt.Sprintf("protocol: mysql, address: %q", w.mariadb.Addr)
	}
	if w.redis != nil {
		all[redisDatabase] = fmt.Sprintf("protocol: redis, address: %q", w.redis.Addr)
	}
	if len(all) > 0 {
		b.WriteString("  databases:\n")
	}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		fmt.Fprintf(b, "    - {name: %s, %s, labels: {env: bench}}\n", name, all[name])
	}
}

func (w *world) startAgent(context.Context) (err error) {
	w.agent, err = w.startOn("agent", w.bare.wrap(w.roleCommand("agent")))
	return err
}

// signServers has a certificate signed for the servers that the agent reaches,
// by the cluster's database CA.
func (w *world) signServers(ctx context.Context) (err error) {
	if _, err := w.ctl(ctx, "auth", "sign", "--format=db", "--host=127.0.0.1,localhost", "--out="+w.path("db")); err != nil {
		return err
	}
	w.databases, err = databaseCredentials(w.dir, w.path("db"))
	return err
}

func (w *world) startStub(context.Context) (err error) {
	w.stub, err = startStub(w.databases)
	return err
}

// startPostgres starts PostgreSQL where there is one.
func (w *world) startPostgres(context.Context) (err error) {
	w.postgres, err = postgres.Start("", postgres.Options{
		Cert: w.databases.cert, Key: w.databases.key, ClientCA: w.databases.clientCAs,
		HBA: []string{"hostssl all all 127.0.0.1/32 cert"},
		SQL: []string{"CREATE ROLE " + person + " LOGIN;", "CREATE TABLE sink(line text);", "GRANT ALL ON sink TO " + person + ";"},
	})
	if errors.Is(err, postgres.ErrMissing) {
		return nil
	}
	return err
}

// logIn makes the person, claims the account as a browser does, and logs in.
func (w *world) logIn(ctx context.Context) error {
	out, err := w.ctl(ctx, "users", "add", "--roles=access", "--logins="+w.login, "--db-users="+person, "--db-names="+databaseName, "--kubernetes-groups="+kubeGroup, "--format=json", person)
	if err != nil {
		return err
	}
	var link struct {
		URL string `json:"url"`
	}
	if err := json.Unmarshal(out, &link); err != nil {
		return err
	}
	password := rand.Text()
	if err := w.claim(ctx, link.URL, password); err != nil {
		return fmt.Errorf("claim: %w", err)
	}
	if err := w.write("password", password); err != nil {
		return err
	}
	_, err = output(w.sally(ctx, "login", "--proxy="+w.proxy, "--ca-pin="+w.pin, "--user="+person, "--password-file="+w.path("password")))
	if err != nil {
		return err
	}
	config, err := output(w.sally(ctx, "config"))
	if err != nil {
		return err
	}
	return w.write("ssh_config", string(config))
}

// sally is a command of the person's.
func (w *world) sally(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(w.bin, "sally"), args...)
	cmd.Env, cmd.Dir = w.env(), w.dir
	return cmd
}

func (w *world) env() []string {
	return []string{"HOME=" + w.dir, "SALLY_HOME=" + w.path("home"), "PATH=" + w.bin + ":" + os.Getenv("PATH"), "LC_ALL=C.UTF-8", "TERM=xterm"}
}

// awaitResources returns when the agent serves all that is asked for. The first
// session also makes this machine a source that the gateway knows.
func (w *world) awaitResources(ctx context.Context) error {
	if err := w.agent.await(ctx, w.findNode); err != nil {
		return err
	}
	if err := w.agent.await(ctx, w.execInside); err != nil {
		return err
	}
	return w.agent.await(ctx, func(ctx context.Context) error {
		return errors.Join(w.sessionThrough(ctx, stubDatabase), w.realSession(ctx))
	})
}

// findNode asks for the name of the machine, which auth decides.
func (w *world) findNode(ctx context.Context) error {
	out, err := output(w.sally(ctx, "ls", "--format=json"))
	if err != nil {
		return err
	}
	var nodes []struct {
		Spec struct {
			Hostname string `json:"hostname"`
		} `json:"spec"`
	}
	if err := json.Unmarshal(out, &nodes); err != nil {
		return err
	}
	if len(nodes) != 1 {
		return fmt.Errorf("%d nodes are listed, not one", len(nodes))
	}
	w.node = nodes[0].Spec.Hostname
	return nil
}

func (w *world) realSession(ctx context.Context) error {
	if w.postgres == nil {
		return nil
	}
	return w.sessionThrough(ctx, realDatabase)
}

// foreignPrograms are programs of others and their versions.
func foreignPrograms(ctx context.Context, names ...string) []Peer {
	flags := map[string]string{"postgres": "--version", "mariadbd": "--version", "redis-server": "--version", "nginx": "-v"}
	var out []Peer
	for _, name := range names {
		path, err := lookPeer(name)
		if name == "postgres" {
			var dir string
			dir, err = postgres.Find()
			path = filepath.Join(dir, name)
		}
		if err != nil {
			out = append(out, Peer{Name: name, Missing: true})
			continue
		}
		b, _ := exec.CommandContext(ctx, path, cmp.Or(flags[name], "-V")).CombinedOutput() // sshd says its version and fails
		out = append(out, Peer{Name: name, Version: versionLine(string(b))})
	}
	return out
}

// versionLine is the line that names a version.
func versionLine(s string) string {
	for line := range strings.Lines(s) {
		if strings.HasPrefix(line, "OpenSSH") || strings.HasPrefix(line, "postgres ") {
			return strings.TrimSpace(line)
		}
	}
	line, _, _ := strings.Cut(s, "\n")
	return strings.TrimSpace(line)
}
