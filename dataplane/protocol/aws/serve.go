package aws

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/oneconn"
	"github.com/sallyport/sallyport/dataplane/session"
	"github.com/sallyport/sallyport/dataplane/sigv4"
)

// RoleHeader is where sally's local port names the role; nobody else's word for it
// is needed, because roles decide.
const RoleHeader = "Sallyport-Aws-Role"

// Server serves one application. The fields are set before first use.
type Server struct {
	Cluster string
	Target  Target
	Account *Account
	Log     *slog.Logger // nil: none
	Now     func() time.Time
}

// Serve carries one client's connection. It is an access.Handler.
func (s *Server) Serve(ctx context.Context, c *session.Candidate, conn net.Conn) error {
	v := &visit{server: s, candidate: c, name: c.Resource.Name + "." + string(sallyport.KindApp) + "." + s.Cluster}
	v.context, v.cancel = context.WithCancelCause(ctx)
	defer v.cancel(nil)
	v.transport = s.Target.transport()
	defer v.transport.CloseIdleConnections()
	v.proxy = &httputil.ReverseProxy{
		Rewrite: v.rewrite, Transport: v, ModifyResponse: answer, ErrorHandler: v.broken, FlushInterval: -1,
		ErrorLog: slog.NewLogLogger(s.log().Handler(), slog.LevelDebug),
	}
	v.serve(conn)
	return nil
}

func (s *Server) log() *slog.Logger {
	if s.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return s.Log
}

func (s *Server) now() time.Time {
	if s.Now == nil {
		return time.Now()
	}
	return s.Now()
}

// visit is one connection of a client, and the session that its first request
// opens.
type visit struct {
	server    *Server
	candidate *session.Candidate
	name      string // the host that requests name
	context   context.Context
	cancel    context.CancelCauseFunc
	transport *http.Transport
	proxy     *httputil.ReverseProxy

	http     oneconn.Server
	rx, tx   atomic.Int64
	requests atomic.Int64

	mu      sync.Mutex
	asked   bool // Open has been called
	role    string
	session *session.Session // nil before, and when refused
	refused error
	idle    *time.Timer
}

// serve runs until the connection is over, and ends the session if there was one.
// Browsers come by HTTP/2, to be told that this is not for them.
func (v *visit) serve(conn net.Conn) {
	v.http.Handler, v.http.MaxHead, v.http.ErrorLog = v, maxHead, v.proxy.ErrorLog
	v.http.Serve(v.context, conn)
	v.mu.Lock()
	if v.idle != nil {
		v.idle.Stop()
	}
	s := v.session
	v.mu.Unlock()
	if s != nil {
		s.End(map[string]any{"rx": v.rx.Load(), "tx": v.tx.Load(), "requests": v.requests.Load()})
	}
}

// ask is one request, understood.
type ask struct {
	role       string
	service    string
	operation  string // as the client says it; "" when it does not
	payload    string
	endpoint   endpoint
	assumption assumption
}

// ServeHTTP serves one request.
func (v *visit) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !v.http.Begin() {
		return
	}
	defer v.http.End()
	if v.candidate.Identity.Usage == sallyport.UsageWeb {
		refuseBrowser(w)
		return
	}
	q, fact := v.read(r)
	if fact != "" {
		v.logRefused(q, r, http.StatusBadRequest)
		sigv4.Tell(w, r, sigv4.Fault{Status: http.StatusBadRequest, Code: sigv4.BadRequest, Message: fact, Service: q.service})
		return
	}
	s, err := v.open(q.role)
	if err != nil {
		v.logRefused(q, r, http.StatusForbidden)
		refuse(w, r, q, err)
		return
	}
	if err := v.locate(q); err != nil {
		v.log(q, r, http.StatusForbidden)
		refuse(w, r, q, sallyport.Denied(err.Error(), ""))
		return
	}
	v.touch()
	ctx, cancel := context.WithCancelCause(context.WithValue(r.Context(), askKey{}, q))
	defer cancel(nil)
	stop := context.AfterFunc(s.Context, func() { cancel(context.Cause(s.Context)) })
	defer stop()
	out := &reply{ResponseWriter: w, visit: v}
	logged := r.Clone(context.Background()) // the signer writes queries anew
	defer func() { v.log(q, logged, out.status()) }()
	r = r.WithContext(ctx)
	if r.Body != nil && r.Body != http.NoBody {
		r.Body = &body{ReadCloser: r.Body, visit: v}
	}
	v.proxy.ServeHTTP(out, r)
}

// read understands a request, or says why not, before anybody is asked whether
// its user may make it.
func (v *visit) read(r *http.Request) (q *ask, fact string) {
	q = &ask{role: r.Header.Get(RoleHeader), operation: sigv4.Operation(r.Header), payload: r.Header.Get(sigv4.PayloadHeader)}
	a, err := sigv4.Parse(r.Header.Get("Authorization"))
	if err != nil {
		return q, "this application is asked by sally aws, or through sally proxy aws: " + err.Error()
	}
	q.service, q.endpoint.region = a.Service, a.Region
	query, err := url.ParseQuery(r.URL.RawQuery)
	switch {
	case err != nil, r.URL.Opaque != "", !strings.HasPrefix(r.URL.Path, "/"):
		return q, "the request can be read in two ways"
	case !strings.EqualFold(r.Host, v.name):
		return q, "this connection is not for the host that the request names"
	case r.Method == http.MethodConnect || r.Method == http.MethodTrace, r.Header.Get("Upgrade") != "", sigv4.HopByHop(r.Header):
		return q, "requests of that kind are not passed on"
	case sigv4.Presigned(query):
		return q, "the request carries a signature in its query; only headers can be signed anew"
	case q.role != "" && !ValidRole(q.role):
		return q, "that is not the ARN of a role"
	case r.ContentLength < 0:
		return q, "the request does not say how long it is"
	}
	for _, name := range []string{"Authorization", RoleHeader, "Content-Type", sigv4.PayloadHeader, sigv4.TargetHeader} {
		if len(r.Header[name]) > 1 {
			return q, name + " is there twice"
		}
	}
	if err := sigv4.Payload(q.payload); err != nil {
		return q, err.Error()
	}
	return q, ""
}

// open returns the session, which the first request asks for; it is for that
// request's role.
func (v *visit) open(role string) (*session.Session, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case v.asked && v.role != role:
		return nil, sallyport.Denied("this connection is for another role of AWS", "")
	case v.asked:
		return v.session, v.refused
	}
	v.asked, v.role = true, role
	if v.session, v.refused = v.candidate.Open(v.context, use(v.candidate, role)); v.refused != nil {
		return nil, v.refused
	}
	if !ValidRole(role) { // roles let nobody in without one; this holds where they are wrong
		v.refused = sallyport.Denied("no role of AWS is named", "name one with --aws-role")
		return nil, v.refused
	}
	s := v.session
	context.AfterFunc(s.Context, func() { v.cancel(context.Cause(s.Context)) })
	if limit := s.Options.ClientIdleTimeout; limit > 0 && s.Cancel != nil {
		v.idle = time.AfterFunc(limit, func() {
			s.Cancel(&sallyport.Problem{Kind: sallyport.ErrDenied,
				Fact: "no input for " + limit.String() + ", the longest that your roles allow", Hint: "ask again"})
		})
	}
	return s, nil
}

// locate finds where the request goes, and as whom.
func (v *visit) locate(q *ask) error {
	at, err := v.server.Target.endpoint(q.service, q.endpoint.region, q.operation)
	if err != nil {
		return err
	}
	if q.role == v.server.Account.OwnRole && strings.EqualFold(q.service, "sts") {
		// STS would give the agent's own credentials away, and other roles with them.
		return errors.New("STS is not asked with the agent's own credentials")
	}
	if p, ok := partitionOf(at.region); IsConsole(v.server.Target.URI) && (!ok || p.name != partitionOfRole(q.role)) {
		return fmt.Errorf("region %q is of another partition of AWS than the role", at.region)
	}
	q.endpoint, q.assumption = at, assumption{role: q.role, user: v.candidate.Identity.Name}
	return nil
}

// touch notes that the client has said something.
func (v *visit) touch() {
	v.mu.Lock()
	defer v.mu.Unlock()
	// A timer that has fired stays so: the session has been cancelled.
	if v.idle != nil && v.idle.Stop() {
		v.idle.Reset(v.session.Options.ClientIdleTimeout)
	}
}

// askKey is the key of the ask in the context of its request.
type askKey struct{}

// rewrite makes AWS's request of the client's, as yet without a signature.
func (v *visit) rewrite(r *httputil.ProxyRequest) {
	q := r.In.Context().Value(askKey{}).(*ask)
	r.Out.URL.Scheme, r.Out.URL.Host, r.Out.Host = q.endpoint.scheme, q.endpoint.host, q.endpoint.host
	r.Out.Trailer = nil
	cleanRequest(r.Out.Header)
	if q.operation == "" {
		r.Out.Header.Del(sigv4.TargetHeader) // no event has it
	}
	if _, ok := r.Out.Header["User-Agent"]; !ok {
		r.Out.Header["User-Agent"] = nil // none, in place of Go's
	}
}

// RoundTrip signs and sends. It is the proxy's transport, and may change what the
// proxy has made for it.
func (v *visit) RoundTrip(r *http.Request) (*http.Response, error) {
	q := r.Context().Value(askKey{}).(*ask)
	c, err := v.server.Account.credentials(r.Context(), q.assumption)
	if err != nil {
		return nil, err
	}
	if err := sigv4.SignHTTP(r, c, sigv4.Scope{Service: q.service, Region: q.endpoint.region, Payload: q.payload, Time: v.server.now()}); err != nil {
		return nil, err
	}
	return v.transport.RoundTrip(r)
}

// answer takes out of a response what would stay with a client beyond it.
func answer(r *http.Response) error {
	for name := range r.Header {
		if f := strings.ToLower(name); f == "set-cookie" || f == "alt-svc" || f == "clear-site-data" || f == "strict-transport-security" || strings.HasPrefix(f, "sallyport-") {
			delete(r.Header, name)
		}
	}
	return nil
}

// cleanRequest takes out of a client's headers what is not for AWS, and what the
// signer writes.
func cleanRequest(h http.Header) {
	for name := range h {
		f := strings.ToLower(name)
		switch f {
		case "authorization", "cookie", "forwarded", "via", "te", "x-real-ip", "host", "x-amz-date", "x-amz-security-token":
			delete(h, name)
		}
		if strings.HasPrefix(f, "sallyport-") || strings.HasPrefix(f, "teleport-") || strings.HasPrefix(f, "x-forwarded-") || strings.HasPrefix(f, "proxy-") {
			delete(h, name)
		}
	}
}

// reply is one answer on its way to the client.
type reply struct {
	http.ResponseWriter
	visit *visit
	code  int
}

// status is 499 when the client was gone before there was an answer (nginx's word).
func (q *reply) status() int {
	if q.code == 0 {
		return 499
	}
	return q.code
}

// WriteHeader notes the status.
func (q *reply) WriteHeader(code int) {
	if q.code == 0 && code >= 200 {
		q.code = code
	}
	q.ResponseWriter.WriteHeader(code)
}

// Write counts.
func (q *reply) Write(p []byte) (int, error) {
	if q.code == 0 {
		q.code = http.StatusOK
	}
	n, err := q.ResponseWriter.Write(p)
	q.visit.tx.Add(int64(n))
	return n, err
}

// Unwrap lets http.ResponseController flush.
func (q *reply) Unwrap() http.ResponseWriter { return q.ResponseWriter }

// body is a request's body on its way in.
type body struct {
	io.ReadCloser
	visit *visit
}

func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if n > 0 {
		b.visit.rx.Add(int64(n))
		b.visit.touch()
	}
	return n, err
}
