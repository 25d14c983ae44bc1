package crowd

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// clientHello is what crypto/tls says first.
func clientHello(name string) ([]byte, error) {
	var out recorder
	// It fails, by the end that the recorder reads: only what it wrote is wanted.
	_ = tls.Client(&out, &tls.Config{ServerName: name, MinVersion: tls.VersionTLS13}).Handshake()
	b := out.Bytes()
	if len(b) < recordHead || len(b) < recordHead+recordLength(b) {
		return nil, fmt.Errorf("server name %q: no hello can be made for it", name)
	}
	return b[:recordHead+recordLength(b)], nil
}

// recordHead is the type, the version and the length of a TLS record (RFC 8446,
// section 5.1).
const recordHead = 5

func recordLength(b []byte) int { return int(binary.BigEndian.Uint16(b[3:])) }

// recorder is a connection that keeps what is written, and then ends.
type recorder struct {
	net.Conn
	bytes.Buffer
}

func (r *recorder) Read([]byte) (int, error)         { return 0, io.EOF }
func (r *recorder) Write(b []byte) (int, error)      { return r.Buffer.Write(b) }
func (r *recorder) Close() error                     { return nil }
func (r *recorder) SetDeadline(time.Time) error      { return nil }
func (r *recorder) SetWriteDeadline(time.Time) error { return nil }

// call is a client's end until it has met its server.
type call struct {
	on    *loop
	kind  kind
	id    uint64
	hello []byte // with the card
	fd    int
	began time.Time
	sent  bool
	got   int
	came  [cardSize]byte

	// met is called once: with an open, unwatched descriptor, which is then the
	// callee's, or with what went wrong.
	met func(fd int, err error)
}

// errMixed: an answer came, and it was not that to this card.
var errMixed = errors.New("the answer was for somebody else")

// start connects from one of the sources. Its port is chosen when it connects,
// so that each source has all ports for itself (IP_BIND_ADDRESS_NO_PORT of ip(7)).
func (c *call) start(to netip.AddrPort, source int) {
	c.began = time.Now()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		c.met(-1, fmt.Errorf("socket: %w", err))
		return
	}
	c.fd = fd
	from := &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, byte(2 + source%sources)}}
	if err = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1); err == nil {
		err = unix.Bind(fd, from)
	}
	if err == nil {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	}
	if err == nil {
		if err = unix.Connect(fd, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())}); errors.Is(err, unix.EINPROGRESS) {
			err = nil
		}
	}
	if err == nil {
		// Edges: writable once, then only what comes is of interest.
		err = c.on.watch(fd, unix.EPOLLIN|unix.EPOLLOUT|unix.EPOLLET, c)
	}
	if err != nil {
		c.fail(fmt.Errorf("connect: %w", err))
	}
}

func (c *call) ready(uint32) {
	if !c.sent {
		if !c.connected() {
			return
		}
		c.sent = true
		if n, err := unix.Write(c.fd, c.hello); err != nil || n < len(c.hello) {
			c.fail(fmt.Errorf("hello: %w", orShort(err)))
			return
		}
	}
	for c.got < cardSize {
		n, err := unix.Read(c.fd, c.came[c.got:])
		switch {
		case errors.Is(err, unix.EAGAIN):
			return
		case err != nil:
			c.fail(fmt.Errorf("before the answer: %w", err))
			return
		case n == 0:
			c.fail(errors.New("before the answer: the end"))
			return
		}
		c.got += n
	}
	if !bytes.Equal(c.came[:], answer(c.kind, c.id)) {
		c.fail(c.otherAnswer())
		return
	}
	fd := c.fd
	if err := c.on.leave(fd); err != nil {
		c.fail(err)
		return
	}
	c.fd = -1
	c.met(fd, nil)
}

// connected says that the connection stands, and ends the call when it cannot.
func (c *call) connected() bool {
	n, err := unix.GetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err == nil && n != 0 {
		err = unix.Errno(n)
	}
	if err != nil {
		c.fail(fmt.Errorf("connect: %w", err))
		return false
	}
	_, err = unix.Getpeername(c.fd)
	return err == nil // else an edge that says nothing yet
}

// alertRecord is what a record with a refusal begins with (RFC 8446, section 5.1).
const alertRecord = 21

func (c *call) otherAnswer() error {
	if c.came[0] == alertRecord && c.came[1] == 3 {
		return errors.New("before the answer: a TLS alert")
	}
	return errMixed
}

// fail ends the call.
func (c *call) fail(err error) {
	// An alert is shorter than an answer.
	if c.got > 1 && c.got < cardSize && c.came[0] == alertRecord && c.came[1] == 3 {
		err = c.otherAnswer()
	}
	c.on.close(c.fd)
	c.fd = -1
	c.met(-1, err)
}

// over gives the call up when it has taken too long.
func (c *call) over(now time.Time, patience time.Duration) bool {
	if c.fd >= 0 && now.Sub(c.began) > patience {
		c.fail(fmt.Errorf("no answer within %s", patience))
	}
	return c.fd < 0
}

func orShort(err error) error {
	if err == nil {
		return io.ErrShortWrite
	}
	return err
}

// maxHello is the room for a hello and a card: ours has far less.
const maxHello = 4 << 10

// guest is a server's end until it has said what it is for.
type guest struct {
	door *door
	fd   int
	got  []byte
}

func (g *guest) ready(uint32) {
	for {
		room := g.got[len(g.got):cap(g.got)]
		n, err := unix.Read(g.fd, room)
		if errors.Is(err, unix.EAGAIN) {
			return
		}
		if err != nil || n == 0 {
			g.door.on.close(g.fd) // its client knows, and counts it
			return
		}
		g.got = g.got[:len(g.got)+n]
		need := recordHead
		if len(g.got) >= need {
			need += recordLength(g.got) + cardSize
		}
		switch {
		case len(g.got) == need && need > recordHead:
			g.come(g.got[need-cardSize:])
			return
		case len(g.got) > need && need > recordHead, len(g.got) == cap(g.got):
			g.door.tally.add(corrupted, "a server got more than hello and card")
			g.door.on.close(g.fd)
			return
		}
	}
}

// come gives the connection to whoever serves its kind.
func (g *guest) come(b []byte) {
	k, id, ok := readCard(b)
	if !ok {
		g.door.tally.add(corrupted, "a server got no card")
		g.door.on.close(g.fd)
		return
	}
	if err := g.door.on.leave(g.fd); err != nil {
		g.door.tally.add(lost, err.Error())
		g.door.on.close(g.fd)
		return
	}
	g.door.come(k, id, g.fd)
}

// greet answers a card.
func greet(fd int, k kind, id uint64) error {
	n, err := unix.Write(fd, answer(k, id))
	if err == nil && n < cardSize {
		return io.ErrShortWrite
	}
	return err
}
