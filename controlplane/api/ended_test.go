package api

import (
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/audit"
	"github.com/sallyport/sallyport/controlplane/ca"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
	"github.com/sallyport/sallyport/wire/sallyport/v1/sallyportv1connect"
)

// before are the cluster's authorities as they signed long ago: what lives for
// HostTTL ended two seconds before now.
func (w *world) before(t *testing.T) *ca.Keys {
	t.Helper()
	then := time.Now().Add(-ca.HostTTL - 2*time.Second)
	keys, err := ca.Open(t.Context(), ca.Config{Store: w.store, Sealer: w.sealer, Cluster: cluster, Now: func() time.Time { return then }})
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

// ended is a host's certificate that has ended, for the key of another one.
func (w *world) ended(t *testing.T, kind sallyport.IdentityKind, id string, key *tls.Certificate) *tls.Certificate {
	t.Helper()
	return ended509(t, key)(w.before(t).IssueHost(ca.HostRequest{Kind: kind, ID: id, TLSKey: publicOf(t, key)}))
}

func ended509(t *testing.T, key *tls.Certificate) func(ca.Certificates, error) *tls.Certificate {
	return func(c ca.Certificates, err error) *tls.Certificate {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return &tls.Certificate{Certificate: [][]byte{c.X509}, PrivateKey: key.PrivateKey}
	}
}

// publicOf is the public key of a certificate, PKIX DER.
func publicOf(t *testing.T, cert *tls.Certificate) []byte {
	t.Helper()
	return parse(t, cert.Certificate[0]).RawSubjectPublicKeyInfo
}

func renewal(tlsKey, sshKey []byte) *connect.Request[sallyportv1.RenewHostRequest] {
	return connect.NewRequest(&sallyportv1.RenewHostRequest{TlsPublicKey: tlsKey, SshPublicKey: sshKey})
}

// TestEndedHostReturns: a host that was off for longer than its certificate lived
// was refused for ever, its renewal as everything else.
func TestEndedHostReturns(t *testing.T) {
	w := the()
	ssh := newKeyPair(t).sshPub
	for _, kind := range []sallyport.IdentityKind{sallyport.KindAgent, sallyport.KindGateway} {
		id, cert := w.host(t, kind)
		ended := w.ended(t, kind, id, cert)
		resp, err := w.asHost(t, ended).RenewHost(t.Context(), renewal(publicOf(t, cert), ssh))
		if err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		fresh := &tls.Certificate{Certificate: [][]byte{resp.Msg.GetTlsCertificate()}, PrivateKey: cert.PrivateKey}
		if leaf := parse(t, fresh.Certificate[0]); resp.Msg.GetHostId() != id || !leaf.NotAfter.After(time.Now().Add(ca.HostTTL/2)) {
			t.Errorf("%s: a certificate of %s until %s", kind, resp.Msg.GetHostId(), leaf.NotAfter)
		}
		stream, err := w.asHost(t, fresh).WatchSnapshot(t.Context(), connect.NewRequest(&sallyportv1.WatchSnapshotRequest{}))
		if err != nil || !stream.Receive() {
			t.Errorf("%s: the new certificate is good for nothing: %v", kind, err)
		}
		stream.Close()
		want, found := parse(t, ended.Certificate[0]).NotAfter.UTC().Format(time.RFC3339), false
		for _, e := range w.events(t, audit.CertificateCreate) {
			found = found || e.User == string(kind)+":"+id && e.Fields["ended"] == want
		}
		if !found {
			t.Errorf("%s: not recorded as of a host whose certificate had ended", kind)
		}
	}
}

// TestEndedHostNothingElse: with a certificate that has ended a host calls nothing
// but its renewal, and hears why.
func TestEndedHostNothingElse(t *testing.T) {
	w := the()
	for _, kind := range []sallyport.IdentityKind{sallyport.KindAgent, sallyport.KindGateway} {
		id, cert := w.host(t, kind)
		d := byAuth(w.ended(t, kind, id, cert))
		hc := w.http(t, d)
		for p, m := range procedures() {
			name := string(m.Name())
			got := call(t, hc, d.base()+p, m.IsStreamingServer(), requestFor(name, id, id, "none"))
			want := connect.CodeUnauthenticated
			if name == "RenewHost" {
				want = connect.CodePermissionDenied // for no key at all
			}
			if got != want {
				t.Errorf("%s as %s: %v, want %v", p, kind, got, want)
			}
		}
		_, err := w.asHost(t, d.cert).Announce(t.Context(), connect.NewRequest(&sallyportv1.AnnounceRequest{}))
		if err == nil || !strings.Contains(err.Error(), "certificate has ended") {
			t.Errorf("%s: told %v", kind, err)
		}
		for _, e := range w.events(t, audit.AccessDenied) { // it may ask for years
			if e.User == string(kind)+":"+id && e.Fields["method"] != sallyportv1connect.HostServiceRenewHostProcedure {
				t.Errorf("recorded: %+v", e)
			}
		}
		// Nor does a gateway speak for visitors any more.
		speaking := visitor(d.cert, "192.0.2.7:1234")
		resp, err := w.http(t, speaking).Get(speaking.base() + "/")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusForbidden {
			t.Errorf("%s speaks for visitors: %s", kind, resp.Status)
		}
	}
}

// TestEndedHostRefused: the renewal is for a host that is of the cluster, is not
// locked, and holds the key with which it joined.
func TestEndedHostRefused(t *testing.T) {
	w := the()
	ssh := newKeyPair(t).sshPub
	other := newKeyPair(t)
	joined := func() (string, *tls.Certificate) { return w.host(t, sallyport.KindAgent) }
	for name, c := range map[string]struct {
		do   func(t *testing.T) (cert *tls.Certificate, key []byte)
		want string
	}{
		"removed": {func(t *testing.T) (*tls.Certificate, []byte) {
			id, cert := joined()
			if _, err := w.inventory.Remove(t.Context(), id, time.Now().Add(-time.Second)); err != nil { // so long ago that it is not named any more
				t.Fatal(err)
			}
			return w.ended(t, sallyport.KindAgent, id, cert), publicOf(t, cert)
		}, hostRemoved},
		"never joined": {func(t *testing.T) (*tls.Certificate, []byte) {
			cert := selfSigned(t, other)
			return w.ended(t, sallyport.KindAgent, uuid.NewString(), cert), publicOf(t, cert)
		}, hostRemoved},
		"another kind": {func(t *testing.T) (*tls.Certificate, []byte) {
			id, cert := joined()
			return w.ended(t, sallyport.KindGateway, id, cert), publicOf(t, cert)
		}, hostRemoved},
		"locked": {func(t *testing.T) (*tls.Certificate, []byte) {
			id, cert := joined()
			w.lock(t, `{"server_id":"`+id+`"}`)
			return w.ended(t, sallyport.KindAgent, id, cert), publicOf(t, cert)
		}, "you are locked"},
		"a certificate for another key": {func(t *testing.T) (*tls.Certificate, []byte) {
			id, _ := joined()
			cert := selfSigned(t, other)
			return w.ended(t, sallyport.KindAgent, id, cert), publicOf(t, cert)
		}, "only for the key with which it joined"},
		"asked for another key": {func(t *testing.T) (*tls.Certificate, []byte) {
			id, cert := joined()
			return w.ended(t, sallyport.KindAgent, id, cert), other.tlsPub
		}, "only for the key with which it joined"},
	} {
		t.Run(name, func(t *testing.T) {
			cert, key := c.do(t)
			_, err := w.asHost(t, cert).RenewHost(t.Context(), renewal(key, ssh))
			codeIs(t, "renewal", err, connect.CodePermissionDenied)
			if err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("told %v, want %q", err, c.want)
			}
			uri := parse(t, cert.Certificate[0]).URIs[0].Path
			if !slices.ContainsFunc(w.events(t, audit.AccessDenied), func(e sallyport.Event) bool {
				kind, id, _ := strings.Cut(strings.TrimPrefix(uri, "/"), "/")
				return e.User == kind+":"+id && e.Fields["method"] == sallyportv1connect.HostServiceRenewHostProcedure
			}) && c.want != hostRemoved { // who has no record may have any name
				t.Error("not recorded")
			}
		})
	}
}

// TestEndedLongAgo: the renewal is possible for a year.
func TestEndedLongAgo(t *testing.T) {
	w := the()
	id, cert := w.host(t, sallyport.KindAgent)
	key := publicOf(t, cert)
	for after, want := range map[time.Duration]connect.Code{endedFor - time.Hour: 0, endedFor + time.Hour: connect.CodePermissionDenied} {
		s, err := New(t.Context(), Config{Store: w.store, CA: w.keys, Users: w.users, Tokens: w.tokens, Inventory: w.inventory, Audit: w.log,
			Version: "1.2.3", PublicAddress: "gw.example.com:443", SecondFactor: "optional", Log: slog.New(slog.DiscardHandler),
			Now: func() time.Time { return time.Now().Add(after) }})
		if err != nil {
			t.Fatal(err)
		}
		ctx := WithCaller(t.Context(), Caller{EndedKey: key,
			Identity: sallyport.Identity{Kind: sallyport.KindAgent, Name: id, Cluster: cluster, NotAfter: time.Now()}})
		_, err = hostService{s}.RenewHost(ctx, renewal(key, newKeyPair(t).sshPub))
		if got := code0(refusal(err)); got != want {
			t.Errorf("%v after the end: %v", after, err)
		}
	}
}

// code0 is 0 for no error.
func code0(err error) connect.Code {
	if err == nil {
		return 0
	}
	return connect.CodeOf(err)
}

// TestEndedOfOthers: of all certificates that have ended only those of agents and
// gateways are looked at.
func TestEndedOfOthers(t *testing.T) {
	w := the()
	keys, k := w.before(t), newKeyPair(t)
	own := ended509(t, k.with(nil))
	user := sallyport.Identity{Kind: sallyport.KindUser, Name: "alice", Cluster: cluster, Roles: []string{"editor"}}
	agent := own(keys.IssueHost(ca.HostRequest{Kind: sallyport.KindAgent, ID: uuid.NewString(), TLSKey: k.tlsPub}))
	tmpl := parse(t, agent.Certificate[0])
	for name, cert := range map[string]*tls.Certificate{
		"user":       own(keys.IssueUser(ca.UserRequest{Identity: user, TLSKey: k.tlsPub, TTL: time.Minute})),
		"auth":       own(keys.IssueHost(ca.HostRequest{Kind: sallyport.KindAuth, ID: uuid.NewString(), TLSKey: k.tlsPub})),
		"resource":   own(keys.IssueResource(k.tlsPub, keys.ServerName(sallyport.KindDatabase, "orders"))),
		"another CA": k.with(sign(t, &x509.Certificate{SerialNumber: tmpl.SerialNumber, NotBefore: tmpl.NotBefore, NotAfter: tmpl.NotAfter, URIs: tmpl.URIs, ExtKeyUsage: tmpl.ExtKeyUsage, KeyUsage: tmpl.KeyUsage}, template("another"), k)),
	} {
		if reached(w, byAuth(cert)) {
			t.Errorf("%s: got through", name)
		}
	}
	if !reached(w, byAuth(agent)) {
		t.Error("agent: did not get through")
	}
}

// TestEndedHostIsStranger: who shows a certificate that has ended has a stranger's
// place and time.
func TestEndedHostIsStranger(t *testing.T) {
	w := the()
	id, cert := w.host(t, sallyport.KindAgent)
	ended := w.ended(t, sallyport.KindAgent, id, cert)
	l := w.listener(false)
	serveInBubble(t, l, func(t *testing.T, p *pipes) {
		mute := handshake(t, w, p, protocolAuth, ended)
		defer mute.Close()
		synctest.Wait()
		if len(l.callers) != 0 || l.strangers.Len() != 1 {
			t.Errorf("%d callers and %d strangers", len(l.callers), l.strangers.Len())
		}
		if took := ends(mute); took > joinTimeout {
			t.Errorf("closed after %v, want %v", took, joinTimeout)
		}
	})
}
