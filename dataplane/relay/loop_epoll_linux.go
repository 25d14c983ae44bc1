package relay

import (
	"encoding/binary"
	"fmt"
	"os"
	"runtime"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// epollLoop is a Loop on one locked thread with an epoll set of its own.
type epollLoop struct {
	mailbox
	timers
	stores

	set  int // the epoll set
	bell int // eventfd that ends a wait

	watches []watch // by descriptor
	last    uint32  // the last generation given out
	credit  credit
	bulk    int // bytes spliced since the last message
	events  []unix.EpollEvent
	now     time.Time
	scratch []byte
	done    chan struct{} // closed when the thread has ended
}

// watch is one descriptor in the set. The generation travels with each event:
// one that was fetched before an Unwatch does not reach the descriptor's, or
// its number's, next handler.
type watch struct {
	handler Handler
	gen     uint32
	past    Readiness // of it, what lasts
}

const (
	epollInterest = unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLET

	// epollBatch is the number of events fetched at once.
	epollBatch = 256

	// epollLongest bounds one wait, so that it fits the call's milliseconds.
	epollLongest = time.Hour
)

// NewEpoll starts a loop on a thread of its own, with an epoll set.
func NewEpoll() (Loop, error) {
	set, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	bell, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		unix.Close(set)
		return nil, os.NewSyscallError("eventfd", err)
	}
	// Edge-triggered: each write to the bell is an event, nobody need read it.
	ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET, Fd: int32(bell)}
	if err := unix.EpollCtl(set, unix.EPOLL_CTL_ADD, bell, &ev); err != nil {
		unix.Close(bell)
		unix.Close(set)
		return nil, os.NewSyscallError("epoll_ctl", err)
	}
	l := &epollLoop{
		timers:  newTimers(),
		set:     set,
		bell:    bell,
		events:  make([]unix.EpollEvent, epollBatch),
		now:     time.Now(),
		scratch: make([]byte, ScratchSize),
		done:    make(chan struct{}),
	}
	l.ring = l.ringBell
	go l.run()
	return l, nil
}

// run is the loop. Its thread is never unlocked, and so ends with it.
func (l *epollLoop) run() {
	runtime.LockOSThread()
	sharpen()
	defer close(l.done)
	var spare []func()
	for n, closed := 0, false; !closed; {
		n = l.wait(n)
		l.now = time.Now()
		for i := range n {
			l.dispatch(&l.events[i])
		}
		spare, closed = l.mailbox.run(spare)
		l.timers.runDue(l.now)
	}
	l.stores.close()
	unix.Close(l.set)
	unix.Close(l.bell)
}

// wait fetches events, after a round of n. It looks first without blocking and
// without telling the scheduler; only when there is nothing it blocks, as an
// ordinary system call: otherwise the garbage collector would wait for the
// network.
func (l *epollLoop) wait(n int) int {
	t := l.take()
	if n := l.look(); n > 0 {
		return n
	}
	begin := time.Now()
	timeout := l.timers.wait(begin)
	if timeout == 0 || !l.doze() {
		return 0
	}
	defer l.awake()
	next := l.lull(n, t)
	if next == 0 {
		next = l.block(timeout)
	}
	if t.talked(n) {
		l.credit.note(time.Since(begin))
	}
	return next
}

func (l *epollLoop) block(timeout time.Duration) int {
	n, err := unix.EpollWait(l.set, l.events, millis(timeout))
	if err != nil && err != unix.EINTR {
		panic(fmt.Sprintf("relay: epoll_wait: %v", err))
	}
	return max(n, 0)
}

func (l *epollLoop) look() int {
	n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(l.set),
		uintptr(unsafe.Pointer(&l.events[0])), uintptr(len(l.events)), 0, 0, 0)
	if errno != 0 {
		return 0
	}
	return int(n)
}

// millis rounds up: a wait must not end before the deadline.
func millis(d time.Duration) int {
	if d < 0 {
		return -1
	}
	return int((min(d, epollLongest) + time.Millisecond - 1) / time.Millisecond)
}

func (l *epollLoop) dispatch(ev *unix.EpollEvent) {
	fd := int(ev.Fd)
	if fd == l.bell {
		return
	}
	w := &l.watches[fd]
	if w.handler == nil || w.gen != uint32(ev.Pad) {
		return
	}
	r := epollReadiness(ev.Events)
	w.past |= r & lasting
	w.handler.Ready(r)
}

func epollReadiness(events uint32) Readiness {
	var r Readiness
	if events&unix.EPOLLIN != 0 {
		r |= Readable
	}
	if events&unix.EPOLLRDHUP != 0 {
		r |= Readable | Ending
	}
	if events&unix.EPOLLOUT != 0 {
		r |= Writable
	}
	if events&unix.EPOLLHUP != 0 {
		r |= HungUp
	}
	if events&unix.EPOLLERR != 0 {
		r |= Failed
	}
	return r
}

func (l *epollLoop) Watch(fd int, h Handler) error {
	if fd >= len(l.watches) {
		l.watches = append(l.watches, make([]watch, fd+1-len(l.watches))...)
	}
	w := &l.watches[fd]
	op := unix.EPOLL_CTL_ADD
	if w.handler != nil {
		op = unix.EPOLL_CTL_MOD
	}
	l.last++
	ev := unix.EpollEvent{Events: epollInterest, Fd: int32(fd), Pad: int32(l.last)}
	if errno := l.control(op, fd, &ev); errno != 0 {
		return os.NewSyscallError("epoll_ctl", errno)
	}
	*w = watch{handler: h, gen: l.last}
	return nil
}

// hand keeps the generation: events that were fetched for the last handler are
// the next one's.
func (l *epollLoop) hand(fd int, h Handler) (Readiness, error) {
	if fd < 0 || fd >= len(l.watches) || l.watches[fd].handler == nil {
		return 0, l.Watch(fd, h)
	}
	w := &l.watches[fd]
	w.handler = h
	return w.past, nil
}

// discard leaves it to the kernel to take the descriptor out of the set: with
// its last reference it goes. A child between fork and exec may hold one for a
// moment; the events of that moment have an old generation.
func (l *epollLoop) discard(fd int) {
	if fd >= 0 && fd < len(l.watches) {
		l.watches[fd] = watch{}
	}
	closeFD(fd)
}

func (l *epollLoop) Unwatch(fd int) {
	if fd < 0 || fd >= len(l.watches) || l.watches[fd].handler == nil {
		return
	}
	l.watches[fd] = watch{}
	// An error means that it is not in the set, which is what is asked for.
	_ = l.control(unix.EPOLL_CTL_DEL, fd, nil)
}

func (l *epollLoop) control(op, fd int, ev *unix.EpollEvent) syscall.Errno {
	_, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(l.set), uintptr(op), uintptr(fd),
		uintptr(unsafe.Pointer(ev)), 0, 0)
	return errno
}

func (l *epollLoop) Arm(t Timer, after time.Duration) { l.timers.arm(t, after) }
func (l *epollLoop) Disarm(t Timer)                   { l.timers.disarm(t) }
func (l *epollLoop) Post(f func()) bool               { return l.mailbox.post(f) }
func (l *epollLoop) Now() time.Time                   { return l.now }
func (l *epollLoop) Scratch() []byte                  { return l.scratch }

func (l *epollLoop) Close() error {
	l.mailbox.close()
	<-l.done
	return nil
}

// ringBell is called with the mailbox locked, and only while the loop is
// asleep: the eventfd is open.
func (l *epollLoop) ringBell() {
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	_, _ = unix.Write(l.bell, one[:])
}
