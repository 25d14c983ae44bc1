package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"os/user"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/durable"
	"github.com/sallyport/sallyport/controlplane/login"
	"github.com/sallyport/sallyport/dataplane/handover"
)

const (
	demoCluster  = "localhost"
	demoAdmin    = "admin"
	echoSocket   = "echo.sock"
	whoamiSocket = "whoami.sock"
	demoConfig   = "demo.yaml" // what it runs with, for the next program
	demoUp       = time.Minute
	claimTTL     = time.Hour
)

type demoCmd struct {
	Listen    string   `name:"listen" default:"127.0.0.1:8443" help:"Address of the one port."`
	Data      string   `name:"data" default:"demo-data" help:"Directory of the demo; kept between runs."`
	Databases []string `name:"databases" default:"postgres,mariadb,redis" placeholder:"NAME" help:"Databases to offer where their servers are installed: postgres, mariadb, redis; or none."`
	ReadyJSON string   `name:"ready-json" placeholder:"FILE" help:"Make a ready admin and write how to log in, once all is up (mode 0600)."`
	Debug     bool     `name:"debug" short:"d" help:"Log more."`
}

// demo is one running demo. What it has beside the roles of a process moves with
// them, or is held by the leash (demo_handover.go, demo_child.go).
type demo struct {
	*demoCmd
	p        *program
	node     *node
	flip     *handover.Upgrader
	saving   *thrift
	postgres *demoPostgres // in the process that has started it, as the others
	servers  []*demoServer
	sockets  [2]*gated // of echo and whoami
	whoami   *whoami
	users    []string // of the databases
}

// Run runs until it is told to stop, or has handed over.
func (c *demoCmd) Run(p *program) error {
	if kept, err := keepAsFirst(p.ctx, os.Getpid()); kept {
		return err
	}
	renew := make(chan os.Signal, 1)
	signal.Notify(renew, syscall.SIGUSR2)
	defer signal.Stop(renew)
	saving := &p.saving
	flip, err := handover.New(handover.Config{Program: handover.Program{Version: version}, Timeout: readyWithin, Step: saving.onStep})
	if err != nil {
		return err
	}
	heir, err := flip.Inherited(p.ctx)
	if err != nil {
		return fmt.Errorf("taking over: %w", err)
	}
	if heir == nil {
		saving.end()
	} else {
		defer time.AfterFunc(thriftyFor, saving.end).Stop()
	}
	d := &demo{demoCmd: c, p: p, flip: flip, saving: saving}
	if err := d.prepare(heir != nil); err != nil {
		if heir != nil {
			heir.Refuse(err)
		}
		return err
	}
	d.node.renew, flip.Log = renew, d.node.log
	asked, stop := signal.NotifyContext(p.ctx, syscall.SIGHUP) // the terminal is gone
	defer stop()
	return d.node.live(asked, heir)
}

// prepare makes the node. One that takes over has the configuration of the old
// process, which says where the servers are.
func (d *demo) prepare(inherits bool) (err error) {
	cfg, err := d.config()
	if err != nil {
		return err
	}
	file := filepath.Join(cfg.DataDir, demoConfig)
	if inherits {
		if cfg, err = loadConfig(file); err != nil {
			return err
		}
	}
	d.node = newNode(cfg, logger(d.p.sink(), cfg.Log))
	d.node.lines, d.node.demo, d.node.reloads.file = d.p.sink(), d, file
	if d.node.keeping, err = keepingOf(""); err != nil || inherits {
		d.offer()
		return err
	}
	d.node.keeping.leash, err = newLeash()
	d.node.upgrades.refuse = &sallyport.Problem{Kind: sallyport.ErrUnavailable, Fact: "this demo is still starting", Hint: "try again when it has said that it is up"}
	return err
}

func (d *demo) config() (*config, error) {
	data, err := filepath.Abs(d.Data)
	if err != nil {
		return nil, err
	}
	if _, _, err := net.SplitHostPort(d.Listen); err != nil {
		return nil, &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: fmt.Sprintf("--listen: %q is not host:port", d.Listen)}
	}
	cfg := &config{
		Version: configVersion, Cluster: demoCluster, DataDir: data, Roles: []string{roleAuth, roleGateway, roleAgent},
		Gateway: gatewayConfig{Listen: []string{d.Listen}},
		Agent:   agentConfig{SSH: sshConfig{Enabled: true, Labels: map[string]string{"env": "demo"}}},
	}
	if err := d.checkDatabases(); err != nil {
		return nil, err
	}
	if d.Debug {
		cfg.Log.Level = "debug"
	}
	if err := cfg.check(); err != nil {
		return nil, err
	}
	cfg.complete()
	return cfg, nil
}

// open brings up what the agent serves before the agent itself.
func (d *demo) open(ctx context.Context) error {
	n := d.node
	if err := n.prepareDir(); err != nil {
		return err
	}
	n.serveAdmin()
	if err := d.pickPort(); err != nil {
		return err
	}
	if err := n.startAuth(ctx); err != nil {
		return err
	}
	if err := d.openSockets(); err != nil {
		return err
	}
	d.serveSockets()
	if err := d.openDatabases(ctx); err != nil {
		return err
	}
	if err := d.keepConfig(); err != nil {
		return err
	}
	if err := n.openGateway(ctx, false); err != nil {
		return err
	}
	return n.openAgent(ctx, false)
}

// keepConfig writes down what the process runs with: the next program is asked
// about it, and runs with it.
func (d *demo) keepConfig() error {
	text, err := d.node.cfg.text()
	if err != nil {
		return err
	}
	return replaceFile(d.node.reloads.file, append([]byte("# Written by sallyport demo at each start, for sallyport upgrade.\n"), text...))
}

// pickPort turns port 0 into a free one before anything names it, and finds
// one that is taken before anything has been made.
func (d *demo) pickPort() error {
	cfg := d.node.cfg
	host, _, err := net.SplitHostPort(d.Listen)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", d.Listen)
	if err != nil {
		return listenProblem(err, "--listen", "sallyport demo --listen=127.0.0.1:9443, or make run LISTEN=127.0.0.1:9443")
	}
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err := errors.Join(err, l.Close()); err != nil {
		return err
	}
	if host == "" || net.ParseIP(host).IsUnspecified() {
		host = "127.0.0.1"
	}
	cfg.Gateway.Listen = []string{net.JoinHostPort(host, port)}
	cfg.Gateway.PublicAddress = net.JoinHostPort(host, port)
	return nil
}

// close ends what the roles do not know of. The servers end with the leash; who
// has started them waits for that.
func (d *demo) close() {
	if d.whoami != nil {
		d.whoami.close()
	}
	for _, s := range d.sockets {
		if s != nil {
			s.Close()
		}
	}
	if !d.node.upgrades.isHanded() { // else they are another process's, by the leash
		d.closeDatabases()
	}
}

// announce waits until the agent's resources are online, and says what to try.
// From then on the demo can be upgraded. One that has taken over says nothing: all
// is as it was.
func (d *demo) announce(ctx context.Context) error {
	if d.node.keeping.upgraded {
		return nil
	}
	node, err := d.await(ctx)
	if ctx.Err() != nil {
		return nil
	}
	if err != nil {
		return err
	}
	for _, s := range d.servers { // not before: installing one takes a core for seconds
		s.start(ctx)
	}
	defer d.offer()
	if d.ReadyJSON != "" {
		return d.ready(ctx, node)
	}
	link, err := d.claimLink(ctx)
	if err != nil {
		return err
	}
	d.print(link, node)
	return nil
}

// offer lets the demo be upgraded.
func (d *demo) offer() {
	u := &d.node.upgrades
	u.turn.await()
	defer u.turn.end()
	u.offer(d.flip, d.saving)
}

// await returns the node's name.
func (d *demo) await(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, demoUp)
	defer cancel()
	want := len(d.node.cfg.resources())
	for {
		list := d.node.agent.host.Resources()
		online, name := 0, ""
		for _, r := range list {
			if r.Kind == sallyport.KindNode {
				name = r.Name
			}
			up, err := d.node.auth.inventory.Online(ctx, r.Kind, r.Name)
			if err == nil && up && d.node.gateway.hub.Live(string(r.Kind), r.Name) {
				online++
			}
		}
		if online >= want {
			return name, nil
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("%d of %d resources are online; see the log above", online, want)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// traits are what the demo's admin may be.
func (d *demo) traits() map[string][]string {
	return map[string][]string{"logins": {currentUser()}, "db_users": d.users, "db_names": {demoDatabase, "postgres"}}
}

func currentUser() string {
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return "root"
}

func (d *demo) admin() login.User {
	return login.User{Name: demoAdmin, Roles: []string{"access", "auditor", "editor"}, Traits: d.traits()}
}

// claimLink makes the admin on the first run, and a new link until somebody
// has claimed the account; then it is "".
func (d *demo) claimLink(ctx context.Context) (string, error) {
	users := d.node.auth.users
	link, err := users.CreateUser(ctx, d.admin(), claimTTL)
	if errors.Is(err, sallyport.ErrExists) {
		u, gerr := users.GetUser(ctx, demoAdmin)
		if gerr != nil || u.Claimed {
			return "", gerr
		}
		link, err = users.ResetUser(ctx, demoAdmin, claimTTL)
	}
	if err != nil {
		return "", err
	}
	return d.node.auth.server.ClaimURL(link.Token), nil
}

func (d *demo) print(link, node string) {
	var b strings.Builder
	b.WriteString("\nSallyport is up: everything goes through " + d.node.cfg.Gateway.PublicAddress + ".\n\n")
	if link != "" {
		fmt.Fprintf(&b, "1. Claim the first admin (once, within an hour; the certificate is the demo's own, so the browser warns):\n     %s\n\n2. Then try, in another terminal:\n", link)
	} else {
		fmt.Fprintf(&b, "The account %q has been claimed. Try, in another terminal:\n", demoAdmin)
	}
	self, err := os.Executable()
	if err != nil {
		self = os.Args[0]
	}
	b.WriteString(d.commands(d.node.auth.keys.Pins()[0], node, filepath.Dir(self)))
	_, port, _ := net.SplitHostPort(d.node.cfg.Gateway.PublicAddress) // made by pickPort
	fmt.Fprintf(&b, "\nOr in a browser: log in, and see who a web application thinks you are:\n     https://%s\n", net.JoinHostPort(whoamiName+"."+demoCluster, port))
	b.WriteString("\nStop with Ctrl-C.\n\n")
	fmt.Fprint(d.p.stdout, b.String())
}

// commands are to be pasted, in any directory.
func (d *demo) commands(pin, node, bin string) string {
	var b strings.Builder
	say := func(format string, args ...any) { fmt.Fprintf(&b, "     "+format+"\n", args...) }
	say("export PATH=%s:$PATH", shellQuote(bin))
	say("sally login --proxy=%s --user=%s --ca-pin=%s", d.node.cfg.Gateway.PublicAddress, demoAdmin, pin)
	say("sally ls")
	say("sally ssh %s@%s", currentUser(), node)
	if len(d.node.cfg.Agent.Databases) > 0 {
		say("sally db ls")
	}
	if d.postgres != nil {
		say("sally db connect --db-user=writer --db-name=%s %s", demoDatabase, demoDatabase)
		say("sally db login --db-user=writer --db-name=%s %s && psql service=%s-%s", demoDatabase, demoDatabase, demoCluster, demoDatabase)
	}
	if d.has(demoMariaDB) {
		say("sally db connect --db-user=writer --db-name=%s %s", demoDatabase, demoMariaDB)
	}
	if d.has(demoRedis) {
		say("sally db connect --db-user=writer %s", demoRedis)
	}
	say("mkdir -p -m 700 ~/.ssh && sally config >> ~/.ssh/config && ssh %s@%s.%s", currentUser(), node, demoCluster)
	say("printf 'hello\\n' | sally proxy tcp --stdio echo")
	say("$(sally apps config --format=curl %s)", whoamiName)
	data := shellQuote(d.node.cfg.DataDir)
	say("sallyport upgrade --data-dir=%s        # a new process; what runs goes on", data)
	say("sallyctl --data-dir=%s users ls", data)
	say("sallyctl --data-dir=%s audit search --limit=5", data)
	return b.String()
}

func shellQuote(s string) string {
	if !strings.ContainsFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_./", r))
	}) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// readyJSON is what scripts read.
type readyJSON struct {
	Proxy      string          `json:"proxy"`
	Cluster    string          `json:"cluster"`
	CAPin      string          `json:"ca_pin"`
	User       string          `json:"user"`
	Password   string          `json:"password"`
	TOTPSecret string          `json:"totp_secret"`
	Resources  []readyResource `json:"resources"`
}

type readyResource struct {
	Kind          string   `json:"kind"`
	Name          string   `json:"name"`
	Protocol      string   `json:"protocol,omitempty"`
	Logins        []string `json:"logins,omitempty"`
	DatabaseUsers []string `json:"db_users,omitempty"`
	DatabaseNames []string `json:"db_names,omitempty"`
}

// ready makes an admin with a password and a one-time code device, by the same
// link that a person would use, and writes the file whole.
func (d *demo) ready(ctx context.Context, node string) error {
	users := d.node.auth.users
	link, err := users.CreateUser(ctx, d.admin(), claimTTL)
	if errors.Is(err, sallyport.ErrExists) {
		link, err = users.ResetUser(ctx, demoAdmin, claimTTL)
	}
	if err != nil {
		return err
	}
	offer, err := users.Offer(ctx, link.Token)
	if err != nil {
		return err
	}
	password := rand.Text()
	// A code works once: the one before leaves the present one to whoever logs in.
	code, err := login.Code(offer.Secret, time.Now().Add(-30*time.Second))
	if err != nil {
		return err
	}
	if _, err := users.Claim(ctx, login.Claim{Token: link.Token, Password: password, Code: code}); err != nil {
		return err
	}
	r := readyJSON{Proxy: d.node.cfg.Gateway.PublicAddress, Cluster: demoCluster, CAPin: d.node.auth.keys.Pins()[0], User: demoAdmin, Password: password, TOTPSecret: offer.Secret}
	for _, res := range d.node.agent.host.Resources() {
		j := readyResource{Kind: string(res.Kind), Name: res.Name, Protocol: res.Protocol}
		switch res.Kind {
		case sallyport.KindNode:
			j.Logins = []string{currentUser()}
		case sallyport.KindDatabase:
			j.DatabaseUsers, j.DatabaseNames = d.users, d.traits()["db_names"]
		}
		r.Resources = append(r.Resources, j)
	}
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return durable.WriteFile(d.ReadyJSON, append(b, '\n'))
}
