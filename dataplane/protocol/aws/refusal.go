package aws

import (
	"context"
	"errors"
	"net/http"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/sigv4"
)

// refuse tells why there is no session, or no credentials.
func refuse(w http.ResponseWriter, r *http.Request, q *ask, err error) {
	f := sigv4.Fault{Status: http.StatusServiceUnavailable, Code: sigv4.Unavailable, Message: "the request cannot be served at the moment", Service: q.service}
	var p *sallyport.Problem
	if errors.As(err, &p) {
		f.Message = p.Fact
		if p.Hint != "" {
			f.Message += " (" + p.Hint + ")"
		}
		// Clients try 5xx again, and again; these will not change.
		if errors.Is(err, sallyport.ErrDenied) || errors.Is(err, sallyport.ErrStaleSnapshot) {
			f.Status, f.Code = http.StatusForbidden, sigv4.AccessDenied
		}
	}
	sigv4.Tell(w, r, f)
}

// refuseBrowser answers a page's request: a browser signs nothing.
func refuseBrowser(w http.ResponseWriter) {
	h := w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusForbidden)
	_, _ = w.Write([]byte("403 Forbidden\n\nthis application is for programs: sally aws, or sally proxy aws\n")) // a client that is gone reads nothing
}

// broken answers for AWS when it does not.
func (v *visit) broken(w http.ResponseWriter, r *http.Request, err error) {
	q := r.Context().Value(askKey{}).(*ask)
	var why *sallyport.Problem
	switch {
	case errors.As(context.Cause(v.session.Context), &why):
		refuse(w, r, q, why)
		return
	case r.Context().Err() != nil:
		panic(http.ErrAbortHandler) // the client is gone
	case errors.As(err, &why):
		refuse(w, r, q, why)
		return
	}
	v.server.log().Warn("AWS does not answer", "session", v.session.ID, "resource", v.candidate.Resource.Name, "host", q.endpoint.host, "error", err)
	sigv4.Tell(w, r, sigv4.Fault{Status: http.StatusBadGateway, Code: sigv4.Unavailable, Service: q.service,
		Message: "the endpoint of " + q.service + " cannot be reached by the agent of " + v.candidate.Resource.Name})
}
