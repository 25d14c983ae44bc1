package app

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"

	"github.com/sallyport/sallyport"
)

// tell answers with a plain page of ours: what, and the next step. It is text, so
// nothing in it can be taken for markup.
func tell(w http.ResponseWriter, status int, fact, hint string) {
	h := w.Header()
	clear(h) // of what an application may have begun to say
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	h.Set("Cache-Control", "no-store")
	if status < http.StatusInternalServerError || status == http.StatusHTTPVersionNotSupported || status == http.StatusServiceUnavailable {
		// The next request may fare better on another connection: this one has
		// no session, and asks for none again. What follows a message that was
		// not understood is not read.
		h.Set("Connection", "close")
	}
	w.WriteHeader(status)
	text := fmt.Sprintf("%d %s\n\n%s\n", status, http.StatusText(status), fact)
	if hint != "" {
		text += hint + "\n"
	}
	_, _ = w.Write([]byte(text)) // a client that is gone reads nothing
}

// refuse tells why there is no session.
func refuse(w http.ResponseWriter, err error) {
	var p *sallyport.Problem
	if !errors.As(err, &p) {
		tell(w, http.StatusServiceUnavailable, "the request cannot be served at the moment", "")
		return
	}
	status := http.StatusServiceUnavailable
	switch {
	case errors.Is(err, sallyport.ErrDenied), errors.Is(err, sallyport.ErrStaleSnapshot):
		status = http.StatusForbidden
	case errors.Is(err, sallyport.ErrExhausted):
		status = http.StatusTooManyRequests
	}
	tell(w, status, p.Fact, p.Hint)
}

// broken answers for an application that does not.
func (v *visit) broken(w http.ResponseWriter, r *http.Request, err error) {
	var why *sallyport.Problem
	var large *http.MaxBytesError
	switch {
	case errors.As(context.Cause(v.session.Context), &why):
		refuse(w, why)
		return
	case r.Context().Err() != nil:
		panic(http.ErrAbortHandler) // the client is gone
	case errors.As(err, &large):
		tell(w, http.StatusRequestEntityTooLarge, "the request is too large", "")
		return
	case IsUnread(err):
		tell(w, http.StatusBadRequest, "the body of the request broke off, or cannot be read", "")
		return
	}
	if errors.Is(err, errAnswerHead) {
		v.server.log().Warn("application's answer refused", "session", v.session.ID, "resource", v.candidate.Resource.Name, "error", err)
		tell(w, http.StatusBadGateway, "application "+v.candidate.Resource.Name+": "+err.Error()+": "+strconv.Itoa(maxAnswerHead)+" bytes at most, with 32 more for each field", "tell its owner")
		return
	}
	v.server.log().Warn("application does not answer", "session", v.session.ID, "resource", v.candidate.Resource.Name, "error", err)
	status := http.StatusBadGateway
	var slow interface{ Timeout() bool }
	if errors.As(err, &slow) && slow.Timeout() {
		status = http.StatusGatewayTimeout
	}
	tell(w, status, "application "+v.candidate.Resource.Name+" does not answer", "check that it runs, or tell its owner")
}
