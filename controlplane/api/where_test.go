package api

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/audit"
	"github.com/sallyport/sallyport/controlplane/join"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
	"github.com/sallyport/sallyport/wire/sallyport/v1/sallyportv1connect"
)

// ruled stores a role with one allow rule and perhaps one deny rule.
func (w *world) ruled(t testing.TB, allow, deny string) string {
	t.Helper()
	name := "ruled-" + uuid.NewString()[:8]
	doc := fmt.Sprintf(`{"kind":"role","version":"v7","metadata":{"name":%q},"spec":{"allow":{"rules":[%s]},"deny":{"rules":[%s]}}}`, name, allow, deny)
	if _, err := w.localAdmin(t).PutDocument(t.Context(), connect.NewRequest(&sallyportv1.PutDocumentRequest{Document: doc})); err != nil {
		t.Fatal(err)
	}
	return name
}

// where is a rule for all verbs on a kind.
func where(kind, format string, args ...any) string {
	return fmt.Sprintf(`{"resources":[%q],"verbs":["*"],"where":%q}`, kind, fmt.Sprintf(format, args...))
}

// TestA42_WhereByName: a where clause on the object's name was judged on an object
// without a name, so that deny rules did nothing, and negated allow rules allowed all.
func TestA42_WhereByName(t *testing.T) {
	w := the()
	boss, _ := w.user(t, nil, "editor")
	clerk, _ := w.user(t, nil, "access")
	const all = `{"resources":["user"],"verbs":["*"]}`
	for _, rules := range []struct{ allow, deny string }{
		{all, where("user", "equals(resource.metadata.name, %q)", boss)},
		{where("user", "resource.metadata.name != %q", boss), ""},
		{where("user", "resource.metadata.name == %q", clerk), ""},
		{where("user", "!(resource.metadata.name == %q) && user.metadata.name != %q", boss, boss), ""},
		{all, where("*", "resource.metadata.name == %q && resource.kind == %q", boss, "user")},
	} {
		name, cert := w.user(t, nil, w.ruled(t, rules.allow, rules.deny))
		c := w.asAdmin(t, cert)
		reset := func(name string) error {
			_, err := c.ResetUser(t.Context(), connect.NewRequest(&sallyportv1.ResetUserRequest{Name: name}))
			return err
		}
		put := func(name string) error {
			_, err := c.PutDocument(t.Context(), connect.NewRequest(&sallyportv1.PutDocumentRequest{Overwrite: true,
				Document: fmt.Sprintf(`{"kind":"user","version":"v2","metadata":{"name":%q},"spec":{"roles":["access"]}}`, name)}))
			return err
		}
		get := func(name string) error {
			_, err := c.GetDocuments(t.Context(), connect.NewRequest(&sallyportv1.GetDocumentsRequest{Kind: "user", Name: name}))
			return err
		}
		for what, do := range map[string]func(string) error{"reset": reset, "put": put, "get": get} {
			if err := do(clerk); err != nil {
				t.Errorf("%+v: %s of the clerk: %v", rules, what, err)
			}
			codeIs(t, fmt.Sprintf("%+v: %s of the boss", rules, what), do(boss), connect.CodePermissionDenied)
		}
		_, err := c.DeleteUser(t.Context(), connect.NewRequest(&sallyportv1.DeleteUserRequest{Name: boss}))
		codeIs(t, fmt.Sprintf("%+v: delete of the boss", rules), err, connect.CodePermissionDenied)
		_, err = c.CreateUser(t.Context(), connect.NewRequest(&sallyportv1.CreateUserRequest{User: &sallyportv1.User{Name: boss, Roles: []string{"access"}}}))
		codeIs(t, fmt.Sprintf("%+v: creation of the boss", rules), err, connect.CodePermissionDenied)

		listed, err := c.ListUsers(t.Context(), connect.NewRequest(&sallyportv1.ListUsersRequest{}))
		if err != nil {
			t.Fatal(err)
		}
		named := func(name string) bool {
			return slices.ContainsFunc(listed.Msg.GetUsers(), func(u *sallyportv1.User) bool { return u.GetName() == name })
		}
		if named(boss) || !named(clerk) {
			t.Errorf("%+v: the boss is listed: %v, the clerk: %v", rules, named(boss), named(clerk))
		}
		docs, err := c.GetDocuments(t.Context(), connect.NewRequest(&sallyportv1.GetDocumentsRequest{Kind: "user"}))
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(docs.Msg.GetDocuments(), "\n"); strings.Contains(got, boss) || !strings.Contains(got, clerk) {
			t.Errorf("%+v: documents: %s", rules, got)
		}
		if !slices.ContainsFunc(w.events(t, audit.AccessDenied), func(e sallyport.Event) bool {
			return e.User == name && strings.HasSuffix(fmt.Sprint(e.Fields["method"]), "/ResetUser")
		}) {
			t.Errorf("%+v: that the boss was to be reset is not recorded", rules)
		}
	}
}

// TestA42_WhereOwnRole: who may write all roles but his own cannot write his own.
func TestA42_WhereOwnRole(t *testing.T) {
	w := the()
	own := "own-" + uuid.NewString()[:8]
	doc := func(name string) *connect.Request[sallyportv1.PutDocumentRequest] {
		return connect.NewRequest(&sallyportv1.PutDocumentRequest{Overwrite: true, Document: fmt.Sprintf(
			`{"kind":"role","version":"v7","metadata":{"name":%q},"spec":{"allow":{"rules":[{"resources":["role"],"verbs":["*"]}]},"deny":{"rules":[{"resources":["role"],"verbs":["update","delete"],"where":"resource.metadata.name == \"%s\""}]}}}`, name, own)})
	}
	if _, err := w.localAdmin(t).PutDocument(t.Context(), doc(own)); err != nil {
		t.Fatal(err)
	}
	_, cert := w.user(t, nil, own)
	c := w.asAdmin(t, cert)
	_, err := c.PutDocument(t.Context(), doc(own))
	codeIs(t, "the own role is replaced", err, connect.CodePermissionDenied)
	_, err = c.DeleteDocument(t.Context(), connect.NewRequest(&sallyportv1.DeleteDocumentRequest{Kind: "role", Name: own}))
	codeIs(t, "the own role is deleted", err, connect.CodePermissionDenied)
	if _, err := c.PutDocument(t.Context(), doc(own+"-other")); err != nil {
		t.Errorf("another role: %v", err)
	}
}

// TestA42_WhereNotKnown: what is not known of an object allows nothing, and denies.
func TestA42_WhereNotKnown(t *testing.T) {
	w := the()
	clerk, _ := w.user(t, nil, "access")
	const all = `{"resources":["*"],"verbs":["*"]}`
	for _, rules := range []struct{ allow, deny string }{
		{all, where("*", `resource.metadata.labels["team"] == "red"`)},
		{all, where("*", `resource.metadata.labels["team"] != "red"`)},
		{where("*", `resource.metadata.labels["team"] != "red"`), ""},
		{where("*", `resource.metadata.labels["team"] == ""`), ""},
		{where("*", `!contains(session.participants, user.metadata.name)`), ""},
	} {
		_, cert := w.user(t, nil, w.ruled(t, rules.allow, rules.deny))
		c := w.asAdmin(t, cert)
		_, err := c.ResetUser(t.Context(), connect.NewRequest(&sallyportv1.ResetUserRequest{Name: clerk}))
		codeIs(t, fmt.Sprintf("%+v: reset", rules), err, connect.CodePermissionDenied)
		_, err = c.SearchEvents(t.Context(), connect.NewRequest(&sallyportv1.SearchEventsRequest{}))
		codeIs(t, fmt.Sprintf("%+v: events", rules), err, connect.CodePermissionDenied)
	}
	// What has no name cannot be judged by name.
	_, cert := w.user(t, nil, w.ruled(t, where("*", `resource.metadata.name != "x"`), ""))
	_, err := w.asAdmin(t, cert).SearchEvents(t.Context(), connect.NewRequest(&sallyportv1.SearchEventsRequest{}))
	codeIs(t, "events by a rule on their name", err, connect.CodePermissionDenied)
	_, cert = w.user(t, nil, w.ruled(t, all, where("*", `resource.metadata.name == "x"`)))
	_, err = w.asAdmin(t, cert).GetStatus(t.Context(), connect.NewRequest(&sallyportv1.GetStatusRequest{}))
	codeIs(t, "the status against a rule on its name", err, connect.CodePermissionDenied)
	// What asks about the caller alone is answered everywhere.
	_, cert = w.user(t, nil, w.ruled(t, where("*", `contains(user.spec.roles, "nobody-has-it") || resource.kind == "event"`), ""))
	if _, err = w.asAdmin(t, cert).SearchEvents(t.Context(), connect.NewRequest(&sallyportv1.SearchEventsRequest{})); err != nil {
		t.Errorf("events by a rule on the caller: %v", err)
	}
}

// TestA42_WhereEveryMethod: who has a rule for one object only, or for all but that
// one, passes the table where objects have names, and then each handler asks.
func TestA42_WhereEveryMethod(t *testing.T) {
	w := the()
	agentID, _ := w.host(t, sallyport.KindAgent)
	victim, _ := w.user(t, nil, "access")
	secret, token, err := w.tokens.Create(t.Context(), join.Spec{Roles: []sallyport.IdentityKind{sallyport.KindAgent}})
	if err != nil {
		t.Fatal(err)
	}
	role := w.role(t, "where-victim", "{}")
	requests := map[string][]proto.Message{
		"CreateUser":  {&sallyportv1.CreateUserRequest{User: &sallyportv1.User{Name: victim + "-new", Roles: []string{"access"}}}},
		"DeleteUser":  {&sallyportv1.DeleteUserRequest{Name: victim}},
		"ResetUser":   {&sallyportv1.ResetUserRequest{Name: victim}},
		"CreateToken": {&sallyportv1.CreateTokenRequest{Roles: []string{"agent"}}},
		"DeleteToken": {&sallyportv1.DeleteTokenRequest{Name: token.Name}, &sallyportv1.DeleteTokenRequest{Name: secret}, &sallyportv1.DeleteTokenRequest{Name: "none-such"}},
		"RemoveHost":  {&sallyportv1.RemoveHostRequest{Id: agentID, Force: true}},
		"GetDocuments": {&sallyportv1.GetDocumentsRequest{Kind: "role", Name: role}, &sallyportv1.GetDocumentsRequest{Kind: "user", Name: victim},
			&sallyportv1.GetDocumentsRequest{Kind: "lock", Name: "none-such"}},
		"PutDocument": {&sallyportv1.PutDocumentRequest{Overwrite: true, Document: `{"kind":"role","version":"v7","metadata":{"name":"where-victim"},"spec":{}}`},
			&sallyportv1.PutDocumentRequest{Document: `{"kind":"lock","version":"v2","metadata":{"name":"where-victim"},"spec":{"target":{"user":"nobody-at-all"}}}`}},
		"DeleteDocument": {&sallyportv1.DeleteDocumentRequest{Kind: "role", Name: role}, &sallyportv1.DeleteDocumentRequest{Kind: "lock", Name: "none-such"}},
	}
	lists := []string{"ListUsers", "ListTokens", "ListAgents"} // they show what the caller may see
	_, one := w.user(t, nil, w.ruled(t, where("*", `resource.metadata.name == "the-only-one"`), ""))
	hc := w.http(t, byAuth(one))
	for p, m := range procedures() {
		name := string(m.Name())
		r := methods()[p]
		if r.kind == "" || slices.Contains(lists, name) || name == "ExportAuthorities" {
			continue
		}
		asked := requests[name]
		if len(asked) == 0 {
			asked = []proto.Message{&sallyportv1.PingRequest{}} // empty on the wire
		}
		if r.named != (len(requests[name]) > 0) {
			t.Errorf("%s: by name %v, and has %d requests here", name, r.named, len(requests[name]))
		}
		for _, req := range asked {
			if got := call(t, hc, byAuth(one).base()+p, m.IsStreamingServer(), req); got != connect.CodePermissionDenied {
				t.Errorf("%s %v: %v", name, req, got)
			}
		}
	}
	w.emptyLists(t, sallyportv1connect.NewAdminServiceClient(hc, base))

	// And all of it is there still.
	admin := w.localAdmin(t)
	if _, err := w.users.GetUser(t.Context(), victim); err != nil {
		t.Error(err)
	}
	if _, err := w.tokens.Find(t.Context(), token.Name); err != nil {
		t.Error(err)
	}
	if w.hostOf(t, agentID) == nil {
		t.Error("the agent is gone")
	}
	if _, err := admin.GetDocuments(t.Context(), connect.NewRequest(&sallyportv1.GetDocumentsRequest{Kind: "role", Name: role})); err != nil {
		t.Error(err)
	}
}

// emptyLists are those of somebody who may see nothing that is there.
func (w *world) emptyLists(t *testing.T, c sallyportv1connect.AdminServiceClient) {
	t.Helper()
	users, err := c.ListUsers(t.Context(), connect.NewRequest(&sallyportv1.ListUsersRequest{}))
	if err != nil || len(users.Msg.GetUsers()) > 0 {
		t.Errorf("users: %v %v", users, err)
	}
	tokens, err := c.ListTokens(t.Context(), connect.NewRequest(&sallyportv1.ListTokensRequest{}))
	if err != nil || len(tokens.Msg.GetTokens()) > 0 {
		t.Errorf("tokens: %v %v", tokens, err)
	}
	agents, err := c.ListAgents(t.Context(), connect.NewRequest(&sallyportv1.ListAgentsRequest{All: true}))
	if err != nil || len(agents.Msg.GetAgents()) > 0 {
		t.Errorf("agents: %v %v", agents, err)
	}
	for _, kind := range []string{"role", "user", "lock"} {
		docs, err := c.GetDocuments(t.Context(), connect.NewRequest(&sallyportv1.GetDocumentsRequest{Kind: kind}))
		if err != nil || len(docs.Msg.GetDocuments()) > 0 {
			t.Errorf("%ss: %v %v", kind, docs, err)
		}
	}
}

// TestA42_WhereHosts: agents and gateways are judged by their ids, tokens by their names.
func TestA42_WhereHosts(t *testing.T) {
	w := the()
	agentID, _ := w.host(t, sallyport.KindAgent)
	gatewayID, _ := w.host(t, sallyport.KindGateway)
	_, mine, err := w.tokens.Create(t.Context(), join.Spec{Roles: []sallyport.IdentityKind{sallyport.KindAgent}})
	if err != nil {
		t.Fatal(err)
	}
	_, cert := w.user(t, nil, w.ruled(t, where("agent", "resource.metadata.name == %q", agentID)+","+where("token", "resource.metadata.name == %q", mine.Name), ""))
	c := w.asAdmin(t, cert)
	list, err := c.ListAgents(t.Context(), connect.NewRequest(&sallyportv1.ListAgentsRequest{All: true}))
	if err != nil || len(list.Msg.GetAgents()) != 1 || list.Msg.GetAgents()[0].GetId() != agentID {
		t.Errorf("agents: %v %v", list, err)
	}
	tokens, err := c.ListTokens(t.Context(), connect.NewRequest(&sallyportv1.ListTokensRequest{}))
	if err != nil || len(tokens.Msg.GetTokens()) != 1 || tokens.Msg.GetTokens()[0].GetName() != mine.Name {
		t.Errorf("tokens: %v %v", tokens, err)
	}
	_, err = c.RemoveHost(t.Context(), connect.NewRequest(&sallyportv1.RemoveHostRequest{Id: gatewayID}))
	codeIs(t, "another host is removed", err, connect.CodePermissionDenied)
	if _, err := c.RemoveHost(t.Context(), connect.NewRequest(&sallyportv1.RemoveHostRequest{Id: agentID})); err != nil {
		t.Error(err)
	}
	if _, err := c.DeleteToken(t.Context(), connect.NewRequest(&sallyportv1.DeleteTokenRequest{Name: mine.Name})); err != nil {
		t.Error(err)
	}
}

// TestA42_Own: everybody may read his own user and the roles that he has, and of
// others nothing; a deny is stronger.
func TestA42_Own(t *testing.T) {
	w := the()
	other, _ := w.user(t, nil, "editor")
	role := w.ruled(t, "", "")
	name, cert := w.user(t, nil, role)
	get := func(c sallyportv1connect.AdminServiceClient, kind, name string) error {
		_, err := c.GetDocuments(t.Context(), connect.NewRequest(&sallyportv1.GetDocumentsRequest{Kind: kind, Name: name}))
		return err
	}
	c := w.asAdmin(t, cert)
	for kind, own := range map[string]string{"user": name, "role": role} {
		if err := get(c, kind, own); err != nil {
			t.Errorf("his own %s: %v", kind, err)
		}
	}
	codeIs(t, "another user", get(c, "user", other), connect.CodePermissionDenied)
	codeIs(t, "a role that he has not", get(c, "role", "editor"), connect.CodePermissionDenied)
	_, err := c.PutDocument(t.Context(), connect.NewRequest(&sallyportv1.PutDocumentRequest{Overwrite: true,
		Document: fmt.Sprintf(`{"kind":"user","version":"v2","metadata":{"name":%q},"spec":{"roles":["editor"]}}`, name)}))
	codeIs(t, "roles for himself", err, connect.CodePermissionDenied)

	denied := w.ruled(t, "", `{"resources":["user","role"],"verbs":["read"]}`)
	name, cert = w.user(t, nil, denied)
	c = w.asAdmin(t, cert)
	codeIs(t, "his own user, denied", get(c, "user", name), connect.CodePermissionDenied)
	codeIs(t, "his own role, denied", get(c, "role", denied), connect.CodePermissionDenied)
}
