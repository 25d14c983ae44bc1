package client

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/ca/signed"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
)

const cluster = "gw.example.com"

// signer is a host CA of the tests.
type signer struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newSigner(t testing.TB) signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "host CA"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return signer{cert, key}
}

func (s signer) sign(t testing.TB, domain signed.Domain, m proto.Message) *sallyportv1.Signed {
	t.Helper()
	payload, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	out, err := signed.Make(s.cert, s.key, domain, payload)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

var noon = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

// snapshot is a good one, before it is changed.
func (s signer) snapshot(t testing.TB, revision uint64, issued time.Time, change func(*sallyportv1.Snapshot)) *sallyportv1.Signed {
	m := &sallyportv1.Snapshot{
		Cluster: cluster, Revision: revision, IssuedAt: timestamppb.New(issued), NotAfter: timestamppb.New(issued.Add(30 * 24 * time.Hour)),
		Authorities: []*sallyportv1.Authority{{Kind: "host", Certificates: [][]byte{s.cert.Raw}}, {Kind: "user", Certificates: [][]byte{s.cert.Raw}}},
		Roles:       [][]byte{[]byte(`{"kind":"role","version":"v7","metadata":{"name":"access"},"spec":{"allow":{"logins":["root"],"node_labels":{"*":"*"}}}}`)},
		Settings:    &sallyportv1.ClusterSettings{},
	}
	if change != nil {
		change(m)
	}
	return s.sign(t, signed.Snapshot, m)
}

// keeper is one with a clock.
func keeper(t testing.TB, dir string, s signer) *Keeper {
	t.Helper()
	k, err := NewKeeper(dir, cluster, []*x509.Certificate{s.cert}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	k.now = func() time.Time { return noon }
	return k
}

func woken(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// TestKeeperTake: what is taken, and what is refused and changes nothing.
func TestKeeperTake(t *testing.T) {
	ours, theirs := newSigner(t), newSigner(t)
	const held = 10
	damaged := func(change func(*sallyportv1.Signed)) *sallyportv1.Signed {
		s := ours.snapshot(t, held+1, noon, nil)
		change(s)
		return s
	}
	with := func(change func(*sallyportv1.Snapshot)) *sallyportv1.Signed {
		return ours.snapshot(t, held+1, noon, change)
	}
	for name, c := range map[string]struct {
		signed *sallyportv1.Signed
		ok     bool
	}{
		"newer":                          {ours.snapshot(t, held+1, noon, nil), true},
		"the same revision, issued anew": {ours.snapshot(t, held, noon, nil), true},
		"newer, by a clock that is slow": {ours.snapshot(t, held+1, noon.Add(-time.Hour), nil), true},
		"lower revision":                 {ours.snapshot(t, held-1, noon, nil), false},
		"the same revision, older":       {ours.snapshot(t, held, noon.Add(-time.Hour), nil), false},
		"another cluster":                {with(func(m *sallyportv1.Snapshot) { m.Cluster = "other.example.com" }), false},
		"no cluster":                     {with(func(m *sallyportv1.Snapshot) { m.Cluster = "" }), false},
		"another CA":                     {theirs.snapshot(t, held+1, noon, nil), false},
		"another purpose":                {ours.sign(t, signed.Assignment, &sallyportv1.Snapshot{Cluster: cluster, Revision: held + 1}), false},
		"payload changed":                {damaged(func(s *sallyportv1.Signed) { s.Payload[len(s.Payload)-1]++ }), false},
		"signature cut":                  {damaged(func(s *sallyportv1.Signed) { s.Signature = s.Signature[:10] }), false},
		"no signature":                   {damaged(func(s *sallyportv1.Signed) { s.Signature = nil }), false},
		"nothing":                        {&sallyportv1.Signed{}, false},
		"a role that does not parse":     {with(func(m *sallyportv1.Snapshot) { m.Roles = append(m.Roles, []byte(`{"kind":"role","version":"v99"}`)) }), false},
		"a CA that does not parse": {with(func(m *sallyportv1.Snapshot) {
			m.Authorities[0].Certificates = append(m.Authorities[0].Certificates, []byte("x"))
		}), false},
	} {
		t.Run(name, func(t *testing.T) {
			k := keeper(t, t.TempDir(), ours)
			if err := k.Take(ours.snapshot(t, held, noon.Add(-time.Minute), nil)); err != nil {
				t.Fatal(err)
			}
			before, changed := k.newest(), k.Changed()
			err := k.Take(c.signed)
			if (err == nil) != c.ok || woken(changed) != c.ok || (k.newest() == before) == c.ok {
				t.Errorf("err %v, woken %v, another view %v; taken should be %v", err, woken(changed), k.newest() != before, c.ok)
			}
			if k.Refusal() != err {
				t.Errorf("the refusal that is shown is %v, it was %v", k.Refusal(), err)
			}
			if err := k.Take(ours.snapshot(t, held+2, noon, nil)); err != nil || k.Refusal() != nil {
				t.Errorf("then a good one: %v, refusal %v", err, k.Refusal())
			}
			again := keeper(t, k.dir, ours)
			if again.Revision() != k.Revision() {
				t.Errorf("on disk is %d, in force %d", again.Revision(), k.Revision())
			}
		})
	}
}

// TestKeeperRefusalTold: who reads that a restored auth's snapshots are refused is
// told what to do, and with which file.
func TestKeeperRefusalTold(t *testing.T) {
	ours := newSigner(t)
	k := keeper(t, t.TempDir(), ours)
	if err := k.Take(ours.snapshot(t, 10, noon, nil)); err != nil {
		t.Fatal(err)
	}
	err := k.Take(ours.snapshot(t, 9, noon.Add(time.Hour), nil))
	var p *sallyport.Problem
	if !errors.As(err, &p) || !strings.Contains(p.Fact, "not in force") || !strings.Contains(p.Hint, filepath.Join(k.dir, snapshotFile)) {
		t.Errorf("%#v", err)
	}
}

// TestKeeperAge: how long a snapshot is decided on, counted from when auth was
// last heard.
func TestKeeperAge(t *testing.T) {
	s := newSigner(t)
	offline := func(n int64) func(*sallyportv1.Snapshot) {
		return func(m *sallyportv1.Snapshot) { m.Settings.OfflineMaxAgeSeconds = n }
	}
	for name, c := range map[string]struct {
		issued time.Duration // before now
		change func(*sallyportv1.Snapshot)
		good   time.Duration // from now on
	}{
		"default":                {0, nil, DefaultOfflineMaxAge},
		"heard long ago":         {DefaultOfflineMaxAge, nil, 0},
		"set":                    {0, offline(60), time.Minute},
		"set to nonsense":        {0, offline(-5), DefaultOfflineMaxAge},
		"set to nearly for ever": {0, offline(1<<63 - 1), 30 * 24 * time.Hour}, // its own end
		"strict":                 {0, func(m *sallyportv1.Snapshot) { m.Settings.StrictLocks = true }, StrictMaxAge},
		"strict and set lower": {0, func(m *sallyportv1.Snapshot) {
			m.Settings.StrictLocks, m.Settings.OfflineMaxAgeSeconds = true, 60
		}, time.Minute},
		"its own end":               {0, func(m *sallyportv1.Snapshot) { m.NotAfter = timestamppb.New(noon.Add(time.Hour)) }, time.Hour},
		"auth's clock is a day off": {-24 * time.Hour, nil, DefaultOfflineMaxAge},
	} {
		t.Run(name, func(t *testing.T) {
			k := keeper(t, t.TempDir(), s)
			if err := k.Take(s.snapshot(t, 1, noon.Add(-c.issued), c.change)); err != nil {
				t.Fatal(err)
			}
			for after, want := range map[time.Duration]bool{0: true, c.good: true, c.good + time.Second: false} {
				k.now = func() time.Time { return noon.Add(after) }
				trust, err := k.Trust()
				if trust == nil || (err == nil) != want || err != nil && !errors.Is(err, sallyport.ErrStaleSnapshot) {
					t.Errorf("after %v: %v", after, err)
				}
				if err != nil && !strings.Contains(err.Error(), "no contact with auth since 2026-11-") {
					t.Errorf("told %q", err)
				}
			}
		})
	}
}

// TestKeeperEmpty: before the first contact nothing is decided.
func TestKeeperEmpty(t *testing.T) {
	k := keeper(t, t.TempDir(), newSigner(t))
	if trust, err := k.Trust(); trust != nil || !errors.Is(err, sallyport.ErrStaleSnapshot) {
		t.Errorf("trust %v, %v", trust, err)
	}
	if d := k.Decide(sallyport.AccessRequest{}); d.Allowed || d.Reason == "" {
		t.Errorf("decided %+v", d)
	}
	if k.Revision() != 0 || k.Gateways() != nil || k.Roots() == nil {
		t.Error("something is known")
	}
}

// TestKeeperDisk: what is on disk is taken after a restart when it verifies.
func TestKeeperDisk(t *testing.T) {
	s := newSigner(t)
	dir := t.TempDir()
	if err := keeper(t, dir, s).Take(s.snapshot(t, 7, noon, func(m *sallyportv1.Snapshot) {
		m.Locks = []*sallyportv1.Lock{{Name: "l", User: "mallory"}}
		m.Gateways = []*sallyportv1.Gateway{{Id: "g", Address: "gw.example.com:443"}, {Id: "h"}}
		m.DatabaseUsers = map[string]*sallyportv1.StringList{"orders": {Values: []string{"alice"}}}
	})); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, snapshotFile)
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v %v", info.Mode(), err)
	}
	k := keeper(t, dir, s)
	trust, err := k.Trust()
	if err != nil {
		t.Fatal(err)
	}
	if trust.Revision != 7 || len(trust.Locks) != 1 || trust.Locks[0].Target.User != "mallory" || len(trust.HostCAs) != 1 || trust.DatabaseUsers["orders"][0] != "alice" {
		t.Errorf("trust %+v", trust)
	}
	if g := k.Gateways(); len(g) != 1 || g[0] != "gw.example.com:443" {
		t.Errorf("gateways %v", g)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		data  []byte
		mode  os.FileMode
		fatal bool
	}{
		"cut":             {good[:len(good)/2], 0o600, false},
		"empty":           {nil, 0o600, false},
		"garbage":         {[]byte("garbage"), 0o600, false},
		"for all to read": {good, 0o644, true},
	} {
		dir := t.TempDir()
		path := filepath.Join(dir, snapshotFile)
		if err := os.WriteFile(path, c.data, c.mode); err != nil {
			t.Fatal(err)
		}
		k, err := NewKeeper(dir, cluster, []*x509.Certificate{s.cert}, slog.New(slog.DiscardHandler))
		if (err != nil) != c.fatal || k.Revision() != 0 {
			t.Errorf("%s: revision %d, %v", name, k.Revision(), err)
		}
	}
	other, err := NewKeeper(dir, "other.example.com", []*x509.Certificate{s.cert}, slog.New(slog.DiscardHandler))
	if err != nil || other.Revision() != 0 {
		t.Errorf("another cluster's: revision %d, %v", other.Revision(), err)
	}
	// A snapshot from a clock that is ahead counts from when it was written.
	if err := k.Take(s.snapshot(t, 8, noon.Add(1000*time.Hour), nil)); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(path, noon, noon); err != nil {
		t.Fatal(err)
	}
	k = keeper(t, dir, s)
	k.now = func() time.Time { return noon.Add(DefaultOfflineMaxAge + time.Second) }
	if _, err := k.Trust(); err == nil {
		t.Error("a snapshot from the future never gets old")
	}
}

// TestKeeperLocked: a host is locked by a lock that names it and nothing besides,
// until that ends. One with a user too is that user's, there.
func TestKeeperLocked(t *testing.T) {
	s := newSigner(t)
	k := keeper(t, t.TempDir(), s)
	if got := k.Locked(); got != nil {
		t.Errorf("without a snapshot: %v", got)
	}
	err := k.Take(s.snapshot(t, 3, noon, func(m *sallyportv1.Snapshot) {
		m.Locks = []*sallyportv1.Lock{
			{Name: "for good", ServerId: "a"},
			{Name: "for an hour", ServerId: "b", Expires: noon.Add(time.Hour).Unix()},
			{Name: "over", ServerId: "c", Expires: noon.Unix()},
			{Name: "of a user there", ServerId: "d", User: "ann"},
			{Name: "of a user", User: "bob"},
		}
	}))
	if got := k.Locked(); err != nil || !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("locked: %v, %v", got, err)
	}
	k.now = func() time.Time { return noon.Add(time.Hour) }
	if got := k.Locked(); !slices.Equal(got, []string{"a"}) {
		t.Errorf("an hour later: %v", got)
	}
}

// TestKeeperFullDisk: a snapshot that cannot be kept counts: it may hold a lock.
func TestKeeperFullDisk(t *testing.T) {
	s := newSigner(t)
	k := keeper(t, t.TempDir(), s)
	if err := os.Mkdir(filepath.Join(k.dir, snapshotFile+".new"), 0o700); err != nil {
		t.Fatal(err)
	}
	changed := k.Changed()
	if err := k.Take(s.snapshot(t, 3, noon, nil)); err != nil || k.Revision() != 3 || !woken(changed) {
		t.Errorf("revision %d, woken %v, %v", k.Revision(), woken(changed), err)
	}
	if keeper(t, k.dir, s).Revision() != 0 {
		t.Error("it was written all the same")
	}
}

// TestKeeperRotation: the host CAs of a snapshot are those of the next.
func TestKeeperRotation(t *testing.T) {
	old, next := newSigner(t), newSigner(t)
	k := keeper(t, t.TempDir(), old)
	steps := []struct {
		by     signer
		lists  []signer
		want   bool
		reason string
	}{
		{next, []signer{next}, false, "not announced"},
		{old, []signer{old, next}, true, "both"},
		{next, []signer{next, old}, true, "announced"},
		{next, []signer{next}, true, "the old one goes"},
		{old, []signer{old}, false, "gone"},
		{next, nil, true, "without any, the last hold"},
		{next, []signer{next}, true, "as before"},
	}
	for i, c := range steps {
		err := k.Take(c.by.snapshot(t, uint64(i+1), noon, func(m *sallyportv1.Snapshot) {
			m.Authorities[0].Certificates = nil
			for _, s := range c.lists {
				m.Authorities[0].Certificates = append(m.Authorities[0].Certificates, s.cert.Raw)
			}
		}))
		if (err == nil) != c.want {
			t.Errorf("step %d, %s: %v", i, c.reason, err)
		}
	}
}

// TestKeeperConcurrent: readers see one view or the other, whole.
func TestKeeperConcurrent(t *testing.T) {
	s := newSigner(t)
	k := keeper(t, t.TempDir(), s)
	var all []*sallyportv1.Signed
	for i := range 30 {
		all = append(all, s.snapshot(t, uint64(i+1), noon, nil))
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			last := uint64(0)
			for last < 30 {
				changed := k.Changed()
				if trust, _ := k.Trust(); trust != nil {
					if trust.Revision < last {
						t.Errorf("revision %d after %d", trust.Revision, last)
						return
					}
					if last = trust.Revision; last == 30 {
						return
					}
				}
				<-changed
			}
		})
	}
	for range 2 {
		wg.Go(func() {
			for _, m := range all {
				k.Take(m) // of two that race, one may be refused
			}
		})
	}
	wg.Wait()
}

// TestVerifyAssignment: an agent shows what auth signed for it, and no other.
func TestVerifyAssignment(t *testing.T) {
	ours, theirs := newSigner(t), newSigner(t)
	k := keeper(t, t.TempDir(), ours)
	good := func() *sallyportv1.Assignment {
		return &sallyportv1.Assignment{Cluster: cluster, AgentId: "agent-1", Revision: 1, NotAfter: timestamppb.New(noon.Add(time.Hour))}
	}
	with := func(change func(*sallyportv1.Assignment)) *sallyportv1.Assignment {
		a := good()
		change(a)
		return a
	}
	for name, c := range map[string]struct {
		signed *sallyportv1.Signed
		ok     bool
	}{
		"good":            {ours.sign(t, signed.Assignment, good()), true},
		"another CA":      {theirs.sign(t, signed.Assignment, good()), false},
		"another purpose": {ours.sign(t, signed.Snapshot, good()), false},
		"another agent":   {ours.sign(t, signed.Assignment, with(func(a *sallyportv1.Assignment) { a.AgentId = "agent-2" })), false},
		"another cluster": {ours.sign(t, signed.Assignment, with(func(a *sallyportv1.Assignment) { a.Cluster = "other" })), false},
		"ended":           {ours.sign(t, signed.Assignment, with(func(a *sallyportv1.Assignment) { a.NotAfter = timestamppb.New(noon.Add(-time.Second)) })), false},
		"without an end":  {ours.sign(t, signed.Assignment, with(func(a *sallyportv1.Assignment) { a.NotAfter = nil })), false},
	} {
		data, err := proto.Marshal(c.signed)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := VerifyAssignment(k, data, "agent-1"); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := VerifyAssignment(k, []byte("garbage"), "agent-1"); err == nil {
		t.Error("garbage")
	}
}

// FuzzTake: no bytes from anywhere make a view.
func FuzzTake(f *testing.F) {
	s, other := newSigner(f), newSigner(f)
	for _, m := range []*sallyportv1.Signed{other.snapshot(f, 1, noon, nil), {}, {Payload: []byte("x"), KeyId: signed.KeyID(s.cert)}} {
		data, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	k := keeper(f, f.TempDir(), s)
	f.Fuzz(func(t *testing.T, data []byte) {
		var m sallyportv1.Signed
		if proto.Unmarshal(data, &m) != nil {
			return
		}
		if err := k.Take(&m); err == nil || k.Revision() != 0 {
			t.Fatalf("taken: %v", err)
		}
		if _, err := VerifyAssignment(k, data, "agent"); err == nil {
			t.Fatal("assignment taken")
		}
	})
}
