package ssh

import (
	"github.com/sallyport/sallyport"
	"golang.org/x/crypto/ssh"
)

// Facts for the person whose client asked for something that is not served.
const (
	noForward   = "this direction is the server's"
	noX11       = "this version does not forward X11"
	noAgent     = "an agent is opened by the server"
	noTunnel    = "this version does not forward network devices"
	unknownType = "not served"
)

// rule is the verdict about one type of channel or request. A type that has no
// row is refused; a type can only be served through its row.
type rule struct {
	name string

	// Why it is refused, for the person; "" where the refusal is an ordinary
	// answer of the protocol that nobody needs to be told of.
	fact string

	// The audit event of a refusal; without a name there is none.
	event sallyport.Event
}

// channelRule is about a type of channel (RFC 4254 section 5.1).
type channelRule struct {
	rule
	serve func(*connection, ssh.NewChannel)
}

// globalRule is about a global request (RFC 4254 section 4). serve answers.
type globalRule struct {
	rule
	serve func(c *connection, payload []byte) (ok bool, reply []byte)
}

// requestRule is about a request on a session channel (RFC 4254 section 6).
// serve says whether the request is granted; what it leaves in channel.begin
// runs after the answer has been sent.
type requestRule struct {
	rule
	serve func(*channel, []byte) bool
}

func channelRules() []channelRule {
	port := sallyport.Event{Name: "port", Code: "T3003E"}
	x11 := sallyport.Event{Name: "x11-forward", Code: "T3008W"}
	rejected := sallyport.Event{Name: "session.rejected", Code: "T1006W"}
	return []channelRule{
		{rule: rule{name: "session"}, serve: (*connection).openSession},
		{rule: rule{name: "direct-tcpip"}, serve: (*connection).openDirectTCP},
		{rule: rule{name: "direct-streamlocal@openssh.com"}, serve: (*connection).openDirectUnix},
		{rule: rule{name: "forwarded-tcpip", fact: noForward, event: port}},
		{rule: rule{name: "forwarded-streamlocal@openssh.com", fact: noForward, event: port}},
		{rule: rule{name: "tun@openssh.com", fact: noTunnel, event: port}},
		{rule: rule{name: "x11", fact: noX11, event: x11}},
		{rule: rule{name: "auth-agent@openssh.com", fact: noAgent, event: rejected}},
		{rule: rule{name: "auth-agent", fact: noAgent, event: rejected}},
	}
}

func globalRules() []globalRule {
	return []globalRule{
		{rule: rule{name: "keepalive@openssh.com"}, serve: (*connection).keptAlive},
		{rule: rule{name: "no-more-sessions@openssh.com"}, serve: (*connection).noMoreSessions},
		{rule: rule{name: "tcpip-forward"}, serve: (*connection).forwardTCP},
		{rule: rule{name: "cancel-tcpip-forward"}, serve: (*connection).cancelTCP},
		{rule: rule{name: "streamlocal-forward@openssh.com"}, serve: (*connection).forwardUnix},
		{rule: rule{name: "cancel-streamlocal-forward@openssh.com"}, serve: (*connection).cancelUnix},
		{rule: rule{name: "hostkeys-00@openssh.com"}},
		{rule: rule{name: "hostkeys-prove-00@openssh.com"}},
	}
}

func requestRules() []requestRule {
	x11 := sallyport.Event{Name: "x11-forward", Code: "T3008W"}
	return []requestRule{
		{rule: rule{name: "pty-req"}, serve: (*channel).askTerminal},
		{rule: rule{name: "window-change"}, serve: (*channel).resize},
		{rule: rule{name: "env"}, serve: (*channel).setEnv},
		{rule: rule{name: "shell"}, serve: (*channel).startShell},
		{rule: rule{name: "exec"}, serve: (*channel).startCommand},
		{rule: rule{name: "signal"}, serve: (*channel).signal},
		{rule: rule{name: "break"}, serve: (*channel).sendBreak},
		{rule: rule{name: "keepalive@openssh.com"}, serve: (*channel).keptAlive},
		{rule: rule{name: "eow@openssh.com"}, serve: (*channel).endOfWrite},
		{rule: rule{name: "subsystem"}, serve: (*channel).askSubsystem},
		{rule: rule{name: "x11-req", fact: noX11, event: x11}},
		{rule: rule{name: "auth-agent-req@openssh.com"}, serve: (*channel).forwardAgent},
		{rule: rule{name: "auth-agent-req"}, serve: (*channel).forwardAgent},
		{rule: rule{name: "xon-xoff"}},
		{rule: rule{name: "exit-status"}},
		{rule: rule{name: "exit-signal"}},
		{rule: rule{name: "winadj@putty.projects.tartarus.org"}}, // a refusal is the answer it wants
		{rule: rule{name: "simple@putty.projects.tartarus.org"}},
	}
}

func channelRuleOf(name string) channelRule {
	for _, r := range channelRules() {
		if r.name == name {
			return r
		}
	}
	return channelRule{rule: rule{name: name, fact: unknownType}}
}

func globalRuleOf(name string) globalRule {
	for _, r := range globalRules() {
		if r.name == name {
			return r
		}
	}
	return globalRule{rule: rule{name: name}}
}

func requestRuleOf(name string) requestRule {
	for _, r := range requestRules() {
		if r.name == name {
			return r
		}
	}
	return requestRule{rule: rule{name: name}}
}
