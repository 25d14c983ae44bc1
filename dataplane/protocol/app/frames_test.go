package app

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"io"
	"net/http"
	"testing"

	"github.com/sallyport/sallyport"
)

// edges is another reader of the same bytes: all places between two frames, up to
// a close frame or to what is none.
func edges(b []byte) map[int]bool {
	out, at := map[int]bool{0: true}, 0
	for len(b)-at >= 2 {
		code, length, size := b[at]&0xf, uint64(b[at+1]&0x7f), 2
		if length == 126 {
			size = 4
		} else if length == 127 {
			size = 10
		}
		if b[at+1]&0x80 != 0 {
			size += 4
		}
		if len(b)-at < size {
			break
		}
		switch length {
		case 126:
			length = uint64(binary.BigEndian.Uint16(b[at+2 : at+4]))
		case 127:
			length = binary.BigEndian.Uint64(b[at+2 : at+10])
		}
		if code == 8 || length >= 1<<63 || length > uint64(len(b)-at-size) {
			break
		}
		at += size + int(length)
		out[at] = true
	}
	return out
}

func frame(opcode byte, payload int) []byte {
	b := []byte{0x80 | opcode}
	switch {
	case payload < 126:
		b = append(b, byte(payload))
	case payload < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, 126), uint16(payload))
	default:
		b = binary.BigEndian.AppendUint64(append(b, 127), uint64(payload))
	}
	return append(b, make([]byte, payload)...)
}

// FuzzFrames: at each byte, and however they are cut, it is known whether a frame
// begins there; behind a close frame none does.
func FuzzFrames(f *testing.F) {
	f.Add(bytes.Join([][]byte{frame(1, 0), frame(2, 5), frame(9, 125), frame(2, 126), frame(0, 300), frame(1, 1), frame(8, 2), frame(1, 1)}, nil), uint16(3))
	f.Add(append(frame(2, 1<<16), frame(1, 2)...), uint16(4096))
	f.Add([]byte{0x81, 0x85, 1, 2, 3, 4, 'h', 'e', 'l', 'l', 'o', 0x81, 0xfe, 0, 2, 9, 9, 9, 9, 'y', 'o'}, uint16(1))
	f.Add([]byte{0x82, 127, 0xff, 0, 0, 0, 0, 0, 0, 0, 0}, uint16(2))
	f.Add([]byte{0x82, 127, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x81, 0}, uint16(5))
	f.Fuzz(func(t *testing.T, b []byte, cut uint16) {
		want := edges(b)
		var one, pieces frames
		for i := range len(b) + 1 {
			if one.between() != want[i] {
				t.Fatalf("at byte %d of %x: between %v", i, b, one.between())
			}
			if i < len(b) {
				one.follow(b[i : i+1])
			}
		}
		for rest, size := b, int(cut)+1; len(rest) > 0; {
			n := min(size, len(rest))
			pieces.follow(rest[:n])
			rest = rest[n:]
			if pieces.between() != want[len(b)-len(rest)] {
				t.Fatalf("%x by %d: at %d", b, size, len(b)-len(rest))
			}
		}
	})
}

// TestRestart: a WebSocket whose session ends because the agent does ends by a
// close frame, if that can stand there; who may not stay is cut off.
func TestRestart(t *testing.T) {
	leaving := &sallyport.Problem{Kind: sallyport.ErrUnavailable, Fact: "the agent is shutting down"}
	hello := frame(1, 5)
	for name, test := range map[string]struct {
		said []byte
		why  *sallyport.Problem
		told bool
	}{
		"between frames":      {append(frame(9, 0), hello...), leaving, true},
		"nothing said":        {nil, leaving, true},
		"within a head":       {append(hello[:len(hello):len(hello)], 0x81), leaving, false},
		"within a frame":      {hello[:len(hello)-1], leaving, false},
		"closed before":       {append(hello[:len(hello):len(hello)], frame(8, 2)...), leaving, false},
		"who may not go on":   {hello, sallyport.Denied("locked", ""), false},
		"a control frame yet": {append(hello[:len(hello):len(hello)], frame(10, 125)...), leaving, true},
	} {
		t.Run(name, func(t *testing.T) {
			srv, _ := application(t, func(w http.ResponseWriter, q *http.Request) {
				conn, rw, err := http.NewResponseController(w).Hijack()
				if err != nil {
					t.Error(err)
					return
				}
				defer conn.Close()
				conn.Write(append([]byte("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"), test.said...))
				io.Copy(io.Discard, rw)
			})
			r := newRig(t, Target{URI: srv.URL})
			conn := r.dial()
			br := upgrade(t, conn)
			got := make([]byte, len(test.said))
			if _, err := io.ReadFull(br, got); err != nil || !bytes.Equal(got, test.said) {
				t.Fatalf("%x, %v", got, err)
			}
			r.end(test.why)
			rest, err := io.ReadAll(bufio.NewReader(br))
			if told := bytes.Equal(rest, []byte{0x88, 2, 0x03, 0xf4}); told != test.told || !told && len(rest) > 0 {
				t.Errorf("the end is %x, %v", rest, err)
			}
			conn.Close()
			r.finished.Wait()
		})
	}
}
