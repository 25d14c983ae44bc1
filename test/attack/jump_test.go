package attack

import (
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/crypto/ssh"

	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
)

// jump opens an SSH connection to the gateway's own server.
func (d *demo) jump(t testing.TB, from string, auth ...ssh.AuthMethod) (*ssh.Client, error) {
	t.Helper()
	conn := d.dialFrom(t, from)
	conn.SetDeadline(time.Now().Add(callWait))
	c, chans, reqs, err := ssh.NewClientConn(conn, d.Cluster, &ssh.ClientConfig{User: "whoever", Auth: auth, HostKeyCallback: func(_ string, _ net.Addr, key ssh.PublicKey) error {
		cert, ok := key.(*ssh.Certificate)
		if !ok || cert.CertType != ssh.HostCert || !slices.Contains(cert.ValidPrincipals, d.Cluster) || slices.ContainsFunc(cert.ValidPrincipals, func(p string) bool { return strings.HasSuffix(p, "."+d.Cluster) }) {
			return errors.New("not a certificate for the cluster's name alone")
		}
		return nil
	}})
	if err != nil {
		conn.Close()
		return nil, err
	}
	client := ssh.NewClient(c, chans, reqs)
	t.Cleanup(func() { client.Close() })
	return client, nil
}

// inside goes on to the node through the jump server.
func (d *demo) inside(t testing.TB, through *ssh.Client, login string, auth ...ssh.AuthMethod) (string, error) {
	t.Helper()
	conn, err := through.Dial("tcp", d.name("node")+"."+d.Cluster+":22")
	if err != nil {
		t.Fatalf("no way to the node: %v", err)
	}
	c, chans, reqs, err := ssh.NewClientConn(conn, "node", &ssh.ClientConfig{User: login, Auth: auth, HostKeyCallback: ssh.InsecureIgnoreHostKey()})
	if err != nil {
		conn.Close()
		return "", err
	}
	client := ssh.NewClient(c, chans, reqs)
	defer client.Close()
	return firstOutput(client)
}

// TestA01_JumpSigners: the jump server takes a person's certificate and nothing
// else, whoever has signed it.
func TestA01_JumpSigners(t *testing.T) {
	d := target(t)
	admin := d.admin(t)
	agent, _ := d.stolen(t, "agent")
	gateway, _ := d.stolen(t, "gateway")
	d.leavesNothing(t)
	if _, err := d.jump(t, "127.12.0.1", ssh.PublicKeys(admin.ssh)); err != nil {
		t.Fatalf("the admin's own: %v", err)
	}
	_, stray, _ := ed25519.GenerateKey(rand.Reader)
	own, _ := ssh.NewSignerFromKey(stray)
	for name, auth := range map[string][]ssh.AuthMethod{
		"nothing":                       nil,
		"password":                      {ssh.Password("x")},
		"plain key":                     {ssh.PublicKeys(own)},
		"signed by a stranger":          {ssh.PublicKeys(forged(t, admin.ssh, own, nil))},
		"old signature, another key":    {ssh.PublicKeys(forged(t, admin.ssh, nil, nil))},
		"the agent's host certificate":  {ssh.PublicKeys(agent.ssh)},
		"the gateway's own certificate": {ssh.PublicKeys(gateway.ssh)},
		"signed by the gateway":         {ssh.PublicKeys(forged(t, admin.ssh, plainKey(t, gateway), nil))},
		"offered":                       {ssh.PublicKeys(offerer{own, admin.ssh.PublicKey()})},
	} {
		if _, err := d.jump(t, "127.12.0.2", auth...); err == nil {
			t.Errorf("%s: in", name)
		}
	}
}

func plainKey(t testing.TB, h *holder) ssh.Signer {
	t.Helper()
	s, err := ssh.NewSignerFromKey(h.key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestA02_JumpAndRoles: whoever passes the jump server is at the node what his
// roles make him, and nowhere else anything.
func TestA02_JumpAndRoles(t *testing.T) {
	d := target(t)
	admin, login := d.admin(t), d.Resources[0].Logins[0]
	doc := `{"kind":"role","version":"v8","metadata":{"name":"nonode"},"spec":{"allow":{"logins":["` + login + `"],"node_labels":{"no":"where"}}}}`
	if _, err := d.adminAPI(admin).PutDocument(t.Context(), connect.NewRequest(&sallyportv1.PutDocumentRequest{Document: doc, Overwrite: true})); err != nil {
		t.Fatal(err)
	}
	nonode := d.user(t, "nonode", []string{"nonode"}, nil)
	mallory := d.user(t, "jumper", []string{"access"}, map[string][]string{"logins": {"daemon"}})
	d.leavesNothing(t)
	in := func(h *holder) *ssh.Client {
		t.Helper()
		c, err := d.jump(t, "127.12.0.3", ssh.PublicKeys(h.ssh))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	if out, err := d.inside(t, in(admin), login, ssh.PublicKeys(admin.ssh)); err != nil || !strings.Contains(out, "in\n") {
		t.Errorf("the admin: %q, %v", out, err)
	}
	for name, row := range map[string]struct {
		outer *holder
		auth  []ssh.AuthMethod
	}{
		"a role without the node":   {nonode, []ssh.AuthMethod{ssh.PublicKeys(nonode.ssh)}},
		"another login":             {mallory, []ssh.AuthMethod{ssh.PublicKeys(mallory.ssh)}},
		"nothing inside":            {admin, nil},
		"another's, only offered":   {mallory, []ssh.AuthMethod{ssh.PublicKeys(offerer{mallory.ssh, admin.ssh.PublicKey()}, mallory.ssh)}},
		"the gateway's certificate": {admin, []ssh.AuthMethod{ssh.PublicKeys(func() ssh.Signer { g, _ := d.stolen(t, "gateway"); return g.ssh }())}},
	} {
		if out, err := d.inside(t, in(row.outer), login, row.auth...); err == nil && strings.Contains(out, "in\n") {
			t.Errorf("%s: a shell", name)
		}
	}
	c := in(admin)
	_, port, _ := net.SplitHostPort(d.Proxy)
	for _, to := range []string{"127.0.0.1:22", "127.0.0.1:" + port, "localhost:" + port, "[::1]:22", d.name("node") + ":" + port, "169.254.169.254:80", d.Cluster + ":" + port} {
		if conn, err := c.Dial("tcp", to); err == nil || !strings.Contains(err.Error(), "leads to its nodes only") {
			t.Errorf("%s: %v, %v", to, conn, err)
		}
	}
	if conn, err := c.Dial("unix", d.data+"/admin.sock"); err == nil {
		t.Errorf("the admin socket: %v", conn)
	}
	if l, err := c.Listen("tcp", "127.0.0.1:0"); err == nil {
		t.Errorf("listens at %s", l.Addr())
	}
	if s, err := c.NewSession(); err == nil {
		t.Errorf("a session: %v", s)
	}
}
