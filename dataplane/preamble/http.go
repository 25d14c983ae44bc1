package preamble

import (
	"bytes"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/sallyport/sallyport/alpn"
)

// HTTP is the head of a request in clear, as far as a redirect needs it.
type HTTP struct {
	Size   int    // of the head, the empty line included
	Target []byte // of the request line; a part of the bytes that were parsed
	Host   []byte // of the Host header; nil without

	minor byte // of the version: '0' for HTTP/1.0
	twice bool // there was more than one Host
}

// httpMax bounds the head. Browsers send less than 2 KiB on a first request.
const httpMax = 8 << 10

// ParseHTTP reads the request head that b begins with (RFC 9112, sections 2 to
// 5). It is strict: what is not such a head is closed without an answer.
func ParseHTTP(b []byte) (h HTTP, need int, err error) {
	end := bytes.Index(b[:min(len(b), httpMax)], []byte("\r\n\r\n"))
	if end < 0 {
		if len(b) >= httpMax {
			return h, 0, ErrTooLarge
		}
		return h, len(b) + 1, nil
	}
	h.Size = end + 4
	line, rest, _ := bytes.Cut(b[:end+2], []byte("\r\n"))
	if err := h.requestLine(line); err != nil {
		return h, 0, err
	}
	for len(rest) > 0 {
		line, rest, _ = bytes.Cut(rest, []byte("\r\n"))
		if err := h.field(line); err != nil {
			return h, 0, err
		}
	}
	return h, 0, nil
}

func (h *HTTP) requestLine(line []byte) error {
	_, rest, ok1 := bytes.Cut(line, []byte(" "))
	target, version, ok2 := bytes.Cut(rest, []byte(" "))
	if !ok1 || !ok2 || len(target) == 0 || !bytes.HasPrefix(version, []byte("HTTP/1.")) || len(version) != 8 || version[7] < '0' || version[7] > '9' {
		return ErrMalformed
	}
	for _, c := range target {
		if c <= ' ' || c >= 0x7f {
			return ErrMalformed
		}
	}
	h.Target, h.minor = target, version[7]
	return nil
}

func (h *HTTP) field(line []byte) error {
	name, value, ok := bytes.Cut(line, []byte(":"))
	if !ok || len(name) == 0 || bytes.ContainsAny(name, " \t\r\n\x00") || bytes.ContainsAny(value, "\r\n\x00") {
		return ErrMalformed
	}
	if !bytes.EqualFold(name, []byte("host")) {
		return nil
	}
	h.twice = h.Host != nil
	h.Host = bytes.Trim(value, " \t")
	return nil
}

// Redirect is the answer that sends the client to https: on the host that it
// asked for when that is the cluster or below it, else to the cluster itself.
// The port that the client named stays; without a Host (HTTP/1.0) it is reached,
// the listener's. A Host that is none gets 400 (RFC 9112, section 3.2), and so
// does one that is not a host name where there is no cluster to go to.
func (h HTTP) Redirect(cluster string, reached uint16) []byte {
	authority, ok := h.authority(cluster, reached)
	if !ok {
		return []byte("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
	}
	return []byte("HTTP/1.1 308 Permanent Redirect\r\n" +
		"Location: https://" + authority + h.path() + "\r\n" +
		"Content-Length: 0\r\nConnection: close\r\n\r\n")
}

// path is the target in origin form. What a URI may not hold is encoded
// (RFC 9112, section 3): browsers send some of it as it was typed.
func (h HTTP) path() string {
	if len(h.Target) == 0 || h.Target[0] != '/' {
		return "/"
	}
	var b strings.Builder
	for _, c := range h.Target {
		if strings.IndexByte("\"#<>\\^`{|}", c) >= 0 {
			fmt.Fprintf(&b, "%%%02X", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

// authority is the host and port to go to; ok is false for a bad request.
func (h HTTP) authority(cluster string, reached uint16) (authority string, ok bool) {
	if h.twice || h.Host == nil && h.minor != '0' {
		return "", false
	}
	name, port := "", int(reached)
	if h.Host != nil {
		host, named, ok := splitHost(string(h.Host))
		if !ok {
			return "", false
		}
		name, _ = alpn.NormalName(host) // "" for an address
		port = named
	}
	if cluster != "" && name != cluster && !strings.HasSuffix(name, "."+cluster) {
		name = cluster
	}
	if port != 0 && port != 80 && port != 443 {
		return name + ":" + strconv.Itoa(port), name != ""
	}
	return name, name != ""
}

// splitHost takes uri-host [":" port] apart (RFC 3986, section 3.2). The host
// is a host name, an IPv4 address, or an IPv6 address in brackets; port is 0
// when none is named.
func splitHost(s string) (host string, port int, ok bool) {
	host, digits := s, ""
	if i := strings.LastIndexByte(s, ':'); i > strings.LastIndexByte(s, ']') {
		host, digits = s[:i], s[i+1:]
	}
	if digits != "" {
		n, err := strconv.ParseUint(digits, 10, 16)
		if err != nil || n == 0 {
			return "", 0, false
		}
		port = int(n)
	}
	return host, port, isHost(host)
}

func isHost(s string) bool {
	if inner, opens := strings.CutPrefix(s, "["); opens {
		inner, closes := strings.CutSuffix(inner, "]")
		a, err := netip.ParseAddr(inner)
		return closes && err == nil && a.Is6() && a.Zone() == ""
	}
	if a, err := netip.ParseAddr(s); err == nil {
		return a.Is4()
	}
	_, ok := alpn.NormalName(s)
	return ok
}
