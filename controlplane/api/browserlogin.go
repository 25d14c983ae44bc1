package api

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/login"
	"github.com/sallyport/sallyport/controlplane/websession"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
)

// freshness is how long ago somebody may have given his password who lets a
// program act as him.
const freshness = 10 * time.Minute

// verificationPath is the page where people type the codes of programs.
const verificationPath = "/device"

// FinishLogin gives certificates to the program whose user has approved it in a
// browser on the same machine.
func (s publicService) FinishLogin(ctx context.Context, req *connect.Request[sallyportv1.FinishLoginRequest]) (*connect.Response[sallyportv1.LoginResponse], error) {
	c, m := callerOf(ctx), req.Msg
	r := request{m.GetTlsPublicKey(), m.GetSshPublicKey(), m.GetTtlSeconds()}
	if err := r.check(); err != nil {
		return nil, err
	}
	code, err := s.web.TakeCode(ctx, m.GetCode(), websession.Proof{Purpose: websession.ForProgram, Verifier: m.GetVerifier(), Keys: websession.KeysHash(r.tlsKey, r.sshKey)})
	if err != nil {
		return nil, errors.Join(err, s.emitLogin(ctx, c, loginOf{method: "browser"}, err))
	}
	resp, err := s.certifyProgram(ctx, r, approval{code.User, code.Session, "browser", c.Addr.Addr()})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(resp), nil
}

// approval is a user's word for a program.
type approval struct {
	user    string
	session string     // in which it was given
	method  string     // browser, device
	at      netip.Addr // must be the session's, when roles say so; zero is not judged
}

// certifyProgram makes the certificates of an approved program, and records the
// login. An approval ends with the session in which it was given.
func (s publicService) certifyProgram(ctx context.Context, r request, a approval) (*sallyportv1.LoginResponse, error) {
	c := callerOf(ctx)
	l := loginOf{a.user, a.method, a.session}
	v, err := s.approver(ctx, a)
	if err != nil {
		return nil, errors.Join(err, s.emitLogin(ctx, c, l, err))
	}
	id := v.id
	id.LoginAddr = c.Addr.Addr().Unmap().String()
	if s.state.view().policy.PinSourceIP(id) {
		id.PinnedAddr = id.LoginAddr
	}
	if err := s.emitLogin(ctx, c, l, nil); err != nil {
		return nil, err
	}
	return s.issue(ctx, id, r)
}

func (s publicService) approver(ctx context.Context, a approval) (visit, error) {
	ws, err := s.web.Of(ctx, a.user, a.session)
	if err != nil {
		return visit{}, err
	}
	return s.visit(ctx, ws, a.at)
}

// BeginDeviceLogin gives a program a code for its user to type elsewhere.
func (s publicService) BeginDeviceLogin(ctx context.Context, req *connect.Request[sallyportv1.BeginDeviceLoginRequest]) (*connect.Response[sallyportv1.BeginDeviceLoginResponse], error) {
	c, m := callerOf(ctx), req.Msg
	if err := (request{m.GetTlsPublicKey(), m.GetSshPublicKey(), m.GetTtlSeconds()}).check(); err != nil {
		return nil, err
	}
	if err := nameFault(m.GetHostName()); err != nil {
		return nil, err
	}
	deviceCode, userCode, expires, err := s.web.BeginDevice(ctx, sourceOf(c.Addr.Addr()), websession.Device{
		TLSKey: m.GetTlsPublicKey(), SSHKey: m.GetSshPublicKey(), Seconds: m.GetTtlSeconds(), Host: m.GetHostName(), Addr: c.Addr.Addr().Unmap().String(),
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&sallyportv1.BeginDeviceLoginResponse{
		DeviceCode: deviceCode, UserCode: websession.ShowUserCode(userCode), VerificationPath: verificationPath,
		Expires: timestamppb.New(expires), IntervalSeconds: int64(websession.PollEvery / time.Second),
	}), nil
}

// PollDeviceLogin tells a program whether its user has approved it.
func (s publicService) PollDeviceLogin(ctx context.Context, req *connect.Request[sallyportv1.PollDeviceLoginRequest]) (*connect.Response[sallyportv1.PollDeviceLoginResponse], error) {
	d, err := s.web.Poll(ctx, req.Msg.GetDeviceCode())
	resp := &sallyportv1.PollDeviceLoginResponse{State: sallyportv1.PollDeviceLoginResponse_STATE_PENDING}
	switch {
	case errors.Is(err, websession.ErrTooSoon):
		resp.State = sallyportv1.PollDeviceLoginResponse_STATE_SLOW_DOWN
		return connect.NewResponse(resp), nil
	case err != nil:
		return nil, err
	case d.State == websession.Refused:
		resp.State = sallyportv1.PollDeviceLoginResponse_STATE_DENIED
	case d.State == websession.Approved:
		resp.State = sallyportv1.PollDeviceLoginResponse_STATE_DONE
		// The browser is elsewhere by design: its address is not the program's.
		resp.Login, err = s.certifyProgram(ctx, request{d.TLSKey, d.SSHKey, d.Seconds}, approval{d.User, d.Session, "device", netip.Addr{}})
	}
	return connect.NewResponse(resp), err
}

// Browser is what the pages of the web origin ask of auth. Each method is called
// with the context of a visitor's request.
type Browser struct{ s *Server }

// Browser returns it.
func (s *Server) Browser() Browser { return Browser{s} }

// LogIn checks who somebody is and begins a session. was is the cookie that the
// browser came with: its session ends, so that nobody can choose another's.
func (b Browser) LogIn(ctx context.Context, in login.Attempt, browser, was string) (cookie string, out websession.Session, err error) {
	s, c := b.s, callerOf(ctx)
	in.Addr = c.Addr.Addr()
	u, err := s.cfg.Users.Login(ctx, in)
	if err != nil {
		return "", out, errors.Join(err, s.emitLogin(ctx, c, byPassword(in.User), err))
	}
	addr := c.Addr.Addr().Unmap().WithZone("").String()
	ws := websession.Session{ID: websession.NewID(), User: u.Name, MFA: u.MFA, Addr: addr, Browser: browser, Credential: u.Credential}
	l := loginOf{u.Name, "local", ws.ID}
	id := s.identityOf(u)
	id.MFA, id.LoginAddr = u.MFA, addr
	if err := s.unlocked(id); err != nil {
		return "", out, errors.Join(err, s.emitLogin(ctx, c, l, err))
	}
	if o := s.state.view().policy.Options(id); o.MaxSessionTTL > 0 {
		ws.Ends = s.cfg.Now().Add(o.MaxSessionTTL)
	}
	if err := s.emitLogin(ctx, c, l, nil); err != nil {
		return "", out, err // unrecorded, there is no session
	}
	if old, err := s.web.Find(ctx, was); err == nil {
		if err := s.endSession(ctx, old, "logged in again"); err != nil {
			return "", out, err
		}
	}
	beyond, err := s.web.Beyond(ctx, u.Name)
	if err != nil {
		return "", out, err
	}
	for _, old := range beyond {
		if err := s.endSession(ctx, old, "too many sessions of the user"); err != nil {
			return "", out, err
		}
	}
	return s.web.Begin(ctx, ws)
}

// Visit returns the session of a cookie, if it is good now. Else the error is
// of kind ErrUnauthorized, or says why its user may not use it.
func (b Browser) Visit(ctx context.Context, cookie string) (websession.Session, error) {
	v, err := b.visit(ctx, cookie)
	return v.Session, err
}

func (b Browser) visit(ctx context.Context, cookie string) (visit, error) {
	ws, err := b.s.web.Find(ctx, cookie)
	if err != nil {
		return visit{}, err
	}
	return b.s.visit(ctx, ws, callerOf(ctx).Addr.Addr())
}

// LogOut ends the session of a cookie.
func (b Browser) LogOut(ctx context.Context, cookie string) error {
	ws, err := b.s.web.Find(ctx, cookie)
	if errors.Is(err, sallyport.ErrUnauthorized) {
		return nil
	}
	if err != nil {
		return err
	}
	return b.s.endSession(ctx, ws, "logged out")
}

// Sessions are those of the visitor.
func (b Browser) Sessions(ctx context.Context, cookie string) ([]websession.Session, error) {
	v, err := b.visit(ctx, cookie)
	if err != nil {
		return nil, err
	}
	return b.s.web.List(ctx, v.User)
}

// End ends one of the visitor's sessions, or all with id "".
func (b Browser) End(ctx context.Context, cookie, id string) error {
	v, err := b.visit(ctx, cookie)
	if err != nil {
		return err
	}
	if id != "" {
		return b.s.endOne(ctx, v.User, id)
	}
	_, err = b.s.endAll(ctx, v.User)
	return err
}

// Resources are those that the visitor may see.
func (b Browser) Resources(ctx context.Context, cookie string) ([]*sallyportv1.AccessibleResource, error) {
	v, err := b.visit(ctx, cookie)
	if err != nil {
		return nil, err
	}
	return b.s.resources(ctx, v.id, &sallyportv1.ListResourcesRequest{})
}

// Fresh says that the visitor has proved just now who he is.
func (b Browser) Fresh(ws websession.Session) bool {
	age := b.s.cfg.Now().Sub(ws.Proved)
	return age >= 0 && age < freshness
}

// Prove checks the visitor's password and code once more.
func (b Browser) Prove(ctx context.Context, cookie, password, code string) error {
	s, c := b.s, callerOf(ctx)
	v, err := b.visit(ctx, cookie)
	if err != nil {
		return err
	}
	_, err = s.cfg.Users.Login(ctx, login.Attempt{User: v.User, Password: password, Code: code, Addr: c.Addr.Addr()})
	if err := errors.Join(err, s.emitLogin(ctx, c, loginOf{v.User, "local", v.ID}, err)); err != nil {
		return err
	}
	return s.web.Prove(ctx, v.User, v.ID)
}

// approves refuses who has not proved lately who he is.
func (b Browser) approves(ctx context.Context, cookie string) (visit, error) {
	v, err := b.visit(ctx, cookie)
	if err != nil {
		return visit{}, err
	}
	if !b.Fresh(v.Session) {
		return visit{}, &sallyport.Problem{Kind: sallyport.ErrDenied, Fact: "it is too long since you gave your password", Hint: "give it again"}
	}
	return v, nil
}

// ApproveProgram makes the code that the browser takes to the program.
func (b Browser) ApproveProgram(ctx context.Context, cookie, challenge, keys string) (code string, err error) {
	v, err := b.approves(ctx, cookie)
	if err != nil {
		return "", err
	}
	if !websession.ValidCode(keys) {
		return "", invalid("the program's keys are not named")
	}
	return b.s.web.PutCode(ctx, websession.Code{Purpose: websession.ForProgram, User: v.User, Session: v.ID, Challenge: challenge, Keys: keys})
}

// Device shows the program that waits for a code. Wrong guesses are bounded.
func (b Browser) Device(ctx context.Context, cookie, userCode string) (d websession.Device, err error) {
	v, err := b.visit(ctx, cookie)
	if err != nil {
		return d, err
	}
	var missed error
	err = b.s.cfg.Users.Guess(ctx, "device", v.User, func() (bool, error) {
		d, err = b.s.web.Device(ctx, userCode)
		if errors.Is(err, sallyport.ErrNotFound) {
			missed = err
			return false, nil
		}
		return err == nil, err
	})
	if err == nil {
		err = missed
	}
	return d, err
}

// DecideDevice approves or refuses the program that waits for a code.
func (b Browser) DecideDevice(ctx context.Context, cookie, userCode string, approve bool) error {
	if _, err := b.Device(ctx, cookie, userCode); err != nil {
		return err
	}
	v, err := b.visit(ctx, cookie)
	if approve {
		v, err = b.approves(ctx, cookie)
	}
	if err != nil {
		return err
	}
	return b.s.web.Decide(ctx, userCode, v.Session, approve)
}

// Launch makes the code by which the session reaches an application's origin. It is
// good from the network of an address alone; for another one than the visitor's he has to
// have proved just now who he is.
func (b Browser) Launch(ctx context.Context, cookie, app, challenge string, from netip.Addr) (code string, err error) {
	may := b.visit
	if !b.Here(ctx, from) {
		may = b.approves
	}
	v, err := may(ctx, cookie)
	if err != nil {
		return "", err
	}
	if err := b.s.seesApp(ctx, v.id, app); err != nil {
		return "", err
	}
	return b.s.web.PutCode(ctx, websession.Code{Purpose: websession.ForApp, User: v.User, Session: v.ID, Challenge: challenge, App: app, From: sourceOf(from)})
}

// Here says that an address is of the visitor's network.
func (b Browser) Here(ctx context.Context, addr netip.Addr) bool {
	return sourceOf(addr) == sourceOf(callerOf(ctx).Addr.Addr())
}
