package audit

import (
	"context"
	"errors"
	"io"
	"sort"

	"github.com/sallyport/sallyport"
)

// Next returns durable events after the number, at most limit and about 1 MiB,
// and waits for one at least. Events that were acknowledged are not returned
// again: after 0 comes the first that auth does not have.
func (s *Spool) Next(ctx context.Context, after uint64, limit int) ([]Record, error) {
	for {
		s.j.mu.Lock()
		last, changed, closing := s.j.head.seq, s.j.changed, s.j.closing
		s.j.mu.Unlock()
		s.mu.Lock()
		after := max(after, s.acked)
		s.mu.Unlock()
		if after < last {
			return s.read(after, limit)
		}
		if closing {
			return nil, &sallyport.Problem{Kind: sallyport.ErrUnavailable, Cause: ErrClosed, Fact: "audit spool is closed"}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// read collects events from one segment, so an answer may be shorter than limit.
func (s *Spool) read(after uint64, limit int) ([]Record, error) {
	s.readMu.Lock()
	defer s.readMu.Unlock()
	p, err := s.seek(after)
	if err != nil {
		return nil, err
	}
	var out []Record
	bytes := 0
	for len(out) < limit && bytes < nextBytes {
		b, err := s.j.read(p.s, p.at, nextBytes+2*MaxEvent)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, unreadable(err)
		}
		used := 0
		for len(out) < limit && bytes < nextBytes {
			f, err := readFrame(b[used:])
			if errors.Is(err, errTorn) && used > 0 {
				break // the rest of it is not read yet
			}
			if err != nil || f.seq != p.seq+1 {
				return nil, unreadable(errFrame)
			}
			used += f.size
			p.seq, p.at = f.seq, p.at+int64(f.size)
			if f.seq > after {
				out = append(out, Record{Sequence: f.seq, JSON: f.payload})
				bytes += f.size
			}
		}
	}
	s.pos = p
	return out, nil
}

func unreadable(cause error) error {
	return &sallyport.Problem{Kind: sallyport.ErrUnavailable, Cause: cause,
		Fact: "audit spool cannot be read", Hint: "look at the disk that holds the data directory, then restart"}
}

// seek finds the segment of the event after a number: from where the last
// read ended when it goes on there, else from the segment's start.
func (s *Spool) seek(after uint64) (position, error) {
	s.j.mu.Lock()
	defer s.j.mu.Unlock()
	segs := s.j.segments
	i := sort.Search(len(segs), func(i int) bool { return segs[i].last > after })
	if i == len(segs) {
		return position{}, unreadable(errors.New("no segment holds the event"))
	}
	if s.pos.s == segs[i] && s.pos.seq <= after {
		return s.pos, nil
	}
	return position{s: segs[i], seq: segs[i].first - 1, at: headerSize}, nil
}
