package attack

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"errors"
	"io"
	"math/big"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/sallyport/sallyport/controlplane/client"
	"github.com/sallyport/sallyport/tools/peers"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
)

// copied is a certificate that says all that another one says, signed by
// somebody else: by a CA of the attacker's with the same name, or by itself.
func copied(t testing.TB, of *holder, selfSigned bool) tls.Certificate {
	t.Helper()
	leaf, err := x509.ParseCertificate(of.tls.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: leaf.Issuer, RawSubject: leaf.RawIssuer, SubjectKeyId: leaf.AuthorityKeyId,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := *leaf
	c.ExtraExtensions = slices.DeleteFunc(slices.Clone(leaf.Extensions), func(e pkix.Extension) bool {
		return len(e.Id) > 0 && e.Id[0] == 2 && e.Id[1] == 5 // the standard ones are made from the fields
	})
	c.PublicKey = key.Public()
	parent, signer := ca, caKey
	if selfSigned {
		parent, signer = &c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, &c, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	chain := [][]byte{der}
	if !selfSigned {
		root, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
		if err != nil {
			t.Fatal(err)
		}
		chain = append(chain, root)
	}
	return tls.Certificate{Certificate: chain, PrivateKey: key}
}

// signedBy is a certificate like another one, issued by a leaf of the cluster
// as if that were a CA.
func signedBy(t testing.TB, issuer, like *holder) tls.Certificate {
	t.Helper()
	parent, err := x509.ParseCertificate(issuer.tls.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(like.tls.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	c := *leaf
	c.ExtraExtensions = slices.DeleteFunc(slices.Clone(leaf.Extensions), func(e pkix.Extension) bool { return e.Id[0] == 2 && e.Id[1] == 5 })
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &c, parent, key.Public(), issuer.tls.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der, issuer.tls.Certificate[0]}, PrivateKey: key}
}

// expired is the admin's certificate of an hour ago, as far as one can have it:
// one for a second, a second later.
func (d *demo) expired(t testing.TB) *holder {
	t.Helper()
	h := d.login(t, d.User, d.Password, d.code(t), time.Second)
	leaf, err := x509.ParseCertificate(h.tls.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	if left := time.Until(leaf.NotAfter); left > 90*time.Second {
		t.Fatalf("a certificate for one second lasts %s", left)
	} else {
		time.Sleep(left + time.Second) // the clock is what is tested
	}
	return h
}

// postgresError is what a PostgreSQL client is told: "" when it is let in.
func postgresError(conn net.Conn, user, database string) (string, error) {
	body := "\x00\x03\x00\x00user\x00" + user + "\x00database\x00" + database + "\x00\x00"
	conn.SetDeadline(time.Now().Add(callWait))
	if _, err := conn.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(body)+4)), body...)); err != nil {
		return "", err
	}
	head := make([]byte, 5)
	if _, err := io.ReadFull(conn, head); err != nil {
		return "", err
	}
	rest := make([]byte, min(binary.BigEndian.Uint32(head[1:])-4, 1<<16))
	if _, err := io.ReadFull(conn, rest); err != nil {
		return "", err
	}
	if head[0] != 'E' {
		return "", nil
	}
	for _, field := range strings.Split(string(rest), "\x00") {
		if strings.HasPrefix(field, "M") {
			return field[1:], nil
		}
	}
	return "an error without a message", nil
}

// TestA67_Door: how each certificate looks at the door of a database. Ours gets
// its reason in the protocol's words; what is not ours gets an alert and no
// reason.
func TestA67_Door(t *testing.T) {
	d := target(t)
	if d.name("db") == "" {
		peers.Missing(t, "postgres")
	}
	admin := d.admin(t)
	agent, _ := d.stolen(t, "agent")
	gateway, _ := d.stolen(t, "gateway")
	expired := d.expired(t)
	poor := d.user(t, "poor", []string{"auditor"}, nil)
	locked := d.user(t, "locked", []string{"access"}, map[string][]string{"db_users": {"reader"}, "db_names": {"demo"}})
	d.lock(t, locked)
	d.leavesNothing(t)
	rows := []struct {
		name  string
		certs []tls.Certificate
		alert string // what TLS says
		told  string // what PostgreSQL says
	}{
		{"none", nil, "certificate required", ""},
		{"admin", []tls.Certificate{admin.tls}, "", ""},
		{"expired", []tls.Certificate{expired.tls}, "", "your certificate expired at"},
		{"locked", []tls.Certificate{locked.tls}, "", "lock targeting User"},
		{"no role for it", []tls.Certificate{poor.tls}, "", "denied"},
		{"agent", []tls.Certificate{agent.tls}, "bad certificate", ""},
		{"gateway", []tls.Certificate{gateway.tls}, "bad certificate", ""},
		{"foreign CA of the same name", []tls.Certificate{copied(t, admin, false)}, "bad certificate", ""},
		{"signed by itself", []tls.Certificate{copied(t, admin, true)}, "bad certificate", ""},
		{"signed by a user's certificate", []tls.Certificate{signedBy(t, poor, admin)}, "bad certificate", ""},
		{"signed by an agent's certificate", []tls.Certificate{signedBy(t, agent, admin)}, "bad certificate", ""},
	}
	for i, row := range rows {
		conn := d.dialFrom(t, net.IPv4(127, 3, byte(i), 1).String())
		tc := tls.Client(conn, &tls.Config{ServerName: d.serverName("db"), NextProtos: []string{"postgresql"}, Certificates: row.certs, InsecureSkipVerify: true})
		conn.SetDeadline(time.Now().Add(callWait))
		err := tc.Handshake()
		told := ""
		if err == nil {
			told, err = postgresError(tc, "reader", "demo")
		}
		conn.Close()
		switch {
		case row.alert != "":
			if err == nil || !strings.Contains(err.Error(), row.alert) {
				t.Errorf("%s: %v %q, want the alert %q", row.name, err, told, row.alert)
			}
		case err != nil:
			t.Errorf("%s: %v", row.name, err)
		case !strings.Contains(told, row.told) || row.told == "" && told != "":
			t.Errorf("%s: told %q, want %q", row.name, told, row.told)
		}
	}
}

// lock locks a user for the rest of the test, and returns when the agent knows.
func (d *demo) lock(t testing.TB, h *holder) {
	t.Helper()
	user, admin := h.name, d.adminAPI(d.admin(t))
	doc := `{"kind":"lock","version":"v2","metadata":{"name":"lock-` + user + `"},"spec":{"target":{"user":"` + user + `"}}}`
	if _, err := admin.PutDocument(context.Background(), connect.NewRequest(&sallyportv1.PutDocumentRequest{Document: doc, Overwrite: true})); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		admin.DeleteDocument(context.Background(), connect.NewRequest(&sallyportv1.DeleteDocumentRequest{Kind: "lock", Name: "lock-" + user}))
	})
	began := time.Now()
	await(t, "the agent knows of the lock", callWait, func() bool {
		conn, err := d.throughDoor(h)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		told, err := postgresError(conn, "reader", "demo")
		return err == nil && told != "" // one that was just being let in may be cut
	})
	t.Logf("the agent knew of the lock after %s", time.Since(began).Round(time.Millisecond)) // the bar is a second
}

// role makes a role that allows what the JSON says. It stays.
func (d *demo) role(t testing.TB, name, allow string) {
	t.Helper()
	doc := `{"kind":"role","version":"v7","metadata":{"name":"` + name + `"},"spec":{"allow":` + allow + `}}`
	_, err := d.adminAPI(d.admin(t)).PutDocument(context.Background(), connect.NewRequest(&sallyportv1.PutDocumentRequest{Document: doc, Overwrite: true}))
	if err != nil {
		t.Fatal(err)
	}
}

// TestA67_Control: only an agent's certificate opens a control connection.
func TestA67_Control(t *testing.T) {
	d := target(t)
	admin := d.admin(t)
	agent, _ := d.stolen(t, "agent")
	gateway, _ := d.stolen(t, "gateway")
	d.leavesNothing(t)
	before := d.status(t).Gateway.Tunnel
	for name, certs := range map[string][]tls.Certificate{
		"none": nil, "user": {admin.tls}, "gateway": {gateway.tls}, "foreign": {copied(t, agent, false)}, "self": {copied(t, agent, true)},
		"signed by a user": {signedBy(t, admin, agent)}, "signed by a gateway": {signedBy(t, gateway, agent)},
	} {
		conn := d.dialFrom(t, "127.4.0.1")
		conn.SetDeadline(time.Now().Add(callWait))
		tc := tls.Client(conn, &tls.Config{NextProtos: []string{"sallyport-tunnel/1"}, Certificates: certs, InsecureSkipVerify: true})
		err := tc.Handshake()
		if err == nil { // TLS 1.3: the client is done before the server has looked
			_, err = tc.Read(make([]byte, 1))
		}
		conn.Close()
		if err == nil || !strings.Contains(err.Error(), "remote error: tls:") {
			t.Errorf("%s: %v, want an alert", name, err)
		}
	}
	if after := d.status(t).Gateway.Tunnel; after["replaced"] != before["replaced"] {
		t.Error("the agent's tunnel was replaced")
	}
}

// callers are all sorts that can reach the API.
func (d *demo) callers(t *testing.T) map[string]*client.Dialer {
	admin := d.admin(t)
	agent, _ := d.stolen(t, "agent")
	gateway, _ := d.stolen(t, "gateway")
	d.role(t, "nothing", `{}`)
	poor := d.user(t, "nobody-much", []string{"nothing"}, nil)
	of := func(c tls.Certificate) *client.Dialer { return d.dialer(&c) }
	return map[string]*client.Dialer{
		"admin": of(admin.tls), "user": of(poor.tls), "agent": of(agent.tls), "gateway": of(gateway.tls),
		"foreign": of(copied(t, admin, false)), "by a user": of(signedBy(t, poor, admin)), "none": d.dialer(nil),
	}
}

// mayCall is written down here again, on purpose: who may call what.
var mayCall = map[string][]string{
	"PublicService.Ping":  {"admin", "user", "agent", "gateway"},
	"PublicService.Login": {}, "PublicService.FinishLogin": {}, "PublicService.BeginDeviceLogin": {}, "PublicService.PollDeviceLogin": {},
	"JoinService.Join": {"none"},

	"HostService.RenewHost": {"agent", "gateway"}, "HostService.WatchSnapshot": {"agent", "gateway"}, "HostService.AppendEvents": {"agent", "gateway"},
	"HostService.Announce": {"agent"}, "HostService.IssueDatabaseCertificate": {"agent"}, "HostService.ReportPresence": {"gateway"},
	"HostService.IssueAppToken": {"agent"}, "HostService.RedeemAppCode": {"gateway"}, "HostService.RenewAppSession": {"gateway"},
	"HostService.EndAppSession": {"gateway"},

	"AccessService.WhoAmI": {"admin", "user"}, "AccessService.Reissue": {"admin", "user"}, "AccessService.ListResources": {"admin", "user"},
	"AccessService.ListClusters": {"admin", "user"}, "AccessService.Explain": {"admin", "user"},
	"AccessService.ListWebSessions": {"admin", "user"}, "AccessService.EndWebSession": {"admin", "user"},

	"AdminService.ExportAuthorities": {"admin", "user"}, // public keys, by the implicit role
}

// TestA42_EveryMethod calls each method of the schema as everybody: what is not
// in the table above is the administrator's alone.
func TestA42_EveryMethod(t *testing.T) {
	d := target(t)
	callers := d.callers(t)
	d.leavesNothing(t)
	services := sallyportv1.File_sallyport_v1_api_proto.Services()
	called := 0
	for i := range services.Len() {
		for j := range services.Get(i).Methods().Len() {
			m := services.Get(i).Methods().Get(j)
			may, listed := mayCall[string(services.Get(i).Name())+"."+string(m.Name())]
			if !listed {
				if services.Get(i).Name() != "AdminService" {
					t.Errorf("%s has no row", m.FullName())
				}
				may = []string{"admin"}
			}
			for who, dialer := range callers {
				if m.Name() == "Announce" && who == "agent" {
					continue // an empty announcement gives everything up
				}
				code, text := call(dialer, m)
				called++
				if slices.Contains(may, who) {
					if strings.Contains(text, "this method is for") || code == connect.CodeUnauthenticated {
						t.Errorf("%s by %s: %v %s, want it allowed", m.FullName(), who, code, text)
					}
					continue
				}
				switch code {
				case 0, connect.CodeNotFound, connect.CodeInternal:
					t.Errorf("%s by %s: %v %s, want it refused", m.FullName(), who, code, text)
				case connect.CodeInvalidArgument:
					if m.Name() != "PutDocument" { // whose kind is in the document
						t.Errorf("%s by %s: %v %s, want it refused", m.FullName(), who, code, text)
					}
				}
			}
		}
	}
	if called < 7*20 {
		t.Errorf("only %d calls", called)
	}
}

// call sends an empty request, in the protocol that needs the least: Connect's
// unary POST; a stream gets one empty envelope.
func call(dialer *client.Dialer, m protoreflect.MethodDescriptor) (connect.Code, string) {
	protocol := client.ProtocolAuth
	if dialer.Certificate == nil {
		protocol = client.ProtocolJoin
	}
	hc := dialer.HTTP(protocol)
	hc.Timeout = callWait
	defer hc.CloseIdleConnections()
	url := client.BaseURL + "/" + string(m.Parent().FullName()) + "/" + string(m.Name())
	c := connect.NewClient[sallyportv1.PingRequest, sallyportv1.PingResponse](hc, url)
	ctx, cancel := context.WithTimeout(context.Background(), callWait)
	defer cancel()
	var err error
	if m.IsStreamingServer() {
		var s *connect.ServerStreamForClient[sallyportv1.PingResponse]
		if s, err = c.CallServerStream(ctx, connect.NewRequest(&sallyportv1.PingRequest{})); err == nil {
			s.Receive()
			err = s.Err()
			cancel()
			s.Close()
		}
	} else {
		_, err = c.CallUnary(ctx, connect.NewRequest(&sallyportv1.PingRequest{}))
	}
	var ce *connect.Error
	if errors.As(err, &ce) {
		return ce.Code(), ce.Message()
	}
	if err != nil {
		return connect.CodeUnknown, err.Error()
	}
	return 0, ""
}
