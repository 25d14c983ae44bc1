package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/cmd/internal/fail"
	"github.com/sallyport/sallyport/cmd/internal/output"
	"github.com/sallyport/sallyport/cmd/internal/shell"
	"github.com/sallyport/sallyport/cmd/internal/table"
	"github.com/sallyport/sallyport/controlplane/audit"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
)

const maxDocuments = 8 << 20

// format is the flag that every listing takes.
type format struct {
	Format string `name:"format" short:"f" enum:"text,json,yaml" default:"text" placeholder:"FORMAT" help:"text, json or yaml."`
}

type statusCmd struct{ format }

type statusJSON struct {
	Cluster     string            `json:"cluster"`
	Version     string            `json:"version"`
	CAPins      []string          `json:"ca_pins"`
	Authorities []authorityStatus `json:"authorities"`
	Revision    uint64            `json:"revision"`
	Agents      uint32            `json:"agents_online"`
	Gateways    uint32            `json:"gateways_online"`
}

type authorityStatus struct {
	Kind     string    `json:"kind"`
	NotAfter time.Time `json:"not_after"`
	Rotation string    `json:"rotation"`
}

// Run shows what an administrator asks first.
func (c *statusCmd) Run(p *program) error {
	api, err := p.admin()
	if err != nil {
		return err
	}
	m, err := call(p, api.GetStatus, &sallyportv1.GetStatusRequest{})
	if err != nil {
		return err
	}
	s := statusJSON{Cluster: m.GetCluster(), Version: m.GetVersion(), CAPins: m.GetCaPins(), Revision: m.GetRevision(), Agents: m.GetAgentsOnline(), Gateways: m.GetGatewaysOnline()}
	for _, a := range m.GetAuthorities() {
		s.Authorities = append(s.Authorities, authorityStatus{a.GetKind(), a.GetNotAfter().AsTime(), a.GetRotation()})
	}
	if c.Format != "text" {
		return output.Write(p.stdout, c.Format, s)
	}
	row := func(name, value string) { fmt.Fprintf(p.stdout, "%-16s%s\n", name, value) }
	row("Cluster", s.Cluster)
	row("Version", s.Version)
	for _, a := range s.Authorities {
		row(a.Kind+" CA", fmt.Sprintf("%s, until %s", a.Rotation, a.NotAfter.Format(time.DateOnly)))
	}
	for _, pin := range s.CAPins {
		row("CA pin", pin)
	}
	row("Agents online", fmt.Sprint(s.Agents))
	row("Gateways online", fmt.Sprint(s.Gateways))
	return nil
}

type usersCmd struct {
	Add   usersAddCmd   `cmd:"" help:"Add a user and print the link to claim the account."`
	Ls    usersLsCmd    `cmd:"" help:"List users."`
	Rm    usersRmCmd    `cmd:"" help:"Delete users."`
	Reset usersResetCmd `cmd:"" help:"Reset a user's password and print the link to set a new one."`
}

type usersAddCmd struct {
	format
	Name    string   `arg:"" help:"Name of the user."`
	Roles   []string `name:"roles" required:"" help:"Roles, separated by commas."`
	Logins  []string `name:"logins" help:"OS logins, for {{internal.logins}}."`
	DBUsers []string `name:"db-users" help:"Database users, for {{internal.db_users}}."`
	DBNames []string `name:"db-names" help:"Database names, for {{internal.db_names}}."`

	AWSRoles []string `name:"aws-role-arns" help:"Roles of AWS, for {{internal.aws_role_arns}}."`

	KubeUsers  []string      `name:"kubernetes-users" help:"Kubernetes users, for {{internal.kubernetes_users}}."`
	KubeGroups []string      `name:"kubernetes-groups" help:"Kubernetes groups, for {{internal.kubernetes_groups}}."`
	TTL        time.Duration `name:"ttl" default:"1h" help:"How long the link works; 48h at most."`
}

// Run creates the user without a password: the link sets it.
func (c *usersAddCmd) Run(p *program) error {
	ttl, err := lifeSeconds(c.TTL)
	if err != nil {
		return err
	}
	api, err := p.admin()
	if err != nil {
		return err
	}
	traits := map[string]*sallyportv1.StringList{}
	for name, values := range map[string][]string{"logins": c.Logins, "db_users": c.DBUsers, "db_names": c.DBNames,
		"kubernetes_users": c.KubeUsers, "kubernetes_groups": c.KubeGroups, "aws_role_arns": c.AWSRoles} {
		if len(values) > 0 {
			traits[name] = &sallyportv1.StringList{Values: values}
		}
	}
	m, err := call(p, api.CreateUser, &sallyportv1.CreateUserRequest{
		User: &sallyportv1.User{Name: c.Name, Roles: c.Roles, Traits: traits}, LinkTtlSeconds: ttl})
	if err != nil {
		return err
	}
	return printLink(p, c.Format, fmt.Sprintf("User %q has been created but has no password yet.", c.Name), m.GetClaimUrl(), m.GetExpires())
}

type linkJSON struct {
	URL     string    `json:"url"`
	Expires time.Time `json:"expires"`
}

func printLink(p *program, format, fact, url string, expires *timestamppb.Timestamp) error {
	if format != "text" {
		return output.Write(p.stdout, format, linkJSON{url, expires.AsTime()})
	}
	_, err := fmt.Fprintf(p.stdout, "%s\nShare this link; it works once, until %s:\n%s\n", fact, expires.AsTime().Local().Format(time.DateTime), url)
	return err
}

type usersLsCmd struct{ format }

type userJSON struct {
	Name    string              `json:"name"`
	Roles   []string            `json:"roles"`
	Traits  map[string][]string `json:"traits,omitempty"`
	Claimed bool                `json:"claimed"`
	Created time.Time           `json:"created"`
}

// Run lists users.
func (c *usersLsCmd) Run(p *program) error {
	api, err := p.admin()
	if err != nil {
		return err
	}
	m, err := call(p, api.ListUsers, &sallyportv1.ListUsersRequest{})
	if err != nil {
		return err
	}
	out := []userJSON{}
	var rows [][]string
	for _, u := range m.GetUsers() {
		j := userJSON{Name: u.GetName(), Roles: u.GetRoles(), Traits: map[string][]string{}, Claimed: u.GetClaimed(), Created: u.GetCreated().AsTime()}
		for name, values := range u.GetTraits() {
			j.Traits[name] = values.GetValues()
		}
		out = append(out, j)
		rows = append(rows, []string{fail.Clean(u.GetName()), strings.Join(u.GetRoles(), ","), map[bool]string{true: "yes", false: "no"}[u.GetClaimed()]})
	}
	if c.Format != "text" {
		return output.Write(p.stdout, c.Format, out)
	}
	return table.Write(p.stdout, 0, []string{"User", "Roles", "Claimed"}, rows)
}

type usersRmCmd struct {
	Names []string `arg:"" help:"Names of the users."`
}

// Run deletes users; their certificates end by themselves, or at once by a lock.
func (c *usersRmCmd) Run(p *program) error {
	api, err := p.admin()
	if err != nil {
		return err
	}
	for _, name := range c.Names {
		if _, err := call(p, api.DeleteUser, &sallyportv1.DeleteUserRequest{Name: name}); err != nil {
			return err
		}
		fmt.Fprintf(p.stdout, "User %q has been deleted. Certificates that the user holds are good until they end; a lock ends them at once.\n", name)
	}
	return nil
}

type usersResetCmd struct {
	format
	Name string        `arg:"" help:"Name of the user."`
	TTL  time.Duration `name:"ttl" default:"8h" help:"How long the link works; 24h at most."`
}

// Run resets a user.
func (c *usersResetCmd) Run(p *program) error {
	ttl, err := lifeSeconds(c.TTL)
	if err != nil {
		return err
	}
	api, err := p.admin()
	if err != nil {
		return err
	}
	m, err := call(p, api.ResetUser, &sallyportv1.ResetUserRequest{Name: c.Name, LinkTtlSeconds: ttl})
	if err != nil {
		return err
	}
	return printLink(p, c.Format, fmt.Sprintf("The password of %q has been reset.", c.Name), m.GetClaimUrl(), m.GetExpires())
}

type tokensCmd struct {
	Add tokensAddCmd `cmd:"" help:"Make a join token and print how to use it."`
	Ls  tokensLsCmd  `cmd:"" help:"List join tokens; the secret itself is shown only once."`
	Rm  tokensRmCmd  `cmd:"" help:"Delete a join token."`
}

// lifeSeconds is what --ttl asks for. In the API 0 is auth's own default, which
// nobody means who writes it.
func lifeSeconds(ttl time.Duration) (int64, error) {
	if ttl < time.Second {
		return 0, &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: fmt.Sprintf("--ttl=%v: want at least 1s", ttl), Hint: "for example --ttl=30m"}
	}
	return int64(ttl.Seconds()), nil
}

type tokensAddCmd struct {
	format
	Type   []string          `name:"type" default:"agent" help:"What may join: agent, gateway. node, db, app and kube mean agent."`
	TTL    time.Duration     `name:"ttl" default:"30m" help:"How long it works; 48h at most."`
	Value  string            `name:"value" hidden:"" help:"The secret, instead of a random one."`
	Kinds  []string          `name:"allow-kinds" help:"Kinds of resources that the agent may serve; all without."`
	Names  []string          `name:"allow-names" help:"Names that the agent may serve, with *; all without."`
	Labels map[string]string `name:"allow-labels" help:"Labels that every resource must carry."`
	Once   bool              `name:"single-use" help:"Works for one host only."`
}

type tokenJSON struct {
	Secret  string    `json:"token,omitempty"`
	Name    string    `json:"name"`
	Roles   []string  `json:"roles"`
	Expires time.Time `json:"expires"`
	CAPins  []string  `json:"ca_pins,omitempty"`
	Gateway string    `json:"gateway,omitempty"`
}

// Run makes a token. Teleport's names of types that are agents here are taken.
func (c *tokensAddCmd) Run(p *program) error {
	ttl, err := lifeSeconds(c.TTL)
	if err != nil {
		return err
	}
	api, err := p.admin()
	if err != nil {
		return err
	}
	var roles []string
	for _, t := range c.Type {
		switch t = strings.ToLower(t); t {
		case "node", "db", "app", "kube":
			t = "agent"
		case "proxy":
			t = "gateway"
		}
		if !slices.Contains(roles, t) {
			roles = append(roles, t)
		}
	}
	m, err := call(p, api.CreateToken, &sallyportv1.CreateTokenRequest{
		Roles: roles, TtlSeconds: ttl, Value: c.Value, SingleUse: c.Once,
		Allow: &sallyportv1.TokenAllow{Kinds: c.Kinds, Names: c.Names, Labels: c.Labels},
	})
	if err != nil {
		return err
	}
	t := tokenJSON{m.GetSecret(), m.GetToken().GetName(), m.GetToken().GetRoles(), m.GetToken().GetExpires().AsTime(), m.GetCaPins(), m.GetGateway()}
	if c.Format != "text" {
		return output.Write(p.stdout, c.Format, t)
	}
	_, err = fmt.Fprint(p.stdout, t.joining())
	return err
}

// joining says what to do with a token on the host that joins.
func (t tokenJSON) joining() string {
	var b strings.Builder
	fmt.Fprintf(&b, `The join token: %s
It works until %s. On the host that joins:

  install -m 600 /dev/stdin /etc/sallyport.token    # paste the token, then Enter and Ctrl-D
`, t.Secret, t.Expires.Local().Format(time.DateTime))
	for _, role := range t.Roles {
		reach := "--gateway=" + shell.Word(t.Gateway)
		if role == "gateway" {
			reach = "--auth=AUTH-HOST:3025"
		}
		fmt.Fprintf(&b, "  sallyport configure --roles=%s %s --token-file=/etc/sallyport.token --ca-pin=%s -o /etc/sallyport.yaml\n", role, reach, strings.Join(t.CAPins, ","))
	}
	b.WriteString("  sallyport start\n")
	if slices.Contains(t.Roles, "gateway") {
		b.WriteString("\nAUTH-HOST is where auth runs; the port is that of auth.listen in its configuration.\n")
	}
	if len(t.Roles) > 1 {
		b.WriteString("\nThe token lets a host in as either: use the line that fits.\n")
	}
	return b.String()
}

type tokensLsCmd struct{ format }

// Run lists tokens.
func (c *tokensLsCmd) Run(p *program) error {
	api, err := p.admin()
	if err != nil {
		return err
	}
	m, err := call(p, api.ListTokens, &sallyportv1.ListTokensRequest{})
	if err != nil {
		return err
	}
	out := []tokenJSON{}
	var rows [][]string
	for _, t := range m.GetTokens() {
		out = append(out, tokenJSON{Name: t.GetName(), Roles: t.GetRoles(), Expires: t.GetExpires().AsTime()})
		rows = append(rows, []string{t.GetName(), strings.Join(t.GetRoles(), ","), t.GetExpires().AsTime().Local().Format(time.DateTime)})
	}
	if c.Format != "text" {
		return output.Write(p.stdout, c.Format, out)
	}
	return table.Write(p.stdout, 0, []string{"Token", "Type", "Expires"}, rows)
}

type tokensRmCmd struct {
	Name string `arg:"" help:"Name as tokens ls shows it, or the secret."`
}

// Run deletes a token.
func (c *tokensRmCmd) Run(p *program) error {
	api, err := p.admin()
	if err != nil {
		return err
	}
	if _, err := call(p, api.DeleteToken, &sallyportv1.DeleteTokenRequest{Name: c.Name}); err != nil {
		return err
	}
	_, err = fmt.Fprintln(p.stdout, "The join token has been deleted.")
	return err
}

type getCmd struct {
	What   string `arg:"" help:"KIND or KIND/NAME, several with commas, or all; kinds: role, user, lock."`
	Format string `name:"format" short:"f" enum:"yaml,json,text" default:"yaml" placeholder:"FORMAT" help:"yaml, json or text."`
}

// Run prints documents that "create" takes back.
func (c *getCmd) Run(p *program) error {
	all, err := wants(c.What)
	if err != nil {
		return err
	}
	api, err := p.admin()
	if err != nil {
		return err
	}
	var docs []string
	for _, w := range all {
		m, err := call(p, api.GetDocuments, &sallyportv1.GetDocumentsRequest{Kind: w.kind, Name: w.name})
		if err != nil {
			return err
		}
		docs = append(docs, m.GetDocuments()...)
	}
	switch c.Format {
	case "json":
		raw := []json.RawMessage{}
		for _, d := range docs {
			raw = append(raw, json.RawMessage(d))
		}
		return output.Write(p.stdout, "json", raw)
	case "text":
		return printNames(p, docs)
	}
	for i, d := range docs {
		b, err := output.YAML([]byte(d))
		if err != nil {
			return err
		}
		if i > 0 {
			fmt.Fprintln(p.stdout, "---")
		}
		fmt.Fprint(p.stdout, string(b))
	}
	return nil
}

func printNames(p *program, docs []string) error {
	var rows [][]string
	for _, d := range docs {
		var m struct {
			Kind     string `json:"kind"`
			Metadata struct {
				Name string `json:"name"`
			} `json:"metadata"`
		}
		if err := json.Unmarshal([]byte(d), &m); err != nil {
			return err
		}
		rows = append(rows, []string{m.Kind, m.Metadata.Name})
	}
	return table.Write(p.stdout, 0, []string{"Kind", "Name"}, rows)
}

type createCmd struct {
	File             string `arg:"" optional:"" help:"File with one or more documents; - or none reads standard input."`
	Force            bool   `name:"force" short:"f" help:"Replace documents that exist."`
	AcceptUnenforced bool   `name:"accept-unenforced" help:"Store roles whose restrictions this version does not enforce; what they affect is denied."`
}

// Run stores documents in order and stops at the first fault; none when one is of a
// kind that is not here.
func (c *createCmd) Run(p *program) error {
	text, err := c.read(p)
	if err != nil {
		return err
	}
	docs, err := documents(text)
	if err != nil {
		return err
	}
	api, err := p.admin()
	if err != nil {
		return err
	}
	for _, d := range docs {
		if err := d.isHere(); err != nil {
			return err
		}
	}
	for _, d := range docs {
		m, err := call(p, api.PutDocument, &sallyportv1.PutDocumentRequest{Document: d.json, Overwrite: c.Force, AcceptUnenforced: c.AcceptUnenforced})
		if err != nil {
			return d.refused(err)
		}
		for _, w := range m.GetWarnings() {
			fmt.Fprintln(p.stderr, "WARNING: "+fail.Clean(d.say(w)))
		}
		fmt.Fprintf(p.stdout, "%s %q has been %s.\n", m.GetKind(), m.GetName(), map[bool]string{true: "created", false: "updated"}[m.GetCreated()])
	}
	return nil
}

func (c *createCmd) read(p *program) ([]byte, error) {
	r := p.stdin
	if c.File != "" && c.File != "-" {
		f, err := os.Open(c.File)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		r = f
	}
	b, err := io.ReadAll(io.LimitReader(r, maxDocuments+1))
	if err == nil && len(b) > maxDocuments {
		err = &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: fmt.Sprintf("more than %d bytes of documents", maxDocuments)}
	}
	return b, err
}

type rmCmd struct {
	What string `arg:"" help:"KIND/NAME"`
}

// Run deletes one document.
func (c *rmCmd) Run(p *program) error {
	kind, name, ok := strings.Cut(c.What, "/")
	if !ok || name == "" {
		return &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: fmt.Sprintf("%q is not KIND/NAME", c.What), Hint: "sallyctl rm role/dev"}
	}
	if isHost(kind) {
		return (&nodesRmCmd{IDs: []string{name}}).Run(p)
	}
	kind, err := documentKind(kind)
	if err != nil {
		return err
	}
	api, err := p.admin()
	if err != nil {
		return err
	}
	if _, err := call(p, api.DeleteDocument, &sallyportv1.DeleteDocumentRequest{Kind: kind, Name: name}); err != nil {
		return err
	}
	_, err = fmt.Fprintf(p.stdout, "%s %q has been deleted.\n", kind, name)
	return err
}

type auditCmd struct {
	Search auditSearchCmd `cmd:"" help:"Print events, one JSON line each."`
	Verify auditVerifyCmd `cmd:"" help:"Check that no event is missing, changed or added."`
}

type auditSearchCmd struct {
	Last  time.Duration `name:"last" default:"24h" help:"How far back, from --to."`
	To    string        `name:"to" placeholder:"TIME" help:"Only what was before: 2026-02-28T15:04:05Z. Default: now."`
	Names []string      `name:"event" help:"Names of events; all without."`
	Limit uint32        `name:"limit" default:"100" help:"How many at most, up to 10000; the newest win."`

	Format string `name:"format" short:"f" enum:"json" default:"json" placeholder:"FORMAT" help:"json, which is all that there is."`
}

// request is what auth is asked. Without To it names no end: an event of a host
// whose clock is ahead is found too. More than auth gives is not asked for: it would
// drop the oldest without a word.
func (c *auditSearchCmd) request(now time.Time) (*sallyportv1.SearchEventsRequest, error) {
	if c.Limit < 1 || c.Limit > audit.MaxFound {
		return nil, &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: fmt.Sprintf("--limit=%d: one search gives 1 to %d events", c.Limit, audit.MaxFound),
			Hint: "--event has fewer kinds; --to=TIME, with the time of the oldest event that you have, goes further back"}
	}
	r := &sallyportv1.SearchEventsRequest{From: timestamppb.New(now.Add(-c.Last)), Names: c.Names, Limit: c.Limit}
	if c.To == "" {
		return r, nil
	}
	to, err := time.Parse(time.RFC3339, c.To)
	if err != nil {
		return nil, &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: fmt.Sprintf("--to: %q is no time of the form of RFC 3339", c.To), Hint: "for example --to=2026-02-28T15:04:05Z", Cause: err}
	}
	r.From, r.To = timestamppb.New(to.Add(-c.Last)), timestamppb.New(to)
	return r, nil
}

// Run prints events, oldest first.
func (c *auditSearchCmd) Run(p *program) error {
	request, err := c.request(time.Now())
	if err != nil {
		return err
	}
	api, err := p.admin()
	if err != nil {
		return err
	}
	m, err := call(p, api.SearchEvents, request)
	if err != nil {
		return err
	}
	for _, e := range m.GetEvents() {
		fmt.Fprintln(p.stdout, e)
	}
	return nil
}
