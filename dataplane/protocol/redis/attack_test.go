package redis

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/database"
	"github.com/sallyport/sallyport/dataplane/database/dbtest"
	"github.com/sallyport/sallyport/dataplane/session"
)

func certificateOf(ca *dbtest.Authority) func(context.Context, string, string) (*tls.Certificate, error) {
	return func(_ context.Context, _, user string) (*tls.Certificate, error) { return new(ca.Pair(user)), nil }
}

// stub is a server whose answers a test gives: by TLS, with the certificate of a
// client as whom it knows it.
type stub struct {
	t      *testing.T
	answer func(user string, command string) string // to a command in one line; "" closes
	plain  bool
}

func (s *stub) start() string {
	l := must(net.Listen("tcp", "127.0.0.1:0"))
	s.t.Cleanup(func() { l.Close() })
	cert := dbtest.DBCA.Pair("server", "127.0.0.1")
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go s.serve(conn, cert)
		}
	}()
	return l.Addr().String()
}

func (s *stub) serve(conn net.Conn, cert tls.Certificate) {
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	if s.plain {
		conn.Write([]byte("-ERR Protocol error\r\n"))
		return
	}
	inner := tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: dbtest.DBCA.Pool})
	if inner.Handshake() != nil {
		return
	}
	user := inner.ConnectionState().PeerCertificates[0].Subject.CommonName
	r := bufio.NewReader(inner)
	for {
		command, err := readValue(r)
		if err != nil {
			return
		}
		answer := s.answer(user, strings.Trim(command, "*[]"))
		if answer == "" {
			return
		}
		inner.Write([]byte(answer))
	}
}

// TestCertificateIsTheLogin: a server that takes the user from the certificate
// (tls-auth-clients-user CN) is never sent a password.
func TestCertificateIsTheLogin(t *testing.T) {
	for name, whoami := range map[string]func(user string) string{
		"WHOAMI": func(user string) string { return "$5\r\n" + user + "\r\n" },
		"no right to ask": func(user string) string {
			return "-NOPERM User " + user + " has no permissions to run the 'acl|whoami' command\r\n"
		},
	} {
		t.Run(name, func(t *testing.T) {
			var mu sync.Mutex
			var seen []string
			s := &stub{t: t, answer: func(user, command string) string {
				mu.Lock()
				seen = append(seen, command)
				mu.Unlock()
				switch {
				case command == "ACL WHOAMI":
					return whoami(user)
				case strings.HasPrefix(command, "sallyport-"):
					return "-ERR unknown command '" + strings.ToUpper(command) + "', with args beginning with: \r\n"
				}
				return "+DONE " + command + "\r\n"
			}}
			r := newRig(t, func(r *rig) { r.server.Target.Address = s.start() })
			r.raw().want("+DONE HELLO 3", "HELLO", "3", "AUTH", "bobby", "x")
			mu.Lock()
			seen = nil
			mu.Unlock()
			c := r.as("alice")
			c.want("+DONE GET a", "GET", "a")
			c.want("+OK", "AUTH", "alice", "whatever")
			c.want("+DONE HELLO 3 SETNAME me", "HELLO", "3", "AUTH", "alice", "whatever", "SETNAME", "me")
			c.want("-NOPERM…", "AUTH", "bob", "x")
			c.want("+DONE QUIT", "QUIT")
			mu.Lock()
			defer mu.Unlock()
			if len(seen) != 6 {
				t.Errorf("the server was told %q", seen)
			}
			for _, command := range seen {
				if strings.Contains(strings.ToLower(command), "auth") || strings.Contains(command, "whatever") {
					t.Errorf("the server was told %q", command)
				}
			}
		})
	}
}

// TestA19_AnotherUser: a server that takes the agent for somebody else.
func TestA19_AnotherUser(t *testing.T) {
	for name, row := range map[string]struct{ whoami, auth, first, want string }{
		"default in place of alice": {"$7\r\ndefault\r\n", "-WRONGPASS invalid\r\n", "AUTH alice x", "-WRONGPASS…"},
		"bob in place of default":   {"$3\r\nbob\r\n", "+OK\r\n", "PING", "-NOPERM…"},
		"an error that names bob":   {"-NOPERM User bob has no permissions to run the 'acl|whoami' command\r\n", "+OK\r\n", "PING", "-NOPERM…"},
		"a name that begins so":     {"-NOPERM User alice2 has no permissions to run the 'acl|whoami' command\r\n", "-WRONGPASS\r\n", "AUTH alice x", "-WRONGPASS…"},
		"an answer too many":        {"$5\r\nalice\r\n+OK\r\n", "+OK\r\n", "AUTH alice x", "-ERR…"},
		"an endless answer":         {"+" + strings.Repeat("x", 2*answerMax), "+OK\r\n", "AUTH alice x", "-ERR…"},
		"a huge answer":             {"$999999999\r\n", "+OK\r\n", "AUTH alice x", "-ERR…"},
		"no answer":                 {"", "+OK\r\n", "AUTH alice x", "-ERR…"},
		"a strange answer":          {"*1\r\n$5\r\nalice\r\n", "+OK\r\n", "AUTH alice x", "-ERR…"},
		"AUTH says something else":  {"$7\r\ndefault\r\n", "+QUEUED\r\n", "AUTH alice x", "-WRONGPASS…"},
	} {
		t.Run(name, func(t *testing.T) {
			s := &stub{t: t, answer: func(_, command string) string {
				if command == "ACL WHOAMI" {
					return row.whoami
				}
				return row.auth
			}}
			r := newRig(t, func(r *rig) { r.server.Target.Address = s.start() })
			c := r.raw()
			c.write(row.first + "\r\n")
			c.want(row.want)
		})
	}
	s := &stub{t: t, plain: true}
	r := newRig(t, func(r *rig) { r.server.Target.Address = s.start() })
	r.raw().want("-ERR database orders: the server does not speak TLS…", "PING")
}

// TestA112_Commands: what is not exactly in the protocol ends the session, and
// the server does not see it.
func TestA112_Commands(t *testing.T) {
	r := newRig(t)
	for name, bytes := range map[string]string{
		"no length":              "*1\r\n+PING\r\n",
		"a sign":                 "*+1\r\n$4\r\nPING\r\n",
		"a zero before":          "*01\r\n$4\r\nPING\r\n",
		"a blank":                "* 1\r\n$4\r\nPING\r\n",
		"a line feed alone":      "*1\n$4\r\nPING\r\n",
		"another byte for CR":    "*1x\n$4\r\nPING\r\n",
		"another byte for LF":    "*1\rX$4\r\nPING\r\n" + strings.Repeat("x", headerMax),
		"no end of an argument":  "*1\r\n$4\r\nPINGxx*3\r\n$4\r\nAUTH\r\n$3\r\nbob\r\n$1\r\nx\r\n",
		"a negative argument":    "*1\r\n$-1\r\n",
		"a huge argument":        "*1\r\n$99999999999999999\r\n",
		"a length that wraps":    "*1\r\n$18446744073709551620\r\n",
		"2^31 arguments":         "*2147483648\r\n$4\r\nPING\r\n",
		"an endless length":      "*" + strings.Repeat("1", headerMax),
		"a NUL in a line":        "PI\x00NG\r\n",
		"open quotes":            "ECHO \"a\r\n",
		"something behind them":  "ECHO \"a\"b\r\n",
		"a line without end":     strings.Repeat("x", bufferSize),
		"a name without end":     "*1\r\n$99999\r\n" + strings.Repeat("x", bufferSize),
		"a NUL in a long one":    "*2\r\n$2\r\nx\x00\r\n$40000\r\n" + strings.Repeat("x", 40000) + "\r\n",
		"a login that is long":   "*3\r\n$4\r\nAUTH\r\n$3\r\nbob\r\n$99999\r\n" + strings.Repeat("x", bufferSize),
		"an end that is missing": "*2\r\n$4\r\nECHO\r\n$40000\r\n" + strings.Repeat("x", 40000) + "*3\r\n",
		"POST":                   "POST / HTTP/1.1\r\nSET a b\r\n",
		"HTTP":                   "Host: 127.0.0.1\r\nSET a b\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			before := len(r.gate.All("db.session.malformed_packet"))
			c := r.as("alice")
			c.want("before", "ECHO", "before")
			c.write("ECHO 'recorded, and passed or not'\r\n" + bytes)
			got := c.receive()
			if got == "recorded, and passed or not" {
				got = c.receive()
			}
			if !strings.HasPrefix(got, "-ERR ") {
				t.Errorf("%q", got)
			}
			c.ends()
			if err := r.Result(); err == nil {
				t.Error("no error")
			}
			e := r.gate.Await(t, "db.session.malformed_packet", before+1)
			if payload := must(base64.StdEncoding.DecodeString(e.Fields["payload"].(string))); e.Code != "TDB06I" || len(payload) > payloadSize {
				t.Errorf("%+v", e)
			}
		})
	}
	for _, q := range r.queries() {
		if strings.HasPrefix(q, "AUTH") || strings.HasPrefix(q, "SET") {
			t.Errorf("taken for a command: %q", q)
		}
	}
	// Before a login, too.
	for _, bytes := range []string{"POST / HTTP/1.1\r\n", "*1\r\n+PING\r\n", "AUTH\r\n", "AUTH \"a b\" x\r\n", "AUTH '' x\r\n", "HELLO 3 AUTH\r\n", "AUTH " + strings.Repeat("a", nameMax+1) + " x\r\n", strings.Repeat("x", bufferSize)} {
		c := r.raw()
		c.write(bytes)
		if got := c.receive(); !strings.HasPrefix(got, "-") {
			t.Errorf("%q", got)
		}
		c.ends()
	}
}

// TestA112_Answers: what a server sends that is none ends the session.
func TestA112_Answers(t *testing.T) {
	for name, row := range map[string]struct{ answer, passes string }{
		"a strange byte":     {"?\r\n", ""},
		"no number":          {"*x\r\n", ""},
		"an endless length":  {"$" + strings.Repeat("1", headerMax), ""},
		"too many":           {"*9999999999999999\r\n", ""},
		"too many in maps":   {"%499999999999\r\n%499999999999\r\n", "%499999999999\r\n"},
		"a stream of RESP3":  {"$?\r\n;4\r\n", ""},
		"behind a good one":  {"+OK\r\n?\r\n", "+OK\r\n"},
		"inside of an array": {"*2\r\n:1\r\n?\r\n", "*2\r\n:1\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			s := &stub{t: t, answer: func(user, command string) string {
				if command == "ACL WHOAMI" {
					return "$5\r\nalice\r\n"
				}
				return row.answer
			}}
			r := newRig(t, func(r *rig) { r.server.Target.Address = s.start() })
			c := r.as("alice")
			c.send("GET", "a")
			got := new(bytes.Buffer)
			got.ReadFrom(c.r)
			text, told := strings.CutPrefix(got.String(), row.passes)
			whole := !strings.ContainsAny(row.passes, "*%")
			if !told || whole != strings.HasPrefix(text, "-ERR database orders: the server sent ") || !whole && text != "" {
				t.Errorf("%q", got)
			}
		})
	}
}

// TestA113_NothingHides: the audit log has the exact bytes, and what is in it is
// what the server did.
func TestA113_NothingHides(t *testing.T) {
	r := newRig(t)
	c := r.as("alice")
	for _, command := range [][]string{
		{"SET", "a b", "c\"d\\e'f"}, {"SET", "k", "\x00\xff\xfe\r\n*1\r\n"}, {"SET", "k", ""}, {"SET", "ключ", "\u202eevil\x1b]0;x\x07"}, {"SET", "k", "\u202eevil"}, {"SET", "k", "\xff"}, {"ECHO", "... (12 more arguments)"}, {"ECHO", "****"},
	} {
		before := len(r.queries())
		c.send(command...)
		c.receive()
		got := r.queries()[before]
		args, err := words([]byte(got))
		if err != nil || len(args) != len(command) {
			t.Errorf("%q: %q, %v", command, got, err)
			continue
		}
		for i, a := range args {
			if string(a) != command[i] {
				t.Errorf("%q is recorded as %q", command, got)
			}
		}
		if strings.ContainsAny(got, "\x00\x1b\x07\r\n") || strings.Contains(got, "\u202e") {
			t.Errorf("%q would harm a terminal", got)
		}
	}
}

// passing feeds a command that is longer than the buffer to a splitter, and returns
// what it has kept of it.
func passing(t *testing.T, args ...string) *command {
	t.Helper()
	stream := []byte(fmt.Sprintf("*%d\r\n", len(args)))
	for _, a := range args {
		stream = fmt.Appendf(stream, "$%d\r\n%s\r\n", len(a), a)
	}
	s := splitter{keep: func(name []byte) (int, int, error) { return keep(name, 1<<20) }}
	for len(stream) > 0 {
		n := copy(s.space(), stream)
		stream = stream[n:]
		s.add(n)
		if c, err := s.next(); c != nil || err != nil {
			if err != nil || !c.spilled || len(stream) > 0 {
				t.Fatalf("%+v, %v", c, err)
			}
			return c
		}
		if s.stuck() {
			must(s.spill())
		} else {
			s.part()
		}
	}
	t.Fatal("the command has not ended")
	return nil
}

// TestA113_LongCommands: of a command that passes in pieces the audit log says what it
// has of each argument, whether that is all, and how many more there were.
func TestA113_LongCommands(t *testing.T) {
	fill := func(n, size int, b string) (out []string) {
		for range n {
			out = append(out, strings.Repeat(b, size))
		}
		return out
	}
	for name, row := range map[string]struct {
		args  []string
		least int // arguments that are told, in full or not
		cut   bool
	}{
		"short ones":          {fill(100_000, 3, "x"), allArguments/(argumentCost+3) - 1, true},
		"empty ones":          {fill(100_000, 0, ""), allArguments/argumentCost - 1, true},
		"that need escapes":   {fill(1_000, 100, "\x00"), allArguments/(4*100+3) - 1, true},
		"all that fit":        {fill(11, 4000, "x"), 12, false},
		"the last one is cut": {fill(12, 4090, "x"), 13, true},
		"one is too long":     {append(fill(8, 4096, "x"), strings.Repeat("y", 4097)), 10, true},
		"each as long as can": {fill(9, 4096, "x"), 10, false},
	} {
		t.Run(name, func(t *testing.T) {
			sent := append([]string{"RPUSH"}, row.args...)
			c := passing(t, sent...)
			if most := allArguments / argumentCost; len(c.args) > most {
				t.Errorf("%d arguments are kept, at most %d may be", len(c.args), most)
			}
			one, all := roomFor(c.args[0], 1<<20)
			b, cut := appendText(nil, c, one, all)
			text, more, told := strings.Cut(string(b), " ... (")
			left := 0
			if told {
				left = must(strconv.Atoi(strings.TrimSuffix(more, " more arguments)")))
			}
			got := strings.Split(text, " ")
			if cut != row.cut || len(got)+left != len(sent) || len(got) < row.least || len(b) > 8*allArguments {
				t.Errorf("cut %v, %d and %d more of %d, %d bytes", cut, len(got), left, len(sent), len(b))
			}
			partly := 0
			for i, word := range got {
				begins, part := strings.CutSuffix(word, "...")
				arg, err := words([]byte(begins))
				if err != nil || len(arg) != 1 || !strings.HasPrefix(sent[i], string(arg[0])) || part != (len(arg[0]) < len(sent[i])) {
					t.Fatalf("argument %d of %d bytes is %.20q… of %d: %v", i, len(sent[i]), word, len(word), err)
				}
				if part {
					partly++
				}
			}
			if cut != (partly+left > 0) {
				t.Errorf("cut %v, %d arguments in part, and %d not", cut, partly, left)
			}
		})
	}
}

// TestA100_Malformed: what is malformed is told without the passwords in it.
func TestA100_Malformed(t *testing.T) {
	r := newRig(t)
	const canary = "canary-5f1c"
	for _, row := range []struct {
		bytes string
		told  bool
	}{
		{"AUTH alice \"" + canary + "\"x\r\n", false},
		{"*3\r\n$4\r\nAuth\r\n$5\r\nalice\r\n$x\r\n" + canary, false},
		{"*2\r\n$3\r\nGET\r\n$x\r\n" + canary, true},
	} {
		before := len(r.gate.All("db.session.malformed_packet"))
		c := r.as("alice")
		c.write(row.bytes)
		e := r.gate.Await(t, "db.session.malformed_packet", before+1)
		payload, _ := e.Fields["payload"].(string)
		b, err := base64.StdEncoding.DecodeString(payload)
		if err != nil || strings.Contains(string(b), canary) != row.told || e.Fields["payload_size"] == 0 {
			t.Errorf("%q: %+v", row.bytes, e.Fields)
		}
	}
}

// TestA100_Secrets: passwords are not in the audit log.
func TestA100_Secrets(t *testing.T) {
	const canary = "canary-5f1c"
	for _, row := range []struct {
		command []string
		want    string
	}{
		{[]string{"AUTH", canary}, "AUTH ****"},
		{[]string{"auth", "bob", canary}, "auth bob ****"},
		{[]string{"AUTH", "bob", canary, canary}, "AUTH **** **** ****"},
		{[]string{"HELLO", "3", "AUTH", "bob", canary, "SETNAME", "x"}, "HELLO 3 AUTH bob **** SETNAME x"},
		{[]string{"HELLO", "AUTH", "bob", canary}, "HELLO AUTH bob ****"},
		{[]string{"CONFIG", "SET", "maxmemory", "1", "RequirePass", canary}, "CONFIG SET maxmemory 1 RequirePass ****"},
		{[]string{"config", "set", "masterauth", canary}, "config set masterauth ****"},
		{[]string{"CONFIG", "SET", "tls-key-file-pass", canary}, "CONFIG SET tls-key-file-pass ****"},
		{[]string{"ACL", "SETUSER", "bob", "on", ">" + canary, "~*", "#" + canary, "(~a", ">" + canary + ")", "on <" + canary}, "ACL SETUSER bob on **** ~* **** (~a **** ****"},
		{[]string{"MIGRATE", "h", "1", "", "0", "5", "COPY", "AUTH", canary, "KEYS", "auth", "k"}, `MIGRATE h 1 "" 0 5 COPY AUTH **** KEYS auth k`},
		{[]string{"MIGRATE", "h", "1", "auth", "0", "5", "AUTH2", "bob", canary, "KEYS", "k"}, "MIGRATE h 1 auth 0 5 AUTH2 bob **** KEYS k"},
		{[]string{"SENTINEL", "SET", "main", "auth-pass", canary}, "SENTINEL SET main auth-pass ****"},
		{[]string{"SENTINEL", "CONFIG", "SET", "sentinel-pass", canary}, "SENTINEL CONFIG SET sentinel-pass ****"},
		{[]string{"CONFIG", "GET", "requirepass"}, "CONFIG GET requirepass"},
		{[]string{"SET", "auth", "x"}, "SET auth x"},
	} {
		c := &command{count: len(row.command)}
		for _, a := range row.command {
			c.args = append(c.args, []byte(a))
		}
		if got, cut := appendText(nil, c, oneArgument, allArguments); string(got) != row.want || cut {
			t.Errorf("%q: %q, want %q", row.command, got, row.want)
		}
	}
	r := newRig(t)
	c := r.as("alice")
	c.send("ACL", "SETUSER", "temp", ">"+canary)
	c.receive()
	c.send("MIGRATE", "127.0.0.1", "1", "nothing", "0", "5", "AUTH", canary)
	c.receive()
	c.write("CONFIG SET requirepass \"\\x63anary-5f1c\" nothing 1\r\n")
	c.receive()
	for _, e := range r.gate.All() {
		for name, v := range e.Fields {
			if s, ok := v.(string); ok && strings.Contains(s, canary) {
				t.Errorf("%s: %s %q", e.Name, name, s)
			}
		}
	}
}

// TestLengthIsNotBelieved: memory is used for bytes that have come.
func TestLengthIsNotBelieved(t *testing.T) {
	for _, begin := range []string{"*2147483647\r\n$3\r\nDEL\r\n$536870912\r\n", "*2\r\n$3\r\nSET\r\n$1099511627776\r\n"} {
		s := splitter{keep: func([]byte) (int, int, error) { return oneArgument, allArguments, nil }}
		s.add(copy(s.space(), begin))
		for range 1000 {
			if c, err := s.next(); c != nil || err != nil {
				t.Fatal(c, err)
			}
			if s.stuck() {
				must(s.spill())
			}
			s.part()
			s.add(len(s.space()))
		}
		kept := cap(s.spans)
		for _, k := range s.kept {
			kept += cap(k)
		}
		if len(s.buf) > bufferSize || kept > 4*allArguments {
			t.Errorf("%d and %d bytes", len(s.buf), kept)
		}
	}
}

// TestGateIsAskedFirst: a client that may not be a user does not reach the server.
func TestGateIsAskedFirst(t *testing.T) {
	s := &stub{t: t, answer: func(string, string) string { t.Error("the server was asked"); return "" }}
	r := newRig(t, func(r *rig) {
		r.server.Target = database.Target{Address: s.start()}
		r.gate.Deny = func(session.Use) *sallyport.Problem { return sallyport.Denied("no", "") }
	})
	c := r.raw()
	c.want("-NOPERM no", "AUTH", "alice", "x")
	c.ends()
}
