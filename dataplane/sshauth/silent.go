package sshauth

import (
	"io"
	"time"
)

// look is the time between two looks at a stream that has ended.
const look = 100 * time.Millisecond

// Spoke reads a stream of a channel on which the peer has nothing to say: that of
// extended data, or any behind its end. It returns true with the first byte, and
// false once closed is closed. The library keeps what is not read, packet by
// packet, at many times its size, and says nothing when more comes behind an end.
func Spoke(r io.Reader, closed <-chan struct{}) bool {
	buf := make([]byte, 1)
	for {
		if n, _ := r.Read(buf); n > 0 {
			return true
		}
		// The stream has ended: from here Read does not wait.
		select {
		case <-closed:
			return false
		case <-time.After(look):
		}
	}
}

// Forget reads a stream of a channel to its end. An error that comes with bytes is
// of the window that they free, and ends nothing.
func Forget(r io.Reader) {
	buf := make([]byte, 4<<10)
	for {
		if n, err := r.Read(buf); n == 0 && err != nil {
			return
		}
	}
}
