package api

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"golang.org/x/crypto/ssh"
	"google.golang.org/protobuf/proto"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/ca"
	"github.com/sallyport/sallyport/controlplane/join"
	"github.com/sallyport/sallyport/controlplane/login"
	"github.com/sallyport/sallyport/controlplane/store/etcd"
	"github.com/sallyport/sallyport/identity"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
	"github.com/sallyport/sallyport/wire/sallyport/v1/sallyportv1connect"
)

// TestA08_SecretsAndEndpoints: every secret opens its own endpoint and no other.
func TestA08_SecretsAndEndpoints(t *testing.T) {
	w := the()
	_, gatewayCert := w.host(t, sallyport.KindGateway)
	name := "matrix-" + uuid.NewString()[:8]
	link, err := w.users.CreateUser(t.Context(), login.User{Name: name, Roles: []string{"access"}}, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.users.Claim(t.Context(), login.Claim{Token: link.Token, Password: password}); err != nil {
		t.Fatal(err)
	}
	open, err := w.users.ResetUser(t.Context(), name, 0) // a link that is good; takes the password away
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.users.Claim(t.Context(), login.Claim{Token: open.Token, Password: password}); err != nil {
		t.Fatal(err)
	}
	other, err := w.users.CreateUser(t.Context(), login.User{Name: "other-" + name, Roles: []string{"access"}}, 0)
	if err != nil {
		t.Fatal(err)
	}
	token := func(kind sallyport.IdentityKind) string {
		secret, _, err := w.tokens.Create(t.Context(), join.Spec{Roles: []sallyport.IdentityKind{kind}})
		if err != nil {
			t.Fatal(err)
		}
		return secret
	}
	secrets := map[string]string{
		"agent token": token(sallyport.KindAgent), "gateway token": token(sallyport.KindGateway),
		"claim link": other.Token, "password": password, "used link": link.Token,
	}
	joinAs := func(kind string) func(string) error {
		return func(secret string) error {
			k := newKeyPair(t)
			_, err := w.joiner(t).Join(t.Context(), connect.NewRequest(&sallyportv1.JoinRequest{Token: secret, Roles: []string{kind}, TlsPublicKey: k.tlsPub, SshPublicKey: k.sshPub}))
			return err
		}
	}
	endpoints := map[string]func(string) error{
		"agent token":   joinAs("agent"),
		"gateway token": joinAs("gateway"),
		"claim link": func(secret string) error {
			_, err := w.users.Offer(t.Context(), secret)
			return err
		},
		"password": func(secret string) error {
			k := newKeyPair(t)
			c := sallyportv1connect.NewPublicServiceClient(w.http(t, visitor(gatewayCert, "192.0.2.8:1")), base)
			_, err := c.Login(t.Context(), connect.NewRequest(&sallyportv1.LoginRequest{User: name, Password: secret, TlsPublicKey: k.tlsPub, SshPublicKey: k.sshPub}))
			return err
		},
	}
	for endpoint, try := range endpoints {
		for secret, value := range secrets {
			if err := try(value); (err == nil) != (secret == endpoint) {
				t.Errorf("%s where a %s is wanted: %v", secret, endpoint, err)
			}
		}
	}
}

// TestA08_Certificates: of all certificates that the cluster issues, only those
// of users, agents and gateways open the API, each as who it names.
func TestA08_Certificates(t *testing.T) {
	w := the()
	k := newKeyPair(t)
	issued := func(c ca.Certificates, err error) *tls.Certificate {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return k.with(c.X509)
	}
	_, user := w.user(t, nil, "access")
	web := w.certify(t, func(id *sallyport.Identity) {
		id.Usage, id.BoundTo = sallyport.UsageWeb, "spiffe://"+cluster+"/gateway/"+uuid.NewString()
	}, "anybody", "access")
	_, agent := w.host(t, sallyport.KindAgent)
	_, gateway := w.host(t, sallyport.KindGateway)
	for name, c := range map[string]struct {
		cert *tls.Certificate
		want string // "" for refused
	}{
		"none":            {nil, ""},
		"user":            {user, "user"},
		"agent":           {agent, "agent"},
		"gateway":         {gateway, "gateway"},
		"web usage":       {web, ""},
		"auth":            {issued(w.keys.IssueHost(ca.HostRequest{Kind: sallyport.KindAuth, ID: uuid.NewString(), TLSKey: k.tlsPub})), ""},
		"resource":        {issued(w.keys.IssueResource(k.tlsPub, w.keys.ServerName(sallyport.KindDatabase, "orders"))), ""},
		"database client": {issued(w.keys.IssueDatabaseClient(k.tlsPub, "alice")), ""},
		"database server": {issued(w.keys.IssueDatabaseServer(ca.DatabaseServerRequest{TLSKey: k.tlsPub, Names: []string{"db"}})), ""},
		"a CA itself":     {k.with(w.keys.Authority(ca.User).Certificates[0].Raw), ""},
		"self-signed":     {selfSigned(t, k), ""},
	} {
		t.Run(name, func(t *testing.T) {
			hc := w.http(t, byAuth(c.cert))
			_, err := sallyportv1connect.NewPublicServiceClient(hc, base).Ping(t.Context(), connect.NewRequest(&sallyportv1.PingRequest{}))
			if (err == nil) != (c.want != "") {
				t.Fatalf("ping: %v", err)
			}
			if c.want == "" {
				return
			}
			_, asUser := sallyportv1connect.NewAccessServiceClient(hc, base).WhoAmI(t.Context(), connect.NewRequest(&sallyportv1.WhoAmIRequest{}))
			if (asUser == nil) != (c.want == "user") {
				t.Errorf("who am I: %v", asUser)
			}
		})
	}
}

// selfSigned has everything a user certificate has but the CA's signature.
func selfSigned(t *testing.T, k keyPair) *tls.Certificate {
	t.Helper()
	ext, err := identity.Extension(sallyport.Identity{Kind: sallyport.KindUser, Name: "alice", Cluster: cluster, Roles: []string{"editor"}})
	if err != nil {
		t.Fatal(err)
	}
	tmpl := template("alice")
	tmpl.URIs = append(tmpl.URIs, identity.URI(sallyport.KindUser, cluster, "alice"))
	tmpl.ExtraExtensions = append(tmpl.ExtraExtensions, ext)
	return k.with(sign(t, tmpl, tmpl, k))
}

// TestA67_PoolsSwapped: a listener that was given each CA for the other takes
// nobody: who signed and what was signed must belong together.
func TestA67_PoolsSwapped(t *testing.T) {
	w := the()
	_, user := w.user(t, nil, "editor")
	_, agent := w.host(t, sallyport.KindAgent)
	l := w.listener(false)
	l.UserCAs, l.HostCAs = l.HostCAs, l.UserCAs
	addr := listen(t, l)
	for name, cert := range map[string]*tls.Certificate{"user": user, "agent": agent} {
		if reached(w, door{protocol: protocolAuth, cert: cert, address: addr}) {
			t.Errorf("%s: taken", name)
		}
	}
}

// TestA14_OtherCluster: a certificate of another cluster is refused, also when
// that cluster's CA is trusted by mistake.
func TestA14_OtherCluster(t *testing.T) {
	w := the()
	_, user := w.user(t, nil, "editor")
	_, agent := w.host(t, sallyport.KindAgent)
	renamed := w.listener(false)
	renamed.Cluster = "other.example.com"
	addr := listen(t, renamed)
	for name, cert := range map[string]*tls.Certificate{"user": user, "agent": agent} {
		if reached(w, door{protocol: protocolAuth, cert: cert, address: addr}) {
			t.Errorf("%s of %s: taken by another cluster with the same CA", name, cluster)
		}
		if !reached(w, door{protocol: protocolAuth, cert: cert}) {
			t.Errorf("%s: refused at home", name)
		}
	}
	s, err := etcd.OpenEmbedded(t.Context(), etcd.EmbeddedConfig{Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	foreign, err := ca.Open(t.Context(), ca.Config{Store: s, Sealer: w.sealer, Cluster: cluster})
	if err != nil {
		t.Fatal(err)
	}
	k := newKeyPair(t)
	c, err := foreign.IssueHost(ca.HostRequest{Kind: sallyport.KindGateway, ID: uuid.NewString(), TLSKey: k.tlsPub})
	if err != nil {
		t.Fatal(err)
	}
	if reached(w, byAuth(k.with(c.X509))) {
		t.Error("a CA of the same name: taken")
	}
}

// listen serves l on a TCP port until the test ends.
func listen(t *testing.T, l *Listener) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		l.Serve(ctx, ln)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return ln.Addr().String()
}

// reached says that a call came through. In TLS 1.3 a client learns that its
// certificate was refused only after its own handshake.
func reached(w *world, d door) bool {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	conn, err := w.dial(ctx, d)
	if err != nil {
		return false
	}
	defer conn.Close()
	conn.SetReadDeadline(time.Now().Add(time.Minute))
	_, err = conn.Read(make([]byte, 1)) // HTTP/2 settings come unasked
	return err == nil
}

// TestA28_OwnNamesOnly: hosts get certificates for what is theirs.
func TestA28_OwnNamesOnly(t *testing.T) {
	w := the()
	first, firstCert := w.host(t, sallyport.KindAgent)
	second, secondCert := w.host(t, sallyport.KindAgent)
	_, gatewayCert := w.host(t, sallyport.KindGateway)
	k, name := newKeyPair(t), "own-"+uuid.NewString()[:8]
	announce := func(cert *tls.Certificate, resources ...*sallyportv1.Resource) *sallyportv1.AnnounceResponse {
		t.Helper()
		resp, err := w.asHost(t, cert).Announce(t.Context(), connect.NewRequest(&sallyportv1.AnnounceRequest{Resources: resources, TlsPublicKey: k.tlsPub, SshPublicKey: k.sshPub}))
		if err != nil {
			t.Fatal(err)
		}
		return resp.Msg
	}
	db := &sallyportv1.Resource{Kind: "db", Name: name, Protocol: "postgres"}
	node := &sallyportv1.Resource{Kind: "node", Name: name, Hostname: name}
	got := announce(firstCert, db, node)
	if len(got.GetRefusals()) > 0 || len(got.GetCertificates()) != 3 {
		t.Fatalf("first: %d certificates, refused %v", len(got.GetCertificates()), got.GetRefusals())
	}
	for _, c := range got.GetCertificates() {
		leaf := parse(t, c.GetCertificate())
		if !slices.Equal(leaf.DNSNames, []string{c.GetServerName()}) || !strings.HasSuffix(c.GetServerName(), "."+cluster) || len(leaf.IPAddresses)+len(leaf.URIs) > 0 {
			t.Errorf("resource certificate of %q names %v %v %v", c.GetServerName(), leaf.DNSNames, leaf.IPAddresses, leaf.URIs)
		}
	}
	got = announce(secondCert, db, node)
	if len(got.GetRefusals()) != 1 || got.GetRefusals()[0].GetName() != name {
		t.Errorf("second: refused %v", got.GetRefusals())
	}
	for _, c := range got.GetCertificates() {
		if strings.Contains(c.GetServerName(), name+".db.") || c.GetServerName() == name+".node."+cluster || strings.Contains(c.GetServerName(), first) {
			t.Errorf("the second has a certificate for %s", c.GetServerName())
		}
	}
	for _, p := range sshCertificate(t, got.GetSshCertificate()).ValidPrincipals {
		if p == name || p == name+"."+cluster || strings.Contains(p, first) {
			t.Errorf("the second's SSH certificate is for %s", p)
		}
	}
	renew := func(cert *tls.Certificate, addresses ...string) (*sallyportv1.JoinResponse, error) {
		resp, err := w.asHost(t, cert).RenewHost(t.Context(), connect.NewRequest(&sallyportv1.RenewHostRequest{TlsPublicKey: k.tlsPub, SshPublicKey: k.sshPub, Addresses: addresses}))
		if err != nil {
			return nil, err
		}
		return resp.Msg, nil
	}
	_, err := renew(secondCert, "192.0.2.1:443")
	codeIs(t, "an agent with an address", err, connect.CodeInvalidArgument)
	resp, err := renew(secondCert)
	if err != nil {
		t.Fatal(err)
	}
	leaf := parse(t, resp.GetTlsCertificate())
	if len(leaf.URIs) != 1 || !strings.HasSuffix(leaf.URIs[0].Path, "/agent/"+second) || len(leaf.DNSNames)+len(leaf.IPAddresses) > 0 {
		t.Errorf("renewed: %v %v %v", leaf.URIs, leaf.DNSNames, leaf.IPAddresses)
	}
	resp, err = renew(gatewayCert, "192.0.2.1:443", "evil.example.com:443", "0.0.0.0:443")
	if err != nil {
		t.Fatal(err)
	}
	leaf = parse(t, resp.GetTlsCertificate())
	if !slices.Equal(leaf.DNSNames, []string{cluster, "*." + cluster}) || len(leaf.IPAddresses) != 1 {
		t.Errorf("gateway: %v %v", leaf.DNSNames, leaf.IPAddresses)
	}
}

func parse(t *testing.T, der []byte) *x509.Certificate {
	t.Helper()
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func sshCertificate(t *testing.T, line []byte) *ssh.Certificate {
	t.Helper()
	k, _, _, _, err := ssh.ParseAuthorizedKey(line)
	if err != nil {
		t.Fatal(err)
	}
	return k.(*ssh.Certificate)
}

// TestA06_OtherHosts: a host is heard about itself only.
func TestA06_OtherHosts(t *testing.T) {
	w := the()
	first, firstCert := w.host(t, sallyport.KindAgent)
	second, secondCert := w.host(t, sallyport.KindAgent)
	gatewayOne, _ := w.host(t, sallyport.KindGateway)
	_, gatewayTwo := w.host(t, sallyport.KindGateway)
	k, name := newKeyPair(t), "mine-"+uuid.NewString()[:8]
	_, err := w.asHost(t, firstCert).Announce(t.Context(), connect.NewRequest(&sallyportv1.AnnounceRequest{
		Resources: []*sallyportv1.Resource{{Kind: "db", Name: name, Protocol: "postgres"}}, TlsPublicKey: k.tlsPub, SshPublicKey: k.sshPub}))
	if err != nil {
		t.Fatal(err)
	}
	database := func(cert *tls.Certificate) error {
		_, err := w.asHost(t, cert).IssueDatabaseCertificate(t.Context(), connect.NewRequest(&sallyportv1.IssueDatabaseCertificateRequest{Database: name, DatabaseUser: "alice", TlsPublicKey: k.tlsPub}))
		return err
	}
	if err := database(firstCert); err != nil {
		t.Errorf("own database: %v", err)
	}
	codeIs(t, "another's database", database(secondCert), connect.CodePermissionDenied)

	spoolID := uuid.NewString()
	for _, spool := range []string{first + "/" + spoolID, first, "", "/", first + "x/" + spoolID, strings.ToUpper(second) + "/" + spoolID,
		second + "/", second + "/s", second + "/" + strings.ToUpper(spoolID), second + "/{" + spoolID + "}", second + "/" + spoolID + "/" + spoolID} {
		_, err := w.asHost(t, secondCert).AppendEvents(t.Context(), connect.NewRequest(&sallyportv1.AppendEventsRequest{Spool: spool}))
		codeIs(t, "spool "+spool, err, connect.CodePermissionDenied)
	}
	_, err = w.asHost(t, gatewayTwo).ReportPresence(t.Context(), connect.NewRequest(&sallyportv1.ReportPresenceRequest{GatewayId: gatewayOne, Epoch: "e", Sequence: 1, Full: true}))
	codeIs(t, "presence of another gateway", err, connect.CodePermissionDenied)
}

// TestAgentsHaveHostNames: administrators saw agents by their ids alone.
func TestAgentsHaveHostNames(t *testing.T) {
	w := the()
	agent, _ := w.hostNamed(t, sallyport.KindAgent, "Web-1.example.com")
	gatewayID, gateway := w.host(t, sallyport.KindGateway)
	report := &sallyportv1.ReportPresenceRequest{GatewayId: gatewayID, Epoch: "e", Sequence: 1, Full: true, Address: "gw.test:443", Up: []*sallyportv1.Presence{{AgentId: agent, Version: "v1"}}}
	if _, err := w.asHost(t, gateway).ReportPresence(t.Context(), connect.NewRequest(report)); err != nil {
		t.Fatal(err)
	}
	resp, err := w.localAdmin(t).ListAgents(t.Context(), connect.NewRequest(&sallyportv1.ListAgentsRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(resp.Msg.GetAgents(), func(a *sallyportv1.AgentStatus) bool { return a.GetId() == agent })
	if i < 0 || resp.Msg.GetAgents()[i].GetHostName() != "Web-1.example.com" {
		t.Errorf("agents: %v", resp.Msg.GetAgents())
	}
}

// TestA06_EventsOfOthers: what an agent writes is kept as that agent's.
func TestA06_EventsOfOthers(t *testing.T) {
	w := the()
	id, cert := w.host(t, sallyport.KindAgent)
	forged := `{"event":"forged.login","code":"T1000I","uid":"` + uuid.NewString() + `","time":"2026-01-02T03:04:05Z","server_id":"` + w.own.Leaf.Subject.CommonName + `","user":"root"}`
	c, spool := w.asHost(t, cert), id+"/"+uuid.NewString()
	send := func() {
		t.Helper()
		resp, err := c.AppendEvents(t.Context(), connect.NewRequest(&sallyportv1.AppendEventsRequest{Spool: spool, Events: []*sallyportv1.SpooledEvent{{Sequence: 1, Json: []byte(forged)}}}))
		if err != nil || resp.Msg.GetAcknowledged() != 1 {
			t.Fatalf("append: %v %v", resp, err)
		}
	}
	send()
	send() // the same again, as after a lost answer
	got := slices.DeleteFunc(w.events(t, "forged.login"), func(e sallyport.Event) bool { return !strings.Contains(forged, e.UID) })
	if len(got) != 1 || got[0].ServerID != id || got[0].Fields["claimed_server_id"] != w.own.Leaf.Subject.CommonName {
		t.Errorf("kept as %+v", got)
	}
}

// TestHostRemoved: a host that was removed, or locked, can do nothing more.
func TestHostRemoved(t *testing.T) {
	w := the()
	for _, how := range []string{"removed", "locked"} {
		id, cert := w.host(t, sallyport.KindAgent)
		c := w.asHost(t, cert)
		stream, err := c.WatchSnapshot(t.Context(), connect.NewRequest(&sallyportv1.WatchSnapshotRequest{}))
		if err != nil || !stream.Receive() {
			t.Fatalf("%s: no stream: %v", how, err)
		}
		if how == "removed" {
			if _, err := w.inventory.Remove(t.Context(), id, time.Now().Add(time.Hour)); err != nil {
				t.Fatal(err)
			}
			w.lock(t, `{"user":"nobody-at-all"}`) // any change is when streams look
		} else {
			w.lock(t, `{"server_id":"`+id+`"}`)
		}
		var last sallyportv1.Snapshot
		for stream.Receive() {
			if err := proto.Unmarshal(stream.Msg().GetPayload(), &last); err != nil {
				t.Fatal(err)
			}
		}
		if !slices.ContainsFunc(last.GetLocks(), func(l *sallyportv1.Lock) bool { return l.GetServerId() == id }) {
			t.Errorf("%s: the host was cut off before it was told", how) // and went on serving
		}
		codeIs(t, how+": stream", stream.Err(), connect.CodePermissionDenied)
		stream.Close()
		k := newKeyPair(t)
		_, renew := c.RenewHost(t.Context(), connect.NewRequest(&sallyportv1.RenewHostRequest{TlsPublicKey: k.tlsPub, SshPublicKey: k.sshPub}))
		_, announce := c.Announce(t.Context(), connect.NewRequest(&sallyportv1.AnnounceRequest{TlsPublicKey: k.tlsPub, SshPublicKey: k.sshPub}))
		_, events := c.AppendEvents(t.Context(), connect.NewRequest(&sallyportv1.AppendEventsRequest{Spool: id + "/" + uuid.NewString()}))
		for what, err := range map[string]error{"renew": renew, "announce": announce, "events": events} {
			codeIs(t, how+": "+what, err, connect.CodePermissionDenied)
		}
	}
}

// lock stores a lock for the length of the test.
func (w *world) lock(t *testing.T, target string) {
	t.Helper()
	name := "lock-" + uuid.NewString()[:8]
	admin := w.localAdmin(t)
	doc := `{"kind":"lock","version":"v2","metadata":{"name":"` + name + `"},"spec":{"target":` + target + `}}`
	if _, err := admin.PutDocument(t.Context(), connect.NewRequest(&sallyportv1.PutDocumentRequest{Document: doc})); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := admin.DeleteDocument(context.Background(), connect.NewRequest(&sallyportv1.DeleteDocumentRequest{Kind: "lock", Name: name})); err != nil {
			t.Error(err)
		}
	})
}
