package crowd

import (
	"bytes"
	"testing"
)

// TestPattern: a stream is the same however it is cut, and any change shows at
// its place.
func TestPattern(t *testing.T) {
	const seed = 7
	whole := make([]byte, 1000)
	fill(whole, seed, 0)
	for _, cut := range []int{1, 3, 8, 13, 64, 999} {
		pieces := make([]byte, len(whole))
		for at := 0; at < len(pieces); at += cut {
			piece := pieces[at:min(at+cut, len(pieces))]
			fill(piece, seed, uint64(at))
			if i := wrong(piece, seed, uint64(at)); i != -1 {
				t.Errorf("cut every %d: piece at %d is wrong at %d", cut, at, i)
			}
		}
		if !bytes.Equal(whole, pieces) {
			t.Errorf("cut every %d: another stream", cut)
		}
	}
	for at := range whole {
		b := bytes.Clone(whole)
		b[at] ^= 0x10
		if got := wrong(b, seed, 0); got != at {
			t.Errorf("changed at %d, found at %d", at, got)
		}
	}
}

// TestPatternKnowsItsPlace: what is lost, doubled, moved or another's is wrong.
func TestPatternKnowsItsPlace(t *testing.T) {
	up, down := seeds(1)
	other, _ := seeds(2)
	b := make([]byte, 64<<10)
	fill(b, up, 1<<40)
	for name, got := range map[string]int{
		"a byte lost": wrong(b[1:], up, 1<<40), "a byte doubled": wrong(b, up, 1<<40+1), "a word lost": wrong(b[8:], up, 1<<40),
		"a piece lost": wrong(b, up, 1<<40+bulkPiece), "the other direction": wrong(b, down, 1<<40), "another's": wrong(b, other, 1<<40),
	} {
		if got < 0 || got > 8 {
			t.Errorf("%s: found at %d", name, got)
		}
	}
}

func TestCard(t *testing.T) {
	for _, k := range []kind{fresh, idle, bulk, pulse} {
		got, id, ok := readCard(card(k, 1<<63+5))
		if !ok || got != k || id != 1<<63+5 {
			t.Errorf("card of %d: %d, %d, %v", k, got, id, ok)
		}
		if bytes.Equal(answer(k, 1), answer(k, 2)) || bytes.Equal(answer(k, 1), card(k, 1)) {
			t.Errorf("answers of %d prove nothing", k)
		}
	}
	for _, b := range [][]byte{make([]byte, cardSize), answer(fresh, 1), card(0, 1), card(pulse+1, 1)} {
		if _, _, ok := readCard(b); ok {
			t.Errorf("%q is a card", b)
		}
	}
}
