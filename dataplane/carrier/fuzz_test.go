package carrier

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"testing"
)

// hijacked is an answer whose connection is taken over.
type hijacked struct {
	http.ResponseWriter
	conn net.Conn
}

func (h *hijacked) Header() http.Header { return http.Header{} }
func (h *hijacked) WriteHeader(int)     {}
func (h *hijacked) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return h.conn, bufio.NewReadWriter(bufio.NewReader(h.conn), bufio.NewWriter(h.conn)), nil
}

// accepted is a Socket of which the other end is a stranger's connection.
func accepted(t testing.TB) (*Socket, net.Conn) {
	t.Helper()
	ours, theirs := net.Pipe()
	return acceptedOn(t, ours), theirs
}

func acceptedOn(t testing.TB, ours net.Conn) *Socket {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, ConnectPath, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header = http.Header{"Connection": {"Upgrade"}, "Upgrade": {"websocket"}, "Sec-Websocket-Version": {"13"}, "Sec-Websocket-Key": {"AAAAAAAAAAAAAAAAAAAAAA=="}}
	s, err := Accept(&hijacked{conn: ours}, r)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// frame is one masked frame of a client, RFC 6455, section 5.2.
func frame(first byte, payload []byte) []byte {
	b := []byte{first}
	switch n := len(payload); {
	case n < 126:
		b = append(b, 0x80|byte(n))
	case n < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, 0x80|126), uint16(n))
	default:
		b = binary.BigEndian.AppendUint64(append(b, 0x80|127), uint64(n))
	}
	return append(append(b, 0, 0, 0, 0), payload...) // a mask of zeros
}

// withEnd says its end with its last bytes.
type withEnd struct {
	net.Conn
	said bytes.Reader
}

func (w *withEnd) Read(b []byte) (int, error) {
	n, err := w.said.Read(b)
	if err == nil && w.said.Len() == 0 {
		err = io.EOF
	}
	return n, err
}

// TestSocketEndsWithItsConnection: the end of a direction is one also when the
// connection's comes with it, and a cut is one then, too.
func TestSocketEndsWithItsConnection(t *testing.T) {
	for name, c := range map[string]struct {
		said []byte
		ends bool
	}{
		"ended": {append(frame(0x82, []byte("ab")), frame(0x82, nil)...), true},
		"cut":   {append(frame(0x82, []byte("ab")), 0x82, 0x85, 0, 0, 0, 0), false},
	} {
		t.Run(name, func(t *testing.T) {
			ours, theirs := net.Pipe()
			go func() { _, _ = io.Copy(io.Discard, theirs) }() // ends with ours
			w := &withEnd{Conn: ours}
			w.said.Reset(c.said)
			s := acceptedOn(t, w)
			defer s.Abort()
			if got, err := io.ReadAll(s); string(got) != "ab" || (err == nil) != c.ends {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
}

// FuzzSocket: whatever comes as frames, no more comes out of them than came in, and
// the end of the connection is the end of reading.
func FuzzSocket(f *testing.F) {
	hello := bytes.Repeat([]byte{22, 3, 1}, 40)
	for _, seed := range [][]byte{
		nil,
		frame(0x82, hello),
		append(frame(0x02, hello), frame(0x80, hello)...), // in two fragments
		append(frame(0x82, hello), frame(0x82, nil)...),   // and the end of the direction
		frame(0x82, make([]byte, maxMessage)),
		frame(0x82, make([]byte, maxMessage+1)),
		frame(0x81, []byte("text")),
		append(frame(0x89, []byte("ping")), frame(0x82, hello)...),
		frame(0x88, []byte{3, 232}),
		frame(0xf2, hello), // reserved bits
		{0x82, 0x05, 1, 2, 3, 4, 5},
		{0x82, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
		{0x82, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0},
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, said []byte) {
		s, theirs := accepted(t)
		go func() { _, _ = io.Copy(io.Discard, theirs) }() // ends with the connection
		written := make(chan struct{})
		go func() {
			defer close(written)
			_, _ = theirs.Write(said)
			theirs.Close()
		}()
		var got bytes.Buffer
		_, err := got.ReadFrom(s)
		s.Abort()
		<-written
		if got.Len() > len(said) {
			t.Errorf("%d bytes of %d", got.Len(), len(said))
		}
		if err == nil && bytes.IndexByte(said, 0x80) < 0 && bytes.IndexByte(said, 0xfe) < 0 && bytes.IndexByte(said, 0xff) < 0 {
			// The end is a frame without a payload.
			t.Error("the direction has ended without a word")
		}
	})
}

// TestSocketFrames: messages carry bytes wherever they begin and end.
func TestSocketFrames(t *testing.T) {
	for name, c := range map[string]struct {
		said []byte
		want string
		ends bool // by a message, not a cut
	}{
		"one":               {append(frame(0x82, []byte("ab")), frame(0x82, nil)...), "ab", true},
		"two":               {bytes.Join([][]byte{frame(0x82, []byte("ab")), frame(0x82, []byte("c")), frame(0x82, nil)}, nil), "abc", true},
		"fragments":         {bytes.Join([][]byte{frame(0x02, []byte("ab")), frame(0x80, []byte("c")), frame(0x82, nil)}, nil), "abc", true},
		"a ping in between": {bytes.Join([][]byte{frame(0x02, []byte("ab")), frame(0x89, []byte("?")), frame(0x80, []byte("c")), frame(0x82, nil)}, nil), "abc", true},
		"cut":               {frame(0x82, []byte("ab")), "ab", false},
		"cut behind a head": {append(frame(0x82, []byte("ab")), 0x82, 0x85, 0, 0, 0, 0), "ab", false},
		"closed":            {append(frame(0x82, []byte("ab")), frame(0x88, []byte{3, 232})...), "ab", false},
		"too long":          {frame(0x82, make([]byte, maxMessage+1)), "", false},
		"text":              {frame(0x81, []byte("ab")), "", false},
	} {
		t.Run(name, func(t *testing.T) {
			s, theirs := accepted(t)
			defer s.Abort()
			go func() { _, _ = io.Copy(io.Discard, theirs) }()
			go func() {
				_, _ = theirs.Write(c.said)
				theirs.Close()
			}()
			got, err := io.ReadAll(s)
			if name == "too long" {
				got = nil // what came before it was seen to be
			}
			if string(got) != c.want || (err == nil) != c.ends {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
}
