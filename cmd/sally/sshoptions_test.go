package main

import "testing"

// TestOptions: options that OpenSSH does not know passed without a word, and so did some that
// mean what this program does not do: User logged in as somebody else than was asked for.
func TestOptions(t *testing.T) {
	for _, o := range []string{"Foo=bar", "StrictHostKeyCheking=yes", "HostName=other", "Tunnel=yes", "GatewayPorts=yes", "RevokedHostKeys=/f", "ProxyJump=x", "ControlMaster=auto", "x", "EscapeChar=^B"} {
		if err := (&sshCmd{Options: []string{o}}).options(); err == nil {
			t.Errorf("ssh -o %s: passes", o)
		}
		if o == "EscapeChar=^B" { // scp has none
			continue
		}
		if err := (&scpCmd{scpAccepted: scpAccepted{Options: []string{o}}}).obey(&program{}); err == nil {
			t.Errorf("scp -o %s: passes", o)
		}
	}
	for _, o := range []string{"StrictHostKeyChecking=no", "batchmode yes", "ConnectTimeout=5", "ProxyJump=none", "Tunnel=no", "IdentityFile=~/.ssh/id", "ServerAliveInterval=15", "User=bob", "ClearAllForwardings yes", "LogLevel=QUIET"} {
		c := &sshCmd{Options: []string{o}}
		must(t, c.options())
		p := &program{}
		must(t, (&scpCmd{scpAccepted: scpAccepted{Options: []string{o}}}).obey(p))
		if (p.LoginName == "bob") != (o == "User=bob") {
			t.Errorf("%s: login %q", o, p.LoginName)
		}
	}
	c := &sshCmd{Options: []string{"SessionType=none", "StdinNull=yes", "LogLevel=QUIET", "User=bob", "EscapeChar=none"}, sshAccepted: sshAccepted{Verbose: true}}
	must(t, c.options())
	p := &program{}
	p.LoginName, p.EscapeSequences = "alice", true
	c.obey(p)
	if !c.NoExec || !c.StdinNull || !c.Quiet || p.LoginName != "alice" || p.EscapeSequences || !p.Debug {
		t.Errorf("%+v, %+v", c, p.globals)
	}
	if (&sshCmd{sshAccepted: sshAccepted{ConfigFile: "f"}}).options() == nil {
		t.Error("-F f passes")
	}
	must(t, (&sshCmd{sshAccepted: sshAccepted{ConfigFile: "/dev/null"}}).options())
}

func TestURI(t *testing.T) {
	for arg, want := range map[string][2]string{
		"ssh://web":                 {"web", ""},
		"ssh://root@web":            {"root@web", ""},
		"ssh://root@web:22/":        {"root@web", ""},
		"ssh://a%40b@web/x%20y":     {"a@b@web", "x y"},
		"ssh://[::1]:22//etc/hosts": {"::1", "/etc/hosts"},
		"ssh://[::1]/a?b#c":         {"::1", "a?b#c"},
	} {
		if host, path, ok := uri("ssh", arg); !ok || host != want[0] || path != want[1] {
			t.Errorf("%s: %q, %q, %v", arg, host, path, ok)
		}
	}
	for _, arg := range []string{"web", "ssh:web", "scp://web", "ssh://", "ssh:///x", "ssh://web:x", "ssh://web:0", "ssh://a%zz@web"} {
		if host, path, ok := uri("ssh", arg); ok {
			t.Errorf("%s: %q, %q", arg, host, path)
		}
	}
}
