package ssh

import (
	"encoding/binary"
	"strings"

	"golang.org/x/crypto/ssh"
)

// Payloads of the requests on a session channel (RFC 4254 section 6). They are
// at most one SSH packet long, which the SSH library bounds.

type ptyRequest struct {
	Term                         string
	Columns, Rows, Width, Height uint32
	Modes                        string
}

type windowChange struct {
	Columns, Rows, Width, Height uint32
}

type envRequest struct {
	Name, Value string
}

type execRequest struct {
	Command string
}

type signalRequest struct {
	Name string
}

// directTCP is what direct-tcpip says (RFC 4254 section 7.2), and in its other
// direction forwarded-tcpip.
type directTCP struct {
	Host       string
	Port       uint32
	OriginHost string
	OriginPort uint32
}

// listenTCP is tcpip-forward and cancel-tcpip-forward (RFC 4254 section 7.1).
type listenTCP struct {
	Host string
	Port uint32
}

type listeningTCP struct {
	Port uint32
}

// directUnix is direct-streamlocal@openssh.com (OpenSSH PROTOCOL section 2.4).
type directUnix struct {
	Path, Reserved1 string
	Reserved2       uint32
}

// listenUnix is streamlocal-forward@openssh.com and its cancel.
type listenUnix struct {
	Path string
}

type forwardedUnix struct {
	Path, Reserved string
}

type exitStatus struct {
	Status uint32
}

type exitSignal struct {
	Name       string // without "SIG"
	CoreDumped bool
	Message    string
	Language   string
}

const (
	maxTerm = 64 // bytes; terminfo names are shorter
	// maxModes is how many modes one request may carry: there are 255 opcodes
	// and no reason to name one twice.
	maxModes = 256
)

// parsePTY reads pty-req (RFC 4254 section 6.2).
func parsePTY(payload []byte) (r ptyRequest, ok bool) {
	if ssh.Unmarshal(payload, &r) != nil || !validTerm(r.Term) {
		return ptyRequest{}, false
	}
	return r, true
}

// validTerm refuses what terminfo libraries could take for a path.
func validTerm(term string) bool {
	return len(term) <= maxTerm && !strings.ContainsFunc(term, func(c rune) bool {
		return c <= ' ' || c >= 0x7f || c == '/'
	}) && !strings.HasPrefix(term, ".")
}

// mode is one terminal mode: an opcode of RFC 4254 section 8 and its argument.
type mode struct {
	op  byte
	arg uint32
}

const opEnd = 0 // TTY_OP_END

// parseModes reads encoded terminal modes (RFC 4254 section 8). Opcodes 1 to
// 159 have one uint32; reading stops at the first above, whose length nobody
// knows.
func parseModes(s string) []mode {
	var list []mode
	for len(s) >= 5 && s[0] != opEnd && s[0] < 160 && len(list) < maxModes {
		list = append(list, mode{op: s[0], arg: binary.BigEndian.Uint32([]byte(s[1:5]))})
		s = s[5:]
	}
	return list
}

// dimension fits a number of cells or pixels into what a tty holds.
func dimension(n uint32) uint16 {
	return uint16(min(n, 1<<16-1))
}
