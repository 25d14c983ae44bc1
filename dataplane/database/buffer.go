package database

// BufferSize is what one direction of a session reads at once: a TLS record is at
// most 16 KiB, and a message may hang over from the last.
const BufferSize = 32 << 10

// FirstSize is what a direction reads at once until a read fills it: most
// sessions never do.
const FirstSize = 4 << 10

// Buffer is what a client's direction reads into, and where a message is held
// until it is whole. The zero value is ready.
//
//	for {
//		space := b.Space()
//		if len(space) == 0 { … } // too much is held
//		n, err := conn.Read(space)
//		held := b.Add(n) // of which at bytes may pass
//		pass := b.Pass(at)
//		…
//	}
//	b.Drop()
type Buffer struct {
	Rooms *Rooms // where larger ones come from
	User  string // whose they are there

	own        []byte // of BufferSize, once there was need for it
	buf        []byte
	full       bool // the last read filled it
	head, tail int  // buf[head:tail] has been read and has not passed
}

// Space returns the room to read into; it is empty when what is held needs more than
// Rooms has. What is held gets room as its bytes arrive, never by what its header
// promises. What Add and Pass have returned holds no longer.
func (b *Buffer) Space() []byte {
	size := len(b.buf)
	switch {
	case size == 0:
		size = FirstSize
	case size < BufferSize && b.full, size > BufferSize && b.head == b.tail:
		size = BufferSize
	case b.tail-b.head == size:
		size *= 2
	}
	if size != len(b.buf) {
		if !b.change(size) {
			return nil
		}
	} else if b.head > 0 {
		b.tail = copy(b.buf, b.buf[b.head:b.tail])
		b.head = 0
	}
	return b.buf[b.tail:]
}

// change goes on in a buffer of another size. That of most of a session is kept
// while a long message has a larger one. It reports false when there is no room.
func (b *Buffer) change(size int) bool {
	old, buf := b.buf, b.own
	switch {
	case size > BufferSize:
		if buf = b.Rooms.lend(b.User, size); buf == nil {
			return false
		}
	case size != len(buf):
		buf = make([]byte, size)
	}
	b.tail = copy(buf, old[b.head:b.tail])
	b.buf, b.head = buf, 0
	if len(old) > BufferSize {
		b.Rooms.end(b.User, old)
	}
	if size == BufferSize {
		b.own = buf
	}
	return true
}

// Drop gives all room back. Nothing is read any more, and what was returned holds no
// longer.
func (b *Buffer) Drop() {
	if len(b.buf) > BufferSize {
		b.Rooms.end(b.User, b.buf)
	}
	b.buf, b.own, b.head, b.tail = nil, nil, 0, 0
}

// Add accepts the n bytes that were read into Space, and returns all that has
// not passed.
func (b *Buffer) Add(n int) []byte {
	b.tail += n
	b.full = b.tail == len(b.buf)
	return b.Unpassed()
}

// Unpassed is what has been read and has not passed.
func (b *Buffer) Unpassed() []byte { return b.buf[b.head:b.tail] }

// Pass returns the first n bytes of what has not passed, which have then.
func (b *Buffer) Pass(n int) []byte {
	pass := b.buf[b.head : b.head+n]
	b.head += n
	return pass
}
