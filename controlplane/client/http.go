package client

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
)

//lint:file-ignore SA1019 net/http's own Transport takes a TLS connection for HTTP/2 by the protocol id h2 alone; ours are sallyport-auth/1 and sallyport-join/1

// HTTP returns a client that speaks HTTP/2 to auth by the given protocol id,
// whatever host its requests name. Use BaseURL for that.
func (d *Dialer) HTTP(protocol string) *http.Client {
	return &http.Client{Transport: Again(&http2.Transport{
		DialTLSContext: func(ctx context.Context, _, _ string, _ *tls.Config) (net.Conn, error) {
			return d.Dial(ctx, protocol)
		},
		ReadIdleTimeout:    pingAfter,
		PingTimeout:        pingTimeout,
		DisableCompression: true,
	})}
}

// AgainHeader is on an answer that says: this request was not looked at, and
// another process serves by now.
const AgainHeader = "Sallyport-Again"

const (
	againMost = 5                      // attempts
	againWait = 100 * time.Millisecond // from the second on
)

// Again repeats requests that met auth's change from one process to the next:
// those that were not sent whole, because the connection had ended just then,
// and those that were answered by AgainHeader. Nothing is done twice by that.
// What was sent on a connection that said GOAWAY, HTTP/2 repeats itself.
func Again(next Transport) http.RoundTripper { return &again{next} }

// Transport is what *http.Transport and *http2.Transport have in common.
type Transport interface {
	http.RoundTripper
	CloseIdleConnections()
}

type again struct{ Transport }

// RoundTrip meets http.RoundTripper.
func (a *again) RoundTrip(req *http.Request) (*http.Response, error) {
	body := req.Body
	for n := 1; ; n++ {
		var unsent atomic.Bool // there was a connection, and the request's end did not go out on it
		r := req.WithContext(httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{
			GotConn:      func(httptrace.GotConnInfo) { unsent.Store(true) },
			WroteRequest: func(w httptrace.WroteRequestInfo) { unsent.Store(w.Err != nil) },
		}))
		r.Body = body
		resp, err := a.Transport.RoundTrip(r)
		if !(err != nil && unsent.Load() || err == nil && sentAway(resp)) || n == againMost {
			return resp, err
		}
		var ok bool
		if body, ok = rewound(req); !ok {
			return resp, err
		}
		if resp != nil {
			resp.Body.Close()
			a.CloseIdleConnections() // to the process that has left: they end any moment, with what is sent on them
		}
		if n > 1 && sleepUntil(req.Context(), time.Now().Add(jitter(againWait))) != nil {
			return nil, req.Context().Err()
		}
	}
}

// sentAway says that the other end did not look at the request.
func sentAway(resp *http.Response) bool {
	return resp.StatusCode == http.StatusServiceUnavailable && resp.Header.Get(AgainHeader) != ""
}

// rewound is the request's body once more, when there is a way to it.
func rewound(req *http.Request) (io.ReadCloser, bool) {
	if req.Body == nil || req.Body == http.NoBody {
		return req.Body, true
	}
	if req.GetBody == nil {
		return nil, false
	}
	body, err := req.GetBody()
	return body, err == nil
}

// BaseURL is the base of every call by Dialer.HTTP: the name is never resolved.
const BaseURL = "https://auth.sallyport.internal"
