package ssh

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
)

const (
	maxEnvCount = 64
	maxEnvValue = 4 << 10 // bytes
)

// environ is what the client asked to have in the environment of its program.
type environ struct {
	names  []string
	values map[string]string
}

// set takes a variable when it is one of those that cannot change what a
// program on this host does with somebody else's rights (threat A09).
func (e *environ) set(name, value string) bool {
	if !envAllowed(name, value) {
		return false
	}
	if _, known := e.values[name]; !known {
		if len(e.names) >= maxEnvCount {
			return false
		}
		e.names = append(e.names, name)
	}
	if e.values == nil {
		e.values = make(map[string]string)
	}
	e.values[name] = value
	return true
}

// envAllowed is the allow-list. A locale or a zone may not look like a path:
// libraries open files by these names (CVE-2014-0475).
func envAllowed(name, value string) bool {
	if len(value) > maxEnvValue || strings.ContainsRune(value, 0) {
		return false
	}
	switch {
	case name == "LANG", strings.HasPrefix(name, "LC_") && envName(name):
		return !strings.Contains(value, "/")
	case name == "TZ":
		return !strings.HasPrefix(value, "/") && !strings.HasPrefix(value, ":") && !strings.Contains(value, "..")
	case name == "TERM":
		return validTerm(value)
	case name == "COLORTERM":
		return true
	case strings.HasPrefix(name, "SALLY_"):
		return envName(name) && !reservedEnv(name)
	}
	return false
}

func envName(name string) bool {
	return len(name) <= 64 && !strings.ContainsFunc(name, func(c rune) bool {
		return c != '_' && (c < 'A' || c > 'Z') && (c < '0' || c > '9')
	})
}

// Variables that this server sets, and a client may not.
const (
	envSession = "SALLY_SESSION_ID"
	envUser    = "SALLY_USER"
	envCluster = "SALLY_CLUSTER_NAME"
	envHost    = "SALLY_HOST_UUID"
)

func reservedEnv(name string) bool {
	return name == envSession || name == envUser || name == envCluster || name == envHost
}

// Paths as Debian's sshd and login(1) set them.
const (
	pathUser = "/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games"
	pathRoot = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

// environment is the whole environment of a program on channel ch: nothing of
// the agent's own.
func (ch *channel) environment() []string {
	c, a := ch.conn, ch.conn.account
	env := []string{
		"HOME=" + a.home, "USER=" + a.name, "LOGNAME=" + a.name, "SHELL=" + a.shell,
		"PATH=" + a.path(), "MAIL=/var/mail/" + a.name,
		"SSH_CLIENT=" + c.clientText(), "SSH_CONNECTION=" + c.connectionText(),
		"SSH_SESSION_ID=" + c.session.ID, envSession + "=" + c.session.ID,
		"SSH_TELEPORT_USER=" + c.session.Identity.Name, envUser + "=" + c.session.Identity.Name,
		"SSH_TELEPORT_CLUSTER_NAME=" + c.server.Cluster, envCluster + "=" + c.server.Cluster,
		"SSH_TELEPORT_HOST_UUID=" + c.server.HostID, envHost + "=" + c.server.HostID,
	}
	if socket := c.agentSocket(); socket != "" {
		env = append(env, "SSH_AUTH_SOCK="+socket)
	}
	if ch.tty != nil {
		env = append(env, "SSH_TTY="+ch.tty.name, "TERM="+ch.term())
	}
	for _, name := range ch.env.names {
		if name != "TERM" { // pty-req says which terminal there is
			env = append(env, name+"="+ch.env.values[name])
		}
	}
	return env
}

func (ch *channel) term() string {
	if ch.tty.term == "" {
		return "dumb"
	}
	return ch.tty.term
}

func (a account) path() string {
	if a.uid == 0 {
		return pathRoot
	}
	return pathUser
}

// clientText is SSH_CLIENT: the client's address and port, and our port.
func (c *connection) clientText() string {
	return fmt.Sprintf("%s %d", hostPort(c.session.Client), c.local.Port())
}

// connectionText is SSH_CONNECTION: both addresses and ports.
func (c *connection) connectionText() string {
	return hostPort(c.session.Client) + " " + hostPort(c.local)
}

func hostPort(a netip.AddrPort) string {
	if !a.IsValid() {
		return "UNKNOWN 0" // as sshd
	}
	return fmt.Sprintf("%s %d", a.Addr().Unmap(), a.Port())
}

// addrPort is the address of a TCP socket, or 0.0.0.0:0.
func addrPort(addr net.Addr) netip.AddrPort {
	if tcp, ok := addr.(*net.TCPAddr); ok {
		if ap := tcp.AddrPort(); ap.IsValid() {
			return ap
		}
	}
	return netip.AddrPortFrom(netip.IPv4Unspecified(), 0)
}
