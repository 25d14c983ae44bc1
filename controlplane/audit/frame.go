package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash/crc32"

	"github.com/google/uuid"
)

// A segment is a header and frames. All numbers are little-endian.
//
//	header  magic(8) id(16) first(8) previous hash(32) SHA-256 of all before(32)
//	frame   magic(2) type(1) 0(1) length(4) sequence(8) hash(32) CRC-32C(4) payload
//
// hash = SHA-256(previous hash || type || length || sequence || payload) chains
// the frames; the checksum, over all of the frame but itself, tells an
// unfinished write from a change.
const (
	headerSize = 8 + 16 + 8 + 32 + 32
	frameSize  = 2 + 1 + 1 + 4 + 8 + 32 + 4

	spoolMagic = "SLYPSPL\x01"
	logMagic   = "SLYPLOG\x01"

	frameMagic0, frameMagic1 = 0xa7, 0x5e
)

// Types of frames. A spool has events only.
const (
	frameEvent = 1
	frameHead  = 2 // a signature over the chain so far
	frameState = 3 // the sequence numbers of all spools, at the start of a segment
	frameSeal  = 4 // a signature at the end of a segment: another one follows
)

// maxSegment bounds a segment file in memory: the largest batch beyond a full one.
const maxSegment = 256 << 20

type digest [sha256.Size]byte

// chain is the place in a journal: the last frame's sequence number and hash.
type chain struct {
	seq  uint64
	hash digest
}

// genesis is the hash before the first frame.
func genesis(id uuid.UUID) digest {
	return sha256.Sum256(append([]byte("sallyport audit genesis 1\n"), id[:]...))
}

var (
	errTorn   = errors.New("the frame is not complete")
	errFrame  = errors.New("the frame is damaged")
	errHeader = errors.New("the segment's header is damaged")
	crcTable  = crc32.MakeTable(crc32.Castagnoli)
)

// header is the start of a segment.
type header struct {
	id    uuid.UUID
	first uint64
	prev  digest
}

func (h *header) append(b []byte, magic string) []byte {
	at := len(b)
	b = append(b, magic...)
	b = append(b, h.id[:]...)
	b = binary.LittleEndian.AppendUint64(b, h.first)
	b = append(b, h.prev[:]...)
	sum := sha256.Sum256(b[at:])
	return append(b, sum[:]...)
}

func readHeader(b []byte, magic string) (header, error) {
	var h header
	if len(b) < headerSize {
		return h, errTorn
	}
	if sum := sha256.Sum256(b[:headerSize-sha256.Size]); string(b[:8]) != magic || !bytes.Equal(sum[:], b[headerSize-sha256.Size:headerSize]) {
		return h, errHeader
	}
	copy(h.id[:], b[8:])
	h.first = binary.LittleEndian.Uint64(b[24:])
	copy(h.prev[:], b[32:])
	return h, nil
}

// frame is one frame of a segment. Payload aliases what was read.
type frame struct {
	typ     byte
	seq     uint64
	hash    digest
	payload []byte
	size    int // with its head
}

// link is the hash of a frame that follows prev.
func link(prev digest, typ byte, seq uint64, payload []byte) digest {
	var fixed [1 + 4 + 8]byte
	fixed[0] = typ
	binary.LittleEndian.PutUint32(fixed[1:], uint32(len(payload)))
	binary.LittleEndian.PutUint64(fixed[5:], seq)
	h := sha256.New()
	h.Write(prev[:])
	h.Write(fixed[:])
	h.Write(payload)
	var d digest
	h.Sum(d[:0])
	return d
}

// append writes the next frame behind b and moves the chain.
func (c *chain) append(b []byte, typ byte, payload []byte) []byte {
	c.seq++
	c.hash = link(c.hash, typ, c.seq, payload)
	at := len(b)
	b = append(b, frameMagic0, frameMagic1, typ, 0)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(payload)))
	b = binary.LittleEndian.AppendUint64(b, c.seq)
	b = append(b, c.hash[:]...)
	sum := crc32.Update(crc32.Checksum(b[at:], crcTable), crcTable, payload)
	b = binary.LittleEndian.AppendUint32(b, sum)
	return append(b, payload...)
}

// readFrame reads the frame at the start of b: errTorn when b ends before it,
// errFrame when it is not one.
func readFrame(b []byte) (frame, error) {
	var f frame
	if len(b) < frameSize {
		return f, errTorn
	}
	if b[0] != frameMagic0 || b[1] != frameMagic1 || b[3] != 0 || b[2] < frameEvent || b[2] > frameSeal {
		return f, errFrame
	}
	length := uint64(binary.LittleEndian.Uint32(b[4:]))
	if length > uint64(len(b)-frameSize) {
		return f, errTorn
	}
	f.typ, f.seq, f.size = b[2], binary.LittleEndian.Uint64(b[8:]), frameSize+int(length)
	copy(f.hash[:], b[16:])
	f.payload = b[frameSize:f.size]
	sum := crc32.Update(crc32.Checksum(b[:48], crcTable), crcTable, f.payload)
	if sum != binary.LittleEndian.Uint32(b[48:]) {
		return f, errFrame
	}
	return f, nil
}

// next checks that the frame follows the chain, and moves it.
func (c *chain) next(f *frame) bool {
	if f.seq != c.seq+1 || f.hash != link(c.hash, f.typ, f.seq, f.payload) {
		return false
	}
	c.seq, c.hash = f.seq, f.hash
	return true
}

// laterFrame finds a whole frame anywhere in b: proof that what stands before
// it was written completely once and changed afterwards. End is where it ends.
func laterFrame(b []byte) (f frame, end int, ok bool) {
	const tries = 10_000 // each may read a whole segment
	at := 0
	for range tries {
		i := bytes.Index(b[at:], []byte{frameMagic0, frameMagic1})
		if i < 0 {
			break
		}
		at += i
		if f, err := readFrame(b[at:]); err == nil {
			return f, at + f.size, true
		}
		at++
	}
	return frame{}, 0, false
}
