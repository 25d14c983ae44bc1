// Package rbac decides who may use what, so that nobody else has to read a role:
// it parses Teleport's role documents (v3 to v8, YAML or JSON) and answers
// questions about them. There is no I/O here.
//
//	func ParseRole(doc []byte) (*Role, []Warning, error)
//	func (*Role) Name() string
//	func (*Role) JSON() []byte           // canonical document, parses back to the same role
//	func (*Role) Unenforced() []string   // restrictions that this version does not enforce
//	func Presets() []*Role               // access, editor, auditor
//
//	func NewPolicy(roles []*Role, revision uint64) *Policy
//	func (*Policy) Decide(r sallyport.AccessRequest) sallyport.Decision
//	func (*Policy) Visible(id sallyport.Identity, r sallyport.Resource) sallyport.Decision
//	func (*Policy) Principals(id sallyport.Identity, r sallyport.Resource) Principals
//	func (*Policy) CheckRule(id sallyport.Identity, kind, verb string) error
//	func (*Policy) CheckRuleSome(id sallyport.Identity, kind, verb string) error
//	func (*Policy) CheckRuleNamed(id sallyport.Identity, kind, verb, name string) error
//	func (*Policy) CheckRuleOn(id sallyport.Identity, r RuleRequest) error
//	func (*Policy) Options(id sallyport.Identity) sallyport.Options
//	func (*Policy) PinSourceIP(id sallyport.Identity) bool
//	func (*Policy) Logins(id sallyport.Identity) []string
//	func (*Policy) DatabaseUsers(users []UserRoles, databases []sallyport.Resource) map[string][]string
//
//	func ParseFilter(query string) (*Filter, error) // of listings
//	func (*Filter) Match(r sallyport.Resource) bool
//
// A decision is made in this order; the first that holds ends it:
//
//	a role that the identity holds is unknown or expired         deny
//	the certificate is scoped to other resources                 deny
//	a held role carries a restriction that is not enforced here  deny
//	any held role's deny side matches                            deny
//	a role matches that demands more than the session can prove  deny
//	a role's labels and principals all match                     allow
//	otherwise                                                    deny
//
// What cannot be evaluated never allows and always denies. That holds for a template
// too, of which one value of a trait cannot be made: {{email.local(external.mails)}}
// with a value that is no address makes no login to allow, and under deny it denies
// every login. Teleport leaves such a value out on both sides; then whoever can add
// one to a trait takes the others' denial away.
//
// Invariant: adding a deny or a restriction to a role never lets anybody do
// more than before.
package rbac
