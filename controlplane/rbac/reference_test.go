package rbac

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport"
)

// The reference evaluator: the same rules, written again from the text of the
// specification, over plain data, without speed and without our parser.

type refSide struct {
	Namespaces []string
	Logins     []string
	DBUsers    []string
	DBNames    []string
	Node       refLabels
	DB         refLabels
	App        refLabels
}

type refLabels struct {
	Map  map[string][]string // nil: not given
	Expr string              // a key of refExprs
}

type refRole struct {
	Name    string
	Version int
	MFA     bool
	Allow   refSide
	Deny    refSide
}

type refQuestion struct {
	Kind          sallyport.Kind
	Labels        map[string]string
	Login, DBUser string
	DBName        string
	Traits        map[string][]string
	Roles         []string
}

// refExprs pairs each expression with what it means.
var refExprs = map[string]func(q *refQuestion) bool{
	`labels["a"] == "x"`:                          func(q *refQuestion) bool { return q.Labels["a"] == "x" },
	`labels.b != "y" && labels["a"] != ""`:        func(q *refQuestion) bool { return q.Labels["b"] != "y" && q.Labels["a"] != "" },
	`!(labels["a"] == "x" || labels["b"] == "x")`: func(q *refQuestion) bool { return q.Labels["a"] != "x" && q.Labels["b"] != "x" },
	`contains(user.spec.traits["t"], labels["b"])`: func(q *refQuestion) bool {
		return slices.Contains(q.Traits["t"], q.Labels["b"])
	},
	`contains_all(set("x", "y"), user.spec.traits["t"])`: func(q *refQuestion) bool {
		for _, v := range q.Traits["t"] {
			if v != "x" && v != "y" {
				return false
			}
		}
		return len(q.Traits["t"]) > 0
	},
	`regexp.match(labels_matching("*"), "^x")`: func(q *refQuestion) bool {
		return slices.ContainsFunc(slices.Collect(maps.Values(q.Labels)), func(v string) bool { return strings.HasPrefix(v, "x") })
	},
	`contains(email.local(user.spec.traits["mail"]), "x")`: func(q *refQuestion) bool { return slices.Contains(q.Traits["mail"], "x@y") },
}

// refExpand fills in one template of the kinds that are generated.
func refExpand(s string, traits map[string][]string) []string {
	i, j := strings.Index(s, "{{"), strings.Index(s, "}}")
	if i < 0 {
		return []string{s}
	}
	var out []string
	trait := strings.TrimPrefix(strings.TrimPrefix(s[i+2:j], "external."), "internal.")
	for _, v := range traits[trait] {
		if v != "" {
			out = append(out, s[:i]+v+s[j+2:])
		}
	}
	return out
}

func refHas(list []string, traits map[string][]string, want string, star bool) bool {
	for _, s := range list {
		for _, v := range refExpand(s, traits) {
			if v == want && v != "" || star && v == "*" {
				return true
			}
		}
	}
	return false
}

func refMatchMap(m map[string][]string, q *refQuestion) bool {
	if len(m) == 0 {
		return false
	}
	if slices.Equal(m["*"], []string{"*"}) {
		return true
	}
	for key, values := range m {
		have, ok := q.Labels[key]
		if !ok {
			return false
		}
		one := false
		for _, s := range values {
			for _, v := range refExpand(s, q.Traits) {
				re := v
				if !strings.HasPrefix(v, "^") || !strings.HasSuffix(v, "$") {
					re = `(?s)\A` + strings.ReplaceAll(regexp.QuoteMeta(v), `\*`, `.*`) + `\z`
				}
				one = one || v != "" && regexp.MustCompile(re).MatchString(have)
			}
		}
		if !one {
			return false
		}
	}
	return true
}

func (s *refSide) labels(k sallyport.Kind) *refLabels {
	switch k {
	case sallyport.KindNode:
		return &s.Node
	case sallyport.KindDatabase:
		return &s.DB
	}
	return &s.App
}

func (s *refSide) here() bool {
	return s.Namespaces == nil || slices.Contains(s.Namespaces, "default") || slices.Contains(s.Namespaces, "*")
}

func refDecide(roles map[string]*refRole, q *refQuestion) bool {
	mfa, allowed := false, false
	for _, name := range q.Roles {
		d := &roles[name].Deny
		l := d.labels(q.Kind)
		denied := refMatchMap(l.Map, q) || l.Expr != "" && refExprs[l.Expr](q)
		denied = denied || q.Kind == sallyport.KindNode && refHas(d.Logins, q.Traits, q.Login, true)
		denied = denied || q.Kind == sallyport.KindDatabase && (refHas(d.DBUsers, q.Traits, q.DBUser, true) || refHas(d.DBNames, q.Traits, q.DBName, true))
		if denied && d.here() {
			return false
		}
	}
	for _, name := range q.Roles {
		r := roles[name]
		a := &r.Allow
		l := *a.labels(q.Kind)
		if r.Version == 3 && l.Map == nil && l.Expr == "" && (q.Kind != sallyport.KindNode || len(a.Logins) > 0) {
			l.Map = map[string][]string{"*": {"*"}}
		}
		match := len(l.Map) > 0 || l.Expr != ""
		match = match && (len(l.Map) == 0 || refMatchMap(l.Map, q)) && (l.Expr == "" || refExprs[l.Expr](q))
		switch q.Kind {
		case sallyport.KindNode:
			match = match && refHas(a.Logins, q.Traits, q.Login, false)
		case sallyport.KindDatabase:
			match = match && refHas(a.DBUsers, q.Traits, q.DBUser, true) && refHas(a.DBNames, q.Traits, q.DBName, true)
		}
		if match && a.here() {
			allowed, mfa = true, mfa || r.MFA
		}
	}
	return allowed && !mfa
}

// Generators. The alphabets are small, so that things match often.

type dice struct{ *rand.Rand }

func (d dice) one(of ...string) string { return of[d.IntN(len(of))] }

func (d dice) some(n int, of ...string) []string {
	var out []string
	for range d.IntN(n + 1) {
		out = append(out, d.one(of...))
	}
	return out
}

func (d dice) labels() refLabels {
	var l refLabels
	switch d.IntN(6) {
	case 0:
		l.Map = map[string][]string{"*": {"*"}}
	case 1, 2, 3:
		l.Map = map[string][]string{}
		for range d.IntN(3) {
			l.Map[d.one("a", "b")] = append(d.some(1, "x", "z"), d.one("x", "y", "x*", "*", "*y*", "^(x|y)$", "^x", "{{external.t}}", "p-{{external.t}}", "{{external.none}}", "{{internal.logins}}*"))
		}
	}
	if d.IntN(4) == 0 {
		l.Expr = d.one(slices.Sorted(maps.Keys(refExprs))...)
	}
	return l
}

func (d dice) side(deny bool) refSide {
	names := []string{"x", "y", "root", "{{external.t}}", "{{internal.logins}}", "p-{{external.t}}"}
	if deny && d.IntN(2) == 0 {
		return refSide{} // or little would ever be allowed
	}
	stars := append(names, "*")
	s := refSide{Logins: d.some(3, names...), DBUsers: d.some(3, stars...), DBNames: d.some(3, stars...), Node: d.labels(), DB: d.labels(), App: d.labels()}
	if d.IntN(8) == 0 {
		s.Namespaces = []string{d.one("default", "other", "*")}
	}
	if deny { // one thing
		only := refSide{Namespaces: s.Namespaces}
		switch d.IntN(4) {
		case 0:
			only.Logins = s.Logins[:min(1, len(s.Logins))]
		case 1:
			only.DBUsers = s.DBUsers[:min(1, len(s.DBUsers))]
		case 2:
			only.Node, only.DB = d.labels(), refLabels{}
		case 3:
			only.DB, only.App = d.labels(), d.labels()
		}
		return only
	}
	return s
}

func (d dice) role(name string) *refRole {
	return &refRole{Name: name, Version: 3 + d.IntN(6), MFA: d.IntN(12) == 0, Allow: d.side(false), Deny: d.side(true)}
}

func (d dice) question(roles []string) *refQuestion {
	q := &refQuestion{Kind: []sallyport.Kind{sallyport.KindNode, sallyport.KindDatabase, sallyport.KindTCP, sallyport.KindApp}[d.IntN(4)],
		Labels: map[string]string{}, Traits: map[string][]string{}, Roles: roles}
	for _, k := range d.some(3, "a", "b") {
		q.Labels[k] = d.one("x", "y", "xx", "", "p-x", "z")
	}
	names := []string{"x", "y", "root", "p-x", "q"}
	q.Login, q.DBUser, q.DBName = d.one(names...), d.one(names...), d.one(names...)
	if d.IntN(4) > 0 {
		q.Traits["t"] = d.some(2, "x", "y", "", "x*")
	}
	if d.IntN(2) > 0 {
		q.Traits["logins"] = d.some(2, "x", "root")
	}
	if d.IntN(2) > 0 {
		q.Traits["mail"] = []string{"x@y"}
	}
	return q
}

// document writes a role as JSON, the way a person's tool would.
func (r *refRole) document(extra ...func(spec map[string]any)) []byte {
	side := func(s *refSide) map[string]any {
		m := map[string]any{}
		for name, list := range map[string][]string{"namespaces": s.Namespaces, "logins": s.Logins, "db_users": s.DBUsers, "db_names": s.DBNames} {
			if list != nil {
				m[name] = list
			}
		}
		for name, l := range map[string]refLabels{"node_labels": s.Node, "db_labels": s.DB, "app_labels": s.App} {
			if l.Map != nil {
				m[name] = l.Map
			}
			if l.Expr != "" {
				m[name+"_expression"] = l.Expr
			}
		}
		return m
	}
	spec := map[string]any{"allow": side(&r.Allow), "deny": side(&r.Deny), "options": map[string]any{"require_session_mfa": r.MFA}}
	for _, f := range extra {
		f(spec)
	}
	b, err := json.Marshal(map[string]any{"kind": "role", "version": fmt.Sprintf("v%d", r.Version), "metadata": map[string]any{"name": r.Name}, "spec": spec})
	if err != nil {
		panic(err)
	}
	return b
}

func (q *refQuestion) request() sallyport.AccessRequest {
	return sallyport.AccessRequest{
		Identity: sallyport.Identity{Kind: sallyport.KindUser, Name: "alice", Cluster: "c", Roles: q.Roles, Traits: q.Traits},
		Resource: sallyport.Resource{Kind: q.Kind, Name: "r", Protocol: "postgres", Labels: q.Labels},
		Login:    q.Login, DBUser: q.DBUser, DBName: q.DBName, Now: time.Unix(1e9, 0),
	}
}

func parse(t testing.TB, doc []byte) *Role {
	t.Helper()
	r, _, err := ParseRole(doc)
	if err != nil {
		t.Fatalf("%v\n%s", err, doc)
	}
	return r
}

// TestA96_ReferenceEvaluator compares random policies with the reference, and
// checks that whatever is added to restrict never allows more.
func TestA96_ReferenceEvaluator(t *testing.T) {
	t.Parallel()
	policies := 4_000 // eight questions and a stricter policy each
	if testing.Short() {
		policies = 500
	}
	allowed := 0
	for seed := range uint64(policies) {
		d := dice{rand.New(rand.NewPCG(seed, 96))}
		refs := map[string]*refRole{}
		var roles []*Role
		var held []string
		for i := range 1 + d.IntN(4) {
			r := d.role(fmt.Sprintf("r%d", i))
			refs[r.Name] = r
			roles = append(roles, parse(t, r.document()))
			held = append(held, r.Name)
		}
		p := NewPolicy(roles, seed)
		stricter := d.stricter(t, refs, roles)
		for range 8 {
			q := d.question(held)
			got, want := p.Decide(q.request()), refDecide(refs, q)
			if got.Allowed != want || got.Reason == "" || got.Allowed && refs[got.Role] == nil {
				t.Fatalf("seed %d: %+v, want %v\nquestion %+v\n%s", seed, got, want, q, documents(refs))
			}
			if got.Allowed {
				allowed++
			}
			if !got.Allowed && stricter.Decide(q.request()).Allowed {
				t.Fatalf("seed %d: a restriction allows more\nquestion %+v\n%s", seed, q, documents(refs))
			}
			checkPrincipals(t, p, q, got.Allowed)
		}
	}
	if share := float64(allowed) / float64(8*policies); share < 0.05 || share > 0.6 {
		t.Errorf("%.0f%% of the questions are allowed: the generators are not balanced", 100*share)
	}
}

// checkPrincipals: a listing names whatever a decision allows.
func checkPrincipals(t *testing.T, p *Policy, q *refQuestion, allowed bool) {
	t.Helper()
	if !allowed {
		return
	}
	r := q.request()
	l := p.Principals(r.Identity, r.Resource)
	has := func(list []string, v string) bool { return slices.Contains(list, v) || slices.Contains(list, "*") }
	if !l.Visible || q.Kind == sallyport.KindNode && !has(l.Logins, q.Login) ||
		q.Kind == sallyport.KindDatabase && (!has(l.DatabaseUsers, q.DBUser) || !has(l.DatabaseNames, q.DBName)) {
		t.Fatalf("allowed and not listed: %+v, %+v", q, l)
	}
}

// stricter makes the policy with one thing added that restricts.
func (d dice) stricter(t *testing.T, refs map[string]*refRole, roles []*Role) *Policy {
	t.Helper()
	i := d.IntN(len(roles))
	r := *refs[roles[i].Name()]
	var extra func(spec map[string]any)
	switch d.IntN(6) {
	case 0:
		r.Deny = d.side(true)
		if !refs[r.Name].Deny.empty() {
			r.Deny = refs[r.Name].Deny
			r.Deny.Logins = append(slices.Clone(r.Deny.Logins), "x")
		}
	case 1:
		r.MFA = true
	case 2:
		extra = func(spec map[string]any) { spec["deny"].(map[string]any)["moon"] = "full" }
	case 3:
		extra = func(spec map[string]any) { spec["allow"].(map[string]any)["require_moon"] = "full" }
	case 4:
		extra = func(spec map[string]any) { spec["options"].(map[string]any)["moon"] = true }
	case 5:
		if !r.MFA { // what does not match demands nothing (vector 9)
			r.Allow.Namespaces = []string{"other"}
		}
	}
	if extra == nil {
		extra = func(map[string]any) {}
	}
	roles = slices.Clone(roles)
	roles[i] = parse(t, r.document(extra))
	return NewPolicy(roles, 1)
}

func (s *refSide) empty() bool {
	return s.Namespaces == nil && s.Logins == nil && s.DBUsers == nil && s.DBNames == nil && s.Node.Map == nil && s.Node.Expr == "" &&
		s.DB.Map == nil && s.DB.Expr == "" && s.App.Map == nil && s.App.Expr == ""
}

func documents(refs map[string]*refRole) string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(refs)) {
		fmt.Fprintf(&b, "%s\n", refs[name].document())
	}
	return b.String()
}
