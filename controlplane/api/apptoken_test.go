package api

import (
	"crypto/tls"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/ca"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
)

// TestA97_TokensOfOthers: an agent gets tokens for its own applications, about
// users who have shown it their certificate and may use it there.
func TestA97_TokensOfOthers(t *testing.T) {
	w := the()
	agentID, own := w.host(t, sallyport.KindAgent)
	_, other := w.host(t, sallyport.KindAgent)
	app, k := "web-"+uuid.NewString()[:8], newKeyPair(t)
	if _, err := w.inventory.Announce(t.Context(), agentID, []sallyport.Resource{{Kind: sallyport.KindApp, Name: app, Address: "http://localhost"}}, nil); err != nil {
		t.Fatal(err)
	}
	user := func(change func(*sallyport.Identity)) []byte {
		t.Helper()
		id := sallyport.Identity{Kind: sallyport.KindUser, Name: "token-" + app, Cluster: w.keys.Cluster(), Roles: []string{"access"}}
		change(&id)
		c, err := w.keys.IssueUser(ca.UserRequest{Identity: id, TLSKey: k.tlsPub, TTL: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		return c.X509
	}
	plain := user(func(*sallyport.Identity) {})
	ask := func(cert *tls.Certificate, app string, of []byte) error {
		resp, err := w.asHost(t, cert).IssueAppToken(t.Context(), connect.NewRequest(&sallyportv1.IssueAppTokenRequest{App: app, UserCertificate: of}))
		if err == nil && (resp.Msg.GetToken() == "" || time.Until(resp.Msg.GetExpires().AsTime()) > ca.TokenTTL) {
			t.Errorf("token %q until %s", resp.Msg.GetToken(), resp.Msg.GetExpires().AsTime())
		}
		return err
	}
	here := "/" + w.keys.Cluster() + "/app/" + app
	for name, of := range map[string][]byte{"plain": plain, "for this application": user(func(id *sallyport.Identity) { id.AllowedResources = []string{here} })} {
		if err := ask(own, app, of); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	codeIs(t, "another's application", ask(other, app, plain), connect.CodePermissionDenied)
	codeIs(t, "no application", ask(own, "none-such", plain), connect.CodePermissionDenied)
	for name, of := range map[string][]byte{
		"nothing": nil, "rubbish": []byte("rubbish"), "an agent's": own.Certificate[0], "too long": make([]byte, maxVisitor+1),
		"bent": append(append([]byte(nil), plain[:len(plain)-1]...), plain[len(plain)-1]^1),
	} {
		codeIs(t, name, ask(own, app, of), connect.CodeInvalidArgument)
	}
	elsewhere := user(func(id *sallyport.Identity) { id.AllowedResources = []string{here + "x"} })
	codeIs(t, "for another application", ask(own, app, elsewhere), connect.CodePermissionDenied)
	w.lock(t, `{"user":"token-`+app+`"}`)
	codeIs(t, "locked", ask(own, app, plain), connect.CodePermissionDenied)
}
