//go:build unix && !linux

package relay

import "golang.org/x/sys/unix"

func recv(fd int, b []byte) (int, error) {
	return retry(func() (int, error) { return unix.Read(fd, b) })
}

func peek(fd int, b []byte) (int, error) {
	return retry(func() (int, error) {
		n, _, err := unix.Recvfrom(fd, b, unix.MSG_PEEK)
		return n, err
	})
}

// send relies on the runtime, which ignores SIGPIPE on sockets.
func send(fd int, b []byte) (int, error) {
	return retry(func() (int, error) { return unix.Write(fd, b) })
}

func retry(call func() (int, error)) (int, error) {
	for {
		n, err := call()
		if err == unix.EINTR {
			continue
		}
		return max(n, 0), err
	}
}

// unsent is unknown here: a reset is passed on at once.
func unsent(int) int { return 0 }

// fionread is the same number on all of these systems: _IOR('f', 127, int).
const fionread = 0x4004667f

// queued is the number of bytes that have come and were not read.
func queued(fd int) int {
	n, err := unix.IoctlGetInt(fd, fionread)
	if err != nil {
		return 0
	}
	return n
}

func closeFD(fd int) { unix.Close(fd) }

func shutdownWrite(fd int) error { return unix.Shutdown(fd, unix.SHUT_WR) }

func setOption(fd, level, name, value int) error { return unix.SetsockoptInt(fd, level, name, value) }

func option(fd, level, name int) (int, error) { return unix.GetsockoptInt(fd, level, name) }

// resetNow leaves it to the close that follows: no process shares sockets here.
func resetNow(fd int) { ResetOnClose(fd) }
