package dial

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/halfclose"
)

const (
	appHead     = 64 << 10
	appHeadTime = 20 * time.Second
	appIdle     = 90 * time.Second
	appSpares   = 32
	appFlush    = 50 * time.Millisecond // what an application says slowly waits for more
)

// AppProxy gives local programs, browsers among them, a port on the loopback
// that leads to a web application. Whoever reaches the port acts as the user, so
// pages of other sites must not: a request names this very machine, and comes from no
// other origin, unless a link is followed that leads here.
type AppProxy struct {
	// Listener accepts local programs. Serve closes it.
	Listener net.Listener

	// Dial connects to the application by http/1.1.
	Dial func(ctx context.Context) (net.Conn, error)

	// Host is the application's name, which its agent answers to.
	Host string

	Anywhere       bool         // clients may name this machine in any way
	MaxConnections int          // of local programs, and to the application; 0: DefaultMaxConnections
	Log            *slog.Logger // nil: none
}

// Serve carries requests until ctx is done, and returns nil then.
func (p *AppProxy) Serve(ctx context.Context) error {
	if p.Log == nil {
		p.Log = slog.New(slog.DiscardHandler)
	}
	listener := bound(p.Listener, p.MaxConnections)
	transport := &http.Transport{
		DialTLSContext:      func(ctx context.Context, _, _ string) (net.Conn, error) { return p.Dial(ctx) },
		MaxIdleConnsPerHost: appSpares, MaxConnsPerHost: cap(listener.slots), IdleConnTimeout: appIdle,
		DisableCompression: true, MaxResponseHeaderBytes: appHead, ExpectContinueTimeout: time.Second,
	}
	defer transport.CloseIdleConnections()
	quiet := slog.NewLogLogger(p.Log.Handler(), slog.LevelDebug)
	proxy := halfclose.Proxy(&httputil.ReverseProxy{Rewrite: p.rewrite, Transport: transport, ModifyResponse: p.answer, ErrorHandler: p.broken, FlushInterval: appFlush, ErrorLog: quiet})
	srv := &http.Server{
		Handler: p.guard(untyped(proxy)), ReadHeaderTimeout: appHeadTime, IdleTimeout: appIdle,
		MaxHeaderBytes: appHead, ErrorLog: quiet, BaseContext: func(net.Listener) context.Context { return ctx },
	}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	if err := srv.Serve(listener); ctx.Err() == nil && !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// untyped keeps net/http from guessing the type of an answer that says none: from
// its first bytes an upload would become a page of the application.
func untyped(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { next.ServeHTTP(asSaid{w}, r) })
}

// asSaid is a local program's side of a request.
type asSaid struct{ http.ResponseWriter }

// WriteHeader meets http.ResponseWriter.
func (w asSaid) WriteHeader(code int) {
	if h := w.Header(); code >= http.StatusOK && h["Content-Type"] == nil {
		h["Content-Type"] = nil // there, and empty: net/http adds none
	}
	w.ResponseWriter.WriteHeader(code)
}

// Unwrap is for http.ResponseController.
func (w asSaid) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// guard refuses what a page of another site can make a browser send.
func (p *AppProxy) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case !p.Anywhere && !local(r.Host):
			// A name that leads here for a moment (DNS rebinding).
			http.Error(w, "this port answers to 127.0.0.1 and localhost only", http.StatusMisdirectedRequest)
		case r.Method == http.MethodConnect:
			http.Error(w, "this is no proxy of that kind", http.StatusMethodNotAllowed)
		case r.Header.Get("Upgrade") != "" && !sameOrigin(r):
			// WebSockets know no other protection against foreign pages.
			http.Error(w, "a page of another site may not open this WebSocket", http.StatusForbidden)
		case foreign(r):
			// Nothing of it reaches the application, so its own CORS headers are never asked.
			http.Error(w, "a page of another site may lead here by a link, and do nothing else", http.StatusForbidden)
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// local says that a Host is one of this machine, with a port or without.
func local(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	ip := net.ParseIP(strings.Trim(host, "[]"))
	return strings.EqualFold(host, "localhost") || ip != nil && ip.IsLoopback()
}

// sameOrigin says that no browser sent this, or one from our own page.
func sameOrigin(r *http.Request) bool {
	o := r.Header.Get("Origin")
	return o == "" || strings.EqualFold(o, "http://"+r.Host)
}

// foreign says that a page of another origin makes the browser send this, and does
// more by it than to follow a link. Other ports of this machine are other origins.
//
// Sec-Fetch-Site is believed alone where there is one: a page cannot set it (Fetch
// Metadata, section 2).
func foreign(r *http.Request) bool {
	site := r.Header["Sec-Fetch-Site"]
	if len(site) == 0 {
		return !sameOrigin(r)
	}
	own := len(site) == 1 && (site[0] == "same-origin" || site[0] == "none") // none: by the user
	return !own && !navigates(r)
}

// navigates says that the answer becomes a page in a window of its own. Without a
// destination it is the application's own service worker that passes this on (Fetch:
// a copied request has none), which may be for a frame: frame-ancestors is in every answer.
func navigates(r *http.Request) bool {
	if r.Method != http.MethodGet && r.Method != http.MethodHead || r.Header.Get("Upgrade") != "" {
		return false
	}
	mode, dest := r.Header["Sec-Fetch-Mode"], r.Header["Sec-Fetch-Dest"]
	return len(mode) == 1 && mode[0] == "navigate" && len(dest) == 1 && (dest[0] == "document" || dest[0] == "empty")
}

func (p *AppProxy) rewrite(r *httputil.ProxyRequest) {
	r.Out.URL.Scheme, r.Out.URL.Host, r.Out.Host = "https", p.Host, p.Host
	r.Out = r.Out.WithContext(context.WithValue(r.Out.Context(), localHost{}, r.In.Host))
	here, there := "http://"+r.In.Host, "https://"+p.Host
	for _, name := range []string{"Origin", "Referer"} {
		if v := r.Out.Header.Get(name); v == here || strings.HasPrefix(v, here+"/") {
			r.Out.Header.Set(name, there+strings.TrimPrefix(v, here))
		}
	}
	for name := range r.Out.Header {
		// What agents read beside a request, the role at AWS for one, is not for those to
		// say who merely reach this port.
		if strings.HasPrefix(strings.ToLower(name), "sallyport-") {
			delete(r.Out.Header, name)
		}
	}
	if _, ok := r.Out.Header["User-Agent"]; !ok {
		r.Out.Header["User-Agent"] = nil
	}
}

// localHost is the key of the host that the local program named.
type localHost struct{}

// answer leads redirects to the application's name back to this port, and lets no page
// of another origin frame or embed what it carries, in browsers that do not say for what
// they ask either.
func (p *AppProxy) answer(r *http.Response) error {
	here, _ := r.Request.Context().Value(localHost{}).(string)
	for _, name := range []string{"Location", "Content-Location"} {
		u, err := url.Parse(r.Header.Get(name))
		if err == nil && u.Scheme == "https" && strings.EqualFold(u.Host, p.Host) {
			u.Scheme, u.Host = "http", here
			r.Header.Set(name, u.String())
		}
	}
	if r.StatusCode != http.StatusSwitchingProtocols {
		r.Header.Add("Content-Security-Policy", "frame-ancestors 'self'") // beside the application's own
		r.Header.Set("Cross-Origin-Resource-Policy", "same-origin")
	}
	return nil
}

// broken tells why the application is out of reach.
func (p *AppProxy) broken(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() != nil {
		panic(http.ErrAbortHandler)
	}
	p.Log.Warn("application cannot be reached", "error", err)
	text := "the application cannot be reached"
	var problem *sallyport.Problem
	if errors.As(err, &problem) {
		text = strings.TrimSpace(problem.Fact + "\n" + problem.Hint)
	}
	http.Error(w, text, http.StatusBadGateway)
}
