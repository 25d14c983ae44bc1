package mysql

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"

	proto "github.com/go-mysql-org/go-mysql/mysql"

	"github.com/sallyport/sallyport/dataplane/database"
)

const (
	headerSize = 4         // length (3 bytes) and sequence id
	maxPayload = 1<<24 - 1 // of one packet; a packet of that length is continued by the next
)

// length of the payload of the packet that b begins with.
func length(b []byte) int { return int(b[0]) | int(b[1])<<8 | int(b[2])<<16 }

// appendPacket appends one packet. The payload is shorter than maxPayload.
func appendPacket(dst []byte, seq byte, payload []byte) []byte {
	n := len(payload)
	dst = append(dst, byte(n), byte(n>>8), byte(n>>16), seq)
	return append(dst, payload...)
}

// readPacket reads one packet of at most limit bytes of payload.
func readPacket(r io.Reader, limit int) (payload []byte, seq byte, err error) {
	var head [headerSize]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, 0, err
	}
	n := length(head[:])
	if n == 0 || n > limit {
		return nil, 0, malformedf("packet of %d bytes during the login", n)
	}
	payload = make([]byte, n)
	_, err = io.ReadFull(r, payload)
	return payload, head[3], err
}

// cursor reads a payload. After the first field that is not there everything
// is empty and short is set.
type cursor struct {
	rest  []byte
	short bool
}

func (c *cursor) bytes(n int) []byte {
	if c.short || n < 0 || n > len(c.rest) {
		c.short = true
		return nil
	}
	b := c.rest[:n:n]
	c.rest = c.rest[n:]
	return b
}

func (c *cursor) byte() byte {
	if b := c.bytes(1); b != nil {
		return b[0]
	}
	return 0
}

func (c *cursor) uint16() uint16 {
	if b := c.bytes(2); b != nil {
		return binary.LittleEndian.Uint16(b)
	}
	return 0
}

func (c *cursor) uint32() uint32 {
	if b := c.bytes(4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

// text reads up to a NUL.
func (c *cursor) text() []byte {
	i := bytes.IndexByte(c.rest, 0)
	if c.short || i < 0 {
		c.short = true
		return nil
	}
	b := c.rest[:i:i]
	c.rest = c.rest[i+1:]
	return b
}

// integer reads a length-encoded integer.
func (c *cursor) integer() uint64 {
	switch first := c.byte(); first {
	case 0xfc:
		return uint64(c.uint16())
	case 0xfd:
		if b := c.bytes(3); b != nil {
			return uint64(length(b))
		}
	case 0xfe:
		if b := c.bytes(8); b != nil {
			return binary.LittleEndian.Uint64(b)
		}
	case 0xfb, 0xff: // NULL, ERR: no number
		c.short = true
	default:
		return uint64(first)
	}
	return 0
}

// counted reads a length-encoded string; never nil when it is there.
func (c *cursor) counted() []byte {
	n := c.integer()
	if c.short || n > uint64(len(c.rest)) {
		c.short = true
		return nil
	}
	return c.bytes(int(n))
}

// splitter cuts a client's stream into commands, each of which is held until it
// is whole and has been seen. What a client answers to a server's request for a
// file passes as it comes.
//
//	for {
//		n, err := conn.Read(s.Space())
//		pass, bad := s.take(n)
//		…
//		for s.more { … s.take(0) … }
//	}
type splitter struct {
	database.Buffer
	limit int // longest command that is held

	// see takes the whole payload of a command before it passes.
	see func(command []byte) error

	// file says whether the next packet answers a request for a file, and with
	// which sequence id; ended says that the file was whole.
	file  func() (seq byte, is bool)
	ended func()

	more      bool // take stopped before the end of what has been read
	stream    int  // bytes of a packet of a file that pass before the next header
	answering bool // within a file
	goesOn    bool // the file's next packet continues the one before
	seq       byte // of the file's next packet
}

// takeMost is how many commands pass at once. Commands that have not passed
// cannot be answered, so it is less than may wait for an answer.
const takeMost = pendingMost / 2

// take accepts the n bytes that were read into Space and returns those that may
// pass; they and the commands stay valid until the next call of Space. When more
// is set then, what it has returned must pass before it is called again. After an
// error the stream cannot be read on, and nothing may pass; Unpassed then begins
// with the packet at fault.
func (s *splitter) take(n int) ([]byte, error) {
	held, at, commands := s.Add(n), 0, 0
	s.more = false
	for at < len(held) {
		rest := held[at:]
		if s.stream > 0 {
			k := min(s.stream, len(rest))
			s.stream -= k
			at += k
			continue
		}
		if len(rest) < headerSize {
			break
		}
		if commands == takeMost {
			s.more = true
			break
		}
		answer, err := s.answers(rest)
		size := 0
		if err == nil && !answer {
			size, err = s.command(rest)
		}
		if err != nil {
			s.Pass(at)
			return nil, err
		}
		if answer {
			continue
		}
		if size == 0 {
			break
		}
		commands++
		at += size
	}
	return s.Pass(at), nil
}

// answers takes the header of a packet of a file. An empty packet is its end,
// unless it continues one that is full (page "MySQL Packets", "Sending more than
// 16MB").
func (s *splitter) answers(b []byte) (bool, error) {
	if !s.answering {
		seq, is := s.file()
		if !is {
			return false, nil
		}
		s.answering, s.seq = true, seq
	}
	if b[3] != s.seq {
		return false, outOfOrder(b[3], s.seq)
	}
	s.seq++
	n := length(b)
	s.stream = headerSize + n
	if n == 0 && !s.goesOn {
		s.answering = false
		s.ended()
	}
	s.goesOn = n == maxPayload
	return true, nil
}

// command returns how many bytes the command has that b begins with, all its
// packets together, after it has been seen; 0 when it is not whole.
func (s *splitter) command(b []byte) (int, error) {
	at, total := 0, 0
	for seq := byte(0); ; seq++ {
		rest := b[at:]
		if len(rest) < headerSize {
			return 0, nil
		}
		n := length(rest)
		switch {
		case rest[3] != seq:
			return 0, outOfOrder(rest[3], seq)
		case at == 0 && n == 0:
			return 0, malformedf("command without a byte")
		case n > s.limit-total:
			return 0, tooLong(s.limit)
		}
		if len(rest) < headerSize+n {
			return 0, nil
		}
		at, total = at+headerSize+n, total+n
		if n < maxPayload {
			return at, s.see(joined(b[:at], total))
		}
	}
}

// joined is the payload of a command's packets.
func joined(packets []byte, total int) []byte {
	if len(packets) == headerSize+total {
		return packets[headerSize:]
	}
	out := make([]byte, 0, total)
	for len(packets) > 0 {
		n := length(packets)
		out = append(out, packets[headerSize:headerSize+n]...)
		packets = packets[headerSize+n:]
	}
	return out
}

// errPacket is the payload of an ERR packet (page "ERR_Packet"), for clients
// of protocol 4.1.
func errPacket(code uint16, state, text string) []byte {
	b := binary.LittleEndian.AppendUint16([]byte{proto.ERR_HEADER}, code)
	b = append(b, '#')
	b = append(b, state...)
	return append(b, text...)
}

// parseErr reads an ERR packet; the state is "" when there is none.
func parseErr(payload []byte) (code uint16, state, text string, err error) {
	c := cursor{rest: payload}
	if c.byte() != proto.ERR_HEADER {
		return 0, "", "", fmt.Errorf("no ERR packet")
	}
	code = c.uint16()
	if len(c.rest) >= 6 && c.rest[0] == '#' {
		state = string(c.bytes(6)[1:])
	}
	if c.short {
		return 0, "", "", fmt.Errorf("short ERR packet")
	}
	return code, state, string(c.rest), nil
}
