package attack

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/crypto/ssh"

	"github.com/sallyport/sallyport/controlplane/client"
	"github.com/sallyport/sallyport/dataplane/tunnel"
	"github.com/sallyport/sallyport/identity"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
	"github.com/sallyport/sallyport/wire/sallyport/v1/sallyportv1connect"
)

func (d *demo) accessAPI(h *holder) sallyportv1connect.AccessServiceClient {
	return sallyportv1connect.NewAccessServiceClient(d.dialer(&h.tls).HTTP(client.ProtocolAuth), client.BaseURL)
}

// TestA03_IDIsNotASecret: who knows what a session, a tunnel or a certificate is
// called has nothing: it is the key that opens.
func TestA03_IDIsNotASecret(t *testing.T) {
	d := target(t)
	admin := d.admin(t)
	d.leavesNothing(t)
	d.sessions(t, admin, 3)
	ids := d.sessionIDs(t)
	if len(ids) == 0 {
		t.Fatal("the audit log names no session")
	}
	for _, id := range ids[:min(len(ids), 3)] {
		for _, path := range []string{"/sallyport.v1.AccessService/WhoAmI", "/sallyport.v1.AdminService/ListUsers", "/web/session", "/"} {
			r, err := http.NewRequest(http.MethodPost, "https://"+d.Proxy+path, strings.NewReader("{}"))
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Content-Type", "application/json")
			r.Header.Set("Authorization", "Bearer "+id)
			for _, name := range []string{"session", "__Host-session", "__Host-sallyport", "grv_app_session"} {
				r.AddCookie(&http.Cookie{Name: name, Value: id})
			}
			resp, err := d.visitor().Do(r)
			if err != nil {
				t.Fatal(err)
			}
			b, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK && strings.Contains(string(b), `"user"`) || strings.Contains(string(b), d.User) {
				t.Errorf("%s with a session's id: %s %.200s", path, resp.Status, b)
			}
		}
	}
	// The certificate is public; without its key it opens neither TLS nor SSH.
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	copied := &holder{tls: tls.Certificate{Certificate: admin.tls.Certificate, PrivateKey: key}}
	if _, err := d.accessAPI(copied).WhoAmI(context.Background(), connect.NewRequest(&sallyportv1.WhoAmIRequest{})); err == nil {
		t.Error("the API took a certificate without its key")
	}
	if got := d.meeting(t, "127.13.0.1", d.serverName("tcp"), []string{"sallyport-tcp/1"}, copied.tls); !strings.Contains(got, "decrypt error") && !strings.Contains(got, "bad certificate") {
		if _, err := d.through(copied, "tcp"); err == nil {
			t.Errorf("the door took a certificate without its key: %s", got)
		}
	}
	// A tunnel's id is told to its agent and is no secret either.
	stranger := tunnel.AppendDataHello(nil, tunnel.DataHello{Tunnel: tunnel.ID{1}, Counter: 1}, tunnel.Key{})
	d.refused(t, "with an id and no key", stranger)
}

// through opens an echo session as somebody.
func (d *demo) through(h *holder, kind string) (string, error) {
	conn, err := net.Dial("tcp", d.Proxy)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(callWait))
	tc := tls.Client(conn, &tls.Config{ServerName: d.serverName(kind), NextProtos: []string{"sallyport-" + kind + "/1"}, Certificates: []tls.Certificate{h.tls}, InsecureSkipVerify: true})
	if _, err := io.WriteString(tc, "echo\n"); err != nil {
		return "", err
	}
	b := make([]byte, 5)
	_, err = io.ReadFull(tc, b)
	return string(b), err
}

// sessionIDs are those that the audit log names.
func (d *demo) sessionIDs(t testing.TB) (ids []string) {
	t.Helper()
	await(t, "sessions in the audit log", callWait, func() bool {
		out := d.sallyctl(t, "audit", "search", "--limit=1000")
		var events []map[string]any
		if json.Unmarshal([]byte(out), &events) != nil {
			for line := range strings.Lines(out) {
				var e map[string]any
				if json.Unmarshal([]byte(line), &e) == nil {
					events = append(events, e)
				}
			}
		}
		ids = nil
		for _, e := range events {
			for _, k := range []string{"sid", "session_id"} {
				if s, ok := e[k].(string); ok && s != "" && !slices.Contains(ids, s) {
					ids = append(ids, s)
				}
			}
		}
		return len(ids) > 0
	})
	return ids
}

// reissued is the certificate that takes the place of another.
func (d *demo) reissued(t testing.TB, h *holder, ttl time.Duration) (*holder, error) {
	t.Helper()
	tlsKey, tlsPub, sshKey, sshPub := newKeys(t)
	resp, err := d.accessAPI(h).Reissue(context.Background(), connect.NewRequest(&sallyportv1.ReissueRequest{SshPublicKey: sshPub, TlsPublicKey: tlsPub, TtlSeconds: int64(ttl / time.Second)}))
	if err != nil {
		return nil, err
	}
	out := &holder{name: h.name, tls: tls.Certificate{Certificate: [][]byte{resp.Msg.GetTlsCertificate()}, PrivateKey: tlsKey}, key: sshKey}
	out.ssh = certified(t, sshKey, string(resp.Msg.GetSshCertificate()))
	return out, nil
}

func leafOf(t testing.TB, h *holder) *x509.Certificate {
	t.Helper()
	c, err := x509.ParseCertificate(h.tls.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestA04_ReissueOnlyNarrows: a certificate got for a certificate has no right,
// no principal and no second more than that, however often and for how long one
// asks, and also when the user's role has become richer meanwhile.
func TestA04_ReissueOnlyNarrows(t *testing.T) {
	d := target(t)
	admin := d.adminAPI(d.admin(t))
	doc := `{"kind":"role","version":"v7","metadata":{"name":"pinned"},"spec":{"options":{"pin_source_ip":true,"max_session_ttl":"1h"},"allow":{"logins":["daemon"]}}}`
	if _, err := admin.PutDocument(context.Background(), connect.NewRequest(&sallyportv1.PutDocumentRequest{Document: doc, Overwrite: true})); err != nil {
		t.Fatal(err)
	}
	first := d.user(t, "narrow", []string{"pinned"}, map[string][]string{"logins": {"daemon"}})
	d.leavesNothing(t)
	was, err := identity.FromX509(leafOf(t, first))
	if err != nil {
		t.Fatal(err)
	}
	if was.PinnedAddr == "" {
		t.Fatal("the certificate is pinned to no address: the test tests nothing")
	}
	// The role grows, and no longer restricts.
	doc = `{"kind":"role","version":"v7","metadata":{"name":"pinned"},"spec":{"allow":{"logins":["daemon","root"],"rules":[{"resources":["*"],"verbs":["*"]}]}}}`
	if _, err := admin.PutDocument(context.Background(), connect.NewRequest(&sallyportv1.PutDocumentRequest{Document: doc, Overwrite: true})); err != nil {
		t.Fatal(err)
	}
	for i, ttl := range []time.Duration{0, time.Second * 1000, 1000 * time.Hour, 1 << 62} {
		next, err := d.reissued(t, first, ttl)
		if err != nil {
			continue // refused is narrow, too
		}
		now, err := identity.FromX509(leafOf(t, next))
		if err != nil {
			t.Fatal(err)
		}
		for what, wider := range map[string]bool{
			"end": now.NotAfter.After(was.NotAfter), "address": now.PinnedAddr != was.PinnedAddr, "MFA": now.MFA != was.MFA,
			"roles":      slices.ContainsFunc(now.Roles, func(r string) bool { return !slices.Contains(was.Roles, r) }),
			"principals": slices.ContainsFunc(now.Principals, func(p string) bool { return !slices.Contains(was.Principals, p) }),
			"SSH principals": slices.ContainsFunc(next.ssh.PublicKey().(*ssh.Certificate).ValidPrincipals, func(p string) bool {
				return !slices.Contains(first.ssh.PublicKey().(*ssh.Certificate).ValidPrincipals, p)
			}),
			"cluster": now.Cluster != was.Cluster, "name": now.Name != was.Name,
		} {
			if wider {
				t.Errorf("round %d: %s is wider: %+v, was %+v", i, what, now, was)
			}
		}
		first, was = next, now
	}
}

// TestA05_LoginOnEveryChannel: a login that the certificate does not allow gets
// no shell, no command, no subsystem and no forward, whatever channel asks.
func TestA05_LoginOnEveryChannel(t *testing.T) {
	d := target(t)
	admin := d.admin(t)
	own := d.Resources[0].Logins[0]
	guest := d.user(t, "guest", []string{"access"}, map[string][]string{"logins": {"nobody-here"}})
	d.leavesNothing(t)
	if c, err := d.shell(t, admin, own, ssh.PublicKeys(admin.ssh)); err != nil {
		t.Fatalf("the admin's own: %v", err)
	} else if out, err := firstOutput(c); err != nil || !strings.Contains(out, "in\n") {
		t.Fatalf("the admin's own: %q, %v: the test tests nothing", out, err)
	}
	for _, login := range []string{own, "root", "daemon", "", "nobody-here", own + "\x00", "../" + own, strings.ToUpper(own), own + " "} {
		for name, h := range map[string]*holder{"guest": guest, "admin": admin} {
			if name == "admin" && login == own {
				continue
			}
			if slices.Contains(h.ssh.PublicKey().(*ssh.Certificate).ValidPrincipals, login) && name == "admin" {
				continue
			}
			c, err := d.shell(t, h, login, ssh.PublicKeys(h.ssh))
			if err != nil {
				continue
			}
			if out, _ := firstOutput(c); strings.Contains(out, "in\n") {
				t.Errorf("%s as %q: a command ran", name, login)
			}
			for _, kind := range []string{"direct-tcpip", "direct-streamlocal@openssh.com", "forwarded-tcpip", "x11", "auth-agent@openssh.com"} {
				if ch, _, err := c.OpenChannel(kind, ssh.Marshal(struct {
					Host  string
					Port  uint32
					OHost string
					OPort uint32
				}{"127.0.0.1", 22, "127.0.0.1", 1})); err == nil {
					ch.Close()
					t.Errorf("%s as %q: a channel of type %s", name, login, kind)
				}
			}
			c.Close()
		}
	}
}

func firstOutput(c *ssh.Client) (string, error) {
	s, err := c.NewSession()
	if err != nil {
		return "", err
	}
	defer s.Close()
	out, err := s.Output("echo in")
	return string(out), err
}

// foreign is a certificate of another cluster that is made as well as ours are:
// by a CA of its own, which says that it is the one of cluster.
func foreign(t testing.TB, like *holder, cluster string) *holder {
	t.Helper()
	leaf := leafOf(t, like)
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: cluster + " user CA", Organization: []string{cluster}},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := *leaf
	c.URIs = []*url.URL{{Scheme: "spiffe", Host: cluster, Path: leaf.URIs[0].Path}}
	c.ExtraExtensions = slices.DeleteFunc(slices.Clone(leaf.Extensions), func(e pkix.Extension) bool { return len(e.Id) > 1 && e.Id[0] == 2 && e.Id[1] == 5 })
	der, err := x509.CreateCertificate(rand.Reader, &c, ca, key.Public(), caKey)
	if err != nil {
		t.Fatal(err)
	}
	root, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	if err != nil {
		t.Fatal(err)
	}
	return &holder{name: like.name, tls: tls.Certificate{Certificate: [][]byte{der, root}, PrivateKey: key}}
}

// TestA14_OtherCluster: another cluster's CA vouches for nobody here, whatever
// cluster its certificates name: not at the API, not at a door, not for a tunnel.
func TestA14_OtherCluster(t *testing.T) {
	d := target(t)
	admin := d.admin(t)
	agent, _ := d.stolen(t, "agent")
	gateway, _ := d.stolen(t, "gateway")
	d.leavesNothing(t)
	before := d.status(t).Gateway.Tunnel
	if _, err := d.accessAPI(admin).WhoAmI(context.Background(), connect.NewRequest(&sallyportv1.WhoAmIRequest{})); err != nil {
		t.Fatalf("our own: %v", err)
	}
	for _, cluster := range []string{"other.example.com", d.Cluster, "a." + d.Cluster, d.Cluster + ".evil.example", strings.ToUpper(d.Cluster)} {
		user := foreign(t, admin, cluster)
		if _, err := d.accessAPI(user).WhoAmI(context.Background(), connect.NewRequest(&sallyportv1.WhoAmIRequest{})); err == nil {
			t.Errorf("%s: the API took its user", cluster)
		}
		if out, err := d.through(user, "tcp"); err == nil {
			t.Errorf("%s: the door took its user: %q", cluster, out)
		}
		for name, host := range map[string]*holder{"agent": agent, "gateway": gateway} {
			f := foreign(t, host, cluster)
			if got := d.meeting(t, "127.13.1.1", d.Cluster, []string{"sallyport-tunnel/1"}, f.tls); got == "sallyport-tunnel/1 by gateway" {
				conn := d.dialFrom(t, "127.13.1.2")
				conn.SetDeadline(time.Now().Add(callWait))
				tc := tls.Client(conn, &tls.Config{NextProtos: []string{"sallyport-tunnel/1"}, Certificates: []tls.Certificate{f.tls}, InsecureSkipVerify: true})
				if err := tc.Handshake(); err == nil { // TLS 1.3: the server's no comes after that
					if _, err = tc.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), "remote error: tls:") {
						t.Errorf("%s: its %s opened a control connection: %v", cluster, name, err)
					}
				}
				conn.Close()
			}
		}
	}
	if after := d.status(t).Gateway.Tunnel; after["replaced"] != before["replaced"] {
		t.Error("the agent's tunnel was replaced")
	}
}

// TestA47_DecidedIsDone: what is decided on is what is done. A document has one
// kind, a hello one name, a request one user, or they get nothing.
func TestA47_DecidedIsDone(t *testing.T) {
	d := target(t)
	d.role(t, "locks-only", `{"rules":[{"resources":["lock"],"verbs":["create","update"]}]}`)
	locker := d.adminAPI(d.user(t, "locker", []string{"locks-only"}, nil))
	d.leavesNothing(t)
	for _, doc := range []string{
		`{"kind":"role","kind":"lock","version":"v7","metadata":{"name":"twice"},"spec":{"allow":{"logins":["root"]}}}`,
		`{"kind":"lock","kind":"role","version":"v7","metadata":{"name":"twice"},"spec":{"allow":{"logins":["root"]}}}`,
		`{"kind":"lock","Kind":"role","version":"v7","metadata":{"name":"twice"},"spec":{"allow":{"logins":["root"]}}}`,
		`{"\u006bind":"role","kind":"lock","version":"v7","metadata":{"name":"twice"},"spec":{"allow":{"logins":["root"]}}}`,
		`{"kind":"lock","version":"v2","metadata":{"name":"twice"},"spec":{"target":{"user":"x"}}}{"kind":"role","version":"v7","metadata":{"name":"twice"},"spec":{}}`,
		"kind: lock\n---\nkind: role\nversion: v7\nmetadata: {name: twice}\nspec: {}\n",
		"base: &b {kind: role}\n<<: *b\nkind: lock\nversion: v7\nmetadata: {name: twice}\nspec: {allow: {logins: [root]}}\n",
	} {
		if _, err := locker.PutDocument(context.Background(), connect.NewRequest(&sallyportv1.PutDocumentRequest{Document: doc, Overwrite: true})); err == nil {
			t.Errorf("stored: %s", doc)
		}
	}
	if out := d.sallyctl(t, "get", "roles", "--format=json"); strings.Contains(out, `"twice"`) {
		t.Error("there is a role that nobody who may has made")
	}
	// Two names in one hello: routed by neither.
	hello := helloFor(t, d.serverName("tcp"), "sallyport-tcp/1")
	conn := d.dialFrom(t, "127.13.2.1")
	defer conn.Close()
	conn.Write(twoNames(t, hello, d.serverName("tcp")))
	if b, _, err := untilClosed(conn, stage+slack); err != nil || len(b) != 7 || b[0] != 21 {
		t.Errorf("a hello with two names: %x, %v; want an alert", b, err)
	}
}

// twoNames puts a second name into a hello's server_name, RFC 6066, section 3:
// a list must not have two of a type.
func twoNames(t testing.TB, hello []byte, name string) []byte {
	t.Helper()
	entry := append([]byte{0, byte(len(name) >> 8), byte(len(name))}, name...)
	list := append([]byte{byte(len(entry) >> 8), byte(len(entry))}, entry...)
	whole := append([]byte{0, 0, byte(len(list) >> 8), byte(len(list))}, list...)
	i := strings.Index(string(hello), string(whole))
	if i < 0 {
		t.Fatal("the hello has no server name")
	}
	twice := append(append([]byte{byte(2 * len(entry) >> 8), byte(2 * len(entry))}, entry...), entry...)
	ext := append([]byte{0, 0, byte(len(twice) >> 8), byte(len(twice))}, twice...)
	out := slices.Concat(hello[:i], ext, hello[i+len(whole):])
	more := len(out) - len(hello)
	add := func(at, size int) { // a big-endian length grows
		n := 0
		for _, b := range out[at : at+size] {
			n = n<<8 | int(b)
		}
		n += more
		for k := size - 1; k >= 0; k-- {
			out[at+k] = byte(n)
			n >>= 8
		}
	}
	add(3, 2)                                  // the record
	add(6, 3)                                  // the handshake message
	at := 43 + 1 + int(out[43])                // behind the session id
	at += 2 + int(out[at])<<8 + int(out[at+1]) // cipher suites
	at += 1 + int(out[at])                     // compression
	add(at, 2)                                 // extensions
	return out
}
