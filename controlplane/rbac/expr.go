package rbac

import (
	"fmt"
	"strconv"
	"strings"
)

// Bounds of an expression. Evaluation visits each node once, so the number of
// nodes and the size of the values bound its cost.
const (
	maxExpression = 4 << 10 // bytes
	maxTerms      = 512     // nodes
	maxNesting    = 32
)

// typ is the type of an expression; it is known before it runs.
type typ uint8

const (
	typBool typ = iota
	typString
	typList
	typMatcher // regexp.match in a template: a test, not a value
	typAny     // a field of an API object: a string or a list
)

func (t typ) String() string {
	return [...]string{"a condition", "a string", "a list", "a matcher", "a field"}[t]
}

// term is a compiled expression.
type term struct {
	typ  typ
	lit  *string // a string literal's value
	eval func(*scope) (result, error)

	present func(*scope) bool // whether there is such a label or field; nil where that is no question
}

// result is the value of a term; which field holds it follows from the type.
type result struct {
	b    bool
	s    string
	l    []string
	list bool // of a typAny: l holds the value
}

// values returns a string or list result as a list.
func (r result) values(t typ) []string {
	if t == typList || t == typAny && r.list {
		return r.l
	}
	return []string{r.s}
}

// dialect is one of the four places where expressions are written: labels,
// rules, templates, queries.
type dialect struct {
	// variable resolves a dotted path with an optional ["key"] behind it.
	variable func(path string, key *string) (term, error)
	function func(name string, args []term) (term, error)
}

// exprError is a syntax or type error at a byte of the expression.
type exprError struct {
	at    int
	text  string
	cause error
}

func (e *exprError) Error() string { return fmt.Sprintf("at character %d: %s", e.at+1, e.text) }

func (e *exprError) Unwrap() error { return e.cause }

// compileExpr parses and type-checks an expression:
//
//	or      = and { "||" and }
//	and     = unary { "&&" unary }
//	unary   = "!" unary | compare
//	compare = primary [ ("==" | "!=") primary ]
//	primary = "(" or ")" | string | "true" | "false"
//	        | path [ "(" [ or { "," or } ] ")" | "[" string "]" ]
//	path    = name { "." name }
func compileExpr(text string, d dialect) (term, error) {
	if len(text) > maxExpression {
		return term{}, &exprError{at: 0, text: fmt.Sprintf("the expression has %d bytes; %d are the most", len(text), maxExpression)}
	}
	p := &exprParser{text: text, dialect: d}
	t, err := p.or()
	if err != nil {
		return term{}, err
	}
	p.space()
	if p.at < len(p.text) {
		return term{}, p.errorf("%q is not expected here", clean(p.text[p.at:]))
	}
	return t, nil
}

// compileCondition compiles an expression that must be true or false.
func compileCondition(text string, d dialect) (term, error) {
	t, err := compileExpr(text, d)
	if err == nil && t.typ != typBool {
		return term{}, &exprError{at: 0, text: fmt.Sprintf("the expression is %v; a condition is needed", t.typ)}
	}
	return t, err
}

type exprParser struct {
	text    string
	at      int
	depth   int
	terms   int
	dialect dialect
}

func (p *exprParser) errorf(format string, args ...any) error {
	return &exprError{at: p.at, text: fmt.Sprintf(format, args...)}
}

func (p *exprParser) space() {
	for p.at < len(p.text) && strings.IndexByte(" \t\r\n", p.text[p.at]) >= 0 {
		p.at++
	}
}

// take consumes a mark when it is next.
func (p *exprParser) take(mark string) bool {
	p.space()
	if !strings.HasPrefix(p.text[p.at:], mark) {
		return false
	}
	p.at += len(mark)
	return true
}

func (p *exprParser) or() (term, error) {
	if p.depth++; p.depth > maxNesting {
		return term{}, p.errorf("the expression is nested deeper than %d", maxNesting)
	}
	defer func() { p.depth-- }()
	return p.chain("||", p.and, func(x, y func(*scope) (result, error)) func(*scope) (result, error) {
		return func(s *scope) (result, error) {
			if r, err := x(s); err != nil || r.b {
				return r, err
			}
			return y(s)
		}
	})
}

func (p *exprParser) and() (term, error) {
	return p.chain("&&", p.unary, func(x, y func(*scope) (result, error)) func(*scope) (result, error) {
		return func(s *scope) (result, error) {
			if r, err := x(s); err != nil || !r.b {
				return r, err
			}
			return y(s)
		}
	})
}

func (p *exprParser) chain(mark string, next func() (term, error), join func(x, y func(*scope) (result, error)) func(*scope) (result, error)) (term, error) {
	x, err := next()
	if err != nil {
		return term{}, err
	}
	for p.take(mark) {
		y, err := next()
		if err != nil {
			return term{}, err
		}
		if x.typ != typBool || y.typ != typBool {
			return term{}, p.errorf("%s joins conditions; this is %v", mark, notBool(x, y))
		}
		x = term{typ: typBool, eval: join(x.eval, y.eval)}
	}
	return x, nil
}

func notBool(x, y term) typ {
	if x.typ != typBool {
		return x.typ
	}
	return y.typ
}

func (p *exprParser) unary() (term, error) {
	p.space()
	if strings.HasPrefix(p.text[p.at:], "!=") || !p.take("!") {
		return p.compare()
	}
	if p.depth++; p.depth > maxNesting {
		return term{}, p.errorf("the expression is nested deeper than %d", maxNesting)
	}
	defer func() { p.depth-- }()
	x, err := p.unary()
	if err != nil {
		return term{}, err
	}
	if x.typ != typBool {
		return term{}, p.errorf("! turns a condition; this is %v", x.typ)
	}
	return term{typ: typBool, eval: func(s *scope) (result, error) {
		r, err := x.eval(s)
		return result{b: !r.b}, err
	}}, nil
}

func (p *exprParser) compare() (term, error) {
	x, err := p.primary()
	if err != nil {
		return term{}, err
	}
	negate := p.take("!=")
	if !negate && !p.take("==") {
		return x, nil
	}
	y, err := p.primary()
	if err != nil {
		return term{}, err
	}
	t, err := equals(x, y)
	if err != nil {
		return term{}, p.errorf("%v", err)
	}
	if !negate {
		return t, nil
	}
	return term{typ: typBool, eval: func(s *scope) (result, error) {
		r, err := t.eval(s)
		return result{b: !r.b}, err
	}}, nil
}

// equals compares two strings, or a field of an API object with a string.
func equals(x, y term) (term, error) {
	ok := func(t typ) bool { return t == typString || t == typAny }
	if !ok(x.typ) || !ok(y.typ) {
		return term{}, fmt.Errorf("only strings can be compared; this compares %v with %v", x.typ, y.typ)
	}
	return term{typ: typBool, eval: func(s *scope) (result, error) {
		a, err := x.eval(s)
		if err != nil {
			return result{}, err
		}
		b, err := y.eval(s)
		if err != nil {
			return result{}, err
		}
		if a.list || b.list {
			return result{}, errNotString
		}
		return result{b: a.s == b.s}, nil
	}}, nil
}

func (p *exprParser) primary() (term, error) {
	if p.terms++; p.terms > maxTerms {
		return term{}, p.errorf("the expression has more than %d terms", maxTerms)
	}
	p.space()
	switch {
	case p.at == len(p.text):
		return term{}, p.errorf("the expression ends too early")
	case p.take("("):
		t, err := p.or()
		if err == nil && !p.take(")") {
			err = p.errorf("a ) is missing")
		}
		return t, err
	case p.text[p.at] == '"' || p.text[p.at] == '`':
		s, err := p.str()
		return literal(s), err
	}
	return p.path()
}

func literal(s string) term {
	return term{typ: typString, lit: &s, eval: func(*scope) (result, error) { return result{s: s}, nil }}
}

// str reads a string as Go writes it.
func (p *exprParser) str() (string, error) {
	p.space()
	quoted, err := strconv.QuotedPrefix(p.text[p.at:])
	if err != nil || quoted[0] == '\'' {
		return "", p.errorf("a string in double quotes is needed")
	}
	s, err := strconv.Unquote(quoted)
	if err != nil {
		return "", p.errorf("a string in double quotes is needed")
	}
	p.at += len(quoted)
	return s, nil
}

func (p *exprParser) path() (term, error) {
	start := p.at
	for p.at < len(p.text) && isPath(p.text[p.at]) {
		p.at++
	}
	path := p.text[start:p.at]
	if path == "" || strings.HasPrefix(path, ".") || strings.HasSuffix(path, ".") || strings.Contains(path, "..") {
		p.at = start
		return term{}, p.errorf("a name or a string is needed")
	}
	switch {
	case path == "true" || path == "false":
		return term{typ: typBool, eval: func(*scope) (result, error) { return result{b: path == "true"}, nil }}, nil
	case p.take("("):
		return p.call(start, path)
	case p.take("["):
		key, err := p.str()
		if err != nil {
			return term{}, err
		}
		if !p.take("]") {
			return term{}, p.errorf("a ] is missing")
		}
		return p.variable(start, path, &key)
	}
	return p.variable(start, path, nil)
}

func isPath(b byte) bool {
	return b == '.' || b == '_' || b >= '0' && b <= '9' || b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z'
}

func (p *exprParser) variable(start int, path string, key *string) (term, error) {
	t, err := p.dialect.variable(path, key)
	if err != nil {
		return term{}, &exprError{start, err.Error(), err}
	}
	return t, nil
}

func (p *exprParser) call(start int, name string) (term, error) {
	var args []term
	for !p.take(")") {
		if len(args) > 0 && !p.take(",") {
			return term{}, p.errorf("a , or ) is missing")
		}
		arg, err := p.or()
		if err != nil {
			return term{}, err
		}
		args = append(args, arg)
	}
	t, err := p.dialect.function(name, args)
	if err != nil {
		return term{}, &exprError{start, err.Error(), err}
	}
	return t, nil
}
