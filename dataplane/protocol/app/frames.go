package app

import (
	"encoding/binary"
	"errors"
	"io"
	"math"
	"net"
	"sync"
	"time"
)

// frames follows what goes to a WebSocket's client, by the heads of frames alone
// (RFC 6455, section 5.2), and so knows when something can be said between two of
// them. Extensions change what is in a frame, and not its head (section 5.8).
type frames struct {
	head [maxFrameHead]byte
	got  int    // bytes of head
	rest uint64 // bytes of the payload that have not come
	over bool   // a close frame, or what is no frame, has begun: nothing can be said any more
}

const (
	maxFrameHead = 14
	opcodeClose  = 8
)

// follow takes the next bytes.
func (f *frames) follow(p []byte) {
	for len(p) > 0 && !f.over {
		if f.rest > 0 {
			n := min(f.rest, uint64(len(p)))
			f.rest -= n
			p = p[n:]
			continue
		}
		f.head[f.got] = p[0]
		f.got++
		p = p[1:]
		f.look()
	}
}

// look ends the head when it is whole.
func (f *frames) look() {
	if f.got < 2 {
		return
	}
	size, length := 2, uint64(f.head[1]&0x7f)
	switch length {
	case 126:
		size += 2
	case 127:
		size += 8
	}
	masked := f.head[1]&0x80 != 0
	if masked {
		size += 4
	}
	if f.got < size {
		return
	}
	switch length {
	case 126:
		length = uint64(binary.BigEndian.Uint16(f.head[2:]))
	case 127:
		length = binary.BigEndian.Uint64(f.head[2:])
	}
	f.got, f.rest = 0, length
	f.over = f.head[0]&0x0f == opcodeClose || length > math.MaxInt64
}

// between says that the next byte begins a frame.
func (f *frames) between() bool { return !f.over && f.got == 0 && f.rest == 0 }

// restart is a close frame that says that the service restarts: the client may
// connect again (code 1012 of the registry of RFC 6455, section 7.4; it is in the
// payload's first two bytes). A server masks nothing.
var restart = [...]byte{0x80 | opcodeClose, 2, 1012 >> 8, 1012 & 0xff}

const (
	goodbyeTime  = 500 * time.Millisecond // to take the goodbye, and to answer it: the door waits for a second
	goodbyeBytes = 1 << 20                // of what a client has still sent meanwhile
)

// WebSocket is the client's side of a connection that is no longer HTTP.
type WebSocket struct {
	net.Conn

	mu     sync.Mutex // held while something is written
	frames frames
}

// Write follows what it writes.
func (w *WebSocket) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n, err := w.Conn.Write(p)
	w.frames.follow(p[:n])
	w.frames.over = w.frames.over || err != nil
	return n, err
}

// CloseWrite passes a half-close on.
func (w *WebSocket) CloseWrite() error {
	if half, ok := w.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}

// Restart says goodbye in place of an application that this program takes its
// client from, if that is possible: between two frames, to a client that takes it.
// Close must follow. It waits for the client's own end: to close a connection
// that has unread bytes resets it, and the goodbye would be lost.
func (w *WebSocket) Restart() {
	if w.Conn.SetDeadline(time.Now().Add(goodbyeTime)) != nil || !w.bid() {
		return
	}
	_ = w.CloseWrite()                                               // an end that was not taken is one all the same
	_, _ = io.Copy(io.Discard, io.LimitReader(w.Conn, goodbyeBytes)) // to the end, or the deadline
}

func (w *WebSocket) bid() bool {
	w.mu.Lock() // what is being written ends by the deadline
	defer w.mu.Unlock()
	if !w.frames.between() {
		return false
	}
	w.frames.over = true
	_, err := w.Conn.Write(restart[:])
	return err == nil
}
