package main

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/webapp"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
	"github.com/sallyport/sallyport/wire/sallyport/v1/sallyportv1connect"
)

// TestA71_OnlyOwn: the cluster's origin serves no request for an application.
func TestA71_OnlyOwn(t *testing.T) {
	h := onlyOwn("gw.test", http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	for host, want := range map[string]int{"gw.test": 200, "gw.test:8443": 200, "127.0.0.1:8443": 200, "[::1]:8443": 200,
		"wiki.gw.test": 421, "WIKI.GW.TEST:8443": 421, "a.b.gw.test": 421, "wiki.gw.test.": 421, "wiki.gw.test.:8443": 421, "gw.test.": 200, "notgw.test": 200} {
		r := httptest.NewRequest("GET", "/", nil)
		r.Host = host
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != want {
			t.Errorf("%s: %d, want %d", host, w.Code, want)
		}
	}
}

// fakeDesk is auth's side.
type fakeDesk struct {
	sallyportv1connect.UnimplementedHostServiceHandler
	got  *sallyportv1.RenewAppSessionRequest
	resp *sallyportv1.AppSessionResponse
	err  error
}

func (f *fakeDesk) RenewAppSession(_ context.Context, r *connect.Request[sallyportv1.RenewAppSessionRequest]) (*connect.Response[sallyportv1.AppSessionResponse], error) {
	f.got = r.Msg
	return connect.NewResponse(f.resp), f.err
}

// TestDesk: what auth says of a session arrives as it was meant.
func TestDesk(t *testing.T) {
	f := &fakeDesk{}
	_, h := sallyportv1connect.NewHostServiceHandler(f)
	s := httptest.NewServer(h)
	defer s.Close()
	d := desk{sallyportv1connect.NewHostServiceClient(s.Client(), s.URL)}
	q := webapp.Question{Session: "s", App: "wiki", Key: []byte("k"), Client: netip.MustParseAddr("192.0.2.1"), Quiet: true}
	ends := time.Now().Add(time.Minute)
	f.resp = &sallyportv1.AppSessionResponse{User: "ann", Roles: []string{"access"}, Traits: map[string]*sallyportv1.StringList{"logins": {Values: []string{"root"}}},
		TlsCertificate: []byte("c"), Expires: timestamppb.New(ends)}
	g, err := d.Renew(t.Context(), q)
	if err != nil || g.User != "ann" || len(g.Roles) != 1 || len(g.Traits["logins"]) != 1 || string(g.Certificate) != "c" || !g.Expires.Equal(ends) {
		t.Errorf("%+v, %v", g, err)
	}
	if f.got.GetSession() != "s" || f.got.GetApp() != "wiki" || string(f.got.GetTlsPublicKey()) != "k" || f.got.GetClientAddr() != "192.0.2.1" || !f.got.GetQuiet() {
		t.Errorf("asked %v", f.got)
	}
	f.resp = &sallyportv1.AppSessionResponse{TlsCertificate: []byte("c")}
	if _, err := d.Renew(t.Context(), q); err == nil {
		t.Error("a certificate without an end is taken")
	}
	for code, kind := range map[connect.Code]error{connect.CodeUnauthenticated: sallyport.ErrUnauthorized, connect.CodePermissionDenied: sallyport.ErrDenied,
		connect.CodeNotFound: sallyport.ErrNotFound, connect.CodeUnavailable: sallyport.ErrUnavailable} {
		f.err = connect.NewError(code, errors.New("no"))
		if _, err := d.Renew(t.Context(), q); !errors.Is(err, kind) {
			t.Errorf("%v: %v", code, err)
		}
	}
}
