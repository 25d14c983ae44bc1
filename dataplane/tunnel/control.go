package tunnel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"

	"google.golang.org/protobuf/proto"

	tunnelv1 "github.com/sallyport/sallyport/wire/sallyport/tunnel/v1"
)

// MaxControl bounds one control message: 1 MiB, the largest assignment.
const MaxControl = 1 << 20

// keepBuffer is how much of a read buffer is kept from one message to the next.
const keepBuffer = 16 << 10

// ErrTooLarge is a control message of more than MaxControl.
var ErrTooLarge = errors.New("control message of more than 1 MiB")

// AppendControl writes one control message: its length (4, big endian) and the
// encoded message.
func AppendControl(b []byte, m *tunnelv1.Control) ([]byte, error) {
	start := len(b)
	b = append(b, 0, 0, 0, 0)
	b, err := proto.MarshalOptions{}.MarshalAppend(b, m)
	if err != nil {
		return b[:start], err
	}
	n := len(b) - start - 4
	if n > MaxControl {
		return b[:start], ErrTooLarge
	}
	binary.BigEndian.PutUint32(b[start:], uint32(n))
	return b, nil
}

// controlReader reads control messages of one connection.
type controlReader struct {
	r   io.Reader
	buf bytes.Buffer
}

// next reads one message. Memory grows with the bytes that arrive, not with
// the length that is claimed. A message of an unknown kind comes back with no
// Message in it: the caller skips it.
func (c *controlReader) next() (*tunnelv1.Control, error) {
	var head [4]byte
	if _, err := io.ReadFull(c.r, head[:]); err != nil {
		return nil, err
	}
	n := controlSize(head[:])
	if n > MaxControl {
		return nil, ErrTooLarge
	}
	c.reset()
	if _, err := io.CopyN(&c.buf, c.r, n); err != nil {
		return nil, noEOF(err)
	}
	m := new(tunnelv1.Control)
	if err := (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(c.buf.Bytes(), m); err != nil {
		return nil, ErrMalformed
	}
	return m, nil
}

// controlSize is what the first four bytes of a message say that follows them.
func controlSize(head []byte) int64 { return int64(binary.BigEndian.Uint32(head)) }

func (c *controlReader) reset() {
	if c.buf.Cap() > keepBuffer {
		c.buf = bytes.Buffer{}
	}
	c.buf.Reset()
}

// noEOF makes an end within a message what it is.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// ReadControl reads one control message.
func ReadControl(r io.Reader) (*tunnelv1.Control, error) {
	c := controlReader{r: r}
	return c.next()
}
