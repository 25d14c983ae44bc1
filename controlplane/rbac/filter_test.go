package rbac

import (
	"errors"
	"strings"
	"testing"

	"github.com/sallyport/sallyport"
)

var (
	filterNode = sallyport.Resource{Kind: sallyport.KindNode, Name: "web-1", ID: "6f2c1a4e-0000-4000-8000-000000000001", Hostname: "web-1.eu.example.com",
		Description: "Front door", Address: "10.0.0.5:3022", Version: "1.2.3",
		Labels: map[string]string{"env": "prod", "team": "Payments", "zones": "a,b,c", "empty": "", "example.com/tier": "1"}}
	filterTCP = sallyport.Resource{Kind: sallyport.KindTCP, Name: "echo", Address: "localhost:7", Protocol: ""}
)

// TestFilter: the language of tsh's --query, form by form.
func TestFilter(t *testing.T) {
	for query, want := range map[string]struct{ node, tcp bool }{
		`labels["env"] == "prod"`:                                          {true, false},
		`labels.env == "prod"`:                                             {true, false},
		`labels["env"] != "prod"`:                                          {false, true}, // what is not there is not prod
		`labels["example.com/tier"] == "1"`:                                {true, false},
		`resource.metadata.labels["env"] == "prod"`:                        {true, false},
		`resource.metadata.labels.env == "prod"`:                           {true, false},
		`name == "echo"`:                                                   {false, true},
		`name == "web-1" || name == "echo"`:                                {true, true},
		`resource.kind == "node"`:                                          {true, false},
		`resource.kind == "app"`:                                           {false, true},
		`resource.metadata.name == "echo"`:                                 {false, true},
		`resource.metadata.name == "6f2c1a4e-0000-4000-8000-000000000001"`: {true, false},
		`resource.metadata.description == "Front door"`:                    {true, false},
		`resource.spec.hostname == "web-1"`:                                {true, false},
		`resource.spec.addr == "10.0.0.5:3022"`:                            {true, false},
		`resource.spec.uri == "tcp://localhost:7"`:                         {false, true},
		`resource.spec.version == "1.2.3"`:                                 {true, false},
		`equals(labels["env"], "prod")`:                                    {true, false},
		`exists(labels["env"])`:                                            {true, false},
		`exists(labels.empty)`:                                             {true, false}, // there, with nothing in it
		`!exists(labels["env"])`:                                           {false, true},
		`exists(resource.metadata.description)`:                            {true, false},
		`search("front", "PROD")`:                                          {true, false},
		`search("team=pay")`:                                               {true, false},
		`search("front", "nowhere")`:                                       {false, false},
		`search()`:                                                         {true, true},
		`hasPrefix(name, "web-")`:                                          {true, false},
		`hasPrefix(labels["none"], "")`:                                    {true, true},
		`contains(split(labels["zones"], ","), "b")`:                       {true, false},
		`contains(split(labels.zones, ","), "b,c")`:                        {false, false},
		`contains(set("web-1", "web-2"), name)`:                            {true, false},
		`regexp.match(name, "^(web|db)-[0-9]+$")`:                          {true, false},
		`labels["env"] == "prod" && (labels["team"] == "x" || !hasPrefix(name, "db"))`: {true, false},
		`true`:  {true, true},
		`false`: {false, false},
	} {
		f, err := ParseFilter(query)
		if err != nil {
			t.Errorf("%s: %v", query, err)
			continue
		}
		if got := f.Match(filterNode); got != want.node {
			t.Errorf("%s: node %v", query, got)
		}
		if got := f.Match(filterTCP); got != want.tcp {
			t.Errorf("%s: TCP service %v", query, got)
		}
	}
}

func TestFilterFaults(t *testing.T) {
	for query, want := range map[string]string{
		``:                                "ends too early",
		`name`:                            "a condition is needed",
		`labels == "x"`:                   `there is no "labels"`,
		`labels.a.b == "x"`:               `there is no "labels.a.b"`,
		`nmae == "x"`:                     `there is no "nmae"`,
		`user.metadata.name == "x"`:       `there is no "user.metadata.name"`, // the person is not the question
		`user.spec.traits["x"] == "x"`:    "there is no",
		`name["x"] == "x"`:                `there is no "name"`,
		`exists("x")`:                     "exists takes a label",
		`exists()`:                        "exists takes a label",
		`search(name)`:                    "strings in quotes",
		`split(name, ",") == "x"`:         "only strings can be compared",
		`split(name, "")`:                 "separator",
		`labels_matching("x")`:            "not known",
		`env=prod`:                        `there is no "env"`,
		`name = "x"`:                      "is not expected here",
		`strings.lower(name) == "x"`:      "only strings can be compared",
		`name == 'x'`:                     "a string is needed",
		strings.Repeat("!", 100) + "true": "nested deeper",
		`name == "` + strings.Repeat("x", maxExpression) + `"`: "are the most",
	} {
		_, err := ParseFilter(query)
		var p *sallyport.Problem
		if !errors.As(err, &p) || !errors.Is(err, sallyport.ErrInvalid) || !strings.Contains(p.Fact, want) || p.Hint == "" {
			t.Errorf("%.40s: %v, want %q", query, err, want)
		}
	}
}

// FuzzFilter: no query panics, and one that is taken decides the same again.
func FuzzFilter(f *testing.F) {
	for _, s := range []string{`labels["env"] == "prod" && search("a")`, `contains(split(labels.zones, ","), "b")`, `!exists(name)`, `set("a") == name`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, query string) {
		q, err := ParseFilter(query)
		if err != nil {
			return
		}
		for _, r := range []sallyport.Resource{filterNode, {}} {
			if first, again := q.Match(r), q.Match(r); first != again {
				t.Fatalf("%v, then %v", first, again)
			}
		}
	})
}
