package rbac

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/sallyport/sallyport"
)

// rule lets, or forbids, verbs on kinds of API objects.
type rule struct {
	resources []string
	verbs     []string
	hasWhere  bool
	where     term
	broken    string // why the rule cannot be evaluated: it never allows, always denies
}

// RuleRequest asks for a verb on one API object.
type RuleRequest struct {
	Kind   string // role, user, event, …
	Verb   string // list, create, read, readnosecrets, update, delete, …
	Name   string
	Labels map[string]string

	// Fields are what a where clause may name besides, by dotted path:
	// "session.participants", "resource.spec.hostname". Values are strings or
	// slices of strings.
	Fields map[string]any

	about extent
}

// extent is how much of the object is known that a rule is asked about. What is
// not known answers errNoField to a where clause.
type extent uint8

const (
	whole   extent = iota // all that there is of one object
	byName                // one object, of which the name is known and no more
	every                 // the kind as such: what is allowed must be so for every object
	anySome               // the kind as such: what is allowed may be so for some object
)

// rules decodes allow.rules or deny.rules.
func (d *decoder) rules(n *node, path string, c *conditions) {
	v := n.get("rules")
	if v == nil {
		return
	}
	if v.shape != list {
		d.fail(v, "rules must be a list, not %v", v.shape)
		return
	}
	for i, item := range v.items {
		if item.shape != mapping {
			d.fail(item, "a rule is a mapping, not %v", item.shape)
			return
		}
		c.rules = append(c.rules, d.rule(item, fmt.Sprintf("%s.rules[%d]", path, i)))
	}
}

func (d *decoder) rule(n *node, path string) rule {
	r := rule{}
	deny := strings.HasPrefix(path, "spec.deny")
	for _, e := range n.entries {
		switch {
		case e.key == "actions" && !empty(e.value):
			d.warn(e.line, e.column, path+".actions", "actions are not carried out by this version")
		case !known(ruleFields, e.key) && e.value.shape != null:
			r.broken = fmt.Sprintf("%q is not known to this version%s", clean(e.key), suggest(e.key, strings.Fields(ruleFields)))
		}
	}
	for _, k := range d.strings(n, "resources") {
		r.resources = append(r.resources, k.text)
		if known(apiKinds, k.text) {
			continue
		}
		why := fmt.Sprintf("there is no kind %q%s", clean(k.text), suggest(k.text, strings.Fields(apiKinds)))
		if deny {
			d.flaw(flaw{path: path + ".resources", why: why, classes: classAPI})
		} else {
			d.warn(k.line, k.column, path+".resources", why)
		}
	}
	for _, v := range d.strings(n, "verbs") {
		r.verbs = append(r.verbs, v.text)
		if known(verbs, v.text) {
			continue
		}
		why := fmt.Sprintf("there is no verb %q%s", clean(v.text), suggest(v.text, strings.Fields(verbs)))
		if deny {
			d.flaw(flaw{path: path + ".verbs", why: why, classes: classAPI})
		} else {
			d.warn(v.line, v.column, path+".verbs", why)
		}
	}
	if len(r.resources) == 0 || len(r.verbs) == 0 {
		d.fail(n, "a rule needs resources and verbs")
	}
	d.where(n, &r, path, deny)
	if r.broken != "" {
		d.flaw(flaw{path: path, why: r.broken, classes: classAPI, matching: true})
	}
	return r
}

func (d *decoder) where(n *node, r *rule, at string, deny bool) {
	text := d.text(n, "where")
	if strings.TrimSpace(text) == "" {
		return
	}
	dialect, unknown := whereDialect(), []string{}
	dialect.variable = func(path string, key *string) (term, error) {
		t, err := whereVariable(path, key)
		if err == nil && !answered(path, key) {
			unknown = append(unknown, path)
		}
		return t, err
	}
	t, err := compileCondition(text, dialect)
	for _, path := range unknown {
		effect := "never allows where it counts"
		if deny {
			effect = "denies where it counts"
		}
		d.warn(n.get("where").line, n.get("where").column, at+".where", fmt.Sprintf("%s is nothing that this version knows of an object: the rule %s", clean(path), effect))
	}
	switch {
	case errors.Is(err, errUnknown):
		r.broken = "where: " + err.Error()
	case err != nil:
		d.fail(n.get("where"), "where: %v", err)
	}
	r.hasWhere, r.where = true, t
}

// whereDialect is the language of where clauses.
func whereDialect() dialect {
	return dialect{variable: whereVariable, function: func(name string, args []term) (term, error) {
		if name == "regexp.match" {
			return regexpMatch(args)
		}
		return commonFunction(name, args)
	}}
}

func whereVariable(path string, key *string) (term, error) {
	first, _, _ := strings.Cut(path, ".")
	switch {
	case path == "resource.kind" && key == nil:
		return stringTerm(func(s *scope) string { return s.rule.Kind }), nil
	case path == "resource.metadata.name" && key == nil:
		return ofObject(byName, func(s *scope) string { return s.rule.Name }), nil
	case path == "resource.metadata.labels" && key != nil:
		return ofObject(whole, func(s *scope) string { return s.rule.Labels[*key] }), nil
	case slices.Contains([]string{"resource", "session", "session_tracker", "ssh_session", "impersonate_role",
		"impersonate_user", "request", "reviewer", "host_cert", "access_request", "event"}, first) && path != first:
		return field(path, key), nil
	}
	return userVariable(path, key)
}

// answered says that a path of a where clause has a value when rules are asked: of an
// object its kind and name are known. Words of what this version does not have at all,
// such as recorded sessions, are not asked for.
func answered(path string, key *string) bool {
	return !strings.HasPrefix(path, "resource.") || key == nil && (path == "resource.kind" || path == "resource.metadata.name")
}

// ofObject is a word of the object, for questions that know so much of it.
func ofObject(known extent, f func(*scope) string) term {
	return term{typ: typString, eval: func(s *scope) (result, error) {
		if s.rule.about > known {
			return result{}, errNoField
		}
		return result{s: f(s)}, nil
	}}
}

// field reads what the caller gave about the object.
func field(path string, key *string) term {
	if key != nil {
		path += `["` + *key + `"]`
	}
	return term{typ: typAny, eval: func(s *scope) (result, error) {
		switch v := s.rule.Fields[path].(type) {
		case string:
			return result{s: v}, nil
		case []string:
			return result{l: v, list: true}, nil
		}
		return result{}, errNoField
	}}
}

// covers tells whether the rule is about the kind and verb. To read includes
// to read without secrets.
func (r *rule) covers(kind, verb string) bool {
	if !slices.Contains(r.resources, kind) && !slices.Contains(r.resources, "*") {
		return false
	}
	return slices.Contains(r.verbs, verb) || slices.Contains(r.verbs, "*") ||
		verb == "readnosecrets" && slices.Contains(r.verbs, "read")
}

func (r *rule) allows(s *scope) bool {
	if r.broken != "" || !r.covers(s.rule.Kind, s.rule.Verb) {
		return false
	}
	if !r.hasWhere {
		return true
	}
	v, err := r.where.eval(s)
	return err == nil && v.b || s.dependsOnObject(err)
}

// dependsOnObject tells whether an evaluation has stopped at what is not known of
// the object, where only some object need answer it.
func (s *scope) dependsOnObject(err error) bool {
	return s.rule.about == anySome && errors.Is(err, errNoField)
}

// denies: what cannot be evaluated denies. To deny reading without secrets
// denies reading.
func (r *rule) denies(s *scope) bool {
	covers := r.covers(s.rule.Kind, s.rule.Verb) || s.rule.Verb == "read" && r.covers(s.rule.Kind, "readnosecrets")
	if !covers {
		return false
	}
	if r.broken != "" || !r.hasWhere {
		return true
	}
	v, err := r.where.eval(s)
	return (err != nil || v.b) && !s.dependsOnObject(err)
}

// everyone may list and read, without secrets, what shows them where they can
// go; which objects they see is decided for each.
const everyoneKinds = "node db app tcp kube_cluster cluster_name cluster_auth_preference cert_authority remote_cluster proxy auth_server"

// byDefault tells whether every user may do this without a rule.
func byDefault(id *sallyport.Identity, r *RuleRequest) bool {
	read := r.Verb == "read" || r.Verb == "readnosecrets"
	switch {
	case r.Kind == "cert_authority":
		return r.Verb == "readnosecrets" || r.Verb == "list"
	case known(everyoneKinds, r.Kind):
		return read || r.Verb == "list"
	case r.Kind == "user":
		return read && r.Name != "" && r.Name == id.Name
	case r.Kind == "role":
		return read && slices.Contains(id.Roles, r.Name)
	}
	return false
}

// CheckRule tells whether the identity may use the verb on every object of the
// kind. A rule whose where clause asks about the object does not allow that, and
// denies it; use CheckRuleNamed. The error is a *sallyport.Problem of kind ErrDenied.
func (p *Policy) CheckRule(id sallyport.Identity, kind, verb string) error {
	return p.CheckRuleOn(id, RuleRequest{Kind: kind, Verb: verb, about: every})
}

// CheckRuleSome tells whether there may be an object of the kind on which the
// identity may use the verb. Whoever asks it asks CheckRuleNamed before he acts.
func (p *Policy) CheckRuleSome(id sallyport.Identity, kind, verb string) error {
	return p.CheckRuleOn(id, RuleRequest{Kind: kind, Verb: verb, about: anySome})
}

// CheckRuleNamed tells whether the identity may use the verb on the object of that
// name, of which no more is known: a where clause that asks more than its name, such
// as its labels, does not allow, and denies.
func (p *Policy) CheckRuleNamed(id sallyport.Identity, kind, verb, name string) error {
	return p.CheckRuleOn(id, RuleRequest{Kind: kind, Verb: verb, Name: name, about: byName})
}

// CheckRuleOn tells whether the identity may use the verb on one object, of which
// r has all that there is. The local administrator may do everything.
func (p *Policy) CheckRuleOn(id sallyport.Identity, r RuleRequest) error {
	if id.Kind == sallyport.KindLocalAdmin {
		return nil
	}
	what := fmt.Sprintf("%s on %s", clean(r.Verb), clean(r.Kind))
	if id.Kind != sallyport.KindUser {
		return sallyport.Denied(fmt.Sprintf("%s certificates have no access to %s", clean(string(id.Kind)), what), "")
	}
	held, missing := p.held(&id, p.clock())
	if missing != "" {
		return sallyport.Denied(missing, "log in again; ask an administrator when it stays")
	}
	s := &scope{id: &id, rule: &r}
	for _, role := range held {
		for _, f := range role.flaws {
			if f.classes&classAPI != 0 && !f.matching {
				return sallyport.Denied(f.denial(role), "ask an administrator to change the role")
			}
		}
		for i := range role.deny.rules {
			if role.deny.here && role.deny.rules[i].denies(s) {
				return sallyport.Denied(fmt.Sprintf("role %q denies %s", role.name, what), "")
			}
		}
	}
	for _, role := range held {
		for i := range role.allow.rules {
			if role.allow.here && role.allow.rules[i].allows(s) {
				return nil
			}
		}
	}
	if byDefault(&id, &r) {
		return nil
	}
	return sallyport.Denied(fmt.Sprintf("no role of %q allows %s", clean(id.Name), what), "ask an administrator for a role with this rule")
}
