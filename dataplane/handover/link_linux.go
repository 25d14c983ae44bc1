package handover

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	handoverv1 "github.com/sallyport/sallyport/wire/sallyport/handover/v1"
)

// Link is one end of the pair of sockets between the two processes. One
// goroutine receives; any may send. The socket is in blocking mode and nothing
// but this type knows its descriptor.
type Link struct {
	receiving sync.Mutex // held while a packet is received, also while none comes
	buf, oob  []byte
	fds       []int // of the last packet

	sending sync.Mutex // guards fd against a close during a send
	fd      int
	closed  bool
}

// sendBuffer holds the batches that may be under way, with what the kernel adds.
const sendBuffer = batches * maxPacket

// errLater says that the packet would have to wait.
var errLater = errors.New("the other process has to take something first")

// Pair makes the two ends: the old process's and the new one's.
func Pair() (old, new *Link, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	return newLink(fds[0]), newLink(fds[1]), nil
}

// newLink takes the descriptor over.
func newLink(fd int) *Link {
	// The first needs CAP_NET_ADMIN, the second is cut to net.core.wmem_max. With
	// less, fewer batches are under way: the sender waits for acknowledgements.
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, sendBuffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, sendBuffer)
	}
	return &Link{
		fd:  fd,
		buf: make([]byte, maxPacket+1),
		// SCM_MAX_FD (unix(7)) is what a packet can have at most, so that none is
		// lost for lack of room.
		oob: make([]byte, unix.CmsgSpace(253*descriptorSize)),
	}
}

// send sends one packet or nothing. It does not block: errLater. io.EOF says
// that the other end is closed.
func (l *Link) send(b []byte, fds []int) error {
	l.sending.Lock()
	defer l.sending.Unlock()
	if l.closed {
		return os.ErrClosed
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	for {
		err := unix.Sendmsg(l.fd, b, oob, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		switch err {
		case nil:
			return nil
		case unix.EINTR:
			continue
		// ETOOMANYREFS: more descriptors of this user are under way than
		// RLIMIT_NOFILE allows (unix(7)); they are fewer when some are taken.
		case unix.EAGAIN, unix.ENOBUFS, unix.ETOOMANYREFS:
			return errLater
		case unix.EPIPE, unix.ECONNRESET, unix.ECONNREFUSED:
			return fmt.Errorf("the other process has ended the link: %w", io.EOF)
		}
		return os.NewSyscallError("sendmsg", err)
	}
}

// receive waits for a packet, which its caller has until the next call: the list of
// its descriptors and its records' bodies are in the link's own memory. It owns no
// descriptor when it has failed. io.EOF: the other end is closed and everything it had
// sent has been received.
func (l *Link) receive() (*handoverv1.Packet, []int, error) {
	l.receiving.Lock()
	defer l.receiving.Unlock()
	for {
		n, oobn, flags, _, err := unix.Recvmsg(l.fd, l.buf, l.oob, unix.MSG_CMSG_CLOEXEC)
		// ECONNRESET says, once, that the other end was closed with packets of
		// ours unread. What it had sent is still there.
		if err == unix.EINTR || err == unix.ECONNRESET {
			continue
		}
		if err != nil {
			return nil, nil, os.NewSyscallError("recvmsg", err)
		}
		fds, err := rights(l.fds[:0], l.oob[:oobn])
		l.fds = fds
		if err == nil {
			err = whole(n, flags)
		}
		var p *handoverv1.Packet
		if err == nil {
			p, err = decodePacket(l.buf[:n], len(fds))
		}
		if err != nil {
			closeAll(fds)
			return nil, nil, err
		}
		return p, fds, nil
	}
}

// whole says whether a packet came with all of its bytes and descriptors.
func whole(n, flags int) error {
	switch {
	case flags&unix.MSG_CTRUNC != 0:
		return errors.New("descriptors are missing: the limit of open files (ulimit -n) is reached")
	case flags&unix.MSG_TRUNC != 0:
		return fmt.Errorf("a packet of some %d bytes, more than %d", n, maxPacket)
	case n == 0:
		return io.EOF
	}
	return nil
}

// rights appends the descriptors that came to fds; the caller owns them, also with an
// error.
func rights(fds []int, oob []byte) ([]int, error) {
	for len(oob) >= unix.CmsgLen(0) {
		h, data, rest, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			return fds, fmt.Errorf("a control message that cannot be read: %w", err)
		}
		if h.Level == unix.SOL_SOCKET && h.Type == unix.SCM_RIGHTS {
			for ; len(data) >= descriptorSize; data = data[descriptorSize:] {
				fds = append(fds, int(int32(binary.NativeEndian.Uint32(data))))
			}
		}
		oob = rest
	}
	return fds, nil
}

// descriptorSize is an int's in a control message (unix(7)).
const descriptorSize = 4

// shut ends both directions: whoever receives here or there gets io.EOF.
func (l *Link) shut() {
	l.sending.Lock()
	defer l.sending.Unlock()
	if !l.closed {
		_ = unix.Shutdown(l.fd, unix.SHUT_RDWR)
	}
}

// Close ends the link. The other end gets io.EOF when it has received what was
// sent.
func (l *Link) Close() {
	l.shut()
	l.receiving.Lock()
	defer l.receiving.Unlock()
	l.sending.Lock()
	defer l.sending.Unlock()
	if !l.closed {
		l.closed = true
		_ = unix.Close(l.fd)
		l.fd = -1
	}
}

// drop closes this process's descriptor of a link that lives on in another.
func (l *Link) drop() {
	l.sending.Lock()
	defer l.sending.Unlock()
	l.closed = true
	_ = unix.Close(l.fd)
	l.fd = -1
}

// own makes a descriptor of this process's own for what fd stands for.
func own(fd int) (int, error) {
	n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("fcntl", err)
	}
	return n, nil
}

// noneLeft says that the limit of open files is reached.
func noneLeft(err error) bool {
	return errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE)
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}
