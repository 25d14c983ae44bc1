package crowd

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// streams are busy connections, both ends of each on one thread.
type streams struct {
	on       *loop
	tally    *tally
	patience time.Duration
	piece    uint64
	every    time.Duration // between pieces
	pulses   bool          // their gaps are measured, in windows; else how long each piece takes
	all      []*relay
	verified uint64
	open     bool // a window
	late     time.Duration
	ending   bool
	left     int           // relays that have not come to their end
	ended    chan struct{} // closed when none is left
	room     [64 << 10]byte
}

// relay is one busy connection.
type relay struct {
	of       *streams
	id       uint64
	control  bool // not through the gateway
	client   int  // descriptors; -1 while there is none
	server   int
	up, down stream
	begun    bool
	over     bool
	failed   bool
}

// stream is one direction. Invariant: got <= sent <= owed.
type stream struct {
	seed            uint64
	owed, sent, got uint64
	due             time.Time // the next piece
	marks           []mark    // pieces that have not arrived
	last            time.Time // delivery
	gap             time.Duration
	shut            bool // the sender has ended it
	done            bool // and the receiver has seen that, with every byte
}

type mark struct {
	end uint64
	due time.Time
}

// mostOwed is what a stream that stands still is in arrears at most.
const mostOwed = 1 << 20

// end is one descriptor of a relay.
type end struct {
	*relay
	fd      int
	out, in *stream
}

func newRelay(of *streams, id uint64) *relay {
	r := &relay{of: of, id: id, client: -1, server: -1}
	r.up.seed, r.down.seed = seeds(id)
	return r
}

// attach gives the relay one of its ends.
func (r *relay) attach(fd int, client bool) error {
	e := &end{relay: r, fd: fd, out: &r.down, in: &r.up}
	at := &r.server
	if client {
		e.out, e.in, at = &r.up, &r.down, &r.client
	}
	if *at >= 0 {
		return errMixed
	}
	*at = fd
	return r.of.on.watch(fd, unix.EPOLLIN, e)
}

// welcome is the server's end of a busy connection.
func (r *relay) welcome(k kind, fd int) {
	if err := r.attach(fd, false); err != nil {
		r.of.tally.add(corrupted, err.Error())
		r.of.on.close(fd)
		return
	}
	if err := greet(fd, k, r.id); err != nil {
		r.end(lost, err.Error())
	}
}

// meet is the client's end, when it has its answer: bytes flow from now on.
func (r *relay) meet(fd int) error {
	if r.server < 0 { // it is here before it answers
		r.of.on.close(fd)
		return errMixed
	}
	if err := r.attach(fd, true); err != nil {
		r.of.on.close(fd)
		return err
	}
	const golden = 0.618 // spreads any number of them evenly
	r.begin(time.Duration(float64(r.of.every)*golden*float64(r.id)) % r.of.every)
	return nil
}

func (r *relay) begin(phase time.Duration) {
	r.begun = true
	now := time.Now()
	r.up.due, r.down.due = now.Add(phase), now.Add(phase+r.of.every/2)
	r.up.last, r.down.last = now, now
	r.of.all = append(r.of.all, r)
	r.of.left++
}

// tick sends what is due.
func (s *streams) tick(now time.Time) {
	for _, r := range s.all {
		if r.over {
			continue
		}
		s.send(r, r.client, &r.up, now)
		s.send(r, r.server, &r.down, now)
		for _, d := range []*stream{&r.up, &r.down} {
			if !d.done && now.Sub(d.last) > s.patience && (d.got < d.owed || d.shut) {
				r.end(lost, fmt.Sprintf("stood still for %s", s.patience))
			}
		}
	}
}

func (s *streams) send(r *relay, fd int, d *stream, now time.Time) {
	if r.over || d.shut {
		return
	}
	for !d.due.After(now) && !s.ending {
		if d.owed-d.sent < mostOwed {
			d.owed += s.piece
			if !s.pulses {
				d.marks = append(d.marks, mark{d.owed, d.due})
			}
		}
		d.due = d.due.Add(s.pause())
	}
	for d.sent < d.owed {
		b := s.room[:min(d.owed-d.sent, uint64(len(s.room)))]
		fill(b, d.seed, d.sent)
		n, err := unix.Write(fd, b)
		if errors.Is(err, unix.EAGAIN) {
			return
		}
		if err != nil {
			r.end(lost, err.Error())
			return
		}
		d.sent += uint64(n)
	}
	if s.ending {
		d.shut = true
		if err := unix.Shutdown(fd, unix.SHUT_WR); err != nil {
			r.end(lost, err.Error())
		}
	}
}

// pause is the time to the next piece. Pulses that nobody counts are slow.
func (s *streams) pause() time.Duration {
	if s.pulses && !s.open {
		return pulseRest
	}
	return s.every
}

// ready takes what has come to one end.
func (e *end) ready(uint32) {
	s, d := e.of, e.in
	if e.over {
		return
	}
	n, err := unix.Read(e.fd, s.room[:])
	switch {
	case errors.Is(err, unix.EAGAIN):
	case err != nil:
		e.end(lost, err.Error())
	case n == 0:
		e.ends()
	default:
		if at := wrong(s.room[:n], d.seed, d.got); at >= 0 {
			e.end(corrupted, "a stream has another byte than was sent")
			return
		}
		if !e.control {
			s.verified += uint64(n)
		}
		d.arrived(s, uint64(n), time.Now())
	}
}

func (d *stream) arrived(s *streams, n uint64, now time.Time) {
	d.got += n
	d.gap = max(d.gap, now.Sub(d.last))
	d.last = now
	i := 0
	for ; i < len(d.marks) && d.marks[i].end <= d.got; i++ {
		if s.open {
			s.late = max(s.late, now.Sub(d.marks[i].due))
		}
	}
	d.marks = append(d.marks[:0], d.marks[i:]...)
}

// ends is the end of a direction: a good one only behind its last byte.
func (e *end) ends() {
	if !e.in.shut || e.in.got != e.in.sent {
		e.relay.end(lost, "ended before its end")
		return
	}
	e.in.done = true
	if e.up.done && e.down.done {
		e.finish()
		return
	}
	// Level-triggered: it would tell of this again and again.
	if err := e.of.on.leave(e.fd); err != nil {
		e.relay.end(lost, err.Error())
	}
}

// end is how a connection ends that should not have.
func (r *relay) end(f fault, why string) {
	if r.over {
		return
	}
	r.failed = true
	if r.control {
		why = "past the gateway: " + why // the self-test itself is at fault
	}
	r.of.tally.add(f, why)
	r.finish()
}

func (r *relay) finish() {
	r.over = true
	for _, fd := range []int{r.client, r.server} {
		if fd >= 0 {
			r.of.on.close(fd)
		}
	}
	if !r.begun {
		return
	}
	if r.of.left--; r.of.left == 0 && r.of.ending {
		close(r.of.ended)
	}
}

// window opens or begins anew: what was measured is forgotten.
func (s *streams) window() {
	now := time.Now()
	s.late, s.open = 0, true
	for _, r := range s.all {
		for _, d := range []*stream{&r.up, &r.down} {
			d.gap, d.last = 0, now
			if s.pulses && d.due.After(now.Add(s.every)) {
				d.due = now.Add(time.Duration(r.id) * s.every / time.Duration(len(s.all)+1) % s.every)
			}
		}
	}
}

// measured ends a window. A stream that stands still has had its gap too.
func (s *streams) measured() (w Window) {
	now := time.Now()
	for _, r := range s.all {
		if r.over {
			continue
		}
		for _, d := range []*stream{&r.up, &r.down} {
			gap := max(d.gap, now.Sub(d.last))
			switch {
			case !s.pulses:
				if len(d.marks) > 0 {
					s.late = max(s.late, now.Sub(d.marks[0].due))
				}
			case r.control:
				w.Control = append(w.Control, gap)
			default:
				w.Gaps = append(w.Gaps, gap)
			}
		}
	}
	w.Late, s.open = s.late, false
	return w
}

// finish ends all streams, each behind its last byte.
func (s *streams) finish() {
	s.ending = true
	if s.left == 0 {
		close(s.ended)
	}
}

// cut closes what there is, at once.
func (s *streams) cut() {
	for _, r := range s.all {
		if !r.over {
			r.finish()
		}
	}
}

// count is how many connections have failed, controls aside.
func (s *streams) count() (failed int) {
	for _, r := range s.all {
		if r.failed && !r.control {
			failed++
		}
	}
	return failed
}
