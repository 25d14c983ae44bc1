package redis

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"maps"
	"strconv"
	"unicode"
	"unicode/utf8"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/database"
)

// payloadSize is how much an event holds of what is malformed.
const payloadSize = 256

// baseFields are the fields that all events of a session have.
func baseFields(service, uri, user string) map[string]any {
	return map[string]any{
		"db_service":  service,
		"db_protocol": "redis",
		"db_uri":      uri,
		"db_user":     user,
		"db_name":     "",
	}
}

// auditor decides about a client's commands and records them, each before it
// passes to the server whole.
type auditor struct {
	emit   func(sallyport.Event)
	base   map[string]any
	script int // bytes of a script that are recorded
	user   string
	proved bool // the server takes us for the user without a password
	swaps  *swaps
	text   []byte
	quit   bool // QUIT was seen: what follows is not read
}

func newAuditor(l *live, s *swaps) *auditor {
	return &auditor{
		emit:   l.sess.Emit,
		base:   baseFields(l.name, l.server.Target.Address, l.user),
		script: l.bounds.Script,
		user:   l.user,
		proved: l.proved,
		swaps:  s,
	}
}

// see records one command and returns what passes in its place: nil for the
// command as it is. An error ends the session. A command of which pieces have
// passed cannot be replaced: it is passed to its end, or the session ends.
func (a *auditor) see(c *command) ([]byte, error) {
	if isHTTP(c.args[0]) {
		return nil, notHTTP()
	}
	instead, answer, err := a.judge(c)
	if err != nil {
		r := refusalOf(err, codeNoPerm)
		a.record(c, r)
		if c.spilled {
			return nil, r
		}
		return a.swaps.put(r.reply())
	}
	if c.spilled && (answer != "" || instead != nil) {
		r := tooLong(c.args[0])
		a.record(c, r)
		return nil, r
	}
	a.record(c, nil)
	if answer != "" {
		return a.swaps.put([]byte(answer))
	}
	if instead == nil && c.line {
		instead = appendCommand(nil, c.args...)
	}
	return instead, nil
}

// judge says what is to be passed in place of a command, or what the client gets
// without asking the server; both are empty for nearly all.
func (a *auditor) judge(c *command) (instead []byte, answer string, err error) {
	if err := noNULs(c.args[0]); err != nil {
		return nil, "", err
	}
	var b nameBuffer
	switch string(b.lower(c.args[0])) {
	case "auth":
		cred, err := authOf(c)
		if err == nil {
			err = a.same(cred)
		}
		if err != nil || !a.proved {
			return nil, "", err
		}
		return nil, "+OK\r\n", nil
	case "hello":
		cred, err := helloOf(c)
		if err == nil {
			err = a.same(cred)
		}
		if err != nil || !a.proved {
			return nil, "", err
		}
		return cred.hello, "", nil
	case "reset":
		if a.user != defaultUser { // it is what the session would be then (resetCommand of Redis)
			return nil, "", refuse(codeNoPerm, sallyport.ErrDenied, fmt.Sprintf("RESET is not served: the session would be of user %q from there on", defaultUser), "connect again")
		}
	case "sync", "psync", "replconf":
		return nil, "", refuse(codeNoPerm, sallyport.ErrDenied, "replication is not served", "connect straight to the database for replication")
	case "quit":
		a.quit = true
	}
	return nil, "", nil
}

// isHTTP says that a client speaks HTTP: it is a browser that a hostile page has
// led to somebody's local port. What follows could be commands.
func isHTTP(name []byte) bool { return is(name, "post") || is(name, "host:") }

func notHTTP() *refusal { return refuse(codeError, sallyport.ErrInvalid, "this is not HTTP", "") }

// same refuses a login as anybody else than the session's user.
func (a *auditor) same(c credentials) error {
	if c.named && c.user != a.user {
		return anotherUser()
	}
	return nil
}

// record emits the event of a command.
func (a *auditor) record(c *command, why *refusal) {
	one, all := roomFor(c.args[0], a.script)
	cut := false
	a.text, cut = appendText(a.text[:0], c, one, all)
	e := sallyport.Event{Name: "db.session.query", Code: "TDB02I", Fields: map[string]any{}}
	if why != nil {
		no := false
		e.Code, e.Success = "TDB02W", &no
		e.Fields["error"] = why.Fact
	}
	if cut {
		e.Fields["db_query_truncated"], e.Fields["db_query_size"] = true, c.size
	}
	database.Statement{Event: e, Field: "db_query", Text: a.text, Most: len(a.text)}.Record(a.base, a.emit)
	if cap(a.text) > 2*allArguments { // a script
		a.text = nil
	}
}

// refused records what ended the session, and the bytes from the command on that
// did: unless that could be one with a password, which cannot be told apart in
// what is malformed.
func (a *auditor) refused(why *refusal, rest []byte) {
	rest = rest[:min(len(rest), payloadSize)]
	told := rest
	if maySecret(rest) {
		told = nil
	}
	fields := map[string]any{"error": why.Fact, "payload": base64.StdEncoding.EncodeToString(told), "payload_size": len(rest)}
	maps.Copy(fields, a.base)
	a.emit(sallyport.Event{Name: "db.session.malformed_packet", Code: "TDB06I", Fields: fields})
}

// maySecret says that a command could be one of those that hold a password.
func maySecret(p []byte) bool {
	p = bytes.ToLower(p)
	for _, word := range []string{"auth", "hello", "pass", "setuser", "config", "secret"} {
		if bytes.Contains(p, []byte(word)) {
			return true
		}
	}
	return false
}

// appendText appends a command as redis-cli takes it: arguments that are not
// plain words in double quotes with escapes, secrets as ****. What is left out
// is counted behind it, as in a slow log.
func appendText(dst []byte, c *command, one, all int) (text []byte, cut bool) {
	secret := secrets(c.args)
	most := len(dst) + all
	for i, arg := range c.args {
		if len(dst) >= most {
			cut = true
			return appendMore(dst, c.count-i), cut
		}
		if i > 0 {
			dst = append(dst, ' ')
		}
		if secret != nil && secret(i) {
			dst = append(dst, "****"...)
			continue
		}
		n := min(len(arg), one, max(most-len(dst), 0))
		dst = appendArgument(dst, arg[:n])
		if n < len(arg) || c.torn && i == len(c.args)-1 {
			cut = true
			dst = append(dst, "..."...)
		}
	}
	if left := c.count - len(c.args); left > 0 {
		cut = true
		dst = appendMore(dst, left)
	}
	return dst, cut
}

func appendMore(dst []byte, n int) []byte {
	dst = append(dst, " ... ("...)
	return append(strconv.AppendInt(dst, int64(n), 10), " more arguments)"...)
}

// appendArgument appends one, such that its bytes can be had back.
func appendArgument(dst, arg []byte) []byte {
	if plain(arg) {
		return append(dst, arg...)
	}
	const digits = "0123456789abcdef"
	dst = append(dst, '"')
	for len(arg) > 0 {
		r, n := utf8.DecodeRune(arg)
		switch {
		case r == '"' || r == '\\':
			dst = append(dst, '\\', byte(r))
		case r == '\n':
			dst = append(dst, `\n`...)
		case r == '\r':
			dst = append(dst, `\r`...)
		case r == '\t':
			dst = append(dst, `\t`...)
		case r == utf8.RuneError && n == 1, !unicode.IsPrint(r):
			for _, c := range arg[:n] {
				dst = append(dst, '\\', 'x', digits[c>>4], digits[c&15])
			}
		default:
			dst = append(dst, arg[:n]...)
		}
		arg = arg[n:]
	}
	return append(dst, '"')
}

// plain says that an argument is a word that needs no quotes.
func plain(arg []byte) bool {
	for _, c := range arg {
		if c <= ' ' || c >= 0x7f || c == '"' || c == '\'' || c == '\\' {
			return false
		}
	}
	return len(arg) > 0
}
