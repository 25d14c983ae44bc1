package api

import (
	"strings"
	"testing"

	"connectrpc.com/connect"

	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
)

// TestUnread: who writes documents does not write Go.
func TestUnread(t *testing.T) {
	for doc, want := range map[string]string{
		`"hello"`:                                       "a document is a mapping",
		`[1]`:                                           "a document is a mapping",
		`{"spec": {"target": "bob"}}`:                   "spec.target: not what belongs there, but of the kind string",
		`{"spec": {"target": {"user": ["a"]}}}`:         "spec.target.user: not what belongs there, but of the kind array",
		`{"spec": {"expires": "tomorrow"}}`:             "tomorrow is not a time such as ",
		`{"spec": {"target": {"usr": "a"}}}`:            `unknown field "usr"`,
		`{"kind": "lock", "metadata": {"name": false}}`: "metadata.name: not what belongs there, but of the kind bool",
	} {
		err := strict([]byte(doc), &lockDocument{})
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: %v, want %s", doc, err, want)
		}
	}
	if err := strict([]byte(`{"kind": "lock", "spec": {"target": {"user": "a"}}}`), &lockDocument{}); err != nil {
		t.Error(err)
	}
}

// TestUnknownKind: who sends what this version does not know is told so, not
// that another version of it would do.
func TestUnknownKind(t *testing.T) {
	for doc, want := range map[string]string{
		`{"kind": "github", "version": "v3", "metadata": {"name": "x"}}`: `kind "github": this version knows role, user and lock`,
		`{"kind": "lock", "version": "v3", "metadata": {"name": "x"}}`:   `version "v3" of kind lock is not known; this is v2`,
	} {
		h, err := headerOf([]byte(doc))
		if err == nil {
			_, err = (&Server{}).put(t.Context(), h, nil)
		}
		if err == nil || err.Error() != want {
			t.Errorf("%s: %v, want %s", doc, err, want)
		}
	}
}

// TestExportedDocuments: what Teleport exports was refused for its revision.
func TestExportedDocuments(t *testing.T) {
	meta := `"metadata": {"name": "x", "id": 1732, "revision": "5fa0", "namespace": "default"}`
	for doc, v := range map[string]any{
		`{"kind": "user", "version": "v2", ` + meta + `, "spec": {"roles": ["access"], "traits": {"logins": ["a"]}, "expires": "0001-01-01T00:00:00Z",
			"created_by": {"time": "2024-01-01T00:00:00Z", "user": {"name": "y"}}, "status": {"is_locked": false, "lock_expires": "0001-01-01T00:00:00Z"},
			"github_identities": [{"username": "x"}]}}`: &userDocument{},
		`{"kind": "lock", "version": "v2", ` + meta + `, "spec": {"target": {"user": "a"}, "created_at": "2024-01-01T00:00:00Z", "created_by": "y"}}`: &lockDocument{},
	} {
		if err := strict([]byte(doc), v); err != nil {
			t.Errorf("%s: %v", doc, err)
		}
	}
	w := the()
	lock := `{"kind": "lock", "version": "v2", ` + meta + `, "spec": {"target": {"user": "nobody-at-all"}, "created_by": "y"}}`
	admin := w.localAdmin(t)
	if _, err := admin.PutDocument(t.Context(), connect.NewRequest(&sallyportv1.PutDocumentRequest{Document: lock})); err != nil {
		t.Fatal(err)
	}
	got, err := admin.GetDocuments(t.Context(), connect.NewRequest(&sallyportv1.GetDocumentsRequest{Kind: "lock", Name: "x"}))
	if err != nil || got.Msg.GetDocuments()[0] != `{"kind":"lock","version":"v2","metadata":{"name":"x"},"spec":{"target":{"user":"nobody-at-all"}}}` {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := admin.DeleteDocument(t.Context(), connect.NewRequest(&sallyportv1.DeleteDocumentRequest{Kind: "lock", Name: "x"})); err != nil {
		t.Error(err)
	}
	_, err = admin.PutDocument(t.Context(), connect.NewRequest(&sallyportv1.PutDocumentRequest{Document: `{"kind":"user","version":"v2",` + meta + `,"spec":{"roles":["access"],"expires":"2030-01-01T00:00:00Z"}}`}))
	codeIs(t, "a user that ends", err, connect.CodeInvalidArgument)
}

// TestLocksNobody: a lock with a typing error in it was taken for one that stops somebody.
func TestLocksNobody(t *testing.T) {
	w := the()
	admin := w.localAdmin(t)
	put := func(target, more string) (*connect.Response[sallyportv1.PutDocumentResponse], error) {
		return admin.PutDocument(t.Context(), connect.NewRequest(&sallyportv1.PutDocumentRequest{Overwrite: true,
			Document: `{"kind": "lock", "version": "v2", "metadata": {"name": "nobody"}, "spec": {"target": {` + target + `}` + more + `}}`}))
	}
	user := `{"kind": "user", "version": "v2", "metadata": {"name": "locked-one", "labels": {"a": "b"}}, "spec": {"roles": ["access"],
		"github_identities": [], "saml_identities": [{"connector_id": "x"}], "status": {"is_locked": true, "lock_expires": "0001-01-01T00:00:00Z"}}}`
	m, err := admin.PutDocument(t.Context(), connect.NewRequest(&sallyportv1.PutDocumentRequest{Document: user}))
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(m.Msg.GetWarnings(), "\n"); got != "metadata.labels: not kept by this version\nspec.saml_identities: not kept by this version\n"+
		"spec.status.is_locked: the user is not locked by it; sallyctl lock --user=locked-one does that" {
		t.Errorf("of the user: %s", got)
	}
	for target, want := range map[string]string{
		`"user": "locked-one"`: "",
		`"role": "access"`:     "",
		`"login": "root"`:      "",
		`"user": "loked-one", "role": "acces"`: `spec.target.user: there is no user "loked-one": the lock stops nobody now` + "\n" +
			`spec.target.role: there is no role "acces": the lock stops nobody now`,
		`"server_id": "node-1"`: `spec.target.server_id: no host has the id "node-1" (sallyctl nodes ls --all): the lock stops nobody now`,
	} {
		m, err := put(target, "")
		if err != nil {
			t.Fatalf("%s: %v", target, err)
		}
		if got := strings.Join(m.Msg.GetWarnings(), "\n"); got != want {
			t.Errorf("%s: %q, want %q", target, got, want)
		}
	}
	_, err = put(`"user": "locked-one"`, `, "expires": "2020-01-01T00:00:00Z"`)
	codeIs(t, "a lock that has ended", err, connect.CodeInvalidArgument)
	for kind, name := range map[string]string{"lock": "nobody", "user": "locked-one"} {
		if _, err := admin.DeleteDocument(t.Context(), connect.NewRequest(&sallyportv1.DeleteDocumentRequest{Kind: kind, Name: name})); err != nil {
			t.Error(err)
		}
	}
}
