package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/tools/peers"
	"github.com/sallyport/sallyport/tools/peers/postgres"
)

// ownCertificate is a file with a certificate that no cluster has issued, and its key.
func ownCertificate(t testing.TB, dir string) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "balancer"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "balancer.pem")
	text := append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})...)
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// haproxyConfig is what docs/operate.md shows.
const haproxyConfig = `defaults
    mode http
    timeout connect 5s
    timeout client  60s
    timeout server  60s
    timeout tunnel  1h
frontend public
    bind %s ssl crt %s alpn h2,http/1.1
    default_backend sallyport
backend sallyport
    server gateway %s ssl verify none alpn http/1.1
`

// TestBehindBalancer: HAProxy ends TLS in front of the gateway, with a certificate
// of its own, and nobody is told another address. An agent joins and serves, people
// log in by the cluster's pin and work, and all of that lives through upgrades.
func TestBehindBalancer(t *testing.T) {
	if _, err := exec.LookPath("haproxy"); err != nil {
		peers.Missing(t, "haproxy")
	}
	if _, err := exec.LookPath("psql"); err != nil {
		peers.Missing(t, "psql")
	}
	if _, err := postgres.Find(); err != nil {
		peers.Missing(t, "postgres")
	}
	p := newPerson(t)
	c := &cluster{gateway: freePort(t), listen: freePort(t)}
	dir := shortDir(t)
	config := filepath.Join(dir, "haproxy.cfg")
	if err := os.WriteFile(config, fmt.Appendf(nil, haproxyConfig, c.gateway, ownCertificate(t, dir), c.listen), 0o600); err != nil {
		t.Fatal(err)
	}
	kube := startKubeStub(t, shortDir(t))
	startCommand(t, "haproxy", exec.Command("haproxy", "-db", "-f", config))
	c.start(t, p, func(c *cluster) string {
		return "  ssh: {enabled: true}\n" + c.orders(p) + fmt.Sprintf("  kubernetes: [{name: prod, kubeconfig: %q}]\n", kube)
	}, func(c *cluster) string { return c.gateway })

	node, _ := c.ready(p)
	shell := p.dialogue(t, "sally", "ssh", node, "while read line; do echo $line; done")
	shell.say("before", "before")
	psql := p.dialogue(t, "sally", "db", "connect", "--db-user=app", "--db-name=app", "orders", "--", "-Atq")
	psql.say("select 'before';", "before")
	// All come from the balancer's address, from where somebody has proved who he is.
	c.limit("web_per_source", 4)
	p.run("sallyport", "reload", "--config="+c.path("gateway.yaml"))
	var others []*dialogue
	for range 6 {
		d := p.dialogue(t, "sally", "ssh", node, "read line; echo $line")
		others = append(others, d)
	}
	for _, d := range others {
		d.say("beside others", "beside others")
		d.leave()
	}
	for i := range 2 {
		p.run("sallyport", "upgrade", "--config="+c.path("gateway.yaml"))
		shell.say(fmt.Sprint("upgrade ", i), fmt.Sprint("upgrade ", i))
		psql.say(fmt.Sprintf("select %d;", i), fmt.Sprint(i))
		await(t, "a new session", upWait, func() bool {
			return p.try("", "sally", "ssh", node, "echo new").stdout == "new\n"
		})
	}
	text := strings.Repeat("all of it, in order\n", 1<<15)
	if r := p.try(text, "sally", "ssh", node, "cat"); r.stdout != text {
		t.Errorf("%d of %d bytes came back: exit code %d, %s", len(r.stdout), len(text), r.code, r.stderr)
	}
	c.online(p, "kube")
	if r := p.try("", "sally", "kube", "login", "prod"); r.code != 0 || !strings.Contains(r.stderr, "Use: sally proxy kube prod") {
		t.Errorf("exit code %d, %s", r.code, r.stderr)
	}
	client, server := p.kubeProxy("prod")
	if code, body := kubeGet(t, client, server+"/api/v1/namespaces/dev/pods/web"); code != 403 || !strings.Contains(body, "your roles give you no user") { // the agent's answer
		t.Errorf("%d %s", code, body)
	}
	shell.leave()
	psql.leave()
	if said := c.proc["agent"].out.String(); !strings.Contains(said, "control connection goes inside a WebSocket") {
		t.Errorf("the agent has found another way:\n%s", said)
	}
	await(t, "old processes end with what people had there", upWait, func() bool {
		return !strings.Contains(p.run("sallyport", "status", "--config="+c.path("gateway.yaml"), "--format=json"), `"holds"`)
	})
	c.proc["agent"].stop()
	c.up("agent")
	await(t, "the agent that has come back", upWait, func() bool {
		return p.try("", "sally", "ssh", node, "echo new").stdout == "new\n"
	})
	// The agent's connection to auth goes on inside its WebSocket, and nobody waits for it.
	p.run("sallyport", "drain", "--notice=0s", "--timeout="+upWait.String(), "--config="+c.path("gateway.yaml"))
}

// limit sets one of the gateway's limits in its configuration.
func (c *cluster) limit(name string, n int) {
	c.t.Helper()
	b, err := os.ReadFile(c.path("gateway.yaml"))
	if err != nil {
		c.t.Fatal(err)
	}
	c.write("gateway.yaml", fmt.Sprintf("%s  limits: {%s: %d}\n", b, name, n))
}
