package rbac

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport"
)

func kubeCluster(l map[string]string) sallyport.Resource {
	return sallyport.Resource{Kind: sallyport.KindKube, Name: "prod", Labels: l}
}

// kubeOf is the grant of a user who holds the roles.
func kubeOf(t *testing.T, roles ...*Role) sallyport.KubeGrant {
	t.Helper()
	d := ask(NewPolicy(roles, 1), user(roles...), kubeCluster(labels{"env": "prod"}), "")
	if !d.Allowed || d.Kube == nil {
		t.Fatalf("%+v", d)
	}
	return d.Kube
}

// words is "verb group/resource namespace/name".
func kubeAsk(g sallyport.KubeGrant, words string) sallyport.KubeAnswer {
	f := strings.Fields(words)
	r := sallyport.KubeRequest{Verb: f[0]}
	r.Group, r.Resource, _ = strings.Cut(f[1], "/")
	if len(f) > 2 {
		r.Namespace, r.Name, _ = strings.Cut(f[2], "/")
	}
	return g.Ask(r)
}

const kubeAll = "allow: {kubernetes_labels: {'*': '*'}, kubernetes_groups: [g]"

func TestKubeClusters(t *testing.T) {
	for _, tt := range []struct {
		spec    string
		allowed bool
		says    string
	}{
		{kubeAll + "}", true, ""},
		{"allow: {kubernetes_labels: {env: prod}}", true, ""},
		{"allow: {kubernetes_labels: {env: dev}}", false, `no role of "alice" allows Kubernetes cluster "prod"`},
		{"allow: {kubernetes_labels_expression: 'labels[\"env\"] == \"prod\"'}", true, ""},
		{"allow: {kubernetes_groups: [g]}", false, "no role"},
		{"allow: {node_labels: {'*': '*'}}", false, "no role"},
		{kubeAll + "}\ndeny: {kubernetes_labels: {env: prod}}", false, "by its labels"},
		{kubeAll + "}\ndeny: {kubernetes_labels: {env: dev}}", true, ""},
		{kubeAll + ", require_session_join: [{name: x, kinds: [k8s], count: 1}]}", false, "moderated sessions"},
		{kubeAll + ", require_session_join: [{name: x, kinds: [ssh], count: 1}]}", true, ""},
		{kubeAll + "}\noptions: {require_session_mfa: true}", false, "require_session_mfa"},
		{kubeAll + "}\noptions: {device_trust_mode: required}", false, "device_trust_mode"},
		{kubeAll + "}\noptions: {max_kubernetes_connections: 3}", false, "max_kubernetes_connections"},
		{kubeAll + "}\noptions: {record_session: {default: strict}}", false, "record_session.default"},
		{kubeAll + "}\noptions: {record_session: {ssh: strict}}", true, ""},
		{kubeAll + "}\ndeny: {kubernetes_resources: [{kind: gizmo}]}", false, `no kind "gizmo"`},
		{kubeAll + "}\ndeny: {kubernetes_resources: [{kind: pod, colour: red}]}", false, `does not know "colour"`},
		{kubeAll + "}\ndeny: {kubernetes_resources: [{kind: pod, verbs: [gett]}]}", false, `did you mean "get"?`},
	} {
		r := role(t, "r", "v7", tt.spec)
		d := ask(NewPolicy([]*Role{r}, 1), user(r), kubeCluster(labels{"env": "prod"}), "")
		if d.Allowed != tt.allowed || !strings.Contains(d.Reason, tt.says) {
			t.Errorf("%s: %v %s", tt.spec, d.Allowed, d.Reason)
		}
	}
}

func TestKubeResources(t *testing.T) {
	for _, tt := range []struct{ version, spec, yes, no string }{
		// What is not said: v7 and v8 everything, v6 no pods, before all pods.
		{"v8", kubeAll + "}", "get /pods a/b, list /secrets, delete apps/deployments a/b, get example.com/things /x", ""},
		{"v7", kubeAll + "}", "get /pods a/b, list /secrets, delete apps/deployments a/b, get example.com/things /x", ""},
		{"v6", kubeAll + "}", "get /secrets a/b, list example.com/things", "get /pods a/b, exec /pods a/b, list /pods"},
		{"v5", kubeAll + "}", "get /secrets a/b, exec /pods a/b", ""},
		{"v7", kubeAll + ", kubernetes_resources: []}", "", "get /pods a/b, list /secrets"},
		{"v6", kubeAll + ", kubernetes_resources: [{kind: pod, namespace: a, name: '*'}]}", "exec /pods a/b, get /secrets c/d", "get /pods c/d"},

		{"v7", kubeAll + ", kubernetes_resources: [{kind: pod, namespace: dev, name: 'web-*', verbs: [get, list, exec]}]}",
			"get /pods dev/web-1, exec /pods dev/web-1, list /pods dev, list /pods",
			"get /pods dev/db, get /pods prod/web-1, delete /pods dev/web-1, watch /pods dev, list /pods prod, get /secrets dev/web-1, get x/pods dev/web-1, portforward /pods dev/web-1"},
		{"v7", kubeAll + ", kubernetes_resources: [{kind: pod, namespace: '^(dev|test)$', name: '*', verbs: ['*']}]}", "get /pods dev/a, create /pods test", "get /pods devel/a, create /pods prod"},
		{"v7", kubeAll + ", kubernetes_resources: [{kind: pod, namespace: dev, name: 'web-*', verbs: ['*']}]}", "create /pods dev/web-1", "create /pods dev, create /pods dev/db"},
		{"v7", kubeAll + ", kubernetes_resources: [{kind: '*', namespace: dev, name: '*', verbs: ['*']}]}",
			"get /pods dev/a, create apps/deployments dev, get example.com/things dev/x, list /pods", "get /nodes /n, get example.com/things /x, get /pods prod/a"},
		{"v7", kubeAll + ", kubernetes_resources: [{kind: namespace, name: dev, verbs: ['*']}]}",
			"get /namespaces dev/dev, get /pods dev/a, delete apps/deployments dev/x, list /namespaces, list /pods", "get /namespaces prod/prod, get /pods prod/a, get /nodes /n, list /nodes"},
		{"v7", kubeAll + ", kubernetes_resources: [{kind: kube_node, name: '*', verbs: [get]}]}", "get /nodes /n", "get /pods a/b"},
		// Who may see something in a namespace may see the namespace, by the same verb.
		{"v7", kubeAll + ", kubernetes_resources: [{kind: pod, namespace: dev, name: 'web-*', verbs: ['*']}]}",
			"get /namespaces dev/dev, list /namespaces, watch /namespaces", "get /namespaces prod/prod, delete /namespaces dev/dev, patch /namespaces dev/dev, create /namespaces, get /secrets dev/a"},
		{"v7", kubeAll + ", kubernetes_resources: [{kind: pod, namespace: 'd*', name: '*', verbs: [get]}]}", "get /namespaces dev/dev", "list /namespaces, get /namespaces prod/prod"},
		{"v7", kubeAll + ", kubernetes_resources: [{kind: pod, namespace: '*', name: '*', verbs: [list]}]}", "list /namespaces", "get /namespaces dev/dev"},
		{"v7", kubeAll + ", kubernetes_resources: [{kind: kube_node, name: '*', verbs: ['*']}]}", "", "get /namespaces dev/dev, list /namespaces"},
		{"v7", kubeAll + ", kubernetes_resources: [{kind: kube_node, namespace: '*', name: '*', verbs: ['*']}]}", "get /nodes /n", "get /namespaces dev/dev, list /namespaces"},
		{"v8", kubeAll + ", kubernetes_resources: [{kind: nodes, namespace: '*', name: '*', verbs: ['*']}]}", "", "get /namespaces dev/dev, list /namespaces"},
		{"v8", kubeAll + ", kubernetes_resources: [{kind: nodes, api_group: '*', namespace: '*', name: '*', verbs: ['*']}]}", "", "get /namespaces dev/dev, list /namespaces"},
		{"v7", kubeAll + ", kubernetes_resources: [{kind: namespace, name: dev, verbs: ['*']}]}", "delete /namespaces dev/dev", "get /namespaces prod/prod"},
		{"v8", kubeAll + ", kubernetes_resources: [{kind: deployments, api_group: apps, namespace: dev, name: '*', verbs: ['*']}]}", "get /namespaces dev/dev", "delete /namespaces dev/dev, get x/namespaces dev/dev"},
		{"v7", kubeAll + "}\ndeny: {kubernetes_resources: [{kind: pod, namespace: dev, name: '*'}]}", "get /namespaces dev/dev, list /namespaces", "get /pods dev/a"},
		{"v7", kubeAll + ", kubernetes_resources: [{kind: kube_role, namespace: '*', name: '*', verbs: [get]}]}", "get rbac.authorization.k8s.io/roles a/b", "get /roles a/b"},
		{"v7", kubeAll + ", kubernetes_resources: [{kind: pod, namespace: '*', name: '*'}]}", "", "get /pods a/b"},
		{"v7", kubeAll + ", kubernetes_resources: [{kind: gizmo, namespace: '*', name: '*', verbs: ['*']}]}", "", "get /pods a/b"},
		{"v7", kubeAll + ", kubernetes_resources: [{kind: pod, api_group: x, namespace: '*', name: '*', verbs: ['*']}]}", "", "get /pods a/b"},
		{"v7", kubeAll + ", kubernetes_resources: [{kind: pod, namespace: '{{external.team}}', name: '*', verbs: ['*']}]}", "get /pods red/a, get /pods blue/a", "get /pods green/a"},
		{"v7", kubeAll + ", kubernetes_resources: [{kind: pod, namespace: '{{external.none}}', name: '*', verbs: ['*']}]}", "", "get /pods a/b"},

		{"v8", kubeAll + ", kubernetes_resources: [{kind: deployments, api_group: apps, namespace: dev, name: '*', verbs: [get]}]}", "get apps/deployments dev/a", "get /deployments dev/a, get apps/deployments x/a, get apps/statefulsets dev/a"},
		{"v8", kubeAll + ", kubernetes_resources: [{kind: pods, namespace: dev, name: '*', verbs: [get]}]}", "get /pods dev/a", "get metrics.k8s.io/pods dev/a"},
		{"v8", kubeAll + ", kubernetes_resources: [{kind: '*', api_group: '*.example.com', namespace: '*', name: '*', verbs: [get]}]}", "get a.example.com/things dev/a", "get example.org/things dev/a, get /pods dev/a"},
		{"v8", kubeAll + ", kubernetes_resources: [{kind: nodes, name: '*', verbs: [get]}]}", "get /nodes /n", "get /pods a/b"},
		{"v8", kubeAll + ", kubernetes_resources: [{kind: nodes, namespace: x, name: '*', verbs: [get]}]}", "", "get /nodes /n"},

		// Deny wins, and needs no labels. Without a group it is for all.
		{"v8", kubeAll + "}\ndeny: {kubernetes_resources: [{kind: deployments}]}", "get /pods a/b", "get apps/deployments a/b, list apps/deployments"},
		{"v8", kubeAll + "}\ndeny: {kubernetes_resources: [{kind: deployments, api_group: apps}]}", "get /pods a/b, get x/deployments a/b", "get apps/deployments a/b"},
		{"v8", kubeAll + "}\ndeny: {kubernetes_resources: [{kind: '*', namespace: kube-system}]}", "get /pods a/b", "get /pods kube-system/b, get apps/deployments kube-system/b"},
		{"v7", kubeAll + "}\ndeny: {kubernetes_resources: [{kind: secret}]}", "get /pods a/b", "get /secrets a/b, list /secrets, create /secrets a"},
		{"v7", kubeAll + "}\ndeny: {kubernetes_resources: [{kind: '*', namespace: kube-system, name: '*'}]}", "get /pods a/b, list /pods", "get /pods kube-system/b, list /pods kube-system"},
		{"v7", kubeAll + "}\ndeny: {kubernetes_resources: [{kind: pod, verbs: [exec]}]}", "get /pods a/b, portforward /pods a/b", "exec /pods a/b"},
		{"v7", kubeAll + "}\ndeny: {kubernetes_resources: [{kind: pod, namespace: '*', name: 'db-*'}]}", "get /pods a/web, list /pods, create /pods a/web", "get /pods a/db-1, create /pods a"},
	} {
		g := kubeOf(t, role(t, "r", tt.version, tt.spec))
		for words := range strings.SplitSeq(tt.yes, ", ") {
			if words == "" {
				continue
			}
			if a := kubeAsk(g, words); !a.Allowed {
				t.Errorf("%s %s\n%s is denied: %s", tt.version, tt.spec, words, a.Reason)
			}
		}
		for words := range strings.SplitSeq(tt.no, ", ") {
			if words == "" {
				continue
			}
			if a := kubeAsk(g, words); a.Allowed || a.Reason == "" {
				t.Errorf("%s %s\n%s is allowed, or denied without a reason", tt.version, tt.spec, words)
			}
		}
	}
}

// TestKubeStrange: an entry that cannot mean what it says grants nothing, with a word about
// it; in deny it denies the cluster.
func TestKubeStrange(t *testing.T) {
	for _, tt := range []struct{ version, entry, says string }{
		{"v8", "{kind: pod, namespace: '*', name: '*', verbs: ['*']}", `"pods" in place of "pod"`},
		{"v8", "{kind: kube_node, name: '*', verbs: ['*']}", `"nodes" in place of "kube_node"`},
		{"v8", "{kind: deployments, namespace: '*', name: '*', verbs: ['*']}", `are of the group "apps"`},
		{"v6", "{kind: secret, namespace: dev, name: '*'}", "restrict pods only"},
		{"v7", "{kind: pod, namespace: '*', verbs: ['*']}", "the name is missing"},
		{"v7", "{kind: pod, name: '*', verbs: ['*']}", "the namespace is missing"},
		{"v7", "{kind: pod, namespace: '*', name: '*'}", "the verbs are missing"},
		{"v6", "{kind: pod, name: '*'}", "the namespace is missing"},
		{"v8", "{kind: pods, name: '*', verbs: ['*']}", "the namespace is missing"},
		{"v8", "{kind: pods, namespace: '*', verbs: ['*']}", "the name is missing"},
		{"v8", "{kind: nodes, name: '*'}", "the verbs are missing"},
	} {
		spec := kubeAll + ", kubernetes_resources: [" + tt.entry + "]}"
		doc := fmt.Sprintf("kind: role\nversion: %s\nmetadata: {name: r}\nspec:\n%s\n", tt.version, indent(spec))
		r, warnings, err := ParseRole([]byte(doc))
		if err != nil || len(warnings) != 1 || !strings.Contains(warnings[0].String(), tt.says) || !strings.Contains(warnings[0].String(), "grants nothing") {
			t.Errorf("%s %s: %v, %v", tt.version, tt.entry, warnings, err)
			continue
		}
		if a := kubeAsk(kubeOf(t, r), "get /pods a/b"); a.Allowed {
			t.Errorf("%s %s: grants something", tt.version, tt.entry)
		}
	}
	for _, entry := range []string{"{kind: pod}", "{kind: pod, namespace: '*', name: '*', verbs: ['*']}"} {
		r := role(t, "r", "v8", kubeAll+"}\ndeny: {kubernetes_resources: ["+entry+"]}")
		if d := ask(NewPolicy([]*Role{r}, 1), user(r), kubeCluster(labels{"env": "prod"}), ""); d.Allowed || !strings.Contains(d.Reason, `in place of "pod"`) {
			t.Errorf("deny %s: %v %s", entry, d.Allowed, d.Reason)
		}
	}
}

// TestKubeNarrow: an entry that grants less than it seems to says what, and grants that.
func TestKubeNarrow(t *testing.T) {
	for _, tt := range []struct{ version, entry, says, yes, no string }{
		{"v8", "{kind: '*', namespace: '*', name: '*', verbs: ['*']}", "the core group only", "get /pods a/b", "get apps/deployments a/b"},
		{"v7", "{kind: '*', name: '*', verbs: ['*']}", "no namespace only", "get /nodes /n", "get /pods a/b"},
		{"v8", "{kind: '*', api_group: '*', name: '*', verbs: ['*']}", "no namespace only", "get /nodes /n", "get /pods a/b"},
		{"v7", "{kind: kube_node, name: '*', verbs: ['*']}", "", "get /nodes /n", "get /pods a/b"},
		{"v8", "{kind: gizmos, api_group: example.com, name: '*', verbs: ['*']}", "", "get example.com/gizmos /g", "get /pods a/b"},
		{"v8", "{kind: '*', api_group: '*', namespace: '*', name: '*', verbs: ['*']}", "", "get /nodes /n, get /pods a/b, get apps/deployments a/b", ""},
	} {
		doc := fmt.Sprintf("kind: role\nversion: %s\nmetadata: {name: r}\nspec:\n%s\n", tt.version, indent(kubeAll+", kubernetes_resources: ["+tt.entry+"]}"))
		r, warnings, err := ParseRole([]byte(doc))
		switch {
		case err != nil || tt.says == "" && len(warnings) > 0:
			t.Errorf("%s %s: %v, %v", tt.version, tt.entry, warnings, err)
			continue
		case tt.says != "" && (len(warnings) != 1 || !strings.Contains(warnings[0].String(), tt.says)):
			t.Errorf("%s %s: %v", tt.version, tt.entry, warnings)
		}
		g := kubeOf(t, r)
		for words := range strings.SplitSeq(tt.yes, ", ") {
			if a := kubeAsk(g, words); !a.Allowed {
				t.Errorf("%s %s\n%s is denied: %s", tt.version, tt.entry, words, a.Reason)
			}
		}
		if tt.no != "" && kubeAsk(g, tt.no).Allowed {
			t.Errorf("%s %s\n%s is allowed", tt.version, tt.entry, tt.no)
		}
	}
}

// TestKubeLists is vector 13: lists are filtered to what may be seen.
func TestKubeLists(t *testing.T) {
	for _, tt := range []struct{ spec, words, shown, hidden string }{
		{kubeAll + ", kubernetes_resources: [{kind: pod, namespace: dev, name: 'web-*', verbs: [list]}]}", "list /pods", "dev/web-1", "dev/db, prod/web-1, /web-1, dev/"},
		{kubeAll + ", kubernetes_resources: [{kind: pod, namespace: dev, name: 'web-*', verbs: [list]}]}", "list /pods dev", "dev/web-1", "dev/db, prod/web-1"},
		{kubeAll + ", kubernetes_resources: [{kind: pod, namespace: '*', name: 'web-*', verbs: [list]}]}", "list /pods dev", "dev/web-1", "dev/db, prod/web-1"},
		{kubeAll + ", kubernetes_resources: [{kind: namespace, name: dev, verbs: [list]}]}", "list /namespaces", "/dev", "/prod"},
		{kubeAll + ", kubernetes_resources: [{kind: pod, namespace: 'dev*', name: web, verbs: [list]}]}", "list /namespaces", "/dev, /dev2", "/prod"},
		{kubeAll + ", kubernetes_resources: [{kind: '*', namespace: dev, name: '*', verbs: [list]}]}", "list x/things", "dev/a", "prod/a, /a"},
		{kubeAll + "}\ndeny: {kubernetes_resources: [{kind: '*', namespace: prod, name: '*'}]}", "list /namespaces", "/dev", "/prod"},
		{kubeAll + "}\ndeny: {kubernetes_resources: [{kind: secret, namespace: kube-system, name: '*'}]}", "list /secrets", "dev/a", "kube-system/a"},
		{kubeAll + "}\ndeny: {kubernetes_resources: [{kind: secret, namespace: '*', name: 'root-*'}]}", "watch /secrets", "dev/a", "dev/root-x"},
	} {
		a := kubeAsk(kubeOf(t, role(t, "r", "v7", tt.spec)), tt.words)
		if !a.Allowed || a.Keep == nil {
			t.Errorf("%s: %+v", tt.spec, a)
			continue
		}
		for _, o := range strings.Split(tt.shown, ", ") {
			if namespace, name, _ := strings.Cut(o, "/"); !a.Keep(namespace, name) {
				t.Errorf("%s: %s is hidden", tt.spec, o)
			}
		}
		for _, o := range strings.Split(tt.hidden, ", ") {
			if namespace, name, _ := strings.Cut(o, "/"); a.Keep(namespace, name) {
				t.Errorf("%s: %s is shown", tt.spec, o)
			}
		}
	}
	for _, words := range []string{"list /pods", "list /pods dev", "list /nodes", "watch x/things"} {
		if a := kubeAsk(kubeOf(t, role(t, "r", "v7", kubeAll+"}")), words); !a.Allowed || a.Keep != nil {
			t.Errorf("%s is filtered, and nothing narrows it", words)
		}
	}
}

// TestKubePrincipals: only the roles that allow a request say as whom.
// TestKubeLists_roleWithoutPrincipals: who held a role for some objects, and one for all that gives
// no user and no group, saw all objects in lists, as the group of the first.
func TestKubeLists_roleWithoutPrincipals(t *testing.T) {
	all := role(t, "access", "v7", "allow: {kubernetes_labels: {'*': '*'}, kubernetes_groups: ['{{internal.kubernetes_groups}}']}")
	dev := role(t, "dev", "v7", kubeAll+", kubernetes_resources: [{kind: pod, namespace: dev, name: '*', verbs: ['*']}]}")
	for name, roles := range map[string][]*Role{"first": {all, dev}, "last": {dev, all}} {
		g := kubeOf(t, roles...)
		if a := kubeAsk(g, "get /pods prod/vault"); len(a.Users)+len(a.Groups) > 0 {
			t.Errorf("%s: of one object in prod: %+v", name, a)
		}
		for _, verb := range []string{"list", "watch"} {
			a := kubeAsk(g, verb+" /pods")
			if !a.Allowed || !slices.Equal(a.Groups, []string{"g"}) || a.Keep == nil || a.Keep("prod", "vault") || !a.Keep("dev", "web") {
				t.Errorf("%s: %s of all: %+v", name, verb, a)
			}
		}
		if a := kubeAsk(g, "list /pods dev"); a.Keep != nil || !slices.Equal(a.Groups, []string{"g"}) {
			t.Errorf("%s: list of dev: %+v", name, a)
		}
	}
	// Nobody but such roles: as before, the answer is whom they lack.
	if a := kubeAsk(kubeOf(t, all), "list /pods"); !a.Allowed || len(a.Users)+len(a.Groups) > 0 {
		t.Errorf("%+v", a)
	}
}

func TestKubePrincipals(t *testing.T) {
	view := role(t, "view", "v7", "allow: {kubernetes_labels: {'*': '*'}, kubernetes_groups: [view], kubernetes_resources: [{kind: '*', namespace: '*', name: '*', verbs: [get, list]}]}")
	edit := role(t, "edit", "v7", "allow: {kubernetes_labels: {'*': '*'}, kubernetes_groups: [edit, 'team-{{external.team}}'], kubernetes_users: ['{{email.local(external.email)}}'], kubernetes_resources: [{kind: '*', namespace: dev, name: '*', verbs: ['*']}]}")
	other := role(t, "other", "v7", "allow: {kubernetes_labels: {env: dev}, kubernetes_groups: [other]}")
	g := kubeOf(t, view, edit, other)
	for words, want := range map[string]string{
		"get /pods prod/a":   "view",
		"get /pods dev/a":    "edit team-blue team-red view",
		"delete /pods dev/a": "edit team-blue team-red",
		"list /pods":         "edit team-blue team-red view",
	} {
		a := kubeAsk(g, words)
		if got := strings.Join(a.Groups, " "); !a.Allowed || got != want {
			t.Errorf("%s: groups %q, want %q", words, got, want)
		}
		if users := strings.Contains(want, "edit"); users != slices.Equal(a.Users, []string{"alice"}) {
			t.Errorf("%s: users %q", words, a.Users)
		}
	}
	if a := kubeAsk(g, "delete /pods prod/a"); a.Allowed {
		t.Error("a role's verbs were joined with another's names")
	}
	denied := role(t, "denied", "v7", "deny: {kubernetes_groups: [edit]}")
	if a := kubeAsk(kubeOf(t, view, edit, denied), "delete /pods dev/a"); strings.Join(a.Groups, " ") != "team-blue team-red" {
		t.Errorf("a denied group: %q", a.Groups)
	}
	root := role(t, "root", "v7", "allow: {kubernetes_labels: {'*': '*'}, kubernetes_groups: ['system:masters', ok, \"a\\nb\", ' x']}")
	if a := kubeAsk(kubeOf(t, root), "get /pods dev/a"); !slices.Equal(a.Groups, []string{"ok"}) {
		t.Errorf("A120: groups %q", a.Groups)
	}
	many := role(t, "many", "v7", "allow: {kubernetes_labels: {'*': '*'}, kubernetes_groups: ['g-{{external.team}}']}")
	id := user(many)
	id.Traits["team"] = nil
	for i := range 2 * maxPrincipals {
		id.Traits["team"] = append(id.Traits["team"], fmt.Sprint(i))
	}
	d := ask(NewPolicy([]*Role{many}, 1), id, kubeCluster(labels{"env": "prod"}), "")
	if a := kubeAsk(d.Kube, "get /pods dev/a"); len(a.Groups) != maxPrincipals {
		t.Errorf("%d groups, at most %d", len(a.Groups), maxPrincipals)
	}
}

// TestKubeWhole: what hides its objects is for roles that narrow nothing.
func TestKubeWhole(t *testing.T) {
	whole := sallyport.KubeRequest{Verb: "get", Resource: "nodes", Name: "n", Whole: true}
	path := sallyport.KubeRequest{Verb: "get"}
	open := sallyport.KubeRequest{Verb: "get", Open: true}
	for spec, want := range map[string]bool{
		kubeAll + "}": true,
		kubeAll + ", kubernetes_resources: [{kind: '*', namespace: '*', name: '*', verbs: ['*']}]}":  true,
		kubeAll + ", kubernetes_resources: [{kind: '*', namespace: '*', name: '*', verbs: [get]}]}":  false,
		kubeAll + ", kubernetes_resources: [{kind: '*', namespace: 'a*', name: '*', verbs: ['*']}]}": false,
		kubeAll + ", kubernetes_resources: [{kind: kube_node, name: '*', verbs: ['*']}]}":            false,
		kubeAll + "}\ndeny: {kubernetes_resources: [{kind: secret, namespace: a, name: b}]}":         false,
		kubeAll + "}\ndeny: {kubernetes_resources: [{kind: secret, verbs: [delete]}]}":               false,
		kubeAll + "}\ndeny: {kubernetes_resources: [{kind: pod, verbs: [exec]}]}":                    false,
	} {
		g := kubeOf(t, role(t, "r", "v7", spec))
		if g.Ask(whole).Allowed != want || g.Ask(path).Allowed != want || !g.Ask(open).Allowed {
			t.Errorf("%s: %v %v", spec, g.Ask(whole), g.Ask(path))
		}
	}
	if kubeOf(t, role(t, "r", "v6", kubeAll+"}")).Ask(whole).Allowed {
		t.Error("v6 without pods reaches them by their node")
	}
}

func BenchmarkKubeAsk(b *testing.B) {
	doc := "kind: role\nversion: v7\nmetadata: {name: r}\nspec:\n  allow: {kubernetes_labels: {'*': '*'}, kubernetes_groups: [g, h], kubernetes_resources: [{kind: pod, namespace: 'team-*', name: '*', verbs: ['*']}]}\n"
	r, _, err := ParseRole([]byte(doc))
	if err != nil {
		b.Fatal(err)
	}
	q := sallyport.AccessRequest{Identity: user(r), Resource: kubeCluster(nil), Now: time.Unix(1e9, 0)}
	g := NewPolicy([]*Role{r}, 1).Decide(q).Kube
	request := sallyport.KubeRequest{Verb: "get", Resource: "pods", Namespace: "team-a", Name: "b"}
	b.ReportAllocs()
	for b.Loop() {
		if !g.Ask(request).Allowed {
			b.Fatal("denied")
		}
	}
}
