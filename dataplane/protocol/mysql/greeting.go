package mysql

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"io"
	"strings"

	proto "github.com/go-mysql-org/go-mysql/mysql"

	"github.com/sallyport/sallyport"
)

// Bounds of what is read before a session begins.
const (
	greetingMax = 4 << 10  // a server's greeting
	responseMax = 64 << 10 // a client's answer; its attributes may have nearly as much
	tokenMax    = 4 << 10  // what a plugin sends
	versionMax  = 255
	schemaMax   = 256 // bytes of a database's name: NAME_CHAR_LEN characters of four
)

// Capabilities (page "Capabilities Flags").
const (
	// always are the ones that the login itself is read by.
	always = proto.CLIENT_LONG_PASSWORD | proto.CLIENT_PROTOCOL_41 | proto.CLIENT_SECURE_CONNECTION | proto.CLIENT_CONNECT_WITH_DB |
		proto.CLIENT_PLUGIN_AUTH | proto.CLIENT_PLUGIN_AUTH_LENENC_CLIENT_DATA | proto.CLIENT_CONNECT_ATTRS

	// mirrored are offered when the server offers them: what they change is
	// between it and the client, or is read here too. Bit 0 is always set, so
	// that MariaDB's extended capabilities are not negotiated.
	mirrored = proto.CLIENT_FOUND_ROWS | proto.CLIENT_LONG_FLAG | proto.CLIENT_NO_SCHEMA | proto.CLIENT_ODBC | proto.CLIENT_LOCAL_FILES |
		proto.CLIENT_IGNORE_SPACE | proto.CLIENT_INTERACTIVE | proto.CLIENT_IGNORE_SIGPIPE | proto.CLIENT_TRANSACTIONS | proto.CLIENT_RESERVED |
		proto.CLIENT_MULTI_STATEMENTS | proto.CLIENT_MULTI_RESULTS | proto.CLIENT_PS_MULTI_RESULTS |
		proto.CLIENT_CAN_HANDLE_EXPIRED_PASSWORDS | proto.CLIENT_SESSION_TRACK | proto.CLIENT_DEPRECATE_EOF

	// layout are those that say how packets are to be read: a server must have
	// what a client was promised.
	layout = proto.CLIENT_SESSION_TRACK | proto.CLIENT_DEPRECATE_EOF | proto.CLIENT_LOCAL_FILES | proto.CLIENT_MULTI_STATEMENTS | proto.CLIENT_MULTI_RESULTS
)

// greeting is what a server says first (page "HandshakeV10").
type greeting struct {
	version string
	thread  uint32
	caps    uint32
	charset byte
	status  uint16
	plugin  string
	salt    []byte
}

// unknownServer is told to a client when no server has been met yet. No session
// comes of it, unless one is reached after all.
func unknownServer() greeting {
	const utf8mb4GeneralCI, autocommit = 45, 2
	return greeting{version: "8.0.0", caps: mirrored, charset: utf8mb4GeneralCI, status: autocommit}
}

func (g *greeting) isMariaDB() bool { return strings.Contains(g.version, "MariaDB") }

// parseGreeting reads a server's greeting. An ERR packet in its place is the
// error.
func parseGreeting(payload []byte) (greeting, error) {
	if len(payload) > 0 && payload[0] == proto.ERR_HEADER {
		code, _, text, err := parseErr(payload)
		if err != nil {
			return greeting{}, err
		}
		return greeting{}, fmt.Errorf("the server greets with error %d: %s", code, text)
	}
	c := cursor{rest: payload}
	var g greeting
	if v := c.byte(); v != proto.ClassicProtocolVersion {
		return g, fmt.Errorf("protocol version %d", v)
	}
	version := c.text()
	g.thread = c.uint32()
	g.salt = append(g.salt, c.bytes(8)...)
	c.bytes(1)
	g.caps = uint32(c.uint16())
	g.charset = c.byte()
	g.status = c.uint16()
	g.caps |= uint32(c.uint16()) << 16
	salt := max(13, int(c.byte())-8)
	c.bytes(10)
	if c.short || len(version) > versionMax {
		return g, fmt.Errorf("a greeting that ends early")
	}
	g.version = string(version)
	g.salt = append(g.salt, bytes.TrimSuffix(c.bytes(min(salt, len(c.rest))), []byte{0})...)
	if g.caps&proto.CLIENT_PLUGIN_AUTH != 0 {
		name, _, _ := bytes.Cut(c.rest, []byte{0})
		g.plugin = string(name)
	}
	return g, nil
}

// offered are the capabilities for a client.
func (g *greeting) offered() uint32 { return always | g.caps&mirrored }

// forClient is the greeting that a client gets: the server's version, thread
// and capabilities, and no more than a salt of our own.
func (g *greeting) forClient(salt []byte) []byte {
	caps := g.offered()
	b := append([]byte{proto.ClassicProtocolVersion}, g.version...)
	b = append(b, 0)
	b = binary.LittleEndian.AppendUint32(b, g.thread)
	b = append(b, salt[:8]...)
	b = append(b, 0)
	b = binary.LittleEndian.AppendUint16(b, uint16(caps))
	b = append(b, g.charset)
	b = binary.LittleEndian.AppendUint16(b, g.status)
	b = binary.LittleEndian.AppendUint16(b, uint16(caps>>16))
	b = append(b, byte(len(salt)+1))
	b = append(b, make([]byte, 10)...)
	b = append(b, salt[8:]...)
	b = append(b, 0)
	b = append(b, proto.AUTH_NATIVE_PASSWORD...)
	return append(b, 0)
}

// newSalt is 20 printable bytes: no NUL may be in it, and "$" ends it for some.
func newSalt() []byte { return []byte(rand.Text()[:20]) }

// response is what a client answers (page "HandshakeResponse41").
type response struct {
	caps       uint32 // the client's, as far as they were offered
	maxPacket  uint32
	charset    byte
	user       string
	schema     string
	plugin     string
	attributes []byte // with their length before them
	seq        byte   // of the next packet to the client
}

const responseFixed = 32 // capabilities, greatest packet, charset, filler

// parseResponse reads a client's answer to a greeting with the capabilities given.
func parseResponse(payload []byte, offered uint32) (*response, error) {
	c := cursor{rest: payload}
	r := &response{caps: c.uint32(), maxPacket: c.uint32(), charset: c.byte()}
	c.bytes(responseFixed - 9)
	switch {
	case c.short || r.caps&proto.CLIENT_PROTOCOL_41 == 0:
		return nil, refuse(faultHandshake(), sallyport.ErrInvalid, "the client does not speak protocol 4.1", "use a client of this century")
	case len(c.rest) == 0 && r.caps&proto.CLIENT_SSL != 0:
		return nil, refuse(faultHandshake(), sallyport.ErrInvalid, "a request for TLS inside of TLS", "the way is TLS already: connect with --skip-ssl or --ssl-mode=DISABLED")
	}
	user := c.text()
	switch {
	case r.caps&proto.CLIENT_PLUGIN_AUTH_LENENC_CLIENT_DATA != 0:
		c.counted()
	case r.caps&proto.CLIENT_SECURE_CONNECTION != 0:
		c.bytes(int(c.byte()))
	default:
		c.text()
	}
	var schema []byte
	if r.caps&proto.CLIENT_CONNECT_WITH_DB != 0 && len(c.rest) > 0 {
		schema = c.text()
	}
	if r.caps&proto.CLIENT_PLUGIN_AUTH != 0 {
		name, rest, _ := bytes.Cut(c.rest, []byte{0}) // some clients leave its NUL out
		r.plugin, c.rest = string(name), rest
	}
	if r.caps&proto.CLIENT_CONNECT_ATTRS != 0 && len(c.rest) > 0 {
		whole := c.rest
		c.counted()
		r.attributes = whole[:len(whole)-len(c.rest)]
	}
	if c.short {
		return nil, malformedf("login that ends early")
	}
	r.user, r.schema = string(user), string(schema)
	r.caps &= offered
	return r, nil
}

// head is what a login and a request for TLS begin with.
func (r *response) head(caps uint32) []byte {
	b := binary.LittleEndian.AppendUint32(nil, caps)
	b = binary.LittleEndian.AppendUint32(b, r.maxPacket)
	b = append(b, r.charset)
	return append(b, make([]byte, responseFixed-9)...)
}

// towards are the capabilities that the server is told: the client's, with TLS.
func (r *response) towards(server uint32) uint32 {
	caps := r.caps | proto.CLIENT_LONG_PASSWORD | proto.CLIENT_PROTOCOL_41 | proto.CLIENT_SECURE_CONNECTION | proto.CLIENT_PLUGIN_AUTH | proto.CLIENT_SSL
	caps &^= proto.CLIENT_CONNECT_WITH_DB | proto.CLIENT_PLUGIN_AUTH_LENENC_CLIENT_DATA | proto.CLIENT_CONNECT_ATTRS
	if r.schema != "" {
		caps |= proto.CLIENT_CONNECT_WITH_DB
	}
	if len(r.attributes) > 0 {
		caps |= server & proto.CLIENT_CONNECT_ATTRS
	}
	return caps
}

// login is the HandshakeResponse41 for the server: no password, and the plugin
// for which nothing is an answer.
func (r *response) login(server *greeting) []byte {
	caps := r.towards(server.caps)
	b := append(r.head(caps), r.user...)
	b = append(b, 0)
	b = append(b, 0) // no answer to the salt
	if caps&proto.CLIENT_CONNECT_WITH_DB != 0 {
		b = append(append(b, r.schema...), 0)
	}
	b = append(append(b, server.plugin...), 0)
	if caps&proto.CLIENT_CONNECT_ATTRS != 0 {
		b = append(b, r.attributes...)
	}
	return b
}

// greet greets a client and reads what it answers.
func greet(conn io.ReadWriter, g *greeting) (*response, error) {
	salt := newSalt()
	if _, err := conn.Write(appendPacket(nil, 0, g.forClient(salt))); err != nil {
		return nil, err
	}
	payload, seq, err := readPacket(conn, responseMax)
	if err != nil {
		return nil, err
	}
	if seq != 1 {
		return nil, outOfOrder(seq, 1)
	}
	r, err := parseResponse(payload, g.offered())
	if err != nil {
		return nil, err
	}
	r.seq = 2
	return r, r.settle(conn)
}

// settle brings the client's plugin to an end that it believes. The one of the
// greeting has said all it will. Another has not seen the salt and is asked to
// begin; what it then sends is not looked at, since the door has proved who the
// client is. Plugins that would ask for more, or send a password in clear, are
// replaced by the greeting's.
func (r *response) settle(conn io.ReadWriter) error {
	if r.caps&proto.CLIENT_PLUGIN_AUTH == 0 || r.plugin == proto.AUTH_NATIVE_PASSWORD || r.plugin == "" {
		return nil
	}
	plugin := proto.AUTH_NATIVE_PASSWORD
	if r.plugin == proto.AUTH_CACHING_SHA2_PASSWORD {
		plugin = r.plugin
	}
	change := append([]byte{proto.EOF_HEADER}, plugin...)
	change = append(append(append(change, 0), newSalt()...), 0)
	if _, err := conn.Write(appendPacket(nil, r.seq, change)); err != nil {
		return err
	}
	answer, err := r.token(conn)
	if err != nil {
		return err
	}
	if plugin == proto.AUTH_CACHING_SHA2_PASSWORD && len(answer) > 1 {
		// With a password the plugin waits for this before OK
		// (page "Caching_sha2_password information").
		_, err = conn.Write(appendPacket(nil, r.seq, []byte{proto.MORE_DATE_HEADER, proto.CACHE_SHA2_FAST_AUTH}))
		r.seq++
	}
	return err
}

// token reads what a plugin sends, which may be nothing.
func (r *response) token(conn io.Reader) ([]byte, error) {
	var head [headerSize]byte
	if _, err := io.ReadFull(conn, head[:]); err != nil {
		return nil, err
	}
	n := length(head[:])
	switch {
	case n > tokenMax:
		return nil, malformedf("packet of %d bytes during the login", n)
	case head[3] != r.seq+1:
		return nil, outOfOrder(head[3], r.seq+1)
	}
	r.seq += 2
	b := make([]byte, n)
	_, err := io.ReadFull(conn, b)
	return b, err
}
