package attack

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/crypto/ssh"

	"github.com/sallyport/sallyport/tools/peers"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
)

// TestA29_Names: a database's or a user's name is that name and nothing else:
// whoever is let in is who he said, where he said.
func TestA29_Names(t *testing.T) {
	d := target(t)
	if d.name("db") == "" {
		peers.Missing(t, "postgres")
	}
	d.role(t, "all-databases", `{"db_labels":{"*":["*"]},"db_users":["*"],"db_names":["*"]}`)
	anyone := d.user(t, "anyone", []string{"access", "all-databases"}, map[string][]string{"db_users": {"*"}, "db_names": {"*"}})
	d.leavesNothing(t)
	ends := []string{";", "=", "&", "?", "#", "'", "\"", "\\", " ", "\n", "\r", "\t", "%00", "%27", "@", "/", ":", ",", "`", "$(id)", "' user='postgres", "\" user=\"postgres", "?user=postgres", "&user=postgres", " user=postgres", "\nuser=postgres", "';drop role reader;--"}
	for _, end := range ends {
		for user, database := range map[string]string{"reader" + end: "demo", "reader": "demo" + end, end + "reader": end + "demo"} {
			d.asSaid(t, anyone, user, database)
		}
	}
}

// asSaid opens a session, and when it is let in wants it to be as whom and where
// it said.
func (d *demo) asSaid(t *testing.T, h *holder, user, database string) {
	t.Helper()
	conn, err := d.throughDoor(h)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(callWait))
	body := "\x00\x03\x00\x00user\x00" + user + "\x00database\x00" + database + "\x00\x00"
	conn.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(body)+4)), body...))
	kind, text := postgresMessage(t, conn)
	if kind == 'E' {
		if strings.Contains(text, "syntax error") {
			t.Errorf("user %q, database %q: the name became SQL: %q", user, database, text)
		}
		return
	}
	for kind != 'Z' && kind != 0 { // until it is ready
		kind, _ = postgresMessage(t, conn)
	}
	query := "select current_user || '|' || current_database()\x00"
	conn.Write(append(binary.BigEndian.AppendUint32([]byte{'Q'}, uint32(len(query)+4)), query...))
	for kind != 'D' && kind != 0 && kind != 'E' {
		kind, text = postgresMessage(t, conn)
	}
	if want := user + "|" + database; kind != 'D' || !strings.HasSuffix(text, want) {
		t.Errorf("user %q, database %q: is %c %q", user, database, kind, text)
	}
}

func postgresMessage(t testing.TB, conn net.Conn) (byte, string) {
	t.Helper()
	head := make([]byte, 5)
	if _, err := io.ReadFull(conn, head); err != nil {
		return 0, ""
	}
	b := make([]byte, min(binary.BigEndian.Uint32(head[1:])-4, 1<<16))
	if _, err := io.ReadFull(conn, b); err != nil {
		return 0, ""
	}
	return head[0], string(b)
}

// TestA82_RejectedChannels: refusing channels, and replies that nobody asked
// for, leave nothing behind and stop nothing (CVE-2026-39827, CVE-2026-39830).
func TestA82_RejectedChannels(t *testing.T) {
	d := target(t)
	admin := d.admin(t)
	d.leavesNothing(t)
	login := d.Resources[0].Logins[0]
	c, err := d.shell(t, admin, login, ssh.PublicKeys(admin.ssh))
	if err != nil {
		t.Fatal(err)
	}
	reject := func(n int) {
		for range n {
			if ch, _, err := c.OpenChannel("x11", nil); err == nil {
				ch.Close()
				t.Fatal("opened")
			}
			if _, _, err := c.SendRequest("no-such-request", false, nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	// The heap goes up and down; what leaks is there after each round.
	reject(5000)
	before := d.memory(t)
	var least int64 = 1 << 62
	for range 4 {
		reject(5000)
		least = min(least, d.memory(t)-before)
		t.Logf("%d bytes more", d.memory(t)-before)
		before = min(before, d.memory(t))
	}
	if least > 16<<20 && !underRace {
		t.Errorf("5,000 refused channels cost %d bytes, each time", least)
	}
	if out, err := firstOutput(c); err != nil || !strings.Contains(out, "in\n") {
		t.Errorf("after them: %q, %v", out, err)
	}
}

// TestA82_Certificates: certificates that a library once stumbled over are
// refused in order, and the node goes on.
func TestA82_Certificates(t *testing.T) {
	d := target(t)
	admin := d.admin(t)
	login := d.Resources[0].Logins[0]
	d.leavesNothing(t)
	own, err := ssh.NewSignerFromKey(admin.key)
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*ssh.Certificate){
		"signature key is its own": func(c *ssh.Certificate) { c.SignatureKey = c.Key },
		"source address elsewhere": func(c *ssh.Certificate) { c.CriticalOptions = map[string]string{"source-address": "192.0.2.1/32"} },
		"unknown critical option":  func(c *ssh.Certificate) { c.CriticalOptions = map[string]string{"no-such-option": ""} },
		"forced command":           func(c *ssh.Certificate) { c.CriticalOptions = map[string]string{"force-command": "false"} },
		"host certificate":         func(c *ssh.Certificate) { c.CertType = ssh.HostCert },
		"of no type":               func(c *ssh.Certificate) { c.CertType = 7 },
		"no principals":            func(c *ssh.Certificate) { c.ValidPrincipals = nil },
		"forever":                  func(c *ssh.Certificate) { c.ValidAfter, c.ValidBefore = 0, ssh.CertTimeInfinity },
		"a time that is no time":   func(c *ssh.Certificate) { c.ValidAfter, c.ValidBefore = 1<<63, 1<<63+1 },
		"many principals":          func(c *ssh.Certificate) { c.ValidPrincipals = slices.Repeat([]string{login}, 3000) },
		"a megabyte of an extension": func(c *ssh.Certificate) {
			c.Permissions.Extensions = map[string]string{"x": strings.Repeat("x", 200<<10)}
		},
	} {
		for by, signer := range map[string]ssh.Signer{"its own key": own, "the old signature": nil} {
			if c, err := d.shell(t, admin, login, ssh.PublicKeys(forged(t, admin.ssh, signer, change))); err == nil {
				if out, _ := firstOutput(c); strings.Contains(out, "in\n") {
					t.Errorf("%s, signed with %s: a command ran", name, by)
				}
				c.Close()
			}
		}
	}
	if c, err := d.shell(t, admin, login, ssh.PublicKeys(admin.ssh)); err != nil {
		t.Errorf("the node after them: %v", err)
	} else if out, err := firstOutput(c); err != nil || !strings.Contains(out, "in\n") {
		t.Errorf("the node after them: %q, %v", out, err)
	}
}

// TestA144_FloodLocksNobodyOut: while strangers from everywhere hold what
// strangers may hold, who has been here, and who comes with a certificate, gets in.
func TestA144_FloodLocksNobodyOut(t *testing.T) {
	d := target(t)
	admin := d.admin(t)
	d.session(t, admin, "127.6.0.1") // so this source is known
	d.leavesNothing(t)
	hello := helloFor(t, d.serverName("tcp"), "sallyport-tcp/1")
	agent, _ := d.stolen(t, "agent")
	for name, first := range map[string][]byte{"half-open streams": hello, "half hellos": hello[:len(hello)-1], "one byte": hello[:1]} {
		flood := d.crowd(t, 1500, byte(40+len(name)%20), first)
		for range 5 {
			d.session(t, admin, "127.6.0.1") // fails the test if it does not get in
		}
		if _, err := d.accessAPI(admin).WhoAmI(context.Background(), connect.NewRequest(&sallyportv1.WhoAmIRequest{})); err != nil {
			t.Errorf("%s: the API from a known source: %v", name, err)
		}
		// An agent reaches the tunnels' door: its certificate is looked at.
		conn := d.dialFrom(t, "127.6.0.1")
		conn.SetDeadline(time.Now().Add(callWait))
		tc := tls.Client(conn, &tls.Config{NextProtos: []string{"sallyport-tunnel/1"}, Certificates: []tls.Certificate{agent.tls}, InsecureSkipVerify: true})
		if err := tc.Handshake(); err != nil {
			t.Errorf("%s: an agent: %v", name, err)
		}
		conn.Close()
		d.status(t) // the admin socket answers
		flood.close()
	}
}

// TestA145_ManyNames: a name costs its hash and no more: 4,000 different names
// in hellos that nothing is routed by leave nothing behind, and the next costs
// what the first did.
func TestA145_ManyNames(t *testing.T) {
	d := target(t)
	d.session(t, d.admin(t), "127.6.0.1")
	d.leavesNothing(t)
	ask := func(from, n int) {
		var wg sync.WaitGroup
		slots := make(chan struct{}, 16)
		for i := range n {
			slots <- struct{}{}
			wg.Go(func() {
				defer func() { <-slots }()
				conn, err := (&net.Dialer{Timeout: callWait, LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 70, byte(i>>8), byte(1+i%250))}}).Dial("tcp", d.Proxy)
				if err != nil {
					t.Error(err)
					return
				}
				defer conn.Close()
				name := fmt.Sprintf("n%d.%s.example.com", from+i, strings.Repeat("a", i%60+1))
				conn.Write(helloFor(t, name, "h2"))
				if b, _, err := untilClosed(conn, stage+slack); err != nil || !bytes.HasSuffix(b, []byte{2, 112}) { // unrecognized_name
					t.Errorf("%s: %x, %v", name, b, err)
				}
			})
		}
		wg.Wait()
	}
	ask(0, 500)
	before := d.memory(t)
	ask(1000, 4000)
	if grown := d.memory(t) - before; grown > 16<<20 && !underRace {
		t.Errorf("4,000 names cost %d bytes", grown)
	}
}
