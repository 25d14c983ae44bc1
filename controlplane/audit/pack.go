package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// A packed segment is the segment compressed by zstd (RFC 8878), followed by a
// skippable frame with the SHA-256 of all bytes before it: zstd itself does
// not notice a change of every bit.
const (
	skippable   = 0x184d2a50
	trailerSize = 4 + 4 + sha256.Size
)

// packer compresses ended segments, one at a time, in a goroutine of its own.
type packer struct {
	l       *Log
	mu      sync.Mutex
	queue   []*segment
	closing bool
	wake    chan struct{}
	stopped chan struct{}
}

func newPacker(l *Log) *packer {
	return &packer{l: l, wake: make(chan struct{}, 1), stopped: make(chan struct{})}
}

func (p *packer) start() { go p.run() }

// add queues a segment; it does not block.
func (p *packer) add(s *segment) {
	p.mu.Lock()
	p.queue = append(p.queue, s)
	p.mu.Unlock()
	p.nudge()
}

func (p *packer) nudge() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// stop ends the goroutine after the segment at hand; the next start packs the rest.
func (p *packer) stop() error {
	p.mu.Lock()
	p.closing = true
	p.mu.Unlock()
	p.nudge()
	<-p.stopped
	return nil
}

func (p *packer) run() {
	defer close(p.stopped)
	for range p.wake {
		for {
			p.mu.Lock()
			closing := p.closing
			var s *segment
			if !closing && len(p.queue) > 0 {
				s, p.queue = p.queue[0], p.queue[1:]
			}
			p.mu.Unlock()
			if closing {
				return
			}
			if s == nil {
				break
			}
			if err := p.pack(s); err != nil {
				p.l.c.Log.Warn("audit segment was not compressed", "segment", s.name, "err", err)
			}
		}
	}
}

func (p *packer) pack(s *segment) error {
	d := p.l.disk
	b, err := d.Read(s.name, maxSegment)
	if err != nil {
		return err
	}
	var times segment
	if sc, err := scanSegment(b, logMagic, times.noteFrame); err != nil || sc.fault != nil {
		return errors.Join(err, sc.fault) // stays as it is: it is evidence
	}
	packed, err := compress(b)
	if err != nil {
		return err
	}
	times.first = s.first
	name := packedName(&times)
	if err := replace(d, name, packed); err != nil {
		return err
	}
	if err := d.SyncDir(); err != nil {
		return err
	}
	p.l.j.mu.Lock()
	s.packed, s.minT, s.maxT = name, times.minT, times.maxT
	p.l.j.mu.Unlock()
	return d.Remove(s.name)
}

func compress(b []byte) ([]byte, error) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(true))
	if err != nil {
		return nil, err
	}
	out := enc.EncodeAll(b, nil)
	if err := enc.Close(); err != nil {
		return nil, err
	}
	sum := sha256.Sum256(out)
	out = binary.LittleEndian.AppendUint32(out, skippable)
	out = binary.LittleEndian.AppendUint32(out, sha256.Size)
	return append(out, sum[:]...), nil
}

var errPacked = errors.New("the compressed segment is damaged")

func decompress(b []byte) ([]byte, error) {
	if len(b) < trailerSize {
		return nil, errPacked
	}
	body, trailer := b[:len(b)-trailerSize], b[len(b)-trailerSize:]
	sum := sha256.Sum256(body)
	if binary.LittleEndian.Uint32(trailer) != skippable || binary.LittleEndian.Uint32(trailer[4:]) != sha256.Size ||
		!bytes.Equal(sum[:], trailer[8:]) {
		return nil, errPacked
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxMemory(maxSegment))
	if err != nil {
		return nil, err
	}
	defer dec.Close()
	out, err := dec.DecodeAll(body, nil)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errPacked, err)
	}
	return out, nil
}

// packedName names a compressed segment by its first number and the times of
// its events, so that a search need not open it.
func packedName(s *segment) string {
	return fmt.Sprintf("%s-%013d-%013d%s", strings.TrimSuffix(segmentName(s.first), segmentSuffix), max(s.minT, 0), max(s.maxT, 0), packedSuffix)
}

// parsePacked reads a compressed segment's name.
func parsePacked(name string) (*segment, bool) {
	base, ok := strings.CutSuffix(name, packedSuffix)
	parts := strings.Split(base, "-")
	if !ok || len(parts) != 3 {
		return nil, false
	}
	first, err := strconv.ParseUint(parts[0], 10, 64)
	minT, err2 := strconv.ParseInt(parts[1], 10, 64)
	maxT, err3 := strconv.ParseInt(parts[2], 10, 64)
	s := &segment{name: segmentName(first), first: first, last: first - 1, minT: minT, maxT: maxT, packed: name}
	if err != nil || err2 != nil || err3 != nil || first == 0 || packedName(s) != name {
		return nil, false
	}
	return s, true
}

// listLog finds all segments of a log, compressed or not, in order. Of one
// that a crash left in both forms the uncompressed is removed.
func listLog(d disk) ([]*segment, error) {
	segments, err := listSegments(d)
	if err != nil {
		return nil, err
	}
	entries, err := d.List()
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		s, ok := parsePacked(e.Name())
		if !ok {
			continue
		}
		i := slices.IndexFunc(segments, func(x *segment) bool { return x.first == s.first })
		if i < 0 {
			segments = append(segments, s)
			continue
		}
		if segments[i].packed == "" && same(d, segments[i], s) {
			if err := d.Remove(segments[i].name); err != nil {
				return nil, err
			}
			segments[i] = s
		}
	}
	slices.SortFunc(segments, func(a, b *segment) int {
		if a.first < b.first {
			return -1
		}
		return 1
	})
	return segments, nil
}

// same tells whether two files hold the same segment.
func same(d disk, a, b *segment) bool {
	x, err := readSegment(d, a)
	if err != nil {
		return false
	}
	y, err := readSegment(d, b)
	return err == nil && bytes.Equal(x, y)
}

// readSegment reads a segment in whichever form it is.
func readSegment(d disk, s *segment) ([]byte, error) {
	if s.packed == "" {
		return d.Read(s.name, maxSegment)
	}
	b, err := d.Read(s.packed, maxSegment)
	if err != nil {
		return nil, err
	}
	return decompress(b)
}
