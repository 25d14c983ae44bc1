package rbac

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// internalTraits are the traits that {{internal.…}} may name.
var internalTraits = [...]string{
	"logins", "windows_logins", "kubernetes_groups", "kubernetes_users", "db_names", "db_users", "db_roles",
	"aws_role_arns", "azure_identities", "gcp_service_accounts", "host_user_uid", "host_user_gid", "github_orgs",
	"mcp_tools", "default_relay_addr", "jwt",
}

// maxResult bounds one value that a template makes.
const maxResult = 4 << 10

// template is a string of a role: literal, or a prefix, one {{expression}} and
// a suffix. A trait of many values makes many strings, a missing one none.
type template struct {
	text           string
	prefix, suffix string
	inner          *term // nil: literal
	trait          string
	denies         bool // stands in a role's deny side: an expression that fails makes any value
}

// errMatcher is told where a value is needed and regexp.match was written.
var errMatcher = errors.New("regexp.match and regexp.not_match test a label's value and make none")

// parseTemplate parses a string that is to become a value.
func parseTemplate(text string) (template, error) {
	t, err := parseBraces(text)
	if err == nil && t.inner != nil && t.inner.typ == typMatcher {
		return template{}, errMatcher
	}
	return t, err
}

func parseBraces(text string) (template, error) {
	t := template{text: text}
	open := strings.Index(text, "{{")
	end := strings.LastIndex(text, "}}")
	if open < 0 && end < 0 {
		return t, nil
	}
	if open < 0 || end < open+2 {
		return t, fmt.Errorf("%q has {{ without }}, or the reverse", clean(text))
	}
	t.prefix, t.suffix = strings.TrimLeft(text[:open], " \t"), strings.TrimRight(text[end+2:], " \t")
	if strings.ContainsAny(t.prefix+t.suffix, "{}") {
		return t, fmt.Errorf("%q has more than one {{…}}", clean(text))
	}
	inner, err := compileExpr(text[open+2:end], templateDialect(&t.trait))
	if err != nil {
		return t, fmt.Errorf("template %q, %w", clean(text), err)
	}
	if inner.typ == typBool {
		return t, fmt.Errorf("template %q is a condition and makes no value", clean(text))
	}
	t.inner = &inner
	return t, nil
}

// templateDialect is the language between {{ and }}. It notes the trait used.
func templateDialect(trait *string) dialect {
	return dialect{
		variable: func(path string, key *string) (term, error) {
			name, err := traitName(path, key)
			if err != nil {
				return term{}, err
			}
			*trait = name
			return listTerm(func(s *scope) []string { return s.id.Traits[name] }), nil
		},
		function: templateFunction,
	}
}

func traitName(path string, key *string) (string, error) {
	space, name, dotted := strings.Cut(path, ".")
	switch {
	case dotted && key != nil || dotted && strings.Contains(name, ".") || !dotted && key == nil:
		return "", fmt.Errorf("write internal.NAME, external.NAME or external[\"NAME\"], not %q", clean(path))
	case key != nil:
		name = *key
	}
	switch {
	case space == "external":
		return name, nil
	case space != "internal":
		return "", fmt.Errorf("%q is neither internal nor external", clean(space))
	case !slices.Contains(internalTraits[:], name):
		return "", fmt.Errorf("there is no internal trait %q%s", clean(name), suggest(name, internalTraits[:]))
	}
	return name, nil
}

func templateFunction(name string, args []term) (term, error) {
	switch name {
	case "email.local", "regexp.replace", "strings.upper", "strings.lower":
		return commonFunction(name, args)
	case "regexp.match", "regexp.not_match":
		if err := want(name, args, typString); err != nil {
			return term{}, err
		}
		re, err := literalRegexp(name, args[0])
		if err != nil {
			return term{}, err
		}
		return matcher(re, name == "regexp.not_match"), nil
	}
	return term{}, fmt.Errorf("there is no function %q in templates", clean(name))
}

// matcher tests the scope's value.
func matcher(re *regexp.Regexp, negate bool) term {
	return term{typ: typMatcher, eval: func(s *scope) (result, error) {
		return result{b: re.MatchString(s.value) != negate}, nil
	}}
}

// expand calls yield with each value until it returns false. An expression
// that fails makes no value, and ok is false.
func (t *template) expand(s *scope, yield func(string) bool) (ok bool) {
	if t.inner == nil {
		yield(t.text)
		return true
	}
	r, err := t.inner.eval(s)
	if err != nil {
		return false
	}
	for _, v := range r.values(t.inner.typ) {
		if v == "" || len(v)+len(t.prefix)+len(t.suffix) > maxResult {
			continue
		}
		if t.prefix != "" || t.suffix != "" {
			v = t.prefix + v + t.suffix
		}
		if !yield(v) {
			break
		}
	}
	return true
}

// literal is what stands in a template beside its expression.
func (t *template) literal() string {
	if t.inner == nil {
		return t.text
	}
	return t.prefix + t.suffix
}

// contains tells whether v is one of the values, or may be.
func (t *template) contains(s *scope, v string) bool {
	if t.inner == nil {
		return t.text == v
	}
	found := false
	ok := t.expand(s, func(x string) bool {
		found = x == v
		return !found
	})
	return found || !ok && t.denies
}
