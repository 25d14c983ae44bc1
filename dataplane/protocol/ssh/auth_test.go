package ssh

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/session"
	"github.com/sallyport/sallyport/dataplane/sshauth"
	"github.com/sallyport/sallyport/identity"
	"golang.org/x/crypto/ssh"
)

// refusedAs dials, expects a refusal whose banner holds the fact, and exactly
// one line about it in the audit log.
func refusedAs(t *testing.T, h *host, login, fact string, signers ...ssh.Signer) {
	t.Helper()
	before := len(h.gate.named("auth"))
	c, err := h.dialAs(login, signers...)
	if err == nil {
		c.Close()
		t.Fatalf("let in, want %q", fact)
	}
	waitFor(t, "Serve to return", func() { <-h.errs })
	if fact != "" && !strings.Contains(c.banner, "ERROR: "+fact) {
		t.Errorf("banner %q, want %q", c.banner, fact)
	}
	events := h.gate.named("auth")[before:]
	if len(events) != 1 || events[0].Code != "T3007W" || events[0].Fields["server_hostname"] != "Web 1" {
		t.Errorf("%d events: %+v", len(events), events)
	}
	if h.gate.opens != h.gate.ended {
		t.Errorf("%d sessions opened, %d ended", h.gate.opens, h.gate.ended)
	}
}

// TestRefusals: each reason reaches the person and the audit log, once.
func TestRefusals(t *testing.T) {
	signed := func(h *host) ssh.Signer { return h.signer(nil) }
	for _, c := range []struct {
		name, login, fact string
		change            func(*host)
		signer            func(*host) ssh.Signer
	}{
		{"plain key", "", "", nil, func(h *host) ssh.Signer { return newKey(h.t) }},
		{"expired", "", "the certificate has expired", nil, func(h *host) ssh.Signer {
			return h.signer(func(c *ssh.Certificate) { c.ValidBefore = uint64(time.Now().Unix()) - 1 })
		}},
		{"another login", "root", `the certificate does not allow login "root"`, nil, signed},
		{"unknown login", "nobody-here", `login "nobody-here" does not exist on this host`, nil, func(h *host) ssh.Signer {
			return h.signer(func(c *ssh.Certificate) { c.ValidPrincipals = []string{"nobody-here"} })
		}},
		{"denied", "", "access denied: no role allows login", func(h *host) {
			h.gate.refuse = func(session.Use) *sallyport.Problem {
				return sallyport.Denied("access denied: no role allows login", "request access")
			}
		}, signed},
		{"locked", "", "user alice is locked", func(h *host) {
			h.gate.admit = func(sallyport.Identity, netip.AddrPort) *sallyport.Problem {
				return sallyport.Denied("user alice is locked", "")
			}
		}, signed},
		{"another user", "", "the SSH certificate and the TLS certificate name different users", func(h *host) {
			h.candidate.Identity.Name = "mallory"
		}, signed},
		{"outer of another cluster", "", "the certificate is of another cluster", func(h *host) {
			h.candidate.Identity.Cluster = "elsewhere.example.com"
		}, signed},
		{"A14 inner of another cluster", "", "the certificate is of another cluster", nil, func(h *host) ssh.Signer {
			return h.signer(func(c *ssh.Certificate) {
				c.Extensions[identity.SSHExtensionName] = identityOf(h.t, "alice", "elsewhere.example.com")
			})
		}},
		{"outer is an agent", "", "the certificate is not for SSH on this connection", func(h *host) {
			h.candidate.Identity.Kind = sallyport.KindAgent
		}, signed},
		{"outer web certificate", "", "the certificate is not for SSH on this connection", func(h *host) {
			h.candidate.Identity.Usage = sallyport.UsageWeb
		}, signed},
		{"no CAs", "", "no contact with auth", func(h *host) {
			h.server.UserCAs = func() ([][]byte, error) {
				return nil, &sallyport.Problem{Kind: sallyport.ErrStaleSnapshot, Fact: "no contact with auth"}
			}
		}, signed},
		{"no identity", "", "the certificate is not one of this cluster's", nil, func(h *host) ssh.Signer {
			return h.signer(func(c *ssh.Certificate) { delete(c.Extensions, identity.SSHExtensionName) })
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHost(t, c.change)
			login := c.login
			if login == "" {
				login = h.login
			}
			refusedAs(t, h, login, c.fact, c.signer(h))
		})
	}
}

// TestRefusalOfTheDoor: a candidate that the door has refused is told so, and
// the door, not this package, writes it down.
func TestRefusalOfTheDoor(t *testing.T) {
	h := newHost(t, func(h *host) { h.candidate.Refusal = sallyport.Denied("your certificate expired at noon", "log in") })
	c, err := h.dialAs(h.login, h.signer(nil))
	if err == nil {
		t.Fatal("let in")
	}
	if c.banner != "ERROR: your certificate expired at noon\r\nhint: log in\r\n" {
		t.Errorf("banner %q", c.banner)
	}
	if h.gate.opens != 0 || len(h.gate.named("auth")) != 0 {
		t.Errorf("events %+v", h.gate.events)
	}
}

// TestBannerIsHarmless: what strangers named does not steer the terminal.
func TestBannerIsHarmless(t *testing.T) {
	h := newHost(t, nil)
	c, err := h.dialAs("x\x1b]0;owned\x07\r\n", h.signer(nil))
	if err == nil {
		t.Fatal("let in")
	}
	if strings.ContainsAny(strings.ReplaceAll(c.banner, "\r\n", ""), "\x1b\x07\r\n") {
		t.Errorf("banner %q", c.banner)
	}
	waitFor(t, "Serve to return", func() { <-h.errs })
	denied := newHost(t, func(h *host) {
		h.gate.refuse = func(session.Use) *sallyport.Problem { return sallyport.Denied("a\x1b[2Jb", "c\rd\x9b") }
	})
	if c, err := denied.dialAs(denied.login, denied.signer(nil)); err == nil || c.banner != "ERROR: a?[2Jb\r\nhint: c?d?\r\n" {
		t.Errorf("banner %q", c.banner)
	}
	if e := h.gate.named("auth"); len(e) != 1 || strings.ContainsAny(e[0].Login, "\x1b\x07\r\n") {
		t.Errorf("events %+v", e)
	}
}

// TestGatewayCarriesUsers: a gateway's certificate outside opens SSH for anybody
// inside, and a browser's certificate only for the gateway that it is bound to.
func TestGatewayCarriesUsers(t *testing.T) {
	h := newHost(t, func(h *host) {
		h.candidate.Identity = sallyport.Identity{Kind: sallyport.KindGateway, Name: "gw-1", Cluster: cluster}
	})
	if got := h.run("echo $SALLY_USER"); got.out != "alice\n" {
		t.Errorf("got %+v", got)
	}
	web := func(bound string) ssh.Signer {
		return h.signer(func(c *ssh.Certificate) {
			value, err := identity.SSHValue(sallyport.Identity{Kind: sallyport.KindUser, Name: "alice", Cluster: cluster, Roles: []string{"dev"},
				Usage: sallyport.UsageWeb, BoundTo: bound})
			if err != nil {
				t.Fatal(err)
			}
			c.Extensions[identity.SSHExtensionName] = value
		})
	}
	if c, err := h.dialAs(h.login, web("spiffe://"+cluster+"/gateway/gw-1")); err != nil {
		t.Errorf("%v (banner %q)", err, c.banner)
	} else {
		c.Close()
	}
	if c, err := h.dialAs(h.login, web("spiffe://"+cluster+"/gateway/gw-2")); err == nil {
		c.Close()
		t.Error("a certificate bound to another gateway was let in")
	}
}

// TestA40_OfferedIsNotProven: a key that was offered leaves no trace in who the
// client is (CVE-2024-45337): alice's certificate is public, bob has only his.
func TestA40_OfferedIsNotProven(t *testing.T) {
	newGateway := func() *host {
		return newHost(t, func(h *host) {
			h.candidate.Identity = sallyport.Identity{Kind: sallyport.KindGateway, Name: "gw-1", Cluster: cluster}
		})
	}
	bob := func(h *host) ssh.Signer {
		return h.signer(func(c *ssh.Certificate) {
			c.KeyId, c.Extensions[identity.SSHExtensionName] = "bob", identityOf(t, "bob", cluster)
		})
	}
	t.Run("offer alice, prove bob", func(t *testing.T) {
		h := newGateway()
		alice := h.signer(nil)
		his := bob(h)
		for _, order := range []string{"alice", "alice bob", "bob alice", "bob alice bob", "alice bob alice bob alice"} {
			c := h.rawService()
			for name := range strings.FieldsSeq(order) {
				c.ask(h.login, map[string]ssh.Signer{"alice": alice, "bob": his}[name].PublicKey())
				c.expect(msgAuthPKOK)
			}
			c.sign(h.login, his)
			c.expect(msgAuthSuccess)
			c.send(channelOpen("session", 0))
			c.expect(msgChannelConfirm)
			c.send(channelRequest(0, "exec", true, str("echo $SALLY_USER")))
			c.expect(msgChannelSuccess)
			if out := c.expect(msgChannelData); !strings.HasSuffix(string(out), "bob\n") {
				t.Errorf("%s: runs as %q", order, out)
			}
			c.Close()
		}
	})
	t.Run("offer only", func(t *testing.T) {
		h := newGateway()
		c := h.rawService()
		c.ask(h.login, h.signer(nil).PublicKey())
		c.expect(msgAuthPKOK)
		c.Close()
		waitFor(t, "Serve to return", func() { <-h.errs })
		if h.gate.opens != 0 {
			t.Error("a session was opened for an offer")
		}
	})
	t.Run("sign with another key", func(t *testing.T) {
		h := newGateway()
		c := h.rawService()
		c.signWith(h.login, h.signer(nil).PublicKey(), bob(h))
		if got := c.untilEnd(); got != "" {
			t.Errorf("got %s", got)
		}
		waitFor(t, "Serve to return", func() { <-h.errs })
		if h.gate.opens != 0 || len(h.gate.named("auth")) != 1 {
			t.Errorf("%d opens, events %+v", h.gate.opens, h.gate.events)
		}
	})
}

// TestA05_LoginOnEveryChannel: the login is the one that was proven last, not
// one that was tried before, and each further channel is decided again.
func TestA05_LoginOnEveryChannel(t *testing.T) {
	denied := false
	h := newHost(t, func(h *host) {
		h.gate.refuse = func(u session.Use) *sallyport.Problem {
			if u.Login != h.login {
				return sallyport.Denied("no role allows login "+u.Login, "")
			}
			return nil
		}
		h.gate.allow = func(sallyport.Action) *sallyport.Problem {
			if denied {
				return sallyport.Denied("role dev was taken away", "")
			}
			return nil
		}
	})
	both := h.signer(func(c *ssh.Certificate) { c.ValidPrincipals = []string{"root", h.login} })
	c := h.rawService()
	c.sign("root", both)
	c.expect(msgAuthFailure)
	c.sign(h.login, both)
	c.expect(msgAuthSuccess)
	for id := range uint32(2) {
		c.send(channelOpen("session", id))
		c.expect(msgChannelConfirm)
		c.send(channelRequest(id, "exec", true, str("echo uid $(id -u); echo $USER; exec sleep 60")))
		c.expect(msgChannelSuccess)
		for out := ""; !strings.Contains(out, h.login+"\n"); {
			out += string(c.expect(msgChannelData)[9:])
			if strings.Contains(out, "root") || os.Getuid() == 0 && strings.Contains(out, "uid 0") {
				t.Fatalf("runs as %q", out)
			}
		}
	}
	denied = true
	c.send(channelOpen("session", 2))
	if p := c.expect(msgChannelRefused); !strings.Contains(string(p), "role dev was taken away") {
		t.Errorf("refused with %q", p)
	}
}

// TestAttemptsAreBounded: six refused keys end the connection.
func TestAttemptsAreBounded(t *testing.T) {
	h := newHost(t, nil)
	c := h.rawService()
	for range 5 {
		c.ask(h.login, newKey(t).PublicKey())
		c.expect(msgAuthFailure)
	}
	c.ask(h.login, newKey(t).PublicKey())
	if p := c.expect(msgDisconnect); !strings.Contains(string(p), "too many") {
		t.Errorf("got %q", p)
	}
	waitFor(t, "Serve to return", func() { <-h.errs })
	if e := h.gate.named("auth"); len(e) != 1 {
		t.Errorf("%d events for one connection of plain keys", len(e))
	}
}

// TestA82_NilAuthority: without a list of CAs, or with rubbish in it, nobody
// gets in and nothing breaks (CVE-2026-39835).
func TestA82_NilAuthority(t *testing.T) {
	for _, cas := range [][][]byte{nil, {}, {nil}, {{}}, {[]byte("rubbish"), nil}} {
		t.Run(fmt.Sprintf("%q", cas), func(t *testing.T) {
			h := newHost(t, func(h *host) { h.server.UserCAs = func() ([][]byte, error) { return cas, nil } })
			refusedAs(t, h, h.login, "the certificate is not signed by a user CA", h.signer(nil))
		})
	}
	for name, cert := range map[string]*ssh.Certificate{
		"empty": {CertType: ssh.UserCert}, "no signature": {CertType: ssh.UserCert, Key: newKey(t).PublicKey(), SignatureKey: newKey(t).PublicKey()},
	} {
		q := sshauth.Check{Cluster: cluster, CAs: [][]byte{nil, {}}, Login: "tester", Addr: netip.MustParseAddr("127.0.0.1"), Now: time.Now()}
		if _, p := q.Run(cert); p == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestA82_SourceAddress: it holds for the client's address, not for the tunnel's
// (CVE-2026-46595 skipped it for some callbacks).
func TestA82_SourceAddress(t *testing.T) {
	h := newHost(t, func(h *host) { h.candidate.ClientAddr = netip.MustParseAddrPort("192.0.2.7:1000") })
	bound := func(list string) ssh.Signer {
		return h.signer(func(c *ssh.Certificate) { c.CriticalOptions = map[string]string{"source-address": list} })
	}
	c, err := h.dialAs(h.login, bound("192.0.2.7/32"))
	if err != nil {
		t.Fatalf("%v, banner %q", err, c.banner)
	}
	c.Close()
	waitFor(t, "Serve to return", func() { <-h.errs })
	refusedAs(t, h, h.login, "the certificate is bound to another address", bound("127.0.0.1/32"))
	if h.gate.opens != 1 {
		t.Errorf("%d sessions were opened", h.gate.opens)
	}
}

// TestHostKeyMissing: no key, no handshake, an error for the log.
func TestHostKeyMissing(t *testing.T) {
	missing := errors.New("no certificate yet")
	h := newHost(t, func(h *host) { h.server.HostSigner = func() (ssh.Signer, error) { return nil, missing } })
	if _, err := h.dialAs(h.login, newKey(t)); err == nil {
		t.Fatal("connected")
	}
	if err := <-h.errs; !errors.Is(err, missing) {
		t.Errorf("got %v", err)
	}
}

// TestOnlyModernAlgorithms: what is offered, by hand and not by default.
func TestOnlyModernAlgorithms(t *testing.T) {
	h := newHost(t, nil)
	c := h.rawConnect()
	c.send(join([]byte{msgKexInit}, make([]byte, 16), str("curve25519-sha256", "x", "x", "x", "x", "x", "none", "none", "", ""), make([]byte, 5)))
	offer := string(c.expect(msgKexInit)[17:])
	for _, bad := range []string{"sha1", "cbc", "3des", "arcfour", "ssh-rsa", "ssh-dss", "md5", "zlib", "group1", "group14", "group-exchange", "umac", "hmac-sha2-256,"} {
		if strings.Contains(offer, bad) {
			t.Errorf("%s is offered: %q", bad, offer)
		}
	}
	if !strings.Contains(offer, "kex-strict-s-v00@openssh.com") || !strings.Contains(offer, "mlkem768x25519-sha256") {
		t.Errorf("offer %q", offer)
	}
}
