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
	"github.com/sallyport/sallyport/controlplane/login"
	"github.com/sallyport/sallyport/controlplane/websession"
	"github.com/sallyport/sallyport/identity"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
)

// visit is a web session that is good at this moment, and whose it is.
type visit struct {
	websession.Session
	user login.User
	id   sallyport.Identity // with the roles and traits of now
}

// visit judges a session by what is known of its user now. from is where the
// visitor is; the zero Addr is not judged. What is over for good is ended.
func (s *Server) visit(ctx context.Context, ws websession.Session, from netip.Addr) (visit, error) {
	u, err := s.cfg.Users.GetUser(ctx, ws.User)
	if errors.Is(err, sallyport.ErrNotFound) || err == nil && (u.Credential == "" || u.Credential != ws.Credential) {
		return visit{}, errors.Join(websession.Gone(), s.endSession(ctx, ws, "the user's password or device has changed"))
	}
	if err != nil {
		return visit{}, err
	}
	v := visit{Session: ws, user: u, id: s.identityOf(u)}
	v.id.MFA, v.id.LoginAddr = ws.MFA, ws.Addr
	if err := s.unlocked(v.id); err != nil {
		return visit{}, errors.Join(err, s.endSession(ctx, ws, "locked"))
	}
	if from.IsValid() && from.Unmap().WithZone("").String() != ws.Addr && s.state.view().policy.PinSourceIP(v.id) {
		return visit{}, &sallyport.Problem{Kind: sallyport.ErrDenied, Fact: "your roles bind a session to the address of its login",
			Hint: "log out and in again"}
	}
	return v, nil
}

// endSession records that a session ends, and ends it.
func (s *Server) endSession(ctx context.Context, ws websession.Session, reason string) error {
	err := s.change(ctx, sallyport.Event{
		Name: audit.WebSessionEnd, Code: audit.WebSessionEndCode, User: ws.User, UserKind: "human", Fields: map[string]any{"web_session": ws.ID, "reason": reason},
	}, func() error {
		_, err := s.web.End(ctx, ws.User, ws.ID)
		return err
	})
	if errors.Is(err, sallyport.ErrNotFound) {
		return nil // another request was faster
	}
	return err
}

// ListWebSessions shows the caller's own.
func (s accessService) ListWebSessions(ctx context.Context, _ *connect.Request[sallyportv1.ListWebSessionsRequest]) (*connect.Response[sallyportv1.ListWebSessionsResponse], error) {
	list, err := s.web.List(ctx, callerOf(ctx).Identity.Name)
	if err != nil {
		return nil, err
	}
	resp := &sallyportv1.ListWebSessionsResponse{}
	for _, w := range list {
		resp.Sessions = append(resp.Sessions, &sallyportv1.WebSession{Id: w.ID, Created: timestamppb.New(w.Created), Seen: timestamppb.New(w.Seen),
			Expires: timestamppb.New(w.Ends), Address: w.Addr, Browser: w.Browser})
	}
	return connect.NewResponse(resp), nil
}

// EndWebSession ends one of the caller's own, or all.
func (s accessService) EndWebSession(ctx context.Context, req *connect.Request[sallyportv1.EndWebSessionRequest]) (*connect.Response[sallyportv1.EndWebSessionResponse], error) {
	user := callerOf(ctx).Identity.Name
	if req.Msg.GetAll() == (req.Msg.GetId() != "") {
		return nil, invalid("name one session, or all")
	}
	if !req.Msg.GetAll() {
		err := s.endOne(ctx, user, req.Msg.GetId())
		return connect.NewResponse(&sallyportv1.EndWebSessionResponse{Ended: 1}), err
	}
	n, err := s.endAll(ctx, user)
	return connect.NewResponse(&sallyportv1.EndWebSessionResponse{Ended: n}), err
}

func (s *Server) endOne(ctx context.Context, user, id string) error {
	ws, err := s.web.Of(ctx, user, id)
	if errors.Is(err, sallyport.ErrUnauthorized) {
		return &sallyport.Problem{Kind: sallyport.ErrNotFound, Fact: "there is no such session, or not any more"}
	}
	if err != nil {
		return err
	}
	return s.endSession(ctx, ws, "ended by the user")
}

func (s *Server) endAll(ctx context.Context, user string) (n uint32, err error) {
	list, err := s.web.List(ctx, user)
	if err != nil {
		return 0, err
	}
	for _, ws := range list {
		if err := s.endSession(ctx, ws, "logged out everywhere"); err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}

// RedeemAppCode makes a session at an application's origin.
func (s hostService) RedeemAppCode(ctx context.Context, req *connect.Request[sallyportv1.RedeemAppCodeRequest]) (*connect.Response[sallyportv1.AppSessionResponse], error) {
	m := req.Msg
	w, err := s.appRequest(ctx, m.GetApp(), m.GetClientAddr(), m.GetTlsPublicKey())
	if err != nil {
		return nil, err
	}
	if err := keyFault(ca.ParseTLSKey(m.GetTlsPublicKey())); err != nil {
		return nil, err // before the code is used up
	}
	code, err := s.web.TakeCode(ctx, m.GetCode(), websession.Proof{Purpose: websession.ForApp, Verifier: m.GetVerifier(), App: m.GetApp(), From: sourceOf(w.visitor)})
	if err != nil {
		return nil, err
	}
	ws, err := s.web.Of(ctx, code.User, code.Session)
	if err != nil {
		return nil, err
	}
	resp, err := s.appSession(ctx, ws, w)
	if err != nil {
		return nil, err
	}
	if resp.Session, err = s.web.BeginApp(ctx, ws.User, ws.ID, m.GetApp()); err != nil {
		return nil, err
	}
	return connect.NewResponse(resp), nil
}

// RenewAppSession says that a session at an application's origin is good, and
// gives a certificate when a key comes with the question.
func (s hostService) RenewAppSession(ctx context.Context, req *connect.Request[sallyportv1.RenewAppSessionRequest]) (*connect.Response[sallyportv1.AppSessionResponse], error) {
	m := req.Msg
	w, err := s.appRequest(ctx, m.GetApp(), m.GetClientAddr(), m.GetTlsPublicKey())
	if err != nil {
		return nil, err
	}
	find := s.web.FindApp
	if m.GetQuiet() {
		find = s.web.SeeApp
	}
	ws, err := find(ctx, m.GetSession(), m.GetApp())
	if err != nil {
		return nil, err
	}
	resp, err := s.appSession(ctx, ws, w)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(resp), nil
}

// EndAppSession logs out of one application, in one browser. Where nobody is
// logged in, nothing is left to do.
func (s hostService) EndAppSession(ctx context.Context, req *connect.Request[sallyportv1.EndAppSessionRequest]) (*connect.Response[sallyportv1.EndAppSessionResponse], error) {
	if _, err := s.host(ctx); err != nil {
		return nil, err
	}
	app := req.Msg.GetApp()
	ws, err := s.web.FindApp(ctx, req.Msg.GetSession(), app)
	if errors.Is(err, sallyport.ErrUnauthorized) {
		return connect.NewResponse(&sallyportv1.EndAppSessionResponse{}), nil
	}
	if err != nil {
		return nil, err
	}
	err = s.change(ctx, sallyport.Event{
		Name: audit.WebSessionEnd, Code: audit.WebSessionEndCode, User: ws.User, UserKind: "human",
		Fields: map[string]any{"web_session": ws.ID, "app_name": app, "reason": "ended by the user"},
	}, func() error {
		_, err := s.web.EndApp(ctx, req.Msg.GetSession(), app)
		return err
	})
	return connect.NewResponse(&sallyportv1.EndAppSessionResponse{}), err
}

// wanted is what a gateway asks for on behalf of a browser.
type wanted struct {
	app     string
	visitor netip.Addr
	key     []byte // none: no certificate
}

func (s hostService) appRequest(ctx context.Context, app, visitor string, key []byte) (wanted, error) {
	if _, err := s.host(ctx); err != nil {
		return wanted{}, err
	}
	addr, err := netip.ParseAddr(visitor)
	if err != nil {
		return wanted{}, invalid("the visitor's address cannot be read")
	}
	return wanted{app, addr.Unmap().WithZone(""), key}, nil
}

// appSession judges a session for an application, and makes the certificate.
func (s hostService) appSession(ctx context.Context, ws websession.Session, w wanted) (*sallyportv1.AppSessionResponse, error) {
	v, err := s.visit(ctx, ws, w.visitor)
	if err != nil {
		return nil, err
	}
	if err := s.seesApp(ctx, v.id, w.app); err != nil {
		return nil, err
	}
	resp := &sallyportv1.AppSessionResponse{SessionId: ws.ID, User: v.User, Roles: v.id.Roles, Traits: lists(v.id.Traits), SessionExpires: timestamppb.New(ws.Ends)}
	if len(w.key) == 0 {
		return resp, nil
	}
	id := s.browserIdentity(v, w, callerOf(ctx).Identity)
	certs, err := s.cfg.CA.IssueUser(ca.UserRequest{Identity: id, TLSKey: w.key, TTL: ca.MaxWebTTL})
	if err != nil {
		return nil, err
	}
	id.NotAfter = certs.NotAfter
	err = s.emitCertificates(ctx, id, map[string]any{"cert_type": "web", "app_name": w.app, "web_session": ws.ID, "client_addr": w.visitor.String(), "gateway": callerOf(ctx).Identity.Name})
	if err != nil {
		return nil, err // unrecorded, the certificate is dropped
	}
	resp.TlsCertificate, resp.Expires = certs.X509, timestamppb.New(certs.NotAfter)
	return resp, nil
}

// browserIdentity is who the certificate that a gateway holds for a browser names:
// it is good for this gateway and this application.
func (s *Server) browserIdentity(v visit, w wanted, gateway sallyport.Identity) sallyport.Identity {
	id := v.id
	id.Principals = nil // it opens no native session
	id.Usage = sallyport.UsageWeb
	id.BoundTo = identity.URI(sallyport.KindGateway, id.Cluster, gateway.Name).String()
	id.AllowedResources = []string{"/" + id.Cluster + "/" + string(sallyport.KindApp) + "/" + w.app}
	id.DisallowReissue = true
	id.NotAfter = v.Ends.Truncate(time.Second)
	if s.state.view().policy.PinSourceIP(id) {
		id.PinnedAddr = w.visitor.String()
	}
	return id
}

// seesApp answers alike for an application that does not exist and for one that
// the user may not see.
func (s *Server) seesApp(ctx context.Context, id sallyport.Identity, app string) error {
	if app != "" {
		list, err := s.resources(ctx, id, &sallyportv1.ListResourcesRequest{Kind: string(sallyport.KindApp), Name: app})
		if err != nil {
			return err
		}
		for _, r := range list {
			if r.GetResource().GetName() == app {
				return nil
			}
		}
	}
	return &sallyport.Problem{Kind: sallyport.ErrNotFound, Fact: "there is no such application, or you may not see it", Hint: "ask your administrator"}
}
