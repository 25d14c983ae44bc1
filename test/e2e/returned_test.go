package e2e

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/ca"
	"github.com/sallyport/sallyport/controlplane/store/etcd"
)

// TestCertificatesEnded: an installation that was off for longer than its hosts'
// certificates live came up, said so, and was no cluster any more: its hosts were
// refused for ever. The agent's way to auth leads through the gateway.
func TestCertificatesEnded(t *testing.T) {
	p := newPerson(t)
	c := startCluster(t, p, func(*cluster) string { return "  ssh: {enabled: true}\n" }, func(c *cluster) string { return c.gateway })
	c.user(p, "ann")
	c.online(p, "node")
	node := nodeName(t, p)
	ids := map[string]string{}
	for _, role := range []string{"agent", "gateway"} {
		ids[role] = c.host(p, role)
	}
	for _, role := range []string{"agent", "gateway", "auth"} {
		c.proc[role].stop()
	}
	ended := c.endCertificates(ids)

	// The agent is first, and has no way to auth before the gateway is there.
	for _, role := range []string{"agent", "gateway", "auth"} {
		c.up(role)
	}
	await(t, "a login through the gateway", upWait, func() bool {
		file := c.write("password", clusterPassword+"\n")
		return p.try("", "sally", "login", "--force", "--proxy="+c.gateway, "--ca-pin="+c.pin, "--user=ann", "--password-file="+file).code == 0
	})
	await(t, "a session on the node", upWait, func() bool {
		return p.try("", "sally", "ssh", login(t)+"@"+node, "true").code == 0
	})
	log := c.admin(p, "audit", "search", "--event=cert.create", "--limit=1000")
	for role, id := range ids {
		if now := c.host(p, role); now != id {
			t.Errorf("%s %s came back as %s", role, id, now)
		}
		if !strings.Contains(log, ended[role].UTC().Format(time.RFC3339)) {
			t.Errorf("the renewal of the %s is not recorded as after its end at %s: %s", role, ended[role], log)
		}
	}
}

// endCertificates makes of the hosts' certificates what they are after a week. It
// returns when each ended. Nothing of the cluster runs.
func (c *cluster) endCertificates(ids map[string]string) map[string]time.Time {
	t := c.t
	t.Helper()
	s, err := etcd.OpenEmbedded(t.Context(), etcd.EmbeddedConfig{Dir: c.path("auth", "auth", "etcd"), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	sealer, err := ca.OpenKeyFile(c.path("auth", "auth", "kek"))
	if err != nil {
		t.Fatal(err)
	}
	ended := map[string]time.Time{}
	for role, id := range ids {
		path := c.path(role, role, "host.json")
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var standing map[string]any
		if err := json.Unmarshal(text, &standing); err != nil {
			t.Fatal(err)
		}
		der, err := base64.StdEncoding.DecodeString(standing["certificate"].(string))
		if err != nil {
			t.Fatal(err)
		}
		leaf, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		then := time.Now().Add(-ca.HostTTL - 2*time.Second)
		keys, err := ca.Open(t.Context(), ca.Config{Store: s, Sealer: sealer, Cluster: clusterName, Now: func() time.Time { return then }})
		if err != nil {
			t.Fatal(err)
		}
		issued, err := keys.IssueHost(ca.HostRequest{Kind: sallyport.IdentityKind(role), ID: id, TLSKey: leaf.RawSubjectPublicKeyInfo})
		if err != nil {
			t.Fatal(err)
		}
		standing["certificate"], ended[role] = base64.StdEncoding.EncodeToString(issued.X509), issued.NotAfter
		if text, err = json.Marshal(standing); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return ended
}
