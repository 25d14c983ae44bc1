package ca

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/store"
)

// TokenTTL is the life of what an application is told about its visitor.
const TokenTTL = 5 * time.Minute

// tokens is the kind of the keys that sign tokens. It is no CA: nothing chains
// to it, and it signs no certificates.
const tokens Kind = "jwt"

// tokenRecord is how the keys stand in the store.
type tokenRecord struct {
	Version int      `json:"version"`
	Cluster string   `json:"cluster"`
	Keys    [][]byte `json:"keys"` // sealed PKCS #8, newest first
}

// tokenKey is one of them.
type tokenKey struct {
	key *ecdsa.PrivateKey
	set jsonKey
}

// jsonKey is the public half (RFC 7517; RFC 7518, section 6.2.1).
type jsonKey struct {
	Curve     string `json:"crv"`
	Type      string `json:"kty"`
	X         string `json:"x"`
	Y         string `json:"y"`
	Use       string `json:"use,omitempty"`
	Algorithm string `json:"alg,omitempty"`
	ID        string `json:"kid,omitempty"`
}

// openTokens reads the keys, and makes the first one: at the first start, or at
// the first of this version.
func openTokens(ctx context.Context, cfg Config) ([]tokenKey, error) {
	it, err := cfg.Store.Get(ctx, recordKey(tokens))
	if errors.Is(err, sallyport.ErrNotFound) {
		if err := createTokens(ctx, cfg); err != nil && !errors.Is(err, sallyport.ErrExists) {
			return nil, err
		}
		it, err = cfg.Store.Get(ctx, recordKey(tokens))
	}
	if err != nil {
		return nil, err
	}
	keys, err := readTokens(cfg, it.Value)
	if err != nil {
		return nil, &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: "the keys for tokens cannot be used: " + err.Error(), Hint: hintOf(err), Cause: err}
	}
	return keys, nil
}

func createTokens(ctx context.Context, cfg Config) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	sealed, err := sealKey(cfg.Sealer, tokens, "jwt", key)
	if err != nil {
		return err
	}
	value, err := json.Marshal(tokenRecord{Version: recordVersion, Cluster: cfg.Cluster, Keys: [][]byte{sealed}})
	if err != nil {
		return err
	}
	_, err = cfg.Store.Apply(ctx, store.Op{Key: recordKey(tokens), Value: value, Expect: store.Absent})
	return err
}

func readTokens(cfg Config, value []byte) ([]tokenKey, error) {
	var rec tokenRecord
	if err := json.Unmarshal(value, &rec); err != nil {
		return nil, err
	}
	if rec.Version != recordVersion || len(rec.Keys) == 0 || rec.Cluster != cfg.Cluster {
		return nil, fmt.Errorf("record of version %d and cluster %q with %d keys", rec.Version, rec.Cluster, len(rec.Keys))
	}
	var out []tokenKey
	for _, sealed := range rec.Keys {
		signer, err := openKey(cfg.Sealer, tokens, "jwt", sealed)
		if err != nil {
			return nil, err
		}
		key, ok := signer.(*ecdsa.PrivateKey)
		if !ok || key.Curve != elliptic.P256() {
			return nil, errors.New("not a key on P-256")
		}
		set, err := publicKey(&key.PublicKey)
		if err != nil {
			return nil, err
		}
		out = append(out, tokenKey{key, set})
	}
	return out, nil
}

// publicKey names the key by its thumbprint (RFC 7638: the members that are
// needed, in the order of their names).
func publicKey(pub *ecdsa.PublicKey) (jsonKey, error) {
	point, err := pub.Bytes() // 4, x, y (SEC 1, section 2.3.3)
	if err != nil {
		return jsonKey{}, err
	}
	k := jsonKey{Curve: "P-256", Type: "EC", X: base64url(point[1:33]), Y: base64url(point[33:])}
	b, err := json.Marshal(k)
	if err != nil {
		return jsonKey{}, err
	}
	sum := sha256.Sum256(b)
	k.Use, k.Algorithm, k.ID = "sig", "ES256", base64url(sum[:])
	return k, nil
}

// KeySet is what tokens are verified by, as JSON (RFC 7517, section 5).
func (k *Keys) KeySet() ([]byte, error) {
	set := struct {
		Keys []jsonKey `json:"keys"`
	}{}
	for _, t := range k.tokens {
		set.Keys = append(set.Keys, t.set)
	}
	return json.Marshal(set)
}

// claims are what a token says (RFC 7519, section 4.1, and Teleport's names).
type claims struct {
	Issuer    string              `json:"iss"`
	Subject   string              `json:"sub"`
	Audience  []string            `json:"aud"`
	Expires   int64               `json:"exp"`
	NotBefore int64               `json:"nbf"`
	Issued    int64               `json:"iat"`
	ID        string              `json:"jti"`
	User      string              `json:"username"`
	Roles     []string            `json:"roles"`
	Traits    map[string][]string `json:"traits"`
}

// IssueAppToken signs who a user is, for one application and nobody else. The
// token ends with the user's certificate at the latest.
func (k *Keys) IssueAppToken(id sallyport.Identity, app string) (token string, notAfter time.Time, err error) {
	now := k.now()
	notAfter = now.Add(TokenTTL)
	if !id.NotAfter.IsZero() && id.NotAfter.Before(notAfter) {
		notAfter = id.NotAfter
	}
	if id.Kind != sallyport.KindUser || id.Cluster != k.cluster || !now.Before(notAfter) {
		return "", time.Time{}, refused("a token names a user of this cluster whose certificate is good")
	}
	c := claims{
		Issuer: "https://" + k.cluster, Subject: id.Name, Audience: []string{AppAudience(app, k.cluster)},
		Expires: notAfter.Unix(), NotBefore: now.Add(-backdate).Unix(), Issued: now.Unix(), ID: rand.Text(),
		User: id.Name, Roles: id.Roles, Traits: id.Traits,
	}
	signed, err := k.tokens[0].sign(c)
	return signed, notAfter, err
}

// AppAudience is how an application finds itself in a token.
func AppAudience(app, cluster string) string { return "https://" + app + "." + cluster }

// sign writes a token in compact form (RFC 7515, section 3.1) with ES256 (RFC
// 7518, section 3.4).
func (t tokenKey) sign(c claims) (string, error) {
	head, err := json.Marshal(map[string]string{"alg": "ES256", "typ": "JWT", "kid": t.set.ID})
	if err != nil {
		return "", err
	}
	body, err := json.Marshal(c)
	if err != nil {
		return "", err
	}
	text := base64url(head) + "." + base64url(body)
	sum := sha256.Sum256([]byte(text))
	r, s, err := ecdsa.Sign(rand.Reader, t.key, sum[:])
	if err != nil {
		return "", err
	}
	signature := make([]byte, 64)
	r.FillBytes(signature[:32])
	s.FillBytes(signature[32:])
	return text + "." + base64url(signature), nil
}

func base64url(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }
