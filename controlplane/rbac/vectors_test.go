package rbac

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport"
)

// role parses a role whose spec is given in YAML, indented by tabs or not.
func role(t testing.TB, name, version, spec string) *Role {
	t.Helper()
	doc := fmt.Sprintf("kind: role\nversion: %s\nmetadata: {name: %s}\nspec:\n%s\n", version, name, indent(spec))
	r, _, err := ParseRole([]byte(doc))
	if err != nil {
		t.Fatalf("role %s: %v\n%s", name, err, doc)
	}
	return r
}

func indent(s string) string {
	s = strings.ReplaceAll(strings.Trim(s, "\n"), "\t", "  ")
	lines := strings.Split(s, "\n")
	cut := len(lines[0]) - len(strings.TrimLeft(lines[0], " "))
	for i, l := range lines {
		lines[i] = "  " + l[min(cut, len(l)):]
	}
	return strings.Join(lines, "\n")
}

func user(roles ...*Role) sallyport.Identity {
	id := sallyport.Identity{Kind: sallyport.KindUser, Name: "alice", Cluster: "gw.example.com", Traits: map[string][]string{
		"logins": {"alice", "ubuntu"}, "team": {"red", "blue"}, "email": {"alice@example.com"}, "db_users": {"reader"},
	}}
	for _, r := range roles {
		id.Roles = append(id.Roles, r.Name())
	}
	return id
}

func nodeWith(labels map[string]string) sallyport.Resource {
	return sallyport.Resource{Kind: sallyport.KindNode, Name: "web1", ID: "0b5e", Labels: labels}
}

func database(labels map[string]string) sallyport.Resource {
	return sallyport.Resource{Kind: sallyport.KindDatabase, Name: "orders", Protocol: "postgres", Labels: labels}
}

func ask(p *Policy, id sallyport.Identity, r sallyport.Resource, login string) sallyport.Decision {
	q := sallyport.AccessRequest{Identity: id, Resource: r, Now: time.Unix(1e9, 0)}
	if r.Kind == sallyport.KindNode {
		q.Login = login
	} else if user, name, ok := strings.Cut(login, "/"); ok {
		q.DBUser, q.DBName = user, name
	}
	return p.Decide(q)
}

type labels = map[string]string

// TestVectors is reference/teleport.md section 4.11, as far as what it speaks
// of is served here. 13 (Kubernetes) is TestKubeLists; 15 (leaf clusters) is not served.
func TestVectors(t *testing.T) {
	const all = "node_labels: {'*': '*'}"
	type reply struct {
		resource sallyport.Resource
		login    string
		allowed  bool
		reason   string // a part of it
	}
	tests := []struct {
		name    string
		version string
		specs   []string
		asks    []reply
	}{
		{"1 deny map keys are joined by and", "v7", []string{
			"allow: {logins: [root], node_labels: {env: prod}}",
			"deny: {node_labels: {env: prod, team: x}}",
		}, []reply{
			{nodeWith(labels{"env": "prod"}), "root", true, ""},
			{nodeWith(labels{"env": "prod", "team": "x"}), "root", false, `role "r1" denies node "web1" by its labels`},
			{nodeWith(labels{"env": "prod", "team": "y"}), "root", true, ""},
		}},
		{"2 a denied login needs no labels", "v7", []string{
			"allow: {logins: [root, ubuntu], " + all + "}",
			"deny: {logins: [root]}",
		}, []reply{
			{nodeWith(nil), "root", false, `role "r1" denies login "root"`},
			{nodeWith(nil), "ubuntu", true, ""},
		}},
		{"3 no labels match nothing", "v7", []string{"allow: {logins: [root]}"}, []reply{
			{nodeWith(nil), "root", false, `no role of "alice" allows node "web1"`},
			{nodeWith(labels{"env": "prod"}), "root", false, ""},
		}},
		{"3 empty labels match nothing", "v7", []string{"allow: {logins: [root], node_labels: {}}"}, []reply{
			{nodeWith(nil), "root", false, ""},
		}},
		{"4 map and expression in allow", "v7", []string{
			`allow: {logins: [root], node_labels: {env: prod}, node_labels_expression: 'labels["team"] == "x"'}`,
		}, []reply{
			{nodeWith(labels{"env": "prod"}), "root", false, ""},
			{nodeWith(labels{"team": "x"}), "root", false, ""},
			{nodeWith(labels{"env": "prod", "team": "x"}), "root", true, ""},
		}},
		{"4 map and expression in deny", "v7", []string{
			"allow: {logins: [root], " + all + "}",
			`deny: {node_labels: {env: prod}, node_labels_expression: 'labels["team"] == "x"'}`,
		}, []reply{
			{nodeWith(labels{"env": "prod"}), "root", false, ""},
			{nodeWith(labels{"team": "x"}), "root", false, ""},
			{nodeWith(labels{"env": "dev"}), "root", true, ""},
		}},
		{"5 everything, labelled or not", "v7", []string{"allow: {logins: [root], " + all + "}"}, []reply{
			{nodeWith(nil), "root", true, ""},
		}},
		{"5 any value still needs the key", "v7", []string{"allow: {logins: [root], node_labels: {env: '*'}}"}, []reply{
			{nodeWith(nil), "root", false, ""},
			{nodeWith(labels{"env": ""}), "root", true, ""},
			{nodeWith(labels{"env": "x"}), "root", true, ""},
		}},
		{"6 glob", "v7", []string{"allow: {logins: [root], node_labels: {region: 'us-*'}}"}, []reply{
			{nodeWith(labels{"region": "us-west"}), "root", true, ""},
			{nodeWith(labels{"region": "eu-west"}), "root", false, ""},
			{nodeWith(labels{"region": "xus-west"}), "root", false, ""},
		}},
		{"6 regular expression", "v7", []string{"allow: {logins: [root], node_labels: {region: '^us-(west|east)$'}}"}, []reply{
			{nodeWith(labels{"region": "us-east"}), "root", true, ""},
			{nodeWith(labels{"region": "us-north"}), "root", false, ""},
		}},
		{"7 a missing trait gives no access", "v7", []string{
			"allow: {logins: ['{{external.missing}}', root], node_labels: {team: '{{external.missing}}'}}",
		}, []reply{
			{nodeWith(labels{"team": ""}), "root", false, ""},
			{nodeWith(nil), "root", false, ""},
			{nodeWith(labels{"team": "{{external.missing}}"}), "root", false, ""},
		}},
		{"7 a trait of two values", "v7", []string{
			"allow: {logins: ['{{internal.logins}}', 'x-{{email.local(external.email)}}-y'], node_labels: {team: '{{external.team}}'}}",
		}, []reply{
			{nodeWith(labels{"team": "blue"}), "ubuntu", true, ""},
			{nodeWith(labels{"team": "red"}), "x-alice-y", true, ""},
			{nodeWith(labels{"team": "green"}), "ubuntu", false, ""},
			{nodeWith(labels{"team": "red"}), "root", false, `role "r0" allows logins alice, ubuntu, x-alice-y; "root" is not among them`},
		}},
		{"8 a matching role demands MFA", "v7", []string{
			"allow: {logins: [root], " + all + "}",
			"options: {require_session_mfa: true}\nallow: {logins: [root], " + all + "}",
		}, []reply{
			{nodeWith(nil), "root", false, "MFA"},
		}},
		{"9 a role that does not match demands nothing", "v7", []string{
			"allow: {logins: [root], " + all + "}",
			"options: {require_session_mfa: yes}\nallow: {logins: [root], node_labels: {env: prod}}",
		}, []reply{
			{nodeWith(nil), "root", true, ""},
			{nodeWith(labels{"env": "prod"}), "root", false, "MFA"},
		}},
		{"12 v3 has labels by default", "v3", []string{"allow: {logins: [root], db_users: [a], db_names: [b]}"}, []reply{
			{nodeWith(nil), "root", true, ""},
			{database(nil), "a/b", true, ""},
			{sallyport.Resource{Kind: sallyport.KindTCP, Name: "echo"}, "", true, ""},
		}},
		{"12 v3 with empty labels says so", "v3", []string{"allow: {logins: [root], node_labels: {}}"}, []reply{
			{nodeWith(nil), "root", false, ""},
		}},
		{"12 v4 has none", "v4", []string{"allow: {logins: [root], db_users: [a], db_names: [b]}"}, []reply{
			{nodeWith(nil), "root", false, ""},
			{database(nil), "a/b", false, ""},
		}},
		{"databases match user and name", "v7", []string{
			"allow: {db_labels: {'*': '*'}, db_users: [reader], db_names: [orders, '{{internal.db_names}}']}",
			"allow: {db_labels: {'*': '*'}, db_users: [writer], db_names: ['*']}",
			"deny: {db_names: [secret]}",
		}, []reply{
			{database(nil), "reader/orders", true, `role "r0" allows database "orders"`},
			{database(nil), "admin/orders", false, `roles "r0", "r1" allow database users reader, writer; "admin" is not among them`},
			{database(nil), "writer/anything", true, ""},
			{database(nil), "writer/secret", false, `role "r2" denies database name "secret"`},
			{database(nil), "reader/other", false, `no single role allows database user "reader" together with database name "other"`},
		}},
		{"the reason names the role and the fact", "v7", []string{
			"allow: {db_labels: {'*': '*'}, db_users: [reader], db_names: ['*']}",
		}, []reply{
			{database(nil), "admin/orders", false, `role "r0" allows database users reader; "admin" is not among them`},
		}},
		{"a denied wildcard", "v7", []string{"allow: {logins: [root], " + all + "}", "deny: {logins: ['*']}"}, []reply{
			{nodeWith(nil), "root", false, `role "r1" denies login "root"`},
		}},
		{"a deny that fails denies", "v7", []string{"allow: {logins: [root], " + all + "}",
			`deny: {node_labels_expression: 'contains(email.local(user.spec.traits["team"]), "x")'}`}, []reply{
			{nodeWith(nil), "root", false, `role "r1" denies node "web1" by its labels`},
		}},
		{"an allow that fails does not allow", "v7", []string{
			`allow: {logins: [root], node_labels_expression: 'true || contains(email.local(user.spec.traits["team"]), "x")'}`,
			`allow: {logins: [ubuntu], node_labels_expression: '!contains(email.local(user.spec.traits["team"]), "x")'}`}, []reply{
			{nodeWith(nil), "root", true, ""},
			{nodeWith(nil), "ubuntu", false, ""},
		}},
		{"a deny that this version cannot evaluate denies", "v7", []string{"allow: {logins: [root], " + all + "}",
			`deny: {node_labels_expression: 'moon(labels["a"])'}`}, []reply{
			{nodeWith(nil), "root", false, "cannot be evaluated"},
		}},
		{"an empty pattern matches nothing", "v7", []string{"allow: {logins: [root], node_labels: {env: ''}}"}, []reply{
			{nodeWith(labels{"env": ""}), "root", false, ""},
		}},
		{"namespaces", "v7", []string{"allow: {logins: [root], namespaces: [other], " + all + "}"}, []reply{
			{nodeWith(nil), "root", false, ""},
		}},
		{"a matcher in a label", "v7", []string{`allow: {logins: [root], node_labels: {env: '{{regexp.not_match("prod")}}'}}`}, []reply{
			{nodeWith(labels{"env": "dev"}), "root", true, ""},
			{nodeWith(labels{"env": "eu-prod"}), "root", false, ""},
			{nodeWith(nil), "root", false, ""},
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var roles []*Role
			for i, spec := range tt.specs {
				roles = append(roles, role(t, fmt.Sprintf("r%d", i), tt.version, spec))
			}
			p := NewPolicy(roles, 7)
			for _, a := range tt.asks {
				d := ask(p, user(roles...), a.resource, a.login)
				if d.Allowed != a.allowed || !strings.Contains(d.Reason, a.reason) || d.Revision != 7 {
					t.Errorf("%v %v as %q: %+v, want %v %q", a.resource.Name, a.resource.Labels, a.login, d, a.allowed, a.reason)
				}
			}
		})
	}
}

// TestVisible: labels alone decide what is seen.
func TestVisible(t *testing.T) {
	for _, tt := range []struct {
		version, spec string
		want          bool
	}{
		{"v3", "allow: {}", false}, // labels by default only with logins
		{"v3", "allow: {logins: [root]}", true},
		{"v7", "allow: {node_labels: {'*': '*'}}", true},
		{"v7", "allow: {node_labels: {'*': '*'}}\ndeny: {logins: [root]}", true},
		{"v7", "allow: {node_labels: {'*': '*'}}\ndeny: {node_labels: {'*': '*'}}", false},
		{"v7", "allow: {node_labels: {'*': '*'}}\noptions: {require_session_mfa: true}", true},
		{"v7", "allow: {node_labels: {'*': '*'}}\noptions: {moon: true}", false},
	} {
		r := role(t, "a", tt.version, tt.spec)
		if d := NewPolicy([]*Role{r}, 1).Visible(user(r), nodeWith(nil)); d.Allowed != tt.want {
			t.Errorf("%s %s: %+v", tt.version, tt.spec, d)
		}
	}
}

func TestOptionsMerge(t *testing.T) {
	roles := []*Role{
		role(t, "a", "v7", "options: {max_session_ttl: 8h, forward_agent: true, client_idle_timeout: 30m}\nallow: {logins: [root], node_labels: {'*': '*'}}"),
		role(t, "b", "v7", "options: {max_session_ttl: 2h30m, ssh_file_copy: false, max_sessions: 3, lock: strict}"),
		role(t, "c", "v7", "options: {client_idle_timeout: 10m, disconnect_expired_cert: yes, max_sessions: 0}"),
	}
	want := sallyport.Options{MaxSessionTTL: 150 * time.Minute, ClientIdleTimeout: 10 * time.Minute, DisconnectExpiredCert: true,
		MaxSessions: 3, ForwardAgent: true, PortForwardLocal: true, PortForwardRemote: true, StrictLock: true}
	p := NewPolicy(roles, 1)
	if got := p.Options(user(roles...)); got != want {
		t.Errorf("merged options %+v, want %+v", got, want)
	}
	if d := ask(p, user(roles...), nodeWith(nil), "root"); d.Options != want || !d.Allowed {
		t.Errorf("options of the decision %+v, want %+v", d.Options, want)
	}
	if got := NewPolicy(nil, 1).Options(user()); got != (sallyport.Options{}) {
		t.Errorf("no roles: %+v", got)
	}
}

func TestPortForwarding(t *testing.T) {
	tests := []struct {
		options       []string
		local, remote bool
	}{
		{[]string{"{}"}, true, true},
		{[]string{"{port_forwarding: false}"}, false, false},
		{[]string{"{port_forwarding: false}", "{port_forwarding: true}"}, true, true},
		{[]string{"{port_forwarding: false}", "{}"}, false, false},
		{[]string{"{ssh_port_forwarding: {local: {enabled: false}}}"}, false, true},
		{[]string{"{ssh_port_forwarding: {local: {enabled: false}}}", "{port_forwarding: true}"}, false, true},
		{[]string{"{ssh_port_forwarding: {remote: {enabled: false}}}", "{ssh_port_forwarding: {remote: {enabled: true}}}"}, true, false},
		{[]string{"{port_forwarding: false}", "{ssh_port_forwarding: {local: {enabled: true}}}"}, true, false},
	}
	for _, tt := range tests {
		var roles []*Role
		for i, o := range tt.options {
			roles = append(roles, role(t, fmt.Sprintf("r%d", i), "v7", "options: "+o))
		}
		o := merge(roles)
		if o.PortForwardLocal != tt.local || o.PortForwardRemote != tt.remote {
			t.Errorf("%v: local %v, remote %v", tt.options, o.PortForwardLocal, o.PortForwardRemote)
		}
	}
}

// TestScopedCertificate is vector 16.
func TestScopedCertificate(t *testing.T) {
	r := role(t, "a", "v7", "allow: {logins: [root], node_labels: {'*': '*'}, app_labels: {'*': '*'}}")
	p := NewPolicy([]*Role{r}, 1)
	for _, tt := range []struct {
		scope string
		want  bool
	}{
		{"/gw.example.com/node/web1", true},
		{"/gw.example.com/node/0b5e", true},
		{"/gw.example.com/node/web2", false},
		{"/gw.example.com/node/", false},
		{"/gw.example.com/db/web1", false},
		{"/other.example.com/node/web1", false},
		{"/gw.example.com/node", false},
		{"", false},
	} {
		id := user(r)
		id.AllowedResources = []string{tt.scope}
		if d := ask(p, id, nodeWith(nil), "root"); d.Allowed != tt.want {
			t.Errorf("%q: %+v", tt.scope, d)
		}
		if got := p.Principals(id, nodeWith(nil)).Visible; got != tt.want {
			t.Errorf("%q: visible %v", tt.scope, got)
		}
	}
	id := user(r)
	id.AllowedResources = []string{"/gw.example.com/app/echo"}
	if d := p.Decide(sallyport.AccessRequest{Identity: id, Resource: sallyport.Resource{Kind: sallyport.KindTCP, Name: "echo"}}); !d.Allowed {
		t.Errorf("a TCP app is an app: %+v", d)
	}
	if d := p.Decide(sallyport.AccessRequest{Identity: id, Resource: sallyport.Resource{Kind: sallyport.KindTCP}}); d.Allowed {
		t.Errorf("a resource without a name: %+v", d)
	}
}

// TestWhere is vector 14 and the rest of section 4.6.
func TestWhere(t *testing.T) {
	roles := []*Role{
		role(t, "own", "v7", `
allow:
	rules:
		- {resources: [session], verbs: [list, read], where: 'contains(session.participants, user.metadata.name)'}
		- {resources: [token], verbs: ['*'], where: 'resource.metadata.labels["team"] == "red" || equals(resource.metadata.name, "mine")'}
		- {resources: [role], verbs: [read]}
		- {resources: ['*'], verbs: [rotate]}
deny:
	rules:
		- {resources: [role], verbs: [update], where: '!equals(resource.spec.owner, "x")'}
		- {resources: [lock], verbs: [readnosecrets]}`),
		role(t, "edit", "v7", "allow: {rules: [{resources: [role, lock], verbs: [update, read]}]}"),
	}
	p := NewPolicy(roles, 1)
	id := user(roles...)
	sessions := func(who ...string) map[string]any { return map[string]any{"session.participants": who} }
	tests := []struct {
		r    RuleRequest
		want bool
	}{
		{RuleRequest{Kind: "session", Verb: "read", Fields: sessions("bob", "alice")}, true},
		{RuleRequest{Kind: "session", Verb: "read", Fields: sessions("bob")}, false},
		{RuleRequest{Kind: "session", Verb: "read"}, false},
		{RuleRequest{Kind: "token", Verb: "delete", Labels: labels{"team": "red"}}, true},
		{RuleRequest{Kind: "token", Verb: "delete", Name: "mine"}, true},
		{RuleRequest{Kind: "token", Verb: "delete", Name: "other"}, false},
		{RuleRequest{Kind: "token", Verb: "delete"}, false},
		{RuleRequest{Kind: "role", Verb: "readnosecrets"}, true},
		{RuleRequest{Kind: "cert_authority", Verb: "rotate"}, true},
		{RuleRequest{Kind: "cert_authority", Verb: "read"}, false},
		{RuleRequest{Kind: "cert_authority", Verb: "readnosecrets"}, true},
		{RuleRequest{Kind: "role", Verb: "update", Fields: map[string]any{"resource.spec.owner": "x"}}, true},
		{RuleRequest{Kind: "role", Verb: "update", Fields: map[string]any{"resource.spec.owner": "y"}}, false},
		{RuleRequest{Kind: "role", Verb: "update"}, false},
		{RuleRequest{Kind: "lock", Verb: "update"}, true},
		{RuleRequest{Kind: "lock", Verb: "read"}, false},
		{RuleRequest{Kind: "user", Verb: "read", Name: "alice"}, true},
		{RuleRequest{Kind: "user", Verb: "read", Name: "bob"}, false},
		{RuleRequest{Kind: "user", Verb: "update", Name: "alice"}, false},
		{RuleRequest{Kind: "node", Verb: "list"}, true},
		{RuleRequest{Kind: "node", Verb: "update"}, false},
	}
	for _, tt := range tests {
		if err := p.CheckRuleOn(id, tt.r); (err == nil) != tt.want {
			t.Errorf("%+v: %v, want %v", tt.r, err, tt.want)
		}
	}
	if err := p.CheckRule(id, "user", "create"); err == nil || err.Error() != `no role of "alice" allows create on user` {
		t.Errorf("error %v", err)
	}
	everything := role(t, "all", "v7", "allow: {logins: [root], node_labels: {'*': '*'}, rules: [{resources: ['*'], verbs: ['*']}]}")
	p = NewPolicy([]*Role{everything}, 1)
	id = user(everything)
	if !ask(p, id, nodeWith(nil), "root").Allowed {
		t.Error("a user is not let in")
	}
	for _, kind := range []sallyport.IdentityKind{sallyport.KindAuth, sallyport.KindLocalAdmin, sallyport.KindAgent, sallyport.KindGateway, "", "other"} {
		host := id
		host.Kind = kind
		if kind != sallyport.KindLocalAdmin && p.CheckRule(host, "lock", "update") == nil || ask(p, host, nodeWith(nil), "root").Allowed {
			t.Errorf("an identity of kind %q is let in by role names", kind)
		}
	}
	if err := p.CheckRule(sallyport.Identity{Kind: sallyport.KindLocalAdmin}, "user", "create"); err != nil {
		t.Errorf("the local administrator: %v", err)
	}
}

// TestDenyOfWhatFails: a deny whose template failed for one value of the trait denied
// nothing of the others.
func TestDenyOfWhatFails(t *testing.T) {
	const local = "'{{email.local(external.mails)}}'"
	cloud := sallyport.Resource{Kind: sallyport.KindApp, Name: "cloud", Protocol: sallyport.ProtocolAWS, Labels: labels{"env": "prod"}}
	kube := func(words string) func(*Policy, sallyport.Identity) bool {
		return func(p *Policy, id sallyport.Identity) bool {
			d := ask(p, id, kubeCluster(labels{"env": "prod"}), "")
			return d.Allowed && kubeAsk(d.Kube, words).Allowed
		}
	}
	for _, tt := range []struct {
		deny string
		does func(*Policy, sallyport.Identity) bool
	}{
		{"logins: [" + local + "]", func(p *Policy, id sallyport.Identity) bool { return ask(p, id, nodeWith(nil), "root").Allowed }},
		{"logins: [" + local + "]", func(p *Policy, id sallyport.Identity) bool { return len(p.Logins(id)) > 0 }},
		{"logins: [" + local + "]", func(p *Policy, id sallyport.Identity) bool { return len(p.Principals(id, nodeWith(nil)).Logins) > 0 }},
		{"db_users: [" + local + "]", func(p *Policy, id sallyport.Identity) bool { return ask(p, id, database(nil), "root/shop").Allowed }},
		{"db_names: [" + local + "]", func(p *Policy, id sallyport.Identity) bool { return ask(p, id, database(nil), "app/root").Allowed }},
		{"aws_role_arns: [" + local + "]", func(p *Policy, id sallyport.Identity) bool {
			return p.Decide(sallyport.AccessRequest{Identity: id, Resource: cloud, AWSRole: "root"}).Allowed
		}},
		{"node_labels: {owner: " + local + "}", func(p *Policy, id sallyport.Identity) bool {
			return ask(p, id, nodeWith(labels{"owner": "root"}), "root").Allowed
		}},
		{"node_labels: {" + local + ": x}", func(p *Policy, id sallyport.Identity) bool {
			return ask(p, id, nodeWith(labels{"root": "x"}), "root").Allowed
		}},
		{"kubernetes_groups: [" + local + "]", func(p *Policy, id sallyport.Identity) bool {
			d := ask(p, id, kubeCluster(nil), "")
			return d.Allowed && len(kubeAsk(d.Kube, "get /pods dev/a").Groups) > 0
		}},
		{"kubernetes_resources: [{kind: pod, namespace: " + local + ", name: '*', verbs: ['*']}]", kube("get /pods root/a")},
		{"kubernetes_resources: [{kind: pod, namespace: '*', name: " + local + ", verbs: ['*']}]", kube("get /pods dev/root")},
	} {
		r := role(t, "r", "v7", "allow: {logins: [root], node_labels: {'*': '*'}, db_labels: {'*': '*'}, db_users: [root, app], db_names: [root, shop], app_labels: {'*': '*'}, aws_role_arns: [root], "+
			"kubernetes_labels: {'*': '*'}, kubernetes_groups: [root]}\ndeny: {"+tt.deny+"}")
		p, id := NewPolicy([]*Role{r}, 1), user(r)
		for _, mails := range []struct {
			of   []string
			does bool
		}{{nil, true}, {[]string{"alice@example.com"}, true}, {[]string{"root@example.com"}, false}, {[]string{"root@example.com", "oops"}, false}, {[]string{"oops"}, false}} {
			id.Traits = map[string][]string{"mails": mails.of}
			if got := tt.does(p, id); got != mails.does {
				t.Errorf("deny %s of %q: is let through %v", tt.deny, mails.of, got)
			}
		}
	}
	// A label that the resource does not have is not denied by a value of it.
	r := role(t, "r", "v7", "allow: {logins: [root], node_labels: {'*': '*'}}\ndeny: {node_labels: {owner: "+local+"}}")
	id := user(r)
	id.Traits = map[string][]string{"mails": {"oops"}}
	if !ask(NewPolicy([]*Role{r}, 1), id, nodeWith(nil), "root").Allowed {
		t.Error("a node without the label is denied")
	}
	// And nothing is allowed by what fails.
	r = role(t, "r", "v7", "allow: {logins: ["+local+"], node_labels: {'*': '*'}}")
	id = user(r)
	id.Traits = map[string][]string{"mails": {"root@example.com", "oops"}}
	if ask(NewPolicy([]*Role{r}, 1), id, nodeWith(nil), "root").Allowed {
		t.Error("a login is allowed by a template that fails")
	}
}

// TestRulesKnowing: a rule that asks what is not known of the object does not allow,
// and denies; of the kind as such it may allow some object, and need not deny it.
func TestRulesKnowing(t *testing.T) {
	type answers struct{ every, some, named, other bool } // named: of the object "mine", without its labels
	const all = `{resources: [token], verbs: ['*']}`
	for _, tt := range []struct {
		allow, deny string
		want        answers
	}{
		{all, "", answers{true, true, true, true}},
		{`{resources: [token], verbs: ['*'], where: 'resource.metadata.name == "mine"'}`, "", answers{false, true, true, false}},
		{`{resources: [token], verbs: ['*'], where: '!equals(resource.metadata.name, "other")'}`, "", answers{false, true, true, false}},
		{`{resources: [token], verbs: ['*'], where: 'resource.metadata.labels["team"] != "red"'}`, "", answers{false, true, false, false}},
		{`{resources: [token], verbs: ['*'], where: 'contains(session.participants, "x")'}`, "", answers{false, true, false, false}},
		{`{resources: [token], verbs: ['*'], where: 'resource.kind == "token"'}`, "", answers{true, true, true, true}},
		{`{resources: [token], verbs: ['*'], where: 'user.metadata.name == "bob" && resource.metadata.name == "mine"'}`, "", answers{}},
		{`{resources: [token], verbs: ['*'], where: 'user.metadata.name == "alice" || resource.metadata.name == "mine"'}`, "", answers{true, true, true, true}},
		{all, `{resources: [token], verbs: ['*']}`, answers{}},
		{all, `{resources: ['*'], verbs: [delete], where: 'resource.metadata.name == "other"'}`, answers{false, true, true, false}},
		{all, `{resources: [token], verbs: [delete], where: 'resource.metadata.name != "mine"'}`, answers{false, true, true, false}},
		{all, `{resources: [token], verbs: [delete], where: 'resource.metadata.labels["team"] == "red"'}`, answers{false, true, false, false}},
		{all, `{resources: [token], verbs: [delete], where: 'user.metadata.name == "alice"'}`, answers{}},
		{all, `{resources: [token], verbs: [delete], where: 'user.metadata.name == "bob" && resource.metadata.name == "mine"'}`, answers{true, true, true, true}},
		{all, `{resources: [token], verbs: [read], where: 'resource.metadata.name == "mine"'}`, answers{true, true, true, true}},
	} {
		r := role(t, "r", "v7", "allow: {rules: ["+tt.allow+"]}\ndeny: {rules: ["+tt.deny+"]}")
		p, id := NewPolicy([]*Role{r}, 1), user(r)
		got := answers{p.CheckRule(id, "token", "delete") == nil, p.CheckRuleSome(id, "token", "delete") == nil,
			p.CheckRuleNamed(id, "token", "delete", "mine") == nil, p.CheckRuleNamed(id, "token", "delete", "other") == nil}
		if got != tt.want {
			t.Errorf("allow %s, deny %s: %+v, want %+v", tt.allow, tt.deny, got, tt.want)
		}
	}
}

func TestPresets(t *testing.T) {
	roles := Presets()
	p := NewPolicy(roles, 1)
	for _, r := range roles {
		if u := r.Unenforced(); len(u) > 0 {
			t.Errorf("%s: %v", r.Name(), u)
		}
	}
	a, _ := p.Role("access")
	id := user(a)
	if d := ask(p, id, nodeWith(nil), "ubuntu"); !d.Allowed || !d.Options.ForwardAgent {
		t.Errorf("access: %+v", d)
	}
	if err := p.CheckRule(id, "role", "create"); err == nil {
		t.Error("access creates roles")
	}
	e, _ := p.Role("editor")
	if err := p.CheckRule(user(e), "role", "create"); err != nil {
		t.Error(err)
	}
	au, _ := p.Role("auditor")
	if err := p.CheckRule(user(au), "event", "list"); err != nil {
		t.Error(err)
	}
	if err := p.CheckRule(user(au), "user", "list"); err == nil {
		t.Error("auditor lists users")
	}
}
