package jump

import (
	"fmt"
	"strings"

	"golang.org/x/crypto/ssh"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/alpn"
	"github.com/sallyport/sallyport/dataplane/sshauth"
)

// directTCP is what direct-tcpip says (RFC 4254 section 7.2). It is at most one
// SSH packet long, which the SSH library bounds.
type directTCP struct {
	Host       string
	Port       uint32
	OriginHost string
	OriginPort uint32
}

const (
	maxHost = 255 // bytes of a host name (RFC 1035 section 2.3.4)

	// Ports by which a node may be named: ssh's own, that of Teleport's nodes,
	// which "sally config" writes, and 0 for any.
	portSSH   = 22
	portNodes = 3022
)

// destination is where a client wants to go.
type destination struct {
	node string // "" for anything but a node
	text string // as the client wrote it, fit for a log
}

// parse reads direct-tcpip's payload. ok says that it is one.
func parse(payload []byte, cluster string) (to destination, ok bool) {
	var r directTCP
	if ssh.Unmarshal(payload, &r) != nil || r.Host == "" || len(r.Host) > maxHost {
		return destination{}, false
	}
	return destination{node: nodeOf(r.Host, r.Port, cluster), text: fmt.Sprintf("%s:%d", sshauth.Printable(r.Host, maxHost), r.Port)}, true
}

// nodeOf is the name of the node that is meant by NAME, NAME.CLUSTER or
// NAME.node.CLUSTER, or "". No name has a dot, so no address is a name: a node may
// be called 127, and 127.0.0.1 is none.
func nodeOf(host string, port uint32, cluster string) string {
	if port != 0 && port != portSSH && port != portNodes {
		return ""
	}
	name := strings.Map(lower, host)
	if rest, below := strings.CutSuffix(name, "."+cluster); below {
		name = strings.TrimSuffix(rest, "."+string(sallyport.KindNode))
	}
	if !alpn.ValidLabel(name) {
		return ""
	}
	return name
}

// lower knows ASCII alone: strings.ToLower makes a k of the Kelvin sign.
func lower(r rune) rune {
	if 'A' <= r && r <= 'Z' {
		r += 'a' - 'A'
	}
	return r
}

// elsewhere refuses what is no node.
func elsewhere(to destination, cluster string) *sallyport.Problem {
	return sallyport.Denied(fmt.Sprintf("the jump server of %s leads to its nodes only (NAME or NAME.%s, port 22 or 3022), not to %s", cluster, cluster, to.text), "")
}
