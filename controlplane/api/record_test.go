package api

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/audit"
	"github.com/sallyport/sallyport/controlplane/join"
	"github.com/sallyport/sallyport/controlplane/login"
	"github.com/sallyport/sallyport/controlplane/store"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
	"github.com/sallyport/sallyport/wire/sallyport/v1/sallyportv1connect"
)

// inProcess calls a handler as somebody.
type inProcess struct {
	handler http.Handler
	caller  Caller
}

func (p inProcess) RoundTrip(r *http.Request) (*http.Response, error) {
	rec := httptest.NewRecorder()
	p.handler.ServeHTTP(rec, r.WithContext(WithCaller(r.Context(), p.caller)))
	return rec.Result(), nil
}

func (p inProcess) client() *http.Client { return &http.Client{Transport: p} }

func localAdminCaller() Caller {
	return Caller{Identity: sallyport.Identity{Kind: sallyport.KindLocalAdmin, Name: "0"}}
}

// contents is all that a store has but the counts of tries.
func contents(t *testing.T, s store.Store) map[string]string {
	t.Helper()
	items, _, err := s.List(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, it := range items {
		if !strings.HasPrefix(it.Key, "tries/") {
			out[it.Key] = string(it.Value)
		}
	}
	return out
}

// lasting is what of contents no lease ends: what other tests have left behind may go
// at any time.
func lasting(t *testing.T, s store.Store) map[string]string {
	t.Helper()
	out := contents(t, s)
	for key := range out {
		it, err := s.Get(t.Context(), key)
		if errors.Is(err, sallyport.ErrNotFound) || err == nil && it.Lease != 0 {
			delete(out, key)
		} else if err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// TestAuditFails: when nothing can be recorded nothing is changed and nothing
// is issued, by any method.
func TestAuditFails(t *testing.T) {
	w := the()
	fails := errors.New("no space left on device")
	var sign error
	log, err := audit.OpenLog(audit.LogConfig{Dir: t.TempDir(), Host: uuid.NewString(), Sign: func([]byte) ([]byte, error) { return []byte("signed"), sign }})
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	s, err := w.serverOn(t.Context(), w.store, log)
	if err != nil {
		t.Fatal(err)
	}
	h := s.Handler(nil)
	k, ctx := newKeyPair(t), t.Context()
	admin := sallyportv1connect.NewAdminServiceClient(inProcess{h, localAdminCaller()}.client(), base)
	person, user := w.person(t, "access"), uuid.NewString()[:8]
	token, tok, err := w.tokens.Create(ctx, join.Spec{Roles: []sallyport.IdentityKind{sallyport.KindAgent}})
	if err != nil {
		t.Fatal(err)
	}
	agentID, _ := w.host(t, sallyport.KindAgent)
	db := "audit-" + uuid.NewString()[:8]
	if _, err := w.inventory.Announce(ctx, agentID, []sallyport.Resource{{Kind: sallyport.KindDatabase, Name: db, Protocol: "postgres"}}, nil); err != nil {
		t.Fatal(err)
	}
	w.lock(t, `{"user":"nobody-at-all"}`)
	lock := ""
	for key := range contents(t, w.store) {
		if name, ok := strings.CutPrefix(key, "lock/"); ok {
			lock = name
		}
	}
	free := w.role(t, "free-"+uuid.NewString()[:8], "{}")
	as := func(id sallyport.Identity) Caller {
		id.Cluster, id.NotAfter = cluster, w.own.Leaf.NotAfter
		return Caller{Identity: id}
	}
	agent := sallyportv1connect.NewHostServiceClient(inProcess{h, as(sallyport.Identity{Kind: sallyport.KindAgent, Name: agentID})}.client(), base)
	put := func(doc string, overwrite bool) func() error {
		return func() error {
			_, err := admin.PutDocument(ctx, connect.NewRequest(&sallyportv1.PutDocumentRequest{Document: doc, Overwrite: overwrite}))
			return err
		}
	}
	del := func(kind, name string) func() error {
		return func() error {
			_, err := admin.DeleteDocument(ctx, connect.NewRequest(&sallyportv1.DeleteDocumentRequest{Kind: kind, Name: name}))
			return err
		}
	}
	calls := map[string]func() error{
		"CreateUser": func() error {
			_, err := admin.CreateUser(ctx, connect.NewRequest(&sallyportv1.CreateUserRequest{User: &sallyportv1.User{Name: "new-" + user, Roles: []string{"access"}}}))
			return err
		},
		"DeleteUser": func() error {
			_, err := admin.DeleteUser(ctx, connect.NewRequest(&sallyportv1.DeleteUserRequest{Name: person}))
			return err
		},
		"ResetUser": func() error {
			_, err := admin.ResetUser(ctx, connect.NewRequest(&sallyportv1.ResetUserRequest{Name: person}))
			return err
		},
		"CreateToken": func() error {
			_, err := admin.CreateToken(ctx, connect.NewRequest(&sallyportv1.CreateTokenRequest{Roles: []string{"agent"}}))
			return err
		},
		"DeleteToken": func() error {
			_, err := admin.DeleteToken(ctx, connect.NewRequest(&sallyportv1.DeleteTokenRequest{Name: tok.Name}))
			return err
		},
		"DeleteToken by secret": func() error {
			_, err := admin.DeleteToken(ctx, connect.NewRequest(&sallyportv1.DeleteTokenRequest{Name: token}))
			return err
		},
		"SignDatabaseServer": func() error {
			_, err := admin.SignDatabaseServer(ctx, connect.NewRequest(&sallyportv1.SignDatabaseServerRequest{TlsPublicKey: k.tlsPub, Hosts: []string{"db"}}))
			return err
		},
		"put role":     put(`{"kind":"role","version":"v7","metadata":{"name":"audit-role"},"spec":{}}`, false),
		"replace role": put(`{"kind":"role","version":"v7","metadata":{"name":"`+free+`"},"spec":{"allow":{"logins":["x"]}}}`, true),
		"put lock":     put(`{"kind":"lock","version":"v2","metadata":{"name":"audit-lock"},"spec":{"target":{"user":"x"}}}`, false),
		"put user":     put(`{"kind":"user","version":"v2","metadata":{"name":"doc-`+user+`"},"spec":{"roles":["access"]}}`, false),
		"replace user": put(`{"kind":"user","version":"v2","metadata":{"name":"`+person+`"},"spec":{"roles":["editor"]}}`, true),
		"delete role":  del("role", free), "delete lock": del("lock", lock), "delete user": del("user", person),
		"Login": func() error {
			c := sallyportv1connect.NewPublicServiceClient(inProcess{h, Caller{Web: true, Addr: netip.MustParseAddrPort("192.0.2.50:1")}}.client(), base)
			_, err := c.Login(ctx, connect.NewRequest(&sallyportv1.LoginRequest{User: person, Password: password, TlsPublicKey: k.tlsPub, SshPublicKey: k.sshPub}))
			return err
		},
		"Reissue": func() error {
			id := sallyport.Identity{Kind: sallyport.KindUser, Name: person, Roles: []string{"access"}, Principals: []string{"root"}}
			c := sallyportv1connect.NewAccessServiceClient(inProcess{h, as(id)}.client(), base)
			_, err := c.Reissue(ctx, connect.NewRequest(&sallyportv1.ReissueRequest{TlsPublicKey: k.tlsPub, SshPublicKey: k.sshPub}))
			return err
		},
		"RemoveHost": func() error {
			_, err := admin.RemoveHost(ctx, connect.NewRequest(&sallyportv1.RemoveHostRequest{Id: agentID, Force: true}))
			return err
		},
		"RenewHost": func() error {
			_, err := agent.RenewHost(ctx, connect.NewRequest(&sallyportv1.RenewHostRequest{TlsPublicKey: k.tlsPub, SshPublicKey: k.sshPub}))
			return err
		},
		"Announce": func() error {
			_, err := agent.Announce(ctx, connect.NewRequest(&sallyportv1.AnnounceRequest{TlsPublicKey: k.tlsPub, SshPublicKey: k.sshPub,
				Resources: []*sallyportv1.Resource{{Kind: "db", Name: db, Protocol: "postgres"}, {Kind: "db", Name: "more-" + db, Protocol: "postgres"}}}))
			return err
		},
		"IssueDatabaseCertificate": func() error {
			_, err := agent.IssueDatabaseCertificate(ctx, connect.NewRequest(&sallyportv1.IssueDatabaseCertificateRequest{Database: db, DatabaseUser: "alice", TlsPublicKey: k.tlsPub}))
			return err
		},
	}
	sign = fails
	before := lasting(t, w.store)
	for name, try := range calls {
		err := try()
		if code := connect.CodeOf(err); err == nil || code != connect.CodeUnavailable && code != connect.CodeResourceExhausted {
			t.Errorf("%s: %v (%v), want a refusal because of the log", name, err, code)
		}
		if diff := cmp.Diff(before, lasting(t, w.store)); diff != "" {
			t.Fatalf("%s changed the store unrecorded:\n%s", name, diff)
		}
	}
	// A host that joins gets no certificate; what it left behind is its record.
	joiner := sallyportv1connect.NewJoinServiceClient(inProcess{h, Caller{}}.client(), base)
	if _, err := joiner.Join(ctx, connect.NewRequest(&sallyportv1.JoinRequest{Token: token, Roles: []string{"agent"}, TlsPublicKey: k.tlsPub, SshPublicKey: k.sshPub})); err == nil {
		t.Error("joined unrecorded")
	}
}

// failing refuses to apply what some key is in.
type failing struct {
	store.Store
	prefix string
	err    error
}

func (f *failing) Apply(ctx context.Context, ops ...store.Op) (int64, error) {
	for _, op := range ops {
		if f.err != nil && strings.HasPrefix(op.Key, f.prefix) {
			return 0, f.err
		}
	}
	return f.Store.Apply(ctx, ops...)
}

// TestStoreFails: the record comes first, and a second says that the change was
// not made.
func TestStoreFails(t *testing.T) {
	w := the()
	f := &failing{Store: w.store, prefix: "lock/"}
	s, err := w.serverOn(t.Context(), f, w.log)
	if err != nil {
		t.Fatal(err)
	}
	f.err = &sallyport.Problem{Kind: sallyport.ErrUnavailable, Fact: "the store is away"}
	admin := sallyportv1connect.NewAdminServiceClient(inProcess{s.Handler(nil), localAdminCaller()}.client(), base)
	name := "undone-" + uuid.NewString()[:8]
	_, err = admin.PutDocument(t.Context(), connect.NewRequest(&sallyportv1.PutDocumentRequest{Document: `{"kind":"lock","version":"v2","metadata":{"name":"` + name + `"},"spec":{"target":{"user":"x"}}}`}))
	codeIs(t, "put", err, connect.CodeUnavailable)
	var got []sallyport.Event
	for _, e := range w.events(t, audit.LockCreate) {
		if e.Fields["name"] == name {
			got = append(got, e)
		}
	}
	if len(got) != 2 || got[0].Success != nil || got[0].User != "local-admin:0" || got[1].Success == nil || *got[1].Success ||
		got[1].Fields["undone_uid"] != got[0].UID || got[1].Fields["error"] != "the store is away" {
		t.Errorf("recorded %+v", got)
	}
}

// TestEventFields: what rules for Teleport's events look at was missing, or a text.
func TestEventFields(t *testing.T) {
	w := the()
	admin, k := w.localAdmin(t), newKeyPair(t)
	token, err := admin.CreateToken(t.Context(), connect.NewRequest(&sallyportv1.CreateTokenRequest{Roles: []string{"agent"}}))
	if err != nil {
		t.Fatal(err)
	}
	host, err := w.joiner(t).Join(t.Context(), connect.NewRequest(&sallyportv1.JoinRequest{
		Token: token.Msg.GetSecret(), HostName: "fields", Roles: []string{"agent"}, TlsPublicKey: k.tlsPub, SshPublicKey: k.sshPub}))
	if err != nil {
		t.Fatal(err)
	}
	name, lock := token.Msg.GetToken().GetName(), "fields-"+uuid.NewString()[:8]
	document := `{"kind":"lock","version":"v2","metadata":{"name":"` + lock + `"},"spec":{"target":{"user":"nobody"}}}`
	if _, err := admin.PutDocument(t.Context(), connect.NewRequest(&sallyportv1.PutDocumentRequest{Document: document})); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		event, by string
		is        any
		want      map[string]any
	}{
		{audit.JoinTokenCreate, "name", name, map[string]any{"join_method": "token"}},
		{audit.InstanceJoin, "host_id", host.Msg.GetHostId(), map[string]any{"token_name": name, "method": "token", "node_name": "fields", "role": "agent"}},
		{audit.LockCreate, "name", lock, map[string]any{"target": map[string]any{"user": "nobody"}}},
	} {
		var got []map[string]any
		for _, e := range w.events(t, tt.event) {
			if e.Fields[tt.by] == tt.is {
				got = append(got, e.Fields)
			}
		}
		if len(got) != 1 {
			t.Errorf("%s: recorded %d times", tt.event, len(got))
			continue
		}
		for field, want := range tt.want {
			if diff := cmp.Diff(want, got[0][field]); diff != "" {
				t.Errorf("%s: %s: %s", tt.event, field, diff)
			}
		}
	}
	found, err := admin.SearchEvents(t.Context(), connect.NewRequest(&sallyportv1.SearchEventsRequest{Names: []string{audit.LockCreate}, Limit: 1}))
	if err != nil || len(found.Msg.GetEvents()) != 1 || !strings.Contains(found.Msg.GetEvents()[0], `"user_kind":3,`) {
		t.Errorf("found %v, %v", found, err)
	}
}

// TestTokenSecretsAreNotRecorded: whatever names a token in a request.
func TestTokenSecretsAreNotRecorded(t *testing.T) {
	w := the()
	admin := w.localAdmin(t)
	chosen := strings.Repeat("chosen-", 6) + uuid.NewString()
	for _, value := range []string{"", chosen} {
		resp, err := admin.CreateToken(t.Context(), connect.NewRequest(&sallyportv1.CreateTokenRequest{Roles: []string{"agent"}, Value: value}))
		if err != nil {
			t.Fatal(err)
		}
		secret := resp.Msg.GetSecret()
		k := newKeyPair(t)
		if _, err := w.joiner(t).Join(t.Context(), connect.NewRequest(&sallyportv1.JoinRequest{Token: secret, Roles: []string{"gateway"}, TlsPublicKey: k.tlsPub, SshPublicKey: k.sshPub})); err == nil {
			t.Error("joined as gateway by an agent's token")
		}
		if _, err := admin.DeleteToken(t.Context(), connect.NewRequest(&sallyportv1.DeleteTokenRequest{Name: secret})); err != nil {
			t.Fatal(err)
		}
		_, err = admin.DeleteToken(t.Context(), connect.NewRequest(&sallyportv1.DeleteTokenRequest{Name: secret}))
		codeIs(t, "again", err, connect.CodeNotFound)
		lines, err := w.log.Search(t.Context(), audit.Query{Limit: 10000})
		if err != nil {
			t.Fatal(err)
		}
		created, deleted := false, false
		for _, l := range lines {
			if strings.Contains(string(l), secret) {
				t.Errorf("the secret is in the log: %s", l)
			}
			named := strings.Contains(string(l), resp.Msg.GetToken().GetName())
			created = created || named && strings.Contains(string(l), audit.JoinTokenCreateCode)
			deleted = deleted || named && strings.Contains(string(l), audit.JoinTokenDeleteCode)
		}
		if !created || !deleted {
			t.Errorf("recorded: created %v, deleted %v", created, deleted)
		}
	}
}

// TestUserEvents: the log names who did what to whom. A new user's link was not there.
func TestUserEvents(t *testing.T) {
	w := the()
	by, cert := w.user(t, nil, "editor")
	c, name := w.asAdmin(t, cert), "log-"+uuid.NewString()[:8]
	resp, err := c.CreateUser(t.Context(), connect.NewRequest(&sallyportv1.CreateUserRequest{User: &sallyportv1.User{Name: name, Roles: []string{"access"}}}))
	if err != nil {
		t.Fatal(err)
	}
	link, ok := strings.CutPrefix(resp.Msg.GetClaimUrl(), "https://gw.example.com:443/claim/")
	if !ok {
		t.Fatalf("claim URL %q", resp.Msg.GetClaimUrl())
	}
	if _, err := w.users.Claim(t.Context(), login.Claim{Token: link, Password: password}); err != nil {
		t.Errorf("the link: %v", err)
	}
	if _, err := c.ResetUser(t.Context(), connect.NewRequest(&sallyportv1.ResetUserRequest{Name: name})); err != nil {
		t.Fatal(err)
	}
	if _, err := c.DeleteUser(t.Context(), connect.NewRequest(&sallyportv1.DeleteUserRequest{Name: name})); err != nil {
		t.Fatal(err)
	}
	for event, want := range map[string][]any{audit.UserCreate: {nil}, audit.ResetPasswordTokenCreate: {"1h0m0s", "8h0m0s"}, audit.UserDelete: {nil}} {
		var got []any
		for _, e := range w.events(t, event) {
			if e.Fields["name"] == name && e.User == by && e.UserKind == "human" && e.Cluster == cluster {
				got = append(got, e.Fields["ttl"])
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: recorded with lives %v, want %v", event, got, want)
		}
	}
	for _, req := range []func() error{
		func() error {
			_, err := c.DeleteUser(t.Context(), connect.NewRequest(&sallyportv1.DeleteUserRequest{Name: name}))
			return err
		},
		func() error {
			_, err := c.ResetUser(t.Context(), connect.NewRequest(&sallyportv1.ResetUserRequest{Name: name}))
			return err
		},
	} {
		codeIs(t, "gone", req(), connect.CodeNotFound)
	}
}

// TestChangeOfCallerWhoGoes: a caller who went while the commit was under way
// left a record of what was not done, and nothing that said so.
func TestChangeOfCallerWhoGoes(t *testing.T) {
	w := the()
	signing, sign := make(chan struct{}, 100), make(chan struct{}, 100)
	sign <- struct{}{} // of the log's opening
	log, err := audit.OpenLog(audit.LogConfig{Dir: t.TempDir(), Host: uuid.NewString(), Sign: func([]byte) ([]byte, error) {
		signing <- struct{}{}
		<-sign
		return []byte("signed"), nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	defer close(sign)
	<-signing
	s, err := w.serverOn(t.Context(), w.store, log)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	gone, done := make(chan error), 0
	go func() {
		gone <- s.change(ctx, sallyport.Event{Name: "gone.test"}, func() error {
			done++
			_, err := w.store.Revision(ctx)
			return err
		})
	}()
	<-signing // the record is being made
	cancel()
	sign <- struct{}{}
	sign <- struct{}{} // and that of what was not done
	if err := <-gone; err == nil || done != 1 {
		t.Errorf("the change: %v, tried %d times", err, done)
	}
	found, err := log.Search(t.Context(), audit.Query{Names: []string{"gone.test"}})
	if err != nil || len(found) != 2 {
		t.Fatalf("recorded: %s, %v", found, err)
	}
	first, err := audit.Decode(found[0])
	if err != nil || !strings.Contains(string(found[1]), `"undone_uid":"`+first.UID+`"`) {
		t.Errorf("recorded: %s, %v", found, err)
	}
	if err := s.change(ctx, sallyport.Event{Name: "gone.before"}, func() error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("a caller who has gone: %v", err)
	}
	if found, err := log.Search(t.Context(), audit.Query{Names: []string{"gone.before"}}); err != nil || len(found) != 0 {
		t.Errorf("recorded: %s, %v", found, err)
	}
}
