package crowd

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// loop is one thread with an epoll set and a clock. What belongs to it is only
// touched on its thread; others post.
type loop struct {
	set, wake, timer int
	tick             func(now time.Time)
	watched          []watch // by descriptor
	stop             bool
	done             chan struct{}

	mu     sync.Mutex
	mail   []func() // guarded by mu
	closed bool     // guarded by mu
}

// watch is who hears of a descriptor. Generation tells an event that was
// already fetched for a descriptor that has since been closed and used again.
type watch struct {
	by         watcher
	generation int32
}

type watcher interface {
	ready(events uint32)
}

// newLoop starts a loop whose tick is called every so often.
func newLoop(every time.Duration, tick func(now time.Time)) (*loop, error) {
	l := &loop{set: -1, wake: -1, timer: -1, tick: tick, done: make(chan struct{})}
	if err := l.open(every); err != nil {
		l.release()
		return nil, err
	}
	go l.run()
	return l, nil
}

func (l *loop) open(every time.Duration) (err error) {
	if l.set, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return fmt.Errorf("epoll: %w", err)
	}
	if l.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return fmt.Errorf("eventfd: %w", err)
	}
	if l.timer, err = unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK); err != nil {
		return fmt.Errorf("timerfd: %w", err)
	}
	span := unix.NsecToTimespec(every.Nanoseconds())
	if err := unix.TimerfdSettime(l.timer, 0, &unix.ItimerSpec{Interval: span, Value: span}, nil); err != nil {
		return fmt.Errorf("timerfd: %w", err)
	}
	return errors.Join(l.control(unix.EPOLL_CTL_ADD, l.wake, unix.EPOLLIN), l.control(unix.EPOLL_CTL_ADD, l.timer, unix.EPOLLIN))
}

func (l *loop) control(op, fd int, events uint32) error {
	e := &unix.EpollEvent{Events: events, Fd: int32(fd)}
	if fd < len(l.watched) {
		e.Pad = l.watched[fd].generation
	}
	if err := unix.EpollCtl(l.set, op, fd, e); err != nil {
		return fmt.Errorf("epoll_ctl: %w", err)
	}
	return nil
}

// watch reports events of a descriptor to by.
func (l *loop) watch(fd int, events uint32, by watcher) error {
	if fd >= len(l.watched) {
		l.watched = append(l.watched, make([]watch, fd+64-len(l.watched))...)
	}
	l.watched[fd] = watch{by: by, generation: l.watched[fd].generation + 1}
	return l.control(unix.EPOLL_CTL_ADD, fd, events)
}

// leave stops watching, for another loop to watch.
func (l *loop) leave(fd int) error {
	l.watched[fd].by = nil
	return l.control(unix.EPOLL_CTL_DEL, fd, 0)
}

// close closes a descriptor, watched or not.
func (l *loop) close(fd int) {
	if fd < len(l.watched) {
		l.watched[fd].by = nil
	}
	unix.Close(fd)
}

// post runs f on the loop's thread, soon. It reports false, and does not, when
// the loop has ended.
func (l *loop) post(f func()) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	l.mail = append(l.mail, f)
	_, _ = unix.Write(l.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0}) // full means that it will wake
	return true
}

// call is post, and returns when f has run.
func (l *loop) call(f func()) {
	ran := make(chan struct{})
	if l.post(func() { defer close(ran); f() }) {
		<-ran
	}
}

// end stops the thread and closes all that it watches.
func (l *loop) end() {
	l.post(func() { l.stop = true })
	<-l.done
}

func (l *loop) run() {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer close(l.done)
	defer l.release()
	events := make([]unix.EpollEvent, 512)
	for !l.stop {
		n, err := unix.EpollWait(l.set, events, -1)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			panic(fmt.Sprintf("crowd: epoll_wait: %v", err)) // only for descriptors that are not ours
		}
		for _, e := range events[:n] {
			l.handle(e)
		}
	}
}

func (l *loop) handle(e unix.EpollEvent) {
	var b [8]byte
	switch fd := int(e.Fd); fd {
	case l.wake:
		_, _ = unix.Read(fd, b[:])
		l.read()
	case l.timer:
		_, _ = unix.Read(fd, b[:])
		l.tick(time.Now())
	default:
		if w := l.watched[fd]; w.by != nil && w.generation == e.Pad {
			w.by.ready(e.Events)
		}
	}
}

// read runs what was posted.
func (l *loop) read() {
	l.mu.Lock()
	mail := l.mail
	l.mail = nil
	l.mu.Unlock()
	for _, f := range mail {
		f()
	}
}

// release closes what is the loop's own. Mail that came too late is answered:
// whoever waits for it must not wait for ever.
func (l *loop) release() {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.read()
	for fd, w := range l.watched {
		if w.by != nil {
			l.close(fd)
		}
	}
	for _, fd := range []int{l.set, l.wake, l.timer} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}
