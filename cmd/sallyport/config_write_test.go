package main

import (
	"strings"
	"testing"
)

// TestConfigText: what is written is read as it was, whatever stands in it.
func TestConfigText(t *testing.T) {
	for name, text := range map[string]string{
		"small": "version: 1\nroles: [gateway]\ngateway: {routes: [{names: [a], to: [\"b:1\"]}]}\n",
		"large": `version: 1
cluster: gw.example.com
data_dir: "/srv/it's: #here"
roles: [auth, gateway, agent]
auth: {etcd: {embedded: true}, second_factor: totp, offline: {max_age: 90m}}
gateway:
  listen: ["[::1]:8443", ":443"]
  limits: {handshake: 20s, waiting: 64}
  routes: [{names: ["*.a.example.com", b.example.com], alpn: [h2], to: ["10.0.0.1:1"]}]
agent:
  ssh: {enabled: true, labels: {env: "true", "1": "null", b: "a: b"}}
  databases: [{name: orders, protocol: postgres, address: "localhost:5432", labels: {x: "- y"}}]
  apps: [{name: whoami, uri: "unix:/run/who am i.sock", rewrite: {headers: ["X-Logins: {{internal.logins}}"]}}]
upgrade: {drain: 0s}
`,
	} {
		c, err := parseConfig([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		written, err := c.text()
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		again, err := parseConfig(written)
		if err != nil || len(differences(c, again)) > 0 {
			t.Errorf("%s: %v, %v\n%s", name, err, differences(c, again), written)
		}
		if strings.Contains(string(written), "proxy_protocol") {
			t.Errorf("%s: what has no value is written:\n%s", name, written)
		}
	}
}
