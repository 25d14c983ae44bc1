package main

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/alpn"
	"github.com/sallyport/sallyport/dataplane/gateway"
	"github.com/sallyport/sallyport/dataplane/tunnel"
)

// good is a configuration that uses every field.
const good = `version: 1
cluster: gw.example.com
data_dir: /var/lib/sallyport
roles: [auth, gateway, agent]
auth:
  etcd: {embedded: false, endpoints: ["https://etcd1:2379"], tls: {ca: ca.pem, cert: c.pem, key: k.pem}}
  second_factor: totp
  listen: [":3025"]
  offline: {max_age: 6h}
gateway:
  listen: ["0.0.0.0:443", "[::1]:443", ":8443"]
  public_address: gw.example.com:443
  auth: auth.example.com:3025
  join: {token_file: token, ca_pin: "sha256:0000000000000000000000000000000000000000000000000000000000000000"}
  certificates: [{cert: a.pem, key: b.pem}]
  proxy_protocol: {trusted: [10.0.0.0/8, "fd00::/8"]}
  routes:
    - match: {sni: [shop.example.com, "*.shop.example.com"], alpn: [h2]}
      upstream: shop
      mode: passthrough
    - {names: [mail.example.com], alpn: [imap], to: ["10.0.0.12:993", "unix:/run/mail.sock"], send_proxy: v2, postgres: direct}
  io_uring: on
  upstreams:
    shop: {servers: ["10.0.0.11:443", "[fe80::1%eth0]:443", "shop_1.internal.:443", "3com:443"], policy: round_robin, send_proxy: v2, postgres: direct}
  silent: {after: 1s, to: ["10.0.0.13:3306"], send_proxy: v2}
  limits:
    {handshake: 20s, connect: 1s, idle: 1h, waiting_per_source: 32, waiting: 8192, rate_per_source: 40, large_hellos: 8, web_per_source: 9, web: 100,
     half_open_per_source: 17, half_open_per_agent: 65, half_open: 4097, stream_rate: 21, parked_min: 2, parked_per_agent: 300, parked: 1000, parked_for: 1m, carried: 50, lease_wait: 3s,
     agents: 100, resources_per_agent: 200}
agent:
  gateways: ["gw.example.com:443"]
  join: {token_file: token, ca_pin: "sha256:0000000000000000000000000000000000000000000000000000000000000000"}
  group: db
  ssh: {enabled: true, name: web-1, labels: {env: prod, n: 1}, listen_anywhere: true}
  databases:
    - {name: orders, protocol: postgres, address: "localhost:5432", description: Orders, labels: {env: prod}, tls: {mode: verify-ca, ca: ca.pem, server_name: db1}}
  kubernetes:
    - {name: prod, kubeconfig: kube.yaml, context: agent, description: Prod, labels: {env: prod}}
    - {name: own, in_cluster: true}
  tcp: [{name: echo, address: "localhost:7", description: Echo, labels: {a: b}}]
  apps: [{name: grafana, uri: "https://localhost:3000", description: Charts, labels: {a: b}, tls: {insecure: true}, rewrite: {headers: ["X-Email: {{external.email}}"], redirects: [grafana.internal]}}, {name: cloud, uri: "https://console.aws.amazon.com"}, {name: dynamo, uri: "http://localhost:8000", aws: {own_role: "arn:aws:iam::123456789012:role/local", external_id: x, sts: "http://localhost:8001", services: [dynamodb], regions: [eu-central-1]}}]
metrics: {socket: admin.sock, listen: "127.0.0.1:9443"}
log: {level: debug, format: json}
upgrade: {drain: 1h}
`

// TestConfigAsWritten: labels without quotes became other labels, and a role that denied
// the release 1.10 did not see it.
func TestConfigAsWritten(t *testing.T) {
	c, err := parseConfig([]byte(strings.Replace(good, "labels: {env: prod}, tls", "labels: {release: 1.10, zip: 0123, hex: 0x1F, large: 1_000, commit: 12e4567, \"on\": True, no: false, end: .inf, word: a, quoted: '1.10', 1.10: 2.0, named: &r 1.20, same: *r}, tls", 1)))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"release": "1.10", "zip": "0123", "hex": "0x1F", "large": "1_000", "commit": "12e4567", "on": "True", "no": "false", "end": ".inf", "word": "a", "quoted": "1.10", "1.10": "2.0", "named": "1.20", "same": "1.20"}
	if got := c.Agent.Databases[0].Labels; !maps.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestParseConfig(t *testing.T) {
	c, err := parseConfig([]byte(good))
	if err != nil {
		t.Fatal(err)
	}
	if c.Auth.Offline.maxAge() != 6*time.Hour || c.Gateway.Routes[0].Match.SNI[1] != "*.shop.example.com" || c.Agent.Databases[0].TLS.ServerName != "db1" ||
		c.Agent.SSH.Labels["n"] != "1" || *c.Auth.Etcd.Embedded || c.Log.Format != "json" {
		t.Errorf("%+v", c)
	}
	const cluster, embedded = `{embedded: false, endpoints: ["https://etcd1:2379"], tls: {ca: ca.pem, cert: c.pem, key: k.pem}}`, "{embedded: true, quota_mib: 100}"
	c, err = parseConfig([]byte(strings.Replace(good, cluster, embedded, 1)))
	if err != nil || c.Auth.Etcd.quota() != 100<<20 {
		t.Errorf("%+v, %v", c, err)
	}
	if q := new(etcdConfig).quota(); q != 0 {
		t.Errorf("a quota of %d by default", q)
	}
	// Every field is used above, so that none goes untested.
	for _, p := range paths(reflect.TypeFor[config](), "") {
		word := p[strings.LastIndex(p, ".")+1:]
		if !strings.Contains(good+embedded, strings.TrimSuffix(word, "[]")+":") {
			t.Errorf("%s is not in the example", p)
		}
	}
}

// TestByteOrderMark: the first field after one was unknown.
func TestByteOrderMark(t *testing.T) {
	if _, err := parseConfig([]byte("\ufeff" + good)); err != nil {
		t.Error(err)
	}
	var f faults
	if _, err := parseConfig([]byte("\ufeffversion: 1\nroles: [gate]\n")); !errors.As(err, &f) || f[0].line != 2 {
		t.Errorf("%v", err)
	}
}

// TestTrustedAddress: a proxy may be named by its address alone.
func TestTrustedAddress(t *testing.T) {
	got, err := networks([]string{"10.0.0.5", "fd00::5", "10.1.0.0/16"})
	want := []netip.Prefix{netip.MustParsePrefix("10.0.0.5/32"), netip.MustParsePrefix("fd00::5/128"), netip.MustParsePrefix("10.1.0.0/16")}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v", got, err)
	}
}

// TestResolve: files are found beside the file that names them.
func TestResolve(t *testing.T) {
	c, err := parseConfig([]byte("version: 1\ncluster: gw.test\nroles: [auth, gateway, agent]\ngateway: {certificates: [{cert: web.pem, key: web.key}]}\n" +
		"agent: {databases: [{name: a, protocol: postgres, address: 'a:1', tls: {ca: ca.pem}}], kubernetes: [{name: k, kubeconfig: kube.yaml}],\n" +
		"  apps: [{name: b, uri: 'https://b', tls: {ca: b.pem}}, {name: c, uri: 'https://c', tls: {ca: /c.pem}}]}\n"))
	if err != nil {
		t.Fatal(err)
	}
	c.resolve("/etc/sallyport")
	got := []string{c.Gateway.Certificates[0].Key, c.Agent.Databases[0].TLS.CA, c.Agent.Kubernetes[0].Kubeconfig, c.Agent.Apps[0].TLS.CA, c.Agent.Apps[1].TLS.CA}
	want := []string{"/etc/sallyport/web.key", "/etc/sallyport/ca.pem", "/etc/sallyport/kube.yaml", "/etc/sallyport/b.pem", "/c.pem"}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestDefaults(t *testing.T) {
	c, err := parseConfig([]byte("version: 1\ncluster: gw.example.com\nroles: [auth, gateway, agent]\nagent: {databases: [{name: a, protocol: postgres, address: 'a:1'}]}\n"))
	if err != nil {
		t.Fatal(err)
	}
	if c.DataDir != defaultData || c.Auth.SecondFactor != "optional" || c.Log.Level != "info" || c.Log.Format != "text" || c.Gateway.Listen[0] != ":443" ||
		c.Gateway.PublicAddress != "gw.example.com:443" || c.Auth.Offline.maxAge() != 12*time.Hour || c.Agent.Databases[0].TLS.Mode != "verify-full" {
		t.Errorf("%+v", c)
	}
}

// TestPagesAddress: links name what the cluster's pages are found by.
func TestPagesAddress(t *testing.T) {
	for public, want := range map[string]string{
		"gw.example.com:443": "gw.example.com:443", "gw.example.com:8443": "gw.example.com:8443",
		"192.0.2.7:443": "192.0.2.7:443", "[2001:db8::7]:443": "[2001:db8::7]:443",
		"east.example.com:443": "gw.example.com:443", "localhost:9443": "gw.example.com:9443",
	} {
		c := &config{Cluster: "gw.example.com"}
		c.Gateway.PublicAddress = public
		if got := c.pagesAddress(); got != want {
			t.Errorf("%s: %s, want %s", public, got, want)
		}
	}
}

// TestConfigFaults: each fault has its line and column, and words that help.
func TestConfigFaults(t *testing.T) {
	const head = "version: 1\ncluster: gw.test\nroles: [auth, gateway, agent]\n"
	for _, tt := range []struct{ name, in, want string }{
		{"empty", "", "1:1: the configuration is empty; sallyport configure writes one"},
		{"comments", "# nothing\n", "1:1: the configuration is empty; sallyport configure writes one"},
		{"text", "hello\n", `1:1: names with values (name: value) are needed here, not "hello"`},
		{"list", "- a\n", "1:1: names with values (name: value) are needed here, not a list"},
		{"syntax", head + "auth: [\n", "4:7: sequence end token ']' not found"},
		{"tab", head + "\tauth: 1\n", "4:"},
		{"two documents", head + "---\nlog: {level: debug}\n", "4:1: a second document begins here; a configuration is one"},
		{"marker first", "---\n" + head + "lgo: {}\n", `5:1: unknown field "lgo"; did you mean "log"?`},

		{"unknown", head + "gatway: {}\n", `4:1: unknown field "gatway"; did you mean "gateway"?`},
		{"unknown below", head + "gateway:\n  lisen: [\":1\"]\n", `5:3: gateway: unknown field "lisen"; did you mean "listen"?`},
		{"unknown in a list", head + "agent:\n  tcp:\n    - name: a\n      adress: b:1\n", `7:7: agent.tcp[0]: unknown field "adress"; did you mean "address"?`},
		{"unknown in a flow", head + "log: {levl: debug}\n", `4:7: log: unknown field "levl"; did you mean "level"?`},
		{"elsewhere", head + "databases: []\n", `4:1: unknown field "databases" here; there is agent.databases`},
		{"elsewhere too", head + "agent: {listen: [a]}\n", `4:9: agent: unknown field "listen" here; there is auth.listen`},
		{"nothing near", head + "log: {zzzzzz: 1}\n", `4:7: log: unknown field "zzzzzz"; known here: level, format`},
		{"not text", head + "1: 2\n", `4:1: unknown field "1"`},
		{"later", head + "agent: {desktops: [{name: a}]}\n", "4:9: agent: desktops: this version does not serve desktops; remove it"},
		{"Kubernetes without a way", head + "agent: {kubernetes: [{name: a}]}\n", "4:22: agent.kubernetes[0].kubeconfig: a file is needed, or in_cluster: true where the agent is a pod"},
		{"Kubernetes twice", head + "agent: {kubernetes: [{name: a, in_cluster: true, kubeconfig: x}]}\n", "4:22: agent.kubernetes[0]: in_cluster and a kubeconfig exclude each other"},
		{"later acme", head + "gateway: {acme: {email: a}}\n", "4:11: gateway: acme: this version does not serve ACME certificates; remove it"},
		{"later health", head + "gateway: {upstreams: {a: {servers: [\"a:1\"], health: {}}}}\n", "4:45: gateway.upstreams.a: health: this version does not serve health checks of upstreams; remove it"},
		{"twice", head + "cluster: b\n", `4:1: mapping key "cluster" already defined at [2:1]`},
		{"twice below", head + "log: {level: info, level: debug}\n", `4:20: mapping key "level" already defined at [4:7]`},

		{"number for text", head + "log: {level: [info]}\n", "4:14: log.level: text is needed here, not a list"},
		{"mapping for text", head + "data_dir: {a: b}\n", "4:11: data_dir: text is needed here, not names with values"},
		{"address without quotes", head + "gateway: {listen: [127.0.0.1:443]}\n", `4:29: gateway.listen[0]: between brackets a text with a colon needs quotes: "127.0.0.1:443"`},
		{"name and value for text", head + "gateway: {listen: [a: 443]}\n", "4:21: gateway.listen[0]: text is needed here, not names with values"},
		{"text for a number", "version: one\nroles: [agent]\n", `1:10: version: a whole number is needed here, not "one"`},
		{"fraction", "version: 1.5\n", "1:10: version: a whole number is needed here, not the number 1.5"},
		{"huge", "version: 99999999999999999999\n", "1:10: version: a whole number is needed here, not "},
		{"text for a list", "version: 1\nroles: agent\n", `2:8: roles: a list is needed here, not "agent": [agent]`},
		{"list with nothing", "version: 1\nroles: [agent, null]\n", "2:16: roles[1]: nothing stands here"},
		{"text for a mapping", head + "auth: yes please\n", `4:7: auth: names with values (name: value) are needed here, not "yes please"`},
		{"text for a switch", head + "agent: {ssh: {enabled: yess}}\n", `4:24: agent.ssh.enabled: true or false is needed here, not "yess"`},
		{"list for a mapping of text", head + "agent: {ssh: {labels: [a]}}\n", "4:23: agent.ssh.labels: names with values (name: value) are needed here, not a list"},
		{"list for a label", head + "agent: {ssh: {labels: {a: [x]}}}\n", "4:27: agent.ssh.labels.a: text is needed here, not a list"},
		{"duration", head + "auth: {offline: {max_age: soon}}\n", `4:27: auth.offline.max_age: "soon" is not a duration such as 12h or 30s`},
		{"duration without a unit", head + "auth: {offline: {max_age: 12}}\n", "4:27: auth.offline.max_age: a duration such as 12h or 30s is needed here, not the number 12"},
		{"server with a weight", head + "gateway: {upstreams: {a: {servers: [{address: \"a:1\", weight: 2}]}}}\n", "4:37: gateway.upstreams.a.servers[0]: text is needed here, not names with values"},

		{"no version", "cluster: a\nroles: [auth]\n", "1:1: version: missing; write version: 1"},
		{"other version", "version: 2\ncluster: a\nroles: [auth]\n", "1:10: version: 2; this program reads version: 1"},
		{"no roles", "version: 1\n", "1:1: roles: name at least one of auth, gateway, agent"},
		{"unknown role", "version: 1\ncluster: a\nroles: [auth, gatewya]\n", `3:15: roles[1]: "gatewya" is none of auth, gateway, agent; did you mean "gateway"?`},
		{"role twice", "version: 1\ncluster: a\nroles: [auth, auth]\n", "3:15: roles[1]: auth is named twice"},
		{"no cluster", "version: 1\nroles: [auth]\n", "1:1: cluster: the public name of the cluster is needed, for example gw.example.com"},
		{"cluster", "version: 1\ncluster: GW.test\nroles: [auth]\n", `2:10: cluster: "GW.test" is not a DNS name in lower case`},
		{"io_uring", head + "gateway: {io_uring: onn}\n", `4:21: gateway.io_uring: "onn" is none of auto, off, on; did you mean "on"?`},
		{"second factor", head + "auth: {second_factor: topt}\n", `4:23: auth.second_factor: "topt" is none of off, optional, totp; did you mean "totp"?`},
		{"etcd both", head + "auth:\n  etcd:\n    embedded: true\n    endpoints: [a]\n", "6:5: auth.etcd: embedded: true and endpoints exclude each other"},
		{"etcd none", head + "auth:\n  etcd:\n    embedded: false\n", "6:5: auth.etcd: embedded: false needs endpoints"},
		{"quota", head + "auth: {etcd: {quota_mib: 63}}\n", `4:26: auth.etcd.quota_mib: 63; from 64 to 8192`},
		{"large quota", head + "auth: {etcd: {quota_mib: 8193}}\n", `4:26: auth.etcd.quota_mib: 8193; from 64 to 8192`},
		{"quota of a cluster", head + "auth: {etcd: {endpoints: [\"https://a:1\"], quota_mib: 100}}\n", `4:54: auth.etcd.quota_mib: is of the embedded store`},
		{"negative", head + "auth: {offline: {max_age: -1h}}\n", "4:27: auth.offline.max_age: -1h0m0s; 1s or more, in whole seconds"},
		// These meant 12h.
		{"no time offline", head + "auth: {offline: {max_age: 0s}}\n", "4:27: auth.offline.max_age: 0s; 1s or more, in whole seconds"},
		{"less than a second offline", head + "auth: {offline: {max_age: 500ms}}\n", "4:27: auth.offline.max_age: 500ms; 1s or more, in whole seconds"},
		{"half a second more offline", head + "auth: {offline: {max_age: 1500ms}}\n", "4:27: auth.offline.max_age: 1.5s; 1s or more, in whole seconds"},
		{"listen", head + "gateway: {listen: [\":443\", localhost]}\n", `4:28: gateway.listen[1]: "localhost" is not host:port`},
		{"listen at all of IPv4 and at all", head + "gateway: {listen: [\"0.0.0.0:443\", \"[::1]:444\", \"[::]:443\"]}\n", `4:48: gateway.listen[2]: "[::]:443" and gateway.listen[0], "0.0.0.0:443", have addresses in common; ":443" alone is all of IPv4 and IPv6`},
		{"listen at all and at one", head + "gateway: {listen: [\":443\", \"127.0.0.1:443\"]}\n", `4:28: gateway.listen[1]: "127.0.0.1:443" and gateway.listen[0], ":443", have addresses in common`},
		{"listen twice", head + "gateway: {listen: [\"127.0.0.1:443\", \"127.0.0.1:443\"]}\n", `4:37: gateway.listen[1]: "127.0.0.1:443" and gateway.listen[0]`},
		{"listen at one of all of IPv4", head + "gateway: {listen: [\"127.0.0.1:443\", \"0.0.0.0:443\"]}\n", `4:37: gateway.listen[1]: "0.0.0.0:443" and gateway.listen[0]`},
		{"port", head + "gateway: {listen: [\":http\"]}\n", `4:20: gateway.listen[0]: ":http" has no port from 0 to 65535`},
		{"big port", head + "gateway: {public_address: \"a:70000\"}\n", `4:27: gateway.public_address: "a:70000" has no port from 0 to 65535`},
		{"network", head + "gateway: {proxy_protocol: {trusted: [10.0.0]}}\n", `4:38: gateway.proxy_protocol.trusted[0]: "10.0.0" is not a network such as 10.0.0.0/8`},
		{"network of mapped addresses", head + "gateway: {proxy_protocol: {trusted: ['::ffff:10.0.0.0/104']}}\n", `4:38: gateway.proxy_protocol.trusted[0]: "::ffff:10.0.0.0/104" is not a network such as 10.0.0.0/8`},
		{"network or address", head + "gateway: {proxy_protocol: {trusted: [10.0.0.5/8]}}\n", `4:38: gateway.proxy_protocol.trusted[0]: "10.0.0.5/8" may be the network 10.0.0.0/8 or the address 10.0.0.5: write the one that is meant`},
		{"no upstream", head + "gateway:\n  routes:\n    - match: {sni: [a]}\n      upstream: shpo\n  upstreams: {shop: {servers: [\"a:1\"]}}\n", `7:17: gateway.routes[0].upstream: no upstream "shpo"; did you mean "shop"?`},
		{"mode of later", head + "gateway:\n  routes: [{match: {sni: [a]}, upstream: s, mode: terminate-http}]\n  upstreams: {s: {servers: [\"a:1\"]}}\n", "5:51: gateway.routes[0].mode: this version does not serve terminate-http, only passthrough"},
		{"silent with nowhere to go", head + "gateway: {silent: {after: 1s}}\n", `4:19: gateway.silent.to: at least one server is needed`},
		{"silent for a moment", head + "gateway: {silent: {after: 1ms, to: [\"a:1\"]}}\n", `4:27: gateway.silent.after: 1ms; from 100ms to 10s, which is gateway.limits.handshake`},
		{"silent for too long", head + "gateway:\n  limits: {handshake: 5s}\n  silent: {after: 6s, to: [\"a:1\"]}\n", `6:19: gateway.silent.after: 6s; from 100ms to 5s, which`},
		{"silent to no server", head + "gateway: {silent: {to: [a]}}\n", `4:25: gateway.silent.to[0]: "a" is not host:port`},
		{"policy of later", head + "gateway:\n  upstreams: {s: {servers: [\"a:1\"], policy: least_connections}}\n", "5:45: gateway.upstreams.s.policy: this version does not serve least_connections, only round_robin"},
		{"server with port 0", head + "gateway:\n  upstreams: {s: {servers: [\"a:0\"]}}\n", `5:29: gateway.upstreams.s.servers[0]: "a:0" has no port from 1 to 65535`},
		{"server without a host", head + "gateway:\n  routes: [{names: [a], to: [\":443\"]}]\n", `5:30: gateway.routes[0].to[0]: ":443" is not host:port`},
		{"server at no address", head + "gateway:\n  routes: [{names: [a], to: [\"256.1.1.1:443\"]}]\n", `5:30: gateway.routes[0].to[0]: "256.1.1.1:443": "256.1.1.1" is neither an IP address nor a host name`},
		{"server at half an address", head + "gateway:\n  upstreams: {s: {servers: [\"10.0.1:1\"]}}\n", `5:29: gateway.upstreams.s.servers[0]: "10.0.1:1": "10.0.1" is neither`},
		{"server with no name", head + "gateway: {silent: {to: [\"a b:1\"]}}\n", `4:25: gateway.silent.to[0]: "a b:1": "a b" is neither`},
		{"socket", head + "gateway:\n  routes: [{names: [a], to: [\"unix:run/x\"]}]\n", `5:30: gateway.routes[0].to[0]: "unix:run/x" is not unix: and an absolute path`},
		{"nowhere to", head + "gateway:\n  routes:\n    - names: [a]\n", `6:7: gateway.routes[0].to: at least one server is needed, or an upstream`},
		{"no name", head + "gateway:\n  routes:\n    - to: [\"a:1\"]\n", `6:7: gateway.routes[0].names: at least one name is needed; "*" is`},
		{"two ways to name", head + "gateway:\n  routes: [{names: [a], match: {sni: [b]}, to: [\"a:1\"]}]\n", `5:32: gateway.routes[0].match: names and match say the same`},
		{"ids beside match", head + "gateway:\n  routes: [{alpn: [h2], match: {sni: [b]}, to: [\"a:1\"]}]\n", `5:19: gateway.routes[0].alpn: the route's names are in match`},
		{"two ways to go", head + "gateway:\n  routes: [{names: [a], to: [\"a:1\"], upstream: s}]\n  upstreams: {s: {servers: [\"a:1\"]}}\n", `5:48: gateway.routes[0].upstream: to and upstream exclude each other`},
		{"proxy beside upstream", head + "gateway:\n  routes: [{names: [a], upstream: s, send_proxy: v2}]\n  upstreams: {s: {servers: [\"a:1\"]}}\n", `5:50: gateway.routes[0].send_proxy: belongs to the upstream: gateway.upstreams.s.send_proxy`},
		{"postgres beside upstream", head + "gateway:\n  routes: [{names: [a], upstream: s, postgres: direct}]\n  upstreams: {s: {servers: [\"a:1\"]}}\n", `5:48: gateway.routes[0].postgres: belongs to the upstream: gateway.upstreams.s.postgres`},
		{"postgres of a route", head + "gateway:\n  routes: [{names: [a], to: [\"a:1\"], postgres: directly}]\n", `5:48: gateway.routes[0].postgres: "directly" is none of request, direct; did you mean "direct"?`},
		{"postgres of an upstream", head + "gateway:\n  upstreams: {s: {servers: [\"a:1\"], postgres: 'no'}}\n", `5:47: gateway.upstreams.s.postgres: "no" is none of request, direct`},
		{"proxy version", head + "gateway:\n  routes: [{names: [a], to: [\"a:1\"], send_proxy: v3}]\n", `5:50: gateway.routes[0].send_proxy: "v3" is none of v2; did you mean "v2"?`},
		{"proxy version 1", head + "gateway:\n  upstreams: {s: {servers: [\"a:1\"], send_proxy: v1}}\n", `5:49: gateway.upstreams.s.send_proxy: this version sends v2 only`},
		{"name twice", head + "gateway:\n  routes:\n    - {names: [a.example.com], to: [\"a:1\"]}\n    - {names: [b.example.com, A.example.com], to: [\"a:2\"]}\n", `7:31: gateway.routes[1].names[1]: server name "A.example.com": any protocol: route 0 has it too`},
		{"the cluster's name", head + "gateway:\n  routes:\n    - {match: {sni: [x.db.gw.test]}, to: [\"a:1\"]}\n", `6:22: gateway.routes[0].match.sni[0]: server name "x.db.gw.test": belongs to the cluster`},
		{"no host name", head + "gateway:\n  routes:\n    - {names: [a_b.example.com, a..b], to: [\"a:1\"]}\n", `6:33: gateway.routes[0].names[1]: server name "a..b": not a host name`},
		{"route's field", head + "gateway:\n  routes:\n    - {nmaes: [a], to: [\"a:1\"]}\n", `6:8: gateway.routes[0]: unknown field "nmaes"; did you mean "names"?`},
		{"limit", head + "gateway: {limits: {waiting: 3}}\n", `4:29: gateway.limits.waiting: 3; from 16 to 1000000`},
		{"limit of nothing", head + "gateway: {limits: {waiting_per_source: 0}}\n", `4:40: gateway.limits.waiting_per_source: 0; from 1 to 1000000`},
		{"limit of time", head + "gateway: {limits: {handshake: 1h}}\n", `4:31: gateway.limits.handshake: 1h0m0s; from 1s to 5m0s`},
		{"limit without an end", head + "gateway: {limits: {idle: 1s}}\n", `4:26: gateway.limits.idle: 1s; 10s or more`},
		{"limits that differ", head + "gateway: {limits: {parked_min: 300, parked_per_agent: 200}}\n", `4:55: gateway.limits.parked_per_agent: 200; from 300 to 1024`},
		{"more than an agent holds", head + "gateway: {limits: {parked_per_agent: 1025}}\n", `4:38: gateway.limits.parked_per_agent: 1025; from 1 to 1024`},
		{"a wait that ends before", head + "gateway: {limits: {lease_wait: 11s}}\n", `4:32: gateway.limits.lease_wait: 11s; from 10ms to 10s`},
		{"a wait that ends before, as written", head + "gateway: {limits: {handshake: 20s, lease_wait: 21s}}\n", `4:48: gateway.limits.lease_wait: 21s; from 10ms to 20s`},
		{"certificates for nobody", "version: 1\nroles: [gateway]\ngateway:\n  certificates: [{cert: a, key: b}]\n  routes: [{names: [a], to: [\"a:1\"]}]\n", "4:17: gateway.certificates: nothing here ends TLS"},
		{"half a certificate", head + "gateway: {certificates: [{cert: a}]}\n", "4:26: gateway.certificates[0]: cert and key are needed together"},
		{"gateway alone", "version: 1\nroles: [gateway]\n", "1:1: gateway.auth: the address of auth is needed, or routes to serve without it"},
		{"gateway without a pin", "version: 1\nroles: [gateway]\ngateway:\n  auth: a:1\n", "4:3: gateway.join.ca_pin: needed to know auth by"},
		{"pin", "version: 1\nroles: [agent]\nagent:\n  gateways: [\"a:1\"]\n  join: {ca_pin: abc}\n", `5:18: agent.join.ca_pin: "abc" is not sha256: and 64 hex digits`},
		{"a pin that is cut", "version: 1\nroles: [gateway]\ngateway:\n  auth: a:1\n  join:\n    ca_pin: sha256:0011\n", `6:13: gateway.join.ca_pin: "sha256:0011" is not sha256: and 64 hex digits`},
		{"a pin of another hash", "version: 1\nroles: [agent]\nagent:\n  gateways: [\"a:1\"]\n  join: {ca_pin: 'sha1:" + strings.Repeat("0", 64) + "'}\n", `5:18: agent.join.ca_pin: "sha1:` + strings.Repeat("0", 64) + `" is not`},
		{"agent alone", "version: 1\nroles: [agent]\n", "1:1: agent.gateways: at least one host:port is needed\n1:1: agent.join.ca_pin: needed to know auth by"},
		{"database's protocol", head + "agent: {databases: [{name: a, protocol: oracle, address: \"a:1\"}]}\n", `4:41: agent.databases[0].protocol: "oracle" is none of postgres, mysql, redis`},
		{"database's name", head + "agent: {databases: [{name: A_b, protocol: postgres, address: \"a:1\"}]}\n", `4:28: agent.databases[0].name: "A_b" is not one DNS label in lower case`},
		{"names twice", head + "agent:\n  tcp:\n    - {name: a, address: \"a:1\"}\n    - {name: a, address: \"a:2\"}\n", `7:14: agent.tcp[1].name: "a" is named twice`},
		{"app's URI", head + "agent: {apps: [{name: a, uri: \"http://u:p@x\"}]}\n", `4:31: agent.apps[0].uri: the URI of an application holds no user and no password`},
		{"app's reserved name", head + "agent: {apps: [{name: www, uri: \"http://x\"}]}\n", `4:23: agent.apps[0].name: "www" is reserved`},
		{"app's header", head + "agent: {apps: [{name: a, uri: \"http://x\", rewrite: {headers: [\"Connection: close\"]}}]}\n", `4:63: agent.apps[0].rewrite.headers[0]: header Connection is not for configurations to set`},
		{"app's template", head + "agent: {apps: [{name: a, uri: \"http://x\", rewrite: {headers: [\"X: {{internal.x}}\"]}}]}\n", `4:63: agent.apps[0].rewrite.headers[0]: template`},
		{"app's redirect", head + "agent: {apps: [{name: a, uri: \"http://x\", rewrite: {redirects: [\"http://y\"]}}]}\n", `4:64: agent.apps[0].rewrite.redirects: "http://y" is not a host, nor host:port`},
		{"AWS's URI", head + "agent: {apps: [{name: a, uri: \"http://169.254.169.254\", aws: {services: [s3]}}]}\n", `4:31: agent.apps[0].uri: 169.254.169.254 is not the address of a server of AWS`},
		{"AWS's role", head + "agent: {apps: [{name: a, uri: \"https://console.aws.amazon.com\", aws: {own_role: admin}}]}\n", `4:81: agent.apps[0].aws.own_role: "admin" is not the ARN of a role`},
		{"AWS's STS", head + "agent: {apps: [{name: a, uri: \"https://console.aws.amazon.com\", aws: {sts: \"http://u:p@x\"}}]}\n", `4:76: agent.apps[0].aws.sts: a URL of a server holds no user and no password`},
		{"AWS's STS without TLS", head + "agent: {apps: [{name: a, uri: \"https://console.aws.amazon.com\", aws: {sts: \"http://sts.internal\"}}]}\n", `4:76: agent.apps[0].aws.sts: "http://sts.internal": keys pass by http on this machine only`},
		{"AWS's role for all services", head + "agent: {apps: [{name: a, uri: \"http://localhost:8000\", aws: {own_role: \"arn:aws:iam::123456789012:role/a\"}}]}\n", `4:72: agent.apps[0].aws.own_role: needs aws.services`},
		{"AWS's services", head + "agent: {apps: [{name: a, uri: \"https://console.aws.amazon.com\", aws: {services: [\"s 3\"]}}]}\n", `4:82: agent.apps[0].aws.services[0]: "s 3" is not the name of a service`},
		{"AWS's regions", head + "agent: {apps: [{name: a, uri: \"https://console.aws.amazon.com\", aws: {regions: [eu.west]}}]}\n", `4:81: agent.apps[0].aws.regions[0]: "eu.west" is not the name of a region`},
		{"AWS's headers", head + "agent: {apps: [{name: a, uri: \"https://console.aws.amazon.com\", rewrite: {headers: [\"X: y\"]}}]}\n", `4:74: agent.apps[0].rewrite: requests to AWS are signed`},
		{"AWS's TLS", head + "agent: {apps: [{name: a, uri: \"https://console.aws.amazon.com\", tls: {insecure: true}}]}\n", `4:70: agent.apps[0].tls: only a server at https://`},
		{"app's TLS", head + "agent: {apps: [{name: a, uri: \"http://x\", tls: {insecure: true}}]}\n", `4:48: agent.apps[0].tls: only an application at https:// has a certificate`},
		{"log level", head + "log: {level: loud}\n", `4:14: log.level: "loud" is none of debug, info, warn, error`},
		{"metrics socket", head + "metrics: {socket: /run/x.sock}\n", `4:19: metrics.socket: "/run/x.sock": this version serves counters on admin.sock in data_dir only`},
		{"drain", head + "upgrade: {drain: -1s}\n", `4:18: upgrade.drain: -1s is not within 0s and 720h0m0s`},
		{"drain for long", head + "upgrade:\n  drain: 721h\n", `5:10: upgrade.drain: 721h0m0s is not within 0s and 720h0m0s`},
		{"metrics", head + "metrics: {listen: \"0.0.0.0:1\"}\n", `4:19: metrics.listen: "0.0.0.0:1" is not host:port on a loopback address`},
		{"all at once", "version: 2\ncluster: A\nroles: [x]\n", "1:10: version: 2; this program reads version: 1\n2:10: cluster: \"A\" is not a DNS name in lower case\n3:9: roles[0]: \"x\" is none of auth, gateway, agent"},
	} {
		_, err := parseConfig([]byte(tt.in))
		var f faults
		if !errors.As(err, &f) || !strings.HasPrefix(err.Error(), tt.want) {
			t.Errorf("%s:\n got %v\nwant %s", tt.name, err, tt.want)
		}
	}
}

func TestLoadConfig(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "c.yaml")
	if _, err := loadConfig(file); !errors.Is(err, sallyport.ErrNotFound) {
		t.Errorf("no file: %v", err)
	}
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("version: 1\nrolse: [agent]\n")
	_, err := loadConfig(file)
	var p *sallyport.Problem
	if !errors.As(err, &p) || p.Fact != file+`:2:1: unknown field "rolse"; did you mean "roles"?` || !errors.Is(err, sallyport.ErrInvalid) {
		t.Errorf("%v", err)
	}
	write(strings.Replace(good, "data_dir: /var/lib/sallyport", "data_dir: state", 1))
	c, err := loadConfig(file)
	if err != nil || c.DataDir != filepath.Join(dir, "state") || c.Gateway.Certificates[0].Key != filepath.Join(dir, "b.pem") || c.Agent.Join.TokenFile != filepath.Join(dir, "token") || c.Auth.Etcd.TLS.CA != filepath.Join(dir, "ca.pem") {
		t.Errorf("%+v, %v", c, err)
	}
	write(strings.Repeat("#", maxConfig+1))
	if _, err := loadConfig(file); err == nil {
		t.Error("a huge file was read")
	}
}

// TestKnownCluster: routes are checked against a cluster that the host knows
// and the file does not name.
func TestKnownCluster(t *testing.T) {
	const in = "version: 1\nroles: [gateway]\ngateway:\n  auth: a:1\n  join: {ca_pin: \"sha256:0000000000000000000000000000000000000000000000000000000000000000\"}\n" +
		"  routes: [{names: [x.db.gw.test], to: [\"a:1\"]}]\n"
	if _, err := parseConfig([]byte(in)); err != nil {
		t.Errorf("before the host has joined: %v", err)
	}
	if _, err := parseConfigOf([]byte(in), "gw.test"); err == nil || !strings.Contains(err.Error(), `6:21: gateway.routes[0].names[0]: server name "x.db.gw.test": belongs to the cluster`) {
		t.Errorf("%v", err)
	}
}

// TestLimits: every limit reaches what it bounds, and the defaults are those of
// the documentation.
func TestLimits(t *testing.T) {
	c, err := parseConfig([]byte(good))
	if err != nil {
		t.Fatal(err)
	}
	want := gateway.Bounds{
		Stage: 20 * time.Second, Connect: time.Second, WaitingSource: 32, WaitingGateway: 8192, SourceRate: 40, LargeHellos: 8, EndedSource: 9, EndedGateway: 100,
	}
	if got := c.bounds(); got != want {
		t.Errorf("%+v", got)
	}
	tunnels := tunnel.Bounds{
		PoolFloor: 2, PoolCeiling: 300, PoolGateway: 1000, ParkedFor: time.Minute, Carried: 50, HalfOpenSource: 17, HalfOpenAgent: 65, HalfOpenGateway: 4097, SourceRate: 21,
		LeaseWait: 3 * time.Second, Tunnels: 100, Resources: 200,
	}
	if got := c.tunnelBounds(); got != tunnels {
		t.Errorf("%+v", got)
	}
	for _, r := range c.Gateway.Limits.ranges() {
		if r.value == nil {
			t.Errorf("%s is not looked at", r.name)
		}
	}
	if n, fields := len(c.Gateway.Limits.ranges()), reflect.TypeFor[limitsConfig]().NumField(); n != fields {
		t.Errorf("%d of %d limits have a range", n, fields)
	}
	if s, err := c.settings(); err != nil || s.Idle != time.Hour || len(s.TrustedProxies) != 2 {
		t.Errorf("%+v, %v", s, err)
	}
	alone, err := parseConfig([]byte("version: 1\nroles: [gateway]\ngateway: {routes: [{names: [a], to: [\"a:1\"]}]}\n"))
	if err != nil {
		t.Fatal(err)
	}
	if got := alone.bounds(); got != (gateway.Bounds{WaitingSource: 1024, SourceRate: 1000}) || alone.tunnelBounds() != (tunnel.Bounds{}) {
		t.Errorf("routes alone: %+v", got)
	}
}

// TestStaticRoutes: both ways to write a route come to the same.
func TestStaticRoutes(t *testing.T) {
	c, err := parseConfig([]byte(good))
	if err != nil {
		t.Fatal(err)
	}
	want := []gateway.StaticRoute{
		{Match: alpn.Match{SNI: []string{"shop.example.com", "*.shop.example.com"}, ALPN: []string{"h2"}}, Proxy: true, Direct: true,
			Upstreams: []string{"10.0.0.11:443", "[fe80::1%eth0]:443", "shop_1.internal.:443", "3com:443"}},
		{Match: alpn.Match{SNI: []string{"mail.example.com"}, ALPN: []string{"imap"}}, Upstreams: []string{"10.0.0.12:993", "unix:/run/mail.sock"}, Proxy: true, Direct: true},
	}
	if got := c.Gateway.staticRoutes(); !reflect.DeepEqual(got, want) {
		t.Errorf("%+v", got)
	}
	asked, err := parseConfig([]byte(strings.ReplaceAll(good, "postgres: direct", "postgres: request")))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range asked.Gateway.staticRoutes() {
		if r.Direct {
			t.Errorf("%+v is direct", r)
		}
	}
	if got := c.Gateway.silentRoute(); !reflect.DeepEqual(got, &gateway.SilentRoute{After: time.Second, Upstreams: []string{"10.0.0.13:3306"}, Proxy: true}) {
		t.Errorf("silent clients: %+v", got)
	}
	var g gatewayConfig
	if g.silentRoute() != nil {
		t.Error("silent clients go somewhere")
	}
	g.Silent.To = []string{"a:1"}
	if got := g.silentRoute(); got.After != silentDefault || got.Proxy {
		t.Errorf("silent clients: %+v", got)
	}
}

// FuzzParseConfig: any text is a configuration or has faults with places; what
// is taken holds its own rules.
func FuzzParseConfig(f *testing.F) {
	f.Add(good)
	f.Add("version: 1\nroles: [agent]\n")
	f.Add("a: &x [*x]\n<<: *x\n")
	f.Add("? [a]\n: b\n")
	f.Add("version: !!str 1\nroles: !x [auth]\n")
	f.Add("version: !!str 1\nroles: !x9[auth]\n") // the library panics
	f.Add("--- \n---\n")
	f.Add("auth: {offline: {max_age: '1h'}}")
	f.Fuzz(func(t *testing.T, in string) {
		if len(in) > 1<<12 {
			return
		}
		c, err := parseConfig([]byte(in))
		if err == nil {
			if err := c.check(); err != nil {
				t.Fatalf("%q was taken, with %v", in, err)
			}
			return
		}
		var fs faults
		if !errors.As(err, &fs) || len(fs) == 0 {
			t.Fatalf("%q: %T %v", in, err, err)
		}
		for _, x := range fs {
			if x.fact == "" {
				t.Fatalf("%q: a fault without a fact: %+v", in, x)
			}
		}
	})
}

func TestNearest(t *testing.T) {
	known := []string{"listen", "listeners", "auth", "log"}
	for in, want := range map[string]string{"lisen": "listen", "listener": "listeners", "atuh": "auth", "auht": "auth", "htua": "", "aut": "auth", "x": "", "": "", "logs": "log"} {
		if got := nearest(in, known); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

// manyRoutes is a configuration of static routes alone.
func manyRoutes(n int) []byte {
	var b strings.Builder
	b.WriteString("version: 1\nroles: [gateway]\ngateway:\n  routes:\n")
	for i := range n {
		fmt.Fprintf(&b, "    - {names: [r%d.example.com], to: [\"10.0.%d.%d:443\"]}\n", i, i/250%250, i%250+1)
	}
	return []byte(b.String())
}

// BenchmarkParseConfig: a reload of 10,000 routes is this and gateway.Reload.
func BenchmarkParseConfig(b *testing.B) {
	in := manyRoutes(10_000)
	for b.Loop() {
		if _, err := parseConfig(in); err != nil {
			b.Fatal(err)
		}
	}
}
