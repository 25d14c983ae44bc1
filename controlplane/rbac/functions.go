package rbac

import (
	"errors"
	"fmt"
	"net/mail"
	"regexp"
	"slices"
	"strings"

	"github.com/sallyport/sallyport"
)

// Errors of an evaluation. A condition that cannot be evaluated never allows
// and always denies. A template that cannot be, because of one value of its trait
// (email.local of what is no address), makes no value to allow, and any to deny.
var (
	errNotString = errors.New("a list stands where a string is needed")
	errNoField   = errors.New("the object has no such field")
	errNotEmail  = errors.New("not an e-mail address")

	// errUnknown marks a name that this version does not know: the document may
	// be newer than the program, so it is not a mistake in the document.
	errUnknown = errors.New("not known to this version")
)

// maxValues bounds the lists that functions make.
const maxValues = 1 << 10

// scope is what an expression may look at.
type scope struct {
	id     *sallyport.Identity
	labels map[string]string // of the resource
	rule   *RuleRequest      // of an API call

	resource *sallyport.Resource // of a query
	value    string              // that a matcher in a template tests
}

// labelDialect is the language of *_labels_expression.
func labelDialect() dialect {
	return dialect{variable: labelVariable, function: func(name string, args []term) (term, error) {
		switch name {
		case "labels_matching":
			return labelsMatching(args)
		case "regexp.match":
			return regexpMatch(args)
		}
		return commonFunction(name, args)
	}}
}

func labelVariable(path string, key *string) (term, error) {
	switch {
	case path == "labels" && key != nil:
		return stringTerm(func(s *scope) string { return s.labels[*key] }), nil
	case strings.HasPrefix(path, "labels.") && key == nil && strings.Count(path, ".") == 1:
		name := strings.TrimPrefix(path, "labels.")
		return stringTerm(func(s *scope) string { return s.labels[name] }), nil
	}
	return userVariable(path, key)
}

// userVariable resolves what is known of the person in every dialect.
func userVariable(path string, key *string) (term, error) {
	switch {
	case path == "user.metadata.name" && key == nil:
		return stringTerm(func(s *scope) string { return s.id.Name }), nil
	case path == "user.spec.roles" && key == nil:
		return listTerm(func(s *scope) []string { return s.id.Roles }), nil
	case path == "user.spec.traits" && key != nil:
		return listTerm(func(s *scope) []string { return s.id.Traits[*key] }), nil
	case strings.HasPrefix(path, "user.spec.traits.") && key == nil && strings.Count(path, ".") == 3:
		name := strings.TrimPrefix(path, "user.spec.traits.")
		return listTerm(func(s *scope) []string { return s.id.Traits[name] }), nil
	}
	return term{}, fmt.Errorf("%q is %w", clean(path), errUnknown)
}

func stringTerm(f func(*scope) string) term {
	return term{typ: typString, eval: func(s *scope) (result, error) { return result{s: f(s)}, nil }}
}

func listTerm(f func(*scope) []string) term {
	return term{typ: typList, eval: func(s *scope) (result, error) { return result{l: f(s)}, nil }}
}

// commonFunction knows the functions of all dialects.
func commonFunction(name string, args []term) (term, error) {
	switch name {
	case "contains":
		if err := want(name, args, typList, typString); err != nil {
			return term{}, err
		}
		return listTest(args, slices.Contains[[]string, string]), nil
	case "contains_any":
		return listsTest(name, args, containsAny)
	case "contains_all":
		return listsTest(name, args, containsAll)
	case "equals":
		if len(args) != 2 {
			return term{}, errors.New("equals takes 2 arguments")
		}
		return equals(args[0], args[1])
	case "set":
		return setOf(args)
	case "strings.upper":
		return mapped(name, args, func(v string) (string, error) { return strings.ToUpper(v), nil })
	case "strings.lower":
		return mapped(name, args, func(v string) (string, error) { return strings.ToLower(v), nil })
	case "email.local":
		return mapped(name, args, emailLocal)
	case "regexp.replace":
		return regexpReplace(args)
	}
	return term{}, fmt.Errorf("the function %q is %w", clean(name), errUnknown)
}

// want checks number and types of arguments. Where a list is wanted, a string
// stands for the list of it.
func want(name string, args []term, types ...typ) error {
	if len(args) != len(types) {
		return fmt.Errorf("%s takes %d arguments", name, len(types))
	}
	for i, t := range types {
		got := args[i].typ
		ok := got == t || got == typAny && (t == typString || t == typList) || got == typString && t == typList
		if !ok {
			return fmt.Errorf("argument %d of %s must be %v, not %v", i+1, name, t, got)
		}
	}
	return nil
}

func evalList(t term, s *scope) ([]string, error) {
	r, err := t.eval(s)
	if err != nil {
		return nil, err
	}
	return r.values(t.typ), nil
}

func evalString(t term, s *scope) (string, error) {
	r, err := t.eval(s)
	if err == nil && r.list {
		err = errNotString
	}
	return r.s, err
}

func listTest(args []term, test func([]string, string) bool) term {
	return term{typ: typBool, eval: func(s *scope) (result, error) {
		l, err := evalList(args[0], s)
		if err != nil {
			return result{}, err
		}
		v, err := evalString(args[1], s)
		if err != nil {
			return result{}, err
		}
		return result{b: test(l, v)}, nil
	}}
}

func listsTest(name string, args []term, test func(l, items []string) bool) (term, error) {
	if err := want(name, args, typList, typList); err != nil {
		return term{}, err
	}
	return term{typ: typBool, eval: func(s *scope) (result, error) {
		l, err := evalList(args[0], s)
		if err != nil {
			return result{}, err
		}
		items, err := evalList(args[1], s)
		if err != nil {
			return result{}, err
		}
		return result{b: test(l, items)}, nil
	}}, nil
}

func containsAny(l, items []string) bool {
	return slices.ContainsFunc(items, func(v string) bool { return slices.Contains(l, v) })
}

// containsAll is false for no items: an empty trait must not match everything.
func containsAll(l, items []string) bool {
	return len(items) > 0 && !slices.ContainsFunc(items, func(v string) bool { return !slices.Contains(l, v) })
}

func setOf(args []term) (term, error) {
	var out []string
	for _, a := range args {
		if a.lit == nil {
			return term{}, errors.New("set takes strings in quotes")
		}
		out = append(out, *a.lit)
	}
	return listTerm(func(*scope) []string { return out }), nil
}

// mapped changes each value of a list. The first that cannot be changed makes
// the whole fail.
func mapped(name string, args []term, change func(string) (string, error)) (term, error) {
	if err := want(name, args, typList); err != nil {
		return term{}, err
	}
	x := args[0]
	return term{typ: typList, eval: func(s *scope) (result, error) {
		l, err := evalList(x, s)
		if err != nil {
			return result{}, err
		}
		out := make([]string, 0, min(len(l), maxValues))
		for _, v := range l[:min(len(l), maxValues)] {
			v, err := change(v)
			if err != nil {
				return result{}, err
			}
			out = append(out, v)
		}
		return result{l: out}, nil
	}}, nil
}

// emailLocal is the part before the @ of an RFC 5322 address.
func emailLocal(v string) (string, error) {
	a, err := mail.ParseAddress(v)
	if err != nil {
		return "", errNotEmail
	}
	i := strings.LastIndexByte(a.Address, '@')
	if i <= 0 {
		return "", errNotEmail
	}
	return a.Address[:i], nil
}

// regexpReplace replaces in each value; values that do not match are dropped.
func regexpReplace(args []term) (term, error) {
	if err := want("regexp.replace", args, typList, typString, typString); err != nil {
		return term{}, err
	}
	re, err := literalRegexp("regexp.replace", args[1])
	if err != nil {
		return term{}, err
	}
	if args[2].lit == nil {
		return term{}, errors.New("the replacement of regexp.replace must be a string in quotes")
	}
	x, replacement := args[0], *args[2].lit
	return term{typ: typList, eval: func(s *scope) (result, error) {
		l, err := evalList(x, s)
		if err != nil {
			return result{}, err
		}
		var out []string
		for _, v := range l[:min(len(l), maxValues)] {
			if re.MatchString(v) {
				out = append(out, re.ReplaceAllString(v, replacement))
			}
		}
		return result{l: out}, nil
	}}, nil
}

func literalRegexp(name string, t term) (*regexp.Regexp, error) {
	if t.lit == nil {
		return nil, fmt.Errorf("the pattern of %s must be a string in quotes", name)
	}
	return compileRegexp(*t.lit)
}

func regexpMatch(args []term) (term, error) {
	if err := want("regexp.match", args, typList, typString); err != nil {
		return term{}, err
	}
	re, err := literalRegexp("regexp.match", args[1])
	if err != nil {
		return term{}, err
	}
	x := args[0]
	return term{typ: typBool, eval: func(s *scope) (result, error) {
		l, err := evalList(x, s)
		return result{b: err == nil && slices.ContainsFunc(l, re.MatchString)}, err
	}}, nil
}

// labelsMatching collects the values of all labels whose key matches.
func labelsMatching(args []term) (term, error) {
	if err := want("labels_matching", args, typString); err != nil {
		return term{}, err
	}
	if args[0].lit == nil {
		return term{}, errors.New("the pattern of labels_matching must be a string in quotes")
	}
	p, err := compilePattern(*args[0].lit)
	if err != nil {
		return term{}, err
	}
	return listTerm(func(s *scope) []string {
		var out []string
		for k, v := range s.labels {
			if p.match(k) {
				out = append(out, v)
			}
		}
		return out
	}), nil
}
