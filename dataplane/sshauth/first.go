package sshauth

import (
	"errors"
	"net"
)

// errNotSSH ends a connection whose client does not begin by its version.
var errNotSSH = errors.New("the first bytes are not those of an SSH client")

// FromClient is conn whose peer, a client, begins by its version, as RFC 4253,
// section 4.2 has it, or is not heard: the library passes over lines that come
// before, so that a PROXY header or a request of HTTP would be taken for nothing.
func FromClient(conn net.Conn) net.Conn { return &fromClient{Conn: conn, want: "SSH-"} }

type fromClient struct {
	net.Conn
	want string // what has not come yet
}

// Read implements net.Conn. One goroutine reads.
func (c *fromClient) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	first := min(n, len(c.want))
	if string(b[:first]) != c.want[:first] {
		return 0, errNotSSH
	}
	c.want = c.want[first:]
	return n, err
}
