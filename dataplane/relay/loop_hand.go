//go:build unix

package relay

// hander is a Loop that passes a watched descriptor on, and closes one, with
// fewer system calls than Watch and Unwatch take; both loops of this package
// are.
type hander interface {
	hand(fd int, h Handler) (lasting Readiness, err error)
	discard(fd int)
}

// lasting is what stays true of a descriptor once it has been reported.
const lasting = Ending | HungUp | Failed | Urgent

// Hand gives fd to h. When l watches it already, what is there is not reported
// again: h looks for itself, and hears of what comes from now on. past is what
// earlier handlers have been told and still holds: Ending, HungUp, Failed, Urgent. When
// l does not watch fd, Hand is Watch.
func Hand(l Loop, fd int, h Handler) (past Readiness, err error) {
	if l, ok := l.(hander); ok {
		return l.hand(fd, h)
	}
	return 0, l.Watch(fd, h) // a loop of another package reports all again
}

// Discard is Unwatch and Close in one; a loop that batches closes at the end of
// its turn, or with Flush.
func Discard(l Loop, fd int) {
	if l, ok := l.(hander); ok {
		l.discard(fd)
		return
	}
	l.Unwatch(fd)
	Close(fd)
}
