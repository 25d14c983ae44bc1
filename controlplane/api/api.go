package api

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/audit"
	"github.com/sallyport/sallyport/controlplane/ca"
	"github.com/sallyport/sallyport/controlplane/inventory"
	"github.com/sallyport/sallyport/controlplane/join"
	"github.com/sallyport/sallyport/controlplane/login"
	"github.com/sallyport/sallyport/controlplane/rbac"
	"github.com/sallyport/sallyport/controlplane/store"
	"github.com/sallyport/sallyport/controlplane/websession"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
	"github.com/sallyport/sallyport/wire/sallyport/v1/sallyportv1connect"
)

// unaryTimeout bounds a call that waits for the store.
const unaryTimeout = 30 * time.Second

// Config says what the API works with.
type Config struct {
	Store     store.Store
	CA        *ca.Keys
	Users     *login.Login
	Tokens    *join.Tokens
	Inventory *inventory.Inventory
	Audit     *audit.Log

	Version       string
	PublicAddress string // host:port of the gateway, for links
	SecondFactor  string // off, optional, totp
	OfflineMaxAge time.Duration
	Log           *slog.Logger
	Now           func() time.Time // default time.Now
}

// Server serves the API.
type Server struct {
	cfg      Config
	state    *state
	guard    *guard
	web      *websession.Sessions
	quotas   quotas     // of events about what strangers tried
	turns    turns      // of large requests
	assigned hostQuotas // of events about what agents announce
	bodies   *bodies

	drained   chan struct{} // closed by Drain
	drainOnce sync.Once
}

// New makes the server, stores the preset roles that are missing, and reads the
// first view.
func New(ctx context.Context, cfg Config) (*Server, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	s := &Server{cfg: cfg, drained: make(chan struct{}), bodies: newBodies(), web: websession.New(websession.Config{Store: cfg.Store, Now: cfg.Now})}
	s.state = newState(&s.cfg)
	s.guard = &guard{rules: methods(), check: s.check, standing: s.standing, denied: s.denied}
	for _, r := range rbac.Presets() {
		// A full store must not keep auth from starting: then nobody could empty it.
		if _, err := cfg.Store.Get(ctx, rolePrefix+r.Name()); err == nil {
			continue
		}
		_, err := cfg.Store.Apply(ctx, store.Op{Key: rolePrefix + r.Name(), Value: r.JSON(), Expect: store.Absent, Reserve: true})
		if err != nil && !errors.Is(err, sallyport.ErrExists) {
			return nil, err
		}
	}
	return s, s.state.reload(ctx, true)
}

// Run keeps the view fresh until ctx is done.
func (s *Server) Run(ctx context.Context) error { return s.state.run(ctx) }

// Drain ends the streams: another process is about to serve, and there their
// clients open them anew. Calls that are no streams end by themselves.
func (s *Server) Drain() { s.drainOnce.Do(func() { close(s.drained) }) }

// drain is what a stream ends with. Clients try again after ErrUnavailable.
func drain() error {
	return &sallyport.Problem{Kind: sallyport.ErrUnavailable, Fact: "auth is changing over to another process", Hint: "open the stream again"}
}

// Handler serves all services; every method passes the table first, before
// anything of the request is read. All other paths are the web origin's: pages,
// for visitors only; pages may be nil.
func (s *Server) Handler(pages http.Handler) http.Handler {
	errs := &unexpected{s.cfg.Log}
	opts := connect.WithHandlerOptions(
		connect.WithRequestGate(s.guard.gate(errs)),
		connect.WithConditionalHandlerOptions(func(spec connect.Spec) []connect.HandlerOption { return boundOf(spec.Procedure).options() }),
		connect.WithInterceptors(errs),
		connect.WithRecover(s.recovered),
	)
	mux := http.NewServeMux()
	mux.Handle(sallyportv1connect.NewPublicServiceHandler(publicService{s}, opts))
	mux.Handle(sallyportv1connect.NewJoinServiceHandler(joinService{s}, opts))
	mux.Handle(sallyportv1connect.NewHostServiceHandler(hostService{s}, opts))
	mux.Handle(sallyportv1connect.NewAccessServiceHandler(accessService{s}, opts))
	mux.Handle(sallyportv1connect.NewAdminServiceHandler(adminService{s}, opts))
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		c := callerOf(r.Context())
		if pages == nil || !c.Web || s.standing(r.Context(), c) != nil {
			http.NotFound(w, r)
			return
		}
		pages.ServeHTTP(w, r)
	})
	return FromWeb(s.turns.inTurn(s.bodies.weighed(mux)))
}

// recovered keeps a panic of one call from the others; it is a bug.
func (s *Server) recovered(ctx context.Context, spec connect.Spec, _ http.Header, v any) error {
	s.cfg.Log.Error("panic in a method; this is a bug", "method", spec.Procedure, "panic", v, "stack", string(debug.Stack()))
	return connect.NewError(connect.CodeInternal, errors.New("internal error"))
}

// unexpected tells callers what they may read of an error. Errors that are
// nobody's input it logs, and hides their text.
type unexpected struct{ log *slog.Logger }

func (u *unexpected) hide(procedure string, err error) error {
	err = refusal(err)
	var in *internal
	if !errors.As(err, &in) {
		return err
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return connect.NewError(code(err), errors.New("the call was ended"))
	}
	u.log.Error("method failed", "method", procedure, "error", in.cause)
	return connect.NewError(connect.CodeInternal, errors.New("internal error; auth's log has more"))
}

// WrapUnary meets connect.Interceptor.
func (u *unexpected) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		ctx, cancel := context.WithTimeout(ctx, unaryTimeout)
		defer cancel()
		resp, err := next(ctx, req)
		return resp, u.hide(req.Spec().Procedure, err)
	}
}

// WrapStreamingClient meets connect.Interceptor; this side has no clients.
func (u *unexpected) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// WrapStreamingHandler meets connect.Interceptor.
func (u *unexpected) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		return u.hide(conn.Spec().Procedure, next(ctx, conn))
	}
}

// authorities is the public half of all CAs, as snapshots and answers have it.
func authorities(keys *ca.Keys, kinds ...ca.Kind) []*sallyportv1.Authority {
	var out []*sallyportv1.Authority
	for _, a := range keys.Authorities() {
		if len(kinds) > 0 && !slices.Contains(kinds, a.Kind) {
			continue
		}
		m := &sallyportv1.Authority{Kind: string(a.Kind)}
		for _, k := range a.SSHKeys {
			m.SshPublicKeys = append(m.SshPublicKeys, k.Marshal())
		}
		for _, c := range a.Certificates {
			m.Certificates = append(m.Certificates, c.Raw)
		}
		out = append(out, m)
	}
	return out
}
