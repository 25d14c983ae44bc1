package client

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptrace"
	"strings"
	"syscall"
	"testing"
)

// fakeTransport meets each request with the next of its ways.
type fakeTransport struct {
	ways  []func(*httptrace.ClientTrace) (*http.Response, error)
	heard []string // bodies
	idle  int      // times that idle connections were closed
}

func (f *fakeTransport) CloseIdleConnections() { f.idle++ }

func (f *fakeTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	b, _ := io.ReadAll(r.Body)
	f.heard = append(f.heard, string(b))
	way := f.ways[0]
	if len(f.ways) > 1 {
		f.ways = f.ways[1:]
	}
	return way(httptrace.ContextClientTrace(r.Context()))
}

// TestAgain: what was not sent whole is sent again, and nothing else.
func TestAgain(t *testing.T) {
	type way = func(*httptrace.ClientTrace) (*http.Response, error)
	unreached := func(*httptrace.ClientTrace) (*http.Response, error) { return nil, syscall.ECONNREFUSED }
	broken := func(tr *httptrace.ClientTrace) (*http.Response, error) {
		tr.GotConn(httptrace.GotConnInfo{})
		tr.WroteRequest(httptrace.WroteRequestInfo{Err: syscall.EPIPE})
		return nil, syscall.EPIPE
	}
	headless := func(tr *httptrace.ClientTrace) (*http.Response, error) {
		tr.GotConn(httptrace.GotConnInfo{})
		return nil, syscall.EPIPE
	}
	unanswered := func(tr *httptrace.ClientTrace) (*http.Response, error) {
		tr.GotConn(httptrace.GotConnInfo{})
		tr.WroteRequest(httptrace.WroteRequestInfo{})
		return nil, io.ErrUnexpectedEOF
	}
	answer := func(status int, header http.Header) way {
		return func(tr *httptrace.ClientTrace) (*http.Response, error) {
			tr.GotConn(httptrace.GotConnInfo{})
			tr.WroteRequest(httptrace.WroteRequestInfo{})
			return &http.Response{StatusCode: status, Header: header, Body: http.NoBody}, nil
		}
	}
	ok, away := answer(200, nil), answer(503, http.Header{AgainHeader: {"1"}})
	for _, c := range []struct {
		what  string
		ways  []way
		tries int
		err   error
	}{
		{"served", []way{ok}, 1, nil},
		{"broken while it was sent", []way{broken, ok}, 2, nil},
		{"broken with the headers", []way{headless, ok}, 2, nil},
		{"sent away", []way{away, ok}, 2, nil},
		{"sent, and no answer", []way{unanswered, ok}, 1, io.ErrUnexpectedEOF},
		{"busy", []way{answer(503, nil), ok}, 1, nil},
		{"never reached", []way{unreached}, 1, syscall.ECONNREFUSED},
		{"always broken", []way{broken}, againMost, syscall.EPIPE},
	} {
		t.Run(c.what, func(t *testing.T) {
			f := &fakeTransport{ways: c.ways}
			req, err := http.NewRequestWithContext(t.Context(), "POST", "http://auth/", strings.NewReader("body"))
			if err != nil {
				t.Fatal(err)
			}
			resp, err := Again(f).RoundTrip(req)
			if resp != nil {
				resp.Body.Close()
			}
			if !errors.Is(err, c.err) || len(f.heard) != c.tries {
				t.Errorf("%d tries, %v; want %d, %v", len(f.heard), err, c.tries, c.err)
			}
			if sentAway := c.what == "sent away"; sentAway != (f.idle == 1) {
				t.Errorf("idle connections were closed %d times", f.idle) // to where nobody serves any more
			}
			for _, b := range f.heard {
				if b != "body" {
					t.Errorf("sent %q", b)
				}
			}
		})
	}
}
