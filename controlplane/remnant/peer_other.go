//go:build !linux

package remnant

import (
	"errors"
	"net"
)

// peerUID is not known here; there are no upgrades and no remnants.
func peerUID(*net.UnixConn) (int, error) {
	return 0, errors.New("who is at the other end of a Unix socket is not known on this system")
}
