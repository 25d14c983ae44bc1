//go:build unix

package gateway

import (
	"errors"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/alpn"
	"github.com/sallyport/sallyport/dataplane/relay"
)

// When no descriptor is left, but for the few that connections do not get, nothing
// is accepted for a while, but not nobody:
// each loop keeps some in reserve, to take connections whose clients have said
// what they want, tell them that it cannot be had, and close.

const (
	// reserved is how many clients a loop answers at once without a descriptor
	// to spare.
	reserved = 8

	// descriptorsFew: a process that may have fewer than this is told so. A
	// relay takes two.
	descriptorsFew = 16384
)

// reserve is descriptors to have when there is none.
type reserve struct{ files []*os.File }

// fill gets back what was spent, as far as it goes. What connections do not get
// it does not take either.
func (r *reserve) fill(sparing int) {
	for len(r.files) < reserved {
		f, err := os.Open(os.DevNull)
		if err != nil {
			return
		}
		if int(f.Fd()) >= sparing {
			f.Close()
			return
		}
		r.files = append(r.files, f)
	}
}

// spend frees one descriptor. It is false when there is none.
func (r *reserve) spend() bool {
	last := len(r.files) - 1
	if last < 0 {
		return false
	}
	r.files[last].Close()
	r.files = r.files[:last]
	return true
}

func (r *reserve) close() {
	for r.spend() {
	}
}

// exhausted says that an error is the process's or the system's want of
// descriptors or memory, not the connection's fault.
func exhausted(err error) bool {
	return errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.ENOMEM)
}

// few says that a descriptor that was just got is one of the last, which the
// process needs for other things than connections. A limit that was raised
// meanwhile counts.
func (w *lane) few(fd int) bool {
	if fd < w.sparing {
		return false
	}
	w.sparing = relay.Sparing()
	return fd >= w.sparing
}

// shed takes the connections that have waited longest, for as many as there are
// descriptors in reserve, so that not everybody waits in a queue that does not
// move.
func (l *listener) shed() {
	w := l.lane
	for w.reserve.spend() {
		fd, peer, err := relay.Accept(l.fd)
		if err != nil {
			break
		}
		w.turnAway(fd, peer)
	}
	w.reserve.fill(w.sparing)
}

// displace turns a connection away whose descriptor is one of the last: its answer
// waits in the place of one in reserve.
func (w *lane) displace(fd int, peer netip.AddrPort) {
	if w.reserve.spend() {
		if low, ok := w.lower(fd); ok {
			w.turnAway(low, peer)
			return
		}
	}
	w.reject(fd)
}

// freed moves a connection from one of the last descriptors to one that the loop has
// let go of and not yet closed: where it is it would stay, and with each such turn of
// the loop there would be one fewer of them. It is false when there is none.
func (w *lane) freed(fd int) (low int, ok bool) {
	if !relay.Flush(w.loop) {
		return fd, false
	}
	return w.lower(fd)
}

// lower moves a socket that nobody watches to the lowest descriptor that is free,
// unless that is one of the last too.
func (w *lane) lower(fd int) (low int, ok bool) {
	low, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return fd, false
	}
	if low >= w.sparing {
		relay.Close(low)
		return fd, false
	}
	relay.Close(fd)
	return low, true
}

// reject resets a connection without a word.
func (w *lane) reject(fd int) {
	w.counts.add(outcomeShed)
	relay.ResetClose(fd)
}

// turnAway answers a client that has said what it wants, with an alert where
// that is TLS, and resets one that has not.
func (w *lane) turnAway(fd int, peer netip.AddrPort) {
	if w.few(fd) { // somebody else was faster
		w.reject(fd)
		return
	}
	c := w.begin(fd, peer)
	c.shed = true
	c.look()
	if c.stage == reading {
		c.leave(false)
		c.loop.Unwatch(fd)
		w.reject(fd)
	}
}

// turnedAway ends a connection that there is no descriptor to go on with.
func (c *conn) turnedAway() {
	why := outcomeExhausted
	if c.shed {
		why = outcomeShed
	}
	c.refuse(alpn.InternalError, why)
}

// reportLimit tells the operator of a limit that a busy gateway reaches. The
// runtime has raised it as far as it may.
func (g *Gateway) reportLimit() {
	limit := descriptorLimit()
	if limit == 0 || limit >= descriptorsFew {
		return
	}
	g.log.Warn("few descriptors: at two a connection this many connections fit; raise the limit (LimitNOFILE, ulimit -n)",
		"limit", limit, "connections", limit/2)
}
