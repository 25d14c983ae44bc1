package login

import (
	"context"
	"encoding/base32"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/ca"
	"github.com/sallyport/sallyport/controlplane/store"
	"github.com/sallyport/sallyport/controlplane/store/etcd"
)

const password = "correct horse battery"

// clock is a time that tests move.
type clock struct {
	mu sync.Mutex
	at time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

// counting counts what is asked of a store.
type counting struct {
	store.Store
	gets, applies atomic.Int64
}

func (c *counting) Get(ctx context.Context, key string) (store.Item, error) {
	c.gets.Add(1)
	return c.Store.Get(ctx, key)
}

func (c *counting) Apply(ctx context.Context, ops ...store.Op) (int64, error) {
	c.applies.Add(1)
	return c.Store.Apply(ctx, ops...)
}

// house is one auth process with its users.
type house struct {
	*Login
	clock  *clock
	store  *counting
	sealer Sealer
	hashes atomic.Int64
}

func openHouse(t testing.TB, policy Policy) *house {
	t.Helper()
	s, err := etcd.OpenEmbedded(context.Background(), etcd.EmbeddedConfig{Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	sealer, err := ca.OpenKeyFile(t.TempDir() + "/key")
	if err != nil {
		t.Fatal(err)
	}
	h := &house{clock: &clock{at: time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)}, store: &counting{Store: s}, sealer: sealer}
	h.Login = h.another(t, policy)
	return h
}

// another is a further auth process on the same store.
func (h *house) another(t testing.TB, policy Policy) *Login {
	t.Helper()
	l, err := New(Config{Store: h.store, Sealer: h.sealer, Issuer: "gw.example.com", SecondFactor: policy, Now: h.clock.now,
		Cost: Cost{Time: 1, Memory: 64, Threads: 1}})
	if err != nil {
		t.Fatal(err)
	}
	l.hasher.count = func() { h.hashes.Add(1) }
	return l
}

// add makes a user who has claimed the account; secret is "" without a device.
func (h *house) add(t testing.TB, name string, device bool) (secret string) {
	t.Helper()
	link, err := h.CreateUser(t.Context(), User{Name: name, Roles: []string{"access"}, Traits: map[string][]string{"logins": {name}}}, 0)
	if err != nil {
		t.Fatal(err)
	}
	claim := Claim{Token: link.Token, Password: password}
	if device {
		offer, err := h.Offer(t.Context(), link.Token)
		if err != nil {
			t.Fatal(err)
		}
		secret = offer.Secret
		claim.Code = h.code(t, secret, -1)
	}
	if _, err := h.Claim(t.Context(), claim); err != nil {
		t.Fatal(err)
	}
	return secret
}

// code is the device's code some steps from now.
func (h *house) code(t testing.TB, secret string, steps int) string {
	t.Helper()
	c, err := Code(secret, h.clock.now().Add(time.Duration(steps)*totpPeriod))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func from(addr string) netip.Addr { return netip.MustParseAddr(addr) }

func (h *house) try(t testing.TB, a Attempt) error {
	t.Helper()
	if !a.Addr.IsValid() {
		a.Addr = from("192.0.2.1")
	}
	_, err := h.Login.Login(t.Context(), a)
	return err
}

func TestLogin(t *testing.T) {
	h := openHouse(t, Optional)
	secret := h.add(t, "alice", true)
	h.add(t, "bob", false)
	u, err := h.Login.Login(t.Context(), Attempt{User: "alice", Password: password, Code: h.code(t, secret, 0), Addr: from("192.0.2.1")})
	if err != nil {
		t.Fatal(err)
	}
	want := User{Name: "alice", Roles: []string{"access"}, Traits: map[string][]string{"logins": {"alice"}}, Created: h.clock.now(), Claimed: true,
		MFA: u.MFA, Credential: u.Credential, Revision: u.Revision}
	if d := cmp.Diff(want, u); d != "" || u.MFA == "" || u.Credential == "" {
		t.Error(d)
	}
	if u, err := h.Login.Login(t.Context(), Attempt{User: "bob", Password: password, Addr: from("192.0.2.1")}); err != nil || u.MFA != "" {
		t.Errorf("bob without a device: %+v, %v", u, err)
	}
}

func TestPolicies(t *testing.T) {
	h := openHouse(t, Optional)
	secret := h.add(t, "alice", true)
	h.add(t, "bob", false)
	for _, c := range []struct {
		policy Policy
		user   string
		code   bool
		want   error
	}{
		{Off, "alice", false, nil},
		{Off, "bob", false, nil},
		{Optional, "alice", false, sallyport.ErrUnauthorized},
		{Optional, "alice", true, nil},
		{Optional, "bob", false, nil},
		{TOTP, "alice", false, sallyport.ErrUnauthorized},
		{TOTP, "alice", true, nil},
		{TOTP, "bob", false, sallyport.ErrDenied},
	} {
		h.clock.add(totpPeriod)
		a := Attempt{User: c.user, Password: password, Addr: from("192.0.2.1")}
		if c.code {
			a.Code = h.code(t, secret, 0)
		}
		if _, err := h.another(t, c.policy).Login(t.Context(), a); !errors.Is(err, c.want) {
			t.Errorf("%s, %s, code %v: %v, want %v", c.policy, c.user, c.code, err, c.want)
		}
	}
	for _, p := range []Policy{"webauthn", "any", "TOTP"} {
		if _, err := New(Config{SecondFactor: p}); !errors.Is(err, sallyport.ErrInvalid) {
			t.Errorf("policy %q: %v", p, err)
		}
	}
}

// TestA87_NoEnumeration: whatever is wrong, the answer is the same, and so is
// the work: hashes, reads and writes.
func TestA87_NoEnumeration(t *testing.T) {
	h := openHouse(t, Optional)
	secret := h.add(t, "alice", true)
	h.add(t, "bob", false)
	if _, err := h.CreateUser(t.Context(), User{Name: "unclaimed", Roles: []string{"access"}}, 0); err != nil {
		t.Fatal(err)
	}
	type work struct{ hashes, gets, applies int64 }
	measure := func(i int, a Attempt) (work, error) {
		// Each from a place of its own, so that no limit speaks; the first try
		// of a process takes a lease.
		a.Addr = from(fmt.Sprintf("198.51.100.%d", i))
		b := work{h.hashes.Load(), h.store.gets.Load(), h.store.applies.Load()}
		err := h.try(t, a)
		return work{h.hashes.Load() - b.hashes, h.store.gets.Load() - b.gets, h.store.applies.Load() - b.applies}, err
	}
	const bad = "wrong wrong wrong wrong"
	for _, code := range []string{"", "000000"} {
		wantWork, want := measure(1, Attempt{User: "nobody", Password: bad, Code: code})
		if wantWork.hashes != 1 || !errors.Is(want, sallyport.ErrUnauthorized) {
			t.Fatalf("unknown user: %+v, %v", wantWork, want)
		}
		for i, a := range []Attempt{
			{User: "alice", Password: bad},
			{User: "ALICE", Password: password},
			{User: "bob", Password: bad},
			{User: "BOB", Password: password},
			{User: "unclaimed", Password: bad},
			{User: "no such name!\x00", Password: bad},
			{User: "../alice", Password: password},
			{User: strings.Repeat("x", 200), Password: bad},
			{User: "alice", Password: password}, // right, but the code is not
		} {
			a.Code = code
			got, err := measure(10+i, a)
			if problem(t, want) != problem(t, err) {
				t.Errorf("%q: another answer: %+v", a.User, problem(t, err))
			}
			if got != wantWork {
				t.Errorf("%q with code %q: work %+v, for an unknown user %+v", a.User, code, got, wantWork)
			}
		}
	}
	// A code that was right once is no other thing than a wrong one.
	code := h.code(t, secret, 0)
	if err := h.try(t, Attempt{User: "alice", Password: password, Code: code}); err != nil {
		t.Fatal(err)
	}
	if err := h.try(t, Attempt{User: "alice", Password: password, Code: code}); problem(t, err) != problem(t, wrong()) {
		t.Errorf("used code: %v", err)
	}
	// Impossible passwords cost nothing, for known and unknown users alike.
	for _, p := range []string{"", "short", strings.Repeat("x", 129), strings.Repeat("x", 256), strings.Repeat("x", 1024), strings.Repeat("x", 1<<20)} {
		for _, name := range []string{"alice", "nobody"} {
			got, err := measure(99, Attempt{User: name, Password: p, Code: "000000"})
			if problem(t, err) != problem(t, wrong()) || got != (work{}) {
				t.Errorf("%s with %d bytes: %v, %+v", name, len(p), err, got)
			}
		}
	}
}

type face struct {
	kind       error
	fact, hint string
}

func problem(t *testing.T, err error) face {
	t.Helper()
	var p *sallyport.Problem
	if !errors.As(err, &p) {
		t.Fatalf("not a problem: %v", err)
	}
	return face{p.Kind, p.Fact, p.Hint}
}

// TestA90_CodeOnce: of many tries with one code at once, in several auth
// processes, one succeeds; and never again, even when the clock goes back.
func TestA90_CodeOnce(t *testing.T) {
	h := openHouse(t, TOTP)
	secret := h.add(t, "alice", true)
	nodes := []*Login{h.Login, h.another(t, TOTP), h.another(t, TOTP)}
	code := h.code(t, secret, 0)
	var wins atomic.Int64
	var wg sync.WaitGroup
	for i := range 12 {
		wg.Go(func() {
			// Tries at once count while they are judged: each from its own place.
			_, err := nodes[i%3].Login(t.Context(), Attempt{User: "alice", Password: password, Code: code, Addr: from(fmt.Sprintf("198.51.100.%d", i))})
			switch {
			case err == nil:
				wins.Add(1)
			case !errors.Is(err, sallyport.ErrUnauthorized) && !errors.Is(err, sallyport.ErrExhausted):
				t.Errorf("%v", err)
			}
		})
	}
	wg.Wait()
	if n := wins.Load(); n != 1 {
		t.Errorf("one code let %d in", n)
	}
	h.clock.add(window + time.Second)
	next := h.code(t, secret, 0)
	h.clock.add(-window - time.Second)
	for _, back := range []time.Duration{0, -totpPeriod, totpPeriod} {
		h.clock.add(back)
		if err := h.try(t, Attempt{User: "alice", Password: password, Code: code, Addr: from("203.0.113.1")}); err == nil {
			t.Errorf("the same code again, clock moved by %v", back)
		}
	}
	h.clock.add(window + time.Second)
	if err := h.try(t, Attempt{User: "alice", Password: password, Code: next, Addr: from("203.0.113.2")}); err != nil {
		t.Errorf("a later code: %v", err)
	}
}

// meeting holds the readers of a key until all have read, so that each decides
// on the same state.
type meeting struct {
	store.Store
	key   string
	ready sync.WaitGroup
}

func (m *meeting) Get(ctx context.Context, key string) (store.Item, error) {
	it, err := m.Store.Get(ctx, key)
	if key == m.key {
		m.ready.Done()
		m.ready.Wait()
	}
	return it, err
}

// TestA90_CodeOnceAtOnce: all have seen that the step is free; one takes it.
func TestA90_CodeOnceAtOnce(t *testing.T) {
	h := openHouse(t, TOTP)
	h.add(t, "alice", true)
	const n = 16
	m := &meeting{Store: h.store, key: codeKey("alice")}
	m.ready.Add(n)
	h.Login.store = m
	var wins atomic.Int64
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			ok, err := h.useStep(t.Context(), "alice", stepAt(h.clock.now())+1)
			if err != nil {
				t.Error(err)
			}
			if ok {
				wins.Add(1)
			}
		})
	}
	wg.Wait()
	if wins.Load() != 1 {
		t.Errorf("one step was taken %d times", wins.Load())
	}
}

// TestA90_Window: one step before and after; an older code than the last taken
// is refused even within the window.
func TestA90_Window(t *testing.T) {
	h := openHouse(t, TOTP)
	secret := h.add(t, "alice", true)
	h.clock.add(time.Hour)
	for _, c := range []struct {
		steps int
		ok    bool
	}{{-2, false}, {2, false}, {-1, true}, {-1, false}, {1, true}, {0, false}, {1, false}} {
		addr := from(fmt.Sprintf("203.0.113.%d", 10+c.steps))
		if err := h.try(t, Attempt{User: "alice", Password: password, Code: h.code(t, secret, c.steps), Addr: addr}); (err == nil) != c.ok {
			t.Errorf("code of step %+d: %v", c.steps, err)
		}
	}
}

// TestA90_BruteForce: five wrong codes per user, from wherever; five per
// source, for whomever; who lacks the password locks nobody out.
func TestA90_BruteForce(t *testing.T) {
	h := openHouse(t, TOTP)
	secret := h.add(t, "alice", true)
	carol := h.add(t, "carol", true)
	h.clock.add(time.Hour)

	for i := range 40 { // a stranger, from many places
		err := h.try(t, Attempt{User: "alice", Password: "not her password", Code: "000000", Addr: from(fmt.Sprintf("198.51.100.%d", i))})
		if !errors.Is(err, sallyport.ErrUnauthorized) {
			t.Fatalf("stranger %d: %v", i, err)
		}
	}
	if err := h.try(t, Attempt{User: "alice", Password: password, Code: h.code(t, secret, 0), Addr: from("192.0.2.1")}); err != nil {
		t.Errorf("a stranger locked alice out: %v", err)
	}

	for i := range 7 { // somebody who knows the password, from many places
		err := h.try(t, Attempt{User: "alice", Password: password, Code: "000000", Addr: from(fmt.Sprintf("203.0.113.%d", i))})
		want := sallyport.ErrUnauthorized
		if i >= 5 {
			want = sallyport.ErrExhausted
		}
		if !errors.Is(err, want) {
			t.Errorf("wrong code %d: %v, want %v", i+1, err, want)
		}
	}
	h.clock.add(totpPeriod)
	if err := h.try(t, Attempt{User: "alice", Password: password, Code: h.code(t, secret, 0)}); !errors.Is(err, sallyport.ErrExhausted) {
		t.Errorf("right code after five wrong ones: %v", err)
	}
	h.clock.add(window)
	if err := h.try(t, Attempt{User: "alice", Password: password, Code: h.code(t, secret, 0), Addr: from("192.0.2.7")}); err != nil {
		t.Errorf("after five minutes: %v", err)
	}

	for i := range 5 { // one source, several of its own users
		user := []string{"alice", "carol"}[i%2]
		if err := h.try(t, Attempt{User: user, Password: password, Code: "000000", Addr: from("2001:db8:1:2::1")}); !errors.Is(err, sallyport.ErrUnauthorized) {
			t.Errorf("source, wrong code %d: %v", i+1, err)
		}
	}
	h.clock.add(totpPeriod)
	a := Attempt{User: "carol", Password: password, Code: h.code(t, carol, 0), Addr: from("2001:db8:1:2:ffff::2")}
	if err := h.try(t, a); !errors.Is(err, sallyport.ErrExhausted) {
		t.Errorf("same /64: %v", err)
	}
	a.Addr = from("2001:db8:1:3::2")
	if err := h.try(t, a); err != nil {
		t.Errorf("another /64: %v", err)
	}
}

// TestA90_BruteForceAtOnce: tries at the same time do not outrun the count.
func TestA90_BruteForceAtOnce(t *testing.T) {
	h := openHouse(t, TOTP)
	h.add(t, "alice", true)
	before := h.hashes.Load()
	var judged atomic.Int64
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			_, err := h.Login.Login(t.Context(), Attempt{User: "alice", Password: password, Code: "000000", Addr: from("192.0.2.1")})
			if errors.Is(err, sallyport.ErrUnauthorized) {
				judged.Add(1)
			} else if !errors.Is(err, sallyport.ErrExhausted) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := judged.Load(); n > wrongCodesPer {
		t.Errorf("%d codes were judged", n)
	}
	if n := h.hashes.Load() - before; n > wrongPerPair {
		t.Errorf("%d passwords were hashed", n)
	}
}

// TestPasswordTries: wrong passwords are counted per source and user, and per
// source; right ones are not.
func TestPasswordTries(t *testing.T) {
	h := openHouse(t, Optional)
	h.add(t, "bob", false)
	for i := range 20 {
		if err := h.try(t, Attempt{User: "bob", Password: password}); err != nil {
			t.Fatalf("right password %d: %v", i, err)
		}
	}
	for i := range 5 {
		if err := h.try(t, Attempt{User: "bob", Password: "wrong wrong wrong"}); !errors.Is(err, sallyport.ErrUnauthorized) {
			t.Fatalf("wrong password %d: %v", i, err)
		}
	}
	before := h.hashes.Load()
	for _, name := range []string{"bob", "BOB"} {
		if err := h.try(t, Attempt{User: name, Password: password}); !errors.Is(err, sallyport.ErrExhausted) {
			t.Errorf("%s after five wrong ones: %v", name, err)
		}
	}
	if h.hashes.Load() != before {
		t.Error("refused tries were hashed")
	}
	if err := h.try(t, Attempt{User: "bob", Password: password, Addr: from("192.0.2.2")}); err != nil {
		t.Errorf("from elsewhere: %v", err)
	}
	for i := range 40 {
		err := h.try(t, Attempt{User: fmt.Sprint("user", i), Password: "wrong wrong wrong", Addr: from("192.0.2.3")})
		if want := i >= wrongPerSource; errors.Is(err, sallyport.ErrExhausted) != want {
			t.Fatalf("name %d from one source: %v", i, err)
		}
	}
	h.clock.add(window + time.Second)
	if err := h.try(t, Attempt{User: "bob", Password: password}); err != nil {
		t.Errorf("after five minutes: %v", err)
	}
}

// TestResetWhileLogin: a password that is taken away while it is being checked
// does not let in.
func TestResetWhileLogin(t *testing.T) {
	h := openHouse(t, Optional)
	h.add(t, "bob", false)
	l := h.another(t, Optional)
	l.hasher.count = func() {
		if _, err := h.ResetUser(context.WithoutCancel(t.Context()), "bob", 0); err != nil {
			t.Error(err)
		}
	}
	if _, err := l.Login(t.Context(), Attempt{User: "bob", Password: password, Addr: from("192.0.2.1")}); !errors.Is(err, sallyport.ErrUnauthorized) {
		t.Errorf("logged in with a password that was reset: %v", err)
	}
}

func TestSecretsAtRest(t *testing.T) {
	h := openHouse(t, TOTP)
	secret := h.add(t, "alice", true)
	link, err := h.CreateUser(t.Context(), User{Name: "dave", Roles: []string{"access"}}, 0)
	if err != nil {
		t.Fatal(err)
	}
	offer, err := h.Offer(t.Context(), link.Token)
	if err != nil {
		t.Fatal(err)
	}
	items, _, err := h.store.List(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	raw, err := base32.StdEncoding.WithPadding(base32.NoPadding).DecodeString(secret)
	if err != nil {
		t.Fatal(err)
	}
	for _, it := range items {
		for _, s := range []string{secret, string(raw), offer.Secret, link.Token, password} {
			if strings.Contains(string(it.Value), s) || strings.Contains(it.Key, s) {
				t.Errorf("%s holds a secret in clear", it.Key)
			}
		}
	}
}
