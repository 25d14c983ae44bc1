package audit

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/sallyport/sallyport"
)

// LogConfig says where the control plane keeps the log for good.
type LogConfig struct {
	Dir          string // its own directory; made with mode 0700
	Host         string // server_id of the control plane's own events
	SegmentBytes int64  // 0: 16 MiB
	Ballast      int64  // bytes kept for auth's own events when the disk is full; 0: 16 MiB
	// Sign signs a head of the log; Verify checks it. It is called at each commit.
	Sign func(head []byte) (signature []byte, err error)
	Log  *slog.Logger // nil: nothing is logged

	disk      func(dir string) (disk, error) // for tests
	maxSpools int                            // for tests; 0: maxSpools
}

// Bounds of a log.
const (
	logSegment    = 16 << 20
	logBallast    = 16 << 20 // some ten thousand changes
	maxSpools     = 200_000  // of all hosts that ever were; the oldest are forgotten
	maxHostSpools = 16       // of one host, which has one, and another after each damage
	maxSpoolID    = 256
	maxBatch      = 10_000
	maxBatchBytes = 16 << 20
	ownPending    = 1 << 20     // of the queue: hosts that send a backlog must not keep auth's own events out
	headDelay     = time.Second // between writes of the head file
	headName      = "head"
	cutPrefix     = "cut-"
	stateEvents   = "sallyport audit state 1"
)

// Log is the append-only log of a control plane. All methods may be called
// concurrently.
type Log struct {
	c    LogConfig
	disk disk
	lock io.Closer
	j    *journal
	pack *packer

	searches chan struct{} // has one for each Search under way

	mu      sync.Mutex
	spools  map[string]*place  // what is durable of each
	hosts   map[string]*sender // by the part of a spool's name before the slash
	closed  bool
	starved bool      // the disk was full, and the ballast is not back
	tried   time.Time // of the last attempt to get the ballast back

	headTime time.Time // of the last head file; of the journal's goroutine
	nextHead []byte    // of the commit under way; of the same
	lastHead []byte    // durable and not yet in the head file; of the same
}

// place is how far a spool has come. It is under Log.mu.
type place struct {
	seq  uint64
	hash digest // of the last event's JSON as it came
	at   uint64 // the log's own number when that came, or a little later
}

// sender is a host that has spools here.
type sender struct {
	mu     sync.Mutex // held while a batch of it is under way
	spools []string   // those with a place; under Log.mu
}

// hostOf is the part of a spool's name that says whose it is.
func hostOf(spool string) string {
	host, _, _ := strings.Cut(spool, "/")
	return host
}

// origin says where an event came from; committed takes it over.
type origin struct {
	spool string
	seq   uint64
	hash  digest
}

// forgotten are spools whose places an event gives up; committed takes it over.
type forgotten []string

// OpenLog opens or makes the log in a directory and recovers what a crash
// left: what stands behind the last signed head was never acknowledged and is
// cut. A segment that was changed stays as it is, for Verify to report, and the
// log goes on in a new one.
func OpenLog(c LogConfig) (*Log, error) {
	if c.Sign == nil {
		return nil, &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: "audit log: no way to sign heads was given"}
	}
	if c.SegmentBytes <= 0 {
		c.SegmentBytes = logSegment
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Ballast <= 0 {
		c.Ballast = logBallast
	}
	if c.maxSpools == 0 {
		c.maxSpools = maxSpools
	}
	if c.disk == nil {
		c.disk = newDisk
	}
	d, err := c.disk(c.Dir)
	if err != nil {
		return nil, unwritableLog(err)
	}
	lock, err := lockDir(c.Dir)
	if err != nil {
		return nil, err
	}
	l := &Log{c: c, disk: d, lock: lock, spools: make(map[string]*place), hosts: make(map[string]*sender), searches: make(chan struct{}, searchesAtOnce)}
	if err := l.load(); err != nil {
		return nil, errors.Join(unwritableLog(err), lock.Close())
	}
	return l, nil
}

func unwritableLog(cause error) error {
	var p *sallyport.Problem
	if errors.As(cause, &p) {
		return cause
	}
	kind, fact := sallyport.ErrUnavailable, "audit log cannot be written"
	if noSpace(cause) {
		kind, fact = sallyport.ErrExhausted, "audit log has no space left"
	}
	return &sallyport.Problem{Kind: kind, Cause: cause, Fact: fact, Hint: "look at the disk that holds the control plane's data directory"}
}

// Payload of an event's frame: spool, its number there, and the line.
func eventPayload(spool string, seq uint64, line []byte) []byte {
	b := binary.AppendUvarint(make([]byte, 0, len(spool)+len(line)+12), uint64(len(spool)))
	b = append(b, spool...)
	b = binary.AppendUvarint(b, seq)
	return append(b, line...)
}

func readPayload(b []byte) (spool string, seq uint64, line []byte, ok bool) {
	n, k := binary.Uvarint(b)
	if k <= 0 || n > maxSpoolID || n > uint64(len(b)-k) {
		return "", 0, nil, false
	}
	spool, b = string(b[k:k+int(n)]), b[k+int(n):]
	seq, k = binary.Uvarint(b)
	if k <= 0 {
		return "", 0, nil, false
	}
	return spool, seq, b[k:], true
}

// state is the payload of a state frame.
type state struct {
	What   string                `json:"what"`
	Spools map[string]statePlace `json:"spools"`
}

type statePlace struct {
	Sequence uint64 `json:"sequence"`
	Hash     []byte `json:"hash"`
	At       uint64 `json:"at,omitempty"` // of the log; 0 in what earlier versions wrote
}

// opening puts the state of all spools at the start of a segment, so that one
// segment is enough to go on.
func (l *Log) opening(b []byte, c *chain) ([]byte, error) {
	st := state{What: stateEvents, Spools: make(map[string]statePlace)}
	l.mu.Lock()
	for name, p := range l.spools {
		if p.seq > 0 {
			st.Spools[name] = statePlace{p.seq, bytes.Clone(p.hash[:]), p.at}
		}
	}
	l.mu.Unlock()
	payload, err := json.Marshal(st)
	if err != nil {
		return b, err
	}
	return c.append(b, frameState, payload), nil
}

// headText is what is signed: the log, and the chain before the head's frame.
func headText(id uuid.UUID, typ byte, c chain) []byte {
	what := "head"
	if typ == frameSeal {
		what = "seal"
	}
	return fmt.Appendf(nil, "sallyport audit %s 1\nlog %s\nsequence %d\nhash %x\n", what, id, c.seq, c.hash)
}

// closing signs the chain at the end of a batch or of a segment.
func (l *Log) closing(b []byte, c *chain, seal bool) ([]byte, error) {
	typ := byte(frameHead)
	if seal {
		typ = frameSeal
	}
	text := headText(l.j.id, typ, *c)
	sig, err := l.c.Sign(text)
	if err != nil {
		return b, fmt.Errorf("sign the head: %w", err)
	}
	l.nextHead = headFile(text, sig)
	return c.append(b, typ, sig), nil
}

// committed takes over what is durable, and keeps a copy of the newest head
// beside the segments: it shows when the end of the log is cut.
func (l *Log) committed(batch []entry) {
	at := l.Head().Sequence
	l.mu.Lock()
	for i := range batch {
		switch note := batch[i].note.(type) {
		case origin:
			*l.placeLocked(note.spool) = place{note.seq, note.hash, at}
		case forgotten:
			l.forgetLocked(note)
		}
	}
	l.mu.Unlock()
	l.lastHead = l.nextHead
	if time.Since(l.headTime) >= headDelay {
		l.writeHead()
	}
}

// note widens the times that a segment covers.
func (s *segment) note(ms int64) {
	ms = max(ms, 1) // 0 is none
	if s.minT == 0 || ms < s.minT {
		s.minT = ms
	}
	s.maxT = max(s.maxT, ms)
}

// noteFrame notes the time of an event's frame.
func (s *segment) noteFrame(f *frame) {
	if f.typ != frameEvent {
		return
	}
	if _, _, line, ok := readPayload(f.payload); ok {
		if e, err := Decode(line); err == nil {
			s.note(e.Time.UnixMilli())
		}
	}
}

func (l *Log) writeHead() {
	if l.lastHead == nil {
		return
	}
	if err := replace(l.disk, headName, l.lastHead); err != nil {
		l.c.Log.Warn("audit log's head file was not written", "err", err)
		return
	}
	l.headTime, l.lastHead = time.Now(), nil
}

// Acknowledged is the number of a spool's last durable event, 0 when the log
// has none of it.
func (l *Log) Acknowledged(spool string) uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if p := l.spools[spool]; p != nil {
		return p.seq
	}
	return 0
}

// Append adds a spool's events in order and returns, after its own commit, the
// number up to which it has them. Events that it has already are passed over;
// another one with the number of the last is refused with ErrConflict. What is
// missing before the first is told in the log by AuditGap. The caller has
// checked that the spool belongs to whoever sends.
func (l *Log) Append(ctx context.Context, spool string, records []Record) (acknowledged uint64, err error) {
	if err := checkBatch(spool, records); err != nil {
		return l.Acknowledged(spool), err
	}
	if err := l.fed(); err != nil {
		return l.Acknowledged(spool), err
	}
	h := l.sender(spool)
	h.mu.Lock()
	defer h.mu.Unlock()
	p := l.place(spool)
	batch, err := l.batch(spool, p.seq, p.hash, records)
	if err != nil || len(batch) == 0 {
		return p.seq, err
	}
	if p.seq == 0 {
		note, release, err := l.room(h)
		if err != nil {
			return 0, err
		}
		defer release()
		batch = append(l.forget(note, batch[0].wait), batch...)
	}
	// The host's places are held until the commit has ended, whatever the
	// caller does meanwhile: the next batch must know how it went.
	if err := l.commit(batch, maxPending); err != nil {
		return p.seq, err
	}
	return l.Acknowledged(spool), ctx.Err()
}

func checkBatch(spool string, records []Record) error {
	bad := func(format string, args ...any) error {
		return &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: "audit batch: " + fmt.Sprintf(format, args...)}
	}
	if spool == "" || len(spool) > maxSpoolID || slices.ContainsFunc([]byte(spool), func(b byte) bool { return b <= ' ' || b > '~' }) {
		return bad("the spool's name is not valid")
	}
	if len(records) > maxBatch {
		return bad("%d events; %d are the most", len(records), maxBatch)
	}
	size := 0
	for i, r := range records {
		if size += len(r.JSON); size > maxBatchBytes {
			return bad("more than %d bytes", maxBatchBytes)
		}
		switch {
		case len(r.JSON) > 2*MaxEvent:
			return bad("event %d has %d bytes; %d are the most", r.Sequence, len(r.JSON), 2*MaxEvent)
		case r.Sequence > math.MaxInt64: // what a gap can tell
			return bad("the number %d is too large", r.Sequence)
		case r.Sequence == 0 || i > 0 && r.Sequence != records[i-1].Sequence+1:
			return bad("event %d does not follow the one before", r.Sequence)
		}
	}
	return nil
}

// gap is what of a spool is not in this log.
type gap struct {
	spool    string
	from, to uint64
}

func (g gap) event() sallyport.Event {
	return sallyport.Event{Name: AuditGap, Code: AuditGapCode, Fields: map[string]any{
		"spool": g.spool, "from": int64(g.from), "to": int64(g.to), "missing": int64(g.to - g.from + 1)}}
}

// gapOf reads what event has made, the zero gap when e is another. Before gaps
// within a spool were told, the event had no numbers: such a gap is at the start.
func gapOf(e sallyport.Event) gap {
	if e.Name != AuditGap {
		return gap{}
	}
	spool, _ := e.Fields["spool"].(string)
	from, _ := e.Fields["from"].(int64)
	to, _ := e.Fields["to"].(int64)
	missing, _ := e.Fields["missing"].(int64)
	if from == 0 && to == 0 {
		from, to = 1, missing
	}
	return gap{spool, uint64(from), uint64(to)}
}

// batch makes entries of what is new.
func (l *Log) batch(spool string, seq uint64, hash digest, records []Record) ([]entry, error) {
	var out []entry
	wait := &waiter{done: make(chan struct{})}
	for _, r := range records {
		sum := sha256.Sum256(r.JSON)
		switch {
		case r.Sequence < seq:
			continue
		case r.Sequence == seq:
			if sum != hash && hash != (digest{}) {
				return nil, &sallyport.Problem{Kind: sallyport.ErrConflict,
					Fact: fmt.Sprintf("audit spool %s: event %d is another than the one received before", spool, seq),
					Hint: "two hosts may run with copies of one data directory; remove the spool of one"}
			}
			continue
		case r.Sequence > seq+1:
			// Hosts send in order and forget only what was acknowledged: by this
			// log before it was restored, or by another one. To refuse would bring
			// nothing back, and stop the host for good. Verify wants the gap to be
			// told right before the event that follows it.
			l.c.Log.Warn("audit events are missing", "spool", spool, "from", seq+1, "to", r.Sequence-1)
			out = append(out, l.own(gap{spool, seq + 1, r.Sequence - 1}.event(), wait))
		}
		seq, hash = r.Sequence, sum
		line := l.canonical(spool, r.JSON)
		out = append(out, entry{typ: frameEvent, payload: eventPayload(spool, r.Sequence, line), wait: wait,
			note: origin{spool, r.Sequence, sum}})
	}
	return out, nil
}

// canonical writes a line as this version would: a host is trusted to say what
// happened, not to keep to the form. What is no event is kept as the text of one.
func (l *Log) canonical(spool string, line []byte) []byte {
	e, err := Decode(line)
	if err != nil {
		e = complete(sallyport.Event{Name: AuditUnreadable, Code: AuditUnreadableCode,
			Fields: map[string]any{"spool": spool, "line": string(line), "error": err.Error()}}, l.c.Host)
	}
	return Encode(e)
}

func (l *Log) own(e sallyport.Event, wait *waiter) entry {
	e = complete(e, l.c.Host)
	return entry{typ: frameEvent, payload: eventPayload("", 0, Encode(e)), wait: wait}
}

// commit submits a batch with one waiter, if at most so many bytes wait then,
// and waits for it.
func (l *Log) commit(batch []entry, most int) error {
	if err := l.j.submit(batch, most); err != nil {
		return unwritableLog(err)
	}
	w := batch[0].wait
	<-w.done
	if w.err != nil {
		return unwritableLog(w.err)
	}
	return nil
}

// Emit adds an event of the control plane itself, as Spool.Emit does.
func (l *Log) Emit(ctx context.Context, e sallyport.Event, durable bool) error {
	var wait *waiter
	if durable {
		wait = &waiter{done: make(chan struct{})}
	}
	if err := l.j.submit([]entry{l.own(e, wait)}, maxPending+ownPending); err != nil {
		return unwritableLog(err)
	}
	if !durable {
		return nil
	}
	select {
	case <-wait.done:
		if wait.err != nil {
			return unwritableLog(wait.err)
		}
		return nil
	case <-ctx.Done():
		return unwritableLog(ctx.Err())
	}
}

// Head is the newest durable place of the log. Kept elsewhere, it shows later
// whether the log still holds what it held.
type Head struct {
	Log      uuid.UUID
	Sequence uint64
	Hash     [32]byte
}

// Head returns the newest durable place.
func (l *Log) Head() Head {
	l.j.mu.Lock()
	defer l.j.mu.Unlock()
	return Head{l.j.id, l.j.head.seq, l.j.head.hash}
}

// Spools lists what is acknowledged of each spool.
func (l *Log) Spools() map[string]uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make(map[string]uint64, len(l.spools))
	for name, p := range maps.All(l.spools) {
		if p.seq > 0 {
			out[name] = p.seq
		}
	}
	return out
}

// Close writes what is pending and closes the log.
func (l *Log) Close() error {
	err := l.j.close()
	if err != nil {
		err = unwritableLog(err)
	}
	l.mu.Lock()
	closed := l.closed
	l.closed = true
	l.mu.Unlock()
	if closed {
		return err
	}
	l.pack.stop()
	l.writeHead()
	return errors.Join(err, l.lock.Close())
}
