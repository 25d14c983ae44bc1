package rbac

import "slices"

// selector is the label side of a condition for one class of resources: a map,
// an expression, or both.
type selector struct {
	keys    []labelKey
	every   bool // '*': '*' matches every resource, labelled or not
	hasMap  bool // a map was given or is the version's default
	hasExpr bool
	expr    term
	broken  string // why the expression cannot be evaluated by this version
}

// labelKey is one line of a label map: the resource must have the key with one
// of the values.
type labelKey struct {
	key    template
	values []labelValue
}

// labelValue is a fixed pattern, or a template that makes patterns or tests.
type labelValue struct {
	fixed    pattern
	template template
}

// allows: map and expression must both match where both are given; nothing
// given matches nothing.
func (l *selector) allows(s *scope, c *patterns) bool {
	if l.broken != "" || !l.hasMap && !l.hasExpr {
		return false
	}
	if l.hasMap && !l.matchMap(s, c) {
		return false
	}
	if !l.hasExpr {
		return true
	}
	r, err := l.expr.eval(s)
	return err == nil && r.b
}

// denies: either suffices, and an expression that cannot be evaluated denies.
func (l *selector) denies(s *scope, c *patterns) bool {
	if l.broken != "" || l.hasMap && l.matchMap(s, c) {
		return true
	}
	if !l.hasExpr {
		return false
	}
	r, err := l.expr.eval(s)
	return err != nil || r.b
}

func (l *selector) matchMap(s *scope, c *patterns) bool {
	if l.every {
		return true
	}
	for i := range l.keys {
		if !l.keys[i].match(s, c) {
			return false
		}
	}
	return len(l.keys) > 0
}

func (k *labelKey) match(s *scope, c *patterns) bool {
	key := k.key.text
	if k.key.inner != nil {
		key = "" // of several values the first is the key
		ok := k.key.expand(s, func(v string) bool { key = v; return false })
		if !ok && k.key.denies {
			return true
		}
	}
	value, ok := s.labels[key]
	if !ok || key == "" {
		return false
	}
	return slices.ContainsFunc(k.values, func(v labelValue) bool { return v.match(s, c, value) })
}

func (v *labelValue) match(s *scope, c *patterns, value string) bool {
	inner := v.template.inner
	if inner == nil {
		return v.fixed.match(value)
	}
	if inner.typ == typMatcher {
		return v.matchInner(value)
	}
	found := false
	ok := v.template.expand(s, func(x string) bool {
		p := c.get(x)
		found = p.match(value)
		return !found
	})
	return found || !ok && v.template.denies
}

// matchInner tests what stands between the literal prefix and suffix.
func (v *labelValue) matchInner(value string) bool {
	t := &v.template
	if len(value) < len(t.prefix)+len(t.suffix) ||
		value[:len(t.prefix)] != t.prefix || value[len(value)-len(t.suffix):] != t.suffix {
		return false
	}
	r, err := t.inner.eval(&scope{value: value[len(t.prefix) : len(value)-len(t.suffix)]})
	return err == nil && r.b
}
