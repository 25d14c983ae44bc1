package jump

import "golang.org/x/crypto/ssh"

// rule is the verdict about one type of channel or global request. A type that
// has no row is refused; a type can only be served through its row.
type rule struct {
	name string

	// Why it is refused, for the person; "" where the refusal is an ordinary
	// answer of the protocol that nobody needs to be told of, nor the log.
	fact string
}

// channelRule is about a type of channel (RFC 4254 section 5.1).
type channelRule struct {
	rule
	serve func(*connection, ssh.NewChannel)
}

// globalRule is about a global request (RFC 4254 section 4).
type globalRule struct {
	rule
	granted bool
}

const (
	noShell     = "this is a jump server, which has no shell"
	noForward   = "a jump server forwards to nodes only"
	unknownType = "not served"
)

func channelRules() []channelRule {
	return []channelRule{
		{rule: rule{name: "direct-tcpip"}, serve: (*connection).openDirect},
		{rule: rule{name: "session", fact: noShell}},
		{rule: rule{name: "direct-streamlocal@openssh.com", fact: noForward}},
		{rule: rule{name: "forwarded-tcpip", fact: noForward}},
		{rule: rule{name: "forwarded-streamlocal@openssh.com", fact: noForward}},
		{rule: rule{name: "tun@openssh.com", fact: noForward}},
		{rule: rule{name: "x11", fact: noForward}},
		{rule: rule{name: "auth-agent@openssh.com", fact: noForward}},
		{rule: rule{name: "auth-agent", fact: noForward}},
	}
}

func globalRules() []globalRule {
	return []globalRule{
		{rule: rule{name: "keepalive@openssh.com"}, granted: true},
		{rule: rule{name: "no-more-sessions@openssh.com"}, granted: true}, // there are none
		{rule: rule{name: "tcpip-forward", fact: noForward}},
		{rule: rule{name: "cancel-tcpip-forward"}},
		{rule: rule{name: "streamlocal-forward@openssh.com", fact: noForward}},
		{rule: rule{name: "cancel-streamlocal-forward@openssh.com"}},
		{rule: rule{name: "hostkeys-00@openssh.com"}},
		{rule: rule{name: "hostkeys-prove-00@openssh.com"}},
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
