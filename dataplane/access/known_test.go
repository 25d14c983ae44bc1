package access

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"math/big"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/identity"
)

// intermediate is a CA below a.
func (a *authority) intermediate(t testing.TB, notAfter time.Time) *authority {
	t.Helper()
	key := newKey(t)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "between", Organization: []string{cluster}},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: notAfter,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{cert, key}
}

// verdictOf connects once and says what became of it.
func (w *world) verdictOf(c call) string {
	w.t.Helper()
	tc, done := w.dial(w.t.Context(), c, nil)
	err := talk(tc)
	o := <-done
	switch {
	case o.candidate == nil && alerted(err):
		return unknown
	case o.candidate == nil:
		return "lost: " + err.Error()
	case o.candidate.Refusal != nil:
		return refused
	}
	return served
}

func (k *known) len() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.users.new) + len(k.users.old)
}

// later sets the door's clock. It is read by visits that begin afterwards.
func (w *world) later(d time.Duration) {
	w.door.Now = func() time.Time { return time.Now().Add(d) }
}

// again parses a certificate anew, as a newer snapshot does.
func again(t testing.TB, c *x509.Certificate) *x509.Certificate {
	t.Helper()
	out, err := x509.ParseCertificate(c.Raw)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestKnownUserIsJudged: a user whose certificate is known is held to
// everything that a new one is held to.
func TestKnownUserIsJudged(t *testing.T) {
	pinned := func(id *sallyport.Identity) { id.PinnedAddr = clientAddr.Addr().String() }
	web := func(id *sallyport.Identity) {
		id.Usage, id.BoundTo = sallyport.UsageWeb, identity.URI(sallyport.KindGateway, cluster, gatewayID).String()
	}
	lock := func(l sallyport.LockTarget) func(*world) {
		return func(w *world) { w.snap.change(func(t *sallyport.Trust) { t.Locks = []sallyport.Lock{{Target: l}} }) }
	}
	cas := func(list func(*world) []*x509.Certificate) func(*world) {
		return func(w *world) { w.snap.change(func(t *sallyport.Trust) { t.UserCAs = list(w) }) }
	}
	tests := []struct {
		name   string
		id     func(*sallyport.Identity)
		change func(*world) // between the two calls
		second func(*call)
		want   string
	}{
		{name: "the same again", want: served},
		{name: "a newer view, the same CA", want: served, change: cas(func(w *world) []*x509.Certificate { return []*x509.Certificate{again(t, w.userCA.cert)} })},
		{name: "locked", want: refused, change: lock(sallyport.LockTarget{User: "alice"})},
		{name: "locked by device", want: refused, change: lock(sallyport.LockTarget{MFA: "device-1"})},
		{name: "locked by role", want: refused, change: lock(sallyport.LockTarget{Role: "access"})},
		{name: "expired", want: refused, change: func(w *world) { w.later(2 * time.Hour) }},
		{name: "expired, and the CA too", want: refused, change: func(w *world) { w.later(20000 * time.Hour) }},
		{name: "the clock goes back", want: refused, change: func(w *world) { w.later(-2 * time.Hour) }},
		{name: "a view that is too old", want: refused, change: func(w *world) {
			w.snap.grow(&sallyport.Problem{Kind: sallyport.ErrStaleSnapshot, Fact: "no contact"})
		}},
		{name: "pinned, and elsewhere", want: refused, id: pinned, second: func(c *call) { c.client = netip.MustParseAddrPort("192.0.2.8:50000") }},
		{name: "a browser's, by another gateway", want: refused, id: web, second: func(c *call) { c.gateway = "9a7e0000-0000-4000-8000-000000000002" }},
		{name: "a browser's, for another protocol", want: refused, id: web, second: func(c *call) { c.kind, c.name, c.alpn = sallyport.KindTCP, "echo", nil }},
		{name: "no CA", want: unknown, change: cas(func(*world) []*x509.Certificate { return nil })},
		{name: "another CA of the same name", want: unknown, change: cas(func(*world) []*x509.Certificate {
			return []*x509.Certificate{newAuthority(t, "user CA").cert}
		})},
		{name: "the host CA as user CA", want: unknown, change: cas(func(w *world) []*x509.Certificate { return []*x509.Certificate{w.hostCA.cert} })},
		{name: "a view of another cluster", want: unknown, change: func(w *world) {
			w.snap.change(func(t *sallyport.Trust) { t.Cluster = "other.test" })
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			id := user("alice")
			if tt.id != nil {
				tt.id(&id)
			}
			cert := w.userCA.issue(t, id, nil)
			c := call{kind: sallyport.KindApp, name: "grafana", alpn: []string{"h2"}, cert: &cert}
			if got := w.verdictOf(c); got != served || w.door.known.len() != 1 {
				t.Fatalf("first: %s, %d known", got, w.door.known.len())
			}
			if tt.change != nil {
				tt.change(w)
			}
			if tt.second != nil {
				tt.second(&c)
			}
			if got := w.verdictOf(c); got != tt.want {
				t.Errorf("%s, want %s", got, tt.want)
			}
		})
	}
}

// TestKnownPath: a leaf that was checked needs no chain the next time, until
// something above it ends or the CAs are others.
func TestKnownPath(t *testing.T) {
	w := newWorld(t)
	between := w.userCA.intermediate(t, time.Now().Add(30*time.Minute))
	bare := between.issue(t, user("alice"), nil) // for an hour
	whole := bare
	whole.Certificate = [][]byte{bare.Certificate[0], between.cert.Raw}
	verdict := func(cert *tls.Certificate) string {
		return w.verdictOf(call{kind: sallyport.KindTCP, name: "echo", cert: cert})
	}
	for _, step := range []struct {
		name   string
		change func()
		cert   *tls.Certificate
		want   string
	}{
		{"the leaf alone", nil, &bare, unknown},
		{"with its chain", nil, &whole, served},
		{"known", nil, &bare, served},
		{"known, in a newer view", func() {
			w.snap.change(func(t *sallyport.Trust) { t.UserCAs = []*x509.Certificate{again(w.t, w.userCA.cert)} })
		}, &bare, served},
		{"the CA between has expired", func() { w.later(45 * time.Minute) }, &bare, unknown},
		{"the same, with the chain", nil, &whole, unknown},
		{"before the CA between", func() { w.later(-90 * time.Minute) }, &bare, unknown},
		{"now again", func() { w.later(0) }, &bare, served},
		{"a second CA", func() {
			w.snap.change(func(t *sallyport.Trust) {
				t.UserCAs = []*x509.Certificate{w.userCA.cert, newAuthority(w.t, "user CA").cert}
			})
		}, &bare, unknown},
		{"the same, with the chain", nil, &whole, served},
		{"known once more", nil, &bare, served},
	} {
		if step.change != nil {
			step.change()
		}
		if got := verdict(step.cert); got != step.want {
			t.Errorf("%s: %s, want %s", step.name, got, step.want)
		}
	}
}

// TestKnownIsNoKey: who shows a certificate that is known and has not its key
// is a stranger.
func TestKnownIsNoKey(t *testing.T) {
	w := newWorld(t)
	cert := w.alice()
	c := call{kind: sallyport.KindTCP, name: "echo", cert: &cert}
	if got := w.verdictOf(c); got != served {
		t.Fatal(got)
	}
	stolen := tls.Certificate{Certificate: cert.Certificate, PrivateKey: newKey(t)} // no Leaf: the client does not compare
	c.cert = &stolen
	if got := w.verdictOf(c); got != unknown {
		t.Errorf("without the key: %s", got)
	}
}

// TestStrangersAreNotKnown: only what was verified is remembered.
func TestStrangersAreNotKnown(t *testing.T) {
	w := newWorld(t)
	alice := w.alice()
	if got := w.verdictOf(call{kind: sallyport.KindTCP, name: "echo", cert: &alice}); got != served {
		t.Fatal(got)
	}
	foreign := newAuthority(t, "user CA") // same name, other key
	host := func(kind sallyport.IdentityKind, name string) sallyport.Identity {
		return sallyport.Identity{Kind: kind, Name: name, Cluster: cluster}
	}
	other := user("alice")
	other.Cluster = "other.test"
	for name, cert := range map[string]tls.Certificate{
		"foreign CA":          foreign.issue(t, user("alice"), nil),
		"foreign, same leaf":  foreign.issue(t, user("alice"), func(c *x509.Certificate) { *c = *like(c, alice.Leaf) }),
		"no client":           w.userCA.issue(t, user("alice"), func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }),
		"another cluster":     w.userCA.issue(t, other, nil),
		"agent by a user CA":  w.userCA.issue(t, host(sallyport.KindAgent, agentID), nil),
		"user by the host CA": w.hostCA.issue(t, user("alice"), nil),
		"this gateway":        w.hostCA.issue(t, host(sallyport.KindGateway, gatewayID), nil),
	} {
		for range 2 {
			want := unknown
			c := call{kind: sallyport.KindTCP, name: "echo", cert: &cert}
			if name == "this gateway" { // where a gateway may come in
				c.kind, c.name, c.alpn, want = sallyport.KindNode, "web-1", []string{"sallyport-ssh/1"}, served
			}
			if got := w.verdictOf(c); got != want {
				t.Errorf("%s: %s, want %s", name, got, want)
			}
		}
		if n := w.door.known.len(); n != 1 {
			t.Errorf("%s: %d known", name, n)
		}
	}
}

// like is a template with all that a leaf says of itself, serial included.
func like(c, leaf *x509.Certificate) *x509.Certificate {
	out := *c
	out.SerialNumber, out.NotBefore, out.NotAfter = leaf.SerialNumber, leaf.NotBefore, leaf.NotAfter
	return &out
}

func TestKnownIsBounded(t *testing.T) {
	var k known
	cas := []*x509.Certificate{{Raw: []byte("a CA")}}
	now := time.Now()
	leaf := func(i int) *x509.Certificate {
		return &x509.Certificate{Raw: binary.BigEndian.AppendUint32(nil, uint32(i)), NotBefore: now, NotAfter: now}
	}
	for i := range 3 * generation {
		k.add([]*x509.Certificate{leaf(i), cas[0]}, cas, sallyport.Identity{})
		if n := k.len(); n > 2*generation {
			t.Fatalf("%d known", n)
		}
	}
	cas[0].NotBefore, cas[0].NotAfter = now.Add(-time.Hour), now.Add(time.Hour)
	k.add([]*x509.Certificate{leaf(1), cas[0]}, cas, sallyport.Identity{Name: "alice"})
	for at, want := range map[time.Duration]bool{-1: false, 0: true, 1: false} {
		if id, ok := k.find(leaf(1), cas, now.Add(at)); ok != want || ok && id.Name != "alice" {
			t.Errorf("%s after its only moment: %v", at, ok)
		}
	}
	if _, ok := k.find(leaf(1), nil, now); ok {
		t.Error("known without a CA")
	}
}

// TestKnownTogether: connections under an old and a new view at once never let
// in who the newer does not know.
func TestKnownTogether(t *testing.T) {
	w := newWorld(t)
	w.door.setUp()
	second := newAuthority(t, "user CA")
	cas := [][]*x509.Certificate{{w.userCA.cert}, {second.cert}}
	certs := []tls.Certificate{w.alice(), second.issue(t, user("bob"), nil)}
	var all sync.WaitGroup
	for n := range 4 {
		all.Go(func() {
			for i := range 50 {
				trust := &sallyport.Trust{Cluster: cluster, UserCAs: cas[(n+i)%2]}
				for at := range certs {
					id, err := w.door.user([]*x509.Certificate{certs[at].Leaf}, trust)
					if (err == nil) != (at == (n+i)%2) {
						t.Errorf("certificate %d, CA %d: %q, %v", at, (n+i)%2, id.Name, err)
					}
				}
			}
		})
	}
	all.Wait()
}

// TestKnownUserAllocatesNothing: who comes back costs no garbage.
func TestKnownUserAllocatesNothing(t *testing.T) {
	w := newWorld(t)
	w.door.setUp()
	cert := w.alice()
	chain := []*x509.Certificate{cert.Leaf}
	trust, err := w.snap.Trust()
	if err != nil {
		t.Fatal(err)
	}
	ask := func() {
		if _, err := w.door.user(chain, trust); err != nil {
			t.Fatal(err)
		}
	}
	ask()
	if n := testing.AllocsPerRun(100, ask); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkKnownUser(b *testing.B) {
	w := newWorld(b)
	cert := w.alice()
	trust, _ := w.snap.Trust()
	w.door.setUp()
	for _, name := range []string{"new", "known"} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if name == "new" {
					w.door.known = known{}
				}
				if _, err := w.door.user([]*x509.Certificate{cert.Leaf}, trust); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
