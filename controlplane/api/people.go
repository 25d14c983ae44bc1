package api

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/audit"
	"github.com/sallyport/sallyport/controlplane/ca"
	"github.com/sallyport/sallyport/controlplane/inventory"
	"github.com/sallyport/sallyport/controlplane/login"
	"github.com/sallyport/sallyport/identity"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
)

// noLogin is the principal of people who may log in nowhere: an SSH
// certificate without any would be one for everybody to some readers.
const noLogin = "-sallyport-nologin-"

// publicService is reachable before login.
type publicService struct{ *Server }

// Ping says what a client needs to know to log in.
func (s publicService) Ping(context.Context, *connect.Request[sallyportv1.PingRequest]) (*connect.Response[sallyportv1.PingResponse], error) {
	return connect.NewResponse(&sallyportv1.PingResponse{
		Cluster: s.cfg.CA.Cluster(), ServerVersion: s.cfg.Version, SecondFactor: s.cfg.SecondFactor,
		DefaultSessionTtlSeconds: int64(ca.MaxUserTTL.Seconds()), CaPins: s.cfg.CA.Pins(), BrowserLogin: true,
	}), nil
}

// Login checks password and code and issues certificates.
func (s publicService) Login(ctx context.Context, req *connect.Request[sallyportv1.LoginRequest]) (*connect.Response[sallyportv1.LoginResponse], error) {
	c, m := callerOf(ctx), req.Msg
	u, err := s.authenticate(ctx, c, m)
	if err != nil {
		return nil, err
	}
	id := s.identityOf(u)
	id.MFA, id.LoginAddr = u.MFA, c.Addr.Addr().Unmap().String()
	if err := s.unlocked(id); err != nil {
		return nil, errors.Join(err, s.emitLogin(ctx, c, byPassword(u.Name), err))
	}
	if s.state.view().policy.PinSourceIP(id) {
		id.PinnedAddr = id.LoginAddr
	}
	if err := s.emitLogin(ctx, c, byPassword(u.Name), nil); err != nil {
		return nil, err
	}
	resp, err := s.issue(ctx, id, request{m.GetTlsPublicKey(), m.GetSshPublicKey(), m.GetTtlSeconds()})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(resp), nil
}

func (s publicService) authenticate(ctx context.Context, c Caller, m *sallyportv1.LoginRequest) (login.User, error) {
	if err := (request{m.GetTlsPublicKey(), m.GetSshPublicKey(), m.GetTtlSeconds()}).check(); err != nil {
		return login.User{}, err
	}
	u, err := s.cfg.Users.Login(ctx, login.Attempt{User: m.GetUser(), Password: m.GetPassword(), Code: m.GetOtp(), Addr: c.Addr.Addr()})
	if err != nil {
		return login.User{}, errors.Join(err, s.emitLogin(ctx, c, byPassword(m.GetUser()), err))
	}
	return u, nil
}

// request is what somebody wants certified, and for how long.
type request struct {
	tlsKey, sshKey []byte
	seconds        int64
}

func (r request) check() error {
	if r.seconds < 0 {
		return invalid("the time to live is negative")
	}
	return cmp.Or(keyFault(ca.ParseTLSKey(r.tlsKey)), keyFault(ca.ParseSSHKey(r.sshKey)))
}

func keyFault[T any](_ T, err error) error { return err }

// maxLoginName bounds what somebody who is not logged in writes into the log.
const maxLoginName = 64

// loginOf says who logs in, and how.
type loginOf struct {
	user    string
	method  string // local: password and code
	session string // id of the web session, if any
}

func byPassword(user string) loginOf { return loginOf{user: user, method: "local"} }

func (s *Server) emitLogin(ctx context.Context, c Caller, l loginOf, failure error) error {
	ok := failure == nil
	e := sallyport.Event{Name: audit.UserLogin, Code: audit.UserLoginCode, User: l.user[:min(len(l.user), maxLoginName)], UserKind: "human", Success: &ok, Fields: map[string]any{"method": l.method}}
	if l.session != "" {
		e.Fields["web_session"] = l.session
	}
	if ok {
		return s.emit(ctx, c, e)
	}
	e.Code = audit.UserLoginFailureCode
	return s.emitAttempt(ctx, c, sourceOf(c.Addr.Addr()), e, failure)
}

// identityOf is what a user's record says now.
func (s *Server) identityOf(u login.User) sallyport.Identity {
	id := sallyport.Identity{Kind: sallyport.KindUser, Name: u.Name, Cluster: s.cfg.CA.Cluster(), Roles: u.Roles, Traits: u.Traits}
	id.Principals = s.state.view().policy.Logins(id)
	if len(id.Principals) == 0 {
		id.Principals = []string{noLogin + u.Name}
	}
	return id
}

// issue makes the certificates of an identity that has been decided on, and records
// them: unrecorded they are dropped.
func (s *Server) issue(ctx context.Context, id sallyport.Identity, r request) (*sallyportv1.LoginResponse, error) {
	o := s.state.view().policy.Options(id)
	most := ca.MaxUserTTL
	if o.MaxSessionTTL > 0 {
		most = min(most, o.MaxSessionTTL)
	}
	ttl := most
	if r.seconds > 0 && r.seconds < int64(most/time.Second) {
		ttl = time.Duration(r.seconds) * time.Second
	}
	certs, err := s.cfg.CA.IssueUser(ca.UserRequest{
		Identity: id, TLSKey: r.tlsKey, SSHKey: r.sshKey, TTL: ttl,
		Permit: ca.Permit{PTY: true, AgentForwarding: o.ForwardAgent, PortForwarding: o.PortForwardLocal || o.PortForwardRemote, X11Forwarding: o.X11Forwarding},
	})
	if err != nil {
		return nil, err
	}
	id.NotAfter = certs.NotAfter
	if err := s.emitCertificates(ctx, id, map[string]any{"cert_type": "user"}); err != nil {
		return nil, err
	}
	return &sallyportv1.LoginResponse{
		User: id.Name, Cluster: id.Cluster, TlsCertificate: certs.X509, SshCertificate: certs.SSH,
		Authorities: authorities(s.cfg.CA, ca.Host), Expires: timestamppb.New(certs.NotAfter),
	}, nil
}

// emitCertificates records that a person's certificates were made. fields says what
// they are for; who they say their holder is, is added to it.
func (s *Server) emitCertificates(ctx context.Context, id sallyport.Identity, fields map[string]any) error {
	fields["identity"] = identityFields(id)
	return s.emit(ctx, callerOf(ctx), sallyport.Event{Name: audit.CertificateCreate, Code: audit.CertificateCreateCode, User: id.Name, UserKind: "human", Fields: fields})
}

// identityFields is an identity by the names of Teleport's events. What restricts
// nothing is left out.
func identityFields(id sallyport.Identity) map[string]any {
	traits := make(map[string]any, len(id.Traits))
	for name, values := range id.Traits {
		traits[name] = values
	}
	out := map[string]any{"user": id.Name, "route_to_cluster": id.Cluster, "roles": id.Roles, "traits": traits, "logins": id.Principals,
		"client_ip": id.LoginAddr, "expires": id.NotAfter.UTC().Format(time.RFC3339)}
	for name, value := range map[string]string{"mfa_device_uuid": id.MFA, "pinned_ip": id.PinnedAddr} {
		if value != "" {
			out[name] = value
		}
	}
	for name, values := range map[string][]string{"allowed_resource_ids": id.AllowedResources, "access_requests": id.ActiveRequests} {
		if len(values) > 0 {
			out[name] = values
		}
	}
	if id.Usage != "" {
		out["usage"] = []string{string(id.Usage)}
	}
	if id.DisallowReissue {
		out["disallow_reissue"] = true
	}
	return out
}

// accessService is for people who have logged in.
type accessService struct{ *Server }

// WhoAmI says what auth reads in the caller's certificate.
func (s accessService) WhoAmI(ctx context.Context, _ *connect.Request[sallyportv1.WhoAmIRequest]) (*connect.Response[sallyportv1.WhoAmIResponse], error) {
	id := callerOf(ctx).Identity
	return connect.NewResponse(&sallyportv1.WhoAmIResponse{User: id.Name, Cluster: id.Cluster, Roles: id.Roles, Traits: lists(id.Traits), Expires: timestamppb.New(id.NotAfter)}), nil
}

func lists(m map[string][]string) map[string]*sallyportv1.StringList {
	out := map[string]*sallyportv1.StringList{}
	for k, v := range m {
		out[k] = &sallyportv1.StringList{Values: v}
	}
	return out
}

// Reissue gives a new certificate with exactly the rights and restrictions of
// the old one; it ends no later. When the user's record does not give all of
// that any more, or asks for more, the way is a new login: fewer roles are not
// always fewer rights, because roles deny too.
func (s accessService) Reissue(ctx context.Context, req *connect.Request[sallyportv1.ReissueRequest]) (*connect.Response[sallyportv1.LoginResponse], error) {
	c := callerOf(ctx)
	r := request{req.Msg.GetTlsPublicKey(), req.Msg.GetSshPublicKey(), req.Msg.GetTtlSeconds()}
	if err := r.check(); err != nil {
		return nil, err
	}
	id, err := s.again(ctx, c.Identity)
	if err != nil {
		return nil, err
	}
	resp, err := s.issue(ctx, id, r)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(resp), nil
}

// again is the identity of a certificate that takes the place of have.
func (s accessService) again(ctx context.Context, have sallyport.Identity) (sallyport.Identity, error) {
	u, err := s.cfg.Users.GetUser(ctx, have.Name)
	if err != nil {
		return sallyport.Identity{}, missing(kindUser, have.Name, err)
	}
	wanted := s.identityOf(u)
	if !covers(wanted, have) {
		return sallyport.Identity{}, &sallyport.Problem{Kind: sallyport.ErrDenied, Fact: "your roles or traits have changed since you logged in", Hint: "log in again"}
	}
	if have.PinnedAddr == "" && s.state.view().policy.PinSourceIP(have) {
		return sallyport.Identity{}, &sallyport.Problem{Kind: sallyport.ErrDenied, Fact: "your roles ask for a certificate that is bound to your address now", Hint: "log in again"}
	}
	wanted.MFA, wanted.LoginAddr, wanted.PinnedAddr = have.MFA, have.LoginAddr, have.PinnedAddr
	wanted.AllowedResources, wanted.ActiveRequests = have.AllowedResources, have.ActiveRequests
	wanted.NotBefore, wanted.NotAfter = have.NotBefore, have.NotAfter
	id, err := identity.Narrower(have, wanted)
	if err != nil {
		return sallyport.Identity{}, &sallyport.Problem{Kind: sallyport.ErrDenied, Fact: "the certificate cannot be re-issued: " + err.Error(), Hint: "log in again", Cause: err}
	}
	return id, nil
}

// covers says that the record still gives each role and trait that the
// certificate has.
func covers(wanted, have sallyport.Identity) bool {
	missing := func(in []string) func(string) bool {
		return func(s string) bool { return !slices.Contains(in, s) }
	}
	if slices.ContainsFunc(have.Roles, missing(wanted.Roles)) {
		return false
	}
	for name, values := range have.Traits {
		if slices.ContainsFunc(values, missing(wanted.Traits[name])) {
			return false
		}
	}
	return true
}

// ListResources shows what the caller may reach, and as what.
func (s accessService) ListResources(ctx context.Context, req *connect.Request[sallyportv1.ListResourcesRequest]) (*connect.Response[sallyportv1.ListResourcesResponse], error) {
	list, err := s.resources(ctx, callerOf(ctx).Identity, req.Msg)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&sallyportv1.ListResourcesResponse{Resources: list}), nil
}

// resources are those that somebody may see.
func (s *Server) resources(ctx context.Context, id sallyport.Identity, m *sallyportv1.ListResourcesRequest) ([]*sallyportv1.AccessibleResource, error) {
	list, err := s.cfg.Inventory.List(ctx, sallyport.Kind(m.GetKind()))
	if err != nil {
		return nil, err
	}
	policy := s.state.view().policy
	var out []*sallyportv1.AccessibleResource
	for _, r := range list {
		if name := m.GetName(); name != "" && name != r.Name && name != r.ID {
			continue
		}
		p := policy.Principals(id, r.Resource)
		if !p.Visible {
			continue
		}
		out = append(out, &sallyportv1.AccessibleResource{
			Resource: toWire(r.Resource), Logins: p.Logins, DatabaseUsers: p.DatabaseUsers, DatabaseNames: p.DatabaseNames,
			AwsRoleArns: p.AWSRoles, Online: r.Online,
		})
	}
	return out, nil
}

// ListClusters shows this one.
func (s accessService) ListClusters(context.Context, *connect.Request[sallyportv1.ListClustersRequest]) (*connect.Response[sallyportv1.ListClustersResponse], error) {
	return connect.NewResponse(&sallyportv1.ListClustersResponse{Clusters: []*sallyportv1.Cluster{{Name: s.cfg.CA.Cluster(), Status: "online", Type: "root"}}}), nil
}

// Explain tells the caller about his own access why it is as it is. What he may
// not see does not exist for him.
func (s accessService) Explain(ctx context.Context, req *connect.Request[sallyportv1.ExplainRequest]) (*connect.Response[sallyportv1.ExplainResponse], error) {
	c, m := callerOf(ctx), req.Msg
	list, err := s.cfg.Inventory.List(ctx, sallyport.Kind(m.GetKind()))
	if err != nil {
		return nil, err
	}
	policy := s.state.view().policy
	i := slices.IndexFunc(list, func(r inventory.Entry) bool { return r.Name == m.GetName() || r.ID != "" && r.ID == m.GetName() })
	if i < 0 || !policy.Principals(c.Identity, list[i].Resource).Visible {
		return connect.NewResponse(&sallyportv1.ExplainResponse{}), nil
	}
	r := list[i]
	d := policy.Decide(sallyport.AccessRequest{Identity: c.Identity, Resource: r.Resource, Action: sallyport.ActionConnect, Login: m.GetLogin(),
		DBUser: m.GetDatabaseUser(), DBName: m.GetDatabaseName(), AWSRole: m.GetAwsRoleArn(), ClientAddr: c.Addr.Addr(), Now: s.cfg.Now()})
	resp := &sallyportv1.ExplainResponse{Exists: true, Online: r.Online, Allowed: d.Allowed, Reason: d.Reason}
	if !d.Allowed {
		resp.Hint = s.hint(c.Identity, r.Resource)
	}
	return connect.NewResponse(resp), nil
}

// hint names what would be allowed.
func (s accessService) hint(id sallyport.Identity, r sallyport.Resource) string {
	p := s.state.view().policy.Principals(id, r)
	switch {
	case r.Kind == sallyport.KindNode && len(p.Logins) > 0:
		return fmt.Sprintf("you may log in as %s", strings.Join(p.Logins, ", "))
	case r.Kind == sallyport.KindDatabase && len(p.DatabaseUsers) > 0:
		return fmt.Sprintf("you may connect as %s", strings.Join(p.DatabaseUsers, ", "))
	}
	return "ask your administrator for a role that allows it"
}
