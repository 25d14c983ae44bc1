package main

import (
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/client"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
	"github.com/sallyport/sallyport/wire/sallyport/v1/sallyportv1connect"
)

// TestNoAuth: sallyctl on a host without auth said "503 Service Unavailable".
func TestNoAuth(t *testing.T) {
	for role, fact := range map[string]string{"gateway": "no role auth", "auth": "not up yet"} {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { noAuth(w, r, &config{Roles: []string{role}}) }))
		defer s.Close()
		_, err := sallyportv1connect.NewAdminServiceClient(http.DefaultClient, s.URL).GetStatus(t.Context(), connect.NewRequest(&sallyportv1.GetStatusRequest{}))
		var p *sallyport.Problem
		if !errors.As(client.Problem(err), &p) || !errors.Is(p, sallyport.ErrUnavailable) || !strings.Contains(p.Fact, fact) || p.Hint == "" {
			t.Errorf("%s: %#v", role, err)
		}
		resp, err := http.Get(s.URL + "/nothing")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusServiceUnavailable {
			t.Errorf("%s: %s", role, resp.Status)
		}
	}
	http.DefaultClient.CloseIdleConnections()
}

// TestStatusRefusal: a host that refused what auth said showed an old contact and
// not a word about why.
func TestStatusRefusal(t *testing.T) {
	k, err := client.NewKeeper(t.TempDir(), "gw.test", nil, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if contact, stale := heard(k); !contact.IsZero() || stale != "" {
		t.Errorf("before anything was heard: %v, %q", contact, stale)
	}
	err = k.Take(&sallyportv1.Signed{})
	if err == nil {
		t.Fatal("an empty snapshot was taken")
	}
	_, stale := heard(k)
	if !strings.Contains(stale, err.Error()) {
		t.Errorf("shown is %q, refused was %v", stale, err)
	}
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.Local)
	for _, s := range []nodeStatus{
		{Gateway: &gatewayStatus{Contact: &at, Stale: stale}},
		{Agent: &agentStatus{Contact: at, Stale: stale}},
	} {
		var out strings.Builder
		if err := s.print(&out); err != nil || !strings.Contains(out.String(), "last contact 2026-01-02 03:04:05; REFUSED: "+stale+"\n") {
			t.Errorf("%v: %s", err, &out)
		}
	}
	var out strings.Builder
	s := nodeStatus{Agent: &agentStatus{}}
	if err := s.print(&out); err != nil || !strings.Contains(out.String(), "no contact yet\n") {
		t.Errorf("%v: %s", err, &out)
	}
}

// TestStatusServersDown: a person sees which servers of static routes are not well,
// and why.
func TestStatusServersDown(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.Local)
	s := nodeStatus{Gateway: &gatewayStatus{Down: []downServer{{Address: "10.0.0.1:443", Failed: &at}, {Address: "db:443", Unresolved: true}, {Address: "x:443", Failed: &at, Unresolved: true}}}}
	var out strings.Builder
	if err := s.print(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"  server          DOWN: 10.0.0.1:443: the last connection failed, at 2026-01-02 03:04:05\n",
		"  server          DOWN: db:443: its name is not resolved\n",
		"  server          DOWN: x:443: its name is not resolved; the last connection failed, at 2026-01-02 03:04:05\n",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, &out)
		}
	}
	for range 2 * routesShown {
		s.Gateway.Down = append(s.Gateway.Down, downServer{Address: "y:443", Unresolved: true})
	}
	out.Reset()
	if err := s.print(&out); err != nil || !strings.Contains(out.String(), "23 more DOWN") {
		t.Errorf("%v\n%s", err, &out)
	}
}
