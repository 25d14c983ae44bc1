package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	tokenHeader   = "Teleport-Jwt-Assertion"
	maxToken      = 32 << 10
	maxKeySet     = 64 << 10
	keySetAge     = 5 * time.Minute
	keySetTimeout = 5 * time.Second
	tokenSkew     = 30 * time.Second // between clocks
)

// visitorTokens is how an application finds out who its visitor is: it verifies
// the token by the keys that the cluster publishes, and believes nothing else.
type visitorTokens struct {
	keys       string         // address of the key set
	roots      *x509.CertPool // of the gateway's certificate
	serverName string         // in it
	issuer     string
	audience   string // this very application

	mu   sync.Mutex
	held map[string]*ecdsa.PublicKey // by key id
	got  time.Time
}

// tokenClaims is what a token says (RFC 7519, section 4.1).
type tokenClaims struct {
	Issuer    string              `json:"iss"`
	Audience  []string            `json:"aud"`
	Expires   int64               `json:"exp"`
	NotBefore int64               `json:"nbf"`
	User      string              `json:"username"`
	Roles     []string            `json:"roles"`
	Traits    map[string][]string `json:"traits"`
}

// visitor is who sent a request.
func (v *visitorTokens) visitor(r *http.Request) (tokenClaims, error) {
	tokens := r.Header[tokenHeader]
	if len(tokens) != 1 {
		return tokenClaims{}, errors.New("no token came with the request")
	}
	return v.verify(r.Context(), tokens[0], time.Now())
}

// verify takes a token in compact form (RFC 7515, section 3.1), signed by ES256
// (RFC 7518, section 3.4): whatever else its head may ask for is refused.
func (v *visitorTokens) verify(ctx context.Context, token string, now time.Time) (c tokenClaims, err error) {
	parts := strings.Split(token, ".")
	if len(token) > maxToken || len(parts) != 3 {
		return c, errors.New("that is no token")
	}
	var head struct {
		Algorithm string `json:"alg"`
		Key       string `json:"kid"`
	}
	if err := unpack(parts[0], &head); err != nil || head.Algorithm != "ES256" {
		return c, errors.New("the token is not signed by ES256")
	}
	key, err := v.key(ctx, head.Key)
	if err != nil {
		return c, err
	}
	signature, err := base64.RawURLEncoding.Strict().DecodeString(parts[2])
	if err != nil || len(signature) != 64 {
		return c, errors.New("the token has no signature")
	}
	sum := sha256.Sum256([]byte(parts[0] + "." + parts[1]))
	if !ecdsa.Verify(key, sum[:], new(big.Int).SetBytes(signature[:32]), new(big.Int).SetBytes(signature[32:])) {
		return c, errors.New("the token was not signed by this cluster")
	}
	if err := unpack(parts[1], &c); err != nil {
		return tokenClaims{}, errors.New("the token cannot be read")
	}
	switch {
	case c.Issuer != v.issuer || !slices.Contains(c.Audience, v.audience):
		return tokenClaims{}, errors.New("the token is for another application")
	case now.After(time.Unix(c.Expires, 0).Add(tokenSkew)) || now.Before(time.Unix(c.NotBefore, 0).Add(-tokenSkew)):
		return tokenClaims{}, errors.New("the token is not valid at this time")
	}
	return c, nil
}

func unpack(part string, into any) error {
	b, err := base64.RawURLEncoding.Strict().DecodeString(part)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, into)
}

// key is the one of an id. An id that is new makes it look again, but not at each
// request.
func (v *visitorTokens) key(ctx context.Context, id string) (*ecdsa.PublicKey, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if age := time.Since(v.got); age > keySetAge || v.held[id] == nil && age > time.Second {
		held, err := v.fetch(ctx)
		if err != nil {
			return nil, fmt.Errorf("the keys of the cluster cannot be read: %w", err)
		}
		v.held, v.got = held, time.Now()
	}
	if k := v.held[id]; k != nil {
		return k, nil
	}
	return nil, errors.New("the token was signed by a key that the cluster does not publish")
}

// fetch reads the key set (RFC 7517, section 5).
func (v *visitorTokens) fetch(ctx context.Context) (map[string]*ecdsa.PublicKey, error) {
	ctx, cancel := context.WithTimeout(ctx, keySetTimeout)
	defer cancel()
	t := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: v.roots, ServerName: v.serverName, MinVersion: tls.VersionTLS13}, DisableKeepAlives: true}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, v.keys, nil)
	if err != nil {
		return nil, err
	}
	resp, err := t.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var set struct {
		Keys []struct {
			Curve string `json:"crv"`
			X     string `json:"x"`
			Y     string `json:"y"`
			ID    string `json:"kid"`
		} `json:"keys"`
	}
	if resp.StatusCode != http.StatusOK {
		return nil, errors.New(resp.Status)
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxKeySet)).Decode(&set); err != nil {
		return nil, err
	}
	out := map[string]*ecdsa.PublicKey{}
	for _, k := range set.Keys {
		if k.Curve != "P-256" {
			continue
		}
		point, err := base64.RawURLEncoding.DecodeString(k.X)
		if err != nil {
			return nil, err
		}
		y, err := base64.RawURLEncoding.DecodeString(k.Y)
		if err != nil {
			return nil, err
		}
		// SEC 1, section 2.3.4: uncompressed.
		if out[k.ID], err = ecdsa.ParseUncompressedPublicKey(elliptic.P256(), append(append([]byte{4}, point...), y...)); err != nil {
			return nil, err
		}
	}
	return out, nil
}
