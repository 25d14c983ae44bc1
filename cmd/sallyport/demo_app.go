package main

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"
)

// whoami is the demo's web application: it shows who it thinks its visitor is,
// and what it is told besides, of which it believes nothing.
type whoami struct {
	server *http.Server
	tokens *visitorTokens
}

// whoamiName is what it is called.
const whoamiName = "whoami"

// serveWhoami takes the listener over. gateway is host:port of the cluster's
// origin, and roots are of its certificate.
func serveWhoami(l net.Listener, gateway string, roots *x509.CertPool, log *slog.Logger) *whoami {
	w := &whoami{tokens: &visitorTokens{keys: "https://" + gateway + "/.well-known/jwks.json", roots: roots, serverName: demoCluster,
		issuer: "https://" + demoCluster, audience: "https://" + whoamiName + "." + demoCluster}}
	w.server = &http.Server{Handler: http.HandlerFunc(w.show), ReadHeaderTimeout: 10 * time.Second, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug)}
	go w.server.Serve(l)
	return w
}

func (w *whoami) close() { w.server.Close() }

// show is plain text: what a visitor sent is never markup.
func (w *whoami) show(rw http.ResponseWriter, r *http.Request) {
	var b bytes.Buffer
	w.introduce(&b, r)
	fmt.Fprintf(&b, "\n%s %s\nHost: %s\n", r.Method, r.URL.RequestURI(), r.Host)
	for _, name := range slices.Sorted(maps.Keys(r.Header)) {
		for _, v := range r.Header[name] {
			if strings.HasSuffix(name, "-Jwt-Assertion") {
				v = fmt.Sprintf("(a token of %d letters; whoever has it is you, for five minutes)", len(v))
			}
			fmt.Fprintf(&b, "%s: %s\n", name, v)
		}
	}
	h := rw.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Security-Policy", "default-src 'none'")
	h.Set("Cache-Control", "no-store")
	rw.Write(b.Bytes())
}

// introduce says who the visitor is.
func (w *whoami) introduce(b *bytes.Buffer, r *http.Request) {
	c, err := w.tokens.visitor(r)
	if err != nil {
		fmt.Fprintf(b, "I do not know who you are: %v.\n", err)
		return
	}
	fmt.Fprintf(b, "You are %s.\n  roles: %s\n", c.User, strings.Join(c.Roles, ", "))
	for _, name := range slices.Sorted(maps.Keys(c.Traits)) {
		fmt.Fprintf(b, "  %s: %s\n", name, strings.Join(c.Traits[name], ", "))
	}
	fmt.Fprintf(b, "I know by a token that the cluster has signed for me alone; it is good until %s.\n", time.Unix(c.Expires, 0).UTC().Format(time.TimeOnly+" MST"))
}
