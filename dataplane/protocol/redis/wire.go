package redis

import (
	"bytes"
	"math"
	"strconv"
)

const (
	// bufferSize is what one direction of a session reads at once: a TLS record is
	// at most 16 KiB. A command that is longer passes in pieces.
	bufferSize = 32 << 10

	// firstSize is what a direction reads at once until a read fills it: most
	// sessions never do.
	firstSize = 4 << 10

	headerMax = 32      // bytes of a line with a number, its end included
	bulkMax   = 1 << 40 // bytes of one argument: far beyond any proto-max-bulk-len
)

// command is one command of a client. What it points to holds until the
// splitter reads on.
type command struct {
	args  [][]byte // its first arguments, the name first; each may be cut
	count int      // of all its arguments
	size  int64    // bytes of all its arguments
	torn  bool     // the last of args is not whole, for want of room for all

	line     bool // it came as a line of text, and is not passed as it came
	from, to int  // its bytes in the buffer, or those that have not passed yet
	spilled  bool // its first bytes have passed
}

// splitter cuts a client's stream into commands (Redis documentation,
// "Redis serialization protocol specification", section "Sending commands").
// Arguments are not copied, unless a command is longer than the buffer: such a
// one passes in pieces, all but the last before it has been seen, which no
// server acts on.
//
//	n, err := conn.Read(s.space())
//	s.add(n)
//	for c, err := s.next(); c != nil; c, err = s.next() { … }
type splitter struct {
	// keep says how much of a command that passes in pieces is to be kept, by its
	// name: bytes of one argument and of all. An error means that it may not.
	keep func(name []byte) (one, all int, err error)

	buf        []byte
	full       bool // the last read filled it
	head, tail int  // buf[head:tail] has been read and not been taken

	// Of the command that begins at head:
	at    int     // bytes of it that have been read
	wants int     // arguments that it has; 0 before its header
	bulk  int64   // bytes of the next argument; -1 before its header
	spans []span  // arguments in buf, from head
	now   command // what next returns

	// Of a command that passes in pieces:
	spilled  bool
	left     int64    // bytes of an argument that have not come
	kept     [][]byte // copies of its arguments
	open     bool     // the last of kept is not whole
	one, all int      // room of one argument and of all
	gone     int      // arguments that were read and not kept
	size     int64    // bytes of its arguments so far
	torn     bool     // the last of kept is not whole, for want of room for all
}

type span struct{ from, to int }

// space returns the room to read into; it is never empty, as long as next and
// spill are called until they want more.
func (s *splitter) space() []byte {
	size := len(s.buf)
	switch {
	case size == 0:
		size = firstSize
	case s.full, s.head == 0 && s.tail == size:
		size = bufferSize
	}
	if size != len(s.buf) {
		buf := make([]byte, size)
		s.tail = copy(buf, s.buf[s.head:s.tail])
		s.buf, s.head = buf, 0
	} else if s.head > 0 {
		s.tail = copy(s.buf, s.buf[s.head:s.tail])
		s.head = 0
	}
	return s.buf[s.tail:]
}

// add accepts the n bytes that were read into space.
func (s *splitter) add(n int) {
	s.tail += n
	s.full = s.tail == len(s.buf)
}

// next returns the next command that is whole, nil when there is none. After an
// error the stream cannot be read on; rest then begins with what is at fault.
func (s *splitter) next() (*command, error) {
	for s.head+s.at < s.tail {
		switch {
		case s.spilled:
			if whole, err := s.piece(); !whole || err != nil {
				return nil, err
			}
			return s.endSpilled(), nil
		case s.wants == 0 && s.buf[s.head] != '*':
			c, more, err := s.text()
			if c != nil || more || err != nil {
				return c, err
			}
		case s.wants == 0:
			if more, err := s.begin(); more || err != nil {
				return nil, err
			}
		default:
			if whole, err := s.argument(); err != nil || !whole {
				return nil, err
			}
			if len(s.spans) == s.wants {
				return s.end(), nil
			}
		}
	}
	return nil, nil
}

// number reads a line of one kind and a number at the place given: its value,
// and how many bytes it has, 0 when it is not whole. Numbers are as servers take
// them (string2ll of Redis): no sign but of negatives, no zero before others.
func (s *splitter) number(at int, kind byte) (int64, int, error) {
	b := s.buf[at:s.tail]
	if len(b) > headerMax {
		b = b[:headerMax]
	}
	if len(b) > 0 && b[0] != kind {
		return 0, 0, malformedf("%q in place of %q", b[0], kind)
	}
	end := bytes.IndexByte(b, '\n')
	if end < 0 {
		if len(b) == headerMax {
			return 0, 0, malformedf("a length without an end")
		}
		return 0, 0, nil
	}
	n, ok := integer(b[1:end])
	if !ok {
		return 0, 0, malformedf("a length that is no number")
	}
	return n, end + 1, nil
}

// integer reads digits up to a carriage return, which must be the last byte.
func integer(b []byte) (int64, bool) {
	n := len(b)
	if n < 2 || b[n-1] != '\r' {
		return 0, false
	}
	b = b[:n-1]
	negative := b[0] == '-'
	if negative {
		b = b[1:]
	}
	if len(b) == 0 || len(b) > 18 || b[0] == '0' && (len(b) > 1 || negative) {
		return 0, false
	}
	var v int64
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		v = v*10 + int64(c-'0')
	}
	if negative {
		v = -v
	}
	return v, true
}

// begin reads the header of an array. An empty one is no command: servers skip
// it, and so it is left out.
func (s *splitter) begin() (more bool, err error) {
	n, size, err := s.number(s.head, '*')
	if size == 0 || err != nil {
		return true, err
	}
	if n > math.MaxInt32 {
		return true, malformedf("%d arguments", n)
	}
	if n <= 0 {
		s.head += size
		return false, nil
	}
	s.at, s.wants, s.bulk, s.spans = size, int(n), -1, s.spans[:0]
	return false, nil
}

// argument reads one, if it is whole.
func (s *splitter) argument() (whole bool, err error) {
	if s.bulk < 0 {
		n, size, err := s.bulkHeader(s.head + s.at)
		if size == 0 || err != nil {
			return false, err
		}
		s.bulk = n
		s.at += size
	}
	from := s.head + s.at
	if int64(s.tail-from) < s.bulk+2 {
		return false, nil
	}
	to := from + int(s.bulk)
	if s.buf[to] != '\r' || s.buf[to+1] != '\n' {
		return false, malformedf("an argument that does not end where it should")
	}
	s.spans = append(s.spans, span{s.at, s.at + int(s.bulk)})
	s.at += int(s.bulk) + 2
	s.bulk = -1
	return true, nil
}

func (s *splitter) bulkHeader(at int) (int64, int, error) {
	n, size, err := s.number(at, '$')
	if err == nil && size > 0 && (n < 0 || n > bulkMax) {
		err = malformedf("an argument of %d bytes", n)
	}
	return n, size, err
}

// end is a command that lies whole in the buffer.
func (s *splitter) end() *command {
	c := &s.now
	*c = command{args: c.args[:0], count: s.wants, from: s.head, to: s.head + s.at}
	for _, a := range s.spans {
		c.args = append(c.args, s.buf[s.head+a.from:s.head+a.to:s.head+a.to])
		c.size += int64(a.to - a.from)
	}
	s.head, s.at, s.wants = c.to, 0, 0
	return c
}

// text reads a command that is a line of text. Empty lines are none. more says
// that it is not whole.
func (s *splitter) text() (c *command, more bool, err error) {
	b := s.buf[s.head:s.tail]
	end := bytes.IndexByte(b, '\n')
	if end < 0 {
		return nil, true, nil
	}
	args, err := words(bytes.TrimSuffix(b[:end], []byte("\r")))
	if err != nil {
		return nil, true, err
	}
	from := s.head
	s.head += end + 1
	if len(args) == 0 {
		return nil, false, nil
	}
	s.now = command{args: args, count: len(args), line: true, from: from, to: s.head}
	for _, a := range args {
		s.now.size += int64(len(a))
	}
	return &s.now, false, nil
}

// stuck says that the buffer holds nothing but a part of a command: it must
// pass in pieces, or not at all.
func (s *splitter) stuck() bool {
	return !s.spilled && s.head == 0 && s.tail == len(s.buf) && len(s.buf) == bufferSize
}

// spill lets what is there of a command pass, and returns it.
func (s *splitter) spill() ([]byte, error) {
	if s.wants == 0 {
		return nil, malformedf("a line of more than %d bytes", bufferSize)
	}
	if len(s.spans) == 0 {
		return nil, malformedf("a command with a name of more than %d bytes", bufferSize)
	}
	name := s.buf[s.head+s.spans[0].from : s.head+s.spans[0].to]
	one, all, err := s.keep(name)
	if err != nil {
		return nil, err
	}
	s.spilled, s.one, s.all = true, one, all
	s.kept, s.open, s.gone, s.size, s.torn = nil, false, 0, 0, false
	for _, a := range s.spans {
		s.keepPart(s.buf[s.head+a.from : s.head+a.to])
		s.closePart()
	}
	from := s.head
	s.head += s.at
	s.at = 0
	if s.bulk >= 0 {
		s.left = s.bulk
		s.body()
	}
	return s.buf[from:s.head], nil
}

// piece reads on in a command that passes in pieces: all that is there, or up to
// the command's end. What it has read lies before head.
func (s *splitter) piece() (whole bool, err error) {
	for {
		if s.bulk < 0 {
			n, size, err := s.bulkHeader(s.head + s.at)
			if size == 0 || err != nil {
				return false, err
			}
			s.bulk, s.left = n, n
			s.at += size
		}
		s.advance()
		if s.left > 0 || s.tail-s.head-s.at < 2 {
			return false, nil
		}
		end := s.head + s.at
		if s.buf[end] != '\r' || s.buf[end+1] != '\n' {
			return false, malformedf("an argument that does not end where it should")
		}
		s.at += 2
		s.bulk = -1
		s.closePart()
		if len(s.kept)+s.gone == s.wants {
			return true, nil
		}
		if s.head+s.at == s.tail {
			return false, nil
		}
	}
}

// body takes what is there of an argument, and moves head behind it.
func (s *splitter) body() {
	s.advance()
	s.head += s.at
	s.at = 0
}

// advance takes what is there of an argument.
func (s *splitter) advance() {
	from := s.head + s.at
	k := int(min(s.left, int64(s.tail-from)))
	s.keepPart(s.buf[from : from+k])
	s.left -= int64(k)
	s.at += k
}

// part returns what has been read of a command that passes in pieces, which may
// pass: it is not the end.
func (s *splitter) part() []byte {
	if !s.spilled || s.at == 0 {
		return nil
	}
	b := s.buf[s.head : s.head+s.at]
	s.head += s.at
	s.at = 0
	return b
}

// keepPart keeps a copy of a piece of an argument, as far as there is room.
func (s *splitter) keepPart(b []byte) {
	s.size += int64(len(b))
	if !s.open {
		if s.all <= 0 {
			return
		}
		s.kept, s.open = append(s.kept, nil), true
		s.all -= argumentCost
	}
	last := &s.kept[len(s.kept)-1]
	wanted := min(len(b), s.one-len(*last))
	n := max(0, min(wanted, s.all))
	s.torn = n < wanted
	s.all -= n
	*last = append(*last, b[:n]...)
}

// argumentCost is what an argument counts at least.
const argumentCost = 16

// closePart ends an argument, of which keepPart was told before.
func (s *splitter) closePart() {
	if !s.open {
		s.gone++
	}
	s.open = false
}

// endSpilled is a command whose last piece is in the buffer.
func (s *splitter) endSpilled() *command {
	c := &s.now
	*c = command{args: s.kept, count: s.wants, size: s.size, torn: s.torn, spilled: true, from: s.head, to: s.head + s.at}
	s.head, s.at, s.wants, s.spilled, s.kept = c.to, 0, 0, false, nil
	return c
}

// unread gives a command back, to be next again.
func (s *splitter) unread(c *command) { s.head, s.at, s.wants = c.from, 0, 0 }

// rest is what has been read and not been taken.
func (s *splitter) rest() []byte { return s.buf[s.head:s.tail] }

// appendCommand appends a command as an array.
func appendCommand(dst []byte, args ...[]byte) []byte {
	dst = append(strconv.AppendInt(append(dst, '*'), int64(len(args)), 10), "\r\n"...)
	for _, a := range args {
		dst = append(strconv.AppendInt(append(dst, '$'), int64(len(a)), 10), "\r\n"...)
		dst = append(append(dst, a...), "\r\n"...)
	}
	return dst
}
