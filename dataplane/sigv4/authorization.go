package sigv4

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

const (
	algorithm = "AWS4-HMAC-SHA256"
	ending    = "aws4_request"

	maxAuthorization = 8 << 10
	maxSigned        = 128 // headers
	maxWord          = 64  // bytes of a region or a service
)

// Authorization is an Authorization header of Signature Version 4.
type Authorization struct {
	AccessKey     string
	Date          string // eight digits
	Region        string
	Service       string   // its name for signatures
	SignedHeaders []string // in lower case and order
	Signature     string   // hex
}

// errForm says nothing of the value: a client may have put a secret there.
var errForm = errors.New("the Authorization header is not one of " + algorithm)

// Parse reads an Authorization header.
func Parse(header string) (Authorization, error) {
	rest, ok := strings.CutPrefix(header, algorithm+" ")
	if !ok || len(header) > maxAuthorization {
		return Authorization{}, errForm
	}
	var a Authorization
	parts := strings.SplitN(rest, ",", 4)
	if len(parts) != 3 {
		return Authorization{}, errForm
	}
	seen := map[string]bool{}
	for _, part := range parts {
		name, value, _ := strings.Cut(strings.Trim(part, " "), "=")
		if seen[name] || !a.set(name, value) {
			return Authorization{}, errForm
		}
		seen[name] = true
	}
	return a, nil
}

// set takes one of the three parts.
func (a *Authorization) set(name, value string) bool {
	switch name {
	case "Credential":
		return a.setCredential(value)
	case "SignedHeaders":
		a.SignedHeaders = strings.SplitN(value, ";", maxSigned+1)
		return len(a.SignedHeaders) <= maxSigned && ordered(a.SignedHeaders) && !slices.ContainsFunc(a.SignedHeaders, func(h string) bool { return !made(h, isHeader) })
	case "Signature":
		a.Signature = value
		return len(value) == 64 && made(value, isHex)
	}
	return false
}

func (a *Authorization) setCredential(value string) bool {
	p := strings.SplitN(value, "/", 6)
	if len(p) != 5 || p[4] != ending {
		return false
	}
	a.AccessKey, a.Date, a.Region, a.Service = p[0], p[1], p[2], p[3]
	return len(a.AccessKey) <= 128 && made(a.AccessKey, isWord) && len(a.Date) == 8 && made(a.Date, isDigit) && Word(a.Region) && Word(a.Service)
}

// String writes it as the SDK does.
func (a Authorization) String() string {
	return fmt.Sprintf("%s Credential=%s/%s/%s/%s/%s, SignedHeaders=%s, Signature=%s", algorithm, a.AccessKey, a.Date, a.Region, a.Service, ending,
		strings.Join(a.SignedHeaders, ";"), a.Signature)
}

// ordered says that no name is there twice, either.
func ordered(names []string) bool {
	for i := 1; i < len(names); i++ {
		if names[i-1] >= names[i] {
			return false
		}
	}
	return true
}

// Word says that a text can be a region or a service: a label of host names, in any case.
func Word(s string) bool {
	return len(s) <= maxWord && made(s, func(c byte) bool { return isWord(c) && c != '_' || c == '-' }) && s[0] != '-' && s[len(s)-1] != '-'
}

func made(s string, of func(byte) bool) bool {
	for i := range len(s) {
		if !of(s[i]) {
			return false
		}
	}
	return s != ""
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }
func isHex(c byte) bool   { return isDigit(c) || 'a' <= c && c <= 'f' }
func isWord(c byte) bool {
	return isDigit(c) || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || c == '_'
}
func isHeader(c byte) bool {
	return isDigit(c) || 'a' <= c && c <= 'z' || c == '-' || c == '_' || c == '.'
}
