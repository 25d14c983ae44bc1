package client

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"path"
	"strings"

	"connectrpc.com/connect"

	"github.com/sallyport/sallyport/wire/sallyport/v1/sallyportv1connect"
)

const (
	maxWebRequest = 64 << 10

	// clientAddrHeader tells auth where a visitor comes from; auth believes it
	// from gateways only.
	clientAddrHeader = "Sallyport-Client-Addr"

	// webCookie holds a web session; of all cookies auth gets this one alone.
	webCookie    = "__Host-sallyport-session"
	maxWebCookie = 256
)

// WebOrigin serves the cluster's web origin at a gateway: pages and the methods
// of visitors go on to auth, with the gateway's certificate, the visitor's
// address and the cookie of a web session; nothing else does.
//
// Invariant: every request that goes on carries the visitor's address. Auth
// takes one without it for the gateway's own.
func WebOrigin(d *Dialer, log *slog.Logger) http.Handler {
	base, err := url.Parse(BaseURL)
	if err != nil {
		panic(err) // a constant
	}
	proxy := &httputil.ReverseProxy{
		Transport: d.HTTP(ProtocolAuth).Transport,
		// Rewrite runs after what the visitor named in Connection is removed.
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(base)
			r.Out.Host = r.In.Host
			for _, h := range []string{"Cookie", "Authorization", "Upgrade", "Connection"} {
				r.Out.Header.Del(h)
			}
			for _, c := range r.In.CookiesNamed(webCookie) {
				if len(c.Value) <= maxWebCookie {
					r.Out.AddCookie(&http.Cookie{Name: webCookie, Value: c.Value})
				}
			}
			r.Out.Header[clientAddrHeader] = []string{r.In.RemoteAddr}
			r.Out.GetBody = r.In.GetBody
		},
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			var large *http.MaxBytesError
			if errors.As(err, &large) {
				http.Error(w, "the request is too large", http.StatusRequestEntityTooLarge)
				return
			}
			if !errors.Is(err, context.Canceled) {
				log.Debug("auth does not answer for the web origin", "error", err)
			}
			authAway(w, r)
		},
	}
	return http.MaxBytesHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor < 2 && len(r.TransferEncoding) > 0 {
			// There may have been a length too, which net/http forgets: then the
			// connection must end (RFC 9112, section 6.3). Browsers and sally send no chunks.
			w.Header().Set("Connection", "close")
		}
		if !public(r) {
			http.NotFound(w, r)
			return
		}
		if _, err := netip.ParseAddrPort(r.RemoteAddr); err != nil {
			http.Error(w, "where this request comes from is not known", http.StatusForbidden)
			return
		}
		if err := keepBody(r); err != nil {
			proxy.ErrorHandler(w, r, err)
			return
		}
		proxy.ServeHTTP(w, r)
	}), maxWebRequest)
}

// authAway answers for auth that does not: a call in the words of its protocol, with
// the hint, since "503" alone reads as if the gateway were away; a page in a sentence.
func authAway(w http.ResponseWriter, r *http.Request) {
	const fact = "the control plane behind this gateway does not answer"
	if call := connect.NewErrorWriter(); call.IsSupported(r) {
		e := connect.NewError(connect.CodeUnavailable, errors.New(fact))
		e.Meta().Set(HintHeader, waitForAuth)
		_ = call.Write(w, r, e) // who has gone away reads nothing
		return
	}
	http.Error(w, fact+"; "+waitForAuth, http.StatusServiceUnavailable)
}

// keepBody reads the body, which is short, so that the request can be sent once
// more: when auth changes from one process to the next.
func keepBody(r *http.Request) error {
	if r.Body == nil || r.Body == http.NoBody {
		return nil
	}
	body, err := io.ReadAll(r.Body) // at most maxWebRequest
	if err != nil {
		return err
	}
	r.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
	r.ContentLength, r.TransferEncoding = int64(len(body)), nil
	r.Body, err = r.GetBody()
	return err
}

// public says that a request is for a page or a method of visitors; who may see
// it is auth's to say. It judges the path as it was written: one that could be read in two ways (dots,
// doubled or encoded slashes) is for neither.
func public(r *http.Request) bool {
	p := r.URL.Path
	if r.URL.EscapedPath() != p || path.Clean(p) != p || r.URL.Opaque != "" {
		return false
	}
	if name, ok := strings.CutPrefix(p, "/"+sallyportv1connect.PublicServiceName+"/"); ok {
		return r.Method == http.MethodPost && oneSegment(name)
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead && r.Method != http.MethodPost {
		return false
	}
	if p == "/.well-known/jwks.json" {
		return r.Method != http.MethodPost
	}
	switch p {
	case "/", "/logout", "/sessions/end", "/cli", "/device", "/device/decide":
		return true
	}
	for _, prefix := range []string{"/claim/", "/login/", "/web/launch/"} {
		if rest, ok := strings.CutPrefix(p, prefix); ok {
			return oneSegment(rest)
		}
	}
	return false
}

// oneSegment takes what names of methods and tokens of links are made of.
func oneSegment(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return (r|0x20 < 'a' || r|0x20 > 'z') && (r < '0' || r > '9') && r != '-' && r != '_'
	})
}
