package preamble

import (
	"bytes"
	"strings"

	"github.com/sallyport/sallyport/alpn"
)

// HTTP is the head of a request in clear, as far as a redirect needs it.
type HTTP struct {
	Size   int    // of the head, the empty line included
	Target []byte // of the request line; a part of the bytes that were parsed
	Host   []byte // of the Host header; nil without
}

// httpMax bounds the head. Browsers send less than 2 KiB on a first request.
const httpMax = 8 << 10

// ParseHTTP reads the request head that b begins with (RFC 9112, sections 2 to
// 5). It is strict: what it does not take is answered 400 by nobody, but closed.
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
	if !ok1 || !ok2 || len(target) == 0 || !bytes.HasPrefix(version, []byte("HTTP/1.")) || len(version) != 8 {
		return ErrMalformed
	}
	for _, c := range target {
		if c <= ' ' || c >= 0x7f {
			return ErrMalformed
		}
	}
	h.Target = target
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
	if h.Host != nil {
		return ErrMalformed // RFC 9112, section 3.2: not more than one
	}
	h.Host = bytes.Trim(value, " \t")
	return nil
}

// Redirect is the answer that sends the client to https: on the host that it
// asked for when that is the cluster or below it, else to the cluster itself.
// The port, if the client named one, stays: it is the one that was reached.
// Without a cluster the host must be a host name; if it is none, the answer is 400.
func (h HTTP) Redirect(cluster string) []byte {
	authority, ok := h.authority(cluster)
	if !ok {
		return []byte("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
	}
	path := "/"
	if len(h.Target) > 0 && h.Target[0] == '/' {
		path = string(h.Target)
	}
	return []byte("HTTP/1.1 308 Permanent Redirect\r\n" +
		"Location: https://" + authority + path + "\r\n" +
		"Content-Length: 0\r\nConnection: close\r\n\r\n")
}

func (h HTTP) authority(cluster string) (authority string, ok bool) {
	host, port := splitPort(string(h.Host))
	name, ok := alpn.NormalName(host)
	if cluster != "" && (!ok || name != cluster && !strings.HasSuffix(name, "."+cluster)) {
		name, ok = cluster, true
	}
	if ok && port != "" && port != "80" && port != "443" {
		name += ":" + port
	}
	return name, ok
}

// splitPort takes "host:port" apart; a port that is none is dropped with its colon.
func splitPort(s string) (host, port string) {
	i := strings.LastIndexByte(s, ':')
	if i < 0 || strings.HasSuffix(s, "]") {
		return s, ""
	}
	host, port = s[:i], s[i+1:]
	if len(port) == 0 || len(port) > 5 || port[0] == '0' || strings.Trim(port, "0123456789") != "" {
		return host, ""
	}
	return host, port
}
