package crowd

import "encoding/binary"

// word is the i-th of a stream: the finalizer of splitmix64 (Steele, Lea and
// Flood, Fast splittable pseudorandom number generators), so that neighbours
// and streams have nothing in common.
func word(seed, i uint64) uint64 {
	z := seed + i*0x9e3779b97f4a7c15
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// fill writes a stream's bytes from pos on.
func fill(b []byte, seed, pos uint64) {
	for len(b) > 0 {
		w, at := word(seed, pos/8), pos%8
		if at == 0 && len(b) >= 8 {
			binary.LittleEndian.PutUint64(b, w)
			b, pos = b[8:], pos+8
			continue
		}
		b[0] = byte(w >> (8 * at))
		b, pos = b[1:], pos+1
	}
}

// wrong is where b first differs from the stream's bytes from pos on; -1 when
// it does not.
func wrong(b []byte, seed, pos uint64) int {
	for i := 0; i < len(b); {
		w, at := word(seed, pos/8), pos%8
		if at == 0 && len(b)-i >= 8 && binary.LittleEndian.Uint64(b[i:]) == w {
			i, pos = i+8, pos+8
			continue
		}
		if b[i] != byte(w>>(8*at)) {
			return i
		}
		i, pos = i+1, pos+1
	}
	return -1
}

// The card and the answer to it.

const cardSize = 16

var cardMark, answerMark = [7]byte{'S', 'P', 'c', 'a', 'r', 'd', '1'}, [7]byte{'S', 'P', 'm', 'e', 't', ' ', '1'}

type kind byte

const (
	fresh kind = 1 + iota
	idle
	bulk
	pulse
)

func card(k kind, id uint64) []byte {
	return binary.LittleEndian.AppendUint64(append(cardMark[:], byte(k)), id)
}

// answer cannot be an echo of the card.
func answer(k kind, id uint64) []byte {
	return binary.LittleEndian.AppendUint64(append(answerMark[:], byte(k)), word(id, uint64(k)))
}

func readCard(b []byte) (k kind, id uint64, ok bool) {
	k, id = kind(b[7]), binary.LittleEndian.Uint64(b[8:])
	return k, id, [7]byte(b) == cardMark && k >= fresh && k <= pulse
}

// seeds of the two directions of a connection.
func seeds(id uint64) (up, down uint64) { return word(id, 1<<32), word(id, 1<<33) }
