package rbac

import (
	"fmt"
	"slices"
	"strings"

	"github.com/sallyport/sallyport"
)

// Filter narrows a listing: the language of --query, with the resource's own
// words instead of the person's. It gives no rights.
//
//	labels["env"] == "prod" && !hasPrefix(name, "test-")
//	exists(labels["team"]) || search("payments", "eu")
type Filter struct{ condition term }

// ParseFilter compiles a query.
func ParseFilter(query string) (*Filter, error) {
	t, err := compileCondition(query, filterDialect())
	if err != nil {
		return nil, &sallyport.Problem{Kind: sallyport.ErrInvalid, Cause: err, Fact: "query: " + err.Error(),
			Hint: `for example: labels["env"] == "prod" && hasPrefix(name, "web-"); names are name, labels, resource.kind, resource.metadata.*, resource.spec.*`}
	}
	return &Filter{t}, nil
}

// Match says whether a resource is among those that were asked for.
func (f *Filter) Match(r sallyport.Resource) bool {
	got, err := f.condition.eval(&scope{labels: r.Labels, resource: &r})
	return err == nil && got.b
}

func filterDialect() dialect {
	return dialect{variable: filterVariable, function: filterFunction}
}

// filterWords are what a query may say of a resource, besides its labels.
var filterWords = map[string]func(*sallyport.Resource) string{
	"name":                          func(r *sallyport.Resource) string { return r.Name },
	"resource.kind":                 filterKind,
	"resource.metadata.name":        filterName,
	"resource.metadata.description": func(r *sallyport.Resource) string { return r.Description },
	"resource.spec.hostname":        filterHostname,
	"resource.spec.addr":            func(r *sallyport.Resource) string { return r.Address },
	"resource.spec.uri":             filterURI,
	"resource.spec.protocol":        func(r *sallyport.Resource) string { return r.Protocol },
	"resource.spec.version":         func(r *sallyport.Resource) string { return r.Version },
}

// filterKind is the kind as listings print it in JSON.
func filterKind(r *sallyport.Resource) string {
	if r.Kind == sallyport.KindTCP {
		return string(sallyport.KindApp)
	}
	return string(r.Kind)
}

// filterName is a node's UUID, as in JSON; others have only their name.
func filterName(r *sallyport.Resource) string {
	if r.Kind == sallyport.KindNode {
		return r.ID
	}
	return r.Name
}

func filterHostname(r *sallyport.Resource) string {
	if r.Kind == sallyport.KindNode {
		return r.Name
	}
	return ""
}

func filterURI(r *sallyport.Resource) string {
	if r.Kind == sallyport.KindTCP {
		return "tcp://" + r.Address
	}
	return r.Address
}

func filterVariable(path string, key *string) (term, error) {
	if word := filterWords[path]; word != nil && key == nil {
		t := stringTerm(func(s *scope) string { return word(s.resource) })
		t.present = func(s *scope) bool { return word(s.resource) != "" }
		return t, nil
	}
	path = strings.TrimPrefix(path, "resource.metadata.")
	if name, dotted := strings.CutPrefix(path, "labels."); dotted && key == nil && !strings.Contains(name, ".") {
		path, key = "labels", &name
	}
	if path != "labels" || key == nil {
		return term{}, fmt.Errorf("there is no %q", clean(path))
	}
	label := *key
	t := stringTerm(func(s *scope) string { return s.labels[label] })
	t.present = func(s *scope) bool { _, there := s.labels[label]; return there }
	return t, nil
}

func filterFunction(name string, args []term) (term, error) {
	switch name {
	case "exists":
		return existsOf(args)
	case "search":
		return searchOf(args)
	case "hasPrefix":
		if err := want(name, args, typString, typString); err != nil {
			return term{}, err
		}
		return listTest(args, func(l []string, prefix string) bool {
			return slices.ContainsFunc(l, func(v string) bool { return strings.HasPrefix(v, prefix) })
		}), nil
	case "split":
		return splitOf(args)
	case "regexp.match":
		return regexpMatch(args)
	}
	return commonFunction(name, args)
}

func existsOf(args []term) (term, error) {
	if len(args) != 1 || args[0].present == nil {
		return term{}, fmt.Errorf(`exists takes a label or a field, such as exists(labels["env"])`)
	}
	present := args[0].present
	return term{typ: typBool, eval: func(s *scope) (result, error) { return result{b: present(s)}, nil }}, nil
}

// searchOf holds when every word is found somewhere, whatever its case.
func searchOf(args []term) (term, error) {
	var words []string
	for _, a := range args {
		if a.lit == nil {
			return term{}, fmt.Errorf("search takes strings in quotes")
		}
		words = append(words, strings.ToLower(*a.lit))
	}
	return term{typ: typBool, eval: func(s *scope) (result, error) {
		for _, w := range words {
			if !found(s.resource, w) {
				return result{}, nil
			}
		}
		return result{b: true}, nil
	}}, nil
}

// found looks for a word in lower case in what a listing shows of a resource.
func found(r *sallyport.Resource, word string) bool {
	holds := func(text string) bool { return strings.Contains(strings.ToLower(text), word) }
	for _, text := range []string{r.Name, r.Hostname, r.ID, r.Description, r.Address, r.Protocol, filterKind(r)} {
		if holds(text) {
			return true
		}
	}
	for k, v := range r.Labels {
		if holds(k + "=" + v) {
			return true
		}
	}
	return false
}

func splitOf(args []term) (term, error) {
	if err := want("split", args, typString, typString); err != nil {
		return term{}, err
	}
	if args[1].lit == nil || *args[1].lit == "" {
		return term{}, fmt.Errorf("the separator of split must be a string in quotes")
	}
	x, by := args[0], *args[1].lit
	return term{typ: typList, eval: func(s *scope) (result, error) {
		v, err := evalString(x, s)
		return result{l: strings.SplitN(v, by, maxValues)}, err
	}}, nil
}
