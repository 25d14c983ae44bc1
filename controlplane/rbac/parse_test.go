package rbac

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/identity"
)

func TestParseErrors(t *testing.T) {
	tests := []struct{ name, doc, want, hint string }{
		{"empty", "", "the document is empty", ""},
		{"not UTF-8", "kind: \xff", "not UTF-8", ""},
		{"no mapping", "- a\n", "line 1, column 1: a role document is a mapping", ""},
		{"syntax", "kind: role\nspec: [a, b\nx: y\n", "line 3", ""},
		{"syntax of JSON", `{"kind": "role",` + "\n" + `  "spec": ]`, "line 2, column 11", ""},
		{"two documents", "kind: role\n---\nkind: role\n", "a second document begins here", "one document at a time"},
		{"two JSON documents", "{}\n{}", "line 2", ""},
		{"kind", "kind: user\nversion: v7\nmetadata: {name: a}\n", `line 1, column 7: the kind is "user"`, ""},
		{"version", "kind: role\nversion: v9\nmetadata: {name: a}\n", `line 2, column 10: the version is "v9"; v3 to v8 are understood`, ""},
		{"no version", "kind: role\nmetadata: {name: a}\n", "the version is", ""},
		{"no name", "kind: role\nversion: v7\n", "metadata with a name is missing", ""},
		{"bad name", "kind: role\nversion: v7\nmetadata: {name: a/b}\n", "line 3, column 18", ""},
		{"top field", "kind: role\nversion: v7\nmetdata: {name: a}\n", `line 3, column 1: a role document has no field "metdata"`, `did you mean "metadata"?`},
		{"spec field", "kind: role\nversion: v7\nmetadata: {name: a}\nspec:\n  alow: {}\n", `line 5, column 3: spec has no field "alow"`, `did you mean "allow"?`},
		{"metadata field", "kind: role\nversion: v7\nmetadata: {nam: a}\n", `metadata has no field "nam"`, `did you mean "name"?`},
		{"twice", "kind: role\nkind: role\n", "line 2, column 1", ""},
		{"anchor", "kind: role\nversion: &v v7\nmetadata: {name: *v}\n", "anchors and aliases are not accepted", "write the value out"},
		{"merge", "kind: role\n<<: {a: b}\n", "merge keys are not accepted", ""},
		{"tag", "kind: !!binary aGk=\n", "line 1", ""},
		{"bool", spec("options: {forward_agent: maybe}"), `line 5, column 28: forward_agent is true or false, not "maybe"`, ""},
		{"duration", spec("options: {max_session_ttl: 8 hours}"), "max_session_ttl is a length of time like 8h30m", ""},
		{"negative", spec("options: {max_session_ttl: -1h}"), "is negative", ""},
		{"count", spec("options: {max_sessions: -1}"), "max_sessions is a whole number", ""},
		{"lock", spec("options: {lock: hard}"), "lock is strict or best_effort", ""},
		{"logins wildcard", spec("allow: {logins: ['*']}"), "a wildcard is not accepted in logins", ""},
		{"logins mapping", spec("allow: {logins: {a: b}}"), "logins must be a list, not a mapping", ""},
		{"logins null", spec("allow: {logins: [~]}"), "each value of logins must be a single value, not nothing", ""},
		{"labels list", spec("allow: {node_labels: [a]}"), "node_labels must be a mapping, not a list", ""},
		{"label wildcard key", spec("allow: {node_labels: {'*': x}}"), "the key '*' can only have the value '*'", ""},
		{"label without value", spec("allow: {node_labels: {env: }}"), `the key "env" has no value`, ""},
		{"label regexp", spec("allow: {node_labels: {env: '^(a$'}}"), `"^(a$" is not a regular expression: missing closing ):`, ""},
		{"label long", spec("allow: {node_labels: {env: '" + strings.Repeat("a", 2000) + "'}}"), "1024 are the most", ""},
		{"template", spec("allow: {logins: ['{{internal.login}}']}"), `there is no internal trait "login"; did you mean "logins"?`, ""},
		{"template open", spec("allow: {logins: ['{{internal.logins']}"), "has {{ without }}", ""},
		{"template two", spec("allow: {logins: ['{{internal.logins}}-{{external.a}}']}"), "", ""},
		{"template function", spec("allow: {logins: ['{{os.exec(external.a)}}']}"), `there is no function "os.exec" in templates`, ""},
		{"template matcher", spec("allow: {logins: ['{{regexp.match(\"a\")}}']}"), "make none", ""},
		{"template space", spec("allow: {logins: ['{{other.a}}']}"), `"other" is neither internal nor external`, ""},
		{"expression", spec(`allow: {node_labels_expression: 'labels["a"] = "b"'}`), "at character 13", ""},
		{"expression type", spec(`allow: {node_labels_expression: 'labels["a"]'}`), "the expression is a string; a condition is needed", ""},
		{"expression types", spec(`allow: {node_labels_expression: 'user.spec.traits["a"] == "b"'}`), "only strings can be compared", ""},
		{"expression deep", spec(`allow: {node_labels_expression: '` + strings.Repeat("(", 100) + `'}`), "nested deeper than 32", ""},
		{"expression arguments", spec(`allow: {node_labels_expression: 'contains(labels["a"])'}`), "contains takes 2 arguments", ""},
		{"where", spec(`allow: {rules: [{resources: [role], verbs: [read], where: 'equals('}]}`), "where: at character 8", ""},
		{"rule", spec(`allow: {rules: [{resources: [role]}]}`), "a rule needs resources and verbs", ""},
		{"expires", "kind: role\nversion: v7\nmetadata: {name: a, expires: soon}\n", "expires is not a time", ""},
		{"deep", "a: " + strings.Repeat("[", 5000), "nested deeper", ""},
		{"deep dashes", strings.Repeat("- ", 5000), "nested deeper", ""},
		{"deep JSON", strings.Repeat(`{"a":`, 5000), "nested", ""},
		{"large", "# " + strings.Repeat("x", maxDocument), "are the most", ""},
	}
	for _, tt := range tests {
		r, _, err := ParseRole([]byte(tt.doc))
		var p *sallyport.Problem
		switch {
		case err == nil:
			t.Errorf("%s: accepted as %s", tt.name, r.JSON())
		case !errors.Is(err, sallyport.ErrInvalid) || !errors.As(err, &p):
			t.Errorf("%s: %v is not an invalid-input problem", tt.name, err)
		case !strings.Contains(p.Fact, tt.want) || !strings.Contains(p.Hint, tt.hint):
			t.Errorf("%s: %q, hint %q; want %q, hint %q", tt.name, p.Fact, p.Hint, tt.want, tt.hint)
		}
	}
}

func spec(s string) string {
	return "kind: role\nversion: v7\nmetadata: {name: a}\nspec:\n  " + s + "\n"
}

func TestCanonical(t *testing.T) {
	const doc = `
# a comment
version: v7
kind: role
metadata: {name: dev, labels: {a: "1"}}
spec:
  options: {max_session_ttl: 8h, forward_agent: yes, max_sessions: 3, client_idle_timeout: null}
  allow:
    logins: root
    node_labels: {port: 0080, on: true, env: [prod, "<a&b>"]}
    db_labels: {'*': '*'}
  deny: {}
`
	const want = `{"kind":"role","metadata":{"labels":{"a":"1"},"name":"dev"},"spec":{"allow":{"db_labels":{"*":"*"},"logins":"root",` +
		`"node_labels":{"env":["prod","<a&b>"],"on":"true","port":"0080"}},"deny":{},"options":{"forward_agent":"yes",` +
		`"max_session_ttl":"8h","max_sessions":3}},"version":"v7"}`
	r, warnings, err := ParseRole([]byte(doc))
	if err != nil || len(warnings) > 0 {
		t.Fatal(err, warnings)
	}
	if string(r.JSON()) != want {
		t.Errorf("got  %s\nwant %s", r.JSON(), want)
	}
	again, _, err := ParseRole(r.JSON())
	if err != nil || !bytes.Equal(again.JSON(), r.JSON()) {
		t.Errorf("%v: %s", err, again.JSON())
	}
	p := NewPolicy([]*Role{again}, 1)
	if d := ask(p, user(again), nodeWith(labels{"port": "0080", "on": "true", "env": "prod"}), "root"); !d.Allowed {
		t.Error(d.Reason)
	}
}

// TestUnenforced is DESIGN section 8: what only grants is a warning; what
// restricts and is not enforced denies, and is told before it is stored.
func TestUnenforced(t *testing.T) {
	const grants = "allow: {logins: [root], node_labels: {'*': '*'}, db_labels: {'*': '*'}, db_users: [a], db_names: [b]"
	tests := []struct {
		name, spec string
		node, db   bool   // still allowed
		unenforced string // part of one
		warning    string // part of one
	}{
		{"plain", grants + "}", true, true, "", ""},
		{"a grant", grants + ", gizmo_users: [x]}", true, true, "", "spec.allow.gizmo_users: this version does not know it; it grants nothing"},
		{"a grant, misspelt", grants + ", lgins: [x]}", true, true, "", `did you mean "logins"?`},
		{"an unserved grant", grants + ", kubernetes_groups: [x], request: {roles: [a], thresholds: [{filter: x}]}}", true, true, "", ""},
		{"an unknown condition", grants + ", require_moon: full}", false, false, "spec.allow.require_moon", ""},
		{"a misspelt expression", grants + ", node_labels_expresion: 'false'}", false, false, `did you mean "node_labels_expression"?`, ""},
		{"moderated sessions", grants + ", require_session_join: [{name: x, kinds: [ssh], count: 1}]}", false, true, "moderated sessions", ""},
		{"moderated sessions, kube", grants + ", require_session_join: [{name: x, kinds: [k8s], count: 1}]}", true, true, "moderated sessions", ""},
		{"no moderated sessions", grants + ", require_session_join: []}", true, true, "", ""},
		{"an unknown deny", grants + "}\ndeny: {gizmo_labels: {a: b}}", false, false, "spec.deny.gizmo_labels", ""},
		{"an empty unknown deny", grants + "}\ndeny: {gizmo_labels: {}}", true, true, "", ""},
		{"an unserved deny", grants + "}\ndeny: {kubernetes_labels: {a: b}}", true, true, "", ""},
		{"an unknown option", grants + "}\noptions: {max_sesions: 1}", false, false, `did you mean "max_sessions"?`, ""},
		{"MFA", grants + "}\noptions: {require_session_mfa: hardware_key}", false, false, "require_session_mfa", ""},
		{"no MFA", grants + "}\noptions: {require_session_mfa: false}", true, true, "", ""},
		{"devices", grants + "}\noptions: {device_trust_mode: required}", false, false, "device_trust_mode", ""},
		{"connections", grants + "}\noptions: {max_connections: 5}", false, true, "max_connections", ""},
		{"recording", grants + "}\noptions: {record_session: {ssh: strict}}", false, true, "record_session.ssh", ""},
		{"recording if possible", grants + "}\noptions: {record_session: {default: best_effort, desktop: true}}", true, true, "", ""},
		{"enhanced recording", grants + "}\noptions: {enhanced_recording: [command, disk]}", false, true, "enhanced_recording", ""},
		{"access requests", grants + "}\noptions: {request_access: always}", false, false, "request_access", ""},
		{"an unknown part", grants + "}\noptions: {ssh_port_forwarding: {remote: {enabled: true, hosts: [a]}}}", false, true, "ssh_port_forwarding.remote.hosts", ""},
		{"host users", grants + "}\noptions: {create_host_user_mode: keep}", true, true, "", "it has no effect"},
		{"defaults of Teleport", grants + "}\noptions: {cert_format: standard, create_db_user: false, desktop_clipboard: true, enhanced_recording: [command, network], idp: {saml: {enabled: true}}, pin_source_ip: false, ssh_file_copy: true}", true, true, "", ""},
		{"an unknown function", grants + ", node_labels_expression: 'labels.glow() || true'}", false, true, "the function", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			doc := "kind: role\nversion: v7\nmetadata: {name: a}\nspec:\n" + indent(tt.spec) + "\n"
			r, warnings, err := ParseRole([]byte(doc))
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(r.Unenforced(), "\n"); (got == "") != (tt.unenforced == "") || !strings.Contains(got, tt.unenforced) {
				t.Errorf("unenforced %q, want %q", got, tt.unenforced)
			}
			if got := fmt.Sprint(warnings); (len(warnings) == 0) != (tt.warning == "") || !strings.Contains(got, tt.warning) {
				t.Errorf("warnings %v, want %q", got, tt.warning)
			}
			// Another role grants the same: a restriction is not lost by it.
			other := role(t, "other", "v7", grants+"}")
			p := NewPolicy([]*Role{r, other}, 1)
			node, db := ask(p, user(r, other), nodeWith(nil), "root"), ask(p, user(r, other), database(nil), "a/b")
			if tt.name == "an unknown function" {
				node.Allowed = ask(p, user(r), nodeWith(nil), "root").Allowed // here it does not concern the other
			}
			if node.Allowed != tt.node || db.Allowed != tt.db {
				t.Errorf("node %v %q, database %v %q; want %v, %v", node.Allowed, node.Reason, db.Allowed, db.Reason, tt.node, tt.db)
			}
			if !tt.node && tt.name != "an unknown function" && !strings.Contains(node.Reason, `role "a" restricts by spec.`) {
				t.Errorf("the denial does not say so: %q", node.Reason)
			}
		})
	}
}

func TestUnenforcedRules(t *testing.T) {
	r, warnings, err := ParseRole([]byte(`
kind: role
version: v7
metadata: {name: a}
spec:
  allow:
    rules:
      - {resources: [role], verbs: [read], wheer: 'false'}
      - {resources: [token], verbs: [read], where: 'moon.phase == "full"'}
      - {resources: [usr], verbs: [raed], actions: ['log("x")']}
      - {resources: [lock], verbs: [read]}
  deny:
    rules:
      - {resources: [lock], verbs: [delete], where: 'moon.phase == "full"'}
`))
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(r.Unenforced(), "\n"); strings.Count(got, "\n") != 2 || !strings.Contains(got, `did you mean "where"?`) || !strings.Contains(got, `"moon.phase" is not known`) {
		t.Errorf("unenforced: %s", got)
	}
	if got := fmt.Sprint(warnings); !strings.Contains(got, `there is no kind "usr"; did you mean "user"?`) || !strings.Contains(got, `did you mean "read"?`) || !strings.Contains(got, "actions") {
		t.Errorf("warnings: %s", got)
	}
	p := NewPolicy([]*Role{r}, 1)
	id := user(r)
	id.Roles = []string{"a"}
	for _, tt := range []struct {
		kind, verb string
		want       bool
	}{{"token", "read", false}, {"lock", "read", true}, {"lock", "delete", false}} {
		if err := p.CheckRule(id, tt.kind, tt.verb); (err == nil) != tt.want {
			t.Errorf("%s %s: %v", tt.verb, tt.kind, err)
		}
	}
	if err := p.CheckRuleOn(id, RuleRequest{Kind: "role", Verb: "read", Name: "other"}); err == nil {
		t.Error("a rule with a condition that is not known allows")
	}
	d, _, err := ParseRole([]byte(spec("allow: {rules: [{resources: ['*'], verbs: ['*']}]}\n  deny: {rules: [{resources: [rol], verbs: [read]}]}")))
	if err != nil {
		t.Fatal(err)
	}
	p = NewPolicy([]*Role{d}, 1)
	if err := p.CheckRule(user(d), "role", "read"); err == nil || !strings.Contains(err.Error(), `did you mean "role"?`) {
		t.Errorf("a misspelt deny: %v", err)
	}
}

func TestMissingAndExpiredRoles(t *testing.T) {
	good := role(t, "good", "v7", "allow: {logins: [root], node_labels: {'*': '*'}}")
	old, _, err := ParseRole([]byte("kind: role\nversion: v7\nmetadata: {name: old, expires: 2001-01-01T00:00:00Z}\n"))
	if err != nil {
		t.Fatal(err)
	}
	later, _, err := ParseRole([]byte("kind: role\nversion: v7\nmetadata: {name: later, expires: 2101-01-01T00:00:00Z}\n"))
	if err != nil {
		t.Fatal(err)
	}
	p := NewPolicy([]*Role{good, old, later}, 1)
	id := user(good)
	for _, tt := range []struct {
		roles  []string
		want   bool
		reason string
	}{
		{[]string{"good"}, true, ""},
		{[]string{"good", "gone"}, false, `role "gone" does not exist`},
		{[]string{"good", "old"}, false, `role "old" has expired`},
		{[]string{"good", "later"}, true, ""},
		{nil, false, `"alice" holds no role`},
	} {
		id.Roles = tt.roles
		d := ask(p, id, nodeWith(nil), "root")
		if d.Allowed != tt.want || !strings.Contains(d.Reason, tt.reason) {
			t.Errorf("%v: %+v", tt.roles, d)
		}
		if want := len(tt.roles) == 2 && tt.roles[1] == "later"; d.Fleeting != want {
			t.Errorf("%v: fleeting %v", tt.roles, d.Fleeting)
		}
	}
}

func TestActions(t *testing.T) {
	no := role(t, "no", "v7", "options: {ssh_file_copy: false, port_forwarding: false}\nallow: {logins: [root], node_labels: {'*': '*'}, db_labels: {'*': '*'}, db_users: [a], db_names: [b]}")
	yes := role(t, "yes", "v7", "options: {forward_agent: true, permit_x11_forwarding: true}\nallow: {logins: [root], node_labels: {'*': '*'}}")
	for _, tt := range []struct {
		role *Role
		want map[sallyport.Action]bool
	}{
		{no, map[sallyport.Action]bool{"": true, sallyport.ActionConnect: true}},
		{yes, map[sallyport.Action]bool{"": true, sallyport.ActionConnect: true, sallyport.ActionForwardAgent: true, sallyport.ActionX11: true,
			sallyport.ActionFileCopy: true, sallyport.ActionForwardLocal: true, sallyport.ActionForwardRemote: true}},
	} {
		p := NewPolicy([]*Role{tt.role}, 1)
		for _, a := range []sallyport.Action{"", sallyport.ActionConnect, sallyport.ActionForwardAgent, sallyport.ActionForwardLocal,
			sallyport.ActionForwardRemote, sallyport.ActionX11, sallyport.ActionFileCopy, "other"} {
			d := p.Decide(sallyport.AccessRequest{Identity: user(tt.role), Resource: nodeWith(nil), Login: "root", Action: a})
			if d.Allowed != tt.want[a] || d.Reason == "" {
				t.Errorf("%s, %q: %+v", tt.role.Name(), a, d)
			}
		}
	}
	files := role(t, "files", "v7", "options: {ssh_file_copy: true}\nallow: {db_labels: {'*': '*'}, db_users: [a], db_names: [b]}")
	p := NewPolicy([]*Role{files}, 1)
	for a, want := range map[sallyport.Action]bool{sallyport.ActionConnect: true, sallyport.ActionFileCopy: false} {
		d := p.Decide(sallyport.AccessRequest{Identity: user(files), Resource: database(nil), DBUser: "a", DBName: "b", Action: a})
		if d.Allowed != want {
			t.Errorf("%q on a database: %+v", a, d)
		}
	}
}

func TestPinnedAddress(t *testing.T) {
	r := role(t, "pin", "v7", "options: {pin_source_ip: true}\nallow: {logins: [root], node_labels: {'*': '*'}}")
	p := NewPolicy([]*Role{r}, 1)
	id := user(r)
	if d := ask(p, id, nodeWith(nil), "root"); d.Allowed || !strings.Contains(d.Reason, "bound to an address") {
		t.Errorf("a certificate that is not bound: %+v", d)
	}
	id.PinnedAddr = "192.0.2.1"
	if d := ask(p, id, nodeWith(nil), "root"); !d.Allowed || !p.PinSourceIP(id) {
		t.Errorf("a certificate that is bound: %+v", d)
	}
}

// TestA84_Logins: what could be taken for something else is no login, however
// it got into a trait.
func TestA84_Logins(t *testing.T) {
	r := role(t, "a", "v7", "allow: {logins: ['{{internal.logins}}'], node_labels: {'*': '*'}}")
	p := NewPolicy([]*Role{r}, 1)
	bad := []string{"", "-oProxyCommand=x", "a b", "a,b", "a:b", "a/b", "*", "ro?t", "a\nb", "a\x00", "a\u0085", "o'brien", `a"b`, "a!b", "a\u2003b", "a\u00a0b", "a\xffb", "a\ufffdb", strings.Repeat("a", 300)}
	id := user(r)
	id.Traits["logins"] = append([]string{"root", "user@example.com", "DOM\\user", "été"}, bad...)
	if got := fmt.Sprint(p.Principals(id, nodeWith(nil)).Logins); got != `[DOM\user root user@example.com été]` {
		t.Errorf("logins %s", got)
	}
	for _, l := range bad {
		if d := ask(p, id, nodeWith(nil), l); d.Allowed {
			t.Errorf("login %q is allowed", l)
		}
	}
	for _, l := range p.Logins(id) {
		if !identity.ValidPrincipal(l) {
			t.Errorf("no certificate can name %q", l)
		}
	}
	// An asterisk among the values stands for no other.
	for _, traits := range [][]string{{"*"}, {"alice", "*"}, {"*", "**", ".*", "{{internal.logins}}"}} {
		id.Traits["logins"] = traits
		if d := ask(p, id, nodeWith(nil), "root"); d.Allowed {
			t.Errorf("login root is allowed by %q", traits)
		}
	}
}

func TestPrincipals(t *testing.T) {
	roles := []*Role{
		role(t, "a", "v7", "allow: {logins: ['{{internal.logins}}', root], node_labels: {env: dev}, db_labels: {'*': '*'}, db_users: ['{{internal.db_users}}', 'svc-{{external.team}}'], db_names: ['*']}"),
		role(t, "b", "v7", "allow: {logins: [admin], node_labels: {env: prod}}\ndeny: {logins: [root], db_users: [svc-red]}"),
	}
	p := NewPolicy(roles, 1)
	id := user(roles...)
	if got := fmt.Sprintf("%+v", p.Principals(id, nodeWith(labels{"env": "dev"}))); got != "{Visible:true Logins:[alice ubuntu] DatabaseUsers:[] DatabaseNames:[] AWSRoles:[]}" {
		t.Error(got)
	}
	if got := fmt.Sprintf("%+v", p.Principals(id, nodeWith(labels{"env": "other"}))); got != "{Visible:false Logins:[] DatabaseUsers:[] DatabaseNames:[] AWSRoles:[]}" {
		t.Error(got)
	}
	if got := fmt.Sprintf("%+v", p.Principals(id, database(nil))); got != "{Visible:true Logins:[] DatabaseUsers:[reader svc-blue] DatabaseNames:[*] AWSRoles:[]}" {
		t.Error(got)
	}
	if got := fmt.Sprint(p.Logins(id)); got != "[admin alice ubuntu]" {
		t.Error(got)
	}
	if d := p.Visible(id, nodeWith(labels{"env": "prod"})); !d.Allowed {
		t.Error(d.Reason)
	}
}

func TestDatabaseUsers(t *testing.T) {
	roles := []*Role{
		role(t, "a", "v7", "allow: {db_labels: {env: dev}, db_users: ['{{internal.db_users}}', '*'], db_names: ['*']}"),
		role(t, "b", "v7", "allow: {db_labels: {'*': '*'}, db_users: [reader, writer], db_names: ['*']}\ndeny: {db_users: [writer]}"),
		role(t, "c", "v7", "allow: {db_labels: {env: dev}, db_users: [never]}"),
	}
	p := NewPolicy(roles, 1)
	users := []UserRoles{
		{"alice", []string{"a"}, map[string][]string{"db_users": {"alice", "app"}}},
		{"bob", []string{"a"}, map[string][]string{"db_users": {"bob"}}},
		{"carol", []string{"b"}, nil},
		{"dave", []string{"missing", "c"}, nil},
	}
	dev, prod := database(labels{"env": "dev"}), database(labels{"env": "prod"})
	dev.Name, prod.Name = "dev", "prod"
	got := p.DatabaseUsers(users, []sallyport.Resource{dev, prod, nodeWith(nil)})
	if fmt.Sprint(got) != "map[dev:[alice app bob reader] prod:[reader]]" {
		t.Error(got)
	}
	// Ten thousand users who differ in what no role reads cost one evaluation.
	many := make([]UserRoles, 10_000)
	for i := range many {
		many[i] = UserRoles{fmt.Sprint("u", i), []string{"b"}, map[string][]string{"x": {fmt.Sprint(i)}}}
	}
	if n := len(p.distinct(many)); n != 1 {
		t.Errorf("%d kinds of users", n)
	}
}

// TestNamelessDatabase: who does not say which user, or which database where that
// is said, gets none, whatever a role allows.
func TestNamelessDatabase(t *testing.T) {
	r := role(t, "a", "v7", "allow: {db_labels: {'*': '*'}, db_users: ['*'], db_names: ['*']}")
	p := NewPolicy([]*Role{r}, 1)
	for login, want := range map[string]bool{"app/orders": true, "/orders": false, "app/": false, "/": false} {
		if d := ask(p, user(r), database(nil), login); d.Allowed != want {
			t.Errorf("%q: %+v", login, d)
		}
	}
}

func TestCockroachFoldsNames(t *testing.T) {
	r := role(t, "a", "v7", "allow: {db_labels: {'*': '*'}, db_users: ['*'], db_names: ['*']}\ndeny: {db_users: [root]}")
	p := NewPolicy([]*Role{r}, 1)
	db := database(nil)
	for protocol, want := range map[string]bool{"postgres": true, "cockroachdb": false} {
		db.Protocol = protocol
		if d := ask(p, user(r), db, "ROOT/x"); d.Allowed != want {
			t.Errorf("%s: %+v", protocol, d)
		}
	}
	db.Protocol = "mysql"
	if d := ask(p, user(r), db, "app/"); !d.Allowed {
		t.Errorf("mysql names no database: %+v", d)
	}
}

func FuzzParseRole(f *testing.F) {
	for _, doc := range []string{presetAccess, presetEditor, spec("allow: {logins: [a]}"), `{"kind":"role","version":"v3","metadata":{"name":"a"},"spec":{"options":{"max_sessions":1.0}}}`,
		spec("allow:\n    node_labels: {a: [b, 'c*', '^d$', '{{external.e}}'], '*': '*'}\n    node_labels_expression: |\n      labels[\"a\"] == \"b\" && contains(user.spec.traits[\"x\"], labels[\"y\"])"),
		"a: &x [1]\nb: *x", "? [a]\n: b", "!!str a: !!int 1", "- - - a", "{a: {b: {c: [", "kind: >-\n  role\n", "\"a\\u00e9\\ud83d\\ude00\": 1e400"} {
		f.Add([]byte(doc))
	}
	f.Fuzz(func(t *testing.T, doc []byte) {
		r, warnings, err := ParseRole(doc)
		if err != nil {
			if !errors.Is(err, sallyport.ErrInvalid) {
				t.Fatalf("%q: %v", doc, err)
			}
			return
		}
		if !json.Valid(r.JSON()) || len(warnings) > maxRemarks {
			t.Fatalf("%q: %s", doc, r.JSON())
		}
		again, _, err := ParseRole(r.JSON())
		if err != nil || !bytes.Equal(again.JSON(), r.JSON()) || fmt.Sprint(again.Unenforced()) != fmt.Sprint(r.Unenforced()) {
			t.Fatalf("%q: canonical %s reads as %v, %v", doc, r.JSON(), again, err)
		}
		for _, res := range []sallyport.Resource{nodeWith(labels{"a": "b"}), database(nil)} {
			one, two := ask(NewPolicy([]*Role{r}, 1), user(r), res, "a/b"), ask(NewPolicy([]*Role{again}, 1), user(r), res, "a/b")
			if one != two {
				t.Fatalf("%q: %+v and %+v", doc, one, two)
			}
		}
	})
}

// TestQuotedOptions: a number in quotes, as sallyctl sends it, is kept as a number.
func TestQuotedOptions(t *testing.T) {
	r, _, err := ParseRole([]byte(`{"kind":"role","version":"v7","metadata":{"name":"q"},"spec":{"options":{"max_sessions":"010","forward_agent":"True"}}}`))
	if err != nil {
		t.Fatal(err)
	}
	if o := NewPolicy([]*Role{r}, 1).Options(user(r)); !strings.Contains(string(r.JSON()), `"max_sessions":10`) || o.MaxSessions != 10 || !o.ForwardAgent {
		t.Errorf("%s, %+v", r.JSON(), o)
	}
}

// TestWhereUnanswered: a where clause about what is never known of an object was taken
// without a word.
func TestWhereUnanswered(t *testing.T) {
	for where, want := range map[string]string{
		`resource.metadata.labels["team"] == "red"`:          "resource.metadata.labels",
		`equals(resource.spec.hostname, user.metadata.name)`: "resource.spec.hostname",
		`resource.kind == "token"`:                           "",
		`equals(resource.metadata.name, "x")`:                "",
		`contains(session.participants, user.metadata.name)`: "",
		`contains(user.spec.traits["team"], "red")`:          "",
	} {
		for _, in := range []string{"allow", "deny"} {
			doc := "kind: role\nversion: v7\nmetadata: {name: x}\nspec:\n  " + in + ":\n    rules:\n    - {resources: [token], verbs: [list], where: '" + where + "'}\n"
			_, warnings, err := ParseRole([]byte(doc))
			if err != nil {
				t.Fatalf("%s: %v", where, err)
			}
			says := ""
			for _, w := range warnings {
				says += w.String()
			}
			if (says != "") != (want != "") || !strings.Contains(says, want) || want != "" && !strings.Contains(says, map[string]string{"allow": "never allows", "deny": "denies"}[in]) {
				t.Errorf("%s of %s: %q", in, where, says)
			}
		}
	}
}
