package rbac

import (
	"fmt"
	"slices"
	"strings"
	"unicode"

	"github.com/sallyport/sallyport"
)

// kubeRule is one entry of kubernetes_resources.
type kubeRule struct {
	kind      string // "*", a kind of versions to v7, or a plural of v8
	plural    bool   // v8: kind is the API's plural, and group counts
	others    bool   // everything that is no pod: versions to v6 restrict pods only
	group     labelValue
	namespace labelValue
	name      labelValue
	verbs     []string
}

// kubeKind is what a kind of versions to v7 stands for.
type kubeKind struct {
	kind, group, resource string
	wide                  bool // belongs to no namespace
}

var kubeKinds = [...]kubeKind{
	{"pod", "", "pods", false}, {"secret", "", "secrets", false}, {"configmap", "", "configmaps", false},
	{"namespace", "", "namespaces", true}, {"service", "", "services", false}, {"serviceaccount", "", "serviceaccounts", false},
	{"kube_node", "", "nodes", true}, {"persistentvolume", "", "persistentvolumes", true},
	{"persistentvolumeclaim", "", "persistentvolumeclaims", false},
	{"deployment", "apps", "deployments", false}, {"replicaset", "apps", "replicasets", false},
	{"statefulset", "apps", "statefulsets", false}, {"daemonset", "apps", "daemonsets", false},
	{"clusterrole", "rbac.authorization.k8s.io", "clusterroles", true}, {"kube_role", "rbac.authorization.k8s.io", "roles", false},
	{"clusterrolebinding", "rbac.authorization.k8s.io", "clusterrolebindings", true},
	{"rolebinding", "rbac.authorization.k8s.io", "rolebindings", false},
	{"cronjob", "batch", "cronjobs", false}, {"job", "batch", "jobs", false},
	{"certificatesigningrequest", "certificates.k8s.io", "certificatesigningrequests", true},
	{"ingress", "networking.k8s.io", "ingresses", false},
}

const kubeVerbs = "* get list watch create update patch delete deletecollection exec portforward"

// masters is the group that API servers let do everything, past their own
// roles. Nobody becomes a member by us.
const masters = "system:masters"

// kube decodes the conditions on Kubernetes clusters.
func (d *decoder) kube(n *node, path string, c *conditions) {
	d.selector(n, path, "kubernetes_labels", &c.kube, classKube)
	c.kubeUsers = d.templates(n, "kubernetes_users")
	c.kubeGroups = d.templates(n, "kubernetes_groups")
	v := n.get("kubernetes_resources")
	if v == nil || v.shape == null {
		return
	}
	if v.shape != list {
		d.fail(v, "kubernetes_resources must be a list, not %v", v.shape)
		return
	}
	for i, item := range v.items {
		if item.shape != mapping {
			d.fail(item, "kubernetes_resources: each entry is a mapping, not %v", item.shape)
			return
		}
		d.kubeRule(item, fmt.Sprintf("%s.kubernetes_resources[%d]", path, i), c)
	}
}

// kubeRule decodes one entry. What an entry of allow says that is not known
// makes the entry grant nothing, and in deny it denies the whole cluster.
func (d *decoder) kubeRule(n *node, path string, c *conditions) {
	deny := c == &d.role.deny
	r := kubeRule{kind: d.text(n, "kind"), plural: d.role.version >= newestVersion}
	strange := ""
	for _, e := range n.entries {
		if !known("kind name namespace verbs api_group", e.key) {
			strange = fmt.Sprintf("this version does not know %q", clean(e.key))
		}
	}
	missing := ""
	if deny {
		missing = "*"
	}
	if r.plural {
		r.group = d.kubePattern(n, "api_group", missing) // without one, allow means the core group
	} else if n.get("api_group") != nil {
		strange = "api_group needs a role of version v8"
	}
	why := r.unknownKind()
	if why == "" && !deny {
		why = r.reachesNothing(d.role.version, d.text(n, "api_group"))
	}
	if why != "" {
		strange = why
	}
	r.name, r.namespace = d.kubePattern(n, "name", missing), d.kubePattern(n, "namespace", missing)
	for _, v := range d.strings(n, "verbs") {
		if !known(kubeVerbs, v.text) {
			strange = fmt.Sprintf("there is no verb %q%s", clean(v.text), suggest(v.text, strings.Fields(kubeVerbs)))
		}
		r.verbs = append(r.verbs, v.text)
	}
	if len(r.verbs) == 0 && (deny || d.role.version <= 6) {
		r.verbs = []string{"*"}
	}
	if why := r.says(); why != "" && strange == "" {
		strange = why
	}
	switch {
	case strange == "":
		c.kubeResources = append(c.kubeResources, r)
	case deny:
		d.flaw(flaw{path: path, why: strange, classes: classKube})
	default:
		d.warn(n.line, n.column, path, strange+"; the entry grants nothing")
	}
	if why := r.narrower(); strange == "" && why != "" {
		d.warn(n.line, n.column, path, why)
	}
}

// says is what an entry leaves out without which it grants nothing. In deny all that
// is left out means everything.
func (r *kubeRule) says() string {
	switch {
	case r.name.template.text == "":
		return "the name is missing: '*' is for all"
	case r.namespace.template.text == "" && r.namespaced():
		return fmt.Sprintf("the namespace is missing, and %q have one: '*' is for all", r.kind)
	case len(r.verbs) == 0:
		return "the verbs are missing: '*' is for all"
	}
	return ""
}

// namespaced says that objects of the entry's kind are known to have a namespace.
func (r *kubeRule) namespaced() bool {
	return slices.ContainsFunc(kubeKinds[:], func(k kubeKind) bool {
		if r.plural {
			return k.resource == r.kind && k.group == r.group.template.text && !k.wide
		}
		return k.kind == r.kind && !k.wide
	})
}

// wide says that objects of the entry's kind are known to belong to no namespace: one
// that the entry names all the same means nothing.
func (r *kubeRule) wide() bool {
	for i := range kubeKinds {
		k := &kubeKinds[i]
		switch {
		case !k.wide:
		case !r.plural && k.kind == r.kind:
			return true
		case r.plural && k.resource == r.kind && (k.group == r.group.template.text || r.group.all()):
			return true
		}
	}
	return false
}

// narrower is what an entry of every kind does not reach, though it looks so.
func (r *kubeRule) narrower() string {
	switch {
	case r.kind != "*":
		return ""
	case r.plural && r.group.template.text == "":
		return "without api_group the entry is for the core group only: '*' is for all"
	case r.namespace.template.text == "":
		return "without namespace the entry is for what has no namespace only: '*' is for all"
	}
	return ""
}

func (r *kubeRule) unknownKind() string {
	if r.kind == "" {
		return "the kind is missing"
	}
	if r.kind == "*" {
		return ""
	}
	var names []string
	for _, k := range kubeKinds {
		if k.kind == r.kind && r.plural {
			return fmt.Sprintf("a role of version v8 names kinds as the API does: %q in place of %q", k.resource, k.kind)
		}
		if k.kind == r.kind {
			return ""
		}
		names = append(names, k.kind)
	}
	if r.plural {
		return "" // any that the API server may know
	}
	return fmt.Sprintf("there is no kind %q%s", clean(r.kind), suggest(r.kind, names))
}

// reachesNothing is why an entry of allow cannot mean what it says.
func (r *kubeRule) reachesNothing(version int, group string) string {
	if version <= 6 && r.kind != "pod" && r.kind != "*" {
		return fmt.Sprintf("roles of versions to v6 restrict pods only, and let everything else through: a role of version v7 restricts %q", r.kind)
	}
	for _, k := range kubeKinds {
		if r.plural && group == "" && k.resource == r.kind && k.group != "" {
			return fmt.Sprintf("%q are of the group %q, and no api_group means the core group", r.kind, k.group)
		}
	}
	return ""
}

// kubePattern decodes a pattern, which may be a template.
func (d *decoder) kubePattern(n *node, key, missing string) labelValue {
	text := d.text(n, key)
	if text == "" {
		text = missing
	}
	t, err := d.template(parseTemplate(text))
	v := labelValue{template: t}
	if err == nil && t.inner == nil {
		v.fixed, err = compilePattern(text)
	}
	if err != nil {
		d.fail(at(n, key), "kubernetes_resources: %s: %v", key, err)
	}
	return v
}

// defaultKubeResources is what a role says that says nothing of resources:
// until v5 all pods, in v6 no pod, later everything. Until v6 only pods are
// restricted.
func (d *decoder) defaultKubeResources(allow *node) {
	if d.err != nil {
		return
	}
	a := &d.role.allow
	all := d.kubePattern(nil, "name", "*")
	every := kubeRule{kind: "*", group: all, name: all, namespace: all, verbs: []string{"*"}, plural: d.role.version >= newestVersion}
	said := allow.get("kubernetes_resources") != nil
	if d.role.version >= 7 {
		if !said {
			a.kubeResources = []kubeRule{every}
		}
		return
	}
	if !said && d.role.version <= 5 {
		pods := every
		pods.kind = "pod"
		a.kubeResources = []kubeRule{pods}
	}
	every.others = true
	a.kubeResources = append(a.kubeResources, every)
}

// kubeGrant is what the roles that match a cluster say about requests.
type kubeGrant struct {
	allow []*Role // whose labels match
	held  []*Role // all: any may deny
	scope scope
	cache *patterns
}

// kubeGrant makes the grant of a cluster that may be reached.
func (q *question) kubeGrant() *kubeGrant {
	id := q.Identity // a copy: the request is the caller's
	g := &kubeGrant{held: q.held, cache: q.p.patterns, scope: scope{id: &id, labels: q.Resource.Labels}}
	for _, r := range q.held {
		if r.allow.here && q.selector(&r.allow).allows(&q.scope, q.p.patterns) {
			g.allow = append(g.allow, r)
		}
	}
	return g
}

// Ask meets sallyport.KubeGrant. Deny wins; then some role must allow the
// request, and those that do say as whom.
func (g *kubeGrant) Ask(r sallyport.KubeRequest) sallyport.KubeAnswer {
	if r.Open {
		return g.answer(g.allow)
	}
	var denying []*kubeRule
	for _, role := range g.held {
		if !role.deny.here {
			continue
		}
		for i := range role.deny.kubeResources {
			rule := &role.deny.kubeResources[i]
			switch g.reach(rule, &r, true) {
			case reachAll:
				return sallyport.KubeAnswer{Reason: fmt.Sprintf("role %q denies to %s", role.name, kubeWords(&r))}
			case reachSome:
				denying = append(denying, rule)
			}
		}
	}
	if len(denying) > 0 && r.Verb == "create" {
		return sallyport.KubeAnswer{Reason: "a role denies to " + kubeWords(&r) + " of some names, and the request names none"}
	}
	return g.allowed(&r, denying)
}

// allowed looks for the roles that allow what no role denies as a whole.
func (g *kubeGrant) allowed(r *sallyport.KubeRequest, denying []*kubeRule) sallyport.KubeAnswer {
	by, some, all := g.covering(r, g.allow)
	if len(some) > 0 && len(by) > 1 {
		// A role for all objects that gives nobody would lend its objects to the users and
		// groups of one that is for some: alone none of them could be asked for.
		if giving := slices.DeleteFunc(slices.Clone(by), g.givesNobody); len(giving) > 0 && len(giving) < len(by) {
			by, some, all = g.covering(r, giving)
		}
	}
	if len(by) == 0 {
		return sallyport.KubeAnswer{Reason: fmt.Sprintf("no role of %q allows to %s", clean(g.scope.id.Name), kubeWords(r))}
	}
	answer := g.answer(by)
	if !all || len(denying) > 0 {
		answer.Keep = g.keeper(*r, all, some, denying)
	}
	return answer
}

// covering are those of roles that allow a request, the rules by which they allow some of it,
// and whether one allows all.
func (g *kubeGrant) covering(r *sallyport.KubeRequest, roles []*Role) (by []*Role, some []*kubeRule, all bool) {
	for _, role := range roles {
		found := false
		for i := range role.allow.kubeResources {
			rule := &role.allow.kubeResources[i]
			switch g.reach(rule, r, false) {
			case reachAll:
				all, found = true, true
			case reachSome:
				if r.Verb != "create" {
					some, found = append(some, rule), true
				}
			}
		}
		if found {
			by = append(by, role)
		}
	}
	return by, some, all
}

// givesNobody says that a role allows, and not as whom.
func (g *kubeGrant) givesNobody(role *Role) bool {
	a := g.answer([]*Role{role})
	return len(a.Users) == 0 && len(a.Groups) == 0
}

// answer allows, as those whom the roles give.
func (g *kubeGrant) answer(by []*Role) sallyport.KubeAnswer {
	return sallyport.KubeAnswer{
		Allowed: true,
		Users:   g.principals(by, func(c *conditions) []template { return c.kubeUsers }),
		Groups:  g.principals(by, func(c *conditions) []template { return c.kubeGroups }),
	}
}

// keeper filters a collection's objects.
func (g *kubeGrant) keeper(r sallyport.KubeRequest, all bool, allow, deny []*kubeRule) func(namespace, name string) bool {
	return func(namespace, name string) bool {
		one := r
		one.Namespace, one.Name = namespace, name
		if r.Group == "" && r.Resource == "namespaces" {
			one.Namespace = name // as in a request for one
		}
		if name == "" || r.Namespace != "" && r.Namespace != namespace && r.Resource != "namespaces" {
			return false
		}
		denies := func(rule *kubeRule) bool { return g.names(rule, &one, true) == reachAll }
		allows := func(rule *kubeRule) bool { return g.names(rule, &one, false) == reachAll }
		return !slices.ContainsFunc(deny, denies) && (all || slices.ContainsFunc(allow, allows))
	}
}

// principals are the values that roles allow and no role denies.
func (g *kubeGrant) principals(by []*Role, list func(*conditions) []template) []string {
	var out []string
	for _, role := range by {
		out = appendValues(out, list(&role.allow), &g.scope)
	}
	q := &question{scope: g.scope}
	out = slices.DeleteFunc(out, func(v string) bool {
		return !validKubePrincipal(v) || slices.ContainsFunc(g.held, func(role *Role) bool {
			return role.deny.here && q.includes(list(&role.deny), v, true)
		})
	})
	slices.Sort(out)
	out = slices.Compact(out)
	return out[:min(len(out), maxPrincipals)]
}

// maxKubePrincipal bounds a user's or group's name, in bytes.
const maxKubePrincipal = 255

// validKubePrincipal: it becomes the value of a header.
func validKubePrincipal(v string) bool {
	return v != "" && v != masters && len(v) <= maxKubePrincipal && strings.TrimSpace(v) == v &&
		!strings.ContainsFunc(v, func(r rune) bool { return unicode.IsControl(r) || r == unicode.ReplacementChar })
}

// reach is how much of a request a rule concerns.
type reach int

const (
	reachNone reach = iota
	reachSome       // of a collection, or of names not yet known
	reachAll
)

// reach judges verb and kind, then the names.
func (g *kubeGrant) reach(rule *kubeRule, r *sallyport.KubeRequest, deny bool) reach {
	if r.Whole || r.Resource == "" {
		// What hides its objects is for roles that narrow nothing; a denial
		// of anything touches it: what runs in a pod is not its verb here.
		if deny || rule.narrowsNothing() {
			return reachAll
		}
		return reachNone
	}
	if !slices.Contains(rule.verbs, "*") && !slices.Contains(rule.verbs, r.Verb) {
		return reachNone
	}
	return g.names(rule, r, deny)
}

func (rule *kubeRule) narrowsNothing() bool {
	return rule.kind == "*" && !rule.others && rule.name.all() && rule.namespace.all() && (!rule.plural || rule.group.all()) &&
		slices.Contains(rule.verbs, "*")
}

func (v *labelValue) all() bool { return v.template.inner == nil && v.fixed.text == "*" }

// names judges kind, namespace and name. Without a name, and without a
// namespace where there could be one, a rule for some of them reaches some.
func (g *kubeGrant) names(rule *kubeRule, r *sallyport.KubeRequest, deny bool) reach {
	switch {
	case rule.others:
		if r.Group == "" && r.Resource == "pods" {
			return reachNone
		}
		return reachAll
	case !deny && rule.shows(r):
		return g.around(rule, r)
	case rule.plural:
		if rule.kind != "*" && rule.kind != r.Resource || !rule.group.all() && !g.groupMatches(rule, r.Group) {
			return reachNone
		}
		return g.narrow(rule, r, rule.kind == "namespaces" && r.Group == "")
	case rule.kind == "namespace" && !(r.Group == "" && r.Resource == "namespaces"):
		return g.within(rule, r)
	}
	k := kindOf(r)
	if rule.kind != "*" && rule.kind != k.kind {
		return reachNone
	}
	return g.narrow(rule, r, k.wide && rule.kind != "*")
}

func (g *kubeGrant) groupMatches(rule *kubeRule, group string) bool {
	if rule.group.template.text == "" {
		return group == ""
	}
	return rule.group.match(&g.scope, g.cache, group)
}

// shows says that a rule for something in namespaces lets the request see them: who
// may get, list or watch it there may do so with the namespace too, and nothing more.
func (rule *kubeRule) shows(r *sallyport.KubeRequest) bool {
	if r.Group != "" || r.Resource != "namespaces" || rule.namespace.template.text == "" {
		return false
	}
	own := "namespace"
	if rule.plural {
		own = "namespaces"
	}
	return rule.kind != own && !rule.wide() && (r.Verb == "get" || r.Verb == "list" || r.Verb == "watch")
}

// around judges a namespace that a rule is for something in.
func (g *kubeGrant) around(rule *kubeRule, r *sallyport.KubeRequest) reach {
	switch {
	case rule.namespace.all():
		return reachAll
	case r.Name == "":
		return reachSome
	case rule.namespace.match(&g.scope, g.cache, r.Name):
		return reachAll
	}
	return reachNone
}

// within: a rule for a namespace grants everything inside of it.
func (g *kubeGrant) within(rule *kubeRule, r *sallyport.KubeRequest) reach {
	switch {
	case r.Namespace != "":
		if rule.name.match(&g.scope, g.cache, r.Namespace) {
			return reachAll
		}
	case r.Name == "" && !kindOf(r).wide:
		return reachSome
	}
	return reachNone
}

// narrow judges namespace and name. wide: the rule is for a kind that belongs
// to no namespace, so its own namespace does not count.
func (g *kubeGrant) narrow(rule *kubeRule, r *sallyport.KubeRequest, wide bool) reach {
	out := reachAll
	switch {
	case wide || rule.namespace.all():
	case r.Namespace != "":
		if !rule.namespace.match(&g.scope, g.cache, r.Namespace) {
			return reachNone
		}
	case r.Name == "":
		// All namespaces, or a kind without any: each object tells.
		out = reachSome
	case rule.namespace.template.text != "":
		return reachNone // an object without a namespace
	}
	switch {
	case rule.name.all():
	case r.Name == "":
		out = reachSome
	case !rule.name.match(&g.scope, g.cache, r.Name):
		return reachNone
	}
	return out
}

// kindOf is the kind of versions to v7; the zero kind for others.
func kindOf(r *sallyport.KubeRequest) kubeKind {
	for _, k := range kubeKinds {
		if k.group == r.Group && k.resource == r.Resource {
			return k
		}
	}
	return kubeKind{}
}

// kubeWords says what was asked: `get pods "web-0" in namespace "dev"`.
func kubeWords(r *sallyport.KubeRequest) string {
	if r.Resource == "" {
		return r.Verb + " what is not a resource"
	}
	text := r.Verb + " " + clean(r.Resource)
	if r.Group != "" {
		text += "." + clean(r.Group)
	}
	if r.Name != "" {
		text += fmt.Sprintf(" %q", clean(r.Name))
	}
	if r.Namespace != "" && r.Resource != "namespaces" {
		text += fmt.Sprintf(" in namespace %q", clean(r.Namespace))
	}
	if r.Whole {
		text += " without any limit"
	}
	return text
}
