package app

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http/httpguts"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/halfclose"
	"github.com/sallyport/sallyport/dataplane/oneconn"
	"github.com/sallyport/sallyport/dataplane/session"
)

const (
	copyBuffer = 32 << 10
	websocket  = "websocket"
)

// Server serves one application. The fields are set before first use.
type Server struct {
	Cluster string
	Target  Target
	Log     *slog.Logger // nil: none

	// Token returns what the application is told about the holder of a
	// client's certificate, signed; nil for nothing. It may ask the network.
	// Without a token requests go on: an application that relies on it refuses.
	Token func(ctx context.Context, app string, certificate *x509.Certificate) (string, error)

	init    sync.Once
	place   *place
	failed  error
	buffers sync.Pool
	drips   Drips
	pools   pools
}

// Close lets connections to the application go when nobody uses them. What runs
// goes on.
func (s *Server) Close() { s.pools.close() }

// Serve carries one client's connection. It is an access.Handler.
func (s *Server) Serve(ctx context.Context, c *session.Candidate, conn net.Conn) error {
	if err := s.setUp(); err != nil {
		return err
	}
	v := &visit{server: s, candidate: c, names: s.names(c)}
	if tc, ok := conn.(interface{ ConnectionState() tls.ConnectionState }); ok {
		if chain := tc.ConnectionState().PeerCertificates; len(chain) > 0 {
			v.certificate = chain[0]
		}
	}
	v.context, v.cancel = context.WithCancelCause(ctx)
	defer v.cancel(nil)
	quiet := slog.NewLogLogger(s.log().Handler(), slog.LevelDebug)
	v.proxy = halfclose.Proxy(&httputil.ReverseProxy{
		Rewrite: v.rewrite, Transport: v, ModifyResponse: v.answer, ErrorHandler: v.broken,
		BufferPool: s, ErrorLog: quiet,
	})
	v.http.ErrorLog = quiet
	v.serve(conn)
	return nil
}

func (s *Server) setUp() error {
	s.init.Do(func() { s.place, s.failed = s.Target.place() })
	return s.failed
}

func (s *Server) log() *slog.Logger {
	if s.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return s.Log
}

// names are the hosts that requests may name: the one that the agent's
// certificate is for, and with a browser's certificate the one that the browser
// sees.
func (s *Server) names(c *session.Candidate) []string {
	name := c.Resource.Name
	if c.Identity.Usage == sallyport.UsageWeb {
		return []string{name + "." + s.Cluster}
	}
	return []string{name + "." + string(sallyport.KindApp) + "." + s.Cluster}
}

// Get meets httputil.BufferPool.
func (s *Server) Get() []byte {
	if b, ok := s.buffers.Get().(*[]byte); ok {
		return *b
	}
	return make([]byte, copyBuffer)
}

// Put meets httputil.BufferPool.
func (s *Server) Put(b []byte) { s.buffers.Put(&b) }

// visit is one connection of a client, and the session that its first request
// opens.
type visit struct {
	server      *Server
	candidate   *session.Candidate
	names       []string
	context     context.Context
	cancel      context.CancelCauseFunc
	certificate *x509.Certificate // the client's; nil when it is not known
	proxy       http.Handler
	answers     *gathered   // the connection, of HTTP/1.1; else nil
	bound       atomic.Bool // the client has proved to the application who it is, perhaps for a connection

	http   oneconn.Server
	rx, tx atomic.Int64

	mu       sync.Mutex
	asking   bool             // Open has been called
	session  *session.Session // nil before, and when refused
	refused  error
	pool     *pool           // nil before the session, and without a certificate
	own      *http.Transport // nil until needed
	idle     *time.Timer
	requests int64
	chunk    struct {
		began    time.Time
		requests int64
	}
}

// serve runs until the connection and what came of it are over, and ends the
// session if there was one.
func (v *visit) serve(conn net.Conn) {
	v.http.Handler, v.http.MaxHead = v, maxHead
	if _, half := conn.(interface{ CloseWrite() error }); half && v.candidate.ALPN != "h2" {
		v.answers = &gathered{Conn: conn, buffers: v.server}
		conn = v.answers
		v.http.Protocols.SetHTTP1(true) // HTTP/2 is found by the type of the connection
	}
	v.http.Serve(v.context, conn)
	v.mu.Lock()
	if v.idle != nil {
		v.idle.Stop()
	}
	s := v.session
	v.mu.Unlock()
	v.giveUp()
	if s != nil {
		s.End(v.ended())
	}
}

// ServeHTTP serves one request.
func (v *visit) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !v.http.Begin() {
		return
	}
	defer v.http.End()
	last := v.answers != nil && v.answers.lengths.both(r)
	if last && r.Header.Get("Upgrade") == "" {
		w.Header().Set("Connection", "close")
	}
	if status, fact := v.misfit(r); status != 0 {
		tell(w, status, fact, "")
		return
	}
	s, err := v.open()
	if err != nil {
		refuse(w, err)
		return
	}
	v.touch()
	if to := v.server.place.path; to != "" && r.URL.Path == "/" && (r.Method == http.MethodGet || r.Method == http.MethodHead) {
		w.Header()["Location"] = []string{to}
		w.WriteHeader(http.StatusFound)
		return
	}
	via, leave := v.way(r)
	defer leave()
	ctx, cancel := context.WithCancelCause(context.WithValue(r.Context(), leg{}, &leg{outer: r.Host, via: via}))
	defer cancel(nil)
	stop := context.AfterFunc(s.Context, func() { cancel(context.Cause(s.Context)) })
	defer stop()
	q := &request{ResponseWriter: w, visit: v, last: last, method: r.Method, path: r.URL.EscapedPath(), query: r.URL.RawQuery}
	defer q.log(s)
	defer q.complete()
	r = r.WithContext(ctx)
	if r.Body != nil && r.Body != http.NoBody {
		r.Body = &body{ReadCloser: r.Body, visit: v}
	}
	v.proxy.ServeHTTP(q, r)
}

// misfit is why a request is none for this connection, before anybody is asked
// whether its user may make it.
func (v *visit) misfit(r *http.Request) (status int, fact string) {
	switch {
	case !v.owns(r.Host):
		return http.StatusMisdirectedRequest, "this connection is not for the host that the request names"
	case r.ProtoMajor < 2 && r.ProtoMinor < 1:
		// The end of such an answer is the end of the connection: a stream
		// that broke off could not be told from one that ended.
		return http.StatusHTTPVersionNotSupported, "HTTP/1.1 or HTTP/2 is needed"
	case r.Method == http.MethodConnect || r.Method == http.MethodTrace:
		return http.StatusMethodNotAllowed, "an application is not asked by " + r.Method
	case Unclear(r), r.URL.Path != "*" && !strings.HasPrefix(r.URL.Path, "/"), r.URL.Path == "*" && r.Method != http.MethodOptions:
		return http.StatusBadRequest, "the request can be read in two ways"
	}
	return 0, ""
}

// Unclear says that what a request's head says could be read in two ways by who gets
// it next. HTTP/2 carries more than HTTP/1.1 can write down, and net/http takes it: a
// method that is no token, a target with spaces or that is a whole address (RFC 9113,
// section 8.3.1), a Host beside :authority, and a length that is not the body's where
// there is none, or that is no number (section 8.1.1).
func Unclear(r *http.Request) bool {
	if len(r.Header["Host"]) > 0 || !httpguts.ValidHeaderFieldName(r.Method) || // both are tokens
		strings.ContainsFunc(r.RequestURI, func(c rune) bool { return c <= ' ' || c == 0x7f }) {
		return true
	}
	if r.ProtoMajor < 2 {
		return false
	}
	length := r.Header["Content-Length"]
	return !strings.HasPrefix(r.RequestURI, "/") && r.RequestURI != "*" ||
		len(length) > 1 || len(length) == 1 && length[0] != strconv.FormatInt(r.ContentLength, 10)
}

// owns says that a request names a host of this connection (RFC 9110, section
// 7.4). Its port is the client's business: there may be forwarders before us.
func (v *visit) owns(host string) bool {
	if i := strings.LastIndexByte(host, ':'); i >= 0 && !strings.ContainsFunc(host[i+1:], func(r rune) bool { return r < '0' || r > '9' }) {
		host = host[:i]
	}
	for _, n := range v.names {
		if strings.EqualFold(n, host) {
			return true
		}
	}
	return false
}

// open returns the session, which the first request asks for.
func (v *visit) open() (*session.Session, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.asking {
		return v.session, v.refused
	}
	v.asking = true
	v.session, v.refused = v.candidate.Open(v.context, use(v.candidate))
	if v.refused != nil {
		return nil, v.refused
	}
	s := v.session
	if v.certificate != nil {
		v.pool = v.server.enter(v.certificate)
	}
	context.AfterFunc(s.Context, func() { v.cancel(context.Cause(s.Context)) })
	if limit := s.Options.ClientIdleTimeout; limit > 0 && s.Cancel != nil {
		v.idle = time.AfterFunc(limit, func() {
			s.Cancel(&sallyport.Problem{Kind: sallyport.ErrDenied,
				Fact: "no input for " + limit.String() + ", the longest that your roles allow", Hint: "ask again"})
		})
	}
	return s, nil
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

// rewrite makes the application's request of the client's. What the client names
// in Connection is gone already.
func (v *visit) rewrite(r *httputil.ProxyRequest) {
	p, out := v.server.place, r.Out
	out.URL.Scheme, out.URL.Host, out.Host = p.scheme, p.host, p.host
	if p.overridesHost != nil {
		if values := valid(p.overridesHost(v.candidate.Identity)); len(values) > 0 {
			out.Host = values[0]
		}
	}
	out.URL.RawQuery = r.In.URL.RawQuery // as the audit log has it, also where Go would not parse it
	out.Trailer = nil                    // they would pass what is taken out of the head
	id := v.visitor(r.In.Context())
	h := out.Header
	cleanRequest(h, p.headers)
	h.Del("Host")
	v.upgrade(h)
	v.forwarded(h, r.In)
	if jwt := id.Traits[jwtTrait]; len(jwt) > 0 {
		h["Teleport-Jwt-Assertion"], h["Sallyport-Jwt-Assertion"] = jwt, jwt
	}
	inward(h, r.In.Host, p.scheme+"://"+out.Host)
	for _, set := range p.headers {
		if values := valid(set.Values(id)); len(values) > 0 {
			h[set.Name] = values
		}
	}
	if _, ok := h["User-Agent"]; !ok {
		h["User-Agent"] = nil // none, in place of Go's
	}
}

// jwtTrait is the trait that stands for the token in templates.
const jwtTrait = "jwt"

// visitor is the client's identity, with the token beside its traits.
func (v *visit) visitor(ctx context.Context) sallyport.Identity {
	id := v.candidate.Identity
	traits := make(map[string][]string, len(id.Traits)+1)
	maps.Copy(traits, id.Traits)
	delete(traits, jwtTrait)
	id.Traits = traits
	if v.server.Token == nil || v.certificate == nil {
		return id
	}
	token, err := v.server.Token(ctx, v.candidate.Resource.Name, v.certificate)
	if err != nil {
		v.server.log().Debug("no token for an application", "session", v.session.ID, "resource", v.candidate.Resource.Name, "error", err)
		return id
	}
	traits[jwtTrait] = []string{token}
	return id
}

// upgrade leaves only that for WebSockets: h2c would make a tunnel of the
// connection.
func (v *visit) upgrade(h http.Header) {
	if u := h.Get("Upgrade"); u != "" && !strings.EqualFold(u, websocket) {
		h.Del("Upgrade")
		h.Del("Connection")
		h.Del("Http2-Settings")
	}
}

// forwarded tells where a request comes from.
func (v *visit) forwarded(h http.Header, in *http.Request) {
	if a := v.candidate.ClientAddr; a.IsValid() {
		ip := netip.Addr.Unmap(a.Addr()).String()
		h.Set("X-Forwarded-For", ip)
		h.Set("X-Real-Ip", ip)
	}
	h.Set("X-Forwarded-Host", in.Host)
	h.Set("X-Forwarded-Proto", "https")
	h.Set("X-Forwarded-Ssl", "on")
}

// inward writes the application's own origin for the one that its client sees:
// applications compare it to Host. Other origins stay as they are.
func inward(h http.Header, outer, inner string) {
	origin := "https://" + outer
	if o := h["Origin"]; len(o) == 1 && strings.EqualFold(o[0], origin) {
		h["Origin"] = []string{inner}
	}
	if r := h["Referer"]; len(r) == 1 && len(r[0]) >= len(origin) && strings.EqualFold(r[0][:len(origin)], origin) {
		if rest := r[0][len(origin):]; rest == "" || rest[0] == '/' {
			h["Referer"] = []string{inner + rest}
		}
	}
}

// valid are the values that can stand in a header.
func valid(values []string) []string {
	out := values[:0:0]
	for _, v := range values {
		if httpguts.ValidHeaderFieldValue(v) {
			out = append(out, v)
		}
	}
	return out
}

// answer makes the client's response of the application's.
func (v *visit) answer(r *http.Response) error {
	CleanResponse(r.Header)
	Bodiless(r)
	p := v.server.place
	outer := legOf(r.Request).outer
	for _, name := range []string{"Location", "Content-Location"} {
		if l := r.Header[name]; len(l) == 1 {
			r.Header[name] = []string{Outward(l[0], p.scheme, outer, p.redirects)}
		}
	}
	return v.fits(r)
}

// leg is what is known of a request while it is at the application. It is its own
// key in the request's context.
type leg struct {
	outer string // the host that the client named
	via   *http.Transport
}

func legOf(out *http.Request) *leg {
	return out.Context().Value(leg{}).(*leg) // set by ServeHTTP for every request
}

// RoundTrip meets http.RoundTripper.
func (v *visit) RoundTrip(out *http.Request) (*http.Response, error) {
	return legOf(out).via.RoundTrip(out)
}

// request is one request's answer on its way to the client.
type request struct {
	http.ResponseWriter
	visit               *visit
	method, path, query string
	code                int
	last                bool  // the connection ends with the answer
	drip                *Drip // nil before the head, and where there is none
	upgraded            atomic.Bool
}

func (q *request) status() int { return q.code }

// WriteHeader notes the status; 1xx come before it, and past visit.answer.
func (q *request) WriteHeader(code int) {
	if code < 200 && code != http.StatusSwitchingProtocols {
		CleanResponse(q.Header())
		if q.visit.framed() && headSize(q.Header()) > maxAnswerHead {
			return // the answer follows without it
		}
	} else {
		Untyped(q.Header())
	}
	if q.code == 0 && (code >= 200 || code == http.StatusSwitchingProtocols) {
		q.code = code
	}
	if q.visit.answers != nil && code >= 200 {
		q.visit.answers.hold()
	}
	if q.last && code >= 200 {
		q.Header().Set("Connection", "close") // hints have taken it out
	}
	q.ResponseWriter.WriteHeader(code)
	if code >= 200 && q.drip == nil {
		q.drip = q.visit.server.drips.Begin(q.ResponseWriter, (*undripped)(q))
	}
}

// Write counts.
func (q *request) Write(p []byte) (n int, err error) {
	if q.code == 0 {
		q.code = http.StatusOK
	}
	if q.drip != nil {
		n, err = q.drip.Write(p)
	} else {
		n, err = q.ResponseWriter.Write(p)
	}
	q.visit.tx.Add(int64(n))
	return n, err
}

// FlushError is what http.ResponseController asks for: the answer is a stream.
func (q *request) FlushError() error {
	if q.drip != nil {
		return q.drip.Flush()
	}
	return (*undripped)(q).FlushError()
}

// undripped is a request beneath its Drip.
type undripped request

func (q *undripped) FlushError() error {
	if err := http.NewResponseController(q.ResponseWriter).Flush(); err != nil || q.visit.answers == nil {
		return err
	}
	return q.visit.answers.flush()
}

// complete lets the answer go as it is.
func (q *request) complete() {
	q.drip.End()
	if q.visit.answers != nil {
		q.visit.answers.release()
	}
}

// Unwrap lets http.ResponseController do what else the writer can.
func (q *request) Unwrap() http.ResponseWriter { return q.ResponseWriter }

// Hijack hands the connection over to a WebSocket, which is counted and watched
// as a body is.
func (q *request) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(q.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	q.upgraded.Store(true)
	if q.code == 0 {
		q.code = http.StatusSwitchingProtocols
	}
	return &upgraded{WebSocket: WebSocket{Conn: conn}, visit: q.visit}, rw, nil
}

// log writes the request down.
func (q *request) log(s *session.Session) {
	if q.code == 0 {
		q.code = 499 // the client was gone before there was an answer (nginx's word)
	}
	s.Emit(q.visit.asked(q))
	if chunk := q.visit.count(time.Now()); chunk != nil {
		s.Emit(*chunk)
	}
}

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
	return n, Unread(err)
}

// unread is why a body has not come as its client announced it.
type unread struct{ cause error }

func (u *unread) Error() string { return "the body of the request: " + u.cause.Error() }
func (u *unread) Unwrap() error { return u.cause }

// Unread marks what reading a client's body has returned, so that it can be told from
// what whoever gets the body does wrong. io.EOF and nil stay what they are.
func Unread(err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	return &unread{err}
}

// IsUnread says that an error, or one that it wraps, has been marked by Unread.
func IsUnread(err error) bool {
	var u *unread
	return errors.As(err, &u)
}

// upgraded is the client's side of a WebSocket.
type upgraded struct {
	WebSocket
	visit *visit
}

func (u *upgraded) Read(p []byte) (int, error) {
	n, err := u.WebSocket.Read(p)
	if n > 0 {
		u.visit.rx.Add(int64(n))
		u.visit.touch()
	}
	return n, err
}

func (u *upgraded) Write(p []byte) (int, error) {
	n, err := u.WebSocket.Write(p)
	u.visit.tx.Add(int64(n))
	return n, err
}

// Close ends it. Who has to go because this process does is told so; who may not
// stay is cut off.
func (u *upgraded) Close() error {
	if why := context.Cause(u.visit.session.Context); why != nil && errors.Is(why, sallyport.ErrUnavailable) {
		u.Restart()
	}
	return u.WebSocket.Close()
}
