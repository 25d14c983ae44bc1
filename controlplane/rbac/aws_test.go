package rbac

import (
	"slices"
	"strings"
	"testing"

	"github.com/sallyport/sallyport"
)

// TestAWSRoles: an application at AWS is used as one of its roles, which a role of
// ours names in full; everything else about applications is as before.
func TestAWSRoles(t *testing.T) {
	const reader, admin, mine = "arn:aws:iam::123456789012:role/reader", "arn:aws:iam::123456789012:role/admin", "arn:aws:iam::123456789012:role/alice"
	parse := func(name, sides string) *Role {
		r, _, err := ParseRole([]byte("kind: role\nversion: v7\nmetadata: {name: " + name + "}\nspec:\n" + sides))
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	p := NewPolicy([]*Role{
		parse("dev", "  allow:\n    app_labels: {env: dev}\n    aws_role_arns: ["+reader+", '{{external.arns}}']\n"),
		parse("web", "  allow:\n    app_labels: {'*': '*'}\n"),
		parse("elsewhere", "  allow:\n    app_labels: {env: prod}\n    aws_role_arns: ["+admin+"]\n"),
		parse("any", "  allow:\n    app_labels: {'*': '*'}\n    aws_role_arns: ['*']\n"),
		parse("nobody", "  deny:\n    aws_role_arns: ['*']\n"),
		parse("noreader", "  deny:\n    aws_role_arns: ["+reader+"]\n"),
		parse("noadmins", "  deny:\n    aws_role_arns: ['arn:aws:iam::123456789012:role/admin*']\n"),
		parse("nomine", "  deny:\n    aws_role_arns: ['{{external.arns}}*']\n"),
	}, 1)
	cloud := sallyport.Resource{Kind: sallyport.KindApp, Name: "cloud", Protocol: sallyport.ProtocolAWS, Labels: map[string]string{"env": "dev"}}
	page := sallyport.Resource{Kind: sallyport.KindApp, Name: "page", Labels: map[string]string{"env": "dev"}}
	id := func(roles ...string) sallyport.Identity {
		return sallyport.Identity{Kind: sallyport.KindUser, Name: "alice", Cluster: "gw.test", Roles: roles, Traits: map[string][]string{"arns": {mine}}}
	}
	for name, c := range map[string]struct {
		roles    []string
		resource sallyport.Resource
		asked    string
		reason   string // "": allowed
	}{
		"allowed":               {[]string{"dev"}, cloud, reader, ""},
		"by a trait":            {[]string{"dev"}, cloud, mine, ""},
		"another one":           {[]string{"dev"}, cloud, admin, `"` + admin + `" is not among them`},
		"none":                  {[]string{"dev"}, cloud, "", "none was asked for"},
		"labels alone":          {[]string{"web"}, cloud, reader, "allows no AWS roles"},
		"labels alone, none":    {[]string{"web"}, cloud, "", "allows no AWS roles"},
		"of two roles":          {[]string{"web", "elsewhere"}, cloud, admin, "allows no AWS roles"}, // labels and ARN are one role's
		"a wildcard":            {[]string{"any"}, cloud, reader, "is not among them"},
		"a wildcard, literally": {[]string{"any"}, cloud, "*", "is not among them"},
		"denied":                {[]string{"dev", "noreader"}, cloud, reader, `denies AWS role "` + reader + `"`},
		"another denied":        {[]string{"dev", "noreader"}, cloud, mine, ""},
		"all denied":            {[]string{"dev", "nobody"}, cloud, mine, "denies AWS role"},
		"denied by a pattern":   {[]string{"dev", "noadmins"}, cloud, reader, "is no pattern"},
		"by a trait's pattern":  {[]string{"dev", "nomine"}, cloud, reader, "is no pattern"},
		"a page and a pattern":  {[]string{"web", "noadmins"}, page, "", ""},
		"a web application":     {[]string{"web", "nobody"}, page, "", ""},
		"a role at a page":      {[]string{"web"}, page, admin, "allows no AWS roles"},
	} {
		d := p.Decide(sallyport.AccessRequest{Identity: id(c.roles...), Resource: c.resource, Action: sallyport.ActionConnect, AWSRole: c.asked})
		if d.Allowed != (c.reason == "") || !strings.Contains(d.Reason, c.reason) {
			t.Errorf("%s: %v %q, want %q", name, d.Allowed, d.Reason, c.reason)
		}
	}
	for _, c := range []struct {
		roles []string
		want  []string
	}{{[]string{"dev", "any"}, []string{mine, reader}}, {[]string{"dev", "noreader"}, []string{mine}}, {[]string{"dev", "nobody"}, []string{}}, {[]string{"web"}, nil}} {
		if got := p.Principals(id(c.roles...), cloud); !got.Visible || !slices.Equal(got.AWSRoles, c.want) {
			t.Errorf("%v: %+v, want %q", c.roles, got, c.want)
		}
	}
}
