package ssh

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	maxSocketPath = 104 // bytes, with the zero at the end: the least that systems have (unix(7))
	socketBacklog = 64
)

func validSocket(path string) bool {
	return path != "" && len(path) < maxSocketPath && !strings.ContainsRune(path, 0)
}

// inHome makes a path absolute: clients mean the login's home.
func (a account) inHome(path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(a.home, path)
}

// dialUnix connects as the login.
func (a account) dialUnix(path string) (conn net.Conn, err error) {
	err = a.asLogin(func() (err error) {
		conn, err = net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
		return err
	})
	if err != nil {
		return nil, err
	}
	return conn, nil
}

// listenUnix makes a socket as the login, which nobody else may connect to.
func (a account) listenUnix(path string) (l net.Listener, err error) {
	err = a.asLogin(func() (err error) {
		l, err = listenPrivately(path)
		return err
	})
	if err != nil {
		return nil, err
	}
	return l, nil
}

// listenPrivately sets the mode before it listens. The mode that umask(2) gives
// is one for all threads, and until listen(2) nobody can connect.
func listenPrivately(path string) (net.Listener, error) {
	fd, err := privateSocket(path)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		os.Remove(path)
		return nil, err
	}
	return l, nil
}

func privateSocket(path string) (fd int, err error) {
	syscall.ForkLock.RLock()
	fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err == nil {
		unix.CloseOnExec(fd)
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		unix.Close(fd)
		return -1, os.NewSyscallError("bind", err)
	}
	err = os.Chmod(path, 0o600)
	if err == nil {
		err = unix.Listen(fd, socketBacklog)
	}
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		unix.Close(fd)
		os.Remove(path)
		return -1, err
	}
	return fd, nil
}
