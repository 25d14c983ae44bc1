package rbac

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/sallyport/sallyport"
)

func TestExpressions(t *testing.T) {
	id := sallyport.Identity{Name: "alice", Roles: []string{"dev"}, Traits: map[string][]string{
		"team": {"red", "blue"}, "mail": {"Alice.B@example.com", "b@example.com"}, "bad": {"no address"}, "env": {"prod-eu", "dev"}, "empty": {}}}
	s := &scope{id: &id, labels: map[string]string{"team": "red", "env": "prod", "a.b/c": "1"}}
	tests := []struct {
		expr string
		want bool
		err  error
	}{
		{`true`, true, nil},
		{`false || !false`, true, nil},
		{`true && false || true`, true, nil},
		{`true || (false && false)`, true, nil},
		{`!true || false`, false, nil},
		{`!(true && false)`, true, nil},
		{`labels["team"] == "red"`, true, nil},
		{`labels["team"]!="red"`, false, nil},
		{`labels.team == "red" && labels["a.b/c"] == "1"`, true, nil},
		{`labels["none"] == ""`, true, nil},
		{`"a" == "a"`, true, nil},
		{"labels[`team`] == `red`", true, nil},
		{`contains(user.spec.traits["team"], labels["team"])`, true, nil},
		{`contains(user.spec.traits.team, "green")`, false, nil},
		{`contains(labels["team"], "red")`, true, nil},
		{`contains_any(user.spec.traits["team"], set("green", "blue"))`, true, nil},
		{`contains_any(user.spec.traits["team"], set())`, false, nil},
		{`contains_all(user.spec.traits["team"], set("red", "blue"))`, true, nil},
		{`contains_all(user.spec.traits["team"], set("red", "green"))`, false, nil},
		{`contains_all(user.spec.traits["team"], user.spec.traits["empty"])`, false, nil},
		{`contains(email.local(user.spec.traits["mail"]), "Alice.B")`, true, nil},
		{`contains(strings.lower(email.local(user.spec.traits["mail"])), "alice.b")`, true, nil},
		{`contains(strings.upper(user.spec.traits["team"]), "RED")`, true, nil},
		{`contains(email.local(user.spec.traits["bad"]), "x")`, false, errNotEmail},
		{`regexp.match(labels["env"], "^pr.d$")`, true, nil},
		{`regexp.match(user.spec.traits["team"], "lu")`, true, nil},
		{`contains(regexp.replace(user.spec.traits["env"], "^([a-z]+)-eu$", "$1"), labels["env"])`, true, nil},
		{`contains(regexp.replace(user.spec.traits["env"], "^([a-z]+)-eu$", "$1"), "dev")`, false, nil}, // no match: dropped
		{`contains(labels_matching("*e*"), "prod")`, true, nil},
		{`contains(labels_matching("^env$"), "red")`, false, nil},
		{`user.metadata.name == "alice" && contains(user.spec.roles, "dev")`, true, nil},
		{`equals(labels["team"], "red")`, true, nil},
	}
	for _, tt := range tests {
		c, err := compileCondition(tt.expr, labelDialect())
		if err != nil {
			t.Errorf("%s: %v", tt.expr, err)
			continue
		}
		r, err := c.eval(s)
		if !errors.Is(err, tt.err) || err == nil && r.b != tt.want {
			t.Errorf("%s: %v, %v; want %v, %v", tt.expr, r.b, err, tt.want, tt.err)
		}
	}
	for _, bad := range []string{"", "(", ")", "true true", "labels", `labels[team]`, `labels["a"`, `labels["a"] == `, `a.b.c == "x"`, `!"a"`, `"a" && true`,
		`contains("a")`, `regexp.match("a", labels["b"])`, `regexp.match("a", "(")`, `'a' == "a"`, `"a" == "b" == "c"`, `.a == "b"`, `a..b == "c"`,
		`set(labels["a"])`, strings.Repeat("!", 100) + "true", strings.Repeat(`true && `, 600) + "true", strings.Repeat(" ", 5000), "\"\x00", `f(,)`, `true && "\u12"`} {
		if _, err := compileCondition(bad, labelDialect()); err == nil {
			t.Errorf("%q compiles", bad)
		}
	}
}

func TestTemplates(t *testing.T) {
	id := sallyport.Identity{Traits: map[string][]string{"logins": {"a", "b"}, "x y": {"z"}, "mail": {"Jo@x.org"}, "g": {"cn-ops", "cn-dev", "other"}, "bad": {"nope"}, "e": {""}}}
	for text, want := range map[string]string{
		"plain":                                             "[plain]",
		"{{internal.logins}}":                               "[a b]",
		"{{ internal.logins }}":                             "[a b]",
		"IAM#{{external.logins}};":                          "[IAM#a; IAM#b;]",
		`{{external["x y"]}}`:                               "[z]",
		`{{internal["logins"]}}`:                            "[a b]",
		"{{external.none}}":                                 "[]",
		"{{external.e}}":                                    "[]",
		"x-{{external.e}}":                                  "[]",
		"{{email.local(external.mail)}}":                    "[Jo]",
		"{{email.local(external.bad)}}":                     "[]",
		"{{strings.lower(external.mail)}}":                  "[jo@x.org]",
		`{{regexp.replace(external.g, "^cn-(.*)$", "$1")}}`: "[ops dev]",
		`{{strings.upper(regexp.replace(external.g, "^cn-(.*)$", "$1"))}}`: "[OPS DEV]",
	} {
		tm, err := parseTemplate(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		got := appendValues(nil, []template{tm}, &scope{id: &id})
		if fmt.Sprint(got) != want {
			t.Errorf("%s: %v, want %s", text, got, want)
		}
	}
}

// globOracle is another way to match a glob.
func globOracle(glob string) *regexp.Regexp {
	return regexp.MustCompile(`(?s)\A` + strings.ReplaceAll(regexp.QuoteMeta(glob), `\*`, `.*`) + `\z`)
}

func FuzzGlob(f *testing.F) {
	f.Add("us-*", "us-west")
	f.Add("*a*b*", "xaybz")
	f.Add("a*a", "a")
	f.Add("**", "")
	f.Fuzz(func(t *testing.T, glob, value string) {
		if isRegexp(glob) || len(glob) > 200 || !strings.Contains(glob, "*") || !utf8.ValidString(glob) || !utf8.ValidString(value) {
			return
		}
		p, err := compilePattern(glob)
		if err != nil {
			t.Fatal(err)
		}
		if want := globOracle(glob).MatchString(value); p.match(value) != want {
			t.Fatalf("%q matches %q: %v, want %v", glob, value, p.match(value), want)
		}
	})
}

func FuzzExpression(f *testing.F) {
	for e := range refExprs {
		f.Add(e, "a", "x")
	}
	f.Add(`{{regexp.replace(external.t, "^(a*)*$", "$1$1$1")}}`, "t", "aaaaaaaaaaaaaaaaaaaaaaaab")
	f.Add(`^((a+)+)+$`, "k", strings.Repeat("a", 100)+"b")
	f.Add(`equals(session.x, resource.metadata.labels["a"]) && contains(request.roles, "x")`, "a", "b")
	f.Fuzz(func(t *testing.T, text, key, value string) {
		if len(value) > maxResult {
			return
		}
		id := sallyport.Identity{Name: value, Traits: map[string][]string{key: {value, key}, "t": {value}}}
		s := &scope{id: &id, labels: map[string]string{key: value}, rule: &RuleRequest{Name: value, Fields: map[string]any{"session.x": value, "request.roles": []string{key}}}}
		before := worked(t)
		for _, d := range []dialect{labelDialect(), whereDialect()} {
			c, err := compileCondition(text, d)
			if err != nil {
				var at *exprError
				if !errors.As(err, &at) || at.at < 0 || at.at > len(text) {
					t.Fatalf("%q: %v has no place", text, err)
				}
				continue
			}
			one, err1 := c.eval(s)
			two, err2 := c.eval(s)
			if one.b != two.b || (err1 == nil) != (err2 == nil) {
				t.Fatalf("%q: %v, %v and %v, %v", text, one, err1, two, err2)
			}
			sel := selector{hasExpr: true, expr: c}
			if err1 != nil && (sel.allows(s, &patterns{}) || !sel.denies(s, &patterns{})) {
				t.Fatalf("%q cannot be evaluated and allows, or does not deny", text)
			}
		}
		if tm, err := parseBraces(text); err == nil {
			v := labelValue{template: tm}
			if tm.inner == nil {
				v.fixed, _ = compilePattern(text)
			}
			_ = v.match(s, &patterns{}, value)
		}
		if d := worked(t) - before; d > time.Second {
			t.Fatalf("%q took %v of processor time", text, d)
		}
	})
}

// bench20 is a user with twenty roles, as large organisations have them.
func bench20(b testing.TB) (*Policy, sallyport.AccessRequest) {
	var roles []*Role
	for i := range 20 {
		roles = append(roles, role(b, fmt.Sprintf("r%02d", i), "v7", fmt.Sprintf(`
options: {max_session_ttl: %dh}
allow:
  logins: ['{{internal.logins}}', ops%d]
  node_labels: {env: ['prod-*', '^dev-[0-9]+$'], team: '{{external.team}}', n: 't%d'}
  node_labels_expression: 'labels["region"] != "" && contains(user.spec.traits["team"], labels["team"])'
  db_labels: {env: 'prod-*', team: ['{{external.team}}', '^{{external.team}}-x$'], n: 't%d'}
  db_users: ['{{internal.db_users}}']
  db_names: ['*']
deny:
  logins: [root]
  node_labels: {secret: 'yes'}
`, i+1, i, i, i)))
	}
	return NewPolicy(roles, 1), sallyport.AccessRequest{Identity: user(roles...), Login: "ubuntu", DBUser: "reader", DBName: "orders", Now: time.Unix(1e9, 0),
		Resource: nodeWith(labels{"env": "prod-eu", "team": "blue", "region": "eu", "n": "t19"})}
}

func BenchmarkDecide(b *testing.B) {
	p, r := bench20(b)
	db := r
	db.Resource.Kind, db.Resource.Protocol = sallyport.KindDatabase, "postgres"
	for name, r := range map[string]sallyport.AccessRequest{"node": r, "database": db} {
		if d := p.Decide(r); !d.Allowed {
			b.Fatal(d.Reason)
		}
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				p.Decide(r)
			}
		})
	}
}

func TestDecideAllocations(t *testing.T) {
	p, r := bench20(t)
	if n := testing.AllocsPerRun(100, func() { p.Decide(r) }); n > 30 {
		t.Errorf("%v allocations for a decision with twenty roles, want 30 at most", n)
	}
}
