package join

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/ca"
	"github.com/sallyport/sallyport/controlplane/login"
	"github.com/sallyport/sallyport/controlplane/store"
	"github.com/sallyport/sallyport/controlplane/store/etcd"
)

var agentKey, otherKey = []byte("one public key"), []byte("another public key")

// clock is a time that a test moves; one goroutine at a time.
type clock struct{ at time.Time }

func (c *clock) now() time.Time { return c.at }

func open(t testing.TB) (*Tokens, store.Store, *clock) {
	t.Helper()
	s, err := etcd.OpenEmbedded(context.Background(), etcd.EmbeddedConfig{Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	c := &clock{at: time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)}
	return New(s, c.now), s, c
}

func agents() Spec { return Spec{Roles: []sallyport.IdentityKind{sallyport.KindAgent}} }

func create(t testing.TB, tokens *Tokens, s Spec) string {
	t.Helper()
	secret, _, err := tokens.Create(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	return secret
}

func TestTokens(t *testing.T) {
	tokens, s, c := open(t)
	ctx := t.Context()
	spec := Spec{Roles: []sallyport.IdentityKind{sallyport.KindAgent, sallyport.KindGateway}, TTL: time.Hour, SingleUse: true,
		Allow:  Allow{Kinds: []sallyport.Kind{sallyport.KindDatabase}, Names: []string{"orders-*"}, Labels: map[string]string{"env": "prod"}},
		Labels: map[string]string{"team": "x"}}
	secret, tok, err := tokens.Create(ctx, spec)
	if err != nil {
		t.Fatal(err)
	}
	want := Token{Name: tok.Name, Roles: spec.Roles, Allow: spec.Allow, Labels: spec.Labels, Created: c.at, Expires: c.at.Add(time.Hour), SingleUse: true}
	if d := cmp.Diff(want, tok); d != "" || len(secret) != 40 || !strings.HasPrefix(tok.Name, secret[:6]+"-") {
		t.Errorf("secret of %d characters, name %s: %s", len(secret), tok.Name, d)
	}
	items, _, err := s.List(ctx, "")
	if err != nil || len(items) != 1 {
		t.Fatal(items, err)
	}
	if strings.Contains(string(items[0].Value)+items[0].Key, secret[:8]) {
		t.Error("the store holds the secret")
	}
	c.at = c.at.Add(time.Second)
	second := create(t, tokens, agents())
	all, err := tokens.List(ctx)
	if err != nil || len(all) != 2 || all[0].Name != tok.Name {
		t.Errorf("%+v, %v", all, err)
	}
	if shown, _ := json.Marshal(all); strings.Contains(string(shown), secret[:8]) || strings.Contains(string(shown), second[:8]) {
		t.Error("a list shows a secret")
	}
	if err := tokens.Delete(ctx, tok.Name); err != nil {
		t.Error(err)
	}
	if err := tokens.Delete(ctx, second); err != nil {
		t.Error(err)
	}
	for _, gone := range []string{tok.Name, second, "", strings.Repeat("x", 1<<16)} {
		if err := tokens.Delete(ctx, gone); !errors.Is(err, sallyport.ErrNotFound) {
			t.Errorf("delete %.10q: %v", gone, err)
		}
	}
	if _, err := tokens.Consume(ctx, Use{Secret: second, Kind: sallyport.KindAgent, Key: agentKey}); !errors.Is(err, sallyport.ErrUnauthorized) {
		t.Errorf("a deleted token: %v", err)
	}
}

func TestChosenSecret(t *testing.T) {
	tokens, _, _ := open(t)
	spec := agents()
	spec.Secret = "from-a-password-manager-0123456789"
	secret, tok, err := tokens.Create(t.Context(), spec)
	if err != nil || secret != spec.Secret || strings.Contains(tok.Name, spec.Secret[:4]) {
		t.Fatal(secret, tok.Name, err)
	}
	if _, _, err := tokens.Create(t.Context(), spec); !errors.Is(err, sallyport.ErrExists) {
		t.Errorf("the same again: %v", err)
	}
	if _, err := tokens.Consume(t.Context(), Use{Secret: secret, Kind: sallyport.KindAgent, Key: agentKey}); err != nil {
		t.Error(err)
	}
}

func TestConsume(t *testing.T) {
	tokens, _, c := open(t)
	ctx := t.Context()
	secret := create(t, tokens, Spec{Roles: agents().Roles, Allow: Allow{Names: []string{"x"}}})
	g, err := tokens.Consume(ctx, Use{Secret: secret, Kind: sallyport.KindAgent, Key: agentKey})
	if err != nil || uuid.Validate(g.HostID) != nil || g.Kind != sallyport.KindAgent || g.Allow.Names[0] != "x" || g.Token == "" {
		t.Fatalf("%+v, %v", g, err)
	}
	id := uuid.NewString()
	if g, err := tokens.Consume(ctx, Use{Secret: secret, Kind: sallyport.KindAgent, HostID: id, Key: otherKey}); err != nil || g.HostID != id {
		t.Errorf("second host, its own id: %+v, %v", g, err)
	}
	for _, bad := range []string{"x", strings.ToUpper(id), "{" + id + "}", id + "/..", strings.Repeat("a", 1000)} {
		if _, err := tokens.Consume(ctx, Use{Secret: secret, Kind: sallyport.KindAgent, HostID: bad, Key: agentKey}); !errors.Is(err, sallyport.ErrInvalid) {
			t.Errorf("host id %.10q: %v", bad, err)
		}
	}
	for name, u := range map[string]Use{
		"no secret":    {Kind: sallyport.KindAgent, Key: agentKey},
		"wrong secret": {Secret: strings.Repeat("0", 40), Kind: sallyport.KindAgent, Key: agentKey},
		"cut secret":   {Secret: secret[:39], Kind: sallyport.KindAgent, Key: agentKey},
		"upper case":   {Secret: strings.ToUpper(secret), Kind: sallyport.KindAgent, Key: agentKey},
		"huge secret":  {Secret: strings.Repeat("0", 1<<20), Kind: sallyport.KindAgent, Key: agentKey},
		"its name":     {Secret: g.Token, Kind: sallyport.KindAgent, Key: agentKey},
		"its hash":     {Secret: hash(secret), Kind: sallyport.KindAgent, Key: agentKey},
		"no key":       {Secret: secret, Kind: sallyport.KindAgent},
	} {
		if _, err := tokens.Consume(ctx, u); !errors.Is(err, sallyport.ErrUnauthorized) || err.Error() != refused().Error() {
			t.Errorf("%s: %v", name, err)
		}
	}
	c.at = c.at.Add(DefaultTTL - time.Second)
	if _, err := tokens.Consume(ctx, Use{Secret: secret, Kind: sallyport.KindAgent, Key: agentKey}); err != nil {
		t.Errorf("a second before its end: %v", err)
	}
	c.at = c.at.Add(time.Second)
	if _, err := tokens.Consume(ctx, Use{Secret: secret, Kind: sallyport.KindAgent, Key: agentKey}); !errors.Is(err, sallyport.ErrUnauthorized) {
		t.Errorf("an ended token: %v", err)
	}
	if all, err := tokens.List(ctx); err != nil || len(all) != 0 {
		t.Errorf("ended tokens in the list: %v, %v", all, err)
	}
}

// TestA08_TokenKinds is the matrix of token roles and what a host wants to be;
// and no other secret of the cluster is a join token, nor the reverse.
func TestA08_TokenKinds(t *testing.T) {
	tokens, s, c := open(t)
	ctx := t.Context()
	agent, gateway := sallyport.KindAgent, sallyport.KindGateway
	for _, roles := range [][]sallyport.IdentityKind{{agent}, {gateway}, {agent, gateway}} {
		secret := create(t, tokens, Spec{Roles: roles})
		for _, kind := range []sallyport.IdentityKind{agent, gateway, sallyport.KindAuth, sallyport.KindUser, sallyport.KindLocalAdmin, ""} {
			want := kind == roles[0] || len(roles) > 1 && kind == roles[1]
			g, err := tokens.Consume(ctx, Use{Secret: secret, Kind: kind, Key: agentKey})
			if (err == nil) != want || want && g.Kind != kind {
				t.Errorf("token for %v, host of kind %q: %v", roles, kind, err)
			}
			if !want && err.Error() != refused().Error() {
				t.Errorf("token for %v, host of kind %q: another answer: %v", roles, kind, err)
			}
		}
	}
	for _, kind := range []sallyport.IdentityKind{sallyport.KindAuth, sallyport.KindUser, sallyport.KindLocalAdmin, "", "db"} {
		if _, _, err := tokens.Create(ctx, Spec{Roles: []sallyport.IdentityKind{kind}}); !errors.Is(err, sallyport.ErrInvalid) {
			t.Errorf("token for %q: %v", kind, err)
		}
	}

	sealer, err := ca.OpenKeyFile(filepath.Join(t.TempDir(), "key"))
	if err != nil {
		t.Fatal(err)
	}
	people, err := login.New(login.Config{Store: s, Sealer: sealer, Now: c.now, Cost: login.Cost{Time: 1, Memory: 64, Threads: 1}})
	if err != nil {
		t.Fatal(err)
	}
	link, err := people.CreateUser(ctx, login.User{Name: "alice", Roles: []string{"access"}}, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tokens.Consume(ctx, Use{Secret: link.Token, Kind: agent, Key: agentKey}); !errors.Is(err, sallyport.ErrUnauthorized) {
		t.Errorf("a claim link joined a host: %v", err)
	}
	spec := agents()
	spec.Secret = "0123456789abcdef0123456789abcdef0123456789A" // as long as a link's token
	secret := create(t, tokens, spec)
	if _, err := people.Claim(ctx, login.Claim{Token: secret, Password: "correct horse battery"}); !errors.Is(err, sallyport.ErrNotFound) {
		t.Errorf("a join token claimed an account: %v", err)
	}
}

// TestA94_SingleUse: of many hosts at once one joins. It may repeat the call,
// with its own key and in its own kind; who stole the token may not.
func TestA94_SingleUse(t *testing.T) {
	tokens, s, c := open(t)
	ctx := t.Context()
	nodes := []*Tokens{tokens, New(s, c.now)}
	spec := Spec{Roles: []sallyport.IdentityKind{sallyport.KindAgent, sallyport.KindGateway}, SingleUse: true}
	secret := create(t, tokens, spec)
	var winner atomic.Int64
	var wins atomic.Int64
	var wg sync.WaitGroup
	for i := range 12 {
		wg.Go(func() {
			_, err := nodes[i%2].Consume(ctx, Use{Secret: secret, Kind: sallyport.KindAgent, Key: fmt.Append(nil, "key", i)})
			switch {
			case err == nil:
				wins.Add(1)
				winner.Store(int64(i))
			case !errors.Is(err, sallyport.ErrUnauthorized):
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if wins.Load() != 1 {
		t.Fatalf("%d hosts joined by a token for one use", wins.Load())
	}
	all, err := tokens.List(ctx)
	if err != nil || len(all) != 1 || all[0].UsedBy == "" {
		t.Fatal(all, err)
	}
	mine := fmt.Append(nil, "key", winner.Load())
	for range 2 {
		if g, err := tokens.Consume(ctx, Use{Secret: secret, Kind: sallyport.KindAgent, HostID: uuid.NewString(), Key: mine}); err != nil || g.HostID != all[0].UsedBy {
			t.Errorf("the same host again: %+v, %v", g, err)
		}
	}
	if _, err := tokens.Consume(ctx, Use{Secret: secret, Kind: sallyport.KindGateway, Key: mine}); !errors.Is(err, sallyport.ErrUnauthorized) {
		t.Errorf("the same key as another kind of host: %v", err)
	}
	if _, err := tokens.Consume(ctx, Use{Secret: secret, Kind: sallyport.KindAgent, HostID: all[0].UsedBy, Key: []byte("a thief's")}); !errors.Is(err, sallyport.ErrUnauthorized) {
		t.Errorf("another key with the host's id: %v", err)
	}
}

// TestA27_BoundedTokens: nothing of a token is unbounded or unprintable.
func TestA27_BoundedTokens(t *testing.T) {
	tokens, _, _ := open(t)
	long := strings.Repeat("x", maxText+1)
	many := make(map[string]string)
	for i := range maxLabels + 1 {
		many[fmt.Sprint(i)] = ""
	}
	spec := func(change func(s *Spec)) Spec {
		s := agents()
		change(&s)
		return s
	}
	for name, s := range map[string]Spec{
		"no role":        spec(func(s *Spec) { s.Roles = nil }),
		"role twice":     spec(func(s *Spec) { s.Roles = append(s.Roles, s.Roles...) }),
		"negative time":  spec(func(s *Spec) { s.TTL = -1 }),
		"very short":     spec(func(s *Spec) { s.TTL = time.Second }),
		"very long":      spec(func(s *Spec) { s.TTL = MaxTTL + 1 }),
		"weak secret":    spec(func(s *Spec) { s.Secret = strings.Repeat("x", minChosen-1) }),
		"long secret":    spec(func(s *Spec) { s.Secret = strings.Repeat("x", maxChosen+1) }),
		"blank secret":   spec(func(s *Spec) { s.Secret = strings.Repeat(" ", minChosen) }),
		"secret lines":   spec(func(s *Spec) { s.Secret = strings.Repeat("x", minChosen) + "\n" }),
		"unknown kind":   spec(func(s *Spec) { s.Allow.Kinds = []sallyport.Kind{"printer"} }),
		"kind twice":     spec(func(s *Spec) { s.Allow.Kinds = []sallyport.Kind{"db", "db"} }),
		"bad glob":       spec(func(s *Spec) { s.Allow.Names = []string{"["} }),
		"empty glob":     spec(func(s *Spec) { s.Allow.Names = []string{""} }),
		"long glob":      spec(func(s *Spec) { s.Allow.Names = []string{long} }),
		"many globs":     spec(func(s *Spec) { s.Allow.Names = make([]string, maxNames+1) }),
		"many labels":    spec(func(s *Spec) { s.Labels = many }),
		"long label":     spec(func(s *Spec) { s.Allow.Labels = map[string]string{"a": long} }),
		"label with ESC": spec(func(s *Spec) { s.Labels = map[string]string{"\x1b": ""} }),
	} {
		if _, _, err := tokens.Create(t.Context(), s); !errors.Is(err, sallyport.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzConsume: no secret but the one that was made joins.
func FuzzConsume(f *testing.F) {
	tokens, _, _ := open(f)
	secret, _, err := tokens.Create(context.Background(), agents())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(secret, "")
	f.Add(strings.ToUpper(secret), "x")
	f.Fuzz(func(t *testing.T, s, id string) {
		_, err := tokens.Consume(t.Context(), Use{Secret: s, HostID: id, Kind: sallyport.KindAgent, Key: agentKey})
		if err == nil && s != secret {
			t.Errorf("%q joined", s)
		}
	})
}
