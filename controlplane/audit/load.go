package audit

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/google/uuid"
)

// scan is what the frames of one segment say.
type scan struct {
	header header
	chain  chain // at the last frame that follows the chain
	good   int64 // bytes up to there
	signed mark  // at the last head or seal
	sealed bool
	fault  error // why the rest was not read; nil when there is none
}

// mark is a place in a segment.
type mark struct {
	chain chain
	at    int64
}

// scanSegment reads frames while they follow the chain and calls each.
func scanSegment(b []byte, magic string, each func(*frame)) (scan, error) {
	var s scan
	var err error
	if s.header, err = readHeader(b, magic); err != nil {
		return s, err
	}
	s.chain = chain{s.header.first - 1, s.header.prev}
	s.good = headerSize
	s.signed = mark{s.chain, s.good}
	for s.good < int64(len(b)) {
		f, err := readFrame(b[s.good:])
		if err == nil && s.sealed {
			err = errors.New("a frame follows the end")
		}
		if err == nil && !s.chain.next(&f) {
			err = errors.New("the frame does not follow the one before")
		}
		if err != nil {
			s.fault = err
			return s, nil
		}
		s.good += int64(f.size)
		s.sealed = f.typ == frameSeal
		if f.typ == frameHead || f.typ == frameSeal {
			s.signed = mark{s.chain, s.good}
		}
		if each != nil {
			each(&f)
		}
	}
	return s, nil
}

// torn tells whether the fault is an unfinished write: nothing whole follows.
func (s *scan) torn(b []byte) bool {
	if s.fault == nil {
		return true
	}
	_, _, later := laterFrame(b[s.good:])
	return !later
}

// listSegments finds the uncompressed segments, by their first number.
func listSegments(d disk) ([]*segment, error) {
	entries, err := d.List()
	if err != nil {
		return nil, err
	}
	var out []*segment
	for _, e := range entries {
		if first, ok := firstOf(e.Name()); ok && e.Type().IsRegular() {
			out = append(out, &segment{name: e.Name(), first: first, last: first - 1})
		}
	}
	slices.SortFunc(out, func(a, b *segment) int {
		if a.first < b.first {
			return -1
		}
		return 1
	})
	return out, nil
}

// cut shortens a segment file to what is whole.
func cut(d disk, name string, size int64) error {
	f, err := d.Open(name)
	if err != nil {
		return err
	}
	err = f.Truncate(size)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// missing tells a file that is not there.
func missing(err error) bool { return errors.Is(err, fs.ErrNotExist) }

func newID() (uuid.UUID, error) {
	id, err := uuid.NewRandom()
	if err != nil {
		return id, fmt.Errorf("audit: random id: %w", err)
	}
	return id, nil
}
