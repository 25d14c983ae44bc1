package websession

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/store"
	"github.com/sallyport/sallyport/controlplane/store/etcd"
	"github.com/sallyport/sallyport/test/leak"
)

var made = false

var dir string

var the = sync.OnceValue(func() store.Store {
	made = true
	var err error
	if dir, err = os.MkdirTemp("", "websession"); err != nil {
		panic(err)
	}
	s, err := etcd.OpenEmbedded(context.Background(), etcd.EmbeddedConfig{Dir: filepath.Join(dir, "etcd"), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		panic(err)
	}
	return s
})

// TestMain fails when goroutines are left behind.
func TestMain(m *testing.M) {
	leak.Main(m, func() {
		if made {
			if err := errors.Join(the().Close(), os.RemoveAll(dir)); err != nil {
				fmt.Fprintln(os.Stderr, err)
			}
		}
	})
}

// clock is the time that a test sets.
type clock struct{ now atomic.Int64 }

func newClock() *clock {
	c := &clock{}
	c.now.Store(time.Now().UnixNano())
	return c
}

func (c *clock) time() time.Time      { return time.Unix(0, c.now.Load()) }
func (c *clock) pass(d time.Duration) { c.now.Add(int64(d)) }
func (c *clock) sessions() *Sessions  { return New(Config{Store: the(), Now: c.time}) }
func newUser() string                 { return "user-" + uuid.NewString()[:8] }
func someone(user string) Session {
	return Session{ID: NewID(), User: user, Addr: "192.0.2.1", Browser: "Browser/1", Credential: "c"}
}
func gone(err error) bool { return errors.Is(err, sallyport.ErrUnauthorized) }

func begin(t *testing.T, s *Sessions, user string) (string, Session) {
	t.Helper()
	beyond, err := s.Beyond(t.Context(), user)
	if err != nil {
		t.Fatal(err)
	}
	for _, old := range beyond {
		if _, err := s.End(t.Context(), user, old.ID); err != nil {
			t.Fatal(err)
		}
	}
	cookie, ws, err := s.Begin(t.Context(), someone(user))
	if err != nil {
		t.Fatal(err)
	}
	return cookie, ws
}

// TestTimes: a session ends when nobody uses it, and in any case; another
// process, such as one after an upgrade, knows it too.
func TestTimes(t *testing.T) {
	c := newClock()
	s := c.sessions()
	user := newUser()
	idle, _ := begin(t, s, user)
	c.pass(IdleTTL - time.Second)
	if _, err := s.Find(t.Context(), idle); err != nil {
		t.Errorf("just before it is idle: %v", err)
	}
	c.pass(IdleTTL - time.Second)
	if ws, err := c.sessions().Find(t.Context(), idle); err != nil || ws.User != user {
		t.Errorf("used meanwhile, at another process: %v", err)
	}
	c.pass(IdleTTL)
	if _, err := s.Find(t.Context(), idle); !gone(err) {
		t.Errorf("idle: %v", err)
	}
	if list, err := s.List(t.Context(), user); err != nil || len(list) != 0 {
		t.Errorf("idle and listed: %v %v", list, err)
	}
	busy, first := begin(t, s, user)
	for used := time.Duration(0); used < MaxTTL-time.Minute; used += 30 * time.Minute {
		if _, err := s.Find(t.Context(), busy); err != nil {
			t.Fatalf("after %v: %v", used, err)
		}
		c.pass(30 * time.Minute)
	}
	if _, err := s.Find(t.Context(), busy); !gone(err) {
		t.Errorf("after %v of use: %v", MaxTTL, err)
	}
	if got := first.Ends.Sub(first.Created); got != MaxTTL {
		t.Errorf("ends after %v", got)
	}
	short := someone(user)
	short.Ends = c.time().Add(10 * time.Minute)
	cookie, _, err := s.Begin(t.Context(), short)
	if err != nil {
		t.Fatal(err)
	}
	c.pass(10 * time.Minute)
	if _, err := s.Find(t.Context(), cookie); !gone(err) {
		t.Errorf("after its own end: %v", err)
	}
	c.pass(-3 * time.Hour)
	if _, err := s.Find(t.Context(), cookie); !gone(err) {
		t.Errorf("the clock went back: %v", err)
	}
}

// TestSecrets: nothing but the whole cookie opens a session, and the store does
// not have it.
func TestSecrets(t *testing.T) {
	s := newClock().sessions()
	user := newUser()
	cookie, ws := begin(t, s, user)
	tok, ok := parseToken(cookie)
	if !ok {
		t.Fatal(cookie)
	}
	wrong := tok
	wrong.secret[0] ^= 1
	owner := tok
	owner.owner = ownerOf("somebody else")
	for what, c := range map[string]string{"one bit of the secret": wrong.String(), "another user": owner.String(), "nothing": "", "its id": ws.ID, "its end": cookie[1:], "more": cookie + "A", "padded": cookie + "="} {
		if _, err := s.Find(t.Context(), c); !gone(err) {
			t.Errorf("%s: %v", what, err)
		}
	}
	app, err := s.BeginApp(t.Context(), user, ws.ID, "wiki")
	if err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string][2]string{"another application": {app, "notes"}, "the cluster's cookie": {cookie, "wiki"}, "no application": {app, ""}} {
		if _, err := s.FindApp(t.Context(), c[0], c[1]); !gone(err) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := s.Find(t.Context(), app); !gone(err) {
		t.Errorf("an application's cookie at the cluster's origin: %v", err)
	}
	if got, err := s.FindApp(t.Context(), app, "wiki"); err != nil || got.ID != ws.ID {
		t.Errorf("%v %v", got, err)
	}
	code, err := s.PutCode(t.Context(), Code{Purpose: ForApp, User: user, Session: ws.ID, Challenge: Challenge(newCode()), App: "wiki"})
	if err != nil {
		t.Fatal(err)
	}
	device, _, _, err := s.BeginDevice(t.Context(), user, Device{})
	if err != nil {
		t.Fatal(err)
	}
	items, _, err := the().List(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	dev, _ := parseDeviceToken(device)
	for _, it := range items {
		for what, secret := range map[string]string{"cookie": cookie, "secret": string(tok.secret[:]), "application's cookie": app, "code": code, "device's": device, "device's secret": string(dev.secret[:])} {
			if strings.Contains(it.Key+string(it.Value), secret) {
				t.Errorf("%s has the %s", it.Key, what)
			}
		}
	}
}

// TestRoom: sessions, applications and cookies are bounded; the oldest make room.
func TestRoom(t *testing.T) {
	c := newClock()
	s := c.sessions()
	user := newUser()
	first, _ := begin(t, s, user)
	second, _ := begin(t, s, user)
	c.pass(2 * time.Minute)
	if _, err := s.Find(t.Context(), first); err != nil { // used later than the second
		t.Fatal(err)
	}
	for range maxPerUser - 1 {
		c.pass(time.Second)
		begin(t, s, user)
	}
	if _, err := s.Find(t.Context(), second); !gone(err) {
		t.Errorf("the one unused for longest: %v", err)
	}
	if _, err := s.Find(t.Context(), first); err != nil {
		t.Errorf("the one used later: %v", err)
	}
	list, err := s.List(t.Context(), user)
	if err != nil || len(list) != maxPerUser {
		t.Fatalf("%d sessions, %v", len(list), err)
	}
	id := list[0].ID
	var cookies []string
	for range maxPerApp + 1 {
		cookie, err := s.BeginApp(t.Context(), user, id, "wiki")
		if err != nil {
			t.Fatal(err)
		}
		cookies = append(cookies, cookie)
	}
	for i, cookie := range cookies {
		if _, err := s.FindApp(t.Context(), cookie, "wiki"); gone(err) != (i == 0) {
			t.Errorf("cookie %d: %v", i, err)
		}
	}
	for i := range maxApps - 1 {
		if _, err := s.BeginApp(t.Context(), user, id, fmt.Sprint("app", i)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.BeginApp(t.Context(), user, id, "one-more"); !errors.Is(err, sallyport.ErrExhausted) {
		t.Errorf("one application more: %v", err)
	}
}

// TestSeeApp: to ask about a session does not keep it alive, to use it does.
func TestSeeApp(t *testing.T) {
	for uses, want := range map[bool]bool{true: true, false: false} {
		c := newClock()
		s := c.sessions()
		user := newUser()
		_, ws := begin(t, s, user)
		app, err := s.BeginApp(t.Context(), user, ws.ID, "wiki")
		if err != nil {
			t.Fatal(err)
		}
		ask := s.SeeApp
		if uses {
			ask = s.FindApp
		}
		var got Session
		for range 4 {
			c.pass(IdleTTL / 3)
			got, err = ask(t.Context(), app, "wiki")
		}
		if alive := err == nil && got.ID == ws.ID; alive != want || !want && !gone(err) {
			t.Errorf("used %v: %v, %v", uses, got, err)
		}
		for what, c := range map[string][2]string{"another application": {app, "notes"}, "no cookie": {"", "wiki"}} {
			if _, err := s.SeeApp(t.Context(), c[0], c[1]); !gone(err) {
				t.Errorf("%s: %v", what, err)
			}
		}
	}
}

// TestCodeRace: of many who bring a code one is answered.
func TestCodeRace(t *testing.T) {
	s := newClock().sessions()
	verifier, user := newCode(), newUser()
	_, ws := begin(t, s, user)
	code, err := s.PutCode(t.Context(), Code{Purpose: ForProgram, User: user, Session: ws.ID, Challenge: Challenge(verifier), Keys: "k"})
	if err != nil {
		t.Fatal(err)
	}
	var won atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			_, err := s.TakeCode(t.Context(), code, Proof{Purpose: ForProgram, Verifier: verifier, Keys: "k"})
			if err == nil {
				won.Add(1)
			} else if !gone(err) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 {
		t.Errorf("%d were answered", won.Load())
	}
}

// TestCodes: a code is good for what it was made for, and for a minute.
func TestCodes(t *testing.T) {
	c := newClock()
	s := c.sessions()
	verifier, user := newCode(), newUser()
	_, ws := begin(t, s, user)
	right := Proof{Purpose: ForProgram, Verifier: verifier, Keys: "k"}
	for what, try := range map[string]struct {
		proof Proof
		after time.Duration
		ok    bool
	}{
		"right": {right, CodeTTL - time.Second, true}, "late": {right, CodeTTL, false}, "early": {right, -time.Hour, false},
		"another purpose": {Proof{Purpose: ForApp, Verifier: verifier, Keys: "k"}, 0, false},
		"other keys":      {Proof{Purpose: ForProgram, Verifier: verifier, Keys: "K"}, 0, false}, "an application": {Proof{Purpose: ForProgram, Verifier: verifier, Keys: "k", App: "wiki"}, 0, false},
		"another verifier": {Proof{Purpose: ForProgram, Verifier: newCode(), Keys: "k"}, 0, false}, "the challenge": {Proof{Purpose: ForProgram, Verifier: Challenge(verifier), Keys: "k"}, 0, false},
		"another network": {Proof{Purpose: ForProgram, Verifier: verifier, Keys: "k", From: "192.0.2.1"}, 0, false},
		"no verifier":     {Proof{Purpose: ForProgram, Keys: "k"}, 0, false}, "a long verifier": {Proof{Purpose: ForProgram, Verifier: verifier + "A", Keys: "k"}, 0, false},
	} {
		code, err := s.PutCode(t.Context(), Code{Purpose: ForProgram, User: user, Session: ws.ID, Challenge: Challenge(verifier), Keys: "k"})
		if err != nil {
			t.Fatal(err)
		}
		c.pass(try.after)
		if got, err := s.TakeCode(t.Context(), code, try.proof); (err == nil) != try.ok || err != nil && !gone(err) || try.ok && got.User != user {
			t.Errorf("%s: %v %v", what, got, err)
		}
		c.pass(-try.after)
		if _, err := s.TakeCode(t.Context(), code, right); !gone(err) {
			t.Errorf("%s, once more: %v", what, err)
		}
	}
	if _, err := s.PutCode(t.Context(), Code{Purpose: ForApp, Challenge: "short"}); !errors.Is(err, sallyport.ErrInvalid) {
		t.Errorf("without a challenge: %v", err)
	}
	for what, c := range map[string]Code{"no session": {User: user}, "none of its user's": {User: newUser(), Session: ws.ID}, "one that is not": {User: user, Session: NewID()}} {
		c.Purpose, c.Challenge = ForApp, Challenge(verifier)
		if _, err := s.PutCode(t.Context(), c); !gone(err) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestCodesAtOnce: a browser opens all its bookmarks, and each begins a login.
func TestCodesAtOnce(t *testing.T) {
	s := newClock().sessions()
	user := newUser()
	_, ws := begin(t, s, user)
	var group errgroup.Group
	for range maxCodes {
		group.Go(func() error {
			_, err := s.PutCode(t.Context(), Code{Purpose: ForApp, User: user, Session: ws.ID, Challenge: Challenge(newCode()), App: "wiki"})
			return err
		})
	}
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
}

// TestCodesBound: any page could make a browser fill the store with codes.
func TestCodesBound(t *testing.T) {
	c := newClock()
	s := c.sessions()
	user := newUser()
	cookie, ws := begin(t, s, user)
	put := func() (string, error) {
		return s.PutCode(t.Context(), Code{Purpose: ForApp, User: user, Session: ws.ID, Challenge: Challenge(newCode()), App: "wiki"})
	}
	full := func(when string) {
		t.Helper()
		for i := range maxCodes {
			if _, err := put(); err != nil {
				t.Fatalf("%s: code %d: %v", when, i, err)
			}
		}
		if _, err := put(); !errors.Is(err, sallyport.ErrExhausted) {
			t.Errorf("%s: one more: %v", when, err)
		}
	}
	full("at first")
	_, ws2 := begin(t, s, user)
	if _, err := s.PutCode(t.Context(), Code{Purpose: ForApp, User: user, Session: ws2.ID, Challenge: Challenge(newCode()), App: "wiki"}); err != nil {
		t.Errorf("another session: %v", err)
	}
	if _, err := s.Find(t.Context(), cookie); err != nil {
		t.Errorf("the session itself: %v", err)
	}
	c.pass(CodeTTL)
	full("a minute later")
	c.pass(-30 * time.Minute)
	full("after the clock went back")
}

// TestDevices: a request is decided once, told once, and ends; strangers have
// room for few.
func TestDevices(t *testing.T) {
	c := newClock()
	s := c.sessions()
	source := newUser()
	by := someone("alice")
	device, code, _, err := s.BeginDevice(t.Context(), source, Device{Host: "lap\x1b[2Jtop", Addr: "192.0.2.9", Seconds: 60, TLSKey: []byte("t"), SSHKey: []byte("s")})
	if err != nil {
		t.Fatal(err)
	}
	if d, err := s.Device(t.Context(), code); err != nil || d.Host != "lap[2Jtop" || d.Addr != "192.0.2.9" || d.State != Pending {
		t.Errorf("%+v %v", d, err)
	}
	if d, err := s.Poll(t.Context(), device); err != nil || d.State != Pending {
		t.Errorf("%+v %v", d, err)
	}
	c.pass(PollEvery - 2*time.Second)
	if _, err := s.Poll(t.Context(), device); !errors.Is(err, ErrTooSoon) {
		t.Errorf("too soon: %v", err)
	}
	if err := s.Decide(t.Context(), code, by, true); err != nil {
		t.Fatal(err)
	}
	if err := s.Decide(t.Context(), code, someone("mallory"), true); !errors.Is(err, sallyport.ErrNotFound) {
		t.Errorf("decided twice: %v", err)
	}
	if _, err := s.Device(t.Context(), code); !errors.Is(err, sallyport.ErrNotFound) {
		t.Errorf("decided, and still shown: %v", err)
	}
	dev, _ := parseDeviceToken(device)
	dev.secret[3] ^= 4
	if _, err := s.Poll(t.Context(), dev.String()); !errors.Is(err, sallyport.ErrNotFound) {
		t.Errorf("another secret: %v", err)
	}
	c.pass(PollEvery)
	if d, err := s.Poll(t.Context(), device); err != nil || d.State != Approved || d.User != "alice" || d.Session != by.ID || string(d.TLSKey) != "t" {
		t.Errorf("%+v %v", d, err)
	}
	c.pass(PollEvery)
	if _, err := s.Poll(t.Context(), device); !errors.Is(err, sallyport.ErrNotFound) {
		t.Errorf("told twice: %v", err)
	}
	// Its place is free again: as many as there may be, and no more.
	var codes []string
	for range maxPerSource {
		_, code, _, err := s.BeginDevice(t.Context(), source, Device{})
		if err != nil {
			t.Fatal(err)
		}
		codes = append(codes, code)
	}
	if _, _, _, err := s.BeginDevice(t.Context(), source, Device{}); !errors.Is(err, sallyport.ErrExhausted) {
		t.Errorf("one more of a source: %v", err)
	}
	if _, _, _, err := s.BeginDevice(t.Context(), newUser(), Device{}); err != nil {
		t.Errorf("another source: %v", err)
	}
	s.waits.count = maxDevices
	if _, _, _, err := s.BeginDevice(t.Context(), newUser(), Device{}); !errors.Is(err, sallyport.ErrExhausted) {
		t.Errorf("one more of all: %v", err)
	}
	c.pass(DeviceTTL)
	if err := s.Decide(t.Context(), codes[0], by, true); !errors.Is(err, sallyport.ErrNotFound) {
		t.Errorf("late: %v", err)
	}
}

// writes counts what goes through the store's log.
type writes struct {
	store.Store
	n int
}

func (w *writes) Grant(ctx context.Context, ttl time.Duration) (store.LeaseID, error) {
	w.n++
	return w.Store.Grant(ctx, ttl)
}

func (w *writes) Revoke(ctx context.Context, id store.LeaseID) error {
	w.n++
	return w.Store.Revoke(ctx, id)
}

func (w *writes) Apply(ctx context.Context, ops ...store.Op) (int64, error) {
	w.n++
	return w.Store.Apply(ctx, ops...)
}

// TestRefusedDevices: each request of a stranger beyond his bound cost six writes, which held
// up everybody's, and a place of all that wait.
func TestRefusedDevices(t *testing.T) {
	c := newClock()
	w := &writes{Store: the()}
	s := New(Config{Store: w, Now: c.time})
	source := newUser()
	for range maxPerSource {
		if _, _, _, err := s.BeginDevice(t.Context(), source, Device{}); err != nil {
			t.Fatal(err)
		}
	}
	if w.n != 2*maxPerSource {
		t.Errorf("%d writes for %d requests", w.n, maxPerSource)
	}
	count := s.waits.count
	for range 10 {
		if _, _, _, err := s.BeginDevice(t.Context(), source, Device{}); !errors.Is(err, sallyport.ErrExhausted) {
			t.Errorf("beyond the bound: %v", err)
		}
	}
	if w.n != 2*maxPerSource || s.waits.count != count {
		t.Errorf("%d writes and %d places for those that were refused", w.n-2*maxPerSource, s.waits.count-count)
	}
}
