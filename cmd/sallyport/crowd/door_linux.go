package crowd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// door is the thread of everything that is not busy: the server's listening
// sockets, idle connections, and new ones.
type door struct {
	on       *loop
	tally    *tally
	patience time.Duration
	sockets  []int
	servers  []netip.AddrPort
	find     func(id uint64) *relay // of the busy ones; any thread

	// Idle connections, and the check that goes on.
	idlers  []*idler
	byID    map[uint64]*idler
	asked   int // of idlers, by the check
	open    int // questions
	began   time.Time
	checked chan struct{} // nil when no check goes on

	// New connections.
	to       netip.AddrPort
	hello    []byte
	rate     float64
	due      float64
	last     time.Time
	running  bool
	queue    []*call // by age
	underWay int
	next     uint64
	served   uint64
	missed   uint64
	times    histogram
	verified uint64
}

const (
	backlog  = 4096
	acceptAt = 64 // connections at a time
	askAt    = 16 // idle ones, each tick
)

// listen opens the server's sockets.
func (d *door) listen() error {
	for range doors {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("socket: %w", err)
		}
		d.sockets = append(d.sockets, fd)
		if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
			return fmt.Errorf("bind: %w", err)
		}
		if err := unix.Listen(fd, backlog); err != nil {
			return fmt.Errorf("listen: %w", err)
		}
		name, err := unix.Getsockname(fd)
		if err != nil {
			return fmt.Errorf("getsockname: %w", err)
		}
		at, ok := name.(*unix.SockaddrInet4)
		if !ok {
			return errors.New("getsockname: another family")
		}
		d.servers = append(d.servers, netip.AddrPortFrom(netip.AddrFrom4(at.Addr), uint16(at.Port)))
	}
	return nil
}

// watchDoors is called on the thread.
func (d *door) watchDoors() error {
	for _, fd := range d.sockets {
		if err := d.on.watch(fd, unix.EPOLLIN, entrance{d, fd}); err != nil {
			return err
		}
	}
	return nil
}

// shut closes the listening sockets.
func (d *door) shut() {
	for _, fd := range d.sockets {
		if d.on == nil {
			unix.Close(fd)
		} else {
			d.on.call(func() { d.on.close(fd) })
		}
	}
	d.sockets = nil
}

// entrance is one listening socket.
type entrance struct {
	door *door
	fd   int
}

func (e entrance) ready(uint32) {
	for range acceptAt {
		fd, _, err := unix.Accept4(e.fd, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		if errors.Is(err, unix.EAGAIN) {
			return
		}
		if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) {
			e.door.tally.add(refused, "the self-test has no descriptor left")
			return
		}
		if err != nil {
			continue // it went before it was fetched (accept(2)); its client counts it
		}
		g := &guest{door: e.door, fd: fd, got: make([]byte, 0, maxHello)}
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1) // slower without, no more
		if err := e.door.on.watch(fd, unix.EPOLLIN, g); err != nil {
			e.door.tally.add(lost, err.Error())
			e.door.on.close(fd)
		}
	}
}

// come serves a connection that has shown its card.
func (d *door) come(k kind, id uint64, fd int) {
	switch k {
	case fresh:
		d.serveOnce(id, fd)
	case idle:
		d.serveIdle(id, fd)
	default:
		r := d.find(id)
		if r == nil || !r.of.on.post(func() { r.welcome(k, fd) }) {
			d.on.close(fd)
		}
	}
}

// brief is the server's end of a new connection: it waits for the client's end.
type brief struct {
	door *door
	fd   int
}

func (d *door) serveOnce(id uint64, fd int) {
	b := brief{d, fd}
	if greet(fd, fresh, id) != nil || d.on.watch(fd, unix.EPOLLIN, b) != nil {
		d.on.close(fd) // its client counts it
	}
}

func (b brief) ready(uint32) {
	var one [1]byte
	n, err := unix.Read(b.fd, one[:])
	if errors.Is(err, unix.EAGAIN) {
		return
	}
	if n > 0 {
		b.door.tally.add(corrupted, "a server got bytes that nobody sent")
	}
	b.door.on.close(b.fd)
}

// tick begins what is due, and gives up what takes too long.
func (d *door) tick(now time.Time) {
	d.ask()
	if d.checked != nil && now.Sub(d.began) > d.patience {
		d.unanswered()
	}
	for len(d.queue) > 0 && d.queue[0].over(now, d.patience) {
		d.queue[0] = nil
		d.queue = d.queue[1:]
	}
	if !d.running {
		return
	}
	d.due += d.rate * now.Sub(d.last).Seconds()
	d.last = now
	for ; d.due >= 1; d.due-- {
		if d.underWay >= maxFresh {
			d.missed++
			continue
		}
		d.begin()
	}
}

// begin begins one new connection.
func (d *door) begin() {
	d.next++
	d.underWay++
	c := &call{on: d.on, kind: fresh, id: d.next, hello: append(bytes.Clone(d.hello), card(fresh, d.next)...)}
	c.met = func(fd int, err error) {
		if err != nil {
			d.underWay--
			d.refuse(err)
			return
		}
		d.times.add(time.Since(c.began))
		c.fd = fd
		(&leaver{door: d, call: c}).leave()
	}
	d.queue = append(d.queue, c)
	c.start(d.to, int(d.next))
}

func (d *door) refuse(err error) {
	if errors.Is(err, errMixed) {
		d.tally.add(corrupted, err.Error())
		return
	}
	d.tally.add(refused, err.Error())
}

// leaver is a new connection that was served, until the server's end arrives.
type leaver struct {
	door *door
	call *call
}

func (l *leaver) leave() {
	d, fd := l.door, l.call.fd
	l.call.met = func(_ int, err error) { l.close(err) } // the call's patience is still what bounds it
	err := d.on.watch(fd, unix.EPOLLIN, l)
	if err == nil {
		err = unix.Shutdown(fd, unix.SHUT_WR)
	}
	if err != nil {
		l.call.fail(err)
	}
}

func (l *leaver) ready(uint32) {
	var one [1]byte
	n, err := unix.Read(l.call.fd, one[:])
	switch {
	case errors.Is(err, unix.EAGAIN):
	case err != nil:
		l.call.fail(err)
	case n > 0:
		l.call.fail(errMixed)
	default:
		l.door.on.close(l.call.fd)
		l.call.fd = -1
		l.close(nil)
	}
}

func (l *leaver) close(err error) {
	d := l.door
	d.underWay--
	switch {
	case err == nil:
		d.served++
		d.verified += cardSize
	case errors.Is(err, errMixed):
		d.tally.add(corrupted, "bytes behind the answer")
	default:
		d.tally.add(lost, "a new one, behind the answer: "+err.Error())
	}
}

// idler is a connection that only speaks when it is asked, both of its ends.
type idler struct {
	door           *door
	id             uint64
	client, server int // descriptors; -1 while there is none
	over           bool
	round          uint64 // of the client's end
	served         uint64 // of the server's
	waits          bool   // for an answer
	up, down       [8]byte
	gotUp, gotDown int
}

func (d *door) serveIdle(id uint64, fd int) {
	i := d.byID[id]
	if i == nil || i.server >= 0 {
		d.tally.add(corrupted, errMixed.Error())
		d.on.close(fd)
		return
	}
	i.server = fd
	err := d.on.watch(fd, unix.EPOLLIN, idleServer{i})
	if err == nil {
		err = greet(fd, idle, id)
	}
	if err != nil {
		i.end(lost, err.Error())
	}
}

// question and reply are those of a round.
func (i *idler) question(round uint64) uint64 { return word(i.id, 2*round) }
func (i *idler) reply(round uint64) uint64    { return word(i.id, 2*round+1) }

// check asks every idle connection, some at each tick.
func (d *door) check(done chan struct{}) {
	d.checked, d.asked, d.open, d.began = done, 0, 0, time.Now()
	d.ask()
}

func (d *door) ask() {
	if d.checked == nil {
		return
	}
	for n := 0; n < askAt && d.asked < len(d.idlers); d.asked++ {
		i := d.idlers[d.asked]
		if i.over {
			continue
		}
		n++
		d.began = time.Now() // patience is with the last one
		i.round++
		i.waits = true
		d.open++
		if err := say(i.client, i.question(i.round)); err != nil {
			i.end(lost, err.Error())
		}
	}
	d.checkDone()
}

func (d *door) checkDone() {
	if d.checked != nil && d.asked == len(d.idlers) && d.open == 0 {
		close(d.checked)
		d.checked = nil
	}
}

// unanswered ends a check: whoever has not answered is lost.
func (d *door) unanswered() {
	for _, i := range d.idlers {
		if i.waits && !i.over {
			i.end(lost, fmt.Sprintf("idle, no answer within %s", d.patience))
		}
	}
}

func say(fd int, w uint64) error {
	n, err := unix.Write(fd, binary.LittleEndian.AppendUint64(nil, w))
	if err == nil && n < 8 {
		return orShort(nil)
	}
	return err
}

// hear reads one word. It reports true when the word is whole, and ends the
// idler when there will be none.
func (i *idler) hear(fd int, into *[8]byte, got *int) (whole bool) {
	n, err := unix.Read(fd, into[*got:])
	switch {
	case errors.Is(err, unix.EAGAIN):
		return false
	case err != nil:
		i.end(lost, "idle: "+err.Error())
		return false
	case n == 0:
		i.end(lost, "idle: ended before its end")
		return false
	}
	if *got += n; *got < len(into) {
		return false
	}
	*got = 0
	return true
}

type idleServer struct{ *idler }

func (s idleServer) ready(uint32) {
	if s.over || !s.hear(s.server, &s.up, &s.gotUp) {
		return
	}
	s.served++
	if binary.LittleEndian.Uint64(s.up[:]) != s.question(s.served) {
		s.end(corrupted, "idle: another word than was sent")
		return
	}
	s.door.verified += 8
	if err := say(s.server, s.reply(s.served)); err != nil {
		s.end(lost, "idle: "+err.Error())
	}
}

type idleClient struct{ *idler }

func (c idleClient) ready(uint32) {
	if c.over || !c.hear(c.client, &c.down, &c.gotDown) {
		return
	}
	if !c.waits || binary.LittleEndian.Uint64(c.down[:]) != c.reply(c.round) {
		c.end(corrupted, "idle: another word than was sent")
		return
	}
	c.door.verified += 8
	c.answered()
}

// answered ends a question, one way or another.
func (i *idler) answered() {
	if i.waits {
		i.waits = false
		i.door.open--
		i.door.checkDone()
	}
}

func (i *idler) end(f fault, why string) {
	if i.over {
		return
	}
	i.door.tally.add(f, why)
	i.close()
	i.answered()
}

func (i *idler) close() {
	i.over = true
	for _, fd := range []int{i.client, i.server} {
		if fd >= 0 {
			i.door.on.close(fd)
		}
	}
}
