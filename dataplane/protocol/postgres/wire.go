package postgres

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"strings"

	"github.com/sallyport/sallyport/dataplane/database"
)

// Numbers of the protocol (src/include/libpq/pqcomm.h, protocol.h).
const (
	protocolMajor = 3
	protocol30    = protocolMajor << 16
	cancelCode    = 1234<<16 | 5678
	sslCode       = 1234<<16 | 5679
	gssCode       = 1234<<16 | 5680

	startupMin = 8      // length and code
	startupMax = 10_004 // MAX_STARTUP_PACKET_LENGTH and the length itself

	smallMessage = 10_000     // PQ_SMALL_MESSAGE_LIMIT; a length counts itself
	largeMessage = 0x3ffffffe // PQ_LARGE_MESSAGE_LIMIT, MaxAllocSize - 1
	headerSize   = 5          // type and length
	nameMax      = 63         // NAMEDATALEN - 1
)

// param is one name and value of a StartupMessage.
type param struct{ name, value string }

// startup is the first message of a client.
type startup struct {
	minor    uint16
	user     string
	database string // never empty; the user's name when the client sent none

	replication string   // the parameter's value, "" without
	unknown     []string // protocol options ("_pq_.…"), by name
	params      []param  // everything else, in the client's order

	cancel *cancelRequest // set when it is a CancelRequest; then nothing else is
}

// readStartup reads the first message from r and not a byte more.
func readStartup(r io.Reader) (*startup, error) {
	var head [startupMin]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	length := binary.BigEndian.Uint32(head[:])
	if length < startupMin || length > startupMax {
		return nil, malformedf("startup message of %d bytes", length)
	}
	body := make([]byte, length-startupMin)
	if _, err := io.ReadFull(r, body); err != nil {
		return nil, err
	}
	return parseStartup(binary.BigEndian.Uint32(head[4:]), body)
}

// parseStartup reads what follows the code, as ProcessStartupPacket does. The
// requests for encryption are refused: encryption has been agreed on.
func parseStartup(code uint32, body []byte) (*startup, error) {
	switch {
	case code == cancelCode:
		return parseCancel(body)
	case code == sslCode || code == gssCode:
		return nil, malformedf("a request for encryption inside of TLS")
	case code>>16 != protocolMajor:
		return nil, unsupported(code)
	}
	s := &startup{minor: uint16(code)}
	for {
		name, rest, ok := cutString(body)
		if !ok {
			return nil, malformedf("startup message without an end")
		}
		if len(name) == 0 {
			if len(rest) != 0 {
				return nil, malformedf("startup message with bytes behind its end")
			}
			return s, s.complete()
		}
		value, rest, ok := cutString(rest)
		if !ok {
			return nil, malformedf("startup message without an end")
		}
		if err := s.set(string(name), string(value)); err != nil {
			return nil, err
		}
		body = rest
	}
}

// set takes one parameter. A server lets the last of several win; a client that
// sends a name twice is mistaken or wants to be misread.
func (s *startup) set(name, value string) error {
	var at *string
	switch {
	case name == "user":
		at = &s.user
	case name == "database":
		at = &s.database
	case name == "replication":
		at = &s.replication
	case strings.HasPrefix(name, "_pq_."):
		s.unknown = append(s.unknown, name)
		return nil
	default:
		s.params = append(s.params, param{name, value})
		return nil
	}
	if *at != "" {
		return malformedf("startup message with two parameters %q", name)
	}
	*at = value
	return nil
}

// complete fills in what the protocol lets a client leave out.
func (s *startup) complete() error {
	if s.user == "" {
		return noUser()
	}
	if s.database == "" {
		s.database = s.user
	}
	return nil
}

// append appends the StartupMessage for the server: protocol 3.0, no options
// of the protocol, the client's parameters in the client's order. No string
// holds a NUL, because each was cut at one.
func (s *startup) append(dst []byte) []byte {
	at := len(dst)
	dst = append(dst, 0, 0, 0, 0)
	dst = binary.BigEndian.AppendUint32(dst, protocol30)
	for _, p := range append([]param{{"user", s.user}, {"database", s.database}}, s.params...) {
		dst = append(append(dst, p.name...), 0)
		dst = append(append(dst, p.value...), 0)
	}
	dst = append(dst, 0)
	binary.BigEndian.PutUint32(dst[at:], uint32(len(dst)-at))
	return dst
}

// cutString cuts b behind its first NUL.
func cutString(b []byte) (text, rest []byte, ok bool) {
	i := bytes.IndexByte(b, 0)
	if i < 0 {
		return nil, nil, false
	}
	return b[:i], b[i+1:], true
}

// messageLimit is the longest a client's message of a type may say it is, its
// length included, as SocketBackend checks it; 0 for what is no type at all.
func messageLimit(kind byte) uint32 {
	switch kind {
	case msgQuery, msgParse, msgBind, msgFunctionCall, msgCopyData:
		return largeMessage
	case msgExecute, msgClose, msgDescribe, msgFlush, msgSync, msgTerminate, msgCopyDone, msgCopyFail:
		return smallMessage
	}
	return 0
}

// Types of a client's messages.
const (
	msgQuery        = 'Q'
	msgParse        = 'P'
	msgBind         = 'B'
	msgExecute      = 'E'
	msgClose        = 'C'
	msgDescribe     = 'D'
	msgFunctionCall = 'F'
	msgFlush        = 'H'
	msgSync         = 'S'
	msgTerminate    = 'X'
	msgCopyData     = 'd'
	msgCopyDone     = 'c'
	msgCopyFail     = 'f'
)

// Types of a server's messages that are looked at.
const (
	msgAuthentication  = 'R'
	msgBackendKeyData  = 'K'
	msgErrorResponse   = 'E'
	msgNotice          = 'N'
	msgParameterStatus = 'S'
	msgReadyForQuery   = 'Z'
)

// splitter cuts a client's stream into messages. CopyData passes as it comes;
// any other message is held until it is whole and has been seen.
//
//	for {
//		n, err := conn.Read(s.Space())
//		pass, bad := s.take(n, see)
//		…
//	}
type splitter struct {
	database.Buffer
	limit  uint32 // longest message that is held, its length included
	stream int    // bytes of a CopyData that pass before the next header
}

// take accepts the n bytes that were read into Space. It calls see with the
// body of each message that is held and has become whole, and returns the bytes
// that may pass; they and the bodies stay valid until the next call of Space.
// After an error the stream cannot be read on, and nothing may pass; Unpassed
// then begins with the message at fault.
func (s *splitter) take(n int, see func(kind byte, body []byte) error) ([]byte, error) {
	held, at := s.Add(n), 0
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
		size, err := s.size(rest)
		if err != nil {
			s.Pass(at)
			return nil, err
		}
		if rest[0] == msgCopyData {
			s.stream = size
			continue
		}
		if len(rest) < size {
			break
		}
		if err := see(rest[0], rest[headerSize:size]); err != nil {
			s.Pass(at)
			return nil, err
		}
		at += size
	}
	return s.Pass(at), nil
}

// size returns how many bytes the message has that b begins with. The length
// is compared as the unsigned number it is, before anything is added to it: a
// sum that wraps would let what follows be read as messages of its own
// (CVE-2024-27304).
func (s *splitter) size(b []byte) (int, error) {
	kind, length := b[0], binary.BigEndian.Uint32(b[1:])
	limit := messageLimit(kind)
	switch {
	case limit == 0:
		return 0, malformedf("message of the unknown type %#02x", kind)
	case length < 4 || length > limit:
		return 0, malformedf("message of type %q with the length %d", kind, length)
	case kind != msgCopyData && length > s.limit:
		return 0, tooLong(kind, length, s.limit)
	}
	return int(length) + 1, nil
}

// tracker follows the messages of a server's stream, which passes as it comes.
type tracker struct {
	header [headerSize]byte
	got    int    // bytes of the header so far
	body   uint32 // bytes of the body that are still to come
	last   byte   // type of the last message that began
	errors int64  // ErrorResponses so far
}

// whole says that the stream stands between two messages.
func (t *tracker) whole() bool { return t.got == 0 && t.body == 0 }

// missing is how many bytes are needed to finish the message, or its header.
func (t *tracker) missing() int {
	if t.got > 0 {
		return headerSize - t.got
	}
	return int(t.body)
}

// advance follows p. An error means that it is not a stream of messages; it
// is never whole again then.
func (t *tracker) advance(p []byte) error {
	for len(p) > 0 {
		if t.body > 0 {
			k := min(uint32(len(p)), t.body)
			t.body -= k
			p = p[k:]
			continue
		}
		if t.got == 0 && len(p) >= headerSize {
			if err := t.begin(p); err != nil {
				return err
			}
			p = p[headerSize:]
			continue
		}
		k := copy(t.header[t.got:], p)
		t.got += k
		p = p[k:]
		if t.got < headerSize {
			return nil
		}
		t.got = 0
		if err := t.begin(t.header[:]); err != nil {
			return err
		}
	}
	return nil
}

// begin takes a header.
func (t *tracker) begin(h []byte) error {
	length := binary.BigEndian.Uint32(h[1:])
	if length < 4 || length > 1<<31-1 {
		t.body = 1
		return fmt.Errorf("message of type %q with the length %d from the database", h[0], length)
	}
	t.last, t.body = h[0], length-4
	if t.last == msgErrorResponse {
		t.errors++
	}
	return nil
}
