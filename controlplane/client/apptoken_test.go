package client

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
	"github.com/sallyport/sallyport/wire/sallyport/v1/sallyportv1connect"
)

// issuer is auth, as far as it gives tokens: each names whom it is for.
type issuer struct {
	sallyportv1connect.HostServiceClient
	mu    sync.Mutex
	asked int
	left  time.Duration // life of its tokens
	fails bool
	gate  chan struct{} // nil, or closed when it may answer
}

func (i *issuer) IssueAppToken(_ context.Context, req *connect.Request[sallyportv1.IssueAppTokenRequest]) (*connect.Response[sallyportv1.IssueAppTokenResponse], error) {
	if i.gate != nil {
		<-i.gate
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.asked++
	if i.fails {
		return nil, connect.NewError(connect.CodePermissionDenied, errors.New("locked"))
	}
	return connect.NewResponse(&sallyportv1.IssueAppTokenResponse{
		Token: req.Msg.GetApp() + " " + string(req.Msg.GetUserCertificate()), Expires: timestamppb.New(time.Now().Add(i.left)),
	}), nil
}

// TestA97_TokenOfEach: what is kept in memory is told to the application and about
// the certificate that it was made for, and to no other, and not when it is nearly over.
func TestA97_TokenOfEach(t *testing.T) {
	auth := &issuer{left: time.Hour}
	h := &Host{api: auth}
	ask := func(app, user string) string {
		t.Helper()
		got, err := h.AppToken(t.Context(), app, &x509.Certificate{Raw: []byte(user)})
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	for range 2 {
		for _, app := range []string{"wiki", "bank"} {
			for _, user := range []string{"ann", "bob"} {
				if got := ask(app, user); got != app+" "+user {
					t.Errorf("%s is told about %s: %q", app, user, got)
				}
			}
		}
	}
	if auth.asked != 4 {
		t.Errorf("auth was asked %d times about four", auth.asked)
	}
	auth.left = appTokenSpare // as good as over
	for range 2 {
		ask("wiki", "eve")
	}
	if auth.asked != 6 {
		t.Errorf("a token that is nearly over was given again: auth was asked %d times", auth.asked)
	}
	auth.fails = true
	for range 2 { // the second does not wait for auth
		if got, err := h.AppToken(t.Context(), "bank", &x509.Certificate{Raw: []byte("eve")}); err == nil || got != "" {
			t.Errorf("%q without one from auth", got)
		}
	}
}

// TestA97_TokensAskedForAtOnce: who waits together is told of his own application.
func TestA97_TokensAskedForAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		auth := &issuer{left: time.Hour, gate: make(chan struct{})}
		h := &Host{api: auth}
		var all sync.WaitGroup
		for i := range 16 {
			app, user := fmt.Sprint("app", i%4), fmt.Sprint("user", i/4%2)
			all.Go(func() {
				got, err := h.AppToken(t.Context(), app, &x509.Certificate{Raw: []byte(user)})
				if err != nil || got != app+" "+user {
					t.Errorf("%s is told about %s: %q, %v", app, user, got, err)
				}
			})
		}
		synctest.Wait() // all of them wait, for auth or for who asked first
		close(auth.gate)
		all.Wait()
		if auth.asked != 8 {
			t.Errorf("auth was asked %d times about eight", auth.asked)
		}
	})
}

// TestAppTokensAreBounded: whoever comes with many certificates takes no more memory.
func TestAppTokensAreBounded(t *testing.T) {
	var held appTokens
	good := time.Now().Add(time.Hour)
	for i := range 2*maxAppTokens + 1 {
		held.put(appVisitor{app: fmt.Sprint(i)}, appToken{until: good})
	}
	if n := len(held.held); n > maxAppTokens {
		t.Errorf("%d are held", n)
	}
}
