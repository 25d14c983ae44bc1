package audit

import (
	"bytes"
	"context"
	"slices"
	"time"

	"github.com/sallyport/sallyport"
)

// Query says which events to find. The zero value finds the newest of all.
type Query struct {
	From, To time.Time // From <= time < To; zero: no bound
	Names    []string  // event names; empty: all
	Limit    int       // 0: 100; MaxFound at most
}

// MaxFound is how many events one search gives, whatever was asked for.
const MaxFound = 10_000

// Bounds of an answer.
const (
	defaultLimit = 100
	maxAnswer    = 32 << 20 // bytes
)

// A search has a whole segment in memory, and its answer. So few are under way
// at a time; who waits for longer than searchWait is refused.
const (
	searchesAtOnce = 2
	searchWait     = 10 * time.Second
)

// beginSearch waits for its turn, which is given back by l.searches.
func (l *Log) beginSearch(ctx context.Context) error {
	wait := time.NewTimer(searchWait)
	defer wait.Stop()
	select {
	case l.searches <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-wait.C:
		return &sallyport.Problem{Kind: sallyport.ErrExhausted, Fact: "too many searches of the audit log at a time", Hint: "try again in a moment"}
	}
}

// Search returns the newest events that match, the oldest of them first, as
// lines of JSON. The order is that of the log, not of the hosts' clocks.
func (l *Log) Search(ctx context.Context, q Query) ([][]byte, error) {
	if q.Limit <= 0 {
		q.Limit = defaultLimit
	}
	q.Limit = min(q.Limit, MaxFound)
	if err := l.beginSearch(ctx); err != nil {
		return nil, err
	}
	defer func() { <-l.searches }()
	l.j.mu.Lock()
	segments := slices.Clone(l.j.segments)
	l.j.mu.Unlock()
	var out [][]byte // newest first
	size := 0
	for _, s := range slices.Backward(segments) {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		found, err := l.searchSegment(s, &q)
		if err != nil {
			return nil, unwritableLog(err)
		}
		for _, line := range slices.Backward(found) {
			if size += len(line); len(out) == q.Limit || size > maxAnswer {
				slices.Reverse(out)
				return out, nil
			}
			out = append(out, line)
		}
	}
	slices.Reverse(out)
	return out, nil
}

// searchSegment returns the lines of one segment that match, in order; of many
// only the last Limit.
func (l *Log) searchSegment(s *segment, q *Query) ([][]byte, error) {
	l.j.mu.Lock()
	durable := *s
	l.j.mu.Unlock()
	if durable.packed != "" && !q.overlaps(durable.minT, durable.maxT) {
		return nil, nil
	}
	b, err := readSegment(l.disk, &durable)
	if missing(err) { // compressed meanwhile
		l.j.mu.Lock()
		durable = *s
		l.j.mu.Unlock()
		b, err = readSegment(l.disk, &durable)
	}
	if err != nil {
		return nil, err
	}
	if durable.packed == "" && durable.size > 0 {
		b = b[:min(int64(len(b)), durable.size)] // what is durable
	}
	var found [][]byte
	for at := headerSize; at < len(b); {
		f, err := readFrame(b[at:])
		if err != nil {
			g, end, ok := laterFrame(b[at:]) // Verify reports it; what is whole is shown
			if !ok {
				break
			}
			f, at = g, at+end-g.size
		}
		at += f.size
		if f.typ != frameEvent {
			continue
		}
		if _, _, line, ok := readPayload(f.payload); ok && q.matches(line) {
			found = append(found, bytes.Clone(line))
			if len(found) > 2*q.Limit {
				found = slices.Clone(found[len(found)-q.Limit:])
			}
		}
	}
	return found, nil
}

func (q *Query) overlaps(minT, maxT int64) bool {
	return (q.To.IsZero() || minT < q.To.UnixMilli()) && (q.From.IsZero() || maxT >= q.From.UnixMilli())
}

func (q *Query) matches(line []byte) bool {
	if len(q.Names) == 0 && q.From.IsZero() && q.To.IsZero() {
		return true
	}
	if name, ok := quickName(line); ok && len(q.Names) > 0 && !slices.Contains(q.Names, name) {
		return false
	}
	e, err := Decode(line)
	if err != nil {
		return false
	}
	return (len(q.Names) == 0 || slices.Contains(q.Names, e.Name)) &&
		(q.From.IsZero() || !e.Time.Before(q.From)) && (q.To.IsZero() || e.Time.Before(q.To))
}

// quickName reads the name without decoding the line: Encode writes it first.
func quickName(line []byte) (string, bool) {
	rest, ok := bytes.CutPrefix(line, []byte(`{"event":"`))
	name, _, ends := bytes.Cut(rest, []byte(`"`))
	return string(name), ok && ends && !bytes.Contains(name, []byte(`\`))
}
