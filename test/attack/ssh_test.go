package attack

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/crypto/ssh"

	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
)

// shell opens an SSH connection to the demo's node: outer is the certificate of
// the TLS around it, auth what is shown inside.
func (d *demo) shell(t testing.TB, outer *holder, login string, auth ...ssh.AuthMethod) (*ssh.Client, error) {
	t.Helper()
	conn := d.dialFrom(t, "127.11.0.1")
	conn.SetDeadline(time.Now().Add(callWait))
	tc := tls.Client(conn, &tls.Config{ServerName: d.serverName("node"), NextProtos: []string{"sallyport-ssh/1"}, Certificates: []tls.Certificate{outer.tls}, InsecureSkipVerify: true})
	c, chans, reqs, err := ssh.NewClientConn(tc, "node", &ssh.ClientConfig{User: login, Auth: auth, HostKeyCallback: ssh.InsecureIgnoreHostKey()})
	if err != nil {
		conn.Close()
		return nil, err
	}
	client := ssh.NewClient(c, chans, reqs)
	t.Cleanup(func() { client.Close() })
	return client, nil
}

// forged is a certificate that says what another one says, with what change
// makes of it, signed by signer.
func forged(t testing.TB, of ssh.Signer, signer ssh.Signer, change func(*ssh.Certificate)) ssh.Signer {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	c := *of.PublicKey().(*ssh.Certificate)
	c.Key = s.PublicKey()
	if change != nil {
		change(&c)
	}
	if signer != nil {
		if err := c.SignCert(rand.Reader, signer); err != nil {
			t.Fatal(err)
		}
	}
	out, err := ssh.NewCertSigner(&c, s)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestA01_Signers: an SSH certificate that somebody other than the user CA has
// signed opens nothing, whoever that is.
func TestA01_Signers(t *testing.T) {
	d := target(t)
	admin := d.admin(t)
	login := d.Resources[0].Logins[0]
	agent, _ := d.stolen(t, "agent")
	mallory := d.user(t, "sshmallory", []string{"access"}, map[string][]string{"logins": {"daemon"}})
	d.leavesNothing(t)
	if _, err := d.shell(t, admin, login, ssh.PublicKeys(admin.ssh)); err != nil {
		t.Fatalf("the admin's own: %v", err)
	}
	plain := func(h *holder) ssh.Signer {
		s, err := ssh.NewSignerFromKey(h.key)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	_, stray, _ := ed25519.GenerateKey(rand.Reader)
	own, _ := ssh.NewSignerFromKey(stray)
	rows := map[string]struct {
		outer *holder
		auth  []ssh.AuthMethod
	}{
		"plain key":                      {admin, []ssh.AuthMethod{ssh.PublicKeys(plain(admin))}},
		"password":                       {admin, []ssh.AuthMethod{ssh.Password("x")}},
		"nothing":                        {admin, nil},
		"signed by a stranger":           {admin, []ssh.AuthMethod{ssh.PublicKeys(forged(t, admin.ssh, own, nil))}},
		"signed by a user":               {admin, []ssh.AuthMethod{ssh.PublicKeys(forged(t, admin.ssh, plain(mallory), nil))}},
		"signed by an agent":             {admin, []ssh.AuthMethod{ssh.PublicKeys(forged(t, admin.ssh, plain(agent), nil))}},
		"the agent's host certificate":   {admin, []ssh.AuthMethod{ssh.PublicKeys(agent.ssh)}},
		"old signature, another key":     {admin, []ssh.AuthMethod{ssh.PublicKeys(forged(t, admin.ssh, nil, nil))}},
		"old signature, more principals": {mallory, []ssh.AuthMethod{ssh.PublicKeys(forged(t, mallory.ssh, nil, func(c *ssh.Certificate) { c.ValidPrincipals = append(c.ValidPrincipals, login) }))}},
		"another login":                  {mallory, []ssh.AuthMethod{ssh.PublicKeys(mallory.ssh)}},
		"another's inside mine":          {mallory, []ssh.AuthMethod{ssh.PublicKeys(admin.ssh)}},
		"mine inside another's":          {admin, []ssh.AuthMethod{ssh.PublicKeys(mallory.ssh)}},
		"an agent's outside":             {agent, []ssh.AuthMethod{ssh.PublicKeys(admin.ssh)}},
	}
	for name, row := range rows {
		if c, err := d.shell(t, row.outer, login, row.auth...); err == nil {
			// Denials come in the protocol's words: a session must not start.
			s, err := c.NewSession()
			if err == nil {
				out, _ := s.Output("echo in")
				if strings.Contains(string(out), "in\n") {
					t.Errorf("%s: a shell", name)
				}
			}
		}
	}
}

// offerer shows a public key that is not its own, and then signs with its own.
type offerer struct {
	ssh.Signer
	shows ssh.PublicKey
}

func (o offerer) PublicKey() ssh.PublicKey { return o.shows }

// TestA40_OfferedIsNotProven: an administrator's certificate that was only
// offered gives nothing to who goes on with his own.
func TestA40_OfferedIsNotProven(t *testing.T) {
	d := target(t)
	admin := d.admin(t)
	login := d.Resources[0].Logins[0]
	mallory := d.user(t, "offerer", []string{"access"}, map[string][]string{"logins": {"daemon"}})
	d.leavesNothing(t)
	for _, outer := range []*holder{mallory, admin} {
		c, err := d.shell(t, outer, login, ssh.PublicKeys(offerer{mallory.ssh, admin.ssh.PublicKey()}, mallory.ssh))
		if err != nil {
			continue
		}
		if s, err := c.NewSession(); err == nil {
			if out, _ := s.Output("id -un"); len(out) > 0 {
				t.Errorf("in as %s", out)
			}
		}
	}
}

// TestA02_Channels: what this version does not serve is refused, also to an
// administrator.
func TestA02_Channels(t *testing.T) {
	d := target(t)
	admin := d.admin(t)
	d.leavesNothing(t)
	c, err := d.shell(t, admin, d.Resources[0].Logins[0], ssh.PublicKeys(admin.ssh))
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{
		"forwarded-tcpip": nil, "x11": nil, "auth-agent@openssh.com": nil, "tun@openssh.com": nil, "no-such-type": nil,
	} {
		if ch, _, err := c.OpenChannel(name, data); err == nil {
			ch.Close()
			t.Errorf("a channel of type %s was opened", name)
		}
	}
	for _, name := range []string{"streamlocal-forward@openssh.com", "cancel-tcpip-forward", "no-such-request"} {
		if ok, _, err := c.SendRequest(name, true, ssh.Marshal(struct {
			Host string
			Port uint32
		}{"127.0.0.1", 0})); ok || err != nil {
			t.Errorf("the request %s: granted %v, %v", name, ok, err)
		}
	}
	for _, name := range []string{"SFTP", "netconf", "x"} {
		s, err := c.NewSession()
		if err != nil {
			t.Fatal(err)
		}
		out, err := s.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		// It may be granted only to say that it is not there, and to fail.
		if err := s.RequestSubsystem(name); err == nil {
			b, _ := io.ReadAll(out)
			if err := s.Wait(); err == nil || len(b) > 0 {
				t.Errorf("the subsystem %s was started: %q, %v", name, b, err)
			}
		}
		s.Close()
	}
}

// TestA05_ForwardsAndFilesByRole: what roles forbid besides the shell is refused,
// by each way that leads there, and the shell still opens.
func TestA05_ForwardsAndFilesByRole(t *testing.T) {
	d := target(t)
	login := d.Resources[0].Logins[0]
	doc := `{"kind":"role","version":"v8","metadata":{"name":"narrow"},"spec":{"options":{"ssh_file_copy":false,"forward_agent":false,` +
		`"ssh_port_forwarding":{"local":{"enabled":false},"remote":{"enabled":false}}},"allow":{"logins":["` + login + `"],"node_labels":{"*":"*"}}}}`
	if _, err := d.adminAPI(d.admin(t)).PutDocument(t.Context(), connect.NewRequest(&sallyportv1.PutDocumentRequest{Document: doc, Overwrite: true})); err != nil {
		t.Fatal(err)
	}
	narrow := d.user(t, "narrow", []string{"narrow"}, nil)
	d.leavesNothing(t)
	c, err := d.shell(t, narrow, login, ssh.PublicKeys(narrow.ssh))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if out, err := firstOutput(c); err != nil || !strings.Contains(out, "in\n") {
		t.Fatalf("the shell: %q, %v", out, err)
	}
	for _, network := range []string{"tcp", "unix"} {
		if conn, err := c.Dial(network, map[string]string{"tcp": "127.0.0.1:22", "unix": "/run/docker.sock"}[network]); err == nil || !strings.Contains(err.Error(), "prohibited") {
			t.Errorf("%s: %v, %v", network, conn, err)
		}
	}
	if l, err := c.Listen("tcp", "127.0.0.1:0"); err == nil {
		t.Errorf("listens at %s", l.Addr())
	}
	if l, err := c.ListenUnix(t.TempDir() + "/s"); err == nil {
		t.Errorf("listens at %s", l.Addr())
	}
	for name, ask := range map[string]func(*ssh.Session) error{
		"sftp": func(s *ssh.Session) error { return s.RequestSubsystem("sftp") },
		"scp":  func(s *ssh.Session) error { return s.Start("scp -f /etc/passwd") },
	} {
		s, err := c.NewSession()
		if err != nil {
			t.Fatal(err)
		}
		if ok, err := s.SendRequest("auth-agent-req@openssh.com", true, nil); ok || err != nil {
			t.Errorf("an agent: %v, %v", ok, err)
		}
		out, err := s.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := ask(s); err == nil { // granted only to say why not
			b, _ := io.ReadAll(out)
			if err := s.Wait(); err == nil || len(b) > 0 {
				t.Errorf("%s: %q, %v", name, b, err)
			}
		}
		s.Close()
	}
}

// TestA83_BeforeAuthentication: messages of a later state end the connection.
func TestA83_BeforeAuthentication(t *testing.T) {
	d := target(t)
	admin := d.admin(t)
	d.leavesNothing(t)
	for number := range 256 {
		if number%16 == 0 || number >= 50 && number <= 100 {
			conn := d.dialFrom(t, net.IPv4(127, 11, byte(number), 2).String())
			conn.SetDeadline(time.Now().Add(stage + slack))
			tc := tls.Client(conn, &tls.Config{ServerName: d.serverName("node"), NextProtos: []string{"sallyport-ssh/1"}, Certificates: []tls.Certificate{admin.tls}, InsecureSkipVerify: true})
			io.WriteString(tc, "SSH-2.0-attack\r\n")
			// An unencrypted packet before the key exchange: length, padding, number.
			packet := []byte{0, 0, 0, 12, 10, byte(number), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
			if number == 2 || number == 3 || number == 4 || number == 20 {
				conn.Close()
				continue
			}
			tc.Write(packet)
			if b, err := io.ReadAll(tc); err != nil && strings.Contains(err.Error(), "timeout") {
				t.Errorf("message %d before the key exchange: still open after %d bytes", number, len(b))
			}
			conn.Close()
		}
	}
}
