package web

import (
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"github.com/sallyport/sallyport/controlplane/websession"
)

const (
	launchPath = "/web/launch/"
	maxLocal   = 2048
	maxHost    = 128 // of a program's machine, as it is shown
)

// local is where a login may lead: the places of this site that it interrupts.
// Its result is put together from what was understood, so whatever comes in,
// nothing but these comes out.
func local(to string) string {
	const home = "/"
	if len(to) > maxLocal {
		return home
	}
	u, err := url.ParseRequestURI(to)
	if err != nil || u.Scheme != "" || u.Host != "" || u.User != nil || u.Opaque != "" {
		return home
	}
	q, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return home
	}
	switch {
	case u.Path == "/device":
		return u.Path
	case u.Path == "/cli":
		if p, ok := parseProgram(q); ok {
			return p.path()
		}
	case strings.HasPrefix(u.Path, launchPath):
		if l, ok := parseLaunch(u.Path[len(launchPath):], q); ok {
			return l.path()
		}
	}
	return home
}

// launch is what a login at an application's origin asks for, as the address of the page
// says.
type launch struct {
	App       string
	Challenge string     // of the verifier that the gateway has left in the browser
	From      netip.Addr // whence the gateway says that it was begun; zero when it does not
}

func parseLaunch(app string, q url.Values) (l launch, ok bool) {
	if len(q["challenge"]) != 1 || len(q["from"]) > 1 {
		return launch{}, false
	}
	l = launch{App: app, Challenge: q.Get("challenge")}
	if from := q.Get("from"); from != "" {
		addr, err := netip.ParseAddr(from)
		if err != nil || addr.Zone() != "" {
			return launch{}, false
		}
		l.From = addr.Unmap()
	}
	return l, validLabel(app) && websession.ValidCode(l.Challenge)
}

func (l launch) path() string {
	q := url.Values{"challenge": {l.Challenge}}
	if l.From.IsValid() {
		q.Set("from", l.From.String())
	}
	return launchPath + l.App + "?" + q.Encode()
}

// validLabel takes names of applications: one label of a host name.
func validLabel(s string) bool {
	if s == "" || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	return !strings.ContainsFunc(s, func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' })
}

// validPort takes a port as programs write it.
func validPort(s string) bool {
	n, err := strconv.ParseUint(s, 10, 16)
	return err == nil && n > 0 && strconv.FormatUint(n, 10) == s
}

// program is what "sally login" asks for, as the address of the page says.
type program struct {
	Challenge string // of the verifier that it keeps
	Keys      string // hash of its public keys
	Port      string // where it listens on 127.0.0.1
	State     string // that it wants to see again
	Host      string // what it calls its machine
}

func parseProgram(q url.Values) (p program, ok bool) {
	p = program{q.Get("challenge"), q.Get("keys"), q.Get("port"), q.Get("state"), q.Get("host")}
	for _, name := range []string{"challenge", "keys", "port", "state", "host"} {
		if len(q[name]) > 1 {
			return program{}, false // readers differ in which they take
		}
	}
	ok = websession.ValidCode(p.Challenge) && websession.ValidCode(p.Keys) && websession.ValidCode(p.State) && validPort(p.Port) &&
		len(p.Host) <= maxHost && !strings.ContainsFunc(p.Host, func(r rune) bool { return r < ' ' || r > '~' })
	if !ok {
		return program{}, false
	}
	return p, true
}

func (p program) path() string {
	return "/cli?" + url.Values{"challenge": {p.Challenge}, "keys": {p.Keys}, "port": {p.Port}, "state": {p.State}, "host": {p.Host}}.Encode()
}

// callback is the program's own address: on the visitor's machine, whatever the
// page was opened with (RFC 8252, section 7.3).
func (p program) callback(answer url.Values) string {
	answer.Set("state", p.State)
	return "http://127.0.0.1:" + p.Port + "/callback?" + answer.Encode()
}
