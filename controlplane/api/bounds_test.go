package api

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"

	"github.com/sallyport/sallyport"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
	"github.com/sallyport/sallyport/wire/sallyport/v1/sallyportv1connect"
)

// TestA27_StoredStrings: no string that somebody sends is stored at a length of
// the sender's choice, whatever the answer was.
func TestA27_StoredStrings(t *testing.T) {
	w := the()
	long := strings.Repeat("Q", 20000)
	many := map[string]string{}
	for i := range 5000 {
		many[fmt.Sprintf("QQQQQQQQQQ%d", i)] = "v"
	}
	k, ctx := newKeyPair(t), t.Context()
	admin := w.localAdmin(t)
	agentID, agentCert := w.host(t, sallyport.KindAgent)
	gatewayID, gatewayCert := w.host(t, sallyport.KindGateway)
	agent, gateway := w.asHost(t, agentCert), w.asHost(t, gatewayCert)
	id := uuid.NewString()[:8]
	doc := func(text string) func() error {
		return func() error {
			_, err := admin.PutDocument(ctx, connect.NewRequest(&sallyportv1.PutDocumentRequest{Document: strings.ReplaceAll(text, "LONG", long)}))
			return err
		}
	}
	user := func(u *sallyportv1.User) func() error {
		return func() error {
			_, err := admin.CreateUser(ctx, connect.NewRequest(&sallyportv1.CreateUserRequest{User: u}))
			return err
		}
	}
	token := func(r *sallyportv1.CreateTokenRequest) func() error {
		return func() error {
			r.Roles = append(r.Roles, "agent")
			_, err := admin.CreateToken(ctx, connect.NewRequest(r))
			return err
		}
	}
	joins := func(r *sallyportv1.JoinRequest) func() error {
		return func() error {
			r.TlsPublicKey, r.SshPublicKey = k.tlsPub, k.sshPub
			_, err := w.joiner(t).Join(ctx, connect.NewRequest(r))
			return err
		}
	}
	presence := func(r *sallyportv1.ReportPresenceRequest) func() error {
		return func() error {
			r.GatewayId, r.Sequence, r.Full = gatewayID, 1, true
			_, err := gateway.ReportPresence(ctx, connect.NewRequest(r))
			return err
		}
	}
	for name, try := range map[string]func() error{
		"user name":      user(&sallyportv1.User{Name: long, Roles: []string{"access"}}),
		"user role":      user(&sallyportv1.User{Name: "r-" + id, Roles: []string{long}}),
		"trait":          user(&sallyportv1.User{Name: "t-" + id, Roles: []string{"access"}, Traits: map[string]*sallyportv1.StringList{"x": {Values: []string{long}}}}),
		"trait name":     user(&sallyportv1.User{Name: "n-" + id, Roles: []string{"access"}, Traits: map[string]*sallyportv1.StringList{long: {Values: []string{"x"}}}}),
		"token value":    token(&sallyportv1.CreateTokenRequest{Value: long}),
		"token label":    token(&sallyportv1.CreateTokenRequest{Labels: map[string]string{"x": long}}),
		"token labels":   token(&sallyportv1.CreateTokenRequest{Labels: many}),
		"token name":     token(&sallyportv1.CreateTokenRequest{Allow: &sallyportv1.TokenAllow{Names: []string{long}}}),
		"token kind":     token(&sallyportv1.CreateTokenRequest{Allow: &sallyportv1.TokenAllow{Kinds: []string{long}}}),
		"token role":     token(&sallyportv1.CreateTokenRequest{Roles: []string{long}}),
		"document":       doc(`{"kind":"lock","version":"v2","metadata":{"name":"LONG"},"spec":{"target":{"user":"x"}}}`),
		"description":    doc(`{"kind":"lock","version":"v2","metadata":{"name":"d-` + id + `","description":"LONG"},"spec":{"target":{"user":"x"}}}`),
		"label":          doc(`{"kind":"lock","version":"v2","metadata":{"name":"l-` + id + `","labels":{"x":"LONG"}},"spec":{"target":{"user":"x"}}}`),
		"label name":     doc(`{"kind":"lock","version":"v2","metadata":{"name":"m-` + id + `","labels":{"LONG":"x"}},"spec":{"target":{"user":"x"}}}`),
		"lock user":      doc(`{"kind":"lock","version":"v2","metadata":{"name":"u-` + id + `"},"spec":{"target":{"user":"LONG"}}}`),
		"lock login":     doc(`{"kind":"lock","version":"v2","metadata":{"name":"o-` + id + `"},"spec":{"target":{"login":"LONG"}}}`),
		"lock message":   doc(`{"kind":"lock","version":"v2","metadata":{"name":"s-` + id + `"},"spec":{"target":{"user":"x"},"message":"LONG"}}`),
		"lock version":   doc(`{"kind":"lock","version":"LONG","metadata":{"name":"v-` + id + `"},"spec":{"target":{"user":"x"}}}`),
		"document kind":  doc(`{"kind":"LONG","version":"v2","metadata":{"name":"x"}}`),
		"user document":  doc(`{"kind":"user","version":"v2","metadata":{"name":"p-` + id + `","description":"LONG"},"spec":{"roles":["access"]}}`),
		"join token":     joins(&sallyportv1.JoinRequest{Token: long, Roles: []string{"agent"}}),
		"join role":      joins(&sallyportv1.JoinRequest{Roles: []string{long}}),
		"host name":      joins(&sallyportv1.JoinRequest{Roles: []string{"agent"}, HostName: long}),
		"host id":        joins(&sallyportv1.JoinRequest{Roles: []string{"agent"}, HostId: long}),
		"host address":   joins(&sallyportv1.JoinRequest{Roles: []string{"gateway"}, Addresses: []string{long + ":1"}}),
		"presence epoch": presence(&sallyportv1.ReportPresenceRequest{Epoch: long}),
		"version":        presence(&sallyportv1.ReportPresenceRequest{Epoch: "e", Up: []*sallyportv1.Presence{{AgentId: agentID, Version: long}}}),
		"agent id":       presence(&sallyportv1.ReportPresenceRequest{Epoch: "e", Up: []*sallyportv1.Presence{{AgentId: long}}}),
		"gone id":        presence(&sallyportv1.ReportPresenceRequest{Epoch: "e", Down: []string{long}}),
		"gateway":        presence(&sallyportv1.ReportPresenceRequest{Epoch: "e", Address: long + ":443"}),
		"spool": func() error {
			_, err := agent.AppendEvents(ctx, connect.NewRequest(&sallyportv1.AppendEventsRequest{Spool: agentID + "/" + long, Events: []*sallyportv1.SpooledEvent{{Sequence: 1, Json: []byte("{}")}}}))
			return err
		},
		"database user": func() error {
			_, err := agent.IssueDatabaseCertificate(ctx, connect.NewRequest(&sallyportv1.IssueDatabaseCertificateRequest{Database: long, DatabaseUser: long, TlsPublicKey: k.tlsPub}))
			return err
		},
		"database host": func() error {
			_, err := admin.SignDatabaseServer(ctx, connect.NewRequest(&sallyportv1.SignDatabaseServerRequest{TlsPublicKey: k.tlsPub, Hosts: []string{long}}))
			return err
		},
	} {
		err := try()
		switch connect.CodeOf(err) {
		case connect.CodeInvalidArgument, connect.CodeUnauthenticated, connect.CodeNotFound, connect.CodePermissionDenied:
			if len(err.Error()) > 2000 {
				t.Errorf("%s: an answer of %d bytes", name, len(err.Error()))
			}
		default:
			t.Errorf("%s: %.200v", name, err)
		}
	}
	resources := []*sallyportv1.Resource{
		{Kind: "db", Name: long}, {Kind: long, Name: "a"}, {Kind: "db", Name: "b-" + id, Description: long}, {Kind: "db", Name: "c-" + id, Protocol: long},
		{Kind: "db", Name: "d-" + id, Address: long}, {Kind: "node", Name: "e-" + id, Hostname: long}, {Kind: "db", Name: "f-" + id, Labels: map[string]string{"x": long}},
		{Kind: "db", Name: "g-" + id, Labels: map[string]string{long: "x"}}, {Kind: "db", Name: "h-" + id, Labels: many}, {Kind: "db", Name: "i-" + id, Group: long}, {Kind: "db", Name: "j-" + id, Version: long},
	}
	resp, err := agent.Announce(ctx, connect.NewRequest(&sallyportv1.AnnounceRequest{Resources: resources, TlsPublicKey: k.tlsPub, SshPublicKey: k.sshPub}))
	if err != nil || len(resp.Msg.GetRefusals()) != len(resources) {
		t.Errorf("announced: %v, refused %v", err, resp.Msg.GetRefusals())
	}
	for key, value := range contents(t, w.store) {
		if strings.Contains(key+value, strings.Repeat("Q", 1000)) || strings.Contains(value, "QQQQQQQQQQ4999") {
			t.Errorf("stored: %.60s = %.100s", key, value)
		}
	}
}

// TestDocumentNotObeyed: what would restrict and is not obeyed here is refused.
func TestDocumentNotObeyed(t *testing.T) {
	w := the()
	admin := w.localAdmin(t)
	for name, doc := range map[string]string{
		"lock that ends by metadata": `{"kind":"lock","version":"v2","metadata":{"name":"x","expires":"2030-01-01T00:00:00Z"},"spec":{"target":{"user":"x"}}}`,
		"user that ends":             `{"kind":"user","version":"v2","metadata":{"name":"x","expires":"2030-01-01T00:00:00Z"},"spec":{"roles":["access"]}}`,
		"lock, unknown target":       `{"kind":"lock","version":"v2","metadata":{"name":"x"},"spec":{"target":{"user":"x","windows_desktop":"y"}}}`,
		"lock without target":        `{"kind":"lock","version":"v2","metadata":{"name":"x"},"spec":{"target":{}}}`,
		"lock that ended in 1970":    `{"kind":"lock","version":"v2","metadata":{"name":"x"},"spec":{"target":{"user":"x"},"expires":"1970-01-01T00:00:00Z"}}`,
		"user, unknown role":         `{"kind":"user","version":"v2","metadata":{"name":"x"},"spec":{"roles":["none-such"]}}`,
		"role, unknown option":       `{"kind":"role","version":"v7","metadata":{"name":"x"},"spec":{"options":{"require_retina_scan":true}}}`,
		"not JSON":                   `kind: role`,
		"nothing":                    ``,
	} {
		_, err := admin.PutDocument(t.Context(), connect.NewRequest(&sallyportv1.PutDocumentRequest{Document: doc}))
		if code := connect.CodeOf(err); err == nil || code != connect.CodeInvalidArgument && code != connect.CodeNotFound {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestHeldRoleStays: a role that somebody has cannot be removed.
func TestHeldRoleStays(t *testing.T) {
	w := the()
	w.user(t, nil, w.role(t, "held", "{}"))
	_, err := w.localAdmin(t).DeleteDocument(t.Context(), connect.NewRequest(&sallyportv1.DeleteDocumentRequest{Kind: "role", Name: "held"}))
	codeIs(t, "delete", err, connect.CodeInvalidArgument)
	for _, name := range []string{"", "a/b", "none-such", strings.Repeat("x", 2000)} {
		for _, kind := range []string{"role", "user", "lock"} {
			_, err := w.localAdmin(t).DeleteDocument(t.Context(), connect.NewRequest(&sallyportv1.DeleteDocumentRequest{Kind: kind, Name: name}))
			codeIs(t, fmt.Sprintf("delete %s %.20q", kind, name), err, connect.CodeNotFound)
			if name == "" {
				continue
			}
			_, err = w.localAdmin(t).GetDocuments(t.Context(), connect.NewRequest(&sallyportv1.GetDocumentsRequest{Kind: kind, Name: name}))
			codeIs(t, fmt.Sprintf("get %s %.20q", kind, name), err, connect.CodeNotFound)
		}
	}
}

// TestRequestSize: what strangers send is bounded more tightly, and bounded as
// it is after decompression.
func TestRequestSize(t *testing.T) {
	w := the()
	_, gateway := w.host(t, sallyport.KindGateway)
	_, user := w.user(t, nil, "access")
	for name, c := range map[string]struct {
		door      door
		procedure string
		size      int
		want      connect.Code
	}{
		"join, large":        {door{protocol: protocolJoin}, sallyportv1connect.JoinServiceJoinProcedure, maxStrangersRequest + 1, connect.CodeResourceExhausted},
		"login, large":       {visitor(gateway, "192.0.2.1:1"), sallyportv1connect.PublicServiceLoginProcedure, maxStrangersRequest + 1, connect.CodeResourceExhausted},
		"login, just so":     {visitor(gateway, "192.0.2.1:1"), sallyportv1connect.PublicServiceLoginProcedure, maxStrangersRequest, connect.CodeInvalidArgument},
		"reissue, too large": {byAuth(user), sallyportv1connect.AccessServiceReissueProcedure, maxRequest + 1, connect.CodeResourceExhausted},
	} {
		for _, compressed := range []bool{false, true} {
			hc := w.http(t, c.door)
			body := make([]byte, c.size) // zeros are no message, which is told after its size
			r, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, base+c.procedure, nil)
			r.Header.Set("Content-Type", "application/proto")
			if compressed {
				var b bytes.Buffer
				z := gzip.NewWriter(&b)
				z.Write(body)
				z.Close()
				body = b.Bytes()
				r.Header.Set("Content-Encoding", "gzip")
			}
			if got := answer(t, hc, r, body); got != c.want {
				t.Errorf("%s, compressed %v: %v, want %v", name, compressed, got, c.want)
			}
		}
	}
}

// TestQuotas: a source, and all together, are recorded so often and no more.
func TestQuotas(t *testing.T) {
	var q quotas
	now := time.Now()
	took := func(source string, n int) (got int) {
		for range n {
			if ok, _ := q.take(source, now); ok {
				got++
			}
		}
		return got
	}
	if n := took("a", 100); n != sourceBurst {
		t.Errorf("a: %d", n)
	}
	if ok, left := q.take("b", now); !ok || left != 100-sourceBurst {
		t.Errorf("b: %v, %d left out", ok, left)
	}
	now = now.Add(3 * sourceEvery)
	if n := took("a", 100); n != 3 {
		t.Errorf("a, later: %d", n)
	}
	now = now.Add(time.Hour)
	total := 0
	for i := range 10000 {
		total += took(fmt.Sprint(i), 1)
	}
	if total != totalBurst {
		t.Errorf("all: %d", total)
	}
	now = now.Add(24 * time.Hour)
	if n := took("a", 100); n != sourceBurst {
		t.Errorf("a, a day later: %d", n)
	}
}

// TestStrangersDoNotFillTheLog: a flood of failed joins leaves few events.
func TestStrangersDoNotFillTheLog(t *testing.T) {
	w := the()
	k, from := newKeyPair(t), fmt.Sprintf("[2001:db8:%x::1]:1", time.Now().UnixNano()&0xffff)
	c := sallyportv1connect.NewJoinServiceClient(inProcess{w.handler, Caller{Addr: mustAddr(from)}}.client(), base)
	for range 5 * sourceBurst {
		if _, err := c.Join(context.Background(), connect.NewRequest(&sallyportv1.JoinRequest{Token: strings.Repeat("y", 40), Roles: []string{"agent"}, TlsPublicKey: k.tlsPub, SshPublicKey: k.sshPub})); err == nil {
			t.Fatal("joined")
		}
	}
	n := 0
	for _, e := range w.events(t, "instance.join") {
		if e.Addr == from {
			n++
		}
	}
	if n == 0 || n > sourceBurst+2 {
		t.Errorf("%d of %d recorded", n, 5*sourceBurst)
	}
}
