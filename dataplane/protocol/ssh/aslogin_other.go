//go:build unix && !linux

package ssh

import (
	"os"
	"syscall"
)

// asLogin runs f when the account is our own: threads have no ids of their own
// here.
func (a account) asLogin(f func() error) error {
	if uint32(os.Geteuid()) != a.uid {
		return syscall.EPERM
	}
	return f()
}

// ownSocket has nothing to do for our own account, and cannot do it for others.
func (a account) ownSocket(syscall.RawConn) error {
	if uint32(os.Geteuid()) != a.uid {
		return syscall.EPERM
	}
	return nil
}

// peerUser is not asked here: the socket's directory lets nobody else in.
func peerUser(syscall.Conn) (uid uint32, err error) { return uint32(os.Geteuid()), nil }
