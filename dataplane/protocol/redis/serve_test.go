package redis

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/database/dbtest"
	"github.com/sallyport/sallyport/dataplane/session"
)

func TestRedisCLI(t *testing.T) {
	r := newRig(t)
	for name, cmd := range map[string]interface{ CombinedOutput() ([]byte, error) }{
		"by a local port": r.cli("--user", "alice", "--pass", "", "acl", "whoami"),
		"straight":        r.straight("--user", "alice", "--pass", "", "acl", "whoami"),
		"straight, RESP3": r.straight("-3", "--user", "alice", "--pass", "", "acl", "whoami"),
		"as a URI":        r.cli("-u", "redis://alice:any@127.0.0.1:"+r.Local(), "acl", "whoami"),
	} {
		before := len(r.gate.All())
		if out, err := cmd.CombinedOutput(); err != nil || strings.Trim(string(out), "\"\n") != "alice" {
			t.Fatalf("%s: %v\n%s", name, err, out)
		}
		if err := r.Result(); err != nil {
			t.Error(err)
		}
		all := r.gate.All()[before:]
		want := map[string]any{"db_service": "orders", "db_protocol": "redis", "db_uri": r.server.Target.Address, "db_user": "alice", "db_name": ""}
		if d := cmp.Diff(want, all[0].Fields); d != "" || all[0].Code != "TDB00I" {
			t.Error(d)
		}
		last := all[len(all)-2]
		if last.Code != "TDB02I" || last.Fields["db_query"] != "acl whoami" || last.Fields["db_user"] != "alice" {
			t.Errorf("%+v", last)
		}
		end := all[len(all)-1]
		if rx, tx := end.Fields["rx"].(int64), end.Fields["tx"].(int64); end.Code != "TDB01I" || rx == 0 || tx == 0 || end.Fields["error"] != nil {
			t.Errorf("end: %v", end)
		}
	}
}

// TestLogin: as whom a client comes, and by what the server takes it.
func TestLogin(t *testing.T) {
	for name, row := range map[string]struct {
		closed  bool
		user    string // that was asked for
		said    []string
		answers []string
		who     string
	}{
		"a user":                    {false, "alice", []string{"AUTH alice x"}, []string{"+OK"}, "alice"},
		"in small letters":          {false, "alice", []string{"auth alice x"}, []string{"+OK"}, "alice"},
		"empty password":            {false, "alice", []string{`AUTH alice ""`}, []string{"+OK"}, "alice"},
		"not ASCII":                 {false, "jürgen", []string{"AUTH jürgen x"}, []string{"+OK"}, "jürgen"},
		"a password":                {false, "carol", []string{"AUTH carol secret"}, []string{"+OK"}, "carol"},
		"a wrong one, then right":   {false, "carol", []string{"AUTH carol x", "GET a", "AUTH carol secret"}, []string{"-WRONGPASS…", "-NOAUTH…", "+OK"}, "carol"},
		"HELLO":                     {false, "alice", []string{"HELLO 2 AUTH alice x SETNAME me"}, []string{"*[…"}, "alice"},
		"HELLO 3":                   {false, "alice", []string{"hello 3 setname me auth alice x"}, []string{"%[…"}, "alice"},
		"HELLO with a password":     {false, "carol", []string{"HELLO 3 AUTH carol x", "HELLO 3 AUTH carol secret"}, []string{"-WRONGPASS…", "%[…"}, "carol"},
		"nobody":                    {false, "default", []string{"PING"}, []string{"+PONG"}, "default"},
		"nobody, HELLO":             {false, "default", []string{"HELLO 3"}, []string{"%[…"}, "default"},
		"a password alone":          {false, "default", []string{"AUTH x"}, []string{"+OK"}, "default"},
		"default by name":           {false, "default", []string{"AUTH default x"}, []string{"+OK"}, "default"},
		"nobody, wants a password":  {true, "default", []string{"GET a", "AUTH x", "AUTH secret"}, []string{"-NOAUTH…", "-WRONGPASS…", "+OK"}, "default"},
		"default with its password": {true, "default", []string{"AUTH secret"}, []string{"+OK"}, "default"},
		"a user, closed":            {true, "alice", []string{"AUTH alice x"}, []string{"+OK"}, "alice"},
		"a line":                    {true, "alice", []string{"\rAUTH 'alice' \"\\x41\""}, []string{"+OK"}, "alice"},
	} {
		t.Run(name, func(t *testing.T) {
			asked := make(chan string, 1)
			r := newRig(t, func(r *rig) {
				r.gate.Deny = func(use session.Use) *sallyport.Problem { asked <- use.DBUser; return nil }
				if row.closed {
					r.server.Target.Address = closedServer.addr(t)
				}
			})
			c := r.raw()
			for i, said := range row.said {
				if line, ok := strings.CutPrefix(said, "\r"); ok {
					c.write(line + "\r\n")
					c.want(row.answers[i])
					continue
				}
				args, err := words([]byte(said))
				if err != nil {
					t.Fatal(err)
				}
				var list []string
				for _, a := range args {
					list = append(list, string(a))
				}
				c.want(row.answers[i], list...)
			}
			c.want(row.who, "ACL", "WHOAMI")
			c.want("+OK", "QUIT")
			c.ends()
			if err := r.Result(); err != nil {
				t.Error(err)
			}
			if user := <-asked; user != row.user {
				t.Errorf("the gate was asked about %q", user)
			}
			for _, q := range r.queries() {
				if strings.Contains(q, "secret") {
					t.Errorf("recorded %q", q)
				}
			}
		})
	}
}

func TestDenied(t *testing.T) {
	r := newRig(t, func(r *rig) {
		r.gate.Deny = func(use session.Use) *sallyport.Problem {
			if use.DBUser == "alice" {
				return nil
			}
			return sallyport.Denied(fmt.Sprintf("no role lets you use database user %q", use.DBUser), "ask for role dba")
		}
	})
	out, _ := r.straight("--user", "bob", "--pass", "x", "get", "a").CombinedOutput()
	if !strings.Contains(string(out), `NOPERM no role lets you use database user "bob" (ask for role dba)`) {
		t.Errorf("%s", out)
	}
	if err := r.Result(); !errors.Is(err, sallyport.ErrDenied) {
		t.Errorf("Serve: %v", err)
	}
	if got := r.gate.All(); got[0].Code != "TDB00W" || *got[0].Success {
		t.Errorf("events %+v", got)
	}
	for _, e := range r.gate.All() {
		if e.Code != "TDB00W" {
			t.Errorf("%+v", e)
		}
	}
	out, _ = r.straight("get", "a").CombinedOutput()
	if !strings.Contains(string(out), `NOAUTH no role lets you use database user "default"`) || !strings.Contains(string(out), "AUTH NAME PASSWORD") {
		t.Errorf("%s", out)
	}
	c := r.raw()
	c.want(`-NOPERM no role lets you use database user "bob" (ask for role dba)`, "HELLO", "3", "AUTH", "bob", "x")
	c.ends()
	r.as("alice")
}

func TestRefusal(t *testing.T) {
	r := newRig(t, func(r *rig) { r.Refusal = sallyport.Denied("your certificate expired at 12:00", "run: sally login") })
	for _, command := range [][]string{{"AUTH", "alice", "x"}, {"PING"}} {
		c := r.raw()
		c.send(command...)
		if got := c.receive(); !strings.Contains(got, "your certificate expired at 12:00 (run: sally login") {
			t.Errorf("%q", got)
		}
		c.ends()
	}
}

// TestServerRefuses: what a client hears when the server is not to be had.
func TestServerRefuses(t *testing.T) {
	r := newRig(t)
	c := r.raw()
	for range tries {
		c.want(`-WRONGPASS database orders: the server does not accept user "nobody"…`, "AUTH", "nobody", "x")
	}
	c.ends()
	c = r.raw()
	c.want("-WRONGPASS…", "AUTH", "carol", "x")
	c.want("-NOPERM another database user…", "AUTH", "alice", "x")
	c.ends()

	wrong := newRig(t, func(r *rig) { r.server.Roots = nil })
	wrong.raw().want("-ERR database orders: the server's certificate is not trusted…", "AUTH", "alice", "x")
	away := newRig(t, func(r *rig) { r.server.Target.Address = "127.0.0.1:1" })
	away.raw().want("-ERR database orders is not reachable: connection refused…", "PING")
	stranger := newRig(t, func(r *rig) {
		r.server.Certificate = certificateOf(dbtest.UserCA)
	})
	c = stranger.raw()
	c.send("PING")
	if got := c.receive(); !strings.HasPrefix(got, "-NOPERM database orders: the server rejected the agent's certificate") {
		t.Errorf("%q", got)
	}
}

// TestOneUser: a connection stays the user's that was authorized.
func TestOneUser(t *testing.T) {
	r := newRig(t)
	c := r.as("alice")
	c.want("+OK", "SET", "one", "1")
	for _, command := range [][]string{
		{"AUTH", "bob", "x"}, {"AUTH", "x"}, {"auth", "default", ""}, {"HELLO", "3", "AUTH", "bob", "x"}, {"hello", "2", "SETNAME", "a", "AUTH", "default", ""},
		{"RESET"}, {"reset", "x"}, {"SYNC"}, {"PSYNC", "?", "-1"}, {"REPLCONF", "listening-port", "1"},
	} {
		c.want("-NOPERM…", command...)
		c.want("alice", "ACL", "WHOAMI")
	}
	for _, command := range [][]string{{"AUTH"}, {"AUTH", "alice", "x", "y"}, {"HELLO", "3", "AUTH", "alice"}, {"HELLO", "3", "AUTH", "alice", "x", "AUTH", "bob", "x"}, {"HELLO", "3", "NEW", "x"}} {
		c.want("-ERR…", command...)
		c.want("alice", "ACL", "WHOAMI")
	}
	// Servers compare names up to a NUL, and hash them whole: with luck one of these is AUTH.
	for _, command := range [][]string{{"AUTH\x00", "bob", "x"}, {"AUTH\x00and more than any name of a command", "bob", "x"}, {"RESET\x00"}, {"SYNC\x00a"}, {"GET\x00", "one"}} {
		c.want("-ERR a command with a NUL…", command...)
		c.want("alice", "ACL", "WHOAMI")
	}
	c.want("-NOPERM…", "HELLO", "3", "AUTH\x00", "bob", "x")
	c.want("+OK", "AUTH", "alice", "again")
	c.want("%[…", "HELLO", "3", "AUTH", "alice", "again")

	// As lines.
	c.write("\"AUTH\\x00\" bob x\r\n")
	c.want("-ERR a command with a NUL…")
	c.write("AUTH bob x\r\n\r\nacl whoami\r\n")
	c.want("-NOPERM…")
	c.want("alice")

	// In a transaction.
	c.want("+OK", "MULTI")
	c.want("+QUEUED", "SET", "one", "2")
	c.want("-NOPERM…", "AUTH", "bob", "x")
	c.want("-EXECABORT…", "EXEC")
	c.want("1", "GET", "one")

	// In a pipeline, with answers in order.
	var pipeline []byte
	for i := range 500 {
		pipeline = append(pipeline, fmt.Sprintf("*2\r\n$4\r\nECHO\r\n$3\r\n%03d\r\n*3\r\n$4\r\nAUTH\r\n$3\r\nbob\r\n$1\r\nx\r\nECHO 'l %03d'\r\n*0\r\n", i, i)...)
	}
	c.write(string(pipeline))
	for i := range 500 {
		c.want(fmt.Sprintf("%03d", i))
		c.want("-NOPERM another database user…")
		c.want(fmt.Sprintf("l %03d", i))
	}

	// Without answers there are none of ours, and later ones are at their place.
	c.send("CLIENT", "REPLY", "OFF")
	c.send("AUTH", "bob", "x")
	c.want("+OK", "CLIENT", "REPLY", "ON")
	c.want("-NOPERM replication…", "SYNC")
	c.want("alice", "ACL", "WHOAMI")

	if e := r.gate.All("db.session.query"); e[1].Code != "TDB02W" || *e[1].Success || e[1].Fields["error"] != "another database user in the same session is not served" || e[1].Fields["db_query"] != "AUTH bob ****" {
		t.Errorf("%+v", e[1])
	}

	// The default user may RESET: it stays itself.
	d := r.raw()
	d.want("+RESET", "RESET")
	d.want("default", "ACL", "WHOAMI")
	d.want("-NOPERM…", "AUTH", "alice", "x")
}

// TestSwapsAreBounded: a client that wants no answers does not fill the memory.
func TestSwapsAreBounded(t *testing.T) {
	r := newRig(t)
	c := r.as("alice")
	c.send("CLIENT", "REPLY", "OFF")
	c.write(strings.Repeat("SYNC\r\n", swapsMost+1))
	c.want("-ERR too many commands that are not served…")
	c.ends()
}

// TestFlows: what is not one answer to one command.
func TestFlows(t *testing.T) {
	r := newRig(t)
	other := r.as("bob")
	publish := func() {
		t.Helper()
		for _, channel := range []string{"news", "news2"} {
			other.send("PUBLISH", channel, "hello")
			other.receive()
		}
	}
	t.Run("subscriptions", func(t *testing.T) {
		c := r.as("alice")
		c.want("*[subscribe news :1]", "SUBSCRIBE", "news", "more")
		c.want("*[subscribe more :2]")
		c.want("*[psubscribe news? :3]", "PSUBSCRIBE", "news?")
		publish()
		c.want("*[message news hello]")
		c.want("*[pmessage news? news2 hello]")
		c.want("-NOPERM…", "AUTH", "bob", "x")
		c.want("*[pong ]", "PING")
		c.want("*[unsubscribe news :2]", "UNSUBSCRIBE", "news")
	})
	t.Run("pushes", func(t *testing.T) {
		c := r.as("alice")
		c.want("%[…", "HELLO", "3")
		c.want(">[subscribe news :1]", "SUBSCRIBE", "news")
		publish()
		c.want(">[message news hello]")
		c.want("+PONG", "PING")
		c.want("+OK", "CLIENT", "TRACKING", "ON")
		c.want("+OK", "SET", "tracked", "1")
		c.want("1", "GET", "tracked")
		other.want("+OK", "SET", "tracked", "2")
		c.want(">[invalidate *[tracked]]")
		c.want("%[a 1 b 2]", "EVAL", "redis.setresp(3) redis.call('HSET', 'h', 'a', '1', 'b', '2') return redis.call('HGETALL', 'h')", "0")
		c.want(",3.14…", "EVAL", "return {double=3.14}", "0")
		c.want("#t", "EVAL", "redis.setresp(3) return true", "0")
		c.want("_", "GET", "nothing")
	})
	t.Run("MONITOR", func(t *testing.T) {
		c := r.as("alice")
		c.want("+OK", "MONITOR")
		other.want("+OK", "SET", "watched", "1")
		for !strings.Contains(c.receive(), `"SET" "watched" "1"`) {
		}
	})
	t.Run("blocking", func(t *testing.T) {
		c := r.as("alice")
		c.send("BLPOP", "queue", "0")
		other.send("LPUSH", "queue", "x")
		other.receive()
		c.want("*[queue x]")
	})
	t.Run("transaction", func(t *testing.T) {
		c := r.as("alice")
		for _, command := range []string{"MULTI", "SET a 1", "INCR a", "LRANGE nothing 0 -1"} {
			c.write(command + "\n")
		}
		c.want("+OK")
		for range 3 {
			c.want("+QUEUED")
		}
		c.want("*[+OK :2 *[]]", "EXEC")
	})
	t.Run("cut anywhere", func(t *testing.T) {
		c := r.as("alice")
		for _, b := range []byte("*2\r\n$4\r\nECHO\r\n$2\r\nhi\r\nECHO \"a b\"\r\n") {
			c.write(string(b))
		}
		c.want("hi")
		c.want("a b")
	})
	t.Run("the server's own refusals", func(t *testing.T) {
		c := r.as("reader")
		c.want("-NOPERM…", "SET", "a", "1")
		c.want("-ERR wrong number…", "GET")
		c.want("-ERR unknown command 'nothing'…", "nothing")
	})
}

// TestLargeValues pass in pieces, both ways.
func TestLargeValues(t *testing.T) {
	r := newRig(t)
	c := r.as("alice")
	value := strings.Repeat("0123456789abcde\n", 1<<20)
	c.want("+OK", "SET", "large", value)
	if c.send("GET", "large"); c.receive() != value {
		t.Error("another value came back")
	}
	c.send("UNLINK", "list")
	c.receive()
	many := []string{"RPUSH", "list"}
	for i := range 100_000 {
		many = append(many, fmt.Sprint(i))
	}
	c.want(":100000", many...)
	c.send("LRANGE", "list", "0", "-1")
	if got := c.receive(); len(got) < 500_000 || !strings.HasSuffix(got, " 99999]") {
		t.Errorf("%d bytes", len(got))
	}
	script := "-- " + strings.Repeat("a comment ", 20_000) + "\nreturn 7"
	c.want(":7", "EVAL", script, "0")
	c.want("+OK", "MSET", "k", strings.Repeat("x", 40<<10), "l", strings.Repeat("y", 5))
	c.want("y"+"yyyy", "GET", "l")
	queries := r.gate.All("db.session.query")
	set := queries[0].Fields
	if text := set["db_query"].(string); !strings.HasPrefix(text, `SET large "0123456789abcde\n0123`) || len(text) > 8<<10 || set["db_query_truncated"] != true || set["db_query_size"] != int64(8+len(value)) {
		t.Errorf("%.80q %d %v %v", text, len(text), set["db_query_truncated"], set["db_query_size"])
	}
	push := queries[3].Fields
	if text := push["db_query"].(string); !strings.HasPrefix(text, "RPUSH list 0 1 2 ") || !strings.HasSuffix(text, " more arguments)") || push["db_query_truncated"] != true {
		t.Errorf("%.80q", text)
	}
	whole := ""
	for _, e := range queries {
		if text := e.Fields["db_query"].(string); e.Fields["db_query_part"] != nil {
			whole += text
			if e.Fields["db_query_truncated"] != nil {
				t.Error("the script is cut")
			}
		}
	}
	if args, err := words([]byte(whole)); err != nil || len(args) != 3 || string(args[1]) != script {
		t.Errorf("the script is not recorded: %v %.80q", err, whole)
	}
	last := queries[len(queries)-2].Fields
	if text := last["db_query"].(string); !strings.HasPrefix(text, "MSET k xxx") || !strings.HasSuffix(text, "... l yyyyy") {
		t.Errorf("%.40q %q", text, text[4090:])
	}
}

// TestLock: a session that must end is told so, while a command blocks.
func TestLock(t *testing.T) {
	r := newRig(t)
	c := r.as("alice")
	watcher := r.raw()
	c.send("BLPOP", "never", "0")
	for !strings.Contains(watcher.clients(), "cmd=blpop") {
	}
	r.gate.Lock()
	c.want("-NOPERM user alice is locked: on leave (ask your administrator)")
	c.ends()
	if err := r.Result(); !errors.Is(err, sallyport.ErrDenied) {
		t.Error(err)
	}
	if e := r.gate.Await(t, "db.session.end", 1); e.Fields["error"] != "user alice is locked: on leave" {
		t.Errorf("%v", e.Fields)
	}
	other := newRig(t).raw()
	for strings.Contains(other.clients(), "cmd=blpop") {
	}
}

// clients is what CLIENT LIST says.
func (c *raw) clients() string {
	c.t.Helper()
	c.send("CLIENT", "LIST")
	return c.receive()
}

// TestLockDuringLogin: also before the server has accepted the user.
func TestLockDuringLogin(t *testing.T) {
	r := newRig(t)
	c := r.raw()
	c.want("-WRONGPASS…", "AUTH", "carol", "x")
	r.gate.Lock()
	c.want("-NOPERM user alice is locked: on leave (ask your administrator)")
	c.ends()
}

// TestServerEnds: a client hears that the server has ended its connection.
func TestServerEnds(t *testing.T) {
	r := newRig(t)
	c := r.as("alice")
	c.send("CLIENT", "ID")
	id := strings.TrimPrefix(c.receive(), ":")
	r.as("bob").want(":1", "CLIENT", "KILL", "ID", id)
	c.want("-ERR database orders closed the connection (connect again)")
	c.ends()
	if err := r.Result(); err == nil {
		t.Error("no error")
	}
}

func TestIdle(t *testing.T) {
	r := newRig(t, func(r *rig) { r.gate.Options.ClientIdleTimeout = 50 * time.Millisecond })
	c := r.as("alice")
	c.want("-NOPERM the session was idle for 50ms (connect again)")
	c.ends()
}

func TestStartupThatNeverEnds(t *testing.T) {
	r := newRig(t, func(r *rig) { r.server.Bounds.Startup = 50 * time.Millisecond })
	for _, b := range []string{"", "*", "*3\r\n$4\r\nAUTH\r\n$5\r\nal", "\r\n*0\r\n"} {
		c := r.raw()
		c.write(b)
		if err := r.Result(); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%q: %v", b, err)
		}
	}
	r = newRig(t, func(r *rig) { r.server.Bounds.Login = time.Second })
	c := r.raw()
	c.send("AUTH", "carol", "x") // it hears that the password is wrong, if that is told in time
	if err := r.Result(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error(err)
	}
}

// TestHalfClose: a client that ends its half after QUIT, or without.
func TestHalfClose(t *testing.T) {
	r := newRig(t)
	c := r.as("alice")
	c.want("+PONG", "PING")
	c.Conn.(interface{ CloseWrite() error }).CloseWrite()
	c.ends()
	if err := r.Result(); err != nil {
		t.Error(err)
	}
}
