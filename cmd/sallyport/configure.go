package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/cmd/internal/usage"
)

type configureCmd struct {
	Cluster string   `name:"cluster" placeholder:"NAME" help:"Public name of the cluster, for example gw.example.com."`
	Roles   []string `name:"roles" default:"auth,gateway,agent" help:"Roles of this process."`
	DataDir string   `name:"data-dir" default:"/var/lib/sallyport" help:"Directory for state."`
	Auth    string   `name:"auth" placeholder:"HOST:PORT" help:"Where auth is, for a gateway without the role auth."`
	Gateway string   `name:"gateway" placeholder:"HOST:PORT" help:"Where the gateway is, for an agent without the role gateway."`
	CAPin   string   `name:"ca-pin" placeholder:"sha256:HEX" help:"Pin of the cluster's host CA; sallyctl status prints it."`
	Route   []string `name:"route" sep:"none" placeholder:"NAME=HOST:PORT,…" help:"A static route of the gateway; may be repeated. With --roles=gateway and no --auth, routes are all that is served."`
	Token   string   `name:"token-file" placeholder:"FILE" help:"File with the join token."`
	Output  string   `name:"output" short:"o" placeholder:"FILE" help:"Where to write; standard output without."`
	Force   bool     `name:"force" help:"Replace a file that exists."`
}

// Help shows examples.
func (*configureCmd) Help() string {
	return usage.Examples("sallyport configure --cluster=gw.example.com -o /etc/sallyport.yaml",
		"sallyport configure --roles=gateway --route=shop.example.com=10.0.0.11:443,10.0.0.12:443",
		"sallyport configure --roles=agent --gateway=gw.example.com:443 --token-file=/etc/sallyport.token --ca-pin=sha256:…")
}

// Run writes a configuration that start takes as it is.
func (c *configureCmd) Run(p *program) error {
	if err := c.check(); err != nil {
		return err
	}
	text := c.text()
	if _, err := parseConfig([]byte(text)); err != nil {
		return unmade(err)
	}
	if c.Output == "" || c.Output == "-" {
		_, err := fmt.Fprint(p.stdout, text)
		return err
	}
	flags := os.O_WRONLY | os.O_CREATE | os.O_EXCL
	if c.Force {
		flags = os.O_WRONLY | os.O_CREATE | os.O_TRUNC
	}
	f, err := os.OpenFile(c.Output, flags, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return &sallyport.Problem{Kind: sallyport.ErrExists, Fact: c.Output + " exists", Hint: "use --force to replace it"}
	}
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	fmt.Fprintf(p.stdout, "Wrote %s. Next: sallyport start -c %s\n", c.Output, c.Output)
	return nil
}

// check finds what must not stand in the text at all.
func (c *configureCmd) check() error {
	k := &checker{}
	if c.Cluster != "" && !validCluster(c.Cluster) {
		k.add("cluster", "%q is not a DNS name in lower case", c.Cluster)
	}
	for _, r := range c.Roles {
		k.oneOf("roles", r, roleAuth, roleGateway, roleAgent)
	}
	for _, r := range c.Route {
		if name, to, ok := strings.Cut(r, "="); !ok || name == "" || to == "" {
			k.add("", "--route=%s is not NAME=HOST:PORT", r)
		}
	}
	c.unused(k)
	for _, text := range append([]string{c.DataDir, c.Auth, c.Gateway, c.CAPin, c.Token}, c.Route...) {
		if !utf8.ValidString(text) || strings.ContainsFunc(text, unicode.IsControl) {
			k.add("", "%q holds control characters", text)
		}
	}
	if len(k.found) > 0 {
		return unmade(k.found)
	}
	return nil
}

// unused finds flags that the roles have no use for: a file without what was asked
// for would look like one with it.
func (c *configureCmd) unused(k *checker) {
	joins := !c.has(roleAuth) && (c.has(roleAgent) || c.has(roleGateway) && !c.routesAlone())
	for _, f := range []struct {
		flag, value string
		used        bool
		what        string
	}{
		{"auth", c.Auth, c.has(roleGateway) && !c.has(roleAuth), "is for a gateway without the role auth"},
		{"gateway", c.Gateway, c.has(roleAgent) && !c.has(roleGateway), "is for an agent without the role gateway"},
		{"ca-pin", c.CAPin, joins, "is for a host that joins the cluster of another one"},
		{"token-file", c.Token, joins, "is for a host that joins the cluster of another one"},
		{"route", strings.Join(c.Route, " "), c.has(roleGateway), "is for a gateway"},
	} {
		if f.value != "" && !f.used {
			k.add("", "--%s %s, and --roles is %s", f.flag, f.what, strings.Join(c.Roles, ","))
		}
	}
}

// routesAlone says that the gateway has no cluster.
func (c *configureCmd) routesAlone() bool {
	return len(c.Route) > 0 && c.Auth == "" && !c.has(roleAuth)
}

// unmade tells what is wrong with the flags: the lines of a file that was not
// written mean nothing to the person who gave them.
func unmade(err error) error {
	fact := err.Error()
	var f faults
	if errors.As(err, &f) {
		var all []string
		for _, x := range f {
			all = append(all, strings.TrimPrefix(x.path+": "+x.fact, ": "))
		}
		fact = strings.Join(all, "; ")
	}
	return &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: "these flags make no configuration: " + fact, Hint: "sallyport configure --help"}
}

// plain is text that YAML reads as itself without quotes.
var plain = regexp.MustCompile(`^[/a-zA-Z][-_./a-zA-Z0-9]*$`)

// scalar writes text as YAML.
func scalar(text string) string {
	if plain.MatchString(text) && !slices.Contains([]string{"true", "false", "null", "yes", "no", "on", "off", "y", "n"}, strings.ToLower(text)) {
		return text
	}
	return strconv.Quote(text)
}

func (c *configureCmd) has(role string) bool { return slices.Contains(c.Roles, role) }

func (c *configureCmd) text() string {
	var b strings.Builder
	cluster := c.Cluster
	if cluster == "" && c.has(roleAuth) {
		cluster = "localhost"
	}
	b.WriteString("# Sallyport's configuration: docs/config.md has every field.\nversion: 1\n")
	if cluster != "" {
		fmt.Fprintf(&b, "\n# The cluster's public name. Clients find resources below it: <name>.<kind>.%s.\ncluster: %s\n", cluster, cluster)
	}
	fmt.Fprintf(&b, "\n# Keys, certificates, state and the audit log; 0700.\ndata_dir: %s\n\n# What this process runs.\nroles: [%s]\n", scalar(c.DataDir), strings.Join(c.Roles, ", "))
	if c.has(roleAuth) {
		c.auth(&b)
	}
	if c.has(roleGateway) {
		c.gateway(&b)
	}
	if c.has(roleAgent) {
		c.agent(&b)
	}
	b.WriteString("\nlog: {level: info, format: text} # debug, info, warn, error; text or json\n")
	return b.String()
}

func (c *configureCmd) auth(b *strings.Builder) {
	b.WriteString(`
auth:
  etcd: {embedded: true}        # or endpoints: ["https://etcd1:2379"], tls: {ca: …, cert: …, key: …}
  second_factor: optional       # off, optional, totp
`)
	if !c.has(roleGateway) {
		b.WriteString("  listen: [\":3025\"]             # for gateways on other machines\n")
	}
	b.WriteString("  offline: {max_age: 12h}       # how long agents decide without contact to auth\n")
}

func (c *configureCmd) gateway(b *strings.Builder) {
	b.WriteString("\ngateway:\n  listen: [\":443\"]\n  # public_address: gw.example.com:443      # when clients use another port than listen's\n")
	alone := c.routesAlone()
	if !c.has(roleAuth) && !alone {
		fmt.Fprintf(b, "  auth: %q\n  join: {token_file: %q, ca_pin: %q}\n", orText(c.Auth, "auth.example.com:3025"), orText(c.Token, "/etc/sallyport.token"), orText(c.CAPin, examplePin))
	}
	if !alone {
		b.WriteString("  # certificates: [{cert: /etc/ssl/fullchain.pem, key: /etc/ssl/key.pem}]   # without: the cluster's own CA\n")
	}
	b.WriteString("  # proxy_protocol: {trusted: [10.0.0.0/8]}  # load balancers that send PROXY headers\n")
	if len(c.Route) == 0 {
		b.WriteString("  # routes: [{names: [shop.example.com], to: [\"10.0.0.11:443\", \"10.0.0.12:443\"]}]   # names that lead past any agent\n")
		return
	}
	b.WriteString("  routes:                     # docs/static-routes.md; sallyport reload after a change\n")
	for _, r := range c.Route {
		name, to, _ := strings.Cut(r, "=")
		var servers []string
		for server := range strings.SplitSeq(to, ",") {
			servers = append(servers, strconv.Quote(server))
		}
		fmt.Fprintf(b, "    - {names: [%q], to: [%s]}\n", name, strings.Join(servers, ", "))
	}
}

// examplePin is well-formed and nobody's: a host that joins by it ends, since no
// CA has it.
const examplePin = "sha256:0000000000000000000000000000000000000000000000000000000000000000"

func (c *configureCmd) agent(b *strings.Builder) {
	b.WriteString("\nagent:\n")
	if !c.has(roleGateway) {
		fmt.Fprintf(b, "  gateways: [%q]\n", orText(c.Gateway, "gw.example.com:443"))
	}
	if !c.has(roleAuth) {
		fmt.Fprintf(b, "  join: {token_file: %q, ca_pin: %q}   # sallyctl tokens add prints both\n", orText(c.Token, "/etc/sallyport.token"), orText(c.CAPin, examplePin))
	}
	b.WriteString(`  ssh: {enabled: true, labels: {env: prod}}
  # databases: [{name: orders, protocol: postgres, address: "localhost:5432", labels: {env: prod}}]
  # kubernetes: [{name: prod, kubeconfig: /etc/sallyport.kubeconfig, labels: {env: prod}}]
  # tcp: [{name: echo, address: "localhost:7"}]
  # apps: [{name: grafana, uri: "http://localhost:3000", labels: {env: prod}}]
`)
}

func orText(s, other string) string {
	if s == "" {
		return other
	}
	return s
}
