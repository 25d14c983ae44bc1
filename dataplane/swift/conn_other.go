//go:build !linux

package swift

import "net"

// Conn returns conn itself: only Linux has promised that a system call may be
// made so.
func Conn(conn net.Conn) net.Conn { return conn }
