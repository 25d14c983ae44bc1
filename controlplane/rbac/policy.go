package rbac

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/identity"
)

// Policy is one view of all roles. It never changes and may be used by many
// goroutines at once.
type Policy struct {
	roles    map[string]*Role
	revision uint64
	clock    func() time.Time
	patterns *patterns // what traits made of templates; a cache, not state
}

// NewPolicy makes a policy of the roles; of two with one name the last holds.
func NewPolicy(roles []*Role, revision uint64) *Policy {
	p := &Policy{roles: make(map[string]*Role, len(roles)), revision: revision, clock: time.Now, patterns: &patterns{}}
	for _, r := range roles {
		p.roles[r.name] = r
	}
	return p
}

// Revision returns what NewPolicy was given.
func (p *Policy) Revision() uint64 { return p.revision }

// Role returns a role by name.
func (p *Policy) Role(name string) (*Role, bool) {
	r, ok := p.roles[name]
	return r, ok
}

// held returns the roles that an identity names. A role that is not there, or
// no more, is a denial: nobody knows what it denied.
func (p *Policy) held(id *sallyport.Identity, now time.Time) (roles []*Role, missing string) {
	roles = make([]*Role, 0, len(id.Roles))
	for _, name := range id.Roles {
		r, ok := p.roles[name]
		if !ok {
			return nil, fmt.Sprintf("role %q does not exist", clean(name))
		}
		if !r.expires.IsZero() && !now.Before(r.expires) {
			return nil, fmt.Sprintf("role %q has expired", name)
		}
		roles = append(roles, r)
	}
	if len(roles) == 0 {
		return nil, fmt.Sprintf("%q holds no role", clean(id.Name))
	}
	return roles, ""
}

func (f *flaw) denial(r *Role) string {
	return fmt.Sprintf("role %q restricts by %s: %s", r.name, f.path, f.why)
}

// question is one decision under way.
type question struct {
	*sallyport.AccessRequest
	p        *Policy
	held     []*Role
	class    classes
	scope    scope
	bare     bool // labels only: may the subject see the resource at all
	askUser  bool // the database user is matched
	askName  bool // the database name is matched
	askAWS   bool // the role of AWS is matched
	fleeting bool
}

// Decide answers an access request from this view alone. The identity must be
// verified; locks are checked by the caller.
func (p *Policy) Decide(r sallyport.AccessRequest) sallyport.Decision {
	if r.Now.IsZero() {
		r.Now = p.clock()
	}
	return p.decide(&r, false)
}

// Visible tells whether the identity may use the resource as anybody at all:
// the same decision with any login, database user and name.
func (p *Policy) Visible(id sallyport.Identity, r sallyport.Resource) sallyport.Decision {
	return p.decide(&sallyport.AccessRequest{Identity: id, Resource: r, Now: p.clock()}, true)
}

func (p *Policy) decide(r *sallyport.AccessRequest, bare bool) sallyport.Decision {
	q, refusal := p.question(r, bare)
	if refusal != "" {
		return q.deny("", refusal)
	}
	if d, done := q.refused(); done {
		return d
	}
	d := q.granted()
	if !d.Allowed {
		return d
	}
	d.Options = merge(q.held)
	if q.class == classKube {
		d.Kube = q.kubeGrant()
	}
	if fact := forbidden(r.Action, r.Resource.Kind, &d.Options); fact != "" {
		return q.deny("", fact)
	}
	return d
}

// question prepares a decision; refusal is why there is none to make.
func (p *Policy) question(r *sallyport.AccessRequest, bare bool) (q *question, refusal string) {
	q = &question{AccessRequest: r, p: p, bare: bare}
	if r.Identity.Kind != sallyport.KindUser {
		return q, fmt.Sprintf("%s certificates open no sessions", clean(string(r.Identity.Kind)))
	}
	switch r.Resource.Kind {
	case sallyport.KindNode:
		q.class = classNode
	case sallyport.KindDatabase:
		q.class = classDatabase
		q.askUser, q.askName = true, namesDatabases(r.Resource.Protocol)
	case sallyport.KindApp, sallyport.KindTCP:
		q.class = classApp
		q.askAWS = r.Resource.Protocol == sallyport.ProtocolAWS || r.AWSRole != ""
	case sallyport.KindKube:
		q.class = classKube
	default:
		return q, fmt.Sprintf("resources of kind %q are not served by this version", clean(string(r.Resource.Kind)))
	}
	if q.held, refusal = p.held(&r.Identity, r.Now); refusal != "" {
		return q, refusal
	}
	q.fleeting = slices.ContainsFunc(q.held, func(r *Role) bool { return !r.expires.IsZero() })
	q.scope = scope{id: &r.Identity, labels: r.Resource.Labels}
	return q, ""
}

// namesDatabases tells whether a protocol says which database it wants. What
// is not known is taken to say so.
func namesDatabases(protocol string) bool {
	switch protocol {
	case "mysql", "redis", "cassandra", "elasticsearch", "opensearch", "dynamodb", "clickhouse-http":
		return false
	}
	return true
}

func (q *question) deny(role, reason string) sallyport.Decision {
	return sallyport.Decision{Role: role, Reason: reason, Revision: q.p.revision, Fleeting: q.fleeting}
}

// what names the resource in a reason.
func (q *question) what() string {
	kind := string(q.Resource.Kind)
	switch q.Resource.Kind {
	case sallyport.KindDatabase:
		kind = "database"
	case sallyport.KindKube:
		kind = "Kubernetes cluster"
	}
	return fmt.Sprintf("%s %q", kind, clean(q.Resource.Name))
}

// refused goes through everything that denies whatever a role allows.
func (q *question) refused() (sallyport.Decision, bool) {
	if !q.inScope() {
		return q.deny("", fmt.Sprintf("the certificate is limited to other resources than %s", q.what())), true
	}
	for _, r := range q.held {
		if r.options.pinSourceIP && q.Identity.PinnedAddr == "" {
			return q.deny(r.name, fmt.Sprintf("role %q requires a certificate that is bound to an address; log in again", r.name)), true
		}
		for i := range r.flaws {
			if f := &r.flaws[i]; f.classes&q.class != 0 && !f.matching && (!f.aws || q.askAWS) {
				return q.deny(r.name, f.denial(r)), true
			}
		}
	}
	for _, r := range q.held {
		if fact := q.deniedBy(r); fact != "" {
			return q.deny(r.name, fmt.Sprintf("role %q denies %s", r.name, fact)), true
		}
	}
	return sallyport.Decision{}, false
}

// inScope: a certificate for a list of resources is good for no other.
func (q *question) inScope() bool {
	if len(q.Identity.AllowedResources) == 0 {
		return true
	}
	for _, allowed := range q.Identity.AllowedResources {
		rest, ok := strings.CutPrefix(allowed, "/"+q.Identity.Cluster+"/")
		kind, name, both := strings.Cut(rest, "/")
		if !ok || !both || name == "" || name != q.Resource.Name && name != q.Resource.ID {
			continue
		}
		// Teleport's TCP apps are apps.
		if kind == string(q.Resource.Kind) || kind == "app" && q.Resource.Kind == sallyport.KindTCP {
			return true
		}
	}
	return false
}

// deniedBy returns what the role's deny side denies, or "". A denied login or
// database user is denied everywhere, whatever the labels.
func (q *question) deniedBy(r *Role) string {
	c := &r.deny
	if !c.here {
		return ""
	}
	if q.selector(c).denies(&q.scope, q.p.patterns) {
		if why := q.selector(c).broken; why != "" {
			return q.what() + " by a label expression that cannot be evaluated: " + why
		}
		return q.what() + " by its labels"
	}
	if q.bare {
		return ""
	}
	switch q.class {
	case classNode:
		if q.includes(c.logins, q.Login, true) {
			return fmt.Sprintf("login %q", clean(q.Login))
		}
	case classDatabase:
		if q.askUser && q.includesUser(c.dbUsers) {
			return fmt.Sprintf("database user %q", clean(q.DBUser))
		}
		if q.askName && q.includes(c.dbNames, q.DBName, true) {
			return fmt.Sprintf("database name %q", clean(q.DBName))
		}
	case classApp:
		if q.askAWS && q.includes(c.aws, q.AWSRole, true) {
			return fmt.Sprintf("AWS role %q", clean(q.AWSRole))
		}
	}
	return ""
}

// includesUser is includes for denied database users. CockroachDB folds the
// case of user names, so a denied name is denied in every spelling.
func (q *question) includesUser(list []template) bool {
	if q.includes(list, q.DBUser, true) {
		return true
	}
	if q.Resource.Protocol != "cockroachdb" {
		return false
	}
	found := false
	for i := range list {
		list[i].expand(&q.scope, func(v string) bool {
			found = found || strings.EqualFold(v, q.DBUser)
			return !found
		})
	}
	return found
}

// includes tells whether a list of templates makes the value; with wildcard, *
// stands for any.
func (q *question) includes(list []template, value string, wildcard bool) bool {
	for i := range list {
		if list[i].contains(&q.scope, value) || wildcard && list[i].contains(&q.scope, "*") {
			return true
		}
	}
	return false
}

func (q *question) selector(c *conditions) *selector {
	switch q.class {
	case classNode:
		return &c.node
	case classDatabase:
		return &c.db
	case classKube:
		return &c.kube
	}
	return &c.app
}

// granted looks for a role that allows, and for stricter ones beside it.
func (q *question) granted() sallyport.Decision {
	var by *Role
	var near []*Role // roles whose labels match and whose principals do not
	for _, r := range q.held {
		if !r.allow.here || !q.selector(&r.allow).allows(&q.scope, q.p.patterns) {
			continue
		}
		if !q.principalsMatch(r) {
			near = append(near, r)
			continue
		}
		for i := range r.flaws {
			// What can be seen does not depend on what a session must prove.
			if f := &r.flaws[i]; !q.bare && f.classes&q.class != 0 && f.matching && f.demands() {
				return q.deny(r.name, f.denial(r))
			}
		}
		if by == nil {
			by = r
		}
	}
	if by == nil {
		return q.deny("", q.whyNot(near))
	}
	return sallyport.Decision{Allowed: true, Role: by.name, Reason: fmt.Sprintf("role %q allows %s", by.name, q.what()),
		Revision: q.p.revision, Fleeting: q.fleeting}
}

// demands tells a demand on the session, such as MFA, from an expression that
// cannot be evaluated, which has matched nothing already.
func (f *flaw) demands() bool { return strings.HasPrefix(f.path, "spec.options.") }

func (q *question) principalsMatch(r *Role) bool {
	if q.bare {
		return true
	}
	switch q.class {
	case classNode:
		return validLogin(q.Login) && q.includes(r.allow.logins, q.Login, false)
	case classDatabase:
		return q.userMatches(r) && q.nameMatches(r)
	case classApp:
		// A wildcard is none: the role to assume is said in full, as Teleport has it.
		return !q.askAWS || q.AWSRole != "" && q.AWSRole != "*" && q.includes(r.allow.aws, q.AWSRole, false)
	}
	return true
}

func (q *question) userMatches(r *Role) bool {
	return !q.askUser || q.DBUser != "" && q.includes(r.allow.dbUsers, q.DBUser, true)
}

func (q *question) nameMatches(r *Role) bool {
	return !q.askName || q.DBName != "" && q.includes(r.allow.dbNames, q.DBName, true)
}

// validLogin refuses what could be read as something else (an option, a list,
// a path, a pattern, a second line), and all that a certificate cannot name.
func validLogin(login string) bool {
	return identity.ValidPrincipal(login) && login[0] != '-' && !strings.ContainsAny(login, ":\ufffd")
}

// forbidden returns why an action is not allowed in a session that is.
func forbidden(a sallyport.Action, k sallyport.Kind, o *sallyport.Options) string {
	if a == "" || a == sallyport.ActionConnect {
		return ""
	}
	if k != sallyport.KindNode {
		return fmt.Sprintf("%q is not an action of a %s", clean(string(a)), k)
	}
	switch a {
	case sallyport.ActionForwardAgent:
		return unless(o.ForwardAgent, "no role allows agent forwarding")
	case sallyport.ActionForwardLocal:
		return unless(o.PortForwardLocal, "the roles do not allow local port forwarding")
	case sallyport.ActionForwardRemote:
		return unless(o.PortForwardRemote, "the roles do not allow remote port forwarding")
	case sallyport.ActionX11:
		return unless(o.X11Forwarding, "no role allows X11 forwarding")
	case sallyport.ActionFileCopy:
		return unless(o.FileCopy, "a role forbids file copy")
	}
	return fmt.Sprintf("%q is not an action of a node", clean(string(a)))
}

func unless(ok bool, fact string) string {
	if ok {
		return ""
	}
	return fact
}

// Options returns the options of all roles that the identity holds, merged.
// Roles that do not exist count for nothing; Decide denies because of them.
func (p *Policy) Options(id sallyport.Identity) sallyport.Options {
	return merge(p.existing(&id))
}

// PinSourceIP tells whether a role demands certificates bound to the address
// of the login.
func (p *Policy) PinSourceIP(id sallyport.Identity) bool {
	return slices.ContainsFunc(p.existing(&id), func(r *Role) bool { return r.options.pinSourceIP })
}

func (p *Policy) existing(id *sallyport.Identity) []*Role {
	var roles []*Role
	for _, name := range id.Roles {
		if r, ok := p.roles[name]; ok {
			roles = append(roles, r)
		}
	}
	return roles
}
