package api

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/audit"
	"github.com/sallyport/sallyport/controlplane/ca"
	"github.com/sallyport/sallyport/controlplane/join"
	"github.com/sallyport/sallyport/controlplane/login"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
)

const (
	defaultLinkTTL  = time.Hour
	maxLinkTTL      = 48 * time.Hour
	defaultResetTTL = 8 * time.Hour
	maxResetTTL     = 24 * time.Hour
	defaultTokenTTL = 30 * time.Minute
	maxTokenTTL     = 48 * time.Hour
)

// adminService is for administrators.
type adminService struct{ *Server }

// GetStatus says what an administrator asks first.
func (s adminService) GetStatus(ctx context.Context, _ *connect.Request[sallyportv1.GetStatusRequest]) (*connect.Response[sallyportv1.GetStatusResponse], error) {
	resp := &sallyportv1.GetStatusResponse{Cluster: s.cfg.CA.Cluster(), Version: s.cfg.Version, CaPins: s.cfg.CA.Pins(), Revision: s.state.view().revision}
	for _, a := range s.cfg.CA.Authorities() {
		resp.Authorities = append(resp.Authorities, &sallyportv1.AuthorityStatus{Kind: string(a.Kind), NotAfter: timestamppb.New(a.Certificates[0].NotAfter), Rotation: "standby"})
	}
	agents, err := s.cfg.Inventory.Agents(ctx)
	if err != nil {
		return nil, err
	}
	for _, a := range agents {
		if len(a.Gateways) > 0 {
			resp.AgentsOnline++
		}
	}
	gateways, err := s.cfg.Inventory.Gateways(ctx)
	resp.GatewaysOnline = uint32(len(gateways))
	return connect.NewResponse(resp), err
}

func bounded(seconds int64, preset, most time.Duration) (time.Duration, error) {
	d := time.Duration(seconds) * time.Second
	switch {
	case seconds == 0:
		return preset, nil
	case seconds < 0 || seconds > int64(most/time.Second):
		return 0, invalid("the time to live must be between 1 s and " + most.String())
	}
	return d, nil
}

// ClaimURL is where a person sets the first password.
func (s *Server) ClaimURL(token string) string {
	return "https://" + s.cfg.PublicAddress + "/claim/" + token
}

// CreateUser makes a user without a password, and the link to set it.
func (s adminService) CreateUser(ctx context.Context, req *connect.Request[sallyportv1.CreateUserRequest]) (*connect.Response[sallyportv1.CreateUserResponse], error) {
	ttl, err := bounded(req.Msg.GetLinkTtlSeconds(), defaultLinkTTL, maxLinkTTL)
	if err != nil {
		return nil, err
	}
	m := req.Msg.GetUser()
	if err := s.allow(ctx, req.Spec().Procedure, kindUser, "create", m.GetName()); err != nil {
		return nil, err
	}
	u := login.User{Name: m.GetName(), Roles: m.GetRoles(), Traits: map[string][]string{}}
	for k, v := range m.GetTraits() {
		u.Traits[k] = v.GetValues()
	}
	if err := s.rolesExist(u.Roles); err != nil {
		return nil, err
	}
	if _, err := s.cfg.Users.GetUser(ctx, u.Name); err == nil {
		return nil, &sallyport.Problem{Kind: sallyport.ErrExists, Fact: "user " + u.Name + " exists already",
			Hint: "sallyctl users reset " + u.Name + " prints a new link; sallyctl create --force replaces roles and traits"}
	}
	var link login.Link
	e := sallyport.Event{Name: audit.UserCreate, Code: audit.UserCreateCode, Fields: map[string]any{"name": trim(u.Name), "roles": u.Roles}}
	err = s.change(ctx, e, func() error {
		return s.change(ctx, linkEvent(u.Name, ttl), func() error {
			link, err = s.cfg.Users.CreateUser(ctx, u, ttl)
			return err
		})
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&sallyportv1.CreateUserResponse{ClaimUrl: s.ClaimURL(link.Token), Expires: timestamppb.New(link.Expires)}), s.inForce(ctx)
}

// ListUsers lists users.
func (s adminService) ListUsers(ctx context.Context, req *connect.Request[sallyportv1.ListUsersRequest]) (*connect.Response[sallyportv1.ListUsersResponse], error) {
	may, err := s.among(ctx, req.Spec().Procedure, kindUser, "list")
	if err != nil {
		return nil, err
	}
	all, err := s.cfg.Users.ListUsers(ctx)
	if err != nil {
		return nil, err
	}
	resp := &sallyportv1.ListUsersResponse{}
	for _, u := range all {
		if !may(u.Name) {
			continue
		}
		resp.Users = append(resp.Users, &sallyportv1.User{Name: u.Name, Roles: u.Roles, Traits: lists(u.Traits), Claimed: u.Claimed, Created: timestamppb.New(u.Created)})
	}
	return connect.NewResponse(resp), nil
}

// DeleteUser deletes a user.
func (s adminService) DeleteUser(ctx context.Context, req *connect.Request[sallyportv1.DeleteUserRequest]) (*connect.Response[sallyportv1.DeleteUserResponse], error) {
	if err := s.allow(ctx, req.Spec().Procedure, kindUser, "delete", req.Msg.GetName()); err != nil {
		return nil, err
	}
	return connect.NewResponse(&sallyportv1.DeleteUserResponse{}), s.remove(ctx, kindUser, req.Msg.GetName())
}

// ResetUser takes the password away and makes a link to set a new one.
func (s adminService) ResetUser(ctx context.Context, req *connect.Request[sallyportv1.ResetUserRequest]) (*connect.Response[sallyportv1.ResetUserResponse], error) {
	ttl, err := bounded(req.Msg.GetLinkTtlSeconds(), defaultResetTTL, maxResetTTL)
	if err != nil {
		return nil, err
	}
	name := req.Msg.GetName()
	if err := s.allow(ctx, req.Spec().Procedure, kindUser, "update", name); err != nil {
		return nil, err
	}
	if _, err := s.cfg.Users.GetUser(ctx, name); err != nil {
		return nil, missing(kindUser, name, err)
	}
	var link login.Link
	err = s.change(ctx, linkEvent(name, ttl), func() error {
		link, err = s.cfg.Users.ResetUser(ctx, name, ttl)
		return err
	})
	if err != nil {
		return nil, missing(kindUser, name, err)
	}
	return connect.NewResponse(&sallyportv1.ResetUserResponse{ClaimUrl: s.ClaimURL(link.Token), Expires: timestamppb.New(link.Expires)}), nil
}

// linkEvent is the event of a link by which somebody sets a password.
func linkEvent(user string, ttl time.Duration) sallyport.Event {
	return sallyport.Event{Name: audit.ResetPasswordTokenCreate, Code: audit.ResetPasswordTokenCreateCode,
		Fields: map[string]any{"name": trim(user), "ttl": ttl.String()}}
}

// CreateToken makes a join token; its secret is in this answer and nowhere else.
func (s adminService) CreateToken(ctx context.Context, req *connect.Request[sallyportv1.CreateTokenRequest]) (*connect.Response[sallyportv1.CreateTokenResponse], error) {
	m := req.Msg
	ttl, err := bounded(m.GetTtlSeconds(), defaultTokenTTL, maxTokenTTL)
	if err != nil {
		return nil, err
	}
	c := callerOf(ctx)
	secret, t, err := s.cfg.Tokens.Create(ctx, join.Spec{
		Record: func(t join.Token) error {
			if err := s.allow(ctx, req.Spec().Procedure, kindToken, "create", t.Name); err != nil {
				return err
			}
			return s.emit(ctx, c, sallyport.Event{Name: audit.JoinTokenCreate, Code: audit.JoinTokenCreateCode,
				Fields: map[string]any{"name": t.Name, "roles": m.GetRoles(), "join_method": "token", "expires": t.Expires.Format(time.RFC3339), "single_use": t.SingleUse}})
		},
		Secret: m.GetValue(), Roles: typed[sallyport.IdentityKind](m.GetRoles()), TTL: ttl, Labels: m.GetLabels(), SingleUse: m.GetSingleUse(),
		Allow: join.Allow{Kinds: typed[sallyport.Kind](m.GetAllow().GetKinds()), Names: m.GetAllow().GetNames(), Labels: m.GetAllow().GetLabels()},
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&sallyportv1.CreateTokenResponse{Secret: secret, Token: tokenToWire(t), CaPins: s.cfg.CA.Pins(), Gateway: s.cfg.PublicAddress}), nil
}

// typed changes the type of words, not the words.
func typed[To, From ~string](list []From) []To {
	var out []To
	for _, s := range list {
		out = append(out, To(s))
	}
	return out
}

func tokenToWire(t join.Token) *sallyportv1.Token {
	return &sallyportv1.Token{
		Name: t.Name, Roles: typed[string](t.Roles), Labels: t.Labels, Expires: timestamppb.New(t.Expires), SingleUse: t.SingleUse,
		Allow: &sallyportv1.TokenAllow{Kinds: typed[string](t.Allow.Kinds), Names: t.Allow.Names, Labels: t.Allow.Labels},
	}
}

// ListTokens lists tokens without their secrets.
func (s adminService) ListTokens(ctx context.Context, req *connect.Request[sallyportv1.ListTokensRequest]) (*connect.Response[sallyportv1.ListTokensResponse], error) {
	may, err := s.among(ctx, req.Spec().Procedure, kindToken, "list")
	if err != nil {
		return nil, err
	}
	all, err := s.cfg.Tokens.List(ctx)
	if err != nil {
		return nil, err
	}
	resp := &sallyportv1.ListTokensResponse{}
	for _, t := range all {
		if may(t.Name) {
			resp.Tokens = append(resp.Tokens, tokenToWire(t))
		}
	}
	return connect.NewResponse(resp), nil
}

// DeleteToken deletes a token by its name or secret.
func (s adminService) DeleteToken(ctx context.Context, req *connect.Request[sallyportv1.DeleteTokenRequest]) (*connect.Response[sallyportv1.DeleteTokenResponse], error) {
	// The request may name the token by its secret, which must not be recorded.
	t, err := s.cfg.Tokens.Find(ctx, req.Msg.GetName())
	absent := errors.Is(err, sallyport.ErrNotFound)
	if absent {
		t.Name = req.Msg.GetName() // that there is none is told only to who might delete it
	}
	if err != nil && !absent {
		return nil, err
	}
	if err := s.allow(ctx, req.Spec().Procedure, kindToken, "delete", t.Name); err != nil {
		return nil, err
	}
	if absent {
		return nil, err
	}
	e := sallyport.Event{Name: audit.JoinTokenDelete, Code: audit.JoinTokenDeleteCode, Fields: map[string]any{"name": t.Name}}
	err = s.change(ctx, e, func() error { return s.cfg.Tokens.Delete(ctx, t.Name) })
	return connect.NewResponse(&sallyportv1.DeleteTokenResponse{}), err
}

// GetDocuments returns documents that the caller may read; those of a kind need
// the verb list besides.
func (s adminService) GetDocuments(ctx context.Context, req *connect.Request[sallyportv1.GetDocumentsRequest]) (*connect.Response[sallyportv1.GetDocumentsResponse], error) {
	kind, name := req.Msg.GetKind(), req.Msg.GetName()
	if err := knownKind(kind); err != nil {
		return nil, err
	}
	var docs []string
	if name != "" {
		if err := s.allow(ctx, req.Spec().Procedure, kind, "read", name); err != nil {
			return nil, err
		}
		doc, err := s.get(ctx, kind, name)
		if err != nil {
			return nil, err
		}
		docs = []string{doc}
	} else {
		may, err := s.among(ctx, req.Spec().Procedure, kind, "read", "list")
		if err != nil {
			return nil, err
		}
		if docs, err = s.list(ctx, kind, may); err != nil {
			return nil, err
		}
	}
	return connect.NewResponse(&sallyportv1.GetDocumentsResponse{Documents: docs}), nil
}

// PutDocument stores a document; replacing one needs the verb update besides.
func (s adminService) PutDocument(ctx context.Context, req *connect.Request[sallyportv1.PutDocumentRequest]) (*connect.Response[sallyportv1.PutDocumentResponse], error) {
	h, err := headerOf([]byte(req.Msg.GetDocument()))
	if err != nil {
		return nil, err
	}
	if err := knownKind(h.Kind); err != nil {
		return nil, err
	}
	if err := s.allow(ctx, req.Spec().Procedure, h.Kind, "create", h.Metadata.Name); err != nil {
		return nil, err
	}
	if req.Msg.GetOverwrite() {
		if err := s.allow(ctx, req.Spec().Procedure, h.Kind, "update", h.Metadata.Name); err != nil {
			return nil, err
		}
	}
	resp, err := s.put(ctx, h, req.Msg)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(resp), nil
}

// DeleteDocument deletes one.
func (s adminService) DeleteDocument(ctx context.Context, req *connect.Request[sallyportv1.DeleteDocumentRequest]) (*connect.Response[sallyportv1.DeleteDocumentResponse], error) {
	if err := knownKind(req.Msg.GetKind()); err != nil {
		return nil, err
	}
	if err := s.allow(ctx, req.Spec().Procedure, req.Msg.GetKind(), "delete", req.Msg.GetName()); err != nil {
		return nil, err
	}
	return connect.NewResponse(&sallyportv1.DeleteDocumentResponse{}), s.remove(ctx, req.Msg.GetKind(), req.Msg.GetName())
}

// SearchEvents reads the audit log.
func (s adminService) SearchEvents(ctx context.Context, req *connect.Request[sallyportv1.SearchEventsRequest]) (*connect.Response[sallyportv1.SearchEventsResponse], error) {
	m := req.Msg
	q := audit.Query{From: timeOf(m.GetFrom()), To: timeOf(m.GetTo()), Names: m.GetNames(), Limit: int(m.GetLimit())}
	lines, err := s.cfg.Audit.Search(ctx, q)
	if err != nil {
		return nil, err
	}
	resp := &sallyportv1.SearchEventsResponse{}
	for _, l := range lines {
		resp.Events = append(resp.Events, audit.Shown(string(l)))
	}
	return connect.NewResponse(resp), nil
}

func timeOf(t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.AsTime()
}

// ExportAuthorities gives the public halves of all CAs.
func (s adminService) ExportAuthorities(context.Context, *connect.Request[sallyportv1.ExportAuthoritiesRequest]) (*connect.Response[sallyportv1.ExportAuthoritiesResponse], error) {
	return connect.NewResponse(&sallyportv1.ExportAuthoritiesResponse{Authorities: authorities(s.cfg.CA)}), nil
}

// SignDatabaseServer issues the certificate of a database server.
func (s adminService) SignDatabaseServer(ctx context.Context, req *connect.Request[sallyportv1.SignDatabaseServerRequest]) (*connect.Response[sallyportv1.SignDatabaseServerResponse], error) {
	ttl, err := bounded(req.Msg.GetTtlSeconds(), 0, ca.DatabaseServerTTL)
	if err != nil {
		return nil, err
	}
	r := ca.DatabaseServerRequest{TLSKey: req.Msg.GetTlsPublicKey(), TTL: ttl}
	for _, h := range req.Msg.GetHosts() {
		if addr, err := netip.ParseAddr(h); err == nil {
			r.Addresses = append(r.Addresses, addr)
		} else {
			r.Names = append(r.Names, h)
		}
	}
	certs, err := s.cfg.CA.IssueDatabaseServer(r)
	if err != nil {
		return nil, err
	}
	resp := &sallyportv1.SignDatabaseServerResponse{Certificate: certs.X509, Expires: timestamppb.New(certs.NotAfter)}
	for _, c := range s.cfg.CA.Authority(ca.Database).Certificates {
		resp.ClientAuthorities = append(resp.ClientAuthorities, c.Raw)
	}
	err = s.emit(ctx, callerOf(ctx), sallyport.Event{Name: audit.CertificateCreate, Code: audit.CertificateCreateCode, Fields: map[string]any{"cert_type": "database_server", "hosts": req.Msg.GetHosts()}})
	return connect.NewResponse(resp), err
}
