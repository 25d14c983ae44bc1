package rbac

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Role is one parsed role document. It never changes.
type Role struct {
	name    string
	version int
	json    []byte
	expires time.Time // zero for never
	options options
	allow   conditions
	deny    conditions
	flaws   []flaw
}

// conditions is one side of a role, allow or deny.
type conditions struct {
	here    bool // namespaces include ours
	logins  []template
	dbUsers []template
	dbNames []template
	aws     []template // ARNs of roles
	node    selector
	app     selector
	db      selector
	rules   []rule

	kube          selector
	kubeUsers     []template
	kubeGroups    []template
	kubeResources []kubeRule
}

// flaw is a restriction that this version does not enforce. Whoever holds the
// role is denied what the restriction concerns.
type flaw struct {
	path    string
	why     string
	classes classes
	// matching: it concerns only resources that the role's allow side matches,
	// as Teleport has it for MFA and devices.
	matching bool
	aws      bool // it concerns only applications at AWS
}

// Warning is something in a document that has no effect here.
type Warning struct {
	Line, Column int
	Path         string // spec.allow.…
	Text         string
}

// String puts the place before the fact.
func (w Warning) String() string {
	return fmt.Sprintf("line %d, column %d: %s: %s", w.Line, w.Column, w.Path, w.Text)
}

// Name returns metadata.name.
func (r *Role) Name() string { return r.name }

// Version returns the version of the document, 3 to 8.
func (r *Role) Version() int { return r.version }

// Expires returns metadata.expires, zero for never.
func (r *Role) Expires() time.Time { return r.expires }

// JSON returns the canonical document: sorted keys, no white space. ParseRole
// makes the same role of it. The caller must not change it.
func (r *Role) JSON() []byte { return r.json }

// Unenforced lists the restrictions in the document that this version does
// not enforce, as "path: why". While they are there, the role's holders are
// denied what they concern.
func (r *Role) Unenforced() []string {
	var out []string
	for _, f := range r.flaws {
		out = append(out, f.path+": "+f.why)
	}
	return out
}

// versions of the role document that are understood.
const oldestVersion, newestVersion = 3, 8

// maxName bounds the name of a role: it becomes part of a key in the store.
const maxName = 128

// ParseRole reads a role document in YAML or JSON. The error is a
// *sallyport.Problem of kind ErrInvalid that names the line and column. The
// warnings tell what is accepted and has no effect.
func ParseRole(doc []byte) (*Role, []Warning, error) {
	root, err := parseTree(doc)
	if err != nil {
		return nil, nil, err
	}
	d := &decoder{role: &Role{}}
	d.document(root)
	if d.err != nil {
		return nil, nil, d.err
	}
	// The same role says the same, in whatever order and form it was written.
	slices.SortStableFunc(d.role.flaws, func(a, b flaw) int { return strings.Compare(a.path, b.path) })
	d.role.json = root.appendJSON(nil)
	if len(d.role.json) > maxDocument {
		return nil, nil, invalid(0, 0, fmt.Sprintf("the document has %d bytes as JSON; %d are the most", len(d.role.json), maxDocument), "")
	}
	return d.role, d.warnings, nil
}

// decoder walks a document. The first error stays; what comes after it is
// decoded and forgotten.
type decoder struct {
	role     *Role
	warnings []Warning
	err      error
	denies   bool // inside of spec.deny
}

// maxRemarks bounds warnings and flaws: more would not be read.
const maxRemarks = 100

func (d *decoder) fail(n *node, format string, args ...any) {
	if d.err == nil {
		d.err = invalid(n.line, n.column, fmt.Sprintf(format, args...), "")
	}
}

func (d *decoder) unknown(e entry, where, names string) {
	if d.err != nil {
		return
	}
	hint := "the fields of " + where + " are " + strings.Join(strings.Fields(names), ", ")
	if near := nearest(e.key, strings.Fields(names)); near != "" {
		hint = fmt.Sprintf("did you mean %q?", near)
	}
	d.err = invalid(e.line, e.column, fmt.Sprintf("%s has no field %q", where, clean(e.key)), hint)
}

func (d *decoder) warn(line, column int, path, text string) {
	if len(d.warnings) < maxRemarks {
		d.warnings = append(d.warnings, Warning{line, column, path, text})
	}
}

func (d *decoder) flaw(f flaw) {
	if len(d.role.flaws) < maxRemarks {
		d.role.flaws = append(d.role.flaws, f)
	} else {
		d.role.flaws[maxRemarks-1] = flaw{path: "spec", why: "too many restrictions are not enforced", classes: classAll}
	}
}

func (d *decoder) document(root *node) {
	if root.shape != mapping {
		d.fail(root, "a role document is a mapping, not %v", root.shape)
		return
	}
	for _, e := range root.entries {
		if !known("kind sub_kind version metadata spec", e.key) {
			d.unknown(e, "a role document", "kind version metadata spec")
		}
	}
	if kind := d.text(root, "kind"); kind != "role" {
		d.fail(at(root, "kind"), "the kind is %q; %q is needed", clean(kind), "role")
	}
	d.version(root)
	d.metadata(root)
	d.spec(root)
}

// at is where to point when a field is wrong or missing.
func at(n *node, key string) *node {
	if v := n.get(key); v != nil {
		return v
	}
	return n
}

func (d *decoder) version(root *node) {
	v := d.text(root, "version")
	for i := oldestVersion; i <= newestVersion; i++ {
		if v == fmt.Sprintf("v%d", i) {
			d.role.version = i
		}
	}
	if d.role.version == 0 {
		d.fail(at(root, "version"), "the version is %q; v%d to v%d are understood", clean(v), oldestVersion, newestVersion)
	}
}

func (d *decoder) metadata(root *node) {
	m := d.section(root, "metadata")
	if m == nil {
		d.fail(root, "metadata with a name is missing")
		return
	}
	for _, e := range m.entries {
		if !known(metadataFields, e.key) {
			d.unknown(e, "metadata", metadataFields)
		}
	}
	d.role.name = d.text(m, "name")
	if fact := badName(d.role.name); fact != "" {
		d.fail(at(m, "name"), "the name %s", fact)
	}
	if e := m.get("expires"); e != nil {
		t, err := time.Parse(time.RFC3339, d.text(m, "expires"))
		if err != nil {
			d.fail(e, "expires is not a time like 2006-01-02T15:04:05Z")
		}
		d.role.expires = t
	}
	d.section(m, "labels")
}

func badName(name string) string {
	switch {
	case name == "":
		return "is missing"
	case len(name) > maxName:
		return fmt.Sprintf("has %d bytes; %d are the most", len(name), maxName)
	case name == "." || name == "..":
		return "must not be a dot"
	}
	for _, b := range []byte(name) {
		if b <= ' ' || b > '~' || strings.IndexByte(`/\"'`, b) >= 0 {
			return fmt.Sprintf("%q has a character that is not allowed: use letters, digits, and - _ . @ + : =", clean(name))
		}
	}
	return ""
}

func (d *decoder) spec(root *node) {
	spec := d.section(root, "spec")
	if spec != nil {
		for _, e := range spec.entries {
			if !known(specFields, e.key) {
				d.unknown(e, "spec", specFields)
			}
		}
	}
	d.options(d.section(spec, "options"))
	d.side(d.section(spec, "allow"), "spec.allow", &d.role.allow)
	d.side(d.section(spec, "deny"), "spec.deny", &d.role.deny)
	if d.role.version == 3 {
		d.defaultLabels(spec.get("allow"))
	}
	d.defaultKubeResources(spec.get("allow"))
}

// defaultLabels gives v3 its labels: everything, for nodes only with logins.
func (d *decoder) defaultLabels(allow *node) {
	a := &d.role.allow
	for _, s := range []struct {
		field string
		sel   *selector
		on    bool
	}{
		{"node_labels", &a.node, len(a.logins) > 0},
		{"app_labels", &a.app, true},
		{"db_labels", &a.db, true},
		{"kubernetes_labels", &a.kube, true},
	} {
		if s.on && allow.get(s.field) == nil && !s.sel.hasExpr && s.sel.broken == "" {
			s.sel.hasMap, s.sel.every = true, true
		}
	}
}

// section returns a field that must be a mapping, or nil.
func (d *decoder) section(n *node, key string) *node {
	v := n.get(key)
	if v == nil {
		return nil
	}
	if v.shape != mapping {
		d.fail(v, "%s must be a mapping, not %v", key, v.shape)
		return nil
	}
	return v
}

// text returns a field that must be a single value, or "".
func (d *decoder) text(n *node, key string) string {
	v := n.get(key)
	if v == nil {
		return ""
	}
	if v.shape != scalar {
		d.fail(v, "%s must be a single value, not %v", key, v.shape)
		return ""
	}
	return v.text
}

// strings returns a field that is a list of single values, or one.
func (d *decoder) strings(n *node, key string) []*node {
	v := n.get(key)
	if v == nil {
		return nil
	}
	items := v.items
	if v.shape == scalar {
		items = []*node{v}
	} else if v.shape != list {
		d.fail(v, "%s must be a list, not %v", key, v.shape)
	}
	for _, item := range items {
		if item.shape != scalar {
			d.fail(item, "each value of %s must be a single value, not %v", key, item.shape)
			return nil
		}
		item.literal = "" // 080 and true are text here
	}
	return items
}

// side decodes allow or deny.
func (d *decoder) side(n *node, path string, c *conditions) {
	d.conditionNames(n, path)
	d.denies = c == &d.role.deny
	c.here = true
	if n.get("namespaces") != nil {
		c.here = slices.ContainsFunc(d.strings(n, "namespaces"), func(ns *node) bool {
			p, err := compilePattern(ns.text)
			return err == nil && p.match("default")
		})
	}
	c.logins = d.templates(n, "logins")
	for _, l := range c.logins {
		if l.text == "*" && c == &d.role.allow {
			d.fail(n.get("logins"), "a wildcard is not accepted in logins")
		}
	}
	c.dbUsers = d.templates(n, "db_users")
	c.dbNames = d.templates(n, "db_names")
	c.aws = d.templates(n, "aws_role_arns")
	if c == &d.role.deny {
		d.deniedARNs(c.aws, path)
	}
	d.selector(n, path, "node_labels", &c.node, classNode)
	d.selector(n, path, "app_labels", &c.app, classApp)
	d.selector(n, path, "db_labels", &c.db, classDatabase)
	d.kube(n, path, c)
	d.rules(n, path, c)
}

// deniedARNs finds what is meant as a pattern and would deny nobody.
func (d *decoder) deniedARNs(list []template, path string) {
	for i := range list {
		if t := &list[i]; t.text != "*" && strings.Contains(t.literal(), "*") {
			d.flaw(flaw{path: path + ".aws_role_arns", why: fmt.Sprintf("%q is no pattern: name ARNs in full, or * for all", clean(t.text)), classes: classApp, aws: true})
		}
	}
}

// conditionNames judges names that are not evaluated.
func (d *decoder) conditionNames(n *node, path string) {
	if n == nil {
		return
	}
	deny := strings.HasSuffix(path, "deny")
	names := strings.Fields(conditionFields + " " + unservedFields)
	for _, e := range n.entries {
		field := path + "." + clean(e.key)
		switch {
		case known(conditionFields, e.key) || known(unservedFields, e.key) || empty(e.value):
		case e.key == requireJoin && deny:
			d.warn(e.line, e.column, field, "it has no meaning in deny")
		case e.key == requireJoin:
			d.requireJoin(e, field)
		case deny:
			d.flaw(flaw{path: field, why: "this version does not know it" + suggest(e.key, names), classes: classAll})
		case restricts(e.key):
			d.flaw(flaw{path: field, why: "this version does not know it, and it may restrict" + suggest(e.key, names), classes: classAll})
		default:
			d.warn(e.line, e.column, field, "this version does not know it; it grants nothing"+suggest(e.key, names))
		}
	}
}

// empty tells whether a value says nothing.
func empty(n *node) bool {
	return n.shape == null || n.shape == list && len(n.items) == 0 || n.shape == mapping && len(n.entries) == 0 ||
		n.shape == scalar && n.text == ""
}

// requireJoin: sessions that need a second person.
func (d *decoder) requireJoin(e entry, field string) {
	var concerned classes
	for _, item := range e.value.items {
		kinds := d.strings(item, "kinds")
		if len(kinds) == 0 {
			concerned |= classNode | classKube
		}
		for _, k := range kinds {
			if k.text == "k8s" {
				concerned |= classKube
			} else {
				concerned |= classNode
			}
		}
	}
	if e.value.shape != list {
		concerned = classNode | classKube
	}
	if concerned != 0 {
		d.flaw(flaw{path: field, why: "moderated sessions are not enforced by this version", classes: concerned})
	}
}

// template notes the side on which a template stands.
func (d *decoder) template(t template, err error) (template, error) {
	t.denies = d.denies
	return t, err
}

func (d *decoder) templates(n *node, key string) []template {
	var out []template
	for _, item := range d.strings(n, key) {
		t, err := d.template(parseTemplate(item.text))
		if err != nil {
			d.fail(item, "%s: %v", key, err)
			return nil
		}
		if item.text != "" {
			out = append(out, t)
		}
	}
	return out
}

// selector decodes a label map and its expression.
func (d *decoder) selector(n *node, path, key string, s *selector, c classes) {
	if m := d.section(n, key); m != nil {
		for _, e := range m.entries {
			d.labelKey(m, e, key, s)
		}
	}
	s.hasMap = s.every || len(s.keys) > 0 // an empty map is no map
	text := d.text(n, key+"_expression")
	if strings.TrimSpace(text) == "" {
		return
	}
	expr, err := compileCondition(text, labelDialect())
	switch {
	case errors.Is(err, errUnknown):
		s.broken = err.Error()
		d.flaw(flaw{path: path + "." + key + "_expression", why: err.Error(), classes: c, matching: true})
	case err != nil:
		d.fail(n.get(key+"_expression"), "%s_expression, %v", key, err)
	}
	s.hasExpr, s.expr = true, expr
}

func (d *decoder) labelKey(m *node, e entry, field string, s *selector) {
	values := d.strings(m, e.key)
	if e.value.shape == null {
		d.fail(&node{line: e.line, column: e.column}, "%s: the key %q has no value", field, clean(e.key))
	}
	if e.key == "*" {
		if len(values) != 1 || values[0].text != "*" {
			d.fail(e.value, "%s: the key '*' can only have the value '*'", field)
		}
		s.every = true
		return
	}
	key, err := d.template(parseTemplate(e.key))
	if err != nil {
		d.fail(&node{line: e.line, column: e.column}, "%s: %v", field, err)
		return
	}
	k := labelKey{key: key}
	for _, v := range values {
		t, err := d.template(parseBraces(v.text))
		lv := labelValue{template: t}
		if err == nil && t.inner == nil {
			lv.fixed, err = compilePattern(v.text)
		}
		if err != nil {
			d.fail(v, "%s: %v", field, err)
			return
		}
		k.values = append(k.values, lv)
	}
	s.keys = append(s.keys, k)
}
