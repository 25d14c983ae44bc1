package api

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/inventory"
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

// TestRequestSize: each method has a bound, which holds for what is decompressed.
func TestRequestSize(t *testing.T) {
	w := the()
	_, gateway := w.host(t, sallyport.KindGateway)
	_, agent := w.host(t, sallyport.KindAgent)
	_, user := w.user(t, nil, "editor")
	for name, c := range map[string]struct {
		door      door
		procedure string
		most      int
	}{
		"join":     {door{protocol: protocolJoin}, sallyportv1connect.JoinServiceJoinProcedure, 64 << 10},
		"login":    {visitor(gateway, "192.0.2.1:1"), sallyportv1connect.PublicServiceLoginProcedure, 64 << 10},
		"reissue":  {byAuth(user), sallyportv1connect.AccessServiceReissueProcedure, 64 << 10},
		"document": {byAuth(user), sallyportv1connect.AdminServicePutDocumentProcedure, 1 << 20},
		"renew":    {byAuth(agent), sallyportv1connect.HostServiceRenewHostProcedure, 128 << 10},
		"announce": {byAuth(agent), sallyportv1connect.HostServiceAnnounceProcedure, 8 << 20},
		"events":   {byAuth(agent), sallyportv1connect.HostServiceAppendEventsProcedure, 2 << 20},
		"presence": {byAuth(gateway), sallyportv1connect.HostServiceReportPresenceProcedure, 8 << 20},
	} {
		for _, compressed := range []bool{false, true} {
			for size, want := range map[int]connect.Code{c.most: connect.CodeInvalidArgument, c.most + 1: connect.CodeResourceExhausted} {
				body := make([]byte, size) // zeros are no message, which is told after its size
				r, body := requestOf(t, c.procedure, body, compressed)
				if got := answer(t, w.http(t, c.door), r, body); got != want {
					t.Errorf("%s, %d bytes, compressed %v: %v, want %v", name, size, compressed, got, want)
				}
			}
		}
	}
}

// requestOf sends bytes that need be no message.
func requestOf(t *testing.T, procedure string, body []byte, compressed bool) (*http.Request, []byte) {
	t.Helper()
	r, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, base+procedure, nil)
	r.Header.Set("Content-Type", "application/proto")
	if body[0] == '{' {
		r.Header.Set("Content-Type", "application/json")
	}
	if compressed {
		r.Header.Set("Content-Encoding", "gzip")
		body = zipped(body)
	}
	return r, body
}

func zipped(b []byte) []byte {
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	z.Write(b)
	z.Close()
	return out.Bytes()
}

// TestRequestMemory: a few KiB from the holder of any certificate, also of one that is locked,
// cost a gigabyte before the table was asked.
func TestRequestMemory(t *testing.T) {
	w := the()
	name, locked := w.user(t, nil, "editor")
	w.lock(t, `{"user":"`+name+`"}`)
	_, user := w.user(t, nil, w.role(t, "none", "{}"))
	agentID, agent := w.host(t, sallyport.KindAgent)
	_, gateway := w.host(t, sallyport.KindGateway)
	lists := bytes.Repeat([]byte{0x0a, 0}, 1<<19)                                           // resources
	under := append([]byte{0x0a, 0x80, 0x80, 0x40}, bytes.Repeat([]byte{'B', 0}, 1<<19)...) // labels of one
	ups := bytes.Repeat([]byte{0x2a, 0}, 1<<19)
	json := []byte(`{"resources":[{}` + strings.Repeat(",{}", 1<<18) + `]}`)
	announce, presence := sallyportv1connect.HostServiceAnnounceProcedure, sallyportv1connect.HostServiceReportPresenceProcedure
	for what, c := range map[string]struct {
		cert      *tls.Certificate
		procedure string
		body      []byte
		want      connect.Code
		most      uint64 // bytes
	}{
		"locked":               {locked, announce, lists, connect.CodePermissionDenied, 2 << 20},
		"locked, own":          {locked, sallyportv1connect.AdminServicePutDocumentProcedure, lists, connect.CodePermissionDenied, 2 << 20},
		"another's method":     {user, announce, lists, connect.CodePermissionDenied, 2 << 20},
		"without a role":       {user, sallyportv1connect.AdminServiceCreateUserProcedure, lists, connect.CodePermissionDenied, 2 << 20},
		"agent, gateway's":     {agent, presence, ups, connect.CodePermissionDenied, 2 << 20},
		"agent":                {agent, announce, lists, connect.CodeInvalidArgument, 24 << 20},
		"agent, JSON":          {agent, announce, json, connect.CodeInvalidArgument, 24 << 20},
		"agent, in a resource": {agent, announce, under, connect.CodeInvalidArgument, 24 << 20},
		"agent, events":        {agent, sallyportv1connect.HostServiceAppendEventsProcedure, bytes.Repeat([]byte{0x12, 0}, 1<<19), connect.CodeInvalidArgument, 24 << 20},
		"gateway":              {gateway, presence, ups, connect.CodeInvalidArgument, 24 << 20},
	} {
		hc := w.http(t, byAuth(c.cert))
		took := uint64(math.MaxUint64)
		for try := 0; took > c.most && try < 10; try++ { // what others allocate meanwhile counts, too
			r, body := requestOf(t, c.procedure, c.body, true)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			code := answer(t, hc, r, body)
			runtime.ReadMemStats(&after)
			if code != c.want {
				t.Errorf("%s: %v", what, code)
			}
			took = min(took, after.TotalAlloc-before.TotalAlloc)
		}
		if took > c.most {
			t.Errorf("%s: %d bytes of memory", what, took)
		}
	}
	// What agents do is far below.
	k := newKeyPair(t)
	req := &sallyportv1.AnnounceRequest{TlsPublicKey: k.tlsPub, SshPublicKey: k.sshPub}
	id := agentID[:8]
	for i := range inventory.MaxResources {
		m := &sallyportv1.Resource{Kind: "db", Name: fmt.Sprintf("%s-%d", id, i), Protocol: "postgres", Labels: map[string]string{}}
		for j := range 64 {
			m.Labels[fmt.Sprint("l", j)] = "v"
		}
		req.Resources = append(req.Resources, m)
	}
	b, err := proto.Marshal(req)
	if err != nil {
		t.Fatal(err)
	}
	j, err := protojson.Marshal(req)
	if err != nil {
		t.Fatal(err)
	}
	bound := boundOf(announce)
	var bin, text sallyportv1.AnnounceRequest
	if err := (binaryCodec{bound.elements}).Unmarshal(b, &bin); err != nil || len(bin.GetResources()) != inventory.MaxResources || len(b) > bound.bytes {
		t.Errorf("%d bytes: %v", len(b), err)
	}
	if err := (jsonCodec{"json", bound.elements}).Unmarshal(j, &text); err != nil || len(text.GetResources()) != inventory.MaxResources || len(j) > bound.bytes {
		t.Errorf("%d bytes of JSON: %v", len(j), err)
	}
}

// TestElements: what is decoded was counted, whatever the bytes are.
func TestElements(t *testing.T) {
	d := (&sallyportv1.AnnounceRequest{}).ProtoReflect().Descriptor()
	label := []byte{'B', 4, 0x0a, 0, 0x12, 0}
	for what, c := range map[string]struct {
		in   []byte
		want int
	}{
		"nothing":         {nil, 0},
		"a resource":      {[]byte{0x0a, 0}, 1},
		"two":             {[]byte{0x0a, 0, 0x0a, 0}, 2},
		"with labels":     {append(append([]byte{0x0a, 12}, label...), label...), 3},
		"a key":           {[]byte{0x12, 1, 'k'}, 0},
		"unknown":         {[]byte{0x7a, 2, 0x0a, 0}, 0},
		"torn":            {[]byte{0x0a, 0, 0x0a, 9}, 1},
		"no message":      {[]byte{0x0a, 0, 0, 0}, 1},
		"a number for it": {[]byte{0x08, 1}, 1},
		"more than most":  {bytes.Repeat([]byte{0x0a, 0}, 100), 9},
	} {
		if got := elements(c.in, d, 8); got != c.want {
			t.Errorf("%s: %d, want %d", what, got, c.want)
		}
	}
}

// TestTurns: a host's large requests come in one after the other, and keep no other
// host waiting.
func TestTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var tt turns
		var in atomic.Int32
		end := make(chan struct{})
		h := tt.inTurn(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
			in.Add(1)
			<-end
			in.Add(-1)
		}))
		call := func(id, procedure string) *httptest.ResponseRecorder {
			rec := httptest.NewRecorder()
			r := httptest.NewRequest(http.MethodPost, procedure, nil)
			r.Header.Set("Content-Type", "application/proto")
			c := Caller{Identity: sallyport.Identity{Kind: sallyport.KindAgent, Name: id}}
			h.ServeHTTP(rec, r.WithContext(WithCaller(t.Context(), c)))
			return rec
		}
		var late [hostsAtOnce + 2]*httptest.ResponseRecorder
		for i := range late {
			go func() { late[i] = call("a", sallyportv1connect.HostServiceAnnounceProcedure) }()
		}
		synctest.Wait()
		if n := in.Load(); n != hostsAtOnce {
			t.Errorf("%d of %d are in", n, len(late))
		}
		go call("b", sallyportv1connect.HostServiceAnnounceProcedure)
		go call("a", sallyportv1connect.HostServiceAppendEventsProcedure)
		for range 9 {
			go call("a", sallyportv1connect.HostServiceWatchSnapshotProcedure)
		}
		synctest.Wait()
		if n := in.Load(); n != hostsAtOnce+11 {
			t.Errorf("%d are in with others", n)
		}
		time.Sleep(unaryTimeout)
		synctest.Wait()
		refused := 0
		for _, rec := range late {
			if rec != nil && rec.Code == http.StatusTooManyRequests && strings.Contains(rec.Body.String(), "resource_exhausted") {
				refused++
			}
		}
		if refused != len(late)-hostsAtOnce {
			t.Errorf("%d were refused", refused)
		}
		go call("a", sallyportv1connect.HostServiceAnnounceProcedure)
		synctest.Wait()
		close(end)
		synctest.Wait()
		if n := in.Load(); n != 0 || len(tt.callers) != 0 {
			t.Errorf("%d are in, and %d queues left", n, len(tt.callers))
		}
	})
}

// TestTurnsAreTaken: at the API's own door.
func TestTurnsAreTaken(t *testing.T) {
	w := the()
	c := Caller{Identity: sallyport.Identity{Kind: sallyport.KindAgent, Name: "takes-turns"}}
	gone, cancel := context.WithCancel(WithCaller(t.Context(), c))
	cancel()
	for _, p := range []string{sallyportv1connect.HostServiceAnnounceProcedure, sallyportv1connect.HostServiceAppendEventsProcedure, sallyportv1connect.HostServiceReportPresenceProcedure, sallyportv1connect.AdminServiceSearchEventsProcedure} {
		for range hostsAtOnce {
			leave, err := w.server.turns.take(t.Context(), turn{c.name(), p}, hostsAtOnce, 1)
			if err != nil {
				t.Fatal(err)
			}
			defer leave()
		}
		rec, r := httptest.NewRecorder(), httptest.NewRequest(http.MethodPost, p, nil)
		r.Header.Set("Content-Type", "application/proto")
		w.handler.ServeHTTP(rec, r.WithContext(gone))
		if !strings.Contains(rec.Body.String(), "resource_exhausted") {
			t.Errorf("%s: one more came in: %s", p, rec.Body)
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
	source := uuid.New() // of which other tests know nothing
	addr := mustAddr(fmt.Sprintf("[2001:db8:%x:%x::1]:1", source[:2], source[2:4]))
	k, from := newKeyPair(t), addr.String() // without a group's leading zeros
	c := sallyportv1connect.NewJoinServiceClient(inProcess{w.handler, Caller{Addr: addr}}.client(), base)
	began := time.Now()
	for range 5 * sourceBurst {
		if _, err := c.Join(context.Background(), connect.NewRequest(&sallyportv1.JoinRequest{Token: strings.Repeat("y", 40), Roles: []string{"agent"}, TlsPublicKey: k.tlsPub, SshPublicKey: k.sshPub})); err == nil {
			t.Fatal("joined")
		}
	}
	n, most := 0, sourceBurst+1+int(time.Since(began)/sourceEvery)
	for _, e := range w.events(t, "instance.join") {
		if e.Addr == from {
			n++
		}
	}
	if n == 0 || n > most {
		t.Errorf("%d of %d recorded, want %d at most", n, 5*sourceBurst, most)
	}
}
