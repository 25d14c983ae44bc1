package rbac

import (
	"slices"
	"strings"

	"github.com/sallyport/sallyport"
)

// Principals are those that somebody may be on a resource, sorted. "*" among
// database users or names stands for any.
type Principals struct {
	Visible       bool // the labels let the identity use the resource at all
	Logins        []string
	DatabaseUsers []string
	DatabaseNames []string
	AWSRoles      []string // ARNs
}

// maxPrincipals bounds each list.
const maxPrincipals = 256

// Principals lists what the identity may be on the resource. Each database
// user is allowed with some database name, not with every one: Decide decides.
func (p *Policy) Principals(id sallyport.Identity, r sallyport.Resource) Principals {
	request := sallyport.AccessRequest{Identity: id, Resource: r, Now: p.clock()}
	q, refusal := p.question(&request, true)
	if refusal != "" {
		return Principals{}
	}
	if _, no := q.refused(); no {
		return Principals{}
	}
	if !q.granted().Allowed {
		return Principals{}
	}
	out := Principals{Visible: true}
	switch q.class {
	case classNode:
		out.Logins = q.collect(func(c *conditions) []template { return c.logins }, false)
	case classDatabase:
		out.DatabaseUsers = q.collect(func(c *conditions) []template { return c.dbUsers }, true)
		if q.askName {
			out.DatabaseNames = q.collect(func(c *conditions) []template { return c.dbNames }, true)
		}
	case classApp:
		if q.askAWS {
			out.AWSRoles = q.collect(func(c *conditions) []template { return c.aws }, true)
			out.AWSRoles = slices.DeleteFunc(out.AWSRoles, func(arn string) bool { return arn == "*" })
		}
	}
	return out
}

// collect joins what matching roles allow and takes away what any role denies.
func (q *question) collect(list func(*conditions) []template, wildcard bool) []string {
	var out []string
	for _, r := range q.held {
		if !r.allow.here || !q.selector(&r.allow).allows(&q.scope, q.p.patterns) {
			continue
		}
		out = appendValues(out, list(&r.allow), &q.scope)
	}
	return q.without(out, list, wildcard)
}

func appendValues(out []string, ts []template, s *scope) []string {
	for i := range ts {
		ts[i].expand(s, func(v string) bool {
			out = append(out, v)
			return len(out) < maxValues
		})
	}
	return out
}

func (q *question) without(values []string, list func(*conditions) []template, wildcard bool) []string {
	values = slices.DeleteFunc(values, func(v string) bool {
		if v == "" || !wildcard && !validLogin(v) {
			return true
		}
		return slices.ContainsFunc(q.held, func(r *Role) bool {
			return r.deny.here && q.includes(list(&r.deny), v, true)
		})
	})
	slices.Sort(values)
	values = slices.Compact(values)
	return values[:min(len(values), maxPrincipals)]
}

// Logins lists the OS logins that the identity's roles allow on any node: the
// principals of its SSH certificate.
func (p *Policy) Logins(id sallyport.Identity) []string {
	held, missing := p.held(&id, p.clock())
	if missing != "" {
		return nil
	}
	q := &question{AccessRequest: &sallyport.AccessRequest{Identity: id}, p: p, held: held, class: classNode, scope: scope{id: &id}}
	var out []string
	for _, r := range held {
		if r.allow.here && (r.allow.node.hasMap || r.allow.node.hasExpr) {
			out = appendValues(out, r.allow.logins, &q.scope)
		}
	}
	return q.without(out, func(c *conditions) []template { return c.logins }, false)
}

// UserRoles is what is known of a user who is not here: enough to say what
// they could do.
type UserRoles struct {
	Name   string
	Roles  []string
	Traits map[string][]string
}

// Bounds of DatabaseUsers: a certificate is made for each in advance.
const (
	maxUsersPerDatabase = 64
	maxEvaluations      = 200_000
)

// DatabaseUsers lists for each database, by name, the literal users that
// somebody may be there: those worth a certificate in advance. Databases
// without any are left out. The work is bounded; what is left out only costs a
// question later.
func (p *Policy) DatabaseUsers(users []UserRoles, databases []sallyport.Resource) map[string][]string {
	kinds := p.distinct(users)
	seen := make(map[string][]string) // by labels and protocol
	out := make(map[string][]string)
	budget := maxEvaluations
	for _, db := range databases {
		if db.Kind != sallyport.KindDatabase {
			continue
		}
		key := db.Protocol + "\x00" + joinLabels(db.Labels)
		list, ok := seen[key]
		if !ok {
			list = p.usersOf(db, kinds, &budget)
			seen[key] = list
		}
		if list = union(out[db.Name], list); len(list) > 0 {
			out[db.Name] = list
		}
	}
	return out
}

func union(a, b []string) []string {
	all := slices.Concat(a, b)
	slices.Sort(all)
	all = slices.Compact(all)
	return all[:min(len(all), maxUsersPerDatabase)]
}

func (p *Policy) usersOf(db sallyport.Resource, kinds []sallyport.Identity, budget *int) []string {
	var all []string
	for _, id := range kinds {
		if *budget--; *budget < 0 || len(all) > maxUsersPerDatabase*maxPrincipals {
			break
		}
		for _, u := range p.Principals(id, db).DatabaseUsers {
			if u != "*" {
				all = append(all, u)
			}
		}
	}
	return union(nil, all)
}

// distinct makes one identity of all users who hold the same roles and the
// same values of those traits that their roles look at.
func (p *Policy) distinct(users []UserRoles) []sallyport.Identity {
	seen := make(map[string]bool)
	var out []sallyport.Identity
	for _, u := range users {
		id := sallyport.Identity{Kind: sallyport.KindUser, Name: u.Name, Roles: u.Roles, Traits: u.Traits,
			PinnedAddr: "any"} // where they come from is not known yet
		key := p.fingerprint(&id)
		if !seen[key] {
			seen[key] = true
			out = append(out, id)
		}
	}
	return out
}

// fingerprint is the same for users who differ in nothing that a role reads.
func (p *Policy) fingerprint(id *sallyport.Identity) string {
	var b strings.Builder
	traits := map[string]bool{}
	roles := slices.Clone(id.Roles)
	slices.Sort(roles)
	for _, name := range roles {
		b.WriteString(name + "\x00")
		r, ok := p.roles[name]
		if !ok {
			continue
		}
		if r.allow.db.hasExpr || r.deny.db.hasExpr {
			b.WriteString(id.Name + "\x00") // an expression may look at anything
			for t := range id.Traits {
				traits[t] = true
			}
		}
		for _, c := range []*conditions{&r.allow, &r.deny} {
			c.databaseTraits(traits)
		}
	}
	names := make([]string, 0, len(traits))
	for t := range traits {
		names = append(names, t)
	}
	slices.Sort(names)
	for _, t := range names {
		b.WriteString("\x01" + t + "\x00" + strings.Join(id.Traits[t], "\x00"))
	}
	return b.String()
}

// databaseTraits notes the traits that the database side of a condition reads.
func (c *conditions) databaseTraits(into map[string]bool) {
	for _, list := range [][]template{c.dbUsers, c.dbNames} {
		for i := range list {
			if list[i].inner != nil {
				into[list[i].trait] = true
			}
		}
	}
	for _, k := range c.db.keys {
		if k.key.inner != nil {
			into[k.key.trait] = true
		}
		for _, v := range k.values {
			if v.template.inner != nil {
				into[v.template.trait] = true
			}
		}
	}
}

func joinLabels(labels map[string]string) string {
	keys := make([]string, 0, len(labels))
	for k := range labels {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	var b strings.Builder
	for _, k := range keys {
		b.WriteString(k + "\x00" + labels[k] + "\x00")
	}
	return b.String()
}
