package remnant

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"

	"google.golang.org/protobuf/proto"
)

// maxMessage bounds one message: a state that names 16,384 users fits. Memory
// grows with the bytes that arrive.
const maxMessage = 4 << 20

var errTooLarge = errors.New("remnants: message of more than 4 MiB")

// put writes one message: its length (4, big endian) and the message.
func put(w io.Writer, m proto.Message) error {
	b, err := proto.MarshalOptions{}.MarshalAppend(make([]byte, 4, 512), m)
	if err != nil {
		return err
	}
	if len(b)-4 > maxMessage {
		return errTooLarge
	}
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	_, err = w.Write(b)
	return err
}

// get reads one message. What a later version says besides is skipped.
func get(r *bufio.Reader, m proto.Message) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	n := int64(binary.BigEndian.Uint32(head[:]))
	if n > maxMessage {
		return errTooLarge
	}
	var b bytes.Buffer
	if _, err := io.CopyN(&b, r, n); err != nil {
		if errors.Is(err, io.EOF) {
			return io.ErrUnexpectedEOF
		}
		return err
	}
	return proto.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(b.Bytes(), m)
}
