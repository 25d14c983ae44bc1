package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/cmd/internal/profile"
	"github.com/sallyport/sallyport/test/executable"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
	"github.com/sallyport/sallyport/wire/sallyport/v1/sallyportv1connect"
)

// publicAPI is auth as a program sees it that is not logged in.
type publicAPI struct {
	sallyportv1connect.PublicServiceClient
	mu       sync.Mutex
	finished []*sallyportv1.FinishLoginRequest
	polls    []*sallyportv1.PollDeviceLoginResponse // answered in this order; nil: auth is away
	polled   []time.Time
	begun    *sallyportv1.BeginDeviceLoginRequest
}

func (a *publicAPI) FinishLogin(_ context.Context, r *connect.Request[sallyportv1.FinishLoginRequest]) (*connect.Response[sallyportv1.LoginResponse], error) {
	a.mu.Lock()
	a.finished = append(a.finished, r.Msg)
	a.mu.Unlock()
	switch r.Msg.GetCode() {
	case "right":
		return connect.NewResponse(&sallyportv1.LoginResponse{User: "<alice>"}), nil
	case "away":
		return nil, connect.NewError(connect.CodeUnavailable, errors.New("auth is away"))
	}
	return nil, connect.NewError(connect.CodeUnauthenticated, errors.New("not good"))
}

func (a *publicAPI) BeginDeviceLogin(_ context.Context, r *connect.Request[sallyportv1.BeginDeviceLoginRequest]) (*connect.Response[sallyportv1.BeginDeviceLoginResponse], error) {
	a.begun = r.Msg
	return connect.NewResponse(&sallyportv1.BeginDeviceLoginResponse{DeviceCode: "device", UserCode: "BCDF-GHJK", VerificationPath: "/device",
		Expires: timestamppb.New(time.Now().Add(10 * time.Minute)), IntervalSeconds: 5}), nil
}

func (a *publicAPI) PollDeviceLogin(_ context.Context, r *connect.Request[sallyportv1.PollDeviceLoginRequest]) (*connect.Response[sallyportv1.PollDeviceLoginResponse], error) {
	a.polled = append(a.polled, time.Now())
	answer := &sallyportv1.PollDeviceLoginResponse{State: sallyportv1.PollDeviceLoginResponse_STATE_PENDING}
	if len(a.polls) > 0 {
		answer, a.polls = a.polls[0], a.polls[1:]
	}
	if answer == nil {
		return nil, connect.NewError(connect.CodeUnavailable, errors.New("auth is away"))
	}
	if r.Msg.GetDeviceCode() != "device" {
		return nil, connect.NewError(connect.CodeNotFound, errors.New("no such device"))
	}
	return connect.NewResponse(answer), nil
}

// TestReceiver: the callback takes what the page sends and nothing else, and a
// caught code is worth nothing without what stays here.
func TestReceiver(t *testing.T) {
	api := &publicAPI{}
	p := newProgram(t)
	k, err := newKeyPair()
	if err != nil {
		t.Fatal(err)
	}
	open := func() *receiver {
		t.Helper()
		l, err := (&loginCmd{}).listen(p, &web{api: api}, k)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(l.close)
		return l
	}
	l := open()
	q := l.query()
	if strings.Contains(q.Encode(), l.verifier) || q.Get("challenge") != hashOf([]byte(l.verifier)) || q.Get("port") != l.port || len(q.Get("keys")) != 43 {
		t.Errorf("the page is opened with %v", q)
	}
	hc := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	ask := func(l *receiver, method, path, host string) (int, string) {
		t.Helper()
		r, err := http.NewRequest(method, "http://127.0.0.1:"+l.port+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if host != "" {
			r.Host = host
		}
		resp, err := hc.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		if resp.StatusCode != 404 && (resp.Header.Get("Referrer-Policy") != "no-referrer" || resp.Header.Get("Cache-Control") != "no-store" || !strings.Contains(resp.Header.Get("Content-Security-Policy"), "default-src 'none'")) {
			t.Errorf("headers %v", resp.Header)
		}
		return resp.StatusCode, string(b)
	}
	good := "/callback?code=right&state=" + l.state
	for what, c := range map[string][3]string{
		"another page's guess": {"GET", "/callback?code=right&state=" + strings.Repeat("x", 43), ""}, "no state": {"GET", "/callback?code=right", ""}, "a form": {"POST", good, ""},
		"another path": {"GET", "/?" + strings.TrimPrefix(good, "/callback?"), ""}, "rebound name": {"GET", good, "evil.example:" + l.port}, "name for an address": {"GET", good, "localhost:" + l.port},
		"error without state": {"GET", "/callback?error=access_denied", ""},
	} {
		if code, _ := ask(l, c[0], c[1], c[2]); code != 404 {
			t.Errorf("%s: %d", what, code)
		}
	}
	if len(api.finished) > 0 || len(l.done) > 0 {
		t.Fatalf("taken: %v", api.finished)
	}
	if code, _ := ask(l, "GET", "/callback?code=wrong&state="+l.state, ""); code != 403 || len(l.done) > 0 {
		t.Errorf("a wrong code: %d", code)
	}
	if code, page := ask(l, "GET", good, ""); code != 200 || !strings.Contains(page, "logged in as &lt;alice&gt;") {
		t.Errorf("%d %s", code, page)
	}
	if r := <-l.done; r.err != nil || r.resp.GetUser() != "<alice>" {
		t.Errorf("%+v", r)
	}
	last := api.finished[len(api.finished)-1]
	if last.GetVerifier() != l.verifier || keysHash(last.GetTlsPublicKey(), last.GetSshPublicKey()) != q.Get("keys") {
		t.Errorf("redeemed with %v", last)
	}
	l = open()
	for range maxCallbacks {
		ask(l, "GET", "/callback?code=wrong&state="+l.state, "")
	}
	if code, _ := ask(l, "GET", "/callback?code=right&state="+l.state, ""); code != 404 {
		t.Errorf("after %d codes: %d", maxCallbacks, code)
	}
	l = open()
	if ask(l, "GET", "/callback?error=access_denied&state="+l.state, ""); !errors.Is((<-l.done).err, sallyport.ErrDenied) {
		t.Error("a refusal is none")
	}
	l = open()
	if ask(l, "GET", "/callback?code=away&state="+l.state, ""); !errors.Is((<-l.done).err, sallyport.ErrUnavailable) {
		t.Error("auth away is not told")
	}
}

// TestDeviceLogin: it asks as often as it may, and goes on while auth is away.
func TestDeviceLogin(t *testing.T) {
	state := func(s sallyportv1.PollDeviceLoginResponse_State) *sallyportv1.PollDeviceLoginResponse {
		return &sallyportv1.PollDeviceLoginResponse{State: s, Login: &sallyportv1.LoginResponse{User: "alice"}}
	}
	pending, slow := state(sallyportv1.PollDeviceLoginResponse_STATE_PENDING), state(sallyportv1.PollDeviceLoginResponse_STATE_SLOW_DOWN)
	done, denied := state(sallyportv1.PollDeviceLoginResponse_STATE_DONE), state(sallyportv1.PollDeviceLoginResponse_STATE_DENIED)
	for name, c := range map[string]struct {
		polls []*sallyportv1.PollDeviceLoginResponse
		want  error
		at    string // seconds of the polls
	}{
		"done":   {[]*sallyportv1.PollDeviceLoginResponse{pending, done}, nil, "[5 10]"},
		"slower": {[]*sallyportv1.PollDeviceLoginResponse{slow, pending, slow, done}, nil, "[5 15 25 40]"},
		"away":   {[]*sallyportv1.PollDeviceLoginResponse{nil, nil, done}, nil, "[5 10 15]"},
		"denied": {[]*sallyportv1.PollDeviceLoginResponse{denied}, sallyport.ErrDenied, "[5]"},
		"never":  {nil, sallyport.ErrUnauthorized, ""},
	} {
		synctest.Test(t, func(t *testing.T) {
			api, p := &publicAPI{polls: c.polls}, newProgram(t)
			p.ctx = t.Context()
			var said bytes.Buffer
			p.stderr = &said
			k, err := newKeyPair()
			if err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			m, err := (&loginCmd{}).viaDevice(p, &web{api: api}, profile.Profile{WebProxyAddr: "gw.example.com:443"}, k)
			if !errors.Is(err, c.want) || c.want == nil && m.GetUser() != "alice" {
				t.Errorf("%s: %v %v", name, m, err)
			}
			var at []int
			for _, p := range api.polled {
				at = append(at, int(p.Sub(began).Seconds()))
			}
			if c.at != "" && fmt.Sprint(at) != c.at {
				t.Errorf("%s: polled at %v, want %s", name, at, c.at)
			}
			if !strings.Contains(said.String(), "https://gw.example.com/device\n") || !strings.Contains(said.String(), "BCDF-GHJK") || strings.Contains(said.String(), "user_code=") {
				t.Errorf("%s: said %s", name, said.String())
			}
		})
	}
}

// TestCallback: the browser comes back to its own machine, whatever flags say.
func TestCallback(t *testing.T) {
	for _, c := range []struct{ bind, from, listen, port, fault string }{
		{"", "", "127.0.0.1:0", "", ""},
		{":3000", "", "127.0.0.1:3000", "", ""},
		{"127.0.0.1:0", "", "127.0.0.1:0", "", ""},
		{"0.0.0.0:3000", "127.0.0.1:4000", "0.0.0.0:3000", "4000", ""},
		{"0.0.0.0:3000", "http://localhost:4000", "0.0.0.0:3000", "4000", ""},
		{"", "127.0.0.1:4000", "", "", "--bind-addr"},
		{"3000", "", "", "", "not an address and a port"},
		{":3000", "evil.example:4000", "", "", "--auth=device"},
		{":3000", "4000", "", "", "not a port"},
	} {
		listen, port, err := callback(c.bind, c.from)
		if c.fault != "" {
			var p *sallyport.Problem
			if !errors.As(err, &p) || !strings.Contains(p.Fact+p.Hint, c.fault) {
				t.Errorf("%+v: %v", c, err)
			}
			continue
		}
		if err != nil || listen != c.listen || port != c.port {
			t.Errorf("%+v: %q %q %v", c, listen, port, err)
		}
	}
}

// TestWay: who says how is obeyed; scripts go on as they were.
func TestWay(t *testing.T) {
	clearEnv(t)
	bin := t.TempDir()
	if err := executable.Write(filepath.Join(bin, "xdg-open"), []byte("#!/bin/sh\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin)
	new, old := &sallyportv1.PingResponse{BrowserLogin: true}, &sallyportv1.PingResponse{}
	p := newProgram(t)
	p.stdin = os.Stdin // no terminal in tests
	if p.terminal() {
		t.Skip("standard input is a terminal")
	}
	for _, c := range []struct {
		auth string
		ping *sallyportv1.PingResponse
		want way
	}{{"", new, byPassword}, {"", old, byPassword}, {"local", new, byPassword}, {"browser", new, byBrowser}, {"device", new, byDevice}, {"local", old, byPassword}, {"browser", old, ""}, {"device", old, ""}} {
		p.Auth = c.auth
		if got, err := (&loginCmd{}).way(p, c.ping); got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%q: %q %v", c.auth, got, err)
		}
	}
	if runtime.GOOS == "darwin" {
		return // there is always a browser
	}
	for name, env := range map[string]map[string]string{
		"":                                   {"DISPLAY": "", "WAYLAND_DISPLAY": "", "SSH_CONNECTION": ""},
		filepath.Join(bin, "xdg-open"):       {"DISPLAY": ":0", "WAYLAND_DISPLAY": "", "SSH_CONNECTION": ""},
		filepath.Join(bin, "xdg-open") + " ": {"DISPLAY": "", "WAYLAND_DISPLAY": "wayland-0", "SSH_CONNECTION": ""},
		" ":                                  {"DISPLAY": ":10", "WAYLAND_DISPLAY": "", "SSH_CONNECTION": "192.0.2.1 1 192.0.2.2 22"},
	} {
		for k, v := range env {
			t.Setenv(k, v)
		}
		if got := opener(); got != strings.TrimSpace(name) {
			t.Errorf("%v: %q", env, got)
		}
	}
}
