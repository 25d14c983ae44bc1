package access

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/identity"
)

// talk finishes the handshake from the client's side, reads to the end, and
// returns what the client was told.
func talk(tc *tls.Conn) error {
	defer tc.Close()
	if err := tc.Handshake(); err != nil {
		return err
	}
	_, err := io.ReadAll(tc)
	return err
}

// alerted says that an error is a TLS alert from the other side.
func alerted(err error) bool {
	var alert tls.AlertError
	return err != nil && (errors.As(err, &alert) || strings.Contains(err.Error(), "remote error: tls:"))
}

const (
	served  = "served"
	refused = "refused" // by a reason in the protocol
	unknown = "alert"
)

// TestVerdicts: certificates times resources.
func TestVerdicts(t *testing.T) {
	w := newWorld(t)
	foreign := newAuthority(t, "user CA") // same name, other key
	expired := func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
	}
	early := func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = time.Now().Add(time.Hour), time.Now().Add(2*time.Hour)
	}
	usage := func(u ...x509.ExtKeyUsage) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.ExtKeyUsage = u }
	}
	with := func(change func(*sallyport.Identity)) sallyport.Identity {
		id := user("alice")
		change(&id)
		return id
	}
	host := func(kind sallyport.IdentityKind, name string) sallyport.Identity {
		return sallyport.Identity{Kind: kind, Name: name, Cluster: cluster}
	}
	web := func(gateway string) sallyport.Identity {
		return with(func(id *sallyport.Identity) {
			id.Usage, id.BoundTo = sallyport.UsageWeb, "spiffe://gw.test/gateway/"+gateway
		})
	}
	otherCluster := with(func(id *sallyport.Identity) { id.Cluster = "other.test" })

	tests := []struct {
		name          string
		ca            *authority
		id            sallyport.Identity
		change        func(*x509.Certificate)
		node, db, app string
		words         string
	}{
		{name: "user", ca: w.userCA, id: user("alice"), node: served, db: served, app: served},
		{name: "expired", ca: w.userCA, id: user("alice"), change: expired, node: refused, db: refused, app: refused, words: "expired at"},
		{name: "not yet valid", ca: w.userCA, id: user("alice"), change: early, node: refused, db: refused, app: refused, words: "not valid before"},
		{name: "pinned here", ca: w.userCA, id: with(func(id *sallyport.Identity) { id.PinnedAddr = "192.0.2.7" }), node: served, db: served, app: served},
		{name: "pinned elsewhere", ca: w.userCA, id: with(func(id *sallyport.Identity) { id.PinnedAddr = "192.0.2.8" }), node: refused, db: refused, app: refused, words: "bound to another address"},
		{name: "locked", ca: w.userCA, id: user("mallory"), node: refused, db: refused, app: refused, words: `lock targeting User:"mallory" is in force: out`},
		{name: "foreign CA of the same name", ca: foreign, id: user("alice"), node: unknown, db: unknown, app: unknown},
		{name: "foreign and expired", ca: foreign, id: user("alice"), change: expired, node: unknown, db: unknown, app: unknown},
		{name: "A14 other cluster", ca: w.userCA, id: otherCluster, node: unknown, db: unknown, app: unknown},
		{name: "A14 two clusters", ca: w.userCA, id: otherCluster, change: func(c *x509.Certificate) {
			c.URIs = []*url.URL{identity.URI(sallyport.KindUser, cluster, "alice")}
		}, node: unknown, db: unknown, app: unknown},
		{name: "A67 user by the host CA", ca: w.hostCA, id: user("alice"), node: unknown, db: unknown, app: unknown},
		{name: "A67 agent by the host CA", ca: w.hostCA, id: host(sallyport.KindAgent, agentID), node: unknown, db: unknown, app: unknown},
		{name: "A67 auth by the host CA", ca: w.hostCA, id: host(sallyport.KindAuth, "1"), node: unknown, db: unknown, app: unknown},
		{name: "A67 agent by the user CA", ca: w.userCA, id: host(sallyport.KindAgent, agentID), node: unknown, db: unknown, app: unknown},
		{name: "A67 gateway by the user CA", ca: w.userCA, id: host(sallyport.KindGateway, gatewayID), node: unknown, db: unknown, app: unknown},
		{name: "this gateway", ca: w.hostCA, id: host(sallyport.KindGateway, gatewayID), node: served, db: unknown, app: unknown},
		{name: "another gateway", ca: w.hostCA, id: host(sallyport.KindGateway, "other"), node: unknown, db: unknown, app: unknown},
		{name: "A67 agent with this gateway's id", ca: w.hostCA, id: host(sallyport.KindAgent, gatewayID), node: unknown, db: unknown, app: unknown},
		{name: "this gateway, expired", ca: w.hostCA, id: host(sallyport.KindGateway, gatewayID), change: expired, node: unknown, db: unknown, app: unknown},
		{name: "for servers", ca: w.userCA, id: user("alice"), change: usage(x509.ExtKeyUsageServerAuth), node: unknown, db: unknown, app: unknown},
		{name: "for nothing in particular", ca: w.userCA, id: user("alice"), change: usage(), node: unknown, db: unknown, app: unknown},
		{name: "for anything", ca: w.userCA, id: user("alice"), change: usage(x509.ExtKeyUsageAny), node: unknown, db: unknown, app: unknown},
		{name: "without identity", ca: w.userCA, id: user("alice"), change: func(c *x509.Certificate) { c.ExtraExtensions = nil }, node: unknown, db: unknown, app: unknown},
		{name: "with a host's name", ca: w.userCA, id: user("alice"), change: func(c *x509.Certificate) { c.DNSNames = []string{"orders.db.gw.test"} }, node: unknown, db: unknown, app: unknown},
		{name: "web, by its gateway", ca: w.userCA, id: web(gatewayID), node: refused, db: refused, app: served, words: "web applications only"},
		{name: "web, stolen", ca: w.userCA, id: web("other"), node: refused, db: refused, app: refused, words: "the gateway that holds it"},
	}
	w.snap.change(func(t *sallyport.Trust) {
		t.Locks = []sallyport.Lock{
			{Target: sallyport.LockTarget{User: "mallory"}, Message: "out"},
			{Target: sallyport.LockTarget{User: "alice"}, Expires: time.Now().Add(-time.Hour).Unix()},
			{Target: sallyport.LockTarget{User: "alice", Role: "not hers"}},
			{Target: sallyport.LockTarget{}},
		}
	})
	calls := []call{
		{kind: sallyport.KindNode, name: "web-1", alpn: []string{"sallyport-ssh/1"}},
		{kind: sallyport.KindDatabase, name: "orders", alpn: []string{"postgresql"}},
		{kind: sallyport.KindApp, name: "grafana", alpn: []string{"http/1.1"}},
	}
	for _, tt := range tests {
		cert := tt.ca.issue(t, tt.id, tt.change)
		for i, want := range []string{tt.node, tt.db, tt.app} {
			c := calls[i]
			c.cert = &cert
			t.Run(tt.name+" to "+string(c.kind), func(t *testing.T) {
				w.spool.events = nil
				tc, done := w.dial(t.Context(), c, nil)
				told := talk(tc)
				o := <-done
				if got := verdictOf(o); got != want {
					t.Fatalf("%s, want %s (%v)", got, want, o.err)
				}
				switch want {
				case unknown:
					if !alerted(told) || o.refused != "certificate" || o.up {
						t.Errorf("told %v, refused %q, up %v", told, o.refused, o.up)
					}
					if len(w.spool.codes()) != 0 {
						t.Errorf("a stranger wrote to the audit log: %v", w.spool.codes())
					}
				case refused:
					if told != nil || !o.up {
						t.Errorf("told %v, up %v", told, o.up)
					}
					if fact := o.candidate.Refusal.Fact; !strings.Contains(fact, tt.words) && tt.words != "web applications only" {
						t.Errorf("refused with %q, want %q", fact, tt.words)
					}
					if len(w.spool.codes()) != 1 {
						t.Errorf("audited %v, want one denial", w.spool.codes())
					}
				case served:
					if told != nil || o.candidate.Identity.Name != tt.id.Name || o.candidate.ALPN != c.alpn[0] {
						t.Errorf("told %v, candidate %+v", told, o.candidate)
					}
				}
			})
		}
	}
}

func verdictOf(o outcome) string {
	switch {
	case o.candidate == nil:
		return unknown
	case o.candidate.Refusal != nil:
		return refused
	}
	return served
}

// TestLongChain: as many certificates as a leaf and our intermediates have are
// looked at, and no more.
func TestLongChain(t *testing.T) {
	w := newWorld(t)
	cert := w.alice()
	for len(cert.Certificate) <= maxChain {
		cert.Certificate = append(cert.Certificate, w.userCA.cert.Raw)
		want := served
		if len(cert.Certificate) > maxChain {
			want = unknown
		}
		tc, done := w.dial(t.Context(), call{kind: sallyport.KindTCP, name: "echo", cert: &cert}, nil)
		told := talk(tc)
		if o := <-done; verdictOf(o) != want || alerted(told) != (want == unknown) {
			t.Errorf("%d certificates: %s, told %v (%v)", len(cert.Certificate), verdictOf(o), told, o.err)
		}
	}
}

func TestNoCertificate(t *testing.T) {
	w := newWorld(t)
	tc, done := w.dial(t.Context(), call{kind: sallyport.KindTCP, name: "echo"}, nil)
	if err := talk(tc); !alerted(err) {
		t.Errorf("told %v", err)
	}
	if o := <-done; verdictOf(o) != unknown {
		t.Errorf("served %+v", o.candidate)
	}
	if n := w.door.Refused()["handshake"]; n != 1 {
		t.Errorf("counted %v", w.door.Refused())
	}
}

func TestStaleSnapshot(t *testing.T) {
	w := newWorld(t)
	w.snap.err = &sallyport.Problem{Kind: sallyport.ErrStaleSnapshot, Fact: "no contact with auth since Monday"}
	cert := w.alice()
	c := call{kind: sallyport.KindTCP, name: "echo", cert: &cert}
	tc, done := w.dial(t.Context(), c, nil)
	if err := talk(tc); err != nil {
		t.Error(err)
	}
	o := <-done
	if verdictOf(o) != refused || o.candidate.Refusal.Fact != "no contact with auth since Monday" {
		t.Errorf("got %+v", o.candidate)
	}
	w.snap.trust = nil // never any contact: nobody can be told from anybody
	tc, done = w.dial(t.Context(), c, nil)
	if err := talk(tc); !alerted(err) {
		t.Errorf("told %v", err)
	}
	if o := <-done; verdictOf(o) != unknown {
		t.Errorf("got %+v", o.candidate)
	}
}

// TestA06_NotThisAgents: whatever frame and hello name, an agent answers only
// for what it has been assigned, and only when both name the same.
func TestA06_NotThisAgents(t *testing.T) {
	w := newWorld(t)
	w.serve(sallyport.Resource{Kind: sallyport.KindDatabase, Name: "users", AgentID: agentID}, "users")
	w.serve(sallyport.Resource{Kind: sallyport.KindTCP, Name: "orders", AgentID: agentID}, "orders")
	w.known["db/unsigned"] = sallyport.Resource{Kind: sallyport.KindDatabase, Name: "unsigned"} // configured, not assigned
	cert := w.alice()
	tests := []struct {
		name string
		call call
		ok   bool
	}{
		{"own", call{kind: sallyport.KindDatabase, name: "orders"}, true},
		{"own, in capitals", call{kind: sallyport.KindDatabase, name: "orders", sni: "Orders.DB.gw.test"}, true},
		{"node by its id", call{kind: sallyport.KindNode, name: agentID, alpn: []string{"sallyport-ssh/1"}}, true},
		{"unknown", call{kind: sallyport.KindDatabase, name: "payroll"}, false},
		{"configured, not assigned", call{kind: sallyport.KindDatabase, name: "unsigned"}, false},
		{"frame names another", call{kind: sallyport.KindDatabase, name: "orders", sni: "echo.tcp.gw.test"}, false},
		{"frame names another of its kind", call{kind: sallyport.KindDatabase, name: "orders", sni: "users.db.gw.test"}, false},
		{"frame names another kind", call{kind: sallyport.KindTCP, name: "orders", sni: "orders.db.gw.test"}, false},
		{"other cluster", call{kind: sallyport.KindDatabase, name: "orders", sni: "orders.db.other.test"}, false},
		{"deeper name", call{kind: sallyport.KindDatabase, name: "orders", sni: "x.orders.db.gw.test"}, false},
		{"the cluster itself", call{kind: sallyport.KindDatabase, name: "orders", sni: "gw.test"}, false},
		{"address", call{kind: sallyport.KindDatabase, name: "orders", change: func(c *tls.Config) { c.ServerName, c.InsecureSkipVerify = "192.0.2.1", true }}, false},
		{"none", call{kind: sallyport.KindDatabase, name: "orders", change: func(c *tls.Config) { c.ServerName, c.InsecureSkipVerify = "", true }}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.call.cert = &cert
			tc, done := w.dial(t.Context(), tt.call, nil)
			told := talk(tc)
			o := <-done
			if (o.candidate != nil) != tt.ok {
				t.Fatalf("served %v, want %v: %v", o.candidate != nil, tt.ok, o.err)
			}
			if tt.ok {
				return
			}
			if told == nil || !strings.Contains(told.Error(), "unrecognized name") || o.refused != "name" {
				t.Errorf("told %v, refused %q", told, o.refused)
			}
		})
	}
}

// TestA62_ALPN: every protocol id times every kind of resource.
func TestA62_ALPN(t *testing.T) {
	w := newWorld(t)
	cert := w.alice()
	all := []string{"", "sallyport-ssh/1", "sallyport-db/1", "postgresql", "h2", "http/1.1", "http/1.0", "sallyport-tcp/1",
		"sallyport-desktop/1", "sallyport-auth/1", "sallyport-join/1", "sallyport-tunnel/1", "acme-tls/1", "h2c", "h3", "imap", "made-up"}
	may := map[sallyport.Kind][]string{
		sallyport.KindNode:     {"sallyport-ssh/1"},
		sallyport.KindDatabase: {"", "sallyport-db/1", "postgresql"},
		sallyport.KindKube:     {"", "h2", "http/1.1"},
		sallyport.KindApp:      {"h2", "http/1.1"},
		sallyport.KindTCP:      {"", "sallyport-tcp/1", "postgresql", "imap", "made-up"},
		sallyport.KindDesktop:  {"", "sallyport-desktop/1", "postgresql", "imap", "made-up"},
	}
	for _, r := range resources {
		for _, id := range all {
			c := call{kind: r.Kind, name: r.Name, cert: &cert}
			if id != "" {
				c.alpn = []string{id}
			}
			want := false
			for _, m := range may[r.Kind] {
				want = want || m == id
			}
			tc, done := w.dial(t.Context(), c, nil)
			told := talk(tc)
			o := <-done
			if (o.candidate != nil) != want {
				t.Errorf("%s with %q: served %v, want %v (%v)", r.Kind, id, o.candidate != nil, want, o.err)
				continue
			}
			if want && o.candidate.ALPN != id {
				t.Errorf("%s with %q: negotiated %q", r.Kind, id, o.candidate.ALPN)
			}
			if !want && (told == nil || !strings.Contains(told.Error(), "no application protocol")) {
				t.Errorf("%s with %q: told %v", r.Kind, id, told)
			}
		}
	}
	// Several at once: the one that fits, whatever its place.
	tc, done := w.dial(t.Context(), call{kind: sallyport.KindNode, name: "web-1", cert: &cert, alpn: []string{"h2", "sallyport-ssh/1"}}, nil)
	if err := talk(tc); err != nil {
		t.Error(err)
	}
	if o := <-done; o.candidate == nil || o.candidate.ALPN != "sallyport-ssh/1" {
		t.Errorf("got %+v", o)
	}
}

// TestA60_NoTickets: nothing of one connection opens another.
func TestA60_NoTickets(t *testing.T) {
	w := newWorld(t)
	cert := w.alice()
	cache := tls.NewLRUClientSessionCache(4)
	c := call{kind: sallyport.KindTCP, name: "echo", cert: &cert, change: func(cfg *tls.Config) { cfg.ClientSessionCache = cache }}
	for range 2 {
		tc, done := w.dial(t.Context(), c, nil)
		if err := talk(tc); err != nil {
			t.Fatal(err)
		}
		if tc.ConnectionState().DidResume {
			t.Error("resumed")
		}
		<-done
	}
	if _, ok := cache.Get("echo.tcp.gw.test"); ok {
		t.Error("a ticket was issued")
	}
}

func TestOldTLS(t *testing.T) {
	w := newWorld(t)
	cert := w.alice()
	tc, done := w.dial(t.Context(), call{kind: sallyport.KindTCP, name: "echo", cert: &cert,
		change: func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }}, nil)
	if err := talk(tc); !alerted(err) {
		t.Errorf("told %v", err)
	}
	if o := <-done; o.candidate != nil {
		t.Error("served by TLS 1.2")
	}
}

func TestAdmit(t *testing.T) {
	w := newWorld(t)
	ok := user("alice")
	ok.NotBefore, ok.NotAfter = time.Now().Add(-time.Minute), time.Now().Add(time.Minute)
	tests := []struct {
		name   string
		change func(*sallyport.Identity)
		addr   string
		words  string // "": admitted
	}{
		{"as is", func(*sallyport.Identity) {}, "192.0.2.7:1", ""},
		{"pinned, 4 in 6", func(id *sallyport.Identity) { id.PinnedAddr = "192.0.2.7" }, "[::ffff:192.0.2.7]:1", ""},
		{"pinned, zone", func(id *sallyport.Identity) { id.PinnedAddr = "fe80::1" }, "[fe80::1%eth0]:1", ""},
		{"pinned, unknown address", func(id *sallyport.Identity) { id.PinnedAddr = "192.0.2.7" }, "", "another address"},
		{"expires now", func(id *sallyport.Identity) { id.NotAfter = time.Now() }, "192.0.2.7:1", "expired"},
		{"gateway", func(id *sallyport.Identity) { id.Kind = sallyport.KindGateway }, "192.0.2.7:1", "does not name a user"},
		{"local admin", func(id *sallyport.Identity) { id.Kind = sallyport.KindLocalAdmin }, "192.0.2.7:1", "does not name a user"},
		{"other cluster", func(id *sallyport.Identity) { id.Cluster = "other.test" }, "192.0.2.7:1", "another cluster"},
		{"locked by role", func(id *sallyport.Identity) { id.Roles = []string{"access", "bad"} }, "192.0.2.7:1", "Role"},
		{"locked by device", func(id *sallyport.Identity) { id.MFA = "lost" }, "192.0.2.7:1", "MFADevice"},
		{"locked by request", func(id *sallyport.Identity) { id.ActiveRequests = []string{"r1"} }, "192.0.2.7:1", "AccessRequest"},
	}
	w.snap.change(func(t *sallyport.Trust) {
		t.Locks = []sallyport.Lock{
			{Target: sallyport.LockTarget{Role: "bad"}}, {Target: sallyport.LockTarget{MFA: "lost"}},
			{Target: sallyport.LockTarget{Request: "r1"}}, {Target: sallyport.LockTarget{Login: "root"}},
			{Target: sallyport.LockTarget{ServerID: "another agent"}},
		}
	})
	for _, tt := range tests {
		id := ok
		tt.change(&id)
		var addr netip.AddrPort
		if tt.addr != "" {
			addr = netip.MustParseAddrPort(tt.addr)
		}
		p := w.door.Admit(id, addr)
		if (p == nil) != (tt.words == "") || p != nil && !strings.Contains(p.Fact, tt.words) {
			t.Errorf("%s: %v, want %q", tt.name, p, tt.words)
		}
	}
	w.snap.change(func(t *sallyport.Trust) {
		t.Locks = []sallyport.Lock{{Target: sallyport.LockTarget{ServerID: agentID}}}
	})
	if p := w.door.Admit(ok, clientAddr); p == nil || !strings.Contains(p.Fact, "ServerID") {
		t.Errorf("a locked agent: %v", p)
	}
}
