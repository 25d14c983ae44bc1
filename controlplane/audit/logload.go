package audit

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/google/uuid"

	"github.com/sallyport/sallyport"
)

// load finds the end of the log and starts the journal behind it.
func (l *Log) load() error {
	segments, err := listLog(l.disk)
	if err != nil {
		return err
	}
	l.j = &journal{disk: l.disk, magic: logMagic, segmentBytes: l.c.SegmentBytes, log: l.c.Log, segments: segments}
	l.pack = newPacker(l)
	l.j.hooks = hooks{opening: l.opening, closing: l.closing, committed: l.committed, failing: l.failing, sealed: l.pack.add}
	note, err := l.loadEnd()
	if err != nil {
		return err
	}
	if note == nil {
		note = l.checkHead()
	}
	if err := l.ballast(); err != nil {
		l.c.Log.Warn("no space for the audit log's ballast: hosts' events are refused", "err", err)
		l.starved = true
	}
	l.j.start()
	l.pack.start()
	for _, s := range l.j.segments {
		if s.packed == "" && s.f == nil {
			l.pack.add(s)
		}
	}
	return l.begin(note)
}

// begin writes the first thing of this run, so that a signed head stands at
// the end, and the head file with it.
func (l *Log) begin(note *sallyport.Event) error {
	e := sallyport.Event{Name: AuditOpened, Code: AuditOpenedCode}
	if note != nil {
		e = *note
	}
	wait := &waiter{done: make(chan struct{})}
	batch := append(l.forget(l.excess(), wait), l.own(e, wait))
	if l.starved {
		batch = append(batch, l.stopped())
	}
	if err := l.commit(batch, maxPending); err != nil {
		return errors.Join(err, l.j.close(), l.pack.stop())
	}
	return nil
}

// checkHead tells when the head file names a place that the log does not reach.
func (l *Log) checkHead() *sallyport.Event {
	b, err := l.disk.Read(headName, 4<<10)
	if err != nil {
		return nil
	}
	var h headCopy
	if !h.parse(b) || h.at.seq <= l.j.head.seq {
		return nil
	}
	fault := fmt.Errorf("the log ends before sequence %d, which was signed", h.at.seq)
	return l.damaged(&segment{name: headName, last: l.j.head.seq}, fault, nil)
}

// loadEnd reads the last segment: the chain's end and the spools' places. The
// note tells what was found damaged.
func (l *Log) loadEnd() (*sallyport.Event, error) {
	n := len(l.j.segments)
	if n == 0 {
		id, err := newID()
		l.j.id = id
		l.j.head = chain{0, genesis(id)}
		return nil, err
	}
	last := l.j.segments[n-1]
	b, err := readSegment(l.disk, last)
	if err != nil {
		return nil, err
	}
	sc, err := scanSegment(b, logMagic, nil)
	if err != nil && n > 1 && len(b) <= headerSize && last.packed == "" {
		// A segment that a crash left without its header: go back one.
		l.c.Log.Warn("unfinished audit segment removed", "segment", last.name, "bytes", len(b))
		if err := l.disk.Remove(last.name); err != nil {
			return nil, err
		}
		l.j.segments = l.j.segments[:n-1]
		return l.loadEnd()
	}
	if err != nil && n == 1 && len(b) <= headerSize {
		l.j.segments = nil
		if err := l.disk.Remove(last.name); err != nil {
			return nil, err
		}
		return l.loadEnd()
	}
	if err != nil {
		return nil, &sallyport.Problem{Kind: sallyport.ErrInvalid, Cause: err,
			Fact: fmt.Sprintf("audit log: %s is damaged at its start", last.name),
			Hint: "run sallyctl audit verify; move the directory aside to start a new log"}
	}
	l.j.id = sc.header.id
	return l.adopt(last, b, &sc)
}

// adopt goes on from a scanned last segment.
func (l *Log) adopt(s *segment, b []byte, sc *scan) (*sallyport.Event, error) {
	end := sc.signed
	cutBytes := int64(len(b)) - end.at
	s.last, s.size = end.chain.seq, int64(len(b))
	l.j.head = end.chain
	if !sc.torn(b) || s.packed != "" && cutBytes > 0 {
		if sc.fault == nil {
			sc.fault = errors.New("the end is not signed")
		}
		l.j.head = l.lastWhole(s, b)
		return l.damaged(s, sc.fault, nil), nil
	}
	if err := l.restore(b[:end.at]); err != nil {
		return nil, err
	}
	var note *sallyport.Event
	if cutBytes > 0 {
		if err := l.cutTail(s, b, end.at); err != nil {
			return nil, err
		}
		note = l.damaged(s, errors.New("the end was not complete"), map[string]any{"bytes": cutBytes})
	}
	if s.last < s.first { // nothing but the header is left
		l.j.segments = l.j.segments[:len(l.j.segments)-1]
		l.j.head = chain{s.first - 1, sc.header.prev}
		if err := l.disk.Remove(s.name); err != nil {
			return nil, err
		}
		if s.first == 1 {
			return note, nil
		}
		prev := l.j.segments
		if len(prev) > 0 {
			return note, l.restoreFrom(prev[len(prev)-1])
		}
		return note, nil
	}
	if sc.sealed || s.packed != "" {
		return note, nil // a new segment follows
	}
	f, err := l.disk.Open(s.name)
	s.f = f
	return note, err
}

// restoreFrom takes the spools' places from an earlier segment.
func (l *Log) restoreFrom(s *segment) error {
	b, err := readSegment(l.disk, s)
	if err != nil {
		return err
	}
	return l.restore(b)
}

// restore takes the spools' places from frames known to be whole.
func (l *Log) restore(b []byte) error {
	_, err := scanSegment(b, logMagic, l.replay)
	return err
}

func (l *Log) replay(f *frame) {
	switch f.typ {
	case frameState:
		var st state
		if json.Unmarshal(f.payload, &st) != nil || st.What != stateEvents {
			return
		}
		for name, p := range st.Spools {
			if len(p.Hash) == len(digest{}) {
				*l.placeLocked(name) = place{p.Sequence, digest(p.Hash), p.At}
			}
		}
	case frameEvent:
		spool, seq, line, ok := readPayload(f.payload)
		switch {
		case ok && spool != "":
			// The line as it came is not kept; a copy sent again is compared
			// with what this run has seen only.
			*l.placeLocked(spool) = place{seq: seq, at: f.seq}
		case ok:
			l.forgetLocked(forgottenOf(line))
		}
	}
}

// lastWhole finds the last whole frame of a damaged segment; the log goes on
// behind it.
func (l *Log) lastWhole(s *segment, b []byte) chain {
	c := l.j.head
	for {
		f, end, ok := laterFrame(b)
		if !ok {
			return c
		}
		if f.seq > c.seq {
			c = chain{f.seq, f.hash}
			s.last = f.seq
		}
		l.replay(&f)
		b = b[end:]
	}
}

// cutTail keeps what is cut in a file of its own: it was never acknowledged,
// but whoever looks for a change will want to see it.
func (l *Log) cutTail(s *segment, b []byte, at int64) error {
	name := fmt.Sprintf("%s%d-%d-%s", cutPrefix, s.first, at, uuid.NewString()[:8])
	if err := replace(l.disk, name, b[at:]); err != nil {
		return err
	}
	if err := l.disk.SyncDir(); err != nil { // before the only other copy goes
		return err
	}
	if err := cut(l.disk, s.name, at); err != nil {
		return err
	}
	s.size = at
	return nil
}

func (l *Log) damaged(s *segment, fault error, fields map[string]any) *sallyport.Event {
	l.c.Log.Error("audit log was recovered", "segment", s.name, "err", fault, "sequence", s.last)
	if fields == nil {
		fields = make(map[string]any)
	}
	fields["segment"], fields["error"], fields["sequence"] = s.name, fault.Error(), int64(s.last)
	return &sallyport.Event{Name: AuditRecovered, Code: AuditRecoveredCode, Fields: fields}
}
