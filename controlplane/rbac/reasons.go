package rbac

import (
	"fmt"
	"slices"
	"strings"
)

// maxNamed bounds the names listed in a reason.
const maxNamed = 8

// whyNot says why nothing was granted, from the roles whose labels match.
func (q *question) whyNot(near []*Role) string {
	if len(near) == 0 {
		return q.noLabels()
	}
	if q.class == classNode {
		return q.notAmong(near, "logins", q.Login, func(r *Role) []template { return r.allow.logins })
	}
	if q.class == classApp {
		return q.notAmong(near, "AWS roles", q.AWSRole, func(r *Role) []template { return r.allow.aws })
	}
	if !slices.ContainsFunc(near, q.userMatches) {
		return q.notAmong(near, "database users", q.DBUser, func(r *Role) []template { return r.allow.dbUsers })
	}
	if !slices.ContainsFunc(near, q.nameMatches) {
		return q.notAmong(near, "database names", q.DBName, func(r *Role) []template { return r.allow.dbNames })
	}
	return fmt.Sprintf("no single role allows database user %q together with database name %q", clean(q.DBUser), clean(q.DBName))
}

// noLabels: no role's labels match. A role that this version cannot evaluate
// is told, because it may be the one that was meant to.
func (q *question) noLabels() string {
	for _, r := range q.held {
		if why := q.selector(&r.allow).broken; why != "" {
			return fmt.Sprintf("no role allows %s; the label expression of role %q cannot be evaluated: %s", q.what(), r.name, why)
		}
	}
	return fmt.Sprintf("no role of %q allows %s", clean(q.Identity.Name), q.what())
}

// notAmong names the roles, what they allow, and what was asked.
func (q *question) notAmong(near []*Role, what, asked string, list func(*Role) []template) string {
	var names, allowed []string
	for _, r := range near {
		names = append(names, fmt.Sprintf("%q", r.name))
		ts := list(r)
		for i := range ts {
			ts[i].expand(&q.scope, func(v string) bool {
				allowed = append(allowed, clean(v))
				return len(allowed) < maxValues
			})
		}
	}
	slices.Sort(allowed)
	roles, verb := "role "+names[0], "allows"
	if len(names) > 1 {
		roles, verb = "roles "+enumerate(names), "allow"
	}
	switch allowed = slices.Compact(allowed); {
	case len(allowed) == 0:
		return fmt.Sprintf("%s %s no %s on %s", roles, verb, what, q.what())
	case asked == "":
		return fmt.Sprintf("%s %s %s %s; none was asked for", roles, verb, what, enumerate(allowed))
	}
	return fmt.Sprintf("%s %s %s %s; %q is not among them", roles, verb, what, enumerate(allowed), clean(asked))
}

func enumerate(names []string) string {
	if more := len(names) - maxNamed; more > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:maxNamed], ", "), more)
	}
	return strings.Join(names, ", ")
}
