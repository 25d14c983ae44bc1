package ssh

import (
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/sallyport/sallyport"
	"golang.org/x/crypto/ssh"
)

// Types that clients are known to use: RFC 4254, RFC 4335, OpenSSH's PROTOCOL,
// PuTTY. Each needs a row in the table of rules.
var knownTypes = struct{ channels, globals, requests []string }{
	channels: []string{
		"session", "x11", "forwarded-tcpip", "direct-tcpip", "direct-streamlocal@openssh.com", "forwarded-streamlocal@openssh.com",
		"tun@openssh.com", "auth-agent@openssh.com", "auth-agent",
	},
	globals: []string{
		"tcpip-forward", "cancel-tcpip-forward", "streamlocal-forward@openssh.com", "cancel-streamlocal-forward@openssh.com",
		"no-more-sessions@openssh.com", "keepalive@openssh.com", "hostkeys-00@openssh.com", "hostkeys-prove-00@openssh.com",
	},
	requests: []string{
		"pty-req", "x11-req", "env", "shell", "exec", "subsystem", "window-change", "xon-xoff", "signal", "exit-status", "exit-signal", "break",
		"auth-agent-req@openssh.com", "auth-agent-req", "eow@openssh.com", "keepalive@openssh.com",
		"winadj@putty.projects.tartarus.org", "simple@putty.projects.tartarus.org",
	},
}

// Types that this version serves. A new one stands here, and in the test that
// shows it refused to a role without the right.
var servedTypes = struct{ channels, globals, requests []string }{
	channels: []string{"session", "direct-tcpip", "direct-streamlocal@openssh.com"},
	globals: []string{"keepalive@openssh.com", "no-more-sessions@openssh.com", "tcpip-forward", "cancel-tcpip-forward",
		"streamlocal-forward@openssh.com", "cancel-streamlocal-forward@openssh.com"},
	requests: []string{"pty-req", "window-change", "env", "shell", "exec", "signal", "break", "keepalive@openssh.com", "eow@openssh.com",
		"subsystem", "auth-agent-req@openssh.com", "auth-agent-req"},
}

// TestA02_EveryTypeHasARow: the tables and the lists above agree in both
// directions.
func TestA02_EveryTypeHasARow(t *testing.T) {
	var all, served struct{ channels, globals, requests []string }
	for _, r := range channelRules() {
		all.channels = append(all.channels, r.name)
		if r.serve != nil {
			served.channels = append(served.channels, r.name)
		}
		checkRow(t, r.rule, r.serve != nil)
	}
	for _, r := range globalRules() {
		all.globals = append(all.globals, r.name)
		if r.serve != nil {
			served.globals = append(served.globals, r.name)
		}
		checkRow(t, r.rule, r.serve != nil)
	}
	for _, r := range requestRules() {
		all.requests = append(all.requests, r.name)
		if r.serve != nil {
			served.requests = append(served.requests, r.name)
		}
		checkRow(t, r.rule, r.serve != nil)
	}
	for _, c := range []struct {
		name      string
		got, want []string
	}{
		{"channels", all.channels, knownTypes.channels}, {"global requests", all.globals, knownTypes.globals},
		{"channel requests", all.requests, knownTypes.requests}, {"served channels", served.channels, servedTypes.channels},
		{"served global requests", served.globals, servedTypes.globals}, {"served channel requests", served.requests, servedTypes.requests},
	} {
		slices.Sort(c.got)
		slices.Sort(c.want)
		if !slices.Equal(c.got, c.want) {
			t.Errorf("%s:\n got %q\nwant %q", c.name, c.got, c.want)
		}
	}
}

func checkRow(t *testing.T, r rule, served bool) {
	t.Helper()
	if served && (r.fact != "" || r.event.Name != "") {
		t.Errorf("%s is served and has a reason for refusal", r.name)
	}
	if r.event.Name != "" && (r.fact == "" || r.event.Code == "") {
		t.Errorf("%s: an event without a reason or a code", r.name)
	}
}

// TestA02_RefusedTypes: what is not served is refused on a live connection, with
// a reason and an event, whatever the role allows; so is what nobody knows.
func TestA02_RefusedTypes(t *testing.T) {
	h := newHost(t, func(h *host) {
		h.gate.allow = func(sallyport.Action) *sallyport.Problem { return nil }
	})
	events := func(e sallyport.Event) int {
		if e.Name == "" {
			return 0
		}
		return len(h.gate.named(e.Name))
	}
	for _, r := range append(channelRules(), channelRule{rule: rule{name: "no-such-type"}}) {
		if r.serve != nil {
			continue
		}
		c := h.rawLogin()
		before := events(r.event)
		c.send(join(channelOpen(r.name, 0), str("127.0.0.1"), make([]byte, 4), str("127.0.0.1"), make([]byte, 4)))
		p := c.expect(msgChannelRefused)
		var refused struct {
			ID, Reason  uint32
			Text, Lang_ string
		}
		if err := ssh.Unmarshal(p[1:], &refused); err != nil || refused.Text == "" {
			t.Errorf("%s: %q, %v", r.name, p, err)
		}
		want := uint32(ssh.Prohibited)
		if r.name == "no-such-type" {
			want = uint32(ssh.UnknownChannelType)
		}
		if refused.Reason != want {
			t.Errorf("%s: reason %d", r.name, refused.Reason)
		}
		if r.event.Name != "" {
			eventually(t, "the event of "+r.name, func() bool { return events(r.event) == before+1 })
		}
		c.Close()
	}
	for _, r := range append(globalRules(), globalRule{rule: rule{name: "no-such-request"}}) {
		if r.serve != nil {
			continue
		}
		c := h.rawLogin()
		before := events(r.event)
		c.send(globalRequest(r.name, join(str("127.0.0.1"), make([]byte, 4))))
		c.expect(msgRequestFailure)
		if r.event.Name != "" {
			eventually(t, "the event of "+r.name, func() bool { return events(r.event) == before+1 })
		}
		c.Close()
	}
	for _, r := range append(requestRules(), requestRule{rule: rule{name: "no-such-request"}}) {
		if r.serve != nil {
			continue
		}
		c := h.rawLogin()
		before := events(r.event)
		c.send(channelOpen("session", 0))
		c.expect(msgChannelConfirm)
		c.send(channelRequest(0, r.name, true, str("sftp")))
		if r.fact != "" {
			c.expect(95) // the reason, on stderr
		}
		c.expect(msgChannelFailure)
		if r.event.Name != "" {
			eventually(t, "the event of "+r.name, func() bool { return events(r.event) == before+1 })
		}
		c.Close()
	}
}

// TestA02_Subsystems: behind any name but sftp, nothing runs.
func TestA02_Subsystems(t *testing.T) {
	h := newHost(t, nil)
	for i, name := range []string{"netconf", "SFTP", "parallel-sftp", "cat", "/bin/sh", ""} {
		s := h.session()
		in, err := s.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		stdout, _ := s.StdoutPipe()
		stderr, _ := s.StderrPipe()
		if err := s.RequestSubsystem(name); err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(in, "echo $SALLY_USER\n")
		var out, errs []byte
		waitFor(t, name, func() {
			errs, _ = io.ReadAll(stderr)
			out, _ = io.ReadAll(stdout)
		})
		if !strings.Contains(string(errs), "ERROR: this version does not serve the subsystem") || len(out) > 0 {
			t.Errorf("%q: %q, %q", name, out, errs)
		}
		if e := h.gate.named("subsystem"); len(e) != i+1 || e[i].Code != "T3001E" || *e[i].Success {
			t.Errorf("%q: events %+v", name, e)
		}
	}
}

// TestA02_DeniedRole: a role without the right gets not even a session channel.
func TestA02_DeniedRole(t *testing.T) {
	h := newHost(t, func(h *host) {
		h.gate.allow = func(sallyport.Action) *sallyport.Problem { return sallyport.Denied("denied", "") }
	})
	payload := map[string][]byte{
		"direct-tcpip":                   ssh.Marshal(directTCP{Host: "127.0.0.1", Port: uint32(tcpPort(t, h.addr))}),
		"direct-streamlocal@openssh.com": ssh.Marshal(directUnix{Path: "/run/socket"}),
	}
	for _, kind := range servedTypes.channels {
		c := h.rawLogin()
		c.send(channelOpen("session", 0)) // decided with the connection
		c.expect(msgChannelConfirm)
		c.send(join(channelOpen(kind, 1), payload[kind]))
		c.expect(msgChannelRefused)
		c.Close()
	}
}

// TestOneProgramPerChannel: RFC 4254 section 6.5 allows one of shell, exec and
// subsystem.
func TestOneProgramPerChannel(t *testing.T) {
	h := newHost(t, nil)
	c := h.rawLogin()
	c.send(channelOpen("session", 0))
	c.expect(msgChannelConfirm)
	c.send(channelRequest(0, "exec", true, str("exec sleep 60")))
	c.expect(msgChannelSuccess)
	for _, again := range [][]byte{
		channelRequest(0, "exec", true, str("echo twice")), channelRequest(0, "shell", true, nil),
		channelRequest(0, "env", true, str("LANG", "C")),
		channelRequest(0, "pty-req", true, join(str("xterm"), make([]byte, 16), str(""))),
	} {
		c.send(again)
		c.expect(msgChannelFailure)
	}
}

// TestMalformedRequests: payloads that are not what they should be are refused,
// and the connection lives.
func TestMalformedRequests(t *testing.T) {
	h := newHost(t, nil)
	c := h.rawLogin()
	c.send(channelOpen("session", 0))
	c.expect(msgChannelConfirm)
	for _, name := range servedTypes.requests {
		if name == "keepalive@openssh.com" || name == "eow@openssh.com" {
			continue
		}
		for _, payload := range [][]byte{{0}, {0xff, 0xff, 0xff, 0xff}, str("x\x00y")[:4], make([]byte, 3)} {
			c.send(channelRequest(0, name, true, payload))
			c.expect(msgChannelFailure)
		}
	}
	c.send(channelRequest(0, "exec", true, str("echo a\x00b")))
	c.expect(msgChannelFailure)
	c.send(channelRequest(0, "exec", true, str("")))
	c.expect(msgChannelFailure)
	c.send(channelRequest(0, "exec", true, str("exit 6")))
	c.expect(msgChannelSuccess)
}

// TestPermitPTY: the certificate says whether there may be a terminal.
func TestPermitPTY(t *testing.T) {
	h := newHost(t, nil)
	c, err := h.dialAs(h.login, h.signer(func(c *ssh.Certificate) { delete(c.Extensions, "permit-pty") }))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.RequestPty("xterm", 24, 80, nil); err == nil {
		t.Error("a terminal without permit-pty")
	}
	if got := runOn(t, s, "echo on"); got.out != "on\n" {
		t.Errorf("got %+v", got)
	}
}

// TestNoMoreSessions: OpenSSH's promise that it will open no more is held.
func TestNoMoreSessions(t *testing.T) {
	h := newHost(t, nil)
	c := h.rawLogin()
	c.send(globalRequest("no-more-sessions@openssh.com", nil))
	c.expect(msgRequestSuccess)
	c.send(channelOpen("session", 0))
	c.expect(msgChannelRefused)
}
