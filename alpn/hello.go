package alpn

// Limits of a ClientHello. What is larger is refused by name, never cut.
const (
	MaxHello      = 64 << 10 // bytes on the wire, record headers included
	maxPlaintext  = 1 << 14  // of one record (RFC 8446, section 5.1)
	maxExtensions = 128      // about twice as many as are registered
	maxProtocols  = 32       // ids in an ALPN list; browsers send two
	maxProtoBytes = 512      // the list's length on the wire
	maxID         = 255      // of one id (RFC 7301, section 3.1)

	recordHeader    = 5
	handshakeHeader = 4
)

// Fault says why bytes are not a ClientHello that can be routed.
type Fault string

// Error is the fault as a word for counters.
func (f Fault) Error() string { return string(f) }

const (
	FaultRecord Fault = "hello_record" // not a run of handshake records holding a ClientHello
	FaultSyntax Fault = "hello_syntax" // the message is not as RFC 8446, section 4.1.2 writes it
	FaultLarge  Fault = "hello_large"  // more than MaxHello, or one of the counts above
	FaultName   Fault = "hello_name"   // a server name that is not a host name
)

// Alert is what a client is told about the fault.
func (f Fault) Alert() Alert {
	if f == FaultName {
		return UnrecognizedName
	}
	return DecodeError
}

// Hello is what routing needs of a ClientHello. The zero value is ready; it can
// be used again, and then keeps its buffer. What its methods return is good
// until the next Parse.
type Hello struct {
	name    [maxName]byte // in lower case
	nameLen int
	address bool // the name is an IP literal

	offers       ids
	protocols    [maxProtoBytes]byte // as on the wire: length, id, length, id
	protocolsLen int

	extensions   [maxExtensions]uint16
	extensionLen int

	whole []byte // the message, when it came in several records
}

// ServerName is the name asked for, in lower case, "" when there is none. An IP
// literal counts as none; Address tells the two apart.
func (h *Hello) ServerName() []byte {
	if h.address {
		return nil
	}
	return h.name[:h.nameLen]
}

// Address says that the server name was an IP literal.
func (h *Hello) Address() bool { return h.address }

// Offers says that the ALPN list has the id.
func (h *Hello) Offers(id string) bool {
	for list := h.list(); len(list.rest) > 0; {
		if string(list.vector8()) == id {
			return true
		}
	}
	return false
}

// Protocols returns the ALPN list, in the client's order.
func (h *Hello) Protocols() []string {
	var out []string
	for list := h.list(); len(list.rest) > 0; {
		out = append(out, string(list.vector8()))
	}
	return out
}

// list reads the ALPN list, which has been checked.
func (h *Hello) list() cursor { return cursor{rest: h.protocols[:h.protocolsLen]} }

// Parse reads the ClientHello that b begins with. need is 0 when it is done;
// else it is the length that b must reach before it is worth trying again, and
// at most MaxHello. An error is a Fault and is final.
func (h *Hello) Parse(b []byte) (need int, err error) {
	h.reset()
	b = b[:min(len(b), MaxHello)]
	message, need, err := h.message(b)
	if need > 0 || err != nil {
		return need, err
	}
	return 0, h.parse(message)
}

func (h *Hello) reset() {
	h.nameLen, h.address = 0, false
	h.offers, h.protocolsLen = 0, 0
	h.extensionLen = 0
	h.whole = h.whole[:0]
}

// message finds the handshake message in the records of b (RFC 8446, section
// 5.1: it may be cut anywhere, its own header included) and returns its body.
// In one record it is a part of b; from several it is put together in h.whole.
func (h *Hello) message(b []byte) (body []byte, need int, err error) {
	var (
		head [handshakeHeader]byte
		got  int               // bytes of the message seen so far
		want = handshakeHeader // bytes of the message, as far as is known
	)
	for pos := 0; ; {
		if len(b)-pos < recordHeader {
			if err := checkRecord(b[pos:]); err != nil {
				return nil, 0, err
			}
			return nil, pos + recordHeader + want - got, nil
		}
		if err := checkRecord(b[pos:]); err != nil {
			return nil, 0, err
		}
		size := int(b[pos+3])<<8 | int(b[pos+4])
		start := pos + recordHeader
		pos = start + size
		seen := b[start:min(pos, len(b))]

		if got < handshakeHeader {
			copy(head[got:], seen)
			if err := checkHandshake(head[:min(got+len(seen), handshakeHeader)]); err != nil {
				return nil, 0, err
			}
			if got+len(seen) >= handshakeHeader {
				want = handshakeHeader + (int(head[1])<<16 | int(head[2])<<8 | int(head[3]))
			}
		}
		end := start + want - got // of the message, if it ends in this record
		if got+size < want {
			end += recordHeader // of one more record at least
		}
		if end > MaxHello {
			return nil, 0, FaultLarge // before anything behind is looked at
		}
		if got == 0 && len(seen) >= want {
			return seen[handshakeHeader:want], 0, nil
		}
		if len(seen) < size && got+len(seen) < want {
			return nil, end, nil
		}
		seen = seen[:min(len(seen), want-got)]
		h.whole = append(h.whole, seen...)
		if got += len(seen); got == want {
			return h.whole[handshakeHeader:], 0, nil
		}
	}
}

// checkRecord looks at as much of a record's header as is there: handshake(22),
// major version 3, 1 to 2^14 bytes.
func checkRecord(b []byte) error {
	if len(b) > 0 && b[0] != 22 || len(b) > 1 && b[1] != 3 {
		return FaultRecord
	}
	if len(b) < recordHeader {
		return nil
	}
	if size := int(b[3])<<8 | int(b[4]); size == 0 || size > maxPlaintext {
		return FaultRecord
	}
	return nil
}

// checkHandshake looks at as much of the message's header as is there:
// client_hello(1), less than 2^24.
func checkHandshake(b []byte) error {
	if len(b) > 0 && b[0] != 1 {
		return FaultRecord
	}
	if len(b) > 1 && b[1] > MaxHello>>16 {
		return FaultLarge
	}
	return nil
}

// parse reads the message's body (RFC 8446, section 4.1.2).
func (h *Hello) parse(body []byte) error {
	s := cursor{rest: body}
	s.skip(2 + 32) // legacy_version, random
	session := s.vector8()
	suites := s.vector16()
	compression := s.vector8()
	if s.bad || len(session) > 32 || len(suites)%2 != 0 || len(compression) == 0 {
		return FaultSyntax
	}
	if len(s.rest) == 0 {
		return nil // TLS 1.2 without extensions
	}
	extensions := s.vector16()
	if s.bad || len(s.rest) > 0 {
		return FaultSyntax
	}
	return h.parseExtensions(extensions)
}

const (
	extensionServerName   = 0  // RFC 6066, section 3
	extensionALPN         = 16 // RFC 7301, section 3.1
	extensionPreSharedKey = 41 // RFC 8446, section 4.2.11: it must be the last
)

func (h *Hello) parseExtensions(b []byte) error {
	for s := (cursor{rest: b}); len(s.rest) > 0; {
		kind, data := s.uint16(), s.vector16()
		if s.bad {
			return FaultSyntax
		}
		if err := h.once(kind); err != nil {
			return err
		}
		var err error
		switch kind {
		case extensionServerName:
			err = h.parseServerName(data)
		case extensionALPN:
			err = h.parseALPN(data)
		case extensionPreSharedKey:
			if len(s.rest) > 0 {
				return FaultSyntax
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// once refuses a second extension of one type (RFC 8446, section 4.2): two
// readers could take different ones.
func (h *Hello) once(kind uint16) error {
	for _, seen := range h.extensions[:h.extensionLen] {
		if seen == kind {
			return FaultSyntax
		}
	}
	if h.extensionLen == maxExtensions {
		return FaultLarge
	}
	h.extensions[h.extensionLen] = kind
	h.extensionLen++
	return nil
}

func (h *Hello) parseServerName(data []byte) error {
	s := cursor{rest: data}
	list := cursor{rest: s.vector16()}
	if s.bad || len(s.rest) > 0 || len(list.rest) == 0 {
		return FaultSyntax
	}
	for len(list.rest) > 0 {
		kind, name := list.uint8(), list.vector16()
		if list.bad || len(name) == 0 {
			return FaultSyntax
		}
		if kind != 0 { // host_name is the only type there is
			continue
		}
		if h.nameLen > 0 {
			return FaultSyntax // at most one name of a type
		}
		n, ok := normalName(h.name[:], name)
		if !ok {
			return FaultName
		}
		h.nameLen, h.address = n, isAddress(h.name[:n])
	}
	return nil
}

func (h *Hello) parseALPN(data []byte) error {
	s := cursor{rest: data}
	list := s.vector16()
	if s.bad || len(s.rest) > 0 || len(list) == 0 {
		return FaultSyntax
	}
	if len(list) > maxProtoBytes {
		return FaultLarge
	}
	count := 0
	for l := (cursor{rest: list}); len(l.rest) > 0; {
		id := l.vector8()
		if l.bad || len(id) == 0 {
			return FaultSyntax
		}
		if count++; count > maxProtocols {
			return FaultLarge
		}
		h.offers |= known(id)
	}
	h.protocolsLen = copy(h.protocols[:], list)
	return nil
}

// cursor reads TLS's presentation language. After the first short read it is
// bad and returns zeros.
type cursor struct {
	rest []byte
	bad  bool
}

func (c *cursor) take(n int) []byte {
	if c.bad || n > len(c.rest) {
		c.bad, c.rest = true, nil
		return nil
	}
	b := c.rest[:n]
	c.rest = c.rest[n:]
	return b
}

func (c *cursor) skip(n int) { c.take(n) }

func (c *cursor) uint8() int {
	b := c.take(1)
	if c.bad {
		return 0
	}
	return int(b[0])
}

func (c *cursor) uint16() uint16 {
	b := c.take(2)
	if c.bad {
		return 0
	}
	return uint16(b[0])<<8 | uint16(b[1])
}

func (c *cursor) vector8() []byte  { return c.take(c.uint8()) }
func (c *cursor) vector16() []byte { return c.take(int(c.uint16())) }
