package api

import (
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
		DefaultSessionTtlSeconds: int64(ca.MaxUserTTL.Seconds()), CaPins: s.cfg.CA.Pins(),
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
		return nil, errors.Join(err, s.emitLogin(ctx, c, u.Name, err))
	}
	if s.state.view().policy.PinSourceIP(id) {
		id.PinnedAddr = id.LoginAddr
	}
	resp, err := s.issue(id, m.GetTlsPublicKey(), m.GetSshPublicKey(), time.Duration(m.GetTtlSeconds())*time.Second)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(resp), s.emitLogin(ctx, c, u.Name, nil)
}

func (s publicService) authenticate(ctx context.Context, c Caller, m *sallyportv1.LoginRequest) (login.User, error) {
	for _, check := range []error{keyFault(ca.ParseTLSKey(m.GetTlsPublicKey())), keyFault(ca.ParseSSHKey(m.GetSshPublicKey()))} {
		if check != nil {
			return login.User{}, check
		}
	}
	if m.GetTtlSeconds() < 0 {
		return login.User{}, invalid("the time to live is negative")
	}
	u, err := s.cfg.Users.Login(ctx, login.Attempt{User: m.GetUser(), Password: m.GetPassword(), Code: m.GetOtp(), Addr: c.Addr.Addr()})
	if err != nil {
		return login.User{}, errors.Join(err, s.emitLogin(ctx, c, m.GetUser(), err))
	}
	return u, nil
}

func keyFault[T any](_ T, err error) error { return err }

func (s *Server) emitLogin(ctx context.Context, c Caller, name string, failure error) error {
	ok := failure == nil
	e := sallyport.Event{Name: audit.UserLogin, Code: audit.UserLoginCode, User: name, UserKind: "human", Success: &ok, Fields: map[string]any{"method": "local"}}
	if !ok {
		e.Code = audit.UserLoginFailureCode
		e.Fields["error"] = failure.Error()
	}
	return s.emit(ctx, c, e)
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

// issue makes the certificates of an identity that has been decided on.
func (s *Server) issue(id sallyport.Identity, tlsKey, sshKey []byte, ttl time.Duration) (*sallyportv1.LoginResponse, error) {
	o := s.state.view().policy.Options(id)
	most := ca.MaxUserTTL
	if o.MaxSessionTTL > 0 {
		most = min(most, o.MaxSessionTTL)
	}
	if ttl == 0 || ttl > most {
		ttl = most
	}
	certs, err := s.cfg.CA.IssueUser(ca.UserRequest{
		Identity: id, TLSKey: tlsKey, SSHKey: sshKey, TTL: ttl,
		Permit: ca.Permit{PTY: true, AgentForwarding: o.ForwardAgent, PortForwarding: o.PortForwardLocal || o.PortForwardRemote, X11Forwarding: o.X11Forwarding},
	})
	if err != nil {
		return nil, err
	}
	return &sallyportv1.LoginResponse{
		User: id.Name, Cluster: id.Cluster, TlsCertificate: certs.X509, SshCertificate: certs.SSH,
		Authorities: authorities(s.cfg.CA, ca.Host), Expires: timestamppb.New(certs.NotAfter),
	}, nil
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

// Reissue gives a new certificate with the same restrictions and no more
// rights than the old one and the user's record both allow; it ends no later.
func (s accessService) Reissue(ctx context.Context, req *connect.Request[sallyportv1.ReissueRequest]) (*connect.Response[sallyportv1.LoginResponse], error) {
	c := callerOf(ctx)
	if c.Identity.DisallowReissue {
		return nil, &sallyport.Problem{Kind: sallyport.ErrDenied, Fact: "this certificate may not be re-issued", Hint: "log in"}
	}
	if err := s.unlocked(c.Identity); err != nil {
		return nil, err
	}
	u, err := s.cfg.Users.GetUser(ctx, c.Identity.Name)
	if err != nil {
		return nil, missing(kindUser, c.Identity.Name, err)
	}
	wanted := s.identityOf(u)
	wanted.MFA, wanted.LoginAddr, wanted.PinnedAddr = c.Identity.MFA, c.Identity.LoginAddr, c.Identity.PinnedAddr
	wanted.AllowedResources, wanted.ActiveRequests = c.Identity.AllowedResources, c.Identity.ActiveRequests
	wanted.NotBefore, wanted.NotAfter = c.Identity.NotBefore, c.Identity.NotAfter
	id, err := identity.Narrower(c.Identity, wanted)
	if err != nil {
		return nil, &sallyport.Problem{Kind: sallyport.ErrDenied, Fact: "the certificate cannot be re-issued: " + err.Error(), Hint: "log in", Cause: err}
	}
	resp, err := s.issue(id, req.Msg.GetTlsPublicKey(), req.Msg.GetSshPublicKey(), time.Duration(req.Msg.GetTtlSeconds())*time.Second)
	if err != nil {
		return nil, err
	}
	err = s.emit(ctx, c, sallyport.Event{Name: audit.CertificateCreate, Code: audit.CertificateCreateCode, UserKind: "human", Fields: map[string]any{"cert_type": "user"}})
	return connect.NewResponse(resp), err
}

// ListResources shows what the caller may reach, and as what.
func (s accessService) ListResources(ctx context.Context, req *connect.Request[sallyportv1.ListResourcesRequest]) (*connect.Response[sallyportv1.ListResourcesResponse], error) {
	c := callerOf(ctx)
	if err := s.unlocked(c.Identity); err != nil {
		return nil, err
	}
	list, err := s.cfg.Inventory.List(ctx, sallyport.Kind(req.Msg.GetKind()))
	if err != nil {
		return nil, err
	}
	policy := s.state.view().policy
	resp := &sallyportv1.ListResourcesResponse{}
	for _, r := range list {
		if name := req.Msg.GetName(); name != "" && name != r.Name && name != r.ID {
			continue
		}
		p := policy.Principals(c.Identity, r.Resource)
		if !p.Visible {
			continue
		}
		resp.Resources = append(resp.Resources, &sallyportv1.AccessibleResource{
			Resource: toWire(r.Resource), Logins: p.Logins, DatabaseUsers: p.DatabaseUsers, DatabaseNames: p.DatabaseNames,
			Online: r.Online,
		})
	}
	return connect.NewResponse(resp), nil
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
		DBUser: m.GetDatabaseUser(), DBName: m.GetDatabaseName(), ClientAddr: c.Addr.Addr(), Now: s.cfg.Now()})
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
