package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/dial"
)

const (
	redisLogin     = 30 * time.Second // for the agent's answer to AUTH
	redisAnswerMax = 2 << 10          // bytes of it
)

// redisPasswords are the variables by which redis-cli and valkey-cli take a password.
func redisPasswords() []string { return []string{"REDISCLI_AUTH", "VALKEYCLI_AUTH"} }

// stockRedis finds a client on the PATH.
func stockRedis() (string, error) {
	for _, name := range []string{"redis-cli", "valkey-cli"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", problem(sallyport.ErrNotFound, "neither redis-cli nor valkey-cli is on the PATH", "install one (Debian: redis-tools), or use sally proxy db")
}

// redisLoggedIn says on a connection as whom: so that clients need not. A server that
// wants a password is left to the client, which says AUTH itself.
func redisLoggedIn(ctx context.Context, conn net.Conn, user string) (net.Conn, error) {
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	conn.SetDeadline(time.Now().Add(redisLogin))
	if err := redisAuth(conn, user); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, conn.SetDeadline(time.Time{})
}

// redisAuth says AUTH with an empty password, and reads the answer and no more.
func redisAuth(conn net.Conn, user string) error {
	if _, err := fmt.Fprintf(conn, "*3\r\n$4\r\nAUTH\r\n$%d\r\n%s\r\n$0\r\n\r\n", len(user), user); err != nil {
		return err
	}
	answer := make([]byte, 0, redisAnswerMax)
	for !bytes.HasSuffix(answer, []byte("\r\n")) {
		if len(answer) == cap(answer) {
			return errors.New("a long answer to AUTH")
		}
		n, err := conn.Read(answer[len(answer) : len(answer)+1])
		answer = answer[:len(answer)+n]
		if n == 0 && err != nil {
			return err
		}
	}
	text := strings.TrimSuffix(string(answer), "\r\n")
	if text == "+OK" || strings.HasPrefix(text, "-WRONGPASS ") {
		return nil
	}
	return problem(sallyport.ErrDenied, strings.TrimPrefix(text, "-"), "")
}

func (p *program) redisProxy(d *database, l net.Listener) *dial.LocalProxy {
	to := p.lasting(d.cred).to(sallyport.KindDatabase, d.name, protocolDB)
	return &dial.LocalProxy{Listener: l, Redis: true, Dial: func(ctx context.Context) (net.Conn, error) {
		conn, err := to(ctx)
		if err != nil || d.user == "" {
			return conn, err
		}
		return redisLoggedIn(ctx, conn, d.user)
	}}
}

// connectRedis starts a client on a socket that is there as long as it runs. A
// password in the environment is for the client to give.
func (p *program) connectRedis(d *database, args []string) error {
	client, err := stockRedis()
	if err != nil {
		return err
	}
	l, err := listenForClient(d.name)
	if err != nil {
		return err
	}
	defer l.remove()
	to, environ := *d, os.Environ()
	said := []string{"-s", l.path}
	if givesPassword(environ) {
		said, to.user = append(said, "--user", d.user), ""
	}
	cmd := exec.Command(client, append(said, args...)...)
	cmd.Env = environ
	return p.runOn(p.redisProxy(&to, l), cmd)
}

// givesPassword says that a client would say AUTH by itself.
func givesPassword(environ []string) bool {
	return slices.ContainsFunc(environ, func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		return slices.Contains(redisPasswords(), name)
	})
}

// redisCommand leads redis-cli straight to the gateway, whose certificate's
// issuer it checks, and not the name.
func (d *database) redisCommand() string {
	words := []string{"redis-cli", "-h", or(d.hostaddr, d.host), "-p", d.port, "--tls", "--sni", d.host, "--cacert", d.ca, "--cert", d.cert, "--key", d.key}
	return shellWords(append(words, "--user", or(d.user, "USER"), "--no-auth-warning", "--pass", ""))
}

// saidRedis says how to go on after a login.
func (p *program) saidRedis(d *database) error {
	at := *d
	at.user = or(d.user, "USER")
	_, err := fmt.Fprintf(p.stdout, "Connection information for database %q has been saved.\n\nConnect with:\n  %s\n  %s\n\nOther clients need a local port, or a server name and a certificate:\n  sally proxy db %s\n",
		d.name, at.connectCommand(), at.redisCommand(), d.name)
	return err
}

// redis serves "proxy db" of such a database.
func (c *proxyDBCmd) redis(p *program, d *database) error {
	if err := errors.Join(checkChoice(d.user, d.dbname), p.choose(d)); err != nil {
		return err
	}
	l, err := c.open()
	if err != nil {
		return err
	}
	port := strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
	use := []string{"redis-cli", "-h", l.Addr().(*net.TCPAddr).IP.String(), "-p", port}
	as := fmt.Sprintf("Clients are %q without a word; where the server wants a password, they say AUTH %s PASSWORD.", d.user, d.user)
	if d.user == "" {
		use = append(use, "--user", "USER", "--askpass")
		as = "Any password will do where the server wants none."
	}
	fmt.Fprintf(p.stdout, "Started authenticated tunnel for the Redis database %q in cluster %q on %s.\n\nUse:\n  $ %s\n%s\n",
		d.name, d.cred.Profile.Cluster, l.Addr(), shellWords(use), as)
	return p.serve(p.redisProxy(d, l))
}
