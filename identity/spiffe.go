package identity

import (
	"fmt"
	"net/url"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/sallyport/sallyport"
)

// URI is the SPIFFE id spiffe://<cluster>/<kind>/<name>. Names that a path
// segment cannot hold as they are come out percent-encoded.
func URI(kind sallyport.IdentityKind, cluster, name string) *url.URL {
	return &url.URL{
		Scheme:  "spiffe",
		Host:    cluster,
		Path:    "/" + string(kind) + "/" + name,
		RawPath: "/" + string(kind) + "/" + url.PathEscape(name),
	}
}

// ParseURI takes a SPIFFE id apart. It accepts exactly what URI writes: one
// spelling per identity.
func ParseURI(u *url.URL) (kind sallyport.IdentityKind, cluster, name string, err error) {
	if u == nil || u.Scheme != "spiffe" {
		return "", "", "", fmt.Errorf("not a SPIFFE id")
	}
	parts := strings.SplitN(u.Path, "/", 3)
	if len(parts) != 3 || parts[0] != "" {
		return "", "", "", fmt.Errorf("SPIFFE id %q: want spiffe://<cluster>/<kind>/<name>", u)
	}
	kind, cluster, name = sallyport.IdentityKind(parts[1]), u.Host, parts[2]
	if err := checkName(kind, cluster, name); err != nil {
		return "", "", "", fmt.Errorf("SPIFFE id %q: %w", u, err)
	}
	if u.String() != URI(kind, cluster, name).String() {
		return "", "", "", fmt.Errorf("SPIFFE id %q: not in its plain form", u)
	}
	return kind, cluster, name, nil
}

func parse(s string) (kind sallyport.IdentityKind, cluster, name string, err error) {
	u, err := url.Parse(s)
	if err != nil {
		return "", "", "", fmt.Errorf("SPIFFE id %q: not a URI", s)
	}
	kind, cluster, name, err = ParseURI(u)
	if err == nil && u.String() != s {
		return "", "", "", fmt.Errorf("SPIFFE id %q: not in its plain form", s)
	}
	return kind, cluster, name, err
}

// checkName checks the three parts of a SPIFFE id.
func checkName(kind sallyport.IdentityKind, cluster, name string) error {
	switch kind {
	case sallyport.KindUser, sallyport.KindAgent, sallyport.KindGateway, sallyport.KindAuth:
	default:
		return fmt.Errorf("%q does not name the holder of a certificate", kind)
	}
	if !validCluster(cluster) {
		return fmt.Errorf("cluster %q: not a lower-case DNS name", cluster)
	}
	if !validName(name) {
		return fmt.Errorf("name %q: want 1 to %d bytes of printable text without spaces, slashes, ? # %%", name, maxName)
	}
	return nil
}

// validCluster follows RFC 1123 section 2.1, in lower case, without a final dot.
func validCluster(s string) bool {
	if s == "" || len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for i := range len(label) {
			c := label[i]
			if c != '-' && (c < '0' || c > '9') && (c < 'a' || c > 'z') {
				return false
			}
		}
	}
	return true
}

func validName(s string) bool {
	if s == "" || len(s) > maxName || s == "." || s == ".." || !utf8.ValidString(s) {
		return false
	}
	return !strings.ContainsFunc(s, func(r rune) bool {
		return !unicode.IsGraphic(r) || unicode.IsSpace(r) || strings.ContainsRune(`/\?#%`, r)
	})
}
