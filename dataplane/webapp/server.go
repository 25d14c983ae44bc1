package webapp

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/alpn"
	"github.com/sallyport/sallyport/dataplane/protocol/app"
)

const (
	// ownPaths are ours at every application's origin; no application sees one.
	ownPaths     = "/.sallyport/"
	callbackPath = ownPaths + "callback"
	logoutPath   = ownPaths + "logout"

	copyBuffer = 32 << 10
)

// Server serves all applications of a cluster to browsers. The fields are set
// before first use.
type Server struct {
	Cluster string
	Desk    Desk
	Dial    Dialer
	Roots   func() *x509.CertPool // who signs agents' certificates
	Log     *slog.Logger          // nil: none
	Now     func() time.Time      // nil: time.Now

	sessions  sessions
	strangers strangers
	buffers   sync.Pool
	drips     app.Drips
	upgraded  atomic.Int64
	patience  time.Duration // of requests with a good certificate; 0: askKnown
}

// Upgraded is how many WebSockets there are: net/http knows them no more.
func (s *Server) Upgraded() int { return int(s.upgraded.Load()) }

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

// Get meets httputil.BufferPool.
func (s *Server) Get() []byte {
	if b, ok := s.buffers.Get().(*[]byte); ok {
		return *b
	}
	return make([]byte, copyBuffer)
}

// Put meets httputil.BufferPool.
func (s *Server) Put(b []byte) { s.buffers.Put(&b) }

// connKey is the context's key for the connection of a request.
type connKey struct{}

// ConnContext is for http.Server.ConnContext: the connection is told when its
// browser is known.
func ConnContext(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, c)
}

// proven is what a gateway's connection may have beneath its TLS.
type proven interface{ Proven() }

// lift ends what holds for strangers: the deadlines of the server, and the place
// among those of whom nothing is known.
func lift(w http.ResponseWriter, r *http.Request) {
	c := http.NewResponseController(w)
	_ = c.SetReadDeadline(time.Time{}) // net/http's own writers have both
	_ = c.SetWriteDeadline(time.Time{})
	if tc, ok := r.Context().Value(connKey{}).(*tls.Conn); ok {
		if p, ok := tc.NetConn().(proven); ok {
			p.Proven()
		}
	}
}

// These hold for the rest of a request whose handler has ended: what net/http reads
// of a body that nobody wanted, and the last of an answer.
const (
	restRead  = 30 * time.Second
	restWrite = time.Minute
)

// limit ends a request within a time, whatever its browser does.
func limit(w http.ResponseWriter, read, write time.Duration) {
	c, now := http.NewResponseController(w), time.Now()
	_ = c.SetReadDeadline(now.Add(read))
	_ = c.SetWriteDeadline(now.Add(write))
}

// visit is one request.
type visit struct {
	*Server
	app    string
	origin string // https://<host as the browser names it>
	client netip.AddrPort
}

// ServeHTTP serves one request of a browser.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if chunked(r) && !isUpgrade(r.Header) {
		w.Header().Set("Connection", "close")
	}
	v, status, fact := s.visit(r)
	if status != 0 {
		tell(w, status, fact, "")
		return
	}
	if foreign(r) {
		tell(w, http.StatusForbidden, "a page of another origin may lead here by a link, and do nothing else", "")
		return
	}
	switch {
	case r.URL.Path == callbackPath:
		v.callback(w, r)
	case r.URL.Path == logoutPath:
		v.logout(w, r)
	case strings.HasPrefix(r.URL.Path, ownPaths) || r.URL.Path == strings.TrimSuffix(ownPaths, "/"):
		tell(w, http.StatusNotFound, "there is no such page", "")
	default:
		v.serve(w, r)
	}
}

// chunked says that a request of HTTP/1.1 has a body in chunks. The connection ends with
// its answer: that must be where a length was told too (RFC 9112, section 6.3), which
// net/http forgets. Browsers send none such.
func chunked(r *http.Request) bool { return r.ProtoMajor < 2 && len(r.TransferEncoding) > 0 }

// visit finds whose request it is, before anything is asked about its sender.
func (s *Server) visit(r *http.Request) (v *visit, status int, fact string) {
	name, ok := s.owner(r)
	if !ok {
		return nil, http.StatusMisdirectedRequest, "this connection is not for the host that the request names"
	}
	client, err := netip.ParseAddrPort(r.RemoteAddr)
	switch {
	case err != nil:
		return nil, http.StatusForbidden, "where this request comes from is not known"
	case r.ProtoMajor < 2 && r.ProtoMinor < 1:
		return nil, http.StatusHTTPVersionNotSupported, "HTTP/1.1 or HTTP/2 is needed"
	case r.Method == http.MethodConnect || r.Method == http.MethodTrace:
		return nil, http.StatusMethodNotAllowed, "an application is not asked by " + r.Method
	case app.Unclear(r), !strings.HasPrefix(r.URL.Path, "/") && (r.URL.Path != "*" || r.Method != http.MethodOptions):
		return nil, http.StatusBadRequest, "the request can be read in two ways"
	}
	return &visit{Server: s, app: name, origin: "https://" + r.Host, client: netip.AddrPortFrom(client.Addr().Unmap().WithZone(""), client.Port())}, 0, ""
}

// owner is the application whose connection and whose request this is. A wildcard
// certificate makes browsers send requests for one host on the connection of
// another (RFC 9113, section 9.1.1): those are told to go where they belong.
func (s *Server) owner(r *http.Request) (app string, ok bool) {
	if r.TLS == nil {
		return "", false
	}
	name, ok := alpn.NormalName(r.TLS.ServerName)
	if !ok {
		return "", false
	}
	app, ok = strings.CutSuffix(name, "."+s.Cluster)
	if !ok || !alpn.ValidLabel(app) || alpn.Reserved(app) {
		return "", false
	}
	host, port, hasPort := strings.Cut(r.Host, ":")
	return app, strings.EqualFold(host, name) && (!hasPort || validPort(port))
}

func validPort(p string) bool {
	return len(p) > 0 && len(p) <= 5 && strings.Trim(p, "0123456789") == ""
}

// serve passes a request on for who is logged in.
func (v *visit) serve(w http.ResponseWriter, r *http.Request) {
	s, l, err := v.line(r)
	if err != nil {
		v.without(w, r, err)
		return
	}
	defer s.leave(l)
	lift(w, r)
	defer limit(w, restRead, restWrite)
	l.serve(w, r)
}

// line is the way for a request, counted in. One that was forgotten in the very
// moment begins anew.
func (v *visit) line(r *http.Request) (s *session, l *line, err error) {
	for range 2 {
		if s, err = v.session(r.Context(), cookieOf(r, sessionCookie)); err != nil {
			return nil, nil, err
		}
		if l, err = s.enter(v); !errors.Is(err, errForgotten) {
			return s, l, err
		}
	}
	return nil, nil, err
}

// without answers where there is no session that is good for the request.
func (v *visit) without(w http.ResponseWriter, r *http.Request, err error) {
	var p *sallyport.Problem
	switch {
	case r.Context().Err() != nil:
		return // the browser has gone
	case errors.Is(err, sallyport.ErrUnauthorized) && navigates(r):
		v.begin(w, r)
		return
	case errors.Is(err, sallyport.ErrUnauthorized):
		tell(w, http.StatusUnauthorized, "you are not logged in to this application", "open "+v.origin+"/ in the browser")
		return
	case errors.As(err, &p):
		tell(w, statusOf(p), p.Fact, p.Hint)
		return
	}
	v.log().Warn("no word from auth about a browser", "app", v.app, "error", err)
	tell(w, http.StatusServiceUnavailable, "the control plane cannot be reached at the moment", "try again in a moment")
}

func statusOf(p *sallyport.Problem) int {
	switch {
	case errors.Is(p, sallyport.ErrUnauthorized):
		return http.StatusUnauthorized
	case errors.Is(p, sallyport.ErrDenied):
		return http.StatusForbidden
	case errors.Is(p, sallyport.ErrNotFound):
		return http.StatusNotFound
	case errors.Is(p, sallyport.ErrExhausted):
		return http.StatusTooManyRequests
	case errors.Is(p, sallyport.ErrInvalid):
		return http.StatusBadRequest
	}
	return http.StatusServiceUnavailable
}
