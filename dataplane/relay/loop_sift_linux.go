package relay

import (
	"time"

	"golang.org/x/sys/unix"
)

// sift meets sifter. The thread stands in its mailbox, and has used up the
// events that it had fetched.
func (l *epollLoop) sift() {
	for {
		n := l.look()
		for i := range n {
			l.keep(&l.events[i])
		}
		if n < len(l.events) {
			return
		}
	}
}

// keep notes an event. Each edge is told once, so what is not kept is lost.
func (l *epollLoop) keep(ev *unix.EpollEvent) {
	w := l.watches.of(ev)
	if w == nil {
		return // the bell's too: the mailbox is looked into anyway
	}
	r := epollReadiness(ev.Events)
	w.past |= r & lasting
	if _, relays := w.handler.(*side); relays {
		r &^= Writable
	}
	if w.kept == 0 && r != 0 {
		l.sifted = append(l.sifted, ev.Fd)
	}
	w.kept |= r
}

func (l *epollLoop) refresh() {
	l.now = time.Now()
	l.batch.held = false
}

func (l *epollLoop) deliver() {
	for _, place := range l.sifted {
		w := l.watches.at(place)
		if r := w.kept; r != 0 && w.handler != nil {
			w.kept = 0
			w.handler.Ready(r)
		}
	}
	l.sifted = nil
}
