//go:build unix

package relay

import (
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// portableLoop is a Loop on the runtime's poller, for every Unix. Two
// goroutines per watched descriptor wait for its edges and post them; the
// loop's "thread" is one goroutine.
type portableLoop struct {
	mailbox
	timers
	stores

	bell    chan struct{}
	watches map[int]*observed
	now     time.Time
	scratch []byte
	done    chan struct{}
}

// observed is one watched descriptor. The poller gets a duplicate, which it
// may close: the descriptor itself stays the handler's.
type observed struct {
	loop    *portableLoop
	file    *os.File  // the duplicate
	handler Handler   // the loop's; nil after Unwatch
	past    Readiness // of it, what lasts; the loop's
	tell    func()    // deliver, made once

	seen    atomic.Uint32 // Readiness not yet delivered; the one who finds 0 posts
	waiters sync.WaitGroup
}

// NewPortable starts a loop on the runtime's poller.
func NewPortable() (Loop, error) {
	l := &portableLoop{
		timers:  newTimers(),
		bell:    make(chan struct{}, 1),
		watches: make(map[int]*observed),
		now:     time.Now(),
		scratch: make([]byte, ScratchSize),
		done:    make(chan struct{}),
	}
	l.ring = l.ringBell
	go l.run()
	return l, nil
}

func (l *portableLoop) run() {
	defer close(l.done)
	clock := time.NewTimer(time.Hour)
	defer clock.Stop()
	var spare []func()
	for closed := false; !closed; {
		l.wait(clock)
		l.now = time.Now()
		spare, closed = l.mailbox.run(spare)
		l.timers.runDue(l.now)
	}
	for fd := range l.watches {
		l.Unwatch(fd)
	}
	l.stores.close()
}

func (l *portableLoop) wait(clock *time.Timer) {
	timeout := l.timers.wait(time.Now())
	if timeout == 0 || !l.doze() {
		return
	}
	if timeout < 0 {
		<-l.bell
		l.awake()
		return
	}
	clock.Reset(timeout)
	select {
	case <-l.bell:
	case <-clock.C:
	}
	l.awake()
}

func (l *portableLoop) Watch(fd int, h Handler) error {
	if o := l.watches[fd]; o != nil {
		o.handler, o.past = h, 0
		o.note(pollNow(fd))
		return nil
	}
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("fcntl", err)
	}
	o := &observed{loop: l, file: os.NewFile(uintptr(dup), "watched"), handler: h}
	o.tell = o.deliver
	raw, err := o.pollable()
	if err != nil {
		o.file.Close()
		return err
	}
	l.watches[fd] = o
	o.waiters.Add(2)
	go o.awaitReads(raw)
	go o.awaitWrites(raw)
	return nil
}

// pollable fails for what the runtime's poller does not take: files, and
// descriptors in blocking mode.
func (o *observed) pollable() (syscall.RawConn, error) {
	if err := o.file.SetDeadline(time.Time{}); err != nil {
		return nil, err
	}
	return o.file.SyscallConn()
}

func (l *portableLoop) Unwatch(fd int) {
	o := l.watches[fd]
	if o == nil {
		return
	}
	delete(l.watches, fd)
	o.handler = nil
	o.file.Close() // ends both waiters
	o.waiters.Wait()
}

// awaitReads stays in one call for the whole watch: the poller remembers an
// edge that comes between two looks, and would forget it between two calls.
func (o *observed) awaitReads(raw syscall.RawConn) {
	defer o.waiters.Done()
	_ = raw.Read(o.look)
	o.note(Readable | Ending | HungUp | Failed) // the poller gave it up: reading tells why
}

func (o *observed) awaitWrites(raw syscall.RawConn) {
	defer o.waiters.Done()
	_ = raw.Write(o.look)
}

// look notes what the descriptor is ready for after an edge, and waits on.
func (o *observed) look(fd uintptr) bool {
	o.note(pollNow(int(fd)))
	return false
}

// note keeps one delivery under way, however many edges come.
func (o *observed) note(r Readiness) {
	if r != 0 && o.seen.Or(uint32(r)) == 0 {
		o.loop.post(o.tell)
	}
}

// deliver runs on the loop.
func (o *observed) deliver() {
	r := Readiness(o.seen.Swap(0))
	o.past |= r & lasting
	if o.handler != nil {
		o.handler.Ready(r)
	}
}

func (l *portableLoop) hand(fd int, h Handler) (Readiness, error) {
	o := l.watches[fd]
	if o == nil {
		return 0, l.Watch(fd, h)
	}
	o.handler = h
	return o.past, nil
}

// discard goes the long way: the poller has a duplicate.
func (l *portableLoop) discard(fd int) {
	l.Unwatch(fd)
	closeFD(fd)
}

// pollNow asks for the present state without waiting.
func pollNow(fd int) Readiness {
	fds := [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN | unix.POLLPRI | unix.POLLOUT | pollEnding}}
	n, err := unix.Poll(fds[:], 0)
	if n <= 0 || err != nil {
		return 0
	}
	return pollReadiness(fds[0].Revents)
}

// pollReadiness is careful where poll is vague: not every system tells the end
// of a stream apart, nor sets POLLERR after a reset.
func pollReadiness(events int16) Readiness {
	var r Readiness
	if events&unix.POLLIN != 0 {
		r |= Readable
		if pollEnding == 0 {
			r |= Ending
		}
	}
	if events&pollEnding != 0 {
		r |= Readable | Ending
	}
	if events&unix.POLLOUT != 0 {
		r |= Writable
	}
	if events&unix.POLLHUP != 0 {
		r |= HungUp
		if pollEnding == 0 {
			r |= Failed
		}
	}
	if events&(unix.POLLERR|unix.POLLNVAL) != 0 {
		r |= Failed
	}
	if events&unix.POLLPRI != 0 {
		r |= Urgent
	}
	return r
}

func (l *portableLoop) Arm(t Timer, after time.Duration) { l.timers.arm(t, after) }
func (l *portableLoop) Disarm(t Timer)                   { l.timers.disarm(t) }
func (l *portableLoop) Post(f func()) bool               { return l.mailbox.post(f) }
func (l *portableLoop) Now() time.Time                   { return l.now }
func (l *portableLoop) Scratch() []byte                  { return l.scratch }

func (l *portableLoop) Close() error {
	l.mailbox.close()
	<-l.done
	return nil
}

func (l *portableLoop) ringBell() {
	select {
	case l.bell <- struct{}{}:
	default:
	}
}
