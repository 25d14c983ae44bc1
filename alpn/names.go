package alpn

import "slices"

// kinds are the labels under the cluster's name that resources live below.
var kinds = [...]string{"node", "db", "kube", "tcp", "app", "desktop"}

// Kinds are the labels that resources live below, as Route.Kind has them.
func Kinds() []string { return slices.Clone(kinds[:]) }

// reserved are the one-label names that no app may have.
var reserved = [...]string{"node", "db", "kube", "tcp", "app", "desktop", "auth", "api", "www"}

// Reserved says that <name>.<cluster> is not for apps.
func Reserved(name string) bool { return isReserved(name) }

// ServerName is the name under which a resource is reached.
func ServerName(kind, name, cluster string) string {
	return name + "." + kind + "." + cluster
}

// ParseName takes a server name apart: <name>.<kind>.<cluster>. The name must be
// normal (see NormalName); ok is false for everything else.
func ParseName(serverName, cluster string) (kind, name string, ok bool) {
	rest, below := under(serverName, cluster)
	if !below {
		return "", "", false
	}
	kind, name = splitKind(rest)
	return kind, name, kind != ""
}

// ValidLabel says that s is one DNS label of a host name: what a resource may
// be called (RFC 1123, section 2.1; lower case).
func ValidLabel(s string) bool {
	if len(s) == 0 || len(s) > maxLabel || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for i := range len(s) {
		if !isLDH(s[i]) {
			return false
		}
	}
	return true
}

// NormalName returns s as routes compare names: a host name in lower case. ok is
// false when s is not written as a host name; an IP literal is none.
func NormalName(s string) (name string, ok bool) {
	var buf [maxName]byte
	n, ok := normalName(buf[:], []byte(s))
	if !ok || isAddress(buf[:n]) {
		return "", false
	}
	return string(buf[:n]), true
}

// text is a name in either of the forms it has here.
type text interface{ ~string | ~[]byte }

// under cuts the cluster's name off: "a.db" of "a.db.gw.test" under "gw.test".
func under[T text](name T, cluster string) (rest T, ok bool) {
	n := len(name) - len(cluster) - 1
	if cluster == "" || n < 1 || name[n] != '.' || string(name[n+1:]) != cluster {
		return rest, false
	}
	return name[:n], true
}

// splitKind takes "<name>.<kind>" apart; kind is "" when it is not of that form.
func splitKind[T text](rest T) (kind string, name T) {
	for _, k := range &kinds {
		n := len(rest) - len(k) - 1
		if n < 1 || rest[n] != '.' || string(rest[n+1:]) != k {
			continue
		}
		if label := rest[:n]; isLabel(label) {
			return k, label
		}
	}
	return "", name
}

// isLabel says that a part of a normal name is one label that a resource can have.
func isLabel[T text](s T) bool {
	if len(s) == 0 || len(s) > maxLabel {
		return false
	}
	for i := range len(s) {
		if !isLDH(s[i]) {
			return false
		}
	}
	return true
}

func isReserved[T text](name T) bool {
	for _, r := range &reserved {
		if string(name) == r {
			return true
		}
	}
	return false
}

func isLDH(c byte) bool {
	return 'a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-'
}

// Limits of host names (RFC 1035, section 2.3.4): 253 is 255 octets in wire
// form, written out without the root's dot.
const (
	maxName  = 253
	maxLabel = 63
)

// normalName writes name in lower case to dst and returns its length. It refuses
// everything that is not a host name: other bytes than letters, digits, hyphen
// and underscore in labels of 1 to 63, a trailing dot, and any name of more than
// 253. A-labels ("xn--…") are never decoded: they match only what is spelled the
// same. IP literals pass; isAddress finds them.
func normalName(dst, name []byte) (n int, ok bool) {
	if len(name) == 0 || len(name) > maxName || len(name) > len(dst) {
		return 0, false
	}
	if looksV6(name) {
		return copy(dst, name), isAddress(name)
	}
	label := 0
	for i, c := range name {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		dst[i] = c
		switch {
		case c == '.':
			if label == 0 || dst[i-1] == '-' {
				return 0, false
			}
			label = 0
			continue
		case c == '-' && label == 0, !isLDH(c) && c != '_':
			return 0, false
		}
		if label++; label > maxLabel {
			return 0, false
		}
	}
	last := dst[len(name)-1]
	if last == '.' || last == '-' {
		return 0, false
	}
	// A last label of digits alone is no host name (RFC 1123, section 2.1):
	// either it is a whole IPv4 literal, or something odd.
	if numericLast(dst[:len(name)]) && !isV4(dst[:len(name)]) {
		return 0, false
	}
	return len(name), true
}
