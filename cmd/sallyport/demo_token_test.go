package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"crypto/x509"
)

// tokenSigner is a cluster that signs, and publishes its key.
type tokenSigner struct {
	key    *ecdsa.PrivateKey
	server *httptest.Server
}

func newTokenSigner(t *testing.T) *tokenSigner {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s := &tokenSigner{key: key}
	s.server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		point, _ := key.PublicKey.Bytes() // P-256 has a form
		b64 := base64.RawURLEncoding
		fmt.Fprintf(w, `{"keys":[{"kty":"RSA","kid":"k"},{"crv":"P-256","kty":"EC","kid":"k","x":%q,"y":%q}]}`, b64.EncodeToString(point[1:33]), b64.EncodeToString(point[33:]))
	}))
	s.server.StartTLS()
	t.Cleanup(s.server.Close)
	return s
}

func (s *tokenSigner) sign(t *testing.T, head, body map[string]any) string {
	t.Helper()
	part := func(v any) string {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return base64.RawURLEncoding.EncodeToString(b)
	}
	text := part(head) + "." + part(body)
	sum := sha256.Sum256([]byte(text))
	r, v, err := ecdsa.Sign(rand.Reader, s.key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	signature := make([]byte, 64)
	r.FillBytes(signature[:32])
	v.FillBytes(signature[32:])
	return text + "." + base64.RawURLEncoding.EncodeToString(signature)
}

// TestA97_WhoamiToken: the demo's application believes a token that the cluster
// signed for it, while it is good, and nothing else.
func TestA97_WhoamiToken(t *testing.T) {
	s, other := newTokenSigner(t), newTokenSigner(t)
	pool := x509.NewCertPool()
	pool.AddCert(s.server.Certificate())
	const own = "https://whoami.localhost"
	now := time.Now()
	head := map[string]any{"alg": "ES256", "kid": "k"}
	with := func(changes map[string]any) map[string]any {
		out := map[string]any{"iss": "https://localhost", "aud": []string{own}, "exp": now.Add(time.Minute).Unix(), "nbf": now.Unix(), "username": "ann", "roles": []string{"access"}}
		for k, v := range changes {
			out[k] = v
		}
		return out
	}
	good := s.sign(t, head, with(nil))
	parts := strings.Split(good, ".")
	for name, tt := range map[string]struct {
		token string
		ok    bool
	}{
		"good":               {good, true},
		"for another":        {s.sign(t, head, with(map[string]any{"aud": []string{"https://bank.localhost"}})), false},
		"of another cluster": {s.sign(t, head, with(map[string]any{"iss": "https://evil.test"})), false},
		"over":               {s.sign(t, head, with(map[string]any{"exp": now.Add(-time.Hour).Unix()})), false},
		"not yet":            {s.sign(t, head, with(map[string]any{"nbf": now.Add(time.Hour).Unix()})), false},
		"by another key":     {other.sign(t, head, with(nil)), false},
		"by an unknown key":  {s.sign(t, map[string]any{"alg": "ES256", "kid": "x"}, with(nil)), false},
		"none":               {s.sign(t, map[string]any{"alg": "none", "kid": "k"}, with(nil)), false},
		"HS256":              {s.sign(t, map[string]any{"alg": "HS256", "kid": "k"}, with(nil)), false},
		"no signature":       {parts[0] + "." + parts[1] + ".", false},
		"another body":       {parts[0] + "." + strings.Split(s.sign(t, head, with(map[string]any{"username": "root"})), ".")[1] + "." + parts[2], false},
		"two parts":          {parts[0] + "." + parts[1], false},
		"not a token":        {"ann", false},
		"large":              {good + strings.Repeat("A", maxToken), false},
	} {
		v := &visitorTokens{keys: s.server.URL, roots: pool, issuer: "https://localhost", audience: own}
		// Its certificate names another host; what is tested here is the token.
		v.serverName = "example.com"
		c, err := v.verify(t.Context(), tt.token, now)
		if (err == nil) != tt.ok || tt.ok && c.User != "ann" || !tt.ok && c.User != "" {
			t.Errorf("%s: %+v, %v", name, c, err)
		}
	}
	w := &whoami{tokens: &visitorTokens{keys: s.server.URL, roots: pool, serverName: "example.com", issuer: "https://localhost", audience: own}}
	for token, want := range map[string]string{good: "You are ann.", "": "I do not know who you are", parts[0] + "." + parts[1] + ".": "I do not know who you are"} {
		r := httptest.NewRequest("GET", "/", nil)
		if token != "" {
			r.Header.Set(tokenHeader, token)
		}
		rec := httptest.NewRecorder()
		w.show(rec, r)
		if body := rec.Body.String(); !strings.Contains(body, want) || token != "" && strings.Contains(body, parts[1]) {
			t.Errorf("%s:\n%s", want, body)
		}
	}
}
