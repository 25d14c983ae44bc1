package client

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"

	"github.com/sallyport/sallyport/wire/sallyport/v1/sallyportv1connect"
)

const (
	maxWebRequest = 1 << 20

	// clientAddrHeader tells auth where a visitor comes from; auth believes it
	// from gateways only.
	clientAddrHeader = "Sallyport-Client-Addr"
)

// WebOrigin serves the cluster's web origin at a gateway: what visitors may
// reach before they log in goes on to auth, with the gateway's certificate and
// the visitor's address; nothing else does.
func WebOrigin(d *Dialer, log *slog.Logger) http.Handler {
	base, err := url.Parse(BaseURL)
	if err != nil {
		panic(err) // a constant
	}
	proxy := &httputil.ReverseProxy{
		Transport: d.HTTP(ProtocolAuth).Transport,
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(base)
			r.Out.Host = r.In.Host
			r.Out.Header.Set(clientAddrHeader, r.In.RemoteAddr)
		},
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			if !errors.Is(err, context.Canceled) {
				log.Warn("auth does not answer for the web origin", "error", err)
			}
			http.Error(w, "the control plane cannot be reached at the moment; sessions are not affected", http.StatusServiceUnavailable)
		},
	}
	public := "/" + sallyportv1connect.PublicServiceName + "/"
	return http.MaxBytesHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/" && !strings.HasPrefix(r.URL.Path, "/claim/") && !strings.HasPrefix(r.URL.Path, public) {
			http.NotFound(w, r)
			return
		}
		proxy.ServeHTTP(w, r)
	}), maxWebRequest)
}
