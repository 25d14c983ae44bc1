package postgres

import (
	"encoding/binary"
	"fmt"
	"unicode/utf8"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/database"
)

// The bodies of the messages that are recorded ("Message Formats"). Each is
// read to its last byte, as pq_getmsgend demands: what the server would not
// accept is not recorded as a statement and does not pass.

// cursor reads a body. After the first field that is not there everything is
// empty and end reports it.
type cursor struct {
	rest  []byte
	short bool
	other bool // a name was met that the server may take for another one
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

func (c *cursor) uint16() int {
	if b := c.bytes(2); b != nil {
		return int(binary.BigEndian.Uint16(b))
	}
	return 0
}

func (c *cursor) uint32() uint32 {
	if b := c.bytes(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (c *cursor) text() []byte {
	if c.short {
		return nil
	}
	text, rest, ok := cutString(c.rest)
	if !ok {
		c.short = true
		return nil
	}
	c.rest = rest
	return text
}

// name reads the name of a statement or a portal. Servers keep the first 63 bytes
// of one, so that longer ones are the same to them and not to whoever reads the log
// (FetchPreparedStatement looks in a table with keys of NAMEDATALEN bytes), and they
// convert before they cut: a character of one byte may become one of four.
func (c *cursor) name() []byte {
	name := c.text()
	most := nameMax
	for _, b := range name {
		if b >= utf8.RuneSelf {
			most = nameMax / utf8.UTFMax
			break
		}
	}
	c.other = c.other || len(name) > most
	return name
}

// value reads a length and as many bytes: never nil, but for NULL (-1).
func (c *cursor) value() []byte {
	n := int32(c.uint32())
	if n == -1 {
		return nil
	}
	return c.bytes(int(n))
}

// end reports whether the body was exactly what has been read of it.
func (c *cursor) end(message string) error {
	if c.short {
		return malformedf("%s that ends early", message)
	}
	if len(c.rest) > 0 {
		return malformedf("%s with %d bytes behind its end", message, len(c.rest))
	}
	if c.other {
		return refuse(stateProtocol, sallyport.ErrInvalid, fmt.Sprintf("%s with a name of more than %d bytes, or of %d with others than ASCII's", message, nameMax, nameMax/utf8.UTFMax),
			"name statements and portals shorter")
	}
	return nil
}

func decodeQuery(body []byte) ([]byte, error) {
	c := cursor{rest: body}
	text := c.text()
	return text, c.end("Query")
}

type parseMessage struct{ statement, query []byte }

func decodeParse(body []byte) (parseMessage, error) {
	c := cursor{rest: body}
	m := parseMessage{statement: c.name(), query: c.text()}
	c.bytes(4 * c.uint16()) // the parameters' types
	return m, c.end("Parse")
}

type bindMessage struct {
	portal, statement []byte
	params            database.Values
}

func decodeBind(body []byte) (bindMessage, error) {
	c := cursor{rest: body}
	m := bindMessage{portal: c.name(), statement: c.name()}
	m.params = c.values()
	c.bytes(2 * c.uint16()) // the results' formats
	return m, c.end("Bind")
}

// values reads the formats, the count, and the values of Bind and
// FunctionCall. Invariant: nothing is allocated by a count.
func (c *cursor) values() database.Values {
	v := database.NewValues()
	n := c.uint16()
	formats := c.bytes(2 * n)
	for i := range c.uint16() {
		b := c.value()
		if c.short {
			break
		}
		v.Add(b, isBinary(formats, i))
	}
	return v
}

// isBinary says whether the value at i is in binary format: no format means
// text, a single one is for all.
func isBinary(formats []byte, i int) bool {
	switch {
	case len(formats) == 0:
		return false
	case len(formats) == 2:
		i = 0
	case len(formats) < 2*(i+1):
		return true // too few formats: the server will refuse, and base64 loses nothing
	}
	return binary.BigEndian.Uint16(formats[2*i:]) != 0
}

func decodeExecute(body []byte) (portal []byte, err error) {
	c := cursor{rest: body}
	portal = c.name()
	c.uint32() // most rows
	return portal, c.end("Execute")
}

func decodeClose(body []byte) (what byte, name []byte, err error) {
	c := cursor{rest: body}
	if b := c.bytes(1); b != nil {
		what = b[0]
	}
	name = c.name()
	if err := c.end("Close"); err != nil {
		return 0, nil, err
	}
	if what != 'S' && what != 'P' {
		return 0, nil, malformedf("Close of the unknown kind %#02x", what)
	}
	return what, name, nil
}

type functionCall struct {
	oid  uint32
	args database.Values
}

func decodeFunctionCall(body []byte) (functionCall, error) {
	c := cursor{rest: body}
	m := functionCall{oid: c.uint32()}
	m.args = c.values()
	c.uint16() // the result's format
	return m, c.end("FunctionCall")
}
