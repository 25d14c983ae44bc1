package sigv4

import (
	"context"
	"crypto/subtle"
	"errors"
	"net/http"
	"net/textproto"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

// Names of headers.
const (
	DateHeader    = "X-Amz-Date"
	PayloadHeader = "X-Amz-Content-Sha256" // what the body is, as the signature has it
	TokenHeader   = "X-Amz-Security-Token"
	TargetHeader  = "X-Amz-Target" // the operation, in the JSON protocols
)

const (
	dateForm = "20060102T150405Z"
	maxSkew  = 15 * time.Minute // as AWS has it
)

// Keys are a pair that signs.
type Keys struct{ AccessKey, Secret string }

var (
	errForeign   = errors.New("the request is signed with another access key than this port's")
	errSignature = errors.New("the signature does not match the request")
	errTime      = errors.New("the request is not of this time")
	errUnsigned  = errors.New("the signature leaves out what it must hold: host, x-amz-date, x-amz-content-sha256, each x-amz header")
)

// Verify checks that the request was signed with the keys. payload is asked for
// the hash of the body where the request does not say it, and only when the
// access key is ours: a stranger's body is not read.
func (k Keys) Verify(r *http.Request, now time.Time, payload func() (string, error)) (Authorization, error) {
	a, err := Parse(one(r.Header, "Authorization"))
	if err != nil {
		return a, err
	}
	if subtle.ConstantTimeCompare([]byte(a.AccessKey), []byte(k.AccessKey)) != 1 {
		return a, errForeign
	}
	date, err := time.Parse(dateForm, one(r.Header, DateHeader))
	if err != nil || date.Sub(now).Abs() > maxSkew || date.Format("20060102") != a.Date {
		return a, errTime
	}
	hash, said := one(r.Header, PayloadHeader), slices.Contains(a.SignedHeaders, strings.ToLower(PayloadHeader))
	if !slices.Contains(a.SignedHeaders, "host") || !slices.Contains(a.SignedHeaders, strings.ToLower(DateHeader)) || said != (hash != "") {
		return a, errUnsigned
	}
	for name := range r.Header { // as AWS has it: the agent would sign what the client has not
		if f := strings.ToLower(name); strings.HasPrefix(f, "x-amz-") && !slices.Contains(a.SignedHeaders, f) {
			return a, errUnsigned
		}
	}
	if !said {
		if hash, err = payload(); err != nil {
			return a, err
		}
	}
	again, err := k.sign(r, a, hash, date)
	if err != nil {
		return a, err
	}
	if subtle.ConstantTimeCompare([]byte(again), []byte(a.String())) != 1 {
		return a, errSignature
	}
	return a, nil
}

// sign signs what the client says that it has signed, and nothing else.
func (k Keys) sign(r *http.Request, a Authorization, hash string, date time.Time) (string, error) {
	copied := &http.Request{Method: r.Method, Host: r.Host, URL: &url.URL{Path: r.URL.Path, RawPath: r.URL.RawPath, RawQuery: r.URL.RawQuery}, Header: http.Header{}}
	for _, name := range a.SignedHeaders {
		switch name {
		case "host":
		case "content-length":
			copied.ContentLength = r.ContentLength
		default:
			name = textproto.CanonicalMIMEHeaderKey(name)
			values := r.Header[name]
			if len(values) == 0 {
				return "", errSignature
			}
			copied.Header[name] = slices.Clone(values)
		}
	}
	if err := SignHTTP(copied, aws.Credentials{AccessKeyID: k.AccessKey, SecretAccessKey: k.Secret}, Scope{a.Service, a.Region, hash, date}); err != nil {
		return "", err
	}
	return copied.Header.Get("Authorization"), nil
}

// Scope is what a signature is good for.
type Scope struct {
	Service, Region string
	Payload         string // as PayloadHeader has it
	Time            time.Time
}

// SignHTTP signs a request by the SDK's signer. S3 alone takes the path as it is.
func SignHTTP(r *http.Request, c aws.Credentials, s Scope) error {
	return v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping = s.Service == "s3" }).
		SignHTTP(context.Background(), c, r, s.Payload, s.Service, s.Region, s.Time)
}

// Payload says why a PayloadHeader cannot be signed anew, or nil. A body whose
// pieces are signed one by one cannot: each holds a signature of the client's.
func Payload(value string) error {
	switch {
	case len(value) == 64 && made(value, isHex), value == "UNSIGNED-PAYLOAD", value == "STREAMING-UNSIGNED-PAYLOAD-TRAILER":
		return nil
	case strings.HasPrefix(value, "STREAMING-"):
		return errors.New("a body that is signed in pieces cannot be signed anew; switch payload signing off in the client")
	}
	return errors.New("the request does not say what its body is")
}

// Presigned says that a request carries a signature in its query, where it cannot
// be told apart from a secret to be logged.
func Presigned(query url.Values) bool {
	for name := range query {
		switch strings.ToLower(name) {
		case "x-amz-signature", "x-amz-credential", "x-amz-security-token", "x-amz-algorithm", "signature", "awsaccesskeyid":
			return true
		}
	}
	return false
}

// one is a header's only value.
func one(h http.Header, name string) string {
	if v := h[name]; len(v) == 1 {
		return v[0]
	}
	return ""
}
