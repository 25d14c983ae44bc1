package database

import (
	"bytes"
	"strconv"
	"testing"
)

// fill reads n bytes of a letter into b, as few times as can be.
func fill(b *Buffer, letter byte, n int) {
	for n > 0 {
		room := b.Space()
		room = room[:min(len(room), n)]
		for i := range room {
			room[i] = letter
		}
		b.Add(len(room))
		n -= len(room)
	}
}

// TestBufferSizes: small talk stays with a small buffer, bulk gets a large one at
// its second read, what is held gets what it needs, and none of that is kept.
func TestBufferSizes(t *testing.T) {
	b := Buffer{Rooms: &Rooms{}}
	size := func(when string, want int) {
		t.Helper()
		if got := len(b.Space()) + len(b.Unpassed()); got != want {
			t.Errorf("%s: %d bytes, want %d", when, got, want)
		}
	}
	size("at first", FirstSize)
	for range 1000 {
		fill(&b, 's', FirstSize-1)
		b.Pass(FirstSize - 1)
	}
	size("small talk", FirstSize)
	fill(&b, 'b', FirstSize)
	b.Pass(FirstSize)
	size("bulk", BufferSize)
	own := &b.Space()[0]
	fill(&b, 'b', BufferSize)
	b.Pass(BufferSize)
	size("more bulk", BufferSize)
	fill(&b, 'h', BufferSize)
	size("a held message", 2*BufferSize)
	fill(&b, 'h', 2*BufferSize+1)
	size("a longer one", 4*BufferSize)
	b.Pass(len(b.Unpassed()) - 1)
	size("the start of the next after it", 4*BufferSize)
	b.Pass(1)
	size("nothing held", BufferSize)
	if &b.Space()[0] != own {
		t.Error("the buffer of before is gone")
	}
}

// TestBufferHolds: what has not passed stays what it was, wherever it lies.
func TestBufferHolds(t *testing.T) {
	for _, rooms := range []*Rooms{nil, {}} {
		b := Buffer{Rooms: rooms}
		var want []byte
		for i, n := range []int{1, 100, FirstSize, 3, BufferSize, 7 * BufferSize, 1, 20} {
			letter := byte('a' + i)
			fill(&b, letter, n)
			want = append(want, bytes.Repeat([]byte{letter}, n)...)
			if got := b.Unpassed(); !bytes.Equal(got, want) {
				t.Fatalf("after %c: %d bytes, want %d; or others", letter, len(got), len(want))
			}
			half := len(want) / 2
			if got := b.Pass(half); !bytes.Equal(got, want[:half]) {
				t.Fatalf("after %c: others pass", letter)
			}
			want = want[half:]
		}
	}
}

// TestBufferNoAllocation: neither small talk nor bulk costs any.
func TestBufferNoAllocation(t *testing.T) {
	for _, n := range []int{40, BufferSize} {
		var b Buffer
		if got := testing.AllocsPerRun(100, func() {
			fill(&b, 'x', n)
			b.Pass(n)
		}); got != 0 {
			t.Errorf("%d bytes at a time: %v allocations", n, got)
		}
	}
}

func BenchmarkBuffer(b *testing.B) {
	for _, n := range []int{40, BufferSize} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			var buf Buffer
			b.ReportAllocs()
			for range b.N {
				for left := n; left > 0; {
					k := min(len(buf.Space()), left)
					left -= k
					buf.Pass(len(buf.Add(k)))
				}
			}
		})
	}
}
