package relay

import (
	"io"
	"os"

	"golang.org/x/sys/unix"
)

func newPipe() (*pipe, error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		return nil, os.NewSyscallError("pipe2", err)
	}
	p := &pipe{r: fds[0], w: fds[1]}
	if p.w >= Sparing() { // bytes can also be copied
		p.close()
		return nil, os.NewSyscallError("pipe2", unix.EMFILE)
	}
	size, err := unix.FcntlInt(uintptr(p.w), unix.F_SETPIPE_SZ, pipeSize)
	if err != nil {
		size, err = unix.FcntlInt(uintptr(p.w), unix.F_GETPIPE_SZ, 0)
	}
	if err != nil || size < pipeLeast {
		p.close()
		return nil, os.NewSyscallError("fcntl", unix.EPERM)
	}
	return p, nil
}

func (p *pipe) close() {
	unix.Close(p.r)
	unix.Close(p.w)
}

// fill moves bytes from a socket into the empty pipe: any EAGAIN is the
// socket's. No bytes and no error are the end of the stream.
func (p *pipe) fill(socket int) (int, error) {
	return splice(socket, p.w, pipeSize)
}

// empty moves n bytes, or fewer, from the pipe into a socket.
func (p *pipe) empty(socket, n int) (int, error) {
	n, err := splice(p.r, socket, n)
	if n == 0 && err == nil {
		err = io.ErrUnexpectedEOF // the count is wrong: a bug, but never a hang
	}
	return n, err
}

// read takes n bytes out of the pipe, which holds them.
func (p *pipe) read(n int) []byte {
	b := make([]byte, n)
	for got := 0; got < n; {
		m, err := unix.Read(p.r, b[got:])
		if err == unix.EINTR {
			continue
		}
		if err != nil || m == 0 {
			return b[:got]
		}
		got += m
	}
	return b
}

// splice moves up to pipeSize at once and does not tell the scheduler either:
// it passes references to pages, which is a matter of some tens of
// microseconds, while a processor that is taken away meanwhile costs two
// wake-ups.
func splice(from, to, n int) (int, error) {
	for {
		m, _, errno := unix.RawSyscall6(unix.SYS_SPLICE, uintptr(from), 0, uintptr(to), 0,
			uintptr(n), unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
		if errno == unix.EINTR {
			continue
		}
		return result(m, errno)
	}
}
