package inventory

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/store"
	"github.com/sallyport/sallyport/controlplane/store/etcd"
)

func open(t testing.TB) *Inventory {
	t.Helper()
	s, err := etcd.OpenEmbedded(context.Background(), etcd.EmbeddedConfig{Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return New(Config{Store: s})
}

// join adds a host and returns its id.
func join(t testing.TB, inv *Inventory, kind sallyport.IdentityKind, allow Allow) string {
	t.Helper()
	id := uuid.NewString()
	if _, err := inv.Join(t.Context(), Host{ID: id, Kind: kind, Name: "h", Allow: allow}, []byte(id)); err != nil {
		t.Fatal(err)
	}
	return id
}

func agent(t testing.TB, inv *Inventory) string { return join(t, inv, sallyport.KindAgent, Allow{}) }

func db(name string) sallyport.Resource {
	return sallyport.Resource{Kind: sallyport.KindDatabase, Name: name, Protocol: "postgres", Address: "localhost:5432"}
}

func grouped(r sallyport.Resource, group string) sallyport.Resource {
	r.Group = group
	return r
}

func node(hostname string) sallyport.Resource {
	return sallyport.Resource{Kind: sallyport.KindNode, Hostname: hostname}
}

func announce(t testing.TB, inv *Inventory, id string, rs ...sallyport.Resource) Assignment {
	t.Helper()
	a, err := inv.Announce(t.Context(), id, rs, nil)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func names(a Assignment) string {
	var out []string
	for _, r := range a.Resources {
		out = append(out, keyOf(r))
	}
	for _, r := range a.Refusals {
		out = append(out, "!"+string(r.Kind)+"/"+r.Name)
	}
	return strings.Join(out, " ")
}

func TestJoin(t *testing.T) {
	inv := open(t)
	ctx := t.Context()
	id := uuid.NewString()
	h := Host{ID: id, Kind: sallyport.KindAgent, Name: "web1.corp", Allow: Allow{Names: []string{"a"}}, Token: "abc"}
	got, err := inv.Join(ctx, h, []byte("key"))
	if err != nil || got.Tag == 0 || got.Joined.IsZero() {
		t.Fatalf("%+v, %v", got, err)
	}
	h.Tag, h.Joined = got.Tag, got.Joined
	if d := cmp.Diff(h, got); d != "" {
		t.Error(d)
	}
	again := h
	again.Allow = Allow{Names: []string{"b"}}
	if re, err := inv.Join(ctx, again, []byte("key")); err != nil || re.Tag != got.Tag || !re.Joined.Equal(got.Joined) || re.Allow.Names[0] != "b" {
		t.Errorf("the same host again: %+v, %v", re, err)
	}
	if _, err := inv.Host(ctx, uuid.NewString()); !errors.Is(err, sallyport.ErrNotFound) {
		t.Errorf("unknown host: %v", err)
	}
	gw := join(t, inv, sallyport.KindGateway, Allow{})
	if err := inv.SetAddresses(ctx, gw, []string{"gw.example.com:443"}); err != nil {
		t.Error(err)
	}
	if h, err := inv.Host(ctx, gw); err != nil || h.Tag != 0 || h.Addresses[0] != "gw.example.com:443" {
		t.Errorf("%+v, %v", h, err)
	}
	if all, err := inv.Hosts(ctx); err != nil || len(all) != 2 {
		t.Errorf("%d hosts, %v", len(all), err)
	}
	for name, bad := range map[string]Host{
		"no id":          {Kind: sallyport.KindAgent},
		"id not a UUID":  {Kind: sallyport.KindAgent, ID: "x"},
		"upper case":     {Kind: sallyport.KindAgent, ID: strings.ToUpper(id)},
		"a user":         {Kind: sallyport.KindUser, ID: id},
		"auth":           {Kind: sallyport.KindAuth, ID: id},
		"A27 long name":  {Kind: sallyport.KindAgent, ID: id, Name: strings.Repeat("x", 254)},
		"name with ESC":  {Kind: sallyport.KindAgent, ID: id, Name: "\x1b"},
		"address alone":  {Kind: sallyport.KindGateway, ID: gw, Addresses: []string{"gw"}},
		"many addresses": {Kind: sallyport.KindGateway, ID: gw, Addresses: slices.Repeat([]string{"a:1"}, 17)},
	} {
		if _, err := inv.Join(ctx, bad, []byte("key")); !errors.Is(err, sallyport.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestA94_TakenID: a token does not make anybody a host that exists.
func TestA94_TakenID(t *testing.T) {
	inv := open(t)
	id := agent(t, inv)
	for name, h := range map[string]Host{
		"another key":  {ID: id, Kind: sallyport.KindAgent},
		"another kind": {ID: id, Kind: sallyport.KindGateway},
	} {
		key := []byte("a thief's key")
		if h.Kind == sallyport.KindGateway {
			key = []byte(id)
		}
		if _, err := inv.Join(t.Context(), h, key); !errors.Is(err, sallyport.ErrExists) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// At once: one key gets an id.
	id = uuid.NewString()
	var wg sync.WaitGroup
	errs := make([]error, 6)
	for i := range errs {
		wg.Go(func() {
			_, errs[i] = inv.Join(t.Context(), Host{ID: id, Kind: sallyport.KindAgent}, fmt.Append(nil, i))
		})
	}
	wg.Wait()
	won := 0
	for _, err := range errs {
		if err == nil {
			won++
		} else if !errors.Is(err, sallyport.ErrExists) {
			t.Error(err)
		}
	}
	if won != 1 {
		t.Errorf("%d hosts got one id", won)
	}
}

func TestTagsAreUnique(t *testing.T) {
	inv := open(t)
	seen := make(map[uint16]bool)
	for range 100 {
		h, err := inv.Host(t.Context(), agent(t, inv))
		if err != nil || h.Tag == 0 || seen[h.Tag] {
			t.Fatalf("tag %d, %v", h.Tag, err)
		}
		seen[h.Tag] = true
	}
	items, _, err := inv.store.List(t.Context(), "tags")
	if err != nil || len(items) != 100 {
		t.Errorf("%d tags, %v", len(items), err)
	}
}

// TestA06_OnlyOwnNames: what an agent is assigned is its own: allowed by its
// token, well named, and nobody else's.
func TestA06_OnlyOwnNames(t *testing.T) {
	inv := open(t)
	a, b := agent(t, inv), agent(t, inv)
	if got := names(announce(t, inv, a, db("orders"), grouped(db("shared"), "g1"))); got != "db/orders db/shared" {
		t.Fatal(got)
	}
	for _, c := range []struct {
		r    sallyport.Resource
		want string
	}{
		{db("orders"), "another agent"},
		{grouped(db("orders"), "g1"), "another agent"},
		{db("shared"), "another agent"},
		{grouped(db("shared"), "g2"), "another agent"},
		{grouped(db("shared"), "g1"), ""},
		{sallyport.Resource{Kind: sallyport.KindTCP, Name: "orders"}, ""},
		{db("node"), "reserved"}, {db("db"), "reserved"}, {db("kube"), "reserved"}, {db("tcp"), "reserved"}, {db("app"), "reserved"},
		{db("desktop"), "reserved"}, {db("auth"), "reserved"}, {db("api"), "reserved"}, {db("www"), "reserved"},
		{db(""), "DNS label"}, {db("a.b"), "DNS label"}, {db("A"), "DNS label"}, {db("*"), "DNS label"}, {db("a/b"), "DNS label"},
		{db("-a"), "DNS label"}, {db("a-"), "DNS label"}, {db("ä"), "DNS label"}, {db("a b"), "DNS label"}, {db("a_b"), "DNS label"},
		{db(strings.Repeat("a", 63)), ""}, {db(strings.Repeat("a", 64)), "DNS label"},
		{db("x\x00"), "not printable"}, {db("x\n"), "not printable"},
		{db(a), "host's id"},
		{db(strings.ReplaceAll(a, "-", "")), "host's id"},
		{sallyport.Resource{Kind: "printer", Name: "x"}, "kind is not known"},
		{sallyport.Resource{Name: "x"}, "kind is not known"},
	} {
		got := announce(t, inv, b, c.r)
		if c.want == "" {
			if len(got.Resources) != 1 || got.Resources[0].AgentID != b {
				t.Errorf("%s %q: %+v", c.r.Kind, c.r.Name, got.Refusals)
			}
			continue
		}
		if len(got.Resources) != 0 || len(got.Refusals) != 1 || !strings.Contains(got.Refusals[0].Reason, c.want) {
			t.Errorf("%s %q group %q: %+v %+v, want %q", c.r.Kind, c.r.Name, c.r.Group, got.Resources, got.Refusals, c.want)
		}
	}
	// The agent that is named in the resource plays no role.
	r := db("mine")
	r.AgentID, r.ID = a, a
	if got := announce(t, inv, b, r); len(got.Resources) != 1 || got.Resources[0].AgentID != b || got.Resources[0].ID != "" {
		t.Errorf("%+v", got)
	}
	if _, err := inv.Serves(t.Context(), b, sallyport.KindDatabase, "orders"); !errors.Is(err, sallyport.ErrNotFound) {
		t.Errorf("b serves a's database: %v", err)
	}
	if r, err := inv.Serves(t.Context(), a, sallyport.KindDatabase, "orders"); err != nil || r.AgentID != a {
		t.Errorf("%+v, %v", r, err)
	}
	gw := join(t, inv, sallyport.KindGateway, Allow{})
	if _, err := inv.Announce(t.Context(), gw, []sallyport.Resource{db("x")}, nil); !errors.Is(err, sallyport.ErrDenied) {
		t.Errorf("a gateway announces: %v", err)
	}
	for _, id := range []string{uuid.NewString(), "", "x"} {
		if _, err := inv.Announce(t.Context(), id, []sallyport.Resource{db("x")}, nil); !errors.Is(err, sallyport.ErrNotFound) {
			t.Errorf("host %q announces: %v", id, err)
		}
	}
}

// TestA06_Allow: the token's bounds hold for every announcement.
func TestA06_Allow(t *testing.T) {
	inv := open(t)
	prod := db("orders-eu")
	prod.Labels = map[string]string{"env": "prod", "x": "y"}
	for i, c := range []struct {
		allow Allow
		want  string
	}{
		{Allow{}, ""},
		{Allow{Kinds: []sallyport.Kind{"db", "node"}}, ""},
		{Allow{Kinds: []sallyport.Kind{"node"}}, "kind db"},
		{Allow{Names: []string{"a", "orders-*"}}, ""},
		{Allow{Names: []string{"orders"}}, "this name"},
		{Allow{Names: []string{"["}}, "this name"},
		{Allow{Labels: map[string]string{"env": "prod"}}, ""},
		{Allow{Labels: map[string]string{"env": "test"}}, "env=test"},
		{Allow{Labels: map[string]string{"team": ""}}, "team="},
		{Allow{Kinds: []sallyport.Kind{"db"}, Names: []string{"*"}, Labels: map[string]string{"x": "z"}}, "x=z"},
	} {
		id := join(t, inv, sallyport.KindAgent, c.allow)
		a := announce(t, inv, id, prod)
		switch {
		case c.want == "" && len(a.Resources) != 1:
			t.Errorf("%d: %+v", i, a.Refusals)
		case c.want != "" && (len(a.Refusals) != 1 || !strings.Contains(a.Refusals[0].Reason, c.want)):
			t.Errorf("%d: %+v", i, a)
		}
		announce(t, inv, id)
	}
	id := join(t, inv, sallyport.KindAgent, Allow{Names: []string{"web"}})
	if got := names(announce(t, inv, id, node("web"))); got != "node/web" {
		t.Error(got)
	}
	other := join(t, inv, sallyport.KindAgent, Allow{Names: []string{"web"}})
	a := announce(t, inv, other, node("web"))
	if names(a) != "!node/web" || !strings.Contains(a.Refusals[0].Reason, "another agent") {
		t.Errorf("%+v", a)
	}
}

// TestNames: who comes first keeps a name, however long it is gone; giving up
// and removal free it; agents of a group share it.
func TestNames(t *testing.T) {
	inv := open(t)
	ctx := t.Context()
	a, b := agent(t, inv), agent(t, inv)
	first := announce(t, inv, a, db("x"), db("y"))
	if again := announce(t, inv, a, db("x"), db("y")); again.Revision != first.Revision || again.Tag != first.Tag {
		t.Errorf("the same again changed something: revision %d, then %d", first.Revision, again.Revision)
	}
	if got := names(announce(t, inv, b, db("x"))); got != "!db/x" {
		t.Error(got)
	}
	if second := announce(t, inv, a, db("y")); second.Revision <= first.Revision {
		t.Error("giving up did not change the revision")
	}
	if got := names(announce(t, inv, b, db("x"), db("y"))); got != "db/x !db/y" {
		t.Errorf("after a gave x up: %s", got)
	}
	if got := names(announce(t, inv, a, db("x"), db("y"), db("y"))); got != "db/y !db/x !db/y" {
		t.Errorf("x is b's, y was said twice: %s", got)
	}
	changed := db("y")
	changed.Address = "localhost:5433"
	announce(t, inv, a, changed)
	if r, err := inv.Serves(ctx, a, sallyport.KindDatabase, "y"); err != nil || r.Address != "localhost:5433" {
		t.Errorf("%+v, %v", r, err)
	}
	if _, err := inv.Remove(ctx, a, time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if _, err := inv.Remove(ctx, a, time.Now().Add(time.Hour)); !errors.Is(err, sallyport.ErrNotFound) {
		t.Errorf("second removal: %v", err)
	}
	if got := names(announce(t, inv, b, db("x"), db("y"))); got != "db/x db/y" {
		t.Errorf("after a's removal: %s", got)
	}
	if _, err := inv.Announce(ctx, a, nil, nil); !errors.Is(err, sallyport.ErrNotFound) {
		t.Errorf("a removed agent announces: %v", err)
	}
	announce(t, inv, b)
	if _, err := inv.Remove(ctx, b, time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if items, _, err := inv.store.List(ctx, ""); err != nil || len(items) != 2 || items[0].Key != removedKey(min(a, b)) || items[1].Key != removedKey(max(a, b)) {
		t.Errorf("left behind: %v, %v", items, err)
	}
}

func TestGroups(t *testing.T) {
	inv := open(t)
	a, b, c := agent(t, inv), agent(t, inv), agent(t, inv)
	announce(t, inv, a, grouped(db("x"), "g"))
	if got := names(announce(t, inv, b, grouped(db("x"), "g"))); got != "db/x" {
		t.Fatal(got)
	}
	if got := names(announce(t, inv, a, grouped(db("x"), "h"))); got != "!db/x" {
		t.Errorf("one of a group takes the name to another: %s", got)
	}
	if got := names(announce(t, inv, b, grouped(db("x"), "h"))); got != "db/x" {
		t.Errorf("the only one left changes its group: %s", got)
	}
	announce(t, inv, a, grouped(db("x"), "h"))
	announce(t, inv, b)
	if got := names(announce(t, inv, c, db("x"))); got != "!db/x" {
		t.Errorf("a still has it: %s", got)
	}
	list, err := inv.List(t.Context(), "")
	if err != nil || len(list) != 1 || list[0].AgentID != a {
		t.Errorf("%+v, %v", list, err)
	}
}

// TestNamesRace: of many agents that announce one name at once one gets it,
// and it stays with it.
func TestNamesRace(t *testing.T) {
	inv := open(t)
	const n = 8
	var ids [n]string
	for i := range ids {
		ids[i] = agent(t, inv)
	}
	var got [n]string
	var wg sync.WaitGroup
	for i := range ids {
		wg.Go(func() {
			a, err := inv.Announce(t.Context(), ids[i], []sallyport.Resource{db("x"), grouped(db("all"), "g")}, nil)
			if err != nil {
				t.Error(err)
				return
			}
			got[i] = names(a)
		})
	}
	wg.Wait()
	winners := 0
	for i, g := range got {
		switch g {
		case "db/x db/all":
			winners++
			if e, err := inv.Find(t.Context(), sallyport.KindDatabase, "x"); err != nil || e.AgentID != ids[i] {
				t.Errorf("won by %s, found %+v, %v", ids[i], e, err)
			}
		case "db/all !db/x":
		default:
			t.Errorf("agent %d: %s", i, g)
		}
	}
	if winners != 1 {
		t.Errorf("%d agents have one name", winners)
	}
	o, _, err := inv.owners(t.Context(), sallyport.KindDatabase, "all")
	if err != nil || len(o.Agents) != n {
		t.Errorf("%d of %d share the group's name, %v", len(o.Agents), n, err)
	}
}

func TestNodeNames(t *testing.T) {
	inv := open(t)
	for host, want := range map[string]string{
		"web1":                                 "web1",
		"web1.corp.example.com":                "web1",
		"WEB_1":                                "web-1",
		"--a__b--":                             "a-b",
		"":                                     "host",
		"...":                                  "host",
		"node":                                 "host",
		"www.example.com":                      "host",
		"größe":                                "gr-e",
		strings.Repeat("a", 100):               strings.Repeat("a", 63),
		strings.Repeat("a", 62) + "-b":         strings.Repeat("a", 62),
		"0b5ad4b8-2dd6-4b7c-9d1f-3f5f2f6d2a10": "host",
	} {
		if got := slug(host); got != want {
			t.Errorf("slug of %q: %q, want %q", host, got, want)
		}
	}
	a, b, c := agent(t, inv), agent(t, inv), agent(t, inv)
	first := announce(t, inv, a, node("web.corp")).Resources[0]
	if first.Name != "web" || first.ID != a || first.Hostname != "web.corp" {
		t.Errorf("%+v", first)
	}
	second := announce(t, inv, b, node("web.other")).Resources[0]
	if want := "web-" + b[:4]; second.Name != want {
		t.Errorf("second: %s, want %s", second.Name, want)
	}
	long := strings.Repeat("l", 70)
	announce(t, inv, a, node(long))
	if n := announce(t, inv, c, node(long)).Resources[0].Name; len(n) > 63 || !strings.HasSuffix(n, "-"+c[:4]) {
		t.Errorf("long and taken: %s", n)
	}
	// a left "web"; b keeps the name that it has.
	if n := announce(t, inv, b, node("web.other")).Resources[0].Name; n != second.Name {
		t.Errorf("b's name became %s", n)
	}
	if got := names(announce(t, inv, c, node("x"), node("y"))); got != "node/x !node/y" {
		t.Errorf("two nodes of one agent: %s", got)
	}
	for _, name := range []string{c, "x"} {
		if e, err := inv.Find(t.Context(), sallyport.KindNode, name); err != nil || e.AgentID != c || e.Name != "x" {
			t.Errorf("find %s: %+v, %v", name, e, err)
		}
		if r, err := inv.Serves(t.Context(), c, sallyport.KindNode, name); err != nil || r.Name != "x" {
			t.Errorf("serves %s: %+v, %v", name, r, err)
		}
	}
	if _, err := inv.Serves(t.Context(), a, sallyport.KindNode, c); !errors.Is(err, sallyport.ErrNotFound) {
		t.Errorf("a serves c's id: %v", err)
	}
}

// TestA27_BoundedResources: nothing of a resource is unbounded or unprintable.
func TestA27_BoundedResources(t *testing.T) {
	inv := open(t)
	id := agent(t, inv)
	many := make(map[string]string)
	for i := range maxLabels + 1 {
		many[fmt.Sprint(i)] = ""
	}
	for name, change := range map[string]func(r *sallyport.Resource){
		"name":             func(r *sallyport.Resource) { r.Name = strings.Repeat("x", 1<<20) },
		"host name":        func(r *sallyport.Resource) { r.Hostname = strings.Repeat("x", 300) },
		"description":      func(r *sallyport.Resource) { r.Description = strings.Repeat("x", maxDescription+1) },
		"description, ESC": func(r *sallyport.Resource) { r.Description = "\x1b[2J" },
		"protocol":         func(r *sallyport.Resource) { r.Protocol = strings.Repeat("x", maxProtocol+1) },
		"address":          func(r *sallyport.Resource) { r.Address = strings.Repeat("x", maxAddress+1) },
		"address, lines":   func(r *sallyport.Resource) { r.Address = "a\r\nb" },
		"group":            func(r *sallyport.Resource) { r.Group = strings.Repeat("x", maxLabel+1) },
		"version":          func(r *sallyport.Resource) { r.Version = strings.Repeat("x", maxVersion+1) },
		"not UTF-8":        func(r *sallyport.Resource) { r.Version = "\xff" },
		"many labels":      func(r *sallyport.Resource) { r.Labels = many },
		"label name":       func(r *sallyport.Resource) { r.Labels = map[string]string{strings.Repeat("x", maxLabelName+1): ""} },
		"empty label":      func(r *sallyport.Resource) { r.Labels = map[string]string{"": "x"} },
		"label value":      func(r *sallyport.Resource) { r.Labels = map[string]string{"x": strings.Repeat("x", maxLabelValue+1)} },
		"kind":             func(r *sallyport.Resource) { r.Kind = sallyport.Kind(strings.Repeat("x", 1<<20)) },
	} {
		r := db("x")
		change(&r)
		a := announce(t, inv, id, r)
		if len(a.Resources) != 0 || len(a.Refusals) != 1 || len(a.Refusals[0].Name)+len(a.Refusals[0].Kind) > 2*maxLabel {
			t.Errorf("%s: %+v", name, a.Refusals)
		}
	}
	if _, err := inv.Announce(t.Context(), id, make([]sallyport.Resource, MaxResources+1), nil); !errors.Is(err, sallyport.ErrInvalid) {
		t.Errorf("too many: %v", err)
	}
}

// hooked calls a function before a change of names.
type hooked struct {
	store.Store
	before func()
}

func (h *hooked) Apply(ctx context.Context, ops ...store.Op) (int64, error) {
	if strings.HasPrefix(ops[0].Key, "names/") {
		h.before()
	}
	return h.Store.Apply(ctx, ops...)
}

// TestRemoveWhileAnnouncing: a host that is removed between the look at it and
// the taking of a name does not get the name.
func TestRemoveWhileAnnouncing(t *testing.T) {
	plain := open(t)
	id := agent(t, plain)
	inv := New(Config{Store: &hooked{plain.store, sync.OnceFunc(func() {
		if _, err := plain.Remove(t.Context(), id, time.Now().Add(time.Hour)); err != nil {
			t.Error(err)
		}
	})}})
	if _, err := inv.Announce(t.Context(), id, []sallyport.Resource{db("a"), db("b")}, nil); !errors.Is(err, sallyport.ErrNotFound) {
		t.Errorf("announce: %v", err)
	}
	if items, _, err := plain.store.List(t.Context(), ""); err != nil || len(items) != 1 || items[0].Key != removedKey(id) {
		t.Errorf("left behind: %d records, %v", len(items), err)
	}
}

// TestDifference: what an announcement changes is said before it is changed, and
// what does not change is not said.
func TestDifference(t *testing.T) {
	inv := open(t)
	a, b := agent(t, inv), agent(t, inv)
	var said []Difference
	tell := func(id string, rs ...sallyport.Resource) Assignment {
		t.Helper()
		said = nil
		out, err := inv.Announce(t.Context(), id, rs, func(d Difference, do func() error) error {
			said = append(said, d)
			before, err := inv.held(t.Context(), id)
			for _, key := range d.New {
				if _, had := before[key]; had || err != nil {
					t.Errorf("%s is there before it is said, %v", key, err)
				}
			}
			return do()
		})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	labelled := db("x")
	labelled.Labels = map[string]string{"env": "prod"}
	for _, c := range []struct {
		what string
		list []sallyport.Resource
		want []Difference
	}{
		{"nothing", nil, nil},
		{"new", []sallyport.Resource{db("y"), db("x")}, []Difference{{New: []string{"db/x", "db/y"}}}},
		{"the same", []sallyport.Resource{db("y"), db("x")}, nil},
		{"labels", []sallyport.Resource{db("y"), labelled}, []Difference{{Changed: []string{"db/x"}}}},
		{"all at once", []sallyport.Resource{db("x"), db("z")}, []Difference{{New: []string{"db/z"}, Changed: []string{"db/x"}, GivenUp: []string{"db/y"}}}},
		{"twice, and no name", []sallyport.Resource{db("x"), db("x"), db("z"), db("a.b")}, nil},
	} {
		tell(a, c.list...)
		if diff := cmp.Diff(c.want, said); diff != "" {
			t.Errorf("%s:\n%s", c.what, diff)
		}
	}
	if out := tell(b, db("x")); len(said) != 0 || len(out.Refusals) != 1 {
		t.Errorf("another's name: %v, %v", said, out.Refusals)
	}

	// Who is not told changes nothing.
	refused := errors.New("no")
	_, err := inv.Announce(t.Context(), a, nil, func(Difference, func() error) error { return refused })
	if !errors.Is(err, refused) || names(announce(t, inv, a, db("x"), db("z"))) != "db/x db/z" {
		t.Errorf("refused: %v", err)
	}
	announce(t, inv, b, db("mine"))
	if len(announce(t, inv, b, db("mine"), db("x")).Refusals) != 1 {
		t.Error("the name was given up")
	}
}

// TestTakenMeanwhile: where another agent is faster with a name that was said to be
// new, the error says so, and all else is changed.
func TestTakenMeanwhile(t *testing.T) {
	inv := open(t)
	a, b := agent(t, inv), agent(t, inv)
	var said []string
	out, err := inv.Announce(t.Context(), a, []sallyport.Resource{db("x"), db("y"), db("z")}, func(d Difference, do func() error) error {
		announce(t, inv, b, db("y"))
		err := do()
		said = append(said, fmt.Sprint(d.New, err))
		return errors.Join(err)
	})
	if err != nil || names(out) != "db/x db/z !db/y" {
		t.Errorf("%v, refused %v, %v", names(out), out.Refusals, err)
	}
	if want := []string{"[db/x db/y db/z] another agent has taken db/y meanwhile; the rest was changed"}; !slices.Equal(said, want) {
		t.Errorf("%q, want %q", said, want)
	}
}

// TestPartlyAnnounced: what stops a change says that part of it was made.
func TestPartlyAnnounced(t *testing.T) {
	plain := open(t)
	a := agent(t, plain)
	inv := New(Config{Store: &stopping{plain.store, 1}})
	for _, want := range []bool{true, false} {
		_, err := inv.Announce(t.Context(), a, []sallyport.Resource{db("x"), db("y")}, nil)
		if !errors.Is(err, sallyport.ErrUnavailable) || strings.Contains(err.Error(), "part of this was changed") != want {
			t.Errorf("part of it was made: %v: %v", want, err)
		}
	}
}

// TestRemoved: a host that was removed is named until its certificates have
// ended, and its id is nobody's meanwhile.
func TestRemoved(t *testing.T) {
	plain, ctx := open(t), t.Context()
	now := time.Now()
	inv := New(Config{Store: plain.store, Now: func() time.Time { return now }})
	removed := func(want ...string) {
		t.Helper()
		if got, err := inv.Removed(ctx); err != nil || !slices.Equal(got, want) {
			t.Errorf("removed: %q, %v; want %q", got, err, want)
		}
	}
	removed()
	a, g := agent(t, inv), join(t, inv, sallyport.KindGateway, Allow{})
	announce(t, inv, a, db("x"), db("y"))
	if freed, err := inv.Remove(ctx, a, now.Add(time.Hour)); err != nil || !slices.Equal(freed, []string{"db/x", "db/y"}) {
		t.Errorf("freed: %q, %v", freed, err)
	}
	removed(a)
	if freed, err := inv.Remove(ctx, g, now.Add(2*time.Hour)); err != nil || len(freed) != 0 {
		t.Errorf("freed: %q, %v", freed, err)
	}
	removed(min(a, g), max(a, g))
	for _, id := range []string{a, g} {
		_, err := inv.Join(ctx, Host{ID: id, Kind: sallyport.KindAgent, Name: "h"}, []byte(id))
		if !errors.Is(err, sallyport.ErrExists) || !strings.Contains(err.Error(), "was removed") {
			t.Errorf("a removed host joins again: %v", err)
		}
	}
	now = now.Add(time.Hour)
	removed(g)
	if _, err := inv.Remove(ctx, agent(t, inv), now); err != nil { // the next one clears up
		t.Error(err)
	}
	if items, _, err := inv.store.List(ctx, "removed"); err != nil || len(items) != 1 || items[0].Key != removedKey(g) {
		t.Errorf("left behind: %v, %v", items, err)
	}
	for _, id := range []string{"", "x", "../" + g, uuid.NewString()} {
		if _, err := inv.Remove(ctx, id, now); !errors.Is(err, sallyport.ErrNotFound) {
			t.Errorf("%q was removed: %v", id, err)
		}
	}
}

// stopping is a store that takes so many changes, and then none.
type stopping struct {
	store.Store
	left int
}

func (s *stopping) Apply(ctx context.Context, ops ...store.Op) (int64, error) {
	if s.left--; s.left < 0 {
		return 0, &sallyport.Problem{Kind: sallyport.ErrUnavailable, Fact: "the store is away"}
	}
	return s.Store.Apply(ctx, ops...)
}

// TestRemovalCutShort: names of a host whose removal failed half-way were nobody's
// for good.
func TestRemovalCutShort(t *testing.T) {
	plain, ctx := open(t), t.Context()
	id := agent(t, plain)
	announce(t, plain, id, db("x"), db("y"))
	inv := New(Config{Store: &stopping{plain.store, 2}})
	until := time.Now().Add(time.Hour)
	if _, err := inv.Remove(ctx, id, until); !errors.Is(err, sallyport.ErrUnavailable) {
		t.Fatalf("not cut short: %v", err)
	}
	if freed, err := plain.Remove(ctx, id, until); err != nil || !slices.Equal(freed, []string{"db/y"}) {
		t.Errorf("freed: %q, %v", freed, err)
	}
	if got := names(announce(t, plain, agent(t, plain), db("x"), db("y"))); got != "db/x db/y" {
		t.Error(got)
	}
}

// FuzzNames: what is assigned is a free DNS label, whatever is announced.
func FuzzNames(f *testing.F) {
	f.Add("orders", "web1.corp")
	f.Add("node", "WEB_1")
	f.Add("a.b", "-")
	f.Fuzz(func(t *testing.T, name, hostname string) {
		if nameFault(name) == "" && (strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" || len(name) > 63 || slices.Contains([]string{"node", "www"}, name)) {
			t.Errorf("name %q", name)
		}
		if s := slug(hostname); nameFault(s) != "" {
			t.Errorf("slug of %q: %q: %s", hostname, s, nameFault(s))
		}
	})
}

type storeLease = store.LeaseID

func leaseProbe(lease storeLease) store.Op {
	return store.Op{Key: "probe", Expect: store.Any, Lease: lease}
}

func after(t testing.TB) <-chan time.Time {
	t.Helper()
	return time.After(time.Minute)
}

// TestChangesOfAgent: one agent that announced other labels all the time filled
// the store with their history.
func TestChangesOfAgent(t *testing.T) {
	inv := open(t)
	now := time.Now()
	inv.now = func() time.Time { return now }
	a, b := agent(t, inv), agent(t, inv)
	list := func(prefix string, n int) (out []sallyport.Resource) {
		for i := range 8 {
			r := db(fmt.Sprintf("%s-%d", prefix, i))
			r.Labels = make(map[string]string)
			for j := range 15 {
				r.Labels[fmt.Sprint(j)] = fmt.Sprint(n, strings.Repeat("x", 240))
			}
			out = append(out, r)
		}
		return out
	}
	inv.changes.spent = map[string]spent{a: {changesBurst - 100<<10, now}} // not by hundreds of calls
	n := 0
	var err error
	for ; err == nil && n < 100; n++ {
		_, err = inv.Announce(t.Context(), a, list("a", n), nil)
	}
	if !errors.Is(err, sallyport.ErrExhausted) || n < 2 || n > 5 {
		t.Fatalf("call %d: %v", n, err)
	}
	if _, err := inv.Announce(t.Context(), b, list("b", 0), nil); err != nil {
		t.Errorf("another agent: %v", err)
	}
	now = now.Add(time.Minute)
	last := list("a", n)
	announce(t, inv, a, last...)
	now = now.Add(-time.Minute) // and there is nothing left
	for range 3 {
		announce(t, inv, a, last...) // what is the same costs nothing
	}
}
