package api

import (
	"crypto/tls"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/audit"
	"github.com/sallyport/sallyport/controlplane/login"
	"github.com/sallyport/sallyport/controlplane/store"
	"github.com/sallyport/sallyport/identity"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
	"github.com/sallyport/sallyport/wire/sallyport/v1/sallyportv1connect"
)

// person is a user with a password.
func (w *world) person(t testing.TB, roles ...string) string {
	t.Helper()
	name := "person-" + uuid.NewString()[:8]
	link, err := w.users.CreateUser(t.Context(), login.User{Name: name, Roles: roles, Traits: map[string][]string{"logins": {"root"}}}, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.users.Claim(t.Context(), login.Claim{Token: link.Token, Password: password}); err != nil {
		t.Fatal(err)
	}
	return name
}

func (w *world) login(t testing.TB, gateway *tls.Certificate, from string, req *sallyportv1.LoginRequest) (*sallyportv1.LoginResponse, error) {
	t.Helper()
	resp, err := sallyportv1connect.NewPublicServiceClient(w.http(t, visitor(gateway, from)), base).Login(t.Context(), connect.NewRequest(req))
	if err != nil {
		return nil, err
	}
	return resp.Msg, nil
}

// recorded checks that the log has one event of the making of a certificate, of the
// type, which says what the certificate says.
func (w *world) recorded(t *testing.T, kind string, cert []byte) {
	t.Helper()
	id, err := identity.FromX509(parse(t, cert))
	if err != nil {
		t.Fatal(err)
	}
	want := identityFields(id)
	n := 0
	for _, e := range w.events(t, audit.CertificateCreate) {
		got, _ := e.Fields["identity"].(map[string]any)
		if e.User != id.Name || e.Fields["cert_type"] != kind || got["expires"] != want["expires"] {
			continue
		}
		n++
		line := func(identity map[string]any) string {
			return string(audit.Encode(sallyport.Event{Fields: map[string]any{"identity": identity}}))
		}
		if diff := cmp.Diff(line(want), line(got)); diff != "" || e.Code != audit.CertificateCreateCode || e.UserKind != "human" || (e.Addr == "") != (kind == "web") {
			t.Errorf("%+v: -certificate +event\n%s", e, diff)
		}
	}
	if n != 1 {
		t.Errorf("%d events of the certificate of %s (%s)", n, id.Name, kind)
	}
}

// TestIdentityFields: what restricts is named as Teleport names it.
func TestIdentityFields(t *testing.T) {
	got := identityFields(sallyport.Identity{Kind: sallyport.KindUser, Name: "ann", Cluster: "c", Roles: []string{"dev"}, Traits: map[string][]string{"team": {"db"}},
		Principals: []string{"root"}, MFA: "device", PinnedAddr: "192.0.2.1", LoginAddr: "192.0.2.2", AllowedResources: []string{"/c/node/a"},
		ActiveRequests: []string{"r"}, Usage: sallyport.UsageWeb, DisallowReissue: true, NotAfter: time.Unix(1e9, 0)})
	want := map[string]any{"user": "ann", "route_to_cluster": "c", "roles": []string{"dev"}, "traits": map[string]any{"team": []string{"db"}},
		"logins": []string{"root"}, "mfa_device_uuid": "device", "pinned_ip": "192.0.2.1", "client_ip": "192.0.2.2", "allowed_resource_ids": []string{"/c/node/a"},
		"access_requests": []string{"r"}, "usage": []string{"web"}, "disallow_reissue": true, "expires": "2001-09-09T01:46:40Z"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestLoginOddTrait: a value of a trait that no certificate can name kept its user from
// logging in at all.
func TestLoginOddTrait(t *testing.T) {
	w := the()
	_, gateway := w.host(t, sallyport.KindGateway)
	role := w.role(t, "odd-trait", `{"logins":["{{email.local(external.mails)}}"],"node_labels":{"*":"*"}}`)
	for mail, want := range map[string]string{"o'brien@example.com": "", "o!brien@example.com": "", "obrien@example.com": "obrien"} {
		name := "odd-" + uuid.NewString()[:8]
		link, err := w.users.CreateUser(t.Context(), login.User{Name: name, Roles: []string{role}, Traits: map[string][]string{"mails": {mail}}}, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.users.Claim(t.Context(), login.Claim{Token: link.Token, Password: password}); err != nil {
			t.Fatal(err)
		}
		k := newKeyPair(t)
		resp, err := w.login(t, gateway, "192.0.2.21:7", &sallyportv1.LoginRequest{User: name, Password: password, TlsPublicKey: k.tlsPub, SshPublicKey: k.sshPub})
		if err != nil {
			t.Errorf("%s: %v", mail, err)
			continue
		}
		id, err := identity.FromX509(parse(t, resp.GetTlsCertificate()))
		if err != nil {
			t.Fatal(err)
		}
		if want == "" {
			want = noLogin + name
		}
		if !slices.Equal(id.Principals, []string{want}) {
			t.Errorf("%s: principals %q, want %s", mail, id.Principals, want)
		}
	}
}

// TestLogin goes from password to certificate, and records it.
func TestLogin(t *testing.T) {
	w := the()
	_, gateway := w.host(t, sallyport.KindGateway)
	name, k := w.person(t, "access"), newKeyPair(t)
	resp, err := w.login(t, gateway, "192.0.2.20:7", &sallyportv1.LoginRequest{User: name, Password: password, TlsPublicKey: k.tlsPub, SshPublicKey: k.sshPub, TtlSeconds: math.MaxInt64})
	if err != nil {
		t.Fatal(err)
	}
	id, err := identity.FromX509(parse(t, resp.GetTlsCertificate()))
	if err != nil {
		t.Fatal(err)
	}
	if id.Name != name || id.LoginAddr != "192.0.2.20" || id.PinnedAddr != "" || !slices.Equal(id.Principals, []string{"root"}) {
		t.Errorf("identity %+v", id)
	}
	w.recorded(t, "user", resp.GetTlsCertificate())
	if left := time.Until(resp.GetExpires().AsTime()); left > 12*time.Hour || left < 11*time.Hour {
		t.Errorf("for %v", left)
	}
	if !slices.Equal(sshCertificate(t, resp.GetSshCertificate()).ValidPrincipals, []string{"root"}) {
		t.Error("SSH principals")
	}
	for what, change := range map[string]func(*sallyportv1.LoginRequest){
		"password":     func(r *sallyportv1.LoginRequest) { r.Password = "wrong wrong wrong" },
		"user":         func(r *sallyportv1.LoginRequest) { r.User = strings.Repeat("x", 5000) },
		"TLS key":      func(r *sallyportv1.LoginRequest) { r.TlsPublicKey = nil },
		"SSH key":      func(r *sallyportv1.LoginRequest) { r.SshPublicKey = []byte("ssh-rsa AAAA") },
		"time to live": func(r *sallyportv1.LoginRequest) { r.TtlSeconds = -1 },
	} {
		req := &sallyportv1.LoginRequest{User: name, Password: password, TlsPublicKey: k.tlsPub, SshPublicKey: k.sshPub}
		change(req)
		if _, err := w.login(t, gateway, "192.0.2.21:7", req); err == nil {
			t.Errorf("wrong %s: logged in", what)
		}
	}
	good, long := 0, 0
	for _, e := range w.events(t, "user.login") {
		if e.User == name && e.Success != nil && *e.Success && e.Addr == "192.0.2.20:7" {
			good++
		}
		if len(e.User) > maxLoginName {
			long++
		}
	}
	if good != 1 || long != 0 {
		t.Errorf("recorded %d times; %d long names", good, long)
	}
}

// TestLoginLocked: the lock is told to who has the password, and to no other.
func TestLoginLocked(t *testing.T) {
	w := the()
	_, gateway := w.host(t, sallyport.KindGateway)
	name, k := w.person(t, "access"), newKeyPair(t)
	w.lock(t, `{"user":"`+name+`"}`)
	req := &sallyportv1.LoginRequest{User: name, Password: password, TlsPublicKey: k.tlsPub, SshPublicKey: k.sshPub}
	_, err := w.login(t, gateway, "192.0.2.22:7", req)
	codeIs(t, "right password", err, connect.CodePermissionDenied)
	req.Password = "wrong wrong wrong"
	_, err = w.login(t, gateway, "192.0.2.22:7", req)
	codeIs(t, "wrong password", err, connect.CodeUnauthenticated)
}

// TestLoginPinned: where a role asks for it the certificate is bound to the
// address that the gateway told.
func TestLoginPinned(t *testing.T) {
	w := the()
	_, gateway := w.host(t, sallyport.KindGateway)
	doc := `{"kind":"role","version":"v7","metadata":{"name":"pins"},"spec":{"options":{"pin_source_ip":true},"allow":{"logins":["root"]}}}`
	if _, err := w.localAdmin(t).PutDocument(t.Context(), connect.NewRequest(&sallyportv1.PutDocumentRequest{Document: doc, Overwrite: true})); err != nil {
		t.Fatal(err)
	}
	name, k := w.person(t, "pins"), newKeyPair(t)
	for from, want := range map[string]string{"192.0.2.30:7": "192.0.2.30", "[2001:db8::7]:7": "2001:db8::7", "[::ffff:192.0.2.31]:7": "192.0.2.31", "[fe80::1%eth0]:7": "fe80::1"} {
		resp, err := w.login(t, gateway, from, &sallyportv1.LoginRequest{User: name, Password: password, TlsPublicKey: k.tlsPub, SshPublicKey: k.sshPub})
		if err != nil {
			t.Fatal(err)
		}
		id, err := identity.FromX509(parse(t, resp.GetTlsCertificate()))
		if err != nil || id.PinnedAddr != want {
			t.Errorf("from %s: pinned to %q %v", from, id.PinnedAddr, err)
		}
	}
}

// TestA04_Reissue: a certificate that takes the place of another has its rights
// and restrictions, ends no later, and is refused where the record disagrees.
func TestA04_Reissue(t *testing.T) {
	w := the()
	deny := w.role(t, "denies", `{"logins":["root"]}`)
	rng := rand.New(rand.NewPCG(4, 4))
	for range 12 {
		name, cert := w.user(t, func(id *sallyport.Identity) {
			id.MFA, id.LoginAddr = pick(rng, "", "device-1"), "192.0.2.40"
			id.PinnedAddr = pick(rng, "", "192.0.2.40")
			id.AllowedResources = pick(rng, nil, []string{"/" + cluster + "/node/a"})
			id.ActiveRequests = pick(rng, nil, []string{uuid.NewString()})
			id.Principals = pick(rng, []string{"root"}, []string{"root", "other"})
			id.DisallowReissue = pick(rng, false, false, true)
		}, "access", deny)
		u, err := w.users.GetUser(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		change := pick(rng, "none", "none", "more roles", "fewer roles", "more traits", "fewer traits")
		switch change {
		case "more roles":
			u.Roles = append(u.Roles, "editor")
		case "fewer roles":
			u.Roles = []string{"access"}
		case "more traits":
			u.Traits["logins"] = append(u.Traits["logins"], "admin")
		case "fewer traits":
			u.Traits = nil
		}
		u.Revision = store.Any
		if _, err := w.users.UpdateUser(t.Context(), u); err != nil {
			t.Fatal(err)
		}
		have, err := identity.FromX509(parse(t, cert.Certificate[0]))
		if err != nil {
			t.Fatal(err)
		}
		k := newKeyPair(t)
		c := sallyportv1connect.NewAccessServiceClient(w.http(t, door{protocol: protocolAuth, cert: cert, from: "192.0.2.40:1"}), base)
		resp, err := c.Reissue(t.Context(), connect.NewRequest(&sallyportv1.ReissueRequest{TlsPublicKey: k.tlsPub, SshPublicKey: k.sshPub, TtlSeconds: pick[int64](rng, 0, 5, math.MaxInt64/2, math.MaxInt64)}))
		if have.DisallowReissue || strings.HasPrefix(change, "fewer") {
			codeIs(t, change, err, connect.CodePermissionDenied)
			continue
		}
		if err != nil {
			t.Fatalf("%s: %v", change, err)
		}
		w.recorded(t, "user", resp.Msg.GetTlsCertificate())
		got, err := identity.FromX509(parse(t, resp.Msg.GetTlsCertificate()))
		if err != nil {
			t.Fatal(err)
		}
		if got.NotAfter.After(have.NotAfter) {
			t.Errorf("ends %v after the old one", got.NotAfter.Sub(have.NotAfter))
		}
		for _, p := range got.Principals {
			if !slices.Contains(have.Principals, p) {
				t.Errorf("new principal %q", p)
			}
		}
		same := func(id sallyport.Identity) sallyport.Identity {
			id.Principals, id.Serial, id.Fingerprint, id.NotBefore, id.NotAfter = nil, "", "", time.Time{}, time.Time{}
			return id
		}
		if diff := cmp.Diff(same(have), same(got)); diff != "" {
			t.Errorf("%s: -old +new\n%s", change, diff)
		}
	}
}

func pick[T any](rng *rand.Rand, of ...T) T { return of[rng.IntN(len(of))] }

// TestA04_ReissueFails: what is asked for is checked as at a login.
func TestA04_ReissueFails(t *testing.T) {
	w := the()
	_, cert := w.user(t, nil, "access")
	k := newKeyPair(t)
	for what, req := range map[string]*sallyportv1.ReissueRequest{
		"no TLS key":           {SshPublicKey: k.sshPub},
		"no SSH key":           {TlsPublicKey: k.tlsPub},
		"negative time":        {TlsPublicKey: k.tlsPub, SshPublicKey: k.sshPub, TtlSeconds: -1},
		"least time":           {TlsPublicKey: k.tlsPub, SshPublicKey: k.sshPub, TtlSeconds: math.MinInt64},
		"private key in place": {TlsPublicKey: []byte("-----BEGIN PRIVATE KEY-----"), SshPublicKey: k.sshPub},
	} {
		_, err := w.asUser(t, cert).Reissue(t.Context(), connect.NewRequest(req))
		codeIs(t, what, err, connect.CodeInvalidArgument)
	}
}

// TestStanding: on an open connection, locks, removals and lost roles count at
// the next call.
func TestStanding(t *testing.T) {
	w := the()
	ping := func(c sallyportv1connect.AccessServiceClient) error {
		_, err := c.WhoAmI(t.Context(), connect.NewRequest(&sallyportv1.WhoAmIRequest{}))
		return err
	}
	admin := w.localAdmin(t)
	put := func(doc string) {
		t.Helper()
		if _, err := admin.PutDocument(t.Context(), connect.NewRequest(&sallyportv1.PutDocumentRequest{Document: doc, Overwrite: true})); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("locked", func(t *testing.T) {
		for what, target := range map[string]string{"user": `{"user":"NAME"}`, "role": `{"role":"lockable"}`, "device": `{"mfa_device":"device-9"}`} {
			name, cert := w.user(t, func(id *sallyport.Identity) { id.MFA = "device-9" }, w.role(t, "lockable", "{}"))
			c := w.asUser(t, cert)
			if err := ping(c); err != nil {
				t.Fatalf("%s: before: %v", what, err)
			}
			t.Run(what, func(t *testing.T) {
				w.lock(t, strings.ReplaceAll(target, "NAME", name))
				codeIs(t, what, ping(c), connect.CodePermissionDenied)
			})
			if err := ping(c); err != nil {
				t.Errorf("%s: after: %v", what, err)
			}
		}
	})
	t.Run("removed", func(t *testing.T) {
		name, cert := w.user(t, nil, "editor")
		c := w.asUser(t, cert)
		if err := ping(c); err != nil {
			t.Fatal(err)
		}
		if _, err := admin.DeleteUser(t.Context(), connect.NewRequest(&sallyportv1.DeleteUserRequest{Name: name})); err != nil {
			t.Fatal(err)
		}
		codeIs(t, "removed", ping(c), connect.CodeUnauthenticated)
	})
	t.Run("role taken", func(t *testing.T) {
		name, cert := w.user(t, nil, "editor", "access")
		c := w.asAdmin(t, cert)
		if _, err := c.ListUsers(t.Context(), connect.NewRequest(&sallyportv1.ListUsersRequest{})); err != nil {
			t.Fatal(err)
		}
		put(`{"kind":"user","version":"v2","metadata":{"name":"` + name + `"},"spec":{"roles":["access"]}}`)
		_, err := c.ListUsers(t.Context(), connect.NewRequest(&sallyportv1.ListUsersRequest{}))
		codeIs(t, "role taken", err, connect.CodePermissionDenied)
	})
	t.Run("role added", func(t *testing.T) {
		name, cert := w.user(t, nil, "access")
		put(`{"kind":"user","version":"v2","metadata":{"name":"` + name + `"},"spec":{"roles":["access","editor"]}}`)
		_, err := w.asAdmin(t, cert).ListUsers(t.Context(), connect.NewRequest(&sallyportv1.ListUsersRequest{}))
		codeIs(t, "not in the certificate", err, connect.CodePermissionDenied)
	})
	t.Run("deny added", func(t *testing.T) {
		put(`{"kind":"role","version":"v7","metadata":{"name":"no-users"},"spec":{"deny":{"rules":[{"resources":["user"],"verbs":["*"]}]}}}`)
		name, cert := w.user(t, nil, "editor")
		put(`{"kind":"user","version":"v2","metadata":{"name":"` + name + `"},"spec":{"roles":["editor","no-users"]}}`)
		_, err := w.asAdmin(t, cert).ListUsers(t.Context(), connect.NewRequest(&sallyportv1.ListUsersRequest{}))
		codeIs(t, "denied by the record", err, connect.CodePermissionDenied)
	})
	t.Run("ended", func(t *testing.T) {
		// The connection is closed at that time; the call has its own check.
		id := sallyport.Identity{Kind: sallyport.KindAgent, Name: uuid.NewString(), NotAfter: time.Now()}
		if err := w.server.standing(t.Context(), Caller{Identity: id}); err == nil {
			t.Error("an ended certificate stands")
		}
	})
	t.Run("locked gateway", func(t *testing.T) {
		id, cert := w.host(t, sallyport.KindGateway)
		w.lock(t, `{"server_id":"`+id+`"}`)
		_, err := sallyportv1connect.NewPublicServiceClient(w.http(t, visitor(cert, "192.0.2.1:1")), base).Ping(t.Context(), connect.NewRequest(&sallyportv1.PingRequest{}))
		codeIs(t, "visitor by a locked gateway", err, connect.CodePermissionDenied)
		resp, err := w.http(t, visitor(cert, "192.0.2.1:1")).Get(base + "/")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != 404 {
			t.Errorf("page by a locked gateway: %s", resp.Status)
		}
	})
}

// TestDeniedIsRecorded: a refused call of somebody known is in the log, and a
// flood of them is not.
func TestDeniedIsRecorded(t *testing.T) {
	w := the()
	name, cert := w.user(t, nil, "access")
	c := w.asAdmin(t, cert)
	began := time.Now()
	for range 3 * sourceBurst {
		_, err := c.ListUsers(t.Context(), connect.NewRequest(&sallyportv1.ListUsersRequest{}))
		codeIs(t, "list users", err, connect.CodePermissionDenied)
	}
	n, most := 0, sourceBurst+1+int(time.Since(began)/sourceEvery)
	for _, e := range w.events(t, "access.denied") {
		if e.User == name {
			n++
			if e.Fields["method"] != sallyportv1connect.AdminServiceListUsersProcedure || e.UserKind != "human" || e.Fields["error"] == "" {
				t.Errorf("recorded %+v", e)
			}
		}
	}
	if n == 0 || n > most {
		t.Errorf("%d of %d refusals recorded, want %d at most", n, 3*sourceBurst, most)
	}
}

// TestVisible: what a person may not see does not exist for that person.
func TestVisible(t *testing.T) {
	w := the()
	agent, _ := w.host(t, sallyport.KindAgent)
	name := "visible-" + uuid.NewString()[:8]
	if _, err := w.inventory.Announce(t.Context(), agent, []sallyport.Resource{{Kind: sallyport.KindDatabase, Name: name, Protocol: "postgres", Labels: map[string]string{"env": "prod"}}}, nil); err != nil {
		t.Fatal(err)
	}
	_, yes := w.user(t, nil, w.role(t, "sees", `{"db_labels":{"env":"prod"},"db_users":["alice"],"db_names":["*"]}`))
	_, no := w.user(t, nil, w.role(t, "blind", `{"db_labels":{"env":"test"},"db_users":["*"],"db_names":["*"]}`))
	explain := func(cert *tls.Certificate, name, user string) *sallyportv1.ExplainResponse {
		t.Helper()
		resp, err := w.asUser(t, cert).Explain(t.Context(), connect.NewRequest(&sallyportv1.ExplainRequest{Kind: "db", Name: name, DatabaseUser: user, DatabaseName: "x"}))
		if err != nil {
			t.Fatal(err)
		}
		return resp.Msg
	}
	if e := explain(yes, name, "alice"); !e.GetExists() || !e.GetAllowed() || e.GetOnline() {
		t.Errorf("alice: %v", e)
	}
	if e := explain(yes, name, "bob"); !e.GetExists() || e.GetAllowed() || e.GetReason() == "" || !strings.Contains(e.GetHint(), "alice") {
		t.Errorf("bob: %v", e)
	}
	hidden, absent := explain(no, name, "alice"), explain(no, "none-such", "alice")
	if diff := cmp.Diff(hidden.String(), absent.String()); diff != "" || hidden.GetExists() {
		t.Errorf("hidden and absent differ: %s", diff)
	}
	for cert, want := range map[*tls.Certificate]int{yes: 1, no: 0} {
		resp, err := w.asUser(t, cert).ListResources(t.Context(), connect.NewRequest(&sallyportv1.ListResourcesRequest{Kind: "db", Name: name}))
		if err != nil || len(resp.Msg.GetResources()) != want {
			t.Errorf("listed %v %v, want %d", resp, err, want)
		}
	}
}
