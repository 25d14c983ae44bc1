package webapp

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"mime"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/http/httputil"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/alpn"
	"github.com/sallyport/sallyport/dataplane/halfclose"
	"github.com/sallyport/sallyport/dataplane/protocol/app"
)

const (
	dialTimeout = 10 * time.Second
	overWithin  = 10 * time.Second // from the end of a session to that of what it does
	lineIdle    = time.Minute      // of a connection to an agent without a request
	maxHead     = 64 << 10         // bytes of a head, of requests and of answers

	// A connection to an agent that died without a word is noticed within their sum.
	pingAfter   = 15 * time.Second
	pingTimeout = 10 * time.Second

	// What has come from an agent and not yet gone to the browser.
	streamBuffer     = 256 << 10
	connectionBuffer = 1 << 20
)

// line is a session's way to its application for one address of the browser, by
// one certificate: a connection of HTTP/2, which is one session at the agent, and
// one of HTTP/1.1 for each WebSocket.
type line struct {
	session *session
	browser netip.AddrPort
	target  string // server name of the agent's certificate
	chain   tls.Certificate
	ctx     context.Context // done when the user may not go on
	cancel  context.CancelCauseFunc
	pages   *http.Transport
	sockets *http.Transport
	proxy   http.Handler

	mu      sync.Mutex
	open    int
	retired bool
	up      chan struct{} // closed when the first request has a connection, or none
	first   bool          // somebody makes it
}

// lineLocked is the line for a browser's address, with the session's mu held.
func (s *session) lineLocked(from netip.AddrPort) (*line, error) {
	l := s.lines[from.Addr()]
	if l == nil {
		if s.chain.Certificate == nil {
			return nil, gone()
		}
		l = s.newLineLocked(from)
		s.lines[from.Addr()] = l
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open++
	return l, nil
}

func (s *session) newLineLocked(from netip.AddrPort) *line {
	l := &line{session: s, browser: from, target: alpn.ServerName(string(sallyport.KindApp), s.app, s.server.Cluster), chain: s.chain, up: make(chan struct{})}
	l.ctx, l.cancel = context.WithCancelCause(s.may)
	l.pages = l.transport(alpn.HTTP2)
	l.pages.ForceAttemptHTTP2 = true
	l.pages.HTTP2 = &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout,
		MaxReceiveBufferPerStream: streamBuffer, MaxReceiveBufferPerConnection: connectionBuffer}
	l.sockets = l.transport(alpn.HTTP11)
	l.sockets.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{} // HTTP/1.1 only
	quiet := slog.NewLogLogger(s.server.log().Handler(), slog.LevelDebug)
	l.proxy = halfclose.Proxy(&httputil.ReverseProxy{
		Rewrite: l.rewrite, Transport: l, ModifyResponse: l.answer, ErrorHandler: l.broken, BufferPool: s.server, ErrorLog: quiet,
	})
	return l
}

func (l *line) transport(protocol string) *http.Transport {
	return &http.Transport{
		DialTLSContext:  func(ctx context.Context, _, _ string) (net.Conn, error) { return l.dial(ctx, protocol) },
		IdleConnTimeout: lineIdle, DisableCompression: true, MaxResponseHeaderBytes: maxHead, ExpectContinueTimeout: time.Second,
		ReadBufferSize: copyBuffer, WriteBufferSize: copyBuffer,
	}
}

// dial connects to the agent, with the session's certificate.
func (l *line) dial(ctx context.Context, protocol string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	return l.session.server.Dial(ctx, l.session.app, l.browser, &tls.Config{
		MinVersion: tls.VersionTLS13, ServerName: l.target, RootCAs: l.session.server.Roots(), NextProtos: []string{protocol},
		Certificates: []tls.Certificate{l.chain},
	})
}

// RoundTrip meets http.RoundTripper. A page asks for many things at once: while
// there is no connection yet one request makes it, and the others wait.
func (l *line) RoundTrip(r *http.Request) (*http.Response, error) {
	if isUpgrade(r.Header) {
		return l.sockets.RoundTrip(r)
	}
	if headSize(r) > maxHead {
		return nil, errHead
	}
	made, err := l.makes(r.Context())
	if err != nil {
		return nil, err
	}
	if made == nil {
		return l.pages.RoundTrip(r)
	}
	defer made()
	trace := &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { made() }}
	return l.pages.RoundTrip(r.WithContext(httptrace.WithClientTrace(r.Context(), trace)))
}

// errHead: no agent takes a head of that size, and net/http sends none such.
var errHead = errors.New("the head of the request is too large")

// headSize is what the head of a request counts in HTTP/2 (RFC 9113, section 6.5.2): 32
// bytes for each field are more than many a field has itself.
func headSize(r *http.Request) int {
	const field = 32
	n := 4*field + len(":method:scheme:authority:path") + len(r.Method) + len(r.URL.Scheme) + len(r.Host) + len(r.URL.RequestURI())
	for name, values := range r.Header {
		for _, v := range values {
			n += field + len(name) + len(v)
		}
	}
	return n
}

// makes waits for the first connection. Who is the first gets a function to call
// when it is there, or will not be.
func (l *line) makes(ctx context.Context) (made func(), err error) {
	l.mu.Lock()
	if !l.first {
		l.first = true
		l.mu.Unlock()
		return sync.OnceFunc(func() { close(l.up) }), nil
	}
	l.mu.Unlock()
	select {
	case <-l.up:
		return nil, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// serve carries one request.
func (l *line) serve(w http.ResponseWriter, r *http.Request) {
	if isUpgrade(r.Header) {
		switch {
		case !isWebSocket(r.Header):
			r.Header.Del("Upgrade") // h2c would make a tunnel of the connection
			r.Header.Del("Connection")
			r.Header.Del("Http2-Settings")
		case !ownOrigin(r):
			// WebSockets know no other protection against foreign pages (RFC 6455, section 10.2).
			tell(w, http.StatusForbidden, "a WebSocket is opened by a page of this very origin", "")
			return
		}
	}
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	told := make(chan struct{})
	stop := context.AfterFunc(l.ctx, func() {
		defer close(told)
		cancel(context.Cause(l.ctx))
		limit(w, overWithin, overWithin) // a browser that takes nothing, or sends nothing, does not hold it up
	})
	defer func() {
		if !stop() {
			<-told // the writer is ours no longer than this
		}
	}()
	r = r.WithContext(ctx)
	if r.Body != nil && r.Body != http.NoBody {
		r.Body = &upload{body{r.Body, l.session}}
	}
	out := &writer{ResponseWriter: w, line: l, ctx: ctx, last: chunked(r)}
	defer func() { out.drip.End() }()
	l.proxy.ServeHTTP(out, r)
}

// rewrite makes the request to the agent of the browser's. What the browser names
// in Connection is gone already, and so is what a proxy would say.
func (l *line) rewrite(r *httputil.ProxyRequest) {
	r.Out.URL.Scheme, r.Out.URL.Host, r.Out.Host = "https", l.target, r.In.Host
	r.Out.URL.RawQuery = r.In.URL.RawQuery // also where Go would not parse it
	r.Out.Trailer = nil
	app.CleanRequestCookies(r.Out.Header)
	if _, ok := r.Out.Header["User-Agent"]; !ok {
		r.Out.Header["User-Agent"] = nil // none, in place of Go's
	}
}

// answer makes the browser's answer of the agent's. An agent has done so too: the
// origins of other applications do not depend on that.
func (l *line) answer(r *http.Response) error {
	app.CleanResponse(r.Header)
	app.Bodiless(r)
	if r.StatusCode == http.StatusSwitchingProtocols {
		return nil
	}
	h := r.Header
	// Browsers that do not say what they ask for keep pages apart by these.
	h.Add("Content-Security-Policy", "frame-ancestors "+ancestors(h))
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	if len(h["Origin-Agent-Cluster"]) == 0 {
		h.Set("Origin-Agent-Cluster", "?1") // document.domain joins no origins
	}
	if media, _, _ := mime.ParseMediaType(h.Get("Content-Type")); media != "text/event-stream" {
		r.Body = &body{r.Body, l.session} // a stream of events goes on without anybody at the browser
	}
	return nil
}

// ancestors are the pages that may show an answer in a frame: of the same origin at most.
// Where there is a word on that in Content-Security-Policy, browsers pass over
// X-Frame-Options (HTML, section 7.4.1), so ours must not say less than that does.
func ancestors(h http.Header) string {
	for _, policy := range h["Content-Security-Policy"] {
		if strings.Contains(strings.ToLower(policy), "frame-ancestors") {
			return "'self'" // the application's own counts beside it
		}
	}
	for _, options := range h["X-Frame-Options"] {
		for option := range strings.SplitSeq(options, ",") {
			if strings.EqualFold(strings.Trim(option, " \t"), "deny") {
				return "'none'"
			}
		}
	}
	return "'self'"
}

// broken answers where the application does not.
func (l *line) broken(w http.ResponseWriter, r *http.Request, err error) {
	var p *sallyport.Problem
	var large *http.MaxBytesError
	switch {
	case errors.As(context.Cause(r.Context()), &p):
		tell(w, statusOf(p), p.Fact, p.Hint)
	case r.Context().Err() != nil:
		panic(http.ErrAbortHandler) // the browser is gone, or this process is
	case errors.As(err, &large):
		tell(w, http.StatusRequestEntityTooLarge, "the request is too large", "")
	case errors.Is(err, errHead):
		tell(w, http.StatusRequestHeaderFieldsTooLarge, "the head of the request is too large", "there may be too many cookies")
	case app.IsUnread(err):
		tell(w, http.StatusBadRequest, "the body of the request broke off, or cannot be read", "")
	case errors.As(err, &p):
		tell(w, statusOf(p), p.Fact, p.Hint)
	case errors.As(l.session.anew(r.Context(), l.browser.Addr()), &p):
		tell(w, statusOf(p), p.Fact, p.Hint) // the agent knew it first
	default:
		l.session.server.log().Info("no way to an application", "app", l.session.app, "error", err)
		tell(w, http.StatusBadGateway, "application "+l.session.app+" cannot be reached at the moment", "try again in a moment, or tell its owner")
	}
}

// leave ends a request.
func (l *line) leave() {
	l.mu.Lock()
	l.open--
	idle := l.retired && l.open == 0
	l.mu.Unlock()
	if idle {
		l.shut()
	}
}

// retire lets what runs end by itself; nothing new comes.
func (l *line) retire() {
	l.mu.Lock()
	l.retired = true
	idle := l.open == 0
	l.mu.Unlock()
	if idle {
		l.shut()
	}
}

func (l *line) shut() {
	l.cancel(nil)
	l.pages.CloseIdleConnections()
	l.sockets.CloseIdleConnections()
}

// body notes that something is under way.
type body struct {
	io.ReadCloser
	session *session
}

func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if n > 0 {
		b.session.touch()
	}
	return n, err
}

// upload is the body of a request.
type upload struct{ body }

func (u *upload) Read(p []byte) (int, error) {
	n, err := u.body.Read(p)
	return n, app.Unread(err)
}

// writer is the browser's side of a request.
type writer struct {
	http.ResponseWriter
	line *line
	ctx  context.Context // of the request
	last bool            // the connection ends with the answer
	drip *app.Drip       // nil before the head, and where there is none
}

// Unwrap is for http.ResponseController.
func (w *writer) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// WriteHeader takes out of a 1xx what line.answer takes out of the answer that
// follows, which gets no type that the application has not said.
func (w *writer) WriteHeader(code int) {
	if code < 200 && code != http.StatusSwitchingProtocols {
		app.CleanResponse(w.Header())
	} else {
		app.Untyped(w.Header())
	}
	if w.last && code >= 200 {
		w.Header().Set("Connection", "close") // hints have taken it out
	}
	w.ResponseWriter.WriteHeader(code)
	if code >= 200 && w.drip == nil {
		w.drip = w.line.session.server.drips.Begin(w.ResponseWriter, (*undripped)(w))
	}
}

// Write writes a piece of the answer.
func (w *writer) Write(p []byte) (int, error) {
	if w.drip != nil {
		return w.drip.Write(p)
	}
	return w.ResponseWriter.Write(p)
}

// FlushError is what http.ResponseController asks for: the answer is a stream.
func (w *writer) FlushError() error {
	if w.drip != nil {
		return w.drip.Flush()
	}
	return (*undripped)(w).FlushError()
}

// undripped is a writer beneath its Drip.
type undripped writer

func (w *undripped) FlushError() error {
	return http.NewResponseController(w.ResponseWriter).Flush()
}

// Hijack meets http.Hijacker: a WebSocket begins.
func (w *writer) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	if w.line.ctx.Err() != nil { // net/http has just taken the deadlines off
		_ = conn.SetDeadline(time.Now().Add(overWithin))
	}
	server := w.line.session.server
	server.upgraded.Add(1)
	return &upgraded{WebSocket: app.WebSocket{Conn: conn}, session: w.line.session, ctx: w.ctx, done: sync.OnceFunc(func() { server.upgraded.Add(-1) })}, rw, nil
}

// upgraded is the browser's side of a WebSocket.
type upgraded struct {
	app.WebSocket
	session *session
	ctx     context.Context // of its request
	done    func()
}

func (u *upgraded) Read(p []byte) (int, error) {
	n, err := u.WebSocket.Read(p)
	if n > 0 {
		u.session.touch()
	}
	return n, err
}

// Close ends it. A browser that has to go because this process does is told so;
// one whose session has ended is cut off.
func (u *upgraded) Close() error {
	var p *sallyport.Problem
	if why := context.Cause(u.ctx); why != nil && !errors.As(why, &p) {
		u.Restart()
	}
	err := u.WebSocket.Close()
	u.done()
	return err
}
