package api

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/sallyport/sallyport"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
	"github.com/sallyport/sallyport/wire/sallyport/v1/sallyportv1connect"
)

// procedures lists what the schema has.
func procedures() map[string]protoreflect.MethodDescriptor {
	out := map[string]protoreflect.MethodDescriptor{}
	services := sallyportv1.File_sallyport_v1_api_proto.Services()
	for i := range services.Len() {
		s := services.Get(i)
		for j := range s.Methods().Len() {
			m := s.Methods().Get(j)
			out["/"+string(s.FullName())+"/"+string(m.Name())] = m
		}
	}
	return out
}

// TestA42_Table: the table and the schema list the same methods.
func TestA42_Table(t *testing.T) {
	all, rules := procedures(), methods()
	for p := range all {
		if _, ok := rules[p]; !ok {
			t.Errorf("%s has no row in methods()", p)
		}
	}
	for p, r := range rules {
		if _, ok := all[p]; !ok {
			t.Errorf("%s has a row and is not in the schema", p)
		}
		if r.who == 0 || (r.kind == "") != (r.verb == "") {
			t.Errorf("%s: half a row: %+v", p, r)
		}
		if r.named && r.kind == "" {
			t.Errorf("%s: names of no kind: %+v", p, r)
		}
		if strings.Contains(p, ".AdminService/") && (r.who != adminOrLocal || r.kind == "") {
			t.Errorf("%s: administration without a verb, or for others: %+v", p, r)
		}
	}
}

// TestA42_NoRow: a method without a row is refused to everybody.
func TestA42_NoRow(t *testing.T) {
	pass := func(context.Context, Caller) error { return nil }
	g := &guard{rules: map[string]rule{}, standing: pass, denied: func(context.Context, Caller, string, error) {},
		check: func(context.Context, Caller, rule) error { return nil }}
	for _, kind := range []sallyport.IdentityKind{"", sallyport.KindUser, sallyport.KindAgent, sallyport.KindGateway, sallyport.KindLocalAdmin} {
		ctx := WithCaller(t.Context(), Caller{Identity: sallyport.Identity{Kind: kind}})
		codeIs(t, string(kind), g.admit(ctx, sallyportv1connect.PublicServicePingProcedure), connect.CodePermissionDenied)
	}
}

// allowedTo is written by hand from the roles' documents and the implicit role, not computed from the
// table: who of the users may call what. Others may not.
var allowedTo = map[string]string{
	"GetStatus": "auditor editor", "SearchEvents": "auditor editor", "ListAgents": "auditor editor", "RemoveHost": "editor",
	"CreateUser": "editor", "ListUsers": "editor", "DeleteUser": "editor", "ResetUser": "editor",
	"CreateToken": "editor", "ListTokens": "editor", "DeleteToken": "editor",
	"GetDocuments": "editor", "PutDocument": "editor", "DeleteDocument": "editor",
	"ExportAuthorities": "none auditor editor", "SignDatabaseServer": "editor",
	"WhoAmI": "none auditor editor", "Reissue": "none auditor editor", "ListResources": "none auditor editor",
	"ListClusters": "none auditor editor", "Explain": "none auditor editor",
	"Ping": "none auditor editor", "ListWebSessions": "none auditor editor", "EndWebSession": "none auditor editor",
}

// othersAllowed is the same for callers that are no users.
var othersAllowed = map[string]string{
	"Ping": "visitor agent gateway admin", "Login": "visitor", "Join": "nobody",
	"RenewHost": "agent gateway", "Announce": "agent", "IssueDatabaseCertificate": "agent", "IssueAppToken": "agent", "WatchSnapshot": "agent gateway",
	"AppendEvents": "agent gateway", "ReportPresence": "gateway",
	"RedeemAppCode": "gateway", "RenewAppSession": "gateway", "EndAppSession": "gateway",
	"FinishLogin": "visitor", "BeginDeviceLogin": "visitor", "PollDeviceLogin": "visitor",
}

// requestFor is one that passes the door and then fails, or does no harm.
func requestFor(method, agentID, gatewayID, db string) proto.Message {
	switch method {
	case "IssueDatabaseCertificate":
		return &sallyportv1.IssueDatabaseCertificateRequest{Database: db}
	case "AppendEvents":
		return &sallyportv1.AppendEventsRequest{Spool: agentID + "/" + uuid.NewString()}
	case "ReportPresence":
		return &sallyportv1.ReportPresenceRequest{GatewayId: gatewayID}
	case "Announce":
		return &sallyportv1.AnnounceRequest{Resources: []*sallyportv1.Resource{{Kind: "db", Name: db, Protocol: "postgres"}}}
	case "GetDocuments":
		return &sallyportv1.GetDocumentsRequest{Kind: "role"}
	case "PutDocument":
		return &sallyportv1.PutDocumentRequest{Document: `{"kind":"role","version":"v99","metadata":{"name":"matrix"}}`}
	case "DeleteDocument":
		return &sallyportv1.DeleteDocumentRequest{Kind: "role", Name: "none-such"}
	}
	return &sallyportv1.PingRequest{} // empty on the wire, whatever the type
}

// TestA42_EveryMethod calls each method over the real listener as each sort of
// caller.
func TestA42_EveryMethod(t *testing.T) {
	w := the()
	agentID, agentCert := w.host(t, sallyport.KindAgent)
	gatewayID, gatewayCert := w.host(t, sallyport.KindGateway)
	db := "matrix-" + uuid.NewString()[:8]
	if _, err := w.inventory.Announce(t.Context(), agentID, []sallyport.Resource{{Kind: sallyport.KindDatabase, Name: db, Protocol: "postgres"}}, nil); err != nil {
		t.Fatal(err)
	}
	_, none := w.user(t, nil, w.role(t, "none", "{}"))
	_, auditor := w.user(t, nil, "auditor")
	_, editor := w.user(t, nil, "editor")
	for _, c := range []struct {
		name string
		door door
	}{
		{"nobody", door{protocol: protocolJoin}},
		{"visitor", visitor(gatewayCert, "192.0.2.7:1234")},
		{"none", byAuth(none)}, {"auditor", byAuth(auditor)}, {"editor", byAuth(editor)},
		{"agent", byAuth(agentCert)}, {"gateway", byAuth(gatewayCert)}, {"admin", door{}},
	} {
		hc := w.http(t, c.door)
		for p, m := range procedures() {
			name := string(m.Name())
			id := agentID
			if c.name == "gateway" {
				id = gatewayID
			}
			got := call(t, hc, c.door.base()+p, m.IsStreamingServer(), requestFor(name, id, gatewayID, db))
			want := slices.Contains(strings.Fields(allowedTo[name]+" "+othersAllowed[name]), c.name) ||
				c.name == "admin" && strings.Contains(p, ".AdminService/")
			if passed := got != connect.CodePermissionDenied && got != connect.CodeUnauthenticated; passed != want {
				t.Errorf("%s as %s: %v, passes should be %v", p, c.name, got, want)
			}
		}
	}
}

// call returns the code of the answer, 0 for none.
func call(t *testing.T, hc *http.Client, url string, stream bool, m proto.Message) connect.Code {
	t.Helper()
	body, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	kind := "application/proto"
	if stream {
		kind, body = "application/connect+proto", append([]byte{0, 0, 0, 0, byte(len(body))}, body...)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", kind)
	req.Header.Set("Connect-Protocol-Version", "1")
	return answer(t, hc, req, body)
}

// answer sends a request as it is.
func answer(t *testing.T, hc *http.Client, req *http.Request, body []byte) connect.Code {
	t.Helper()
	req.Body = io.NopCloser(bytes.NewReader(body))
	resp, err := hc.Do(req)
	if err != nil {
		t.Fatalf("%s: %v", req.URL, err)
	}
	defer resp.Body.Close()
	var a struct {
		Code  string `json:"code"`
		Error struct {
			Code string `json:"code"`
		} `json:"error"`
	}
	if strings.HasPrefix(req.Header.Get("Content-Type"), "application/connect+") {
		head := make([]byte, 5)
		if _, err := io.ReadFull(resp.Body, head); err != nil {
			t.Fatalf("%s: %v", req.URL, err)
		}
		if head[0]&2 == 0 {
			return 0 // a message came
		}
		if err := json.NewDecoder(resp.Body).Decode(&a); err != nil {
			t.Fatalf("%s: %v", req.URL, err)
		}
		a.Code = a.Error.Code
	} else if resp.StatusCode == http.StatusOK {
		return 0
	} else if b, _ := io.ReadAll(resp.Body); json.Unmarshal(b, &a) != nil {
		t.Fatalf("%s: %s %s", req.URL, resp.Status, b)
	}
	var code connect.Code
	if err := code.UnmarshalText([]byte(a.Code)); err != nil {
		t.Fatalf("%s: code %q", req.URL, a.Code)
	}
	return code
}

// TestA42_DocumentKinds: the verb is asked for the document's own kind.
func TestA42_DocumentKinds(t *testing.T) {
	w := the()
	rule := func(kind string, verbs ...string) string {
		b, _ := json.Marshal(verbs)
		return `{"rules":[{"resources":["` + kind + `"],"verbs":` + string(b) + `}]}`
	}
	docs := map[string]string{
		"role": `{"kind":"role","version":"v7","metadata":{"name":"kinds-role"},"spec":{}}`,
		"lock": `{"kind":"lock","version":"v2","metadata":{"name":"kinds-lock"},"spec":{"target":{"user":"nobody-at-all"}}}`,
		"user": `{"kind":"user","version":"v2","metadata":{"name":"kinds-user"},"spec":{"roles":["access"]}}`,
	}
	for kind := range docs {
		_, cert := w.user(t, nil, w.role(t, "only-"+kind, rule(kind, "list", "read", "create", "update", "delete")))
		c := w.asAdmin(t, cert)
		for other, doc := range docs {
			_, put := c.PutDocument(t.Context(), connect.NewRequest(&sallyportv1.PutDocumentRequest{Document: doc, Overwrite: true}))
			_, get := c.GetDocuments(t.Context(), connect.NewRequest(&sallyportv1.GetDocumentsRequest{Kind: other}))
			_, one := c.GetDocuments(t.Context(), connect.NewRequest(&sallyportv1.GetDocumentsRequest{Kind: other, Name: "kinds-" + other}))
			_, del := c.DeleteDocument(t.Context(), connect.NewRequest(&sallyportv1.DeleteDocumentRequest{Kind: other, Name: "kinds-" + other}))
			for what, err := range map[string]error{"put": put, "get": get, "get one": one, "delete": del} {
				if kind == other && err != nil {
					t.Errorf("%s %s by a role for it: %v", what, other, err)
				}
				if kind != other {
					codeIs(t, what+" "+other+" by a role for "+kind, err, connect.CodePermissionDenied)
				}
			}
		}
	}
}

// TestUnknownKindAsked: which kinds there are is nobody's right: a kind that is not
// there looked like one that the roles do not allow.
func TestUnknownKindAsked(t *testing.T) {
	w := the()
	_, cert := w.user(t, nil, w.role(t, "no-rules-at-all", "{}"))
	c := w.asAdmin(t, cert)
	_, get := c.GetDocuments(t.Context(), connect.NewRequest(&sallyportv1.GetDocumentsRequest{Kind: "foo"}))
	_, put := c.PutDocument(t.Context(), connect.NewRequest(&sallyportv1.PutDocumentRequest{Document: `{"kind":"foo","metadata":{"name":"x"}}`}))
	_, del := c.DeleteDocument(t.Context(), connect.NewRequest(&sallyportv1.DeleteDocumentRequest{Kind: "foo", Name: "x"}))
	for what, err := range map[string]error{"get": get, "put": put, "delete": del} {
		codeIs(t, what, err, connect.CodeInvalidArgument)
	}
}

// TestA42_DocumentVerbs: each verb alone gives what it says.
func TestA42_DocumentVerbs(t *testing.T) {
	w := the()
	name := "verbs-" + uuid.NewString()[:8]
	put := func(c sallyportv1connect.AdminServiceClient, overwrite bool) error {
		_, err := c.PutDocument(t.Context(), connect.NewRequest(&sallyportv1.PutDocumentRequest{Overwrite: overwrite,
			Document: `{"kind":"lock","version":"v2","metadata":{"name":"` + name + `"},"spec":{"target":{"user":"nobody-at-all"}}}`}))
		return err
	}
	with := func(verb string) sallyportv1connect.AdminServiceClient {
		_, cert := w.user(t, nil, w.role(t, "verb-"+verb, `{"rules":[{"resources":["lock"],"verbs":["`+verb+`"]}]}`))
		return w.asAdmin(t, cert)
	}
	create, update, read, list := with("create"), with("update"), with("read"), with("list")
	codeIs(t, "create by update", put(update, true), connect.CodePermissionDenied)
	if err := put(create, false); err != nil {
		t.Errorf("create: %v", err)
	}
	codeIs(t, "replace by create", put(create, true), connect.CodePermissionDenied)
	codeIs(t, "create again", put(create, false), connect.CodeAlreadyExists)
	get := func(c sallyportv1connect.AdminServiceClient, which string) error {
		_, err := c.GetDocuments(t.Context(), connect.NewRequest(&sallyportv1.GetDocumentsRequest{Kind: "lock", Name: which}))
		return err
	}
	if err := get(read, name); err != nil {
		t.Errorf("read one: %v", err)
	}
	codeIs(t, "read all by read", get(read, ""), connect.CodePermissionDenied)
	codeIs(t, "read all by list", get(list, ""), connect.CodePermissionDenied)
}

// TestA47_KindIsReadOnce: a document cannot be one kind to the check and
// another to the store.
func TestA47_KindIsReadOnce(t *testing.T) {
	w := the()
	_, cert := w.user(t, nil, w.role(t, "locks-only", `{"rules":[{"resources":["lock"],"verbs":["create","update"]}]}`))
	c := w.asAdmin(t, cert)
	for _, doc := range []string{
		`{"kind":"role","kind":"lock","version":"v7","metadata":{"name":"twice"},"spec":{"allow":{"logins":["root"]}}}`,
		`{"kind":"lock","kind":"role","version":"v7","metadata":{"name":"twice"},"spec":{"allow":{"logins":["root"]}}}`,
		`{"kind":"lock","KIND":"role","version":"v7","metadata":{"name":"twice"},"spec":{"allow":{"logins":["root"]}}}`,
		`{"kind":"role","Kind":"lock","version":"v7","metadata":{"name":"twice"},"spec":{"allow":{"logins":["root"]}}}`,
		`{"kind":"lock","version":"v2","metadata":{"name":"twice"},"spec":{"target":{"user":"x"}}} {"kind":"role"}`,
	} {
		if _, err := c.PutDocument(t.Context(), connect.NewRequest(&sallyportv1.PutDocumentRequest{Document: doc, Overwrite: true})); err == nil {
			t.Errorf("stored: %s", doc)
		}
	}
	admin := w.localAdmin(t)
	doc := `{"kind":"role","version":"v7","metadata":{"name":"one","NAME":"two"},"spec":{}}`
	if _, err := admin.PutDocument(t.Context(), connect.NewRequest(&sallyportv1.PutDocumentRequest{Document: doc})); err == nil {
		t.Errorf("stored under one of two names")
	}
	for _, name := range []string{"one", "two", "twice"} {
		if _, ok := w.server.state.view().policy.Role(name); ok {
			t.Errorf("there is a role %q", name)
		}
	}
}
