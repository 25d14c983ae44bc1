package access

import "runtime"

// room is what a goroutine's stack needs for handshakes with both sides, in bytes.
const room = 24 << 10

// makeRoom grows the goroutine's stack at once, while there is little on it. It would
// double again and again in the depth of a handshake, and each time every frame on
// it is copied and mended. What a long session leaves unused, the garbage collector
// takes back.
//
//go:noinline
func makeRoom() {
	var b [room]byte
	runtime.KeepAlive(&b)
}
