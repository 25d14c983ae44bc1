package main

import (
	"bufio"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport"
)

// TestRedisAuth: what the agent answers to the login that a local port makes.
func TestRedisAuth(t *testing.T) {
	for answer, want := range map[string]string{
		"+OK\r\n":                              "",
		"-WRONGPASS wants a password\r\n":      "", // the client says it
		"-NOPERM you may not (ask)\r\n":        "NOPERM you may not (ask)",
		"-ERR database x is not reachable\r\n": "ERR database x is not reachable",
		"+PONG\r\n":                            "+PONG",
		"":                                     "EOF",
		"-ERR cut":                             "EOF",
		strings.Repeat("x", 2*redisAnswerMax):  "a long answer to AUTH",
	} {
		here, there := net.Pipe()
		here.SetDeadline(time.Now().Add(time.Minute))
		said := make(chan string, 1)
		go func() {
			defer there.Close()
			b := make([]byte, len("*3\r\n$4\r\nAUTH\r\n$7\r\nali ü\n\r\n$0\r\n\r\n"))
			n, _ := io.ReadFull(bufio.NewReader(there), b)
			said <- string(b[:n])
			io.WriteString(there, answer)
		}()
		err := redisAuth(here, "ali ü\n")
		if got := <-said; got != "*3\r\n$4\r\nAUTH\r\n$7\r\nali ü\n\r\n$0\r\n\r\n" {
			t.Errorf("said %q", got)
		}
		if err == nil && want != "" || err != nil && (want == "" || !strings.Contains(err.Error(), want)) {
			t.Errorf("%.40q: %v", answer, err)
		}
		if strings.HasPrefix(answer, "-NOPERM") && !errors.Is(err, sallyport.ErrDenied) {
			t.Errorf("%v", err)
		}
		here.Close()
	}
}

// TestA29_RedisCommand: names do not become options or commands of a shell.
func TestA29_RedisCommand(t *testing.T) {
	d := &database{name: "cache", host: "cache.db.gw", hostaddr: "192.0.2.1", port: "443", ca: "/a b/ca", cert: "c", key: "k", user: "$(evil)", protocol: protocolRedis}
	want := `redis-cli -h 192.0.2.1 -p 443 --tls --sni cache.db.gw --cacert '/a b/ca' --cert c --key k --user '$(evil)' --no-auth-warning --pass ''`
	if got := d.redisCommand(); got != want {
		t.Errorf("%s", got)
	}
	for environ, want := range map[string]bool{"REDISCLI_AUTH=x": true, "VALKEYCLI_AUTH=": true, "REDISCLI_HISTFILE=x": false, "": false} {
		if got := givesPassword([]string{"PATH=/bin", environ}); got != want {
			t.Errorf("%s: %v", environ, got)
		}
	}
}

// TestRedisLogin: what a login chose is kept beside the keys.
func TestRedisLogin(t *testing.T) {
	p := newProgram(t)
	d := someDatabase(t, p)
	d.protocol = protocolRedis
	chosen := *d
	chosen.user = "reader"
	if err := p.dbLogin(&chosen); err != nil {
		t.Fatal(err)
	}
	later := *d
	if err := p.dbFiles(&later); err != nil || later.user != "reader" {
		t.Errorf("%q, %v", later.user, err)
	}
	if got := p.protocolOf(d.cred.Profile, "orders", nil); got != protocolRedis {
		t.Errorf("protocol %q", got)
	}
	if err := p.dbLogout(d.cred.Profile, "orders"); err != nil || len(p.databasesOf(d.cred.Profile)) > 0 {
		t.Errorf("%v", err)
	}
}
