package uring

import (
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// BenchmarkCalls is what docs/io_uring.md is about: what each call of a short
// connection costs by itself and in a ring, 32 at once, in CPU time of the whole
// process, threads of the kernel's for it included. What is done before and
// after is not counted.
func BenchmarkCalls(b *testing.B) {
	const batch = 32
	for _, c := range []calls{nothing, closes(false), closes(true), sockets, options, watches, connects, shutdowns, accepts} {
		for _, ringed := range []bool{false, true} {
			how := map[bool]string{false: "one by one", true: "in a ring"}[ringed]
			b.Run(c.name+"/"+how, func(b *testing.B) {
				w := &workshop{B: b, ring: newRing(b, batch)}
				w.open()
				defer w.close()
				var spent time.Duration
				for n := 0; n < b.N; n += batch {
					fds := w.fds[:0]
					for range batch {
						fds = append(fds, c.before(w))
					}
					began := cpu(b)
					for i, fd := range fds {
						if ringed {
							c.add(w, w.ring.add(), fd)
						} else {
							fds[i] = c.call(w, fd)
						}
					}
					if ringed {
						results, err := w.ring.Make()
						if err != nil || len(results) != batch {
							b.Fatal(len(results), err)
						}
					}
					spent += cpu(b) - began
					c.after(w, fds, ringed)
				}
				b.ReportMetric(float64(spent.Nanoseconds())/float64((b.N+batch-1)/batch*batch), "cpu-ns/call")
			})
		}
	}
}

func cpu(b *testing.B) time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &ts); err != nil {
		b.Fatal(err)
	}
	return time.Duration(ts.Nano())
}

// workshop is what the calls are made with.
type workshop struct {
	*testing.B
	ring     *Ring
	listener int
	address  unix.RawSockaddrInet4
	set      int
	fds      []int
	peers    []int
	on       int32
	event    unix.EpollEvent
}

func (w *workshop) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

func (w *workshop) open() {
	var err error
	w.listener, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	w.must(err)
	w.must(unix.Bind(w.listener, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	w.must(unix.Listen(w.listener, 4096))
	at, err := unix.Getsockname(w.listener)
	w.must(err)
	port := at.(*unix.SockaddrInet4).Port
	w.address = unix.RawSockaddrInet4{Family: unix.AF_INET, Port: uint16(port>>8 | port&0xff<<8), Addr: [4]byte{127, 0, 0, 1}}
	w.set, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	w.must(err)
	w.on, w.event = 1, unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET}
}

func (w *workshop) close() {
	unix.Close(w.listener)
	unix.Close(w.set)
}

func (w *workshop) socket() int {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	w.must(err)
	return fd
}

// dial is a connection whose other end is not accepted yet.
func (w *workshop) dial() int {
	fd := w.socket()
	if errno := w.connect(fd); errno != 0 && errno != unix.EINPROGRESS {
		w.Fatal(errno)
	}
	return fd
}

func (w *workshop) connect(fd int) unix.Errno {
	_, _, errno := unix.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&w.address)), unix.SizeofSockaddrInet4)
	return errno
}

func (w *workshop) accept() int {
	for {
		fd, _, err := unix.Accept4(w.listener, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		if err == nil {
			return fd
		}
		if err != unix.EAGAIN {
			w.Fatal(err)
		}
	}
}

// pair is a connection with both ends here; the peer is kept.
func (w *workshop) pair() int {
	w.peers = append(w.peers, w.dial())
	return w.accept()
}

// calls are one kind of call.
type calls struct {
	name   string
	before func(w *workshop) int                     // makes what the call is for
	call   func(w *workshop, fd int) int             // makes it by itself
	add    func(w *workshop, s *submission, fd int)  // adds it to the ring
	after  func(w *workshop, fds []int, ringed bool) // cleans up
}

func drop(w *workshop, fds []int, _ bool) {
	for _, fd := range append(fds, w.peers...) {
		unix.Close(fd)
	}
	w.peers = w.peers[:0]
}

func raw(trap, a, b, c uintptr) int {
	r, _, _ := unix.RawSyscall(trap, a, b, c)
	return int(r)
}

var nothing = calls{
	"nothing", func(*workshop) int { return 0 },
	func(*workshop, int) int { return raw(unix.SYS_GETPPID, 0, 0, 0) },
	func(_ *workshop, s *submission, _ int) { s.op = opNop },
	func(*workshop, []int, bool) {},
}

func closes(connected bool) calls {
	c := calls{
		"close of a new socket", (*workshop).socket,
		func(_ *workshop, fd int) int { return raw(unix.SYS_CLOSE, uintptr(fd), 0, 0) },
		func(_ *workshop, s *submission, fd int) { s.op, s.fd = opClose, int32(fd) },
		func(w *workshop, _ []int, _ bool) { drop(w, nil, false) },
	}
	if connected {
		c.name, c.before = "close of a connection", (*workshop).pair
	}
	return c
}

var sockets = calls{
	"socket", func(*workshop) int { return 0 },
	func(*workshop, int) int {
		return raw(unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	},
	func(_ *workshop, s *submission, _ int) {
		const opSocket = 45
		s.op, s.fd, s.off = opSocket, unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC
	},
	func(w *workshop, fds []int, ringed bool) {
		if ringed { // the results have the errors only
			for i := range fds {
				fds[i] = int(w.ring.completions[(*w.ring.done-uint32(len(fds))+uint32(i))&uint32(len(w.ring.completions)-1)].result)
			}
		}
		drop(w, fds, ringed)
	},
}

var options = calls{
	"setsockopt TCP_NODELAY", (*workshop).socket,
	func(w *workshop, fd int) int {
		_, _, _ = unix.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.IPPROTO_TCP, unix.TCP_NODELAY, uintptr(unsafe.Pointer(&w.on)), 4, 0)
		return fd
	},
	func(w *workshop, s *submission, fd int) {
		const opCommand, commandSetsockopt = 46, 3
		s.op, s.fd, s.off = opCommand, int32(fd), commandSetsockopt
		s.addr = unix.IPPROTO_TCP | unix.TCP_NODELAY<<32
		rest := (*[3]uint64)(unsafe.Add(unsafe.Pointer(s), 40))
		rest[0], rest[1] = 4<<32, uint64(uintptr(unsafe.Pointer(&w.on)))
	},
	drop,
}

var watches = calls{
	"epoll_ctl ADD", (*workshop).pair,
	func(w *workshop, fd int) int {
		_, _, _ = unix.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(w.set), unix.EPOLL_CTL_ADD, uintptr(fd), uintptr(unsafe.Pointer(&w.event)), 0, 0)
		return fd
	},
	func(w *workshop, s *submission, fd int) {
		const opEpollCtl = 29
		s.op, s.fd, s.off, s.size, s.addr = opEpollCtl, int32(w.set), uint64(fd), unix.EPOLL_CTL_ADD, uint64(uintptr(unsafe.Pointer(&w.event)))
	},
	drop,
}

var connects = calls{
	"connect", (*workshop).socket,
	func(w *workshop, fd int) int { w.connect(fd); return fd },
	func(w *workshop, s *submission, fd int) {
		const opConnect = 16
		s.op, s.fd, s.addr, s.off = opConnect, int32(fd), uint64(uintptr(unsafe.Pointer(&w.address))), unix.SizeofSockaddrInet4
	},
	func(w *workshop, fds []int, ringed bool) {
		for range fds {
			w.peers = append(w.peers, w.accept())
		}
		drop(w, fds, ringed)
	},
}

var shutdowns = calls{
	"shutdown", (*workshop).pair,
	func(_ *workshop, fd int) int { raw(unix.SYS_SHUTDOWN, uintptr(fd), unix.SHUT_WR, 0); return fd },
	func(_ *workshop, s *submission, fd int) {
		const opShutdown = 34
		s.op, s.fd, s.size = opShutdown, int32(fd), unix.SHUT_WR
	},
	drop,
}

var accepts = calls{
	"accept4", func(w *workshop) int { w.peers = append(w.peers, w.dial()); return 0 },
	func(w *workshop, _ int) int {
		var sa unix.RawSockaddrAny
		size := uint32(unix.SizeofSockaddrAny)
		fd, _, _ := unix.RawSyscall6(unix.SYS_ACCEPT4, uintptr(w.listener), uintptr(unsafe.Pointer(&sa)), uintptr(unsafe.Pointer(&size)), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
		return int(fd)
	},
	func(w *workshop, s *submission, _ int) {
		const opAccept, dontWait = 13, 1 << 1
		*(*uint16)(unsafe.Add(unsafe.Pointer(s), 2)) = dontWait
		s.op, s.fd, s.flags = opAccept, int32(w.listener), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC
	},
	sockets.after,
}
