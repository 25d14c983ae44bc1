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

	watches watches
	sifted  []int32 // places with something in watch.kept
	last    uint32  // the last generation given out
	credit  credit
	bulk    int // bytes spliced since the last message
	events  []unix.EpollEvent
	now     time.Time
	ceded   time.Time // when it last ceded, or came back from a long wait
	scratch []byte
	batch   batch
	done    chan struct{} // closed when the thread has ended
}

const (
	epollInterest = unix.EPOLLIN | unix.EPOLLPRI | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLET

	// epollBatch is the number of events fetched at once.
	epollBatch = 256

	// cedeEvery is less than the 10 ms after which the runtime stops a goroutine
	// by a signal, and takes its processor in the next wait. Whenever it has taken
	// one it watches, for some milliseconds every 20 microseconds, whether there is
	// more to take: that was a fifth of what many small messages cost.
	cedeEvery = 8 * time.Millisecond

	// epollLongest bounds one wait, so that it fits the call's milliseconds.
	epollLongest = time.Hour
)

// NewEpoll starts a loop on a thread of its own, with an epoll set.
func NewEpoll() (Loop, error) { return newEpoll(nil) }

// NewBatched is NewEpoll with BatchOn. Where the kernel refuses, the loop is
// NewEpoll's, and BatchingOf says why.
func NewBatched() (Loop, error) { return newEpoll(newRing) }

// newEpoll puts calls off when there is a ring to make them by.
func newEpoll(ring func() (closer, error)) (Loop, error) {
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
	ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET, Fd: nowhere}
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
	began := make(chan struct{})
	go l.run(ring, began)
	<-began
	return l, nil
}

// run is the loop. Its thread is never unlocked, and so ends with it.
func (l *epollLoop) run(ring func() (closer, error), began chan<- struct{}) {
	runtime.LockOSThread()
	sharpen()
	defer close(l.done)
	if ring != nil {
		l.batch.open(ring)
	}
	close(began)
	var spare []func()
	for n, closed := 0, false; !closed; {
		n = l.wait(n)
		l.now = time.Now()
		l.cede()
		for i := range n {
			l.dispatch(&l.events[i])
		}
		spare, closed = l.mailbox.run(spare)
		l.timers.runDue(l.now)
		l.batch.flush()
	}
	l.batch.close()
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
	if !t.polled { // else spin has looked since
		if n := l.look(); n > 0 {
			return n
		}
	}
	begin := time.Now()
	timeout := l.timers.wait(begin)
	if timeout == 0 || l.mailbox.full() {
		return 0
	}
	next, blocked := l.lull(n, t), false
	if next == 0 && l.stores.turn == (turn{}) {
		if !l.doze() {
			return 0
		}
		next, blocked = l.block(timeout), true
		l.awake()
	}
	waited := time.Since(begin)
	if t.talked(n) {
		l.credit.note(waited, blocked)
	}
	if waited >= cedeEvery {
		l.ceded = begin.Add(waited)
	}
	return next
}

// cede lets the runtime choose anew, and count from now. A loop that has slept
// for long need not: its processor was taken meanwhile.
func (l *epollLoop) cede() {
	if l.now.Sub(l.ceded) >= cedeEvery {
		l.ceded = l.now
		runtime.Gosched()
	}
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
	w := l.watches.of(ev)
	if w == nil {
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
	if events&unix.EPOLLPRI != 0 {
		r |= Urgent
	}
	return r
}

func (l *epollLoop) Watch(fd int, h Handler) error {
	place, op := l.watches.find(fd), unix.EPOLL_CTL_MOD
	if place == nowhere {
		place, op = l.watches.add(fd), unix.EPOLL_CTL_ADD
	}
	l.last++
	ev := unix.EpollEvent{Events: epollInterest, Fd: place, Pad: int32(l.last)}
	if errno := l.control(op, fd, &ev); errno != 0 {
		if op == unix.EPOLL_CTL_ADD {
			l.watches.remove(fd)
		}
		return os.NewSyscallError("epoll_ctl", errno)
	}
	*l.watches.at(place) = watch{handler: h, gen: l.last}
	return nil
}

// hand keeps the generation: events that were fetched for the last handler are
// the next one's.
func (l *epollLoop) hand(fd int, h Handler) (Readiness, error) {
	place := l.watches.find(fd)
	if place == nowhere {
		return 0, l.Watch(fd, h)
	}
	w := l.watches.at(place)
	w.handler = h
	return w.past, nil
}

// discard leaves it to the kernel to take the descriptor out of the set: with
// its last reference it goes. A child between fork and exec may hold one for a
// moment; the events of that moment have an old generation.
func (l *epollLoop) discard(fd int) {
	l.watches.remove(fd)
	if !l.batch.put(fd) {
		closeFD(fd)
	}
}

func (l *epollLoop) Unwatch(fd int) {
	if l.watches.remove(fd) {
		// An error means that it is not in the set, which is what is asked for.
		_ = l.control(unix.EPOLL_CTL_DEL, fd, nil)
	}
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
