package ssh

import (
	"net"
	"os"
	"path/filepath"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/sshauth"
)

// forwardAgent makes a socket by which programs of the login ask the client's
// ssh-agent (draft-ietf-sshm-ssh-agent section 5). What they ask passes as it is:
// constraints of keys, by destination among others, are the agent's to hold.
func (ch *channel) forwardAgent(payload []byte) bool {
	c := ch.conn
	if ch.started || len(payload) != 0 {
		return false
	}
	if c.agentSocket() != "" {
		return true
	}
	if p := c.agentProblem(); p != nil {
		ch.say(sshauth.Message(p))
		c.refused(rule{name: "auth-agent-req", fact: p.Fact, event: sallyport.Event{Name: "session.rejected", Code: "T1006W"}}, nil)
		return false
	}
	path, l, err := c.account.agentListener()
	if err != nil {
		c.server.log().Error("ssh: no socket for an agent", "session", c.session.ID, "error", err)
		ch.say(sshauth.Message(sallyport.Denied("this host has no place for an agent's socket", "")))
		return false
	}
	in := &inlet{name: unixName(path), channel: "auth-agent@openssh.com", mode: "agent", action: sallyport.ActionForwardAgent,
		payload: func(net.Conn) []byte { return nil }, sockets: []net.Listener{l}}
	in.remove = func() { _ = c.account.asLogin(func() error { return os.RemoveAll(filepath.Dir(path)) }) } // theirs to remove too
	if !c.open(in) {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.agent = path
	return true
}

// agentProblem is why the client's agent may not be asked from here, or nil.
func (c *connection) agentProblem() *sallyport.Problem {
	if !c.permit.agent {
		return sallyport.Denied("the certificate does not permit agent forwarding", sshauth.HintLogin)
	}
	return c.ask(sallyport.ActionForwardAgent)
}

// agentSocket is where programs reach the client's agent; "" without.
func (c *connection) agentSocket() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.agent
}

// agentListener makes the agent's socket in a directory that only the login may
// enter.
func (a account) agentListener() (path string, l net.Listener, err error) {
	err = a.asLogin(func() error {
		dir, err := os.MkdirTemp(agentRoot, "ssh-")
		if err != nil {
			return err
		}
		path = filepath.Join(dir, "agent")
		if l, err = listenPrivately(path); err != nil {
			os.Remove(dir)
		}
		return err
	})
	return path, l, err
}

// agentRoot is where sshd puts agents' sockets too.
const agentRoot = "/tmp"

// isUser says whether who connected is the login, or root who could be.
func (a account) isUser(conn net.Conn) bool {
	u, ok := conn.(*net.UnixConn)
	if !ok {
		return false
	}
	uid, err := peerUser(u)
	return err == nil && (uid == a.uid || uid == 0)
}
