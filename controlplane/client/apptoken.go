package client

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"sync"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sync/singleflight"

	"github.com/sallyport/sallyport"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
)

const (
	maxAppTokens    = 4096
	appTokenTimeout = 3 * time.Second // a request waits for it
	appTokenPause   = 5 * time.Second // after a failure nobody waits again
	appTokenSpare   = 2 * time.Minute // before its end a token is replaced
)

// appTokens holds what applications are told about their visitors, in memory:
// one token for each application and certificate.
type appTokens struct {
	group singleflight.Group

	mu   sync.Mutex
	held map[appVisitor]appToken
}

type appVisitor struct {
	app         string
	certificate [sha256.Size]byte
}

// appToken is a token, or with an error that there was none until the time of
// until.
type appToken struct {
	token string
	until time.Time
	err   error
}

// AppToken returns the token for an application about the holder of a user's
// certificate, from memory while it is good for two more minutes. Without auth
// there is none.
func (h *Host) AppToken(ctx context.Context, app string, user *x509.Certificate) (string, error) {
	key := appVisitor{app, sha256.Sum256(user.Raw)}
	if t, ok := h.tokens.get(key); ok {
		return t.token, t.err
	}
	c := h.tokens.group.DoChan(app+"\x00"+string(key.certificate[:]), func() (any, error) {
		// Not the first one's context: the others wait too.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), appTokenTimeout)
		defer cancel()
		t := h.fetchAppToken(ctx, app, user)
		h.tokens.put(key, t)
		return t.token, t.err
	})
	select {
	case <-ctx.Done():
		return "", ctx.Err()
	case r := <-c:
		return r.Val.(string), r.Err
	}
}

func (h *Host) fetchAppToken(ctx context.Context, app string, user *x509.Certificate) appToken {
	resp, err := h.api.IssueAppToken(ctx, connect.NewRequest(&sallyportv1.IssueAppTokenRequest{App: app, UserCertificate: user.Raw}))
	if err != nil {
		return appToken{err: problem(err), until: time.Now().Add(appTokenPause)}
	}
	ends := resp.Msg.GetExpires().AsTime()
	if resp.Msg.GetToken() == "" {
		return appToken{err: &sallyport.Problem{Kind: sallyport.ErrUnavailable, Fact: "auth gave no token"}, until: time.Now().Add(appTokenPause)}
	}
	return appToken{token: resp.Msg.GetToken(), until: ends.Add(-appTokenSpare)}
}

func (t *appTokens) get(key appVisitor) (appToken, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	held, ok := t.held[key]
	return held, ok && time.Now().Before(held.until)
}

// put keeps a token. When there are too many, those that have ended make room,
// and without such all do.
func (t *appTokens) put(key appVisitor, token appToken) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.held) >= maxAppTokens {
		now := time.Now()
		for k, held := range t.held {
			if now.After(held.until) {
				delete(t.held, k)
			}
		}
		if len(t.held) >= maxAppTokens {
			clear(t.held)
		}
	}
	if t.held == nil {
		t.held = map[appVisitor]appToken{}
	}
	t.held[key] = token
}
