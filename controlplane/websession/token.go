package websession

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"strings"
)

const (
	ownerSize  = 8
	idSize     = 16
	secretSize = 32

	// CodeSize is the length of codes, challenges and verifiers as text.
	CodeSize = 43
)

var b64 = base64.RawURLEncoding.Strict()

// token is the parsed value of a cookie, of the cluster's origin or of an
// application's.
type token struct {
	owner  [ownerSize]byte // of the user's name
	id     [idSize]byte
	secret [secretSize]byte
}

// parseToken takes exactly what String writes.
func parseToken(s string) (t token, ok bool) {
	if len(s) != b64.EncodedLen(ownerSize+idSize+secretSize) {
		return token{}, false
	}
	b, err := b64.DecodeString(s)
	if err != nil || len(b) != ownerSize+idSize+secretSize {
		return token{}, false
	}
	n := copy(t.owner[:], b)
	n += copy(t.id[:], b[n:])
	copy(t.secret[:], b[n:])
	return t, true
}

func (t token) String() string {
	b := append(append(append([]byte(nil), t.owner[:]...), t.id[:]...), t.secret[:]...)
	return b64.EncodeToString(b)
}

func (t token) key() string { return sessionKey(t.owner, hex.EncodeToString(t.id[:])) }

func ownerOf(user string) (out [ownerSize]byte) {
	sum := sha256.Sum256([]byte("sallyport-web-user\x00" + strings.ToLower(user)))
	copy(out[:], sum[:])
	return out
}

func ownerPrefix(owner [ownerSize]byte) string {
	return "websessions/" + hex.EncodeToString(owner[:])
}

func sessionKey(owner [ownerSize]byte, id string) string { return ownerPrefix(owner) + "/" + id }

// validID takes what is in the list of sessions: it becomes part of a key.
func validID(id string) bool {
	b, err := hex.DecodeString(id)
	return err == nil && len(b) == idSize && hex.EncodeToString(b) == id
}

// hashed is how a secret stands in the store.
func hashed(purpose, secret string) string {
	sum := sha256.Sum256([]byte("sallyport-web-" + purpose + "\x00" + secret))
	return hex.EncodeToString(sum[:])
}

func same(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }

// newCode is 32 random bytes as text.
func newCode() string {
	var b [secretSize]byte
	rand.Read(b[:])
	return b64.EncodeToString(b[:])
}

// ValidCode says that s has the form of a code, a challenge or a verifier: 32
// bytes as base64url. RFC 7636, section 4.1, recommends that form.
func ValidCode(s string) bool {
	if len(s) != CodeSize {
		return false
	}
	b, err := b64.DecodeString(s)
	return err == nil && len(b) == secretSize
}

// Challenge is what the verifier's holder shows in advance (RFC 7636, section
// 4.2, S256).
func Challenge(verifier string) string {
	sum := sha256.Sum256([]byte(verifier))
	return b64.EncodeToString(sum[:])
}

// KeysHash names two public keys in the address of a page.
func KeysHash(tlsKey, sshKey []byte) string {
	h := sha256.New()
	for _, k := range [][]byte{tlsKey, sshKey} {
		sum := sha256.Sum256(k)
		h.Write(sum[:])
	}
	return b64.EncodeToString(h.Sum(nil))
}

// userCodeLetters leave out vowels, so that no words come out, and what is
// mistaken for something else (RFC 8628, section 6.1).
const (
	userCodeLetters = "BCDFGHJKLMNPQRSTVWXZ"
	userCodeSize    = 8
)

func newUserCode() string {
	out := make([]byte, 0, userCodeSize)
	for len(out) < userCodeSize {
		var b [1]byte
		rand.Read(b[:])
		// Numbers from 240 on would make some letters likelier than others.
		if b[0] < 240 {
			out = append(out, userCodeLetters[int(b[0])%len(userCodeLetters)])
		}
	}
	return string(out)
}

// ParseUserCode reads what a person typed: in any case, with blanks and dashes.
func ParseUserCode(typed string) (code string, ok bool) {
	if len(typed) > 4*userCodeSize {
		return "", false
	}
	var out []byte
	for _, c := range []byte(strings.ToUpper(typed)) {
		switch {
		case c == '-' || c == ' ':
		case strings.IndexByte(userCodeLetters, c) >= 0:
			out = append(out, c)
		default:
			return "", false
		}
	}
	return string(out), len(out) == userCodeSize
}

// ShowUserCode writes a code as people read it.
func ShowUserCode(code string) string {
	if len(code) != userCodeSize {
		return code
	}
	return code[:userCodeSize/2] + "-" + code[userCodeSize/2:]
}

// deviceToken is a program's half of a request.
type deviceToken struct {
	userCode string
	secret   [secretSize]byte
}

func parseDeviceToken(s string) (t deviceToken, ok bool) {
	if len(s) != b64.EncodedLen(userCodeSize+secretSize) {
		return deviceToken{}, false
	}
	b, err := b64.DecodeString(s)
	if err != nil || len(b) != userCodeSize+secretSize {
		return deviceToken{}, false
	}
	t.userCode = string(b[:userCodeSize])
	copy(t.secret[:], b[userCodeSize:])
	code, ok := ParseUserCode(t.userCode)
	return t, ok && code == t.userCode
}

func (t deviceToken) String() string {
	return b64.EncodeToString(append([]byte(t.userCode), t.secret[:]...))
}
