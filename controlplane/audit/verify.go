package audit

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/sallyport/sallyport"
)

// Report is what Verify found.
type Report struct {
	Log        uuid.UUID
	Segments   int
	Events     uint64
	Heads      int       // signatures that were checked
	From, To   time.Time // of the events
	Head       Head      // the last that is signed
	Unfinished int64     // bytes behind it: the log is being written, or a write did not end
	Faults     []Fault   // at most 100
}

// Fault is one place where the log is not what was written.
type Fault struct {
	File     string
	Sequence uint64 // of the last line before it that is whole
	Offset   int64  // in the segment, uncompressed
	Text     string
}

// String puts the place before the fact.
func (f Fault) String() string {
	return fmt.Sprintf("%s: after sequence %d, byte %d: %s", f.File, f.Sequence, f.Offset, f.Text)
}

const maxFaults = 100

// Verify reads the log in a directory and finds every line that is missing,
// changed, moved or added, by the chain of hashes and by the signed heads. The
// log may be in use. With faults the error is a *sallyport.Problem of kind
// ErrInvalid that names the first.
//
// Whoever can write the directory can take the whole log back to an earlier
// signed head, with the head file, and no reader of the directory alone can
// tell. VerifyAfter can, by a head that was kept elsewhere.
func Verify(dir string, verify func(head, signature []byte) error) (Report, error) {
	return VerifyAfter(dir, verify, Head{})
}

// VerifyAfter is Verify, and demands that the log holds a head known before.
func VerifyAfter(dir string, verify func(head, signature []byte) error, before Head) (Report, error) {
	if _, err := os.Stat(dir); err != nil {
		return Report{}, &sallyport.Problem{Kind: sallyport.ErrNotFound, Cause: err, Fact: "there is no audit log in " + dir, Hint: "run this on auth's machine, or name the directory of a copy"}
	}
	return verifyDisk(osDisk{dir}, verify, before)
}

func verifyDisk(d disk, verify func(head, signature []byte) error, before Head) (Report, error) {
	v := &verifier{disk: d, check: verify, before: before, spools: make(map[string]uint64)}
	if err := v.run(); err != nil {
		return v.report, &sallyport.Problem{Kind: sallyport.ErrUnavailable, Cause: err, Fact: "audit log cannot be read"}
	}
	if len(v.report.Faults) > 0 {
		return v.report, &sallyport.Problem{Kind: sallyport.ErrInvalid,
			Fact: "audit log is not what was written: " + v.report.Faults[0].String(),
			Hint: "compare it with a copy kept elsewhere"}
	}
	return v.report, nil
}

type verifier struct {
	disk   disk
	check  func(head, signature []byte) error
	before Head
	report Report

	chain  chain
	sealed bool
	seen   bool // the chain has passed the head known before
	head   headCopy
	spools map[string]uint64
	gap    gap       // told by the event before
	events uint64    // so far; they count when a head signs them
	from   time.Time // likewise
	to     time.Time
	file   string
	at     int64
}

func (v *verifier) fault(format string, args ...any) {
	if len(v.report.Faults) < maxFaults {
		v.report.Faults = append(v.report.Faults, Fault{v.file, v.chain.seq, v.at, fmt.Sprintf(format, args...)})
	}
}

func (v *verifier) run() error {
	// The head file is read first: a log in use only grows meanwhile.
	head, headErr := v.disk.Read(headName, 4<<10)
	if headErr != nil && !missing(headErr) {
		return headErr
	}
	v.head.there = headErr == nil
	v.head.ok = v.head.parse(head)
	segments, err := v.list()
	if err != nil {
		return err
	}
	for i, s := range segments {
		if err := v.segment(s, i == 0, i == len(segments)-1); err != nil {
			return err
		}
	}
	v.file, v.at = headName, 0
	v.headFile(len(segments))
	if v.sealed {
		v.fault("the segment that follows the last one is missing")
	}
	if v.before.Sequence > 0 && !v.seen {
		v.fault("the head known before, sequence %d, is not in the log", v.before.Sequence)
	}
	return nil
}

// list finds the segments and reports files that no log writes.
func (v *verifier) list() ([]*segment, error) {
	entries, err := v.disk.List()
	if err != nil {
		return nil, err
	}
	byFirst := make(map[uint64]*segment)
	var out []*segment
	for _, e := range entries {
		s, packed := parsePacked(e.Name())
		first, raw := firstOf(e.Name())
		switch {
		case raw:
			s = &segment{name: e.Name(), first: first}
		case !packed:
			if strings.Contains(e.Name(), segmentSuffix) && !strings.HasSuffix(e.Name(), ".new") && !strings.HasPrefix(e.Name(), cutPrefix) {
				v.file = e.Name()
				v.fault("the file's name is not one that the log writes")
			}
			continue
		}
		if old := byFirst[s.first]; old != nil {
			v.twins(old, s)
			continue
		}
		byFirst[s.first] = s
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b *segment) int {
		if a.first < b.first {
			return -1
		}
		return 1
	})
	return out, nil
}

// twins: a segment is there compressed and not, for a moment while it is
// packed. They must hold the same.
func (v *verifier) twins(a, b *segment) {
	x, errA := readSegment(v.disk, a)
	y, errB := readSegment(v.disk, b)
	if missing(errA) || missing(errB) {
		return // packing has ended meanwhile
	}
	if errA != nil || errB != nil || !bytes.Equal(x, y) {
		v.file = b.name
		v.fault("the log forks: two segments begin with sequence %d", a.first)
	}
}

func (v *verifier) segment(s *segment, isFirst, isLast bool) error {
	v.file, v.at = s.name, 0
	if s.packed != "" {
		v.file = s.packed
	}
	b, err := v.read(s)
	if errors.Is(err, errPacked) || errors.Is(err, errTooLarge) {
		v.fault("%v", err)
		v.skip(s)
		return nil
	}
	if err != nil {
		return err
	}
	v.report.Segments++
	h, err := readHeader(b, logMagic)
	if err != nil {
		if isLast && len(b) < headerSize && !isFirst {
			v.report.Unfinished += int64(len(b))
			v.sealed = false
			return nil
		}
		v.fault("%v", err)
		v.skip(s)
		return nil
	}
	v.header(s, &h, isFirst)
	v.chain, v.sealed, v.at = chain{h.first - 1, h.prev}, false, headerSize
	v.frames(s, b, isLast)
	return nil
}

// read reads a segment; one that is packed at this moment is read packed.
func (v *verifier) read(s *segment) ([]byte, error) {
	b, err := readSegment(v.disk, s)
	if !missing(err) || s.packed != "" {
		return b, err
	}
	entries, listErr := v.disk.List()
	if listErr != nil {
		return nil, listErr
	}
	for _, e := range entries {
		if p, ok := parsePacked(e.Name()); ok && p.first == s.first {
			return readSegment(v.disk, p)
		}
	}
	return nil, err
}

// skip goes on behind a segment that cannot be read at all.
func (v *verifier) skip(s *segment) {
	v.chain = chain{s.first - 1, digest{}}
	v.sealed = false
}

func (v *verifier) header(s *segment, h *header, isFirst bool) {
	if isFirst {
		v.report.Log = h.id
		v.chain = chain{0, genesis(h.id)}
		if v.before.Sequence > 0 && v.before.Log != h.id {
			v.fault("this is log %s; the head known before is of log %s", h.id, v.before.Log)
		}
	}
	switch {
	case h.first != s.first:
		v.fault("the segment's header says that it begins with sequence %d", h.first)
	case h.id != v.report.Log:
		v.fault("the segment is of another log, %s", h.id)
	case h.first > v.chain.seq+1:
		v.fault("lines %d to %d are missing", v.chain.seq+1, h.first-1)
	case h.first < v.chain.seq+1:
		v.fault("the log forks: lines %d to %d are there twice", h.first, v.chain.seq)
	case h.prev != v.chain.hash:
		v.fault("the segment does not follow the one before")
	}
}

// frames checks the frames of one segment. After a fault it goes on with the
// next whole frame.
func (v *verifier) frames(s *segment, b []byte, isLast bool) {
	signed := v.at // the end of the last signed frame
	var minT, maxT int64
	for v.at < int64(len(b)) {
		f, err := readFrame(b[v.at:])
		if err != nil {
			later, end, ok := laterFrame(b[v.at:])
			if !ok && isLast && s.packed == "" {
				break // the end of a log in use
			}
			v.fault("%v", err)
			if !ok {
				return
			}
			f, v.at = later, v.at+int64(end-later.size)
			v.chain = chain{f.seq - 1, v.chain.hash}
			f.hash = later.hash
			v.take(&f, s, &minT, &maxT, false)
		} else {
			v.take(&f, s, &minT, &maxT, true)
		}
		v.at += int64(f.size)
		if f.typ == frameHead || f.typ == frameSeal {
			signed = v.at
		}
	}
	if isLast {
		v.report.Unfinished += int64(len(b)) - signed
	} else if signed < v.at && len(v.report.Faults) == 0 {
		v.fault("lines at the segment's end are not signed")
	}
	if s.packed != "" && len(v.report.Faults) == 0 && (minT != s.minT || maxT != s.maxT) {
		v.fault("the times in the file's name are not those of its events")
	}
}

// take checks one whole frame and moves the chain behind it.
func (v *verifier) take(f *frame, s *segment, minT, maxT *int64, linked bool) {
	if v.sealed {
		v.fault("a line follows the end of the segment")
	}
	before := v.chain
	if linked && !v.chain.next(f) {
		v.fault("line %d does not follow the one before", f.seq)
	}
	v.chain = chain{f.seq, f.hash}
	if v.before.Sequence == f.seq {
		v.seen = v.before.Hash == f.hash
	}
	v.sealed = f.typ == frameSeal
	switch f.typ {
	case frameHead, frameSeal:
		if err := v.check(headText(v.report.Log, f.typ, before), f.payload); err != nil {
			v.fault("the signature of line %d is not valid", f.seq)
			return
		}
		v.report.Heads++
		v.report.Head = Head{v.report.Log, f.seq, f.hash}
		v.report.Events, v.report.From, v.report.To = v.events, v.from, v.to
		if v.head.ok && v.head.at.seq == before.seq {
			v.head.found = &before.hash
		}
	case frameEvent:
		v.event(f, minT, maxT)
	}
}

func (v *verifier) event(f *frame, minT, maxT *int64) {
	v.events++
	spool, seq, line, ok := readPayload(f.payload)
	if !ok {
		v.fault("line %d has no event", f.seq)
		return
	}
	e, err := Decode(line)
	if err != nil {
		v.fault("line %d is no event", f.seq)
		return
	}
	if spool != "" {
		if last := v.spools[spool]; last > 0 && seq != last+1 && v.gap != (gap{spool, last + 1, seq - 1}) {
			v.fault("line %d: event %d of spool %s follows its event %d", f.seq, seq, spool, last)
		}
		v.spools[spool] = seq
		v.gap = gap{}
	} else {
		v.gap = gapOf(e) // only the log itself tells gaps, and forgets
		for _, name := range forgottenOf(line) {
			delete(v.spools, name)
		}
	}
	t := segment{minT: *minT, maxT: *maxT}
	t.note(e.Time.UnixMilli())
	*minT, *maxT = t.minT, t.maxT
	if v.from.IsZero() || e.Time.Before(v.from) {
		v.from = e.Time
	}
	if e.Time.After(v.to) {
		v.to = e.Time
	}
}

// headFile is the copy of the newest head beside the segments.
func headFile(text, signature []byte) []byte {
	return fmt.Appendf(bytes.Clone(text), "signature %s\n", base64.StdEncoding.EncodeToString(signature))
}

// headCopy is what the head file says.
type headCopy struct {
	there, ok bool
	text, sig []byte
	at        chain
	found     *digest // the log's own hash at that place
}

// headFile checks that the log still holds the head that the file names.
func (v *verifier) headFile(segments int) {
	h := &v.head
	switch {
	case !h.there && segments > 0:
		v.fault("the head file is missing")
	case !h.there:
	case !h.ok:
		v.fault("the head file is damaged")
	case v.check(h.text, h.sig) != nil:
		v.fault("the signature of the head file is not valid")
	case h.found == nil:
		v.fault("the head file names sequence %d, which is no head of the log: its end is missing", h.at.seq)
	case *h.found != h.at.hash:
		v.fault("line %d is another than the head file says", h.at.seq)
	}
}

// parse reads the head file and refuses every other spelling of it.
func (h *headCopy) parse(b []byte) bool {
	i := bytes.Index(b, []byte("signature "))
	if i < 0 {
		return false
	}
	h.text = b[:i]
	var err error
	if h.sig, err = base64.StdEncoding.DecodeString(strings.TrimSuffix(string(b[i+len("signature "):]), "\n")); err != nil {
		return false
	}
	for _, line := range strings.Split(string(h.text), "\n") {
		name, value, _ := strings.Cut(line, " ")
		switch name {
		case "sequence":
			h.at.seq, err = strconv.ParseUint(value, 10, 64)
		case "hash":
			var sum []byte
			if sum, err = hex.DecodeString(value); len(sum) == len(h.at.hash) {
				h.at.hash = digest(sum)
			}
		}
		if err != nil {
			return false
		}
	}
	return bytes.Equal(headFile(h.text, h.sig), b)
}
