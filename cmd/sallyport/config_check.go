package main

import (
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sallyport/sallyport/alpn"
	"github.com/sallyport/sallyport/dataplane/protocol/app"
	"github.com/sallyport/sallyport/dataplane/protocol/aws"
	"github.com/sallyport/sallyport/dataplane/relay"
	"github.com/sallyport/sallyport/dataplane/sigv4"
	"github.com/sallyport/sallyport/identity"
)

// checker collects what the grammar cannot find.
type checker struct {
	cluster string // "" when it is not known
	found   faults
}

func (k *checker) add(path, format string, args ...any) {
	k.found = append(k.found, fault{path: path, fact: fmt.Sprintf(format, args...)})
}

// check returns faults, or nil.
func (c *config) check() error { return c.checkOf("") }

// checkOf is check where the cluster is known although it is not written down.
func (c *config) checkOf(cluster string) error {
	k := &checker{cluster: orText(c.Cluster, cluster)}
	switch c.Version {
	case configVersion:
	case 0:
		k.add("version", "missing; write version: %d", configVersion)
	default:
		k.add("version", "%d; this program reads version: %d", c.Version, configVersion)
	}
	if len(c.Roles) == 0 {
		k.add("roles", "name at least one of auth, gateway, agent")
	}
	for i, r := range c.Roles {
		k.oneOf(fmt.Sprintf("roles[%d]", i), r, roleAuth, roleGateway, roleAgent)
		if slices.Contains(c.Roles[:i], r) {
			k.add(fmt.Sprintf("roles[%d]", i), "%s is named twice", r)
		}
	}
	switch {
	case c.Cluster == "" && c.has(roleAuth):
		k.add("cluster", "the public name of the cluster is needed, for example gw.example.com")
	case c.Cluster != "" && !validCluster(c.Cluster):
		k.add("cluster", "%q is not a DNS name in lower case", c.Cluster)
	}
	k.auth(&c.Auth)
	k.gateway(c)
	k.agent(c)
	k.rest(c)
	if len(k.found) == 0 {
		return nil
	}
	return k.found
}

func (k *checker) auth(a *authConfig) {
	if a.SecondFactor != "" {
		k.oneOf("auth.second_factor", a.SecondFactor, "off", "optional", "totp")
	}
	if a.Etcd.Embedded != nil {
		switch embedded, endpoints := *a.Etcd.Embedded, len(a.Etcd.Endpoints); {
		case embedded && endpoints > 0:
			k.add("auth.etcd", "embedded: true and endpoints exclude each other")
		case !embedded && endpoints == 0:
			k.add("auth.etcd", "embedded: false needs endpoints")
		}
	}
	if q := a.Etcd.QuotaMiB; q != nil {
		switch {
		case len(a.Etcd.Endpoints) > 0:
			k.add("auth.etcd.quota_mib", "is of the embedded store; an etcd cluster has its own (--quota-backend-bytes)")
		case *q < leastQuotaMiB || *q > mostQuotaMiB:
			k.add("auth.etcd.quota_mib", "%d; from %d to %d", *q, leastQuotaMiB, mostQuotaMiB)
		}
	}
	if (a.Etcd.TLS.Cert == "") != (a.Etcd.TLS.Key == "") {
		k.add("auth.etcd.tls", "cert and key are needed together")
	}
	// It goes to the hosts in seconds, and 0 of them are their default.
	if d := a.Offline.maxAge(); d < time.Second || d%time.Second != 0 {
		k.add("auth.offline.max_age", "%s; 1s or more, in whole seconds", d)
	}
	k.addresses("auth.listen", a.Listen)
}

func (k *checker) gateway(c *config) {
	g := &c.Gateway
	if c.routesAlone() && len(g.Routes) == 0 {
		k.add("gateway.auth", "the address of auth is needed, or routes to serve without it")
	}
	if g.Auth != "" {
		k.address("gateway.auth", g.Auth)
		if !c.has(roleAuth) && g.Join.CAPin == "" {
			k.add("gateway.join.ca_pin", "needed to know auth by; sallyctl status on the auth host prints it")
		}
	}
	if g.PublicAddress != "" {
		k.address("gateway.public_address", g.PublicAddress)
	}
	k.pin("gateway.join.ca_pin", g.Join.CAPin)
	if len(g.Certificates) > 0 && c.routesAlone() {
		k.add("gateway.certificates", "nothing here ends TLS: routes pass it through, and the web origin needs auth")
	}
	for i, p := range g.Certificates {
		if p.Cert == "" || p.Key == "" {
			k.add(fmt.Sprintf("gateway.certificates[%d]", i), "cert and key are needed together")
		}
	}
	for i, p := range g.ProxyProtocol.Trusted {
		if _, err := network(p); err != nil {
			k.add(fmt.Sprintf("gateway.proxy_protocol.trusted[%d]", i), "%v", err)
		}
	}
	k.addresses("gateway.listen", g.Listen)
	k.apart("gateway.listen", g.Listen)
	k.routes(g)
	k.silent(g)
	k.upstreams(g)
	k.limits(&g.Limits)
	if g.IOUring != "" {
		k.oneOf("gateway.io_uring", g.IOUring, words(relay.Batches())...)
	}
}

func words[T ~string](list []T) (out []string) {
	for _, w := range list {
		out = append(out, string(w))
	}
	return out
}

func didYouMean(name string, known map[string]upstream) string {
	var names []string
	for k := range known {
		names = append(names, k)
	}
	slices.Sort(names)
	if near := nearest(name, names); near != "" {
		return fmt.Sprintf("; did you mean %q?", near)
	}
	return ""
}

func (k *checker) agent(c *config) {
	a := &c.Agent
	if c.has(roleAgent) {
		if !c.has(roleGateway) && len(a.Gateways) == 0 {
			k.add("agent.gateways", "at least one host:port is needed")
		}
		if !c.has(roleAuth) && a.Join.CAPin == "" {
			k.add("agent.join.ca_pin", "needed to know auth by; sallyctl tokens add prints it")
		}
	}
	k.pin("agent.join.ca_pin", a.Join.CAPin)
	k.addresses("agent.gateways", a.Gateways)
	if a.SSH.Name != "" && !label.MatchString(a.SSH.Name) {
		k.add("agent.ssh.name", "%q is not one DNS label in lower case", a.SSH.Name)
	}
	seen := map[string]bool{}
	for i, d := range a.Databases {
		where := fmt.Sprintf("agent.databases[%d]", i)
		k.oneOf(where+".protocol", d.Protocol, protocolPostgres, protocolMySQL, protocolRedis)
		if d.TLS.Mode != "" {
			k.oneOf(where+".tls.mode", d.TLS.Mode, "verify-full", "verify-ca", "insecure")
		}
		k.named(where, d.Name, seen)
		k.address(where+".address", d.Address)
	}
	seen = map[string]bool{}
	for i, t := range a.TCP {
		where := fmt.Sprintf("agent.tcp[%d]", i)
		k.named(where, t.Name, seen)
		if strings.HasPrefix(t.Address, "unix:") {
			k.server(where+".address", t.Address)
		} else {
			k.address(where+".address", t.Address)
		}
	}
	k.kubernetes(a.Kubernetes)
	k.apps(a.Apps)
}

func (k *checker) kubernetes(list []kubernetesConfig) {
	seen := map[string]bool{}
	for i, c := range list {
		where := fmt.Sprintf("agent.kubernetes[%d]", i)
		k.named(where, c.Name, seen)
		switch {
		case c.InCluster && (c.Kubeconfig != "" || c.Context != ""):
			k.add(where, "in_cluster and a kubeconfig exclude each other")
		case !c.InCluster && c.Kubeconfig == "":
			k.add(where+".kubeconfig", "a file is needed, or in_cluster: true where the agent is a pod")
		}
	}
}

func (k *checker) apps(list []appConfig) {
	seen := map[string]bool{}
	for i, a := range list {
		where := fmt.Sprintf("agent.apps[%d]", i)
		k.named(where, a.Name, seen)
		if alpn.Reserved(a.Name) {
			k.add(where+".name", "%q is reserved: %s below the cluster's name is for something else", a.Name, a.Name)
		}
		if a.isAWS() {
			k.aws(where, &a)
			continue
		}
		if err := (app.Target{URI: a.URI}).Check(); err != nil {
			k.add(where+".uri", "%v", err)
		}
		if err := (app.Target{URI: "http://localhost", Redirects: a.Rewrite.Redirects}).Check(); err != nil {
			k.add(where+".rewrite.redirects", "%v", err)
		}
		for j, h := range a.Rewrite.Headers {
			if _, err := parseHeader(h); err != nil {
				k.add(fmt.Sprintf("%s.rewrite.headers[%d]", where, j), "%v", err)
			}
		}
		if a.TLS != (appTLS{}) && !strings.HasPrefix(a.URI, "https:") {
			k.add(where+".tls", "only an application at https:// has a certificate")
		}
	}
}

// aws checks an application that is for AWS's clients.
func (k *checker) aws(where string, a *appConfig) {
	if err := (aws.Target{URI: a.URI}).Check(); err != nil {
		k.add(where+".uri", "%v", err)
	}
	if len(a.Rewrite.Headers)+len(a.Rewrite.Redirects) > 0 {
		k.add(where+".rewrite", "requests to AWS are signed, and nothing else is changed in them")
	}
	if a.TLS != (appTLS{}) && (aws.IsConsole(a.URI) || !strings.HasPrefix(a.URI, "https:")) {
		k.add(where+".tls", "only a server at https:// has a certificate, and AWS's own are known by the system's CAs")
	}
	if a.AWS.OwnRole != "" && !aws.ValidRole(a.AWS.OwnRole) {
		k.add(where+".aws.own_role", "%q is not the ARN of a role: arn:aws:iam::123456789012:role/NAME", a.AWS.OwnRole)
	}
	if a.AWS.OwnRole != "" && len(a.AWS.Services) == 0 && !aws.IsConsole(a.URI) {
		k.add(where+".aws.own_role", "needs aws.services where uri is not AWS's console: a server might take a request for one service as one for STS, which gives the agent's own credentials away")
	}
	if a.AWS.STS != "" {
		if err := aws.CheckSTS(a.AWS.STS); err != nil {
			k.add(where+".aws.sts", "%v", err)
		}
	}
	for i, w := range a.AWS.Services {
		if !sigv4.Word(w) {
			k.add(fmt.Sprintf("%s.aws.services[%d]", where, i), "%q is not the name of a service", w)
		}
	}
	for i, w := range a.AWS.Regions {
		if !sigv4.Word(w) {
			k.add(fmt.Sprintf("%s.aws.regions[%d]", where, i), "%q is not the name of a region", w)
		}
	}
}

func (k *checker) rest(c *config) {
	if c.Log.Level != "" {
		k.oneOf("log.level", c.Log.Level, "debug", "info", "warn", "error")
	}
	if c.Log.Format != "" {
		k.oneOf("log.format", c.Log.Format, "text", "json")
	}
	if c.Metrics.Socket != "" && c.Metrics.Socket != adminSocket {
		k.add("metrics.socket", "%q: this version serves counters on %s in data_dir only", c.Metrics.Socket, adminSocket)
	}
	if d := c.Upgrade.drain(); d < 0 || d > longestDrain {
		k.add("upgrade.drain", "%v is not within 0s and %v", d, longestDrain)
	}
	if c.Metrics.Listen == "" {
		return
	}
	host, _, err := net.SplitHostPort(c.Metrics.Listen)
	if ip, perr := netip.ParseAddr(host); err != nil || host != "localhost" && (perr != nil || !ip.IsLoopback()) {
		k.add("metrics.listen", "%q is not host:port on a loopback address", c.Metrics.Listen)
	}
}

// longestDrain is a month: who wants more has forgotten something.
const longestDrain = 720 * time.Hour

// oneOf is for words that stand for themselves.
func (k *checker) oneOf(path, word string, known ...string) {
	if slices.Contains(known, word) {
		return
	}
	fact := fmt.Sprintf("%q is none of %s", word, strings.Join(known, ", "))
	if near := nearest(word, known); near != "" {
		fact += fmt.Sprintf("; did you mean %q?", near)
	}
	k.add(path, "%s", fact)
}

// label is one DNS label in lower case (RFC 1123, section 2.1).
var label = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

func (k *checker) named(where, name string, seen map[string]bool) {
	switch {
	case !label.MatchString(name):
		k.add(where+".name", "%q is not one DNS label in lower case", name)
	case seen[name]:
		k.add(where+".name", "%q is named twice", name)
	}
	seen[name] = true
}

func validCluster(name string) bool {
	for part := range strings.SplitSeq(name, ".") {
		if !label.MatchString(part) {
			return false
		}
	}
	return len(name) <= 200
}

func (k *checker) pin(path, pins string) {
	if pins == "" {
		return
	}
	for pin := range strings.SplitSeq(pins, ",") {
		if !identity.ValidPin(pin) {
			k.add(path, "%q is not sha256: and 64 hex digits", pin)
		}
	}
}

func (k *checker) addresses(where string, list []string) {
	for i, a := range list {
		k.address(fmt.Sprintf("%s[%d]", where, i), a)
	}
}

// apart finds an address that another before it has in it: it would be in use when
// its turn came.
func (k *checker) apart(where string, list []string) {
	for i, a := range list {
		for j, b := range list[:i] {
			if port, ok := overlap(a, b); ok {
				k.add(fmt.Sprintf("%s[%d]", where, i), "%q and %s[%d], %q, have addresses in common; \":%s\" alone is all of IPv4 and IPv6", a, where, j, b, port)
			}
		}
	}
}

// overlap says whether two addresses to listen at have one in common, at which port,
// as far as that can be told without looking names up.
func overlap(a, b string) (port string, ok bool) {
	one, port, err := net.SplitHostPort(a)
	other, same, err2 := net.SplitHostPort(b)
	if err != nil || err2 != nil || port != same || port == "0" {
		return "", false
	}
	return port, one == other || covers(one, other) || covers(other, one)
}

// covers says whether who listens at host does so at other, too.
func covers(host, other string) bool {
	switch host {
	case "", "::":
		return true
	case "0.0.0.0":
		ip, err := netip.ParseAddr(other)
		return err == nil && ip.Is4()
	}
	return false
}

func (k *checker) address(where, a string) {
	_, port, err := net.SplitHostPort(a)
	if err != nil {
		k.add(where, "%q is not host:port", a)
		return
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		k.add(where, "%q has no port from 0 to 65535", a)
	}
}
