package ca

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport"
)

// unb64 reads base64url without padding.
func unb64(t *testing.T, s string) []byte {
	t.Helper()
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// verified checks a token as an application does: by the key set alone.
func verified(t *testing.T, set []byte, token string) (map[string]any, bool) {
	t.Helper()
	var keys struct{ Keys []map[string]string }
	if err := json.Unmarshal(set, &keys); err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		t.Fatalf("%d parts", len(parts))
	}
	var head map[string]string
	var body map[string]any
	if err := errors.Join(json.Unmarshal(unb64(t, parts[0]), &head), json.Unmarshal(unb64(t, parts[1]), &body)); err != nil {
		t.Fatal(err)
	}
	if head["alg"] != "ES256" || head["typ"] != "JWT" || head["kid"] == "" {
		t.Fatalf("head %v", head)
	}
	sum, sig := sha256.Sum256([]byte(parts[0]+"."+parts[1])), unb64(t, parts[2])
	for _, k := range keys.Keys {
		if k["kid"] != head["kid"] || k["kty"] != "EC" || k["crv"] != "P-256" || k["alg"] != "ES256" || k["use"] != "sig" || k["d"] != "" {
			continue
		}
		point := append(append([]byte{4}, unb64(t, k["x"])...), unb64(t, k["y"])...)
		pub, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), point)
		if err != nil {
			t.Fatal(err)
		}
		return body, len(sig) == 64 && ecdsa.Verify(pub, sum[:], new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:]))
	}
	return body, false
}

// TestA97_AppToken: for one application, for five minutes, verified by the key
// set.
func TestA97_AppToken(t *testing.T) {
	k := openKeys(t)
	set, err := k.KeySet()
	if err != nil || strings.Contains(string(set), `"d"`) {
		t.Fatalf("%s, %v", set, err)
	}
	id := alice()
	id.NotAfter = k.now().Add(time.Hour)
	token, ends, err := k.IssueAppToken(id, "grafana")
	if left := time.Until(ends); err != nil || left > 5*time.Minute || left < TokenTTL-time.Minute {
		t.Fatalf("%v until %s", err, ends)
	}
	c, ok := verified(t, set, token)
	if !ok {
		t.Fatal("the signature is not good")
	}
	if aud, _ := c["aud"].([]any); !slices.Equal(aud, []any{"https://grafana." + cluster}) || c["sub"] != id.Name || c["username"] != id.Name || c["iss"] != "https://"+cluster ||
		c["exp"] != float64(ends.Unix()) || c["jti"] == "" || c["nbf"] != c["iat"].(float64)-backdate.Seconds() {
		t.Errorf("claims %v", c)
	}
	if got := fmt.Sprint(c["roles"], c["traits"]); got != fmt.Sprint(id.Roles, id.Traits) {
		t.Errorf("roles and traits %s", got)
	}
	twin, _, err := k.IssueAppToken(id, "grafana")
	if err != nil {
		t.Fatal(err)
	}
	if o, _ := verified(t, set, twin); o["jti"] == c["jti"] {
		t.Errorf("two tokens have the one id %v", o["jti"])
	}
	other, _, err := k.IssueAppToken(id, "wiki")
	if err != nil {
		t.Fatal(err)
	}
	if o, _ := verified(t, set, other); o["jti"] == c["jti"] || o["aud"].([]any)[0] == c["aud"].([]any)[0] {
		t.Errorf("a token of another application says the same: %v", o)
	}
	parts, bent := strings.Split(token, "."), strings.Split(other, ".")
	if _, ok := verified(t, set, parts[0]+"."+bent[1]+"."+parts[2]); ok {
		t.Error("another token's claims pass with this signature")
	}
	id.NotAfter = k.now().Add(time.Minute)
	if _, ends, err := k.IssueAppToken(id, "grafana"); err != nil || !ends.Equal(id.NotAfter) {
		t.Errorf("a token outlives its user's certificate: %s, %v", ends, err)
	}
	for name, change := range map[string]func(*sallyport.Identity){
		"ended":           func(id *sallyport.Identity) { id.NotAfter = k.now() },
		"an agent":        func(id *sallyport.Identity) { id.Kind = sallyport.KindAgent },
		"another cluster": func(id *sallyport.Identity) { id.Cluster = "other.test" },
	} {
		id := alice()
		id.NotAfter = k.now().Add(time.Hour)
		change(&id)
		if _, _, err := k.IssueAppToken(id, "grafana"); err == nil {
			t.Errorf("%s got a token", name)
		}
	}
}
