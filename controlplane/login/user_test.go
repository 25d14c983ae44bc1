package login

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/store"
)

func TestUsers(t *testing.T) {
	h := openHouse(t, Optional)
	ctx := t.Context()
	h.add(t, "Alice", false)
	if _, err := h.CreateUser(ctx, User{Name: "alice", Roles: []string{"x"}}, 0); !errors.Is(err, sallyport.ErrExists) {
		t.Errorf("a name that differs in case: %v", err)
	}
	if _, err := h.GetUser(ctx, "alice"); !errors.Is(err, sallyport.ErrNotFound) {
		t.Errorf("get by another case: %v", err)
	}
	u, err := h.GetUser(ctx, "Alice")
	if err != nil || !u.Claimed {
		t.Fatal(u, err)
	}
	u.Roles = []string{"editor", "access"}
	v, err := h.UpdateUser(ctx, u)
	if err != nil || v.Revision <= u.Revision {
		t.Fatal(v, err)
	}
	if _, err := h.UpdateUser(ctx, u); !errors.Is(err, sallyport.ErrConflict) {
		t.Errorf("update of what was changed meanwhile: %v", err)
	}
	u.Revision, u.Traits = store.Any, map[string][]string{"db_users": {"app"}}
	if _, err := h.UpdateUser(ctx, u); err != nil {
		t.Error(err)
	}
	if err := h.try(t, Attempt{User: "Alice", Password: password}); err != nil {
		t.Errorf("an update took the password: %v", err)
	}
	all, err := h.ListUsers(ctx)
	if err != nil || len(all) != 1 || all[0].Roles[0] != "editor" || all[0].Traits["db_users"][0] != "app" {
		t.Errorf("%+v, %v", all, err)
	}
	if err := h.DeleteUser(ctx, "Alice"); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{h.DeleteUser(ctx, "Alice"), h.DeleteUser(ctx, ""), h.DeleteUser(ctx, "a/b")} {
		if !errors.Is(err, sallyport.ErrNotFound) {
			t.Errorf("delete of nobody: %v", err)
		}
	}
	if err := h.try(t, Attempt{User: "Alice", Password: password}); !errors.Is(err, sallyport.ErrUnauthorized) {
		t.Errorf("login after delete: %v", err)
	}
}

// TestA27_BoundedUsers: no string of a user is unbounded or unprintable.
func TestA27_BoundedUsers(t *testing.T) {
	h := openHouse(t, Optional)
	good := func(change func(u *User)) User {
		u := User{Name: "u", Roles: []string{"access"}, Traits: map[string][]string{"logins": {"u"}}}
		change(&u)
		return u
	}
	many := make(map[string][]string)
	for i := range maxTraits + 1 {
		many[strings.Repeat("t", i+1)] = nil
	}
	for name, u := range map[string]User{
		"no name":              good(func(u *User) { u.Name = "" }),
		"long name":            good(func(u *User) { u.Name = strings.Repeat("u", maxName+1) }),
		"name with a slash":    good(func(u *User) { u.Name = "a/b" }),
		"name with a blank":    good(func(u *User) { u.Name = "a b" }),
		"name with a NUL":      good(func(u *User) { u.Name = "a\x00" }),
		"name not in ASCII":    good(func(u *User) { u.Name = "ä" }),
		"name like an option":  good(func(u *User) { u.Name = "-rf" }),
		"name of dots":         good(func(u *User) { u.Name = ".." }),
		"no role":              good(func(u *User) { u.Roles = nil }),
		"empty role":           good(func(u *User) { u.Roles = []string{""} }),
		"role twice":           good(func(u *User) { u.Roles = []string{"a", "a"} }),
		"long role":            good(func(u *User) { u.Roles = []string{strings.Repeat("r", maxRole+1)} }),
		"role with line break": good(func(u *User) { u.Roles = []string{"a\nb"} }),
		"role not in UTF-8":    good(func(u *User) { u.Roles = []string{"\xff"} }),
		"many traits":          good(func(u *User) { u.Traits = many }),
		"trait without a name": good(func(u *User) { u.Traits = map[string][]string{"": nil} }),
		"long trait":           good(func(u *User) { u.Traits["t"] = []string{strings.Repeat("v", maxTraitValue+1)} }),
		"trait with ESC":       good(func(u *User) { u.Traits["t"] = []string{"\x1b[2J"} }),
		"long traits":          good(func(u *User) { u.Traits["t"] = make([]string, maxTraitBytes/8) }),
	} {
		if _, err := h.CreateUser(t.Context(), u, 0); !errors.Is(err, sallyport.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, ttl := range []time.Duration{-1, time.Second, MaxInviteTTL + 1} {
		if _, err := h.CreateUser(t.Context(), good(func(*User) {}), ttl); !errors.Is(err, sallyport.ErrInvalid) {
			t.Errorf("link for %v: %v", ttl, err)
		}
	}
	for _, name := range []string{"a", "A.B-c_d+e=f@example.com", strings.Repeat("u", maxName)} {
		if _, err := h.CreateUser(t.Context(), good(func(u *User) { u.Name = name }), 0); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestClaim(t *testing.T) {
	h := openHouse(t, TOTP)
	ctx := t.Context()
	link, err := h.CreateUser(ctx, User{Name: "alice", Roles: []string{"access"}}, 0)
	if err != nil {
		t.Fatal(err)
	}
	if !link.Expires.Equal(h.clock.now().Add(InviteTTL)) || len(link.Token) != 43 {
		t.Errorf("%+v", link)
	}
	offer, err := h.Offer(ctx, link.Token)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := h.Offer(ctx, link.Token); err != nil || again != offer {
		t.Errorf("the page changes when it is loaded again: %v", err)
	}
	if !strings.HasPrefix(offer.URL, "otpauth://totp/gw.example.com:alice?") || !strings.Contains(offer.URL, "secret="+offer.Secret) {
		t.Errorf("URL %s", offer.URL)
	}
	good := Claim{Token: link.Token, Password: password, Code: h.code(t, offer.Secret, 0)}
	for name, change := range map[string]func(c *Claim){
		"short password": func(c *Claim) { c.Password = "elevenbytes" },
		"long password":  func(c *Claim) { c.Password = strings.Repeat("x", MaxPassword+1) },
		"no code":        func(c *Claim) { c.Code = "" },
		"wrong code":     func(c *Claim) { c.Code = "000000" },
		"long code":      func(c *Claim) { c.Code += "0" },
		"old code":       func(c *Claim) { c.Code = h.code(t, offer.Secret, -5) },
	} {
		c := good
		change(&c)
		if _, err := h.Claim(ctx, c); !errors.Is(err, sallyport.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := h.hashes.Load(); n != 0 {
		t.Errorf("%d hashes for claims that were refused", n)
	}
	// Of several claims at once one wins.
	var wins atomic.Int64
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() {
			if _, err := h.Claim(ctx, good); err == nil {
				wins.Add(1)
			} else if !errors.Is(err, sallyport.ErrNotFound) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if wins.Load() != 1 {
		t.Errorf("a link was used %d times", wins.Load())
	}
	if _, err := h.Offer(ctx, link.Token); !errors.Is(err, sallyport.ErrNotFound) {
		t.Errorf("the link after its use: %v", err)
	}
	// The code that claimed does not log in; the next one does.
	if err := h.try(t, Attempt{User: "alice", Password: password, Code: good.Code}); err == nil {
		t.Error("the code that claimed logs in")
	}
	h.clock.add(totpPeriod)
	if err := h.try(t, Attempt{User: "alice", Password: password, Code: h.code(t, offer.Secret, 0)}); err != nil {
		t.Errorf("the next code: %v", err)
	}
}

// TestClaimWhileChanged: a change of roles during a claim is not lost, nor is
// the claim.
func TestClaimWhileChanged(t *testing.T) {
	h := openHouse(t, Optional)
	ctx := t.Context()
	link, err := h.CreateUser(ctx, User{Name: "alice", Roles: []string{"access"}}, 0)
	if err != nil {
		t.Fatal(err)
	}
	l := h.another(t, Optional)
	l.hasher.count = func() {
		if _, err := h.UpdateUser(ctx, User{Name: "alice", Roles: []string{"auditor"}, Revision: store.Any}); err != nil {
			t.Error(err)
		}
	}
	u, err := l.Claim(ctx, Claim{Token: link.Token, Password: password})
	if err != nil || !u.Claimed || u.Roles[0] != "auditor" {
		t.Errorf("%+v, %v", u, err)
	}
}

// TestLinkFromBackup: a link that was replaced is not good even when its record
// comes back.
func TestLinkFromBackup(t *testing.T) {
	h := openHouse(t, Optional)
	ctx := t.Context()
	old, err := h.CreateUser(ctx, User{Name: "alice", Roles: []string{"access"}}, 0)
	if err != nil {
		t.Fatal(err)
	}
	it, err := h.store.Get(ctx, linkKey(tokenHash(old.Token)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.ResetUser(ctx, "alice", 0); err != nil {
		t.Fatal(err)
	}
	if _, err := h.store.Apply(ctx, store.Op{Key: it.Key, Value: it.Value}); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Claim(ctx, Claim{Token: old.Token, Password: password}); !errors.Is(err, sallyport.ErrNotFound) {
		t.Errorf("claimed: %v", err)
	}
}

func TestLinksEnd(t *testing.T) {
	h := openHouse(t, Optional)
	ctx := t.Context()
	h.add(t, "alice", false)
	bad := func(what, token string) {
		t.Helper()
		if _, err := h.Offer(ctx, token); !errors.Is(err, sallyport.ErrNotFound) {
			t.Errorf("%s: offer: %v", what, err)
		}
		if _, err := h.Claim(ctx, Claim{Token: token, Password: password}); !errors.Is(err, sallyport.ErrNotFound) {
			t.Errorf("%s: claim: %v", what, err)
		}
	}
	first, err := h.ResetUser(ctx, "alice", 0)
	if err != nil || !first.Expires.Equal(h.clock.now().Add(ResetTTL)) {
		t.Fatal(first, err)
	}
	if err := h.try(t, Attempt{User: "alice", Password: password}); !errors.Is(err, sallyport.ErrUnauthorized) {
		t.Errorf("the old password after a reset: %v", err)
	}
	second, err := h.ResetUser(ctx, "alice", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	bad("replaced by a newer one", first.Token)
	bad("empty", "")
	bad("cut", second.Token[:42])
	bad("another", strings.Repeat("A", 43))
	bad("huge", strings.Repeat("A", 1<<20))
	h.clock.add(time.Hour - time.Second)
	if _, err := h.Offer(ctx, second.Token); err != nil {
		t.Errorf("a second before its end: %v", err)
	}
	h.clock.add(time.Second)
	bad("ended", second.Token)
	third, err := h.ResetUser(ctx, "alice", 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.DeleteUser(ctx, "alice"); err != nil {
		t.Fatal(err)
	}
	bad("of a deleted user", third.Token)
	// A new user of the same name is not claimed by it either.
	if _, err := h.CreateUser(ctx, User{Name: "alice", Roles: []string{"access"}}, 0); err != nil {
		t.Fatal(err)
	}
	bad("of an earlier user of that name", third.Token)
	if _, err := h.ResetUser(ctx, "nobody", 0); !errors.Is(err, sallyport.ErrNotFound) {
		t.Errorf("reset of nobody: %v", err)
	}
	if _, err := h.ResetUser(ctx, "alice", MaxResetTTL+1); !errors.Is(err, sallyport.ErrInvalid) {
		t.Errorf("reset link for too long: %v", err)
	}
}

func TestPHC(t *testing.T) {
	if got, want := (Cost{}).orDefault(), (Cost{Time: 3, Memory: 65536, Threads: 4}); got != want {
		t.Errorf("RFC 9106's second option: %+v", got)
	}
	h := &hasher{cost: Cost{Time: 1, Memory: 64, Threads: 1}, gate: newGate(1, 1, 1, time.Minute)}
	s, err := h.make(t.Context(), password)
	if err != nil || !strings.HasPrefix(s, "$argon2id$v=19$m=64,t=1,p=1$") {
		t.Fatal(s, err)
	}
	if again, _ := h.make(t.Context(), password); again == s {
		t.Error("no salt")
	}
	for p, want := range map[string]bool{password: true, password + "x": false, "": false} {
		if ok, err := h.check(t.Context(), "", p, s); ok != want || err != nil {
			t.Errorf("%q: %v, %v", p, ok, err)
		}
	}
	if ok, err := h.check(t.Context(), "", password, ""); ok || err != nil {
		t.Errorf("no stored hash: %v, %v", ok, err)
	}
	for _, bad := range []string{"x", "$argon2i$v=19$m=64,t=1,p=1$AAAA$AAAA", strings.Replace(s, "m=64", "m=99999999", 1),
		strings.Replace(s, "t=1", "t=0", 1), strings.Replace(s, "t=1", "t=4000000000", 1), strings.Replace(s, "v=19", "v=16", 1), s + "A", s + "$"} {
		if ok, err := h.check(t.Context(), "", password, bad); ok || err == nil {
			t.Errorf("%q: %v, %v", bad, ok, err)
		}
	}
}

// FuzzPHC: what is read is within bounds and is written the same.
func FuzzPHC(f *testing.F) {
	f.Add("$argon2id$v=19$m=65536,t=3,p=4$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")
	f.Fuzz(func(t *testing.T, s string) {
		p, err := parsePHC(s)
		if err == nil && (p.String() != s || !p.cost.valid()) {
			t.Errorf("%q", s)
		}
	})
}

// TestGate: two at once, a bounded number waiting, for a bounded time.
func TestGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(2, 3, 4, 10*time.Second)
		ctx := context.Background()
		var leaves []func()
		for range 2 {
			leave, err := g.enter(ctx, "a")
			if err != nil {
				t.Fatal(err)
			}
			leaves = append(leaves, leave)
		}
		results := make(chan error, 8)
		wait := func(source string) {
			go func() {
				leave, err := g.enter(ctx, source)
				if err == nil {
					leave()
				}
				results <- err
			}()
			synctest.Wait()
		}
		wait("a")
		wait("a")
		if _, err := g.enter(ctx, "a"); !errors.Is(err, sallyport.ErrExhausted) {
			t.Errorf("fifth of one source: %v", err)
		}
		wait("b")
		if _, err := g.enter(ctx, "c"); !errors.Is(err, sallyport.ErrExhausted) {
			t.Errorf("sixth of all: %v", err)
		}
		leaves[0]()
		synctest.Wait()
		for range 3 {
			if err := <-results; err != nil {
				t.Errorf("waited for a turn: %v", err)
			}
		}
		leave, err := g.enter(ctx, "a")
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if _, err := g.enter(ctx, "b"); !errors.Is(err, sallyport.ErrExhausted) || time.Since(began) != 10*time.Second {
			t.Errorf("waited %v: %v", time.Since(began), err)
		}
		leave()
		leaves[1]()
		if g.present != 0 || len(g.sources) != 0 || len(g.slots) != 0 {
			t.Errorf("left behind: %d, %v", g.present, g.sources)
		}
	})
}

// TestNewerFieldsStay: what a newer version has written into a user's record is
// there after each change by this one.
func TestNewerFieldsStay(t *testing.T) {
	h := openHouse(t, Optional)
	ctx := t.Context()
	h.add(t, "alice", false)
	it, err := h.store.Get(ctx, "users/alice")
	if err != nil {
		t.Fatal(err)
	}
	value := strings.Replace(string(it.Value), "{", `{"passkeys":[{"id":"x"}],`, 1)
	if _, err := h.store.Apply(ctx, store.Op{Key: it.Key, Value: []byte(value), Expect: it.Revision}); err != nil {
		t.Fatal(err)
	}
	stays := func(after string) {
		t.Helper()
		if it, err = h.store.Get(ctx, "users/alice"); err != nil || !strings.Contains(string(it.Value), `"passkeys":[{"id":"x"}]`) {
			t.Errorf("after %s: %s, %v", after, it.Value, err)
		}
	}
	if _, err := h.UpdateUser(ctx, User{Name: "alice", Roles: []string{"auditor"}, Revision: store.Any}); err != nil {
		t.Fatal(err)
	}
	stays("new roles")
	link, err := h.ResetUser(ctx, "alice", 0)
	if err != nil {
		t.Fatal(err)
	}
	stays("a reset")
	if _, err := h.Claim(ctx, Claim{Token: link.Token, Password: "a long enough password"}); err != nil {
		t.Fatal(err)
	}
	stays("a claim")
}
