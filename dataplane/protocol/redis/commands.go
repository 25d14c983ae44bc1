package redis

import (
	"bytes"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/sallyport/sallyport"
)

// defaultUser is whom a server takes for its user who has named none.
const defaultUser = "default"

// nameMax is how long a user's name may be: as long as a certificate can say it
// (ub-common-name, RFC 5280, appendix A.1).
const nameMax = 64

// nameBuffer is room for a word that is compared.
type nameBuffer [24]byte

// lower is a word in lower case, as servers compare names of commands; empty
// when it is longer than any that is looked for. It ends at a NUL: servers
// compare with strcasecmp, so AUTH, a NUL and more can be AUTH to them.
func (b *nameBuffer) lower(word []byte) []byte {
	if i := bytes.IndexByte(word, 0); i >= 0 {
		word = word[:i]
	}
	if len(word) > len(b) {
		return nil
	}
	out := b[:len(word)]
	for i, c := range word {
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		out[i] = c
	}
	return out
}

func is(word []byte, name string) bool {
	var b nameBuffer
	return string(b.lower(word)) == name
}

// credentials are what an AUTH or a HELLO says.
type credentials struct {
	named    bool
	user     string
	password string

	hello []byte // the HELLO without them, nil for AUTH
}

// authOf reads AUTH [user] password.
func authOf(c *command) (credentials, error) {
	switch len(c.args) {
	case 2:
		return credentials{named: true, user: defaultUser, password: string(c.args[1])}, nil
	case 3:
		return credentials{named: true, user: string(c.args[1]), password: string(c.args[2])}, nil
	}
	return credentials{}, refuse(codeError, sallyport.ErrInvalid, "wrong number of arguments for 'auth' command", "")
}

// helloOf reads HELLO [version [AUTH user password] [SETNAME name]]. What else
// may stand there one day could name a user, so it is refused.
func helloOf(c *command) (credentials, error) {
	out := credentials{hello: []byte{}}
	args := c.args[1:]
	plain := [][]byte{c.args[0]}
	if len(args) > 0 {
		plain = append(plain, args[0])
		args = args[1:]
	}
	for len(args) > 0 {
		switch {
		case is(args[0], "auth") && len(args) >= 3 && !out.named:
			out.named, out.user, out.password = true, string(args[1]), string(args[2])
			args = args[3:]
		case is(args[0], "setname") && len(args) >= 2:
			plain = append(plain, args[0], args[1])
			args = args[2:]
		default:
			return credentials{}, refuse(codeError, sallyport.ErrInvalid, "syntax error in HELLO", "")
		}
	}
	out.hello = appendCommand(nil, plain...)
	return out, nil
}

// checkUser refuses what no role can allow, and what is no user's name to a
// server (ACLStringHasSpaces of Redis).
func checkUser(name string) error {
	switch {
	case name == "":
		return refuse(codeNoAuth, sallyport.ErrInvalid, "no database user is named", "AUTH NAME PASSWORD")
	case utf8.RuneCountInString(name) > nameMax:
		return refuse(codeNoPerm, sallyport.ErrInvalid, fmt.Sprintf("the database user has more than %d characters", nameMax), "")
	case !utf8.ValidString(name) || strings.ContainsFunc(name, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }):
		return refuse(codeNoPerm, sallyport.ErrInvalid, fmt.Sprintf("the database user %q has characters that are not allowed", name), "")
	}
	return nil
}

// noNULs refuses a name with a NUL: servers compare names up to it, some of them.
func noNULs(name []byte) error {
	if bytes.IndexByte(name, 0) < 0 {
		return nil
	}
	return refuse(codeError, sallyport.ErrInvalid, "a command with a NUL in its name is not served", "")
}

// keep says how much is kept of a command that passes in pieces. Those that the
// auditor may not pass as they are must be whole: once a piece has passed, what
// is put in the place of the rest would be a part of an argument to the server.
func keep(name []byte, script int) (one, all int, err error) {
	if err := noNULs(name); err != nil {
		return 0, 0, err
	}
	var b nameBuffer
	switch string(b.lower(name)) {
	case "auth", "hello", "reset", "quit", "sync", "psync", "replconf", "post", "host:":
		return 0, 0, tooLong(name)
	}
	one, all = roomFor(name, script)
	return one + 1, all, nil // one more: so that it shows that there was more
}

// What is recorded of one argument, and of all.
const (
	oneArgument  = 4 << 10
	allArguments = 48 << 10
)

// roomFor is how many bytes are recorded of one argument and of all: scripts are
// what is done, all else is what it is done to.
func roomFor(name []byte, script int) (one, all int) {
	var b nameBuffer
	switch string(b.lower(name)) {
	case "eval", "eval_ro", "script", "function":
		return script, script + allArguments
	}
	return oneArgument, allArguments
}

// secrets says which arguments of a command are to be kept out of the audit log.
func secrets(args [][]byte) func(i int) bool {
	var b nameBuffer
	if len(args) == 0 {
		return nil
	}
	switch string(b.lower(args[0])) {
	case "auth":
		return func(i int) bool { return i >= 1 && !(i == 1 && len(args) == 3) }
	case "hello":
		return behind(args, 1, map[string]int{"auth": 2})
	case "migrate":
		return behind(args, 6, map[string]int{"auth": 1, "auth2": 2})
	case "acl":
		if len(args) > 1 && is(args[1], "setuser") {
			return func(i int) bool { return i >= 3 && passwordRule(args[i]) }
		}
	case "config", "sentinel", "module":
		return func(i int) bool { return i >= 3 && secretSetting(args[i-1]) }
	}
	return nil
}

// behind finds arguments that follow a word at a distance. The words of MIGRATE
// end where its keys begin.
func behind(args [][]byte, from int, distance map[string]int) func(int) bool {
	hidden := map[int]bool{}
	for i := from; i < len(args); i++ {
		var b nameBuffer
		word := string(b.lower(args[i]))
		if word == "keys" {
			break
		}
		if d := distance[word]; d > 0 {
			hidden[i+d] = true
			i += d
		}
	}
	return func(i int) bool { return hidden[i] }
}

// passwordRule says that a rule of ACL SETUSER holds a password or its hash.
func passwordRule(rule []byte) bool {
	for _, word := range bytes.FieldsFunc(rule, func(r rune) bool { return unicode.IsSpace(r) || r == '(' }) {
		if bytes.IndexByte([]byte("><#!"), word[0]) >= 0 {
			return true
		}
	}
	return false
}

// secretSetting says that a setting's value is a secret: requirepass,
// masterauth, primaryauth, tls-key-file-pass, auth-pass, sentinel-pass.
func secretSetting(name []byte) bool {
	name = bytes.ToLower(name)
	return bytes.Contains(name, []byte("pass")) || bytes.Contains(name, []byte("secret")) || bytes.HasSuffix(name, []byte("auth"))
}
