package audit

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/sallyport/sallyport"
)

// SpoolConfig says where a host keeps events until auth has them.
type SpoolConfig struct {
	Dir      string       // its own directory; made with mode 0700
	Host     string       // the host's UUID, the first part of the spool's id
	MaxBytes int64        // 0: 256 MiB
	Ballast  int64        // space kept for the last words when the disk is full; 0: 4 MiB
	Log      *slog.Logger // nil: nothing is logged

	disk func(dir string) (disk, error) // for tests
}

// Defaults and parts of a spool.
const (
	defaultMaxBytes = 256 << 20
	defaultBallast  = 4 << 20
	spoolSegment    = 8 << 20 // at most; an eighth of a small spool
	endReserve      = 1 << 20 // beyond MaxBytes, for the ends of sessions that run
	nextBytes       = 1 << 20 // of events in one answer of Next

	// behindPatience is how long an event waits for a disk that does not keep up.
	behindPatience = 10 * time.Second

	// longestPause is that of the largest event when it fills the spool. Pauses grow
	// with an event's size, and from half a spool on with what is in it. Who does one
	// thing after the other, as with a database, then fills a spool with 64 KiB a
	// second at most; a connection of an application or of Kubernetes does a hundred
	// at once, with small events.
	longestPause = time.Second

	ackName     = "acknowledged"
	idName      = "spool-id"
	ballastName = "ballast"
	asidePrefix = "damaged-"
)

// Record is one event of a spool: numbers start at 1 and leave no gap.
type Record struct {
	Sequence uint64
	JSON     []byte
}

// Spool holds a host's events on disk until auth has acknowledged them. All
// methods may be called concurrently.
type Spool struct {
	c    SpoolConfig
	disk disk
	lock io.Closer
	j    *journal
	ack  file

	mu      sync.Mutex
	acked   uint64
	full    bool      // more than MaxBytes
	starved bool      // the disk was full, and the ballast is not back
	tried   time.Time // of the last attempt to get the ballast back
	stopped bool      // "audit.stopped" has been written and not yet "audit.resumed"

	readMu sync.Mutex
	pos    position // where the last Next ended
}

// position is a place between two frames of a segment.
type position struct {
	s   *segment
	seq uint64 // of the frame before
	at  int64
}

// ProblemUnwritable is SpoolStatus.Problem when the disk takes nothing.
const ProblemUnwritable = "the spool cannot be written"

// SpoolStatus is for status pages and metrics.
type SpoolStatus struct {
	ID           string
	Sequence     uint64 // of the last durable event
	Acknowledged uint64
	Bytes        int64
	MaxBytes     int64
	Refusing     bool   // new sessions are refused
	Problem      string // why, for people
}

// OpenSpool opens or makes the spool in a directory and recovers what a crash
// left. An unfinished end is cut; what was changed is set aside and what can
// be read of it is spooled again.
func OpenSpool(c SpoolConfig) (*Spool, error) {
	if c.MaxBytes <= 0 {
		c.MaxBytes = defaultMaxBytes
	}
	if c.Ballast <= 0 {
		c.Ballast = defaultBallast
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.disk == nil {
		c.disk = newDisk
	}
	d, err := c.disk(c.Dir)
	if err != nil {
		return nil, unwritable(err)
	}
	lock, err := lockDir(c.Dir)
	if err != nil {
		return nil, err
	}
	s := &Spool{c: c, disk: d, lock: lock}
	if err := s.load(); err != nil {
		return nil, errors.Join(unwritable(err), lock.Close())
	}
	return s, nil
}

// unwritable is what a person reads when the spool's disk fails.
func unwritable(cause error) error {
	return &sallyport.Problem{Kind: sallyport.ErrUnavailable, Cause: cause,
		Fact: "audit spool cannot be written: new sessions are refused",
		Hint: "look at the disk that holds the data directory"}
}

func fullProblem(cause error) error {
	return &sallyport.Problem{Kind: sallyport.ErrExhausted, Cause: cause,
		Fact: "audit spool is full: new sessions are refused",
		Hint: "restore the connection to auth, or free space on the disk that holds the data directory"}
}

// load reads what is there and starts the journal.
func (s *Spool) load() error {
	id, err := s.readID()
	if err != nil {
		return err
	}
	if err := s.openAck(id); err != nil {
		return err
	}
	s.j = &journal{disk: s.disk, magic: spoolMagic, log: s.c.Log, id: id,
		segmentBytes: min(spoolSegment, max(s.c.MaxBytes/8, 4<<10))}
	s.j.hooks = hooks{failing: s.failing, resumed: s.resumed}
	salvage, err := s.loadSegments()
	if err != nil {
		return errors.Join(err, s.ack.Close())
	}
	if err := setBallast(s.disk, s.c.Ballast); err != nil {
		s.c.Log.Warn("no space for the audit spool's ballast", "err", err)
		s.starved = true
	}
	s.j.start()
	if len(salvage) > 0 {
		s.j.mu.Lock()
		s.j.queueLocked(salvage)
		s.j.mu.Unlock()
	}
	return nil
}

// readID reads the spool's UUID, or makes one.
func (s *Spool) readID() (uuid.UUID, error) {
	b, err := s.disk.Read(idName, 64)
	if err == nil {
		if id, err := uuid.Parse(strings.TrimSpace(string(b))); err == nil {
			return id, nil
		}
	} else if !missing(err) {
		return uuid.UUID{}, err
	}
	return s.makeID()
}

func (s *Spool) makeID() (uuid.UUID, error) {
	id, err := newID()
	if err != nil {
		return id, err
	}
	if err := replace(s.disk, idName, []byte(id.String()+"\n")); err != nil {
		return id, err
	}
	return id, s.disk.SyncDir()
}

// loadSegments finds the end of the chain. Segments that were changed are set
// aside; what is readable in them comes back to be spooled anew.
func (s *Spool) loadSegments() ([]entry, error) {
	segments, err := listSegments(s.disk)
	if err != nil {
		return nil, err
	}
	var damage error
	for i, seg := range segments {
		var prev *segment
		if i > 0 {
			prev = segments[i-1]
		}
		if damage, err = s.loadSegment(seg, prev, i == len(segments)-1); err != nil || damage != nil {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	if damage == nil && s.acked > s.j.head.seq && len(segments) > 0 {
		damage = errors.New("more was acknowledged than is there")
	}
	if damage != nil {
		return s.setAside(segments, damage)
	}
	if len(segments) == 0 {
		s.j.head = chain{s.acked, genesis(s.j.id)}
		return nil, nil
	}
	s.j.segments = segments
	s.acked = max(s.acked, segments[0].first-1)
	last := segments[len(segments)-1]
	last.f, err = s.disk.Open(last.name)
	return nil, err
}

// loadSegment checks one segment against the end of the one before.
func (s *Spool) loadSegment(seg, prev *segment, isLast bool) (damage, err error) {
	b, err := s.disk.Read(seg.name, maxSegment)
	if errors.Is(err, errTooLarge) {
		return err, nil
	}
	if err != nil {
		return nil, err
	}
	sc, fault := scanSegment(b, spoolMagic, nil)
	switch {
	case fault != nil && isLast && len(b) <= headerSize:
		// A segment that a crash left without its header holds nothing.
		s.c.Log.Warn("unfinished audit segment written anew", "segment", seg.name, "bytes", len(b))
		return nil, s.renew(seg, prev == nil)
	case fault != nil:
		return fault, nil
	case sc.header.id != s.j.id || sc.header.first != seg.first:
		return errors.New("the segment belongs to another spool"), nil
	case prev != nil && (sc.header.first != s.j.head.seq+1 || sc.header.prev != s.j.head.hash):
		return errors.New("the segment does not follow the one before"), nil
	case sc.fault != nil && (!isLast || !sc.torn(b)):
		return sc.fault, nil
	}
	if sc.good < int64(len(b)) {
		s.c.Log.Warn("unfinished end of the audit spool cut", "segment", seg.name,
			"bytes", int64(len(b))-sc.good, "sequence", sc.chain.seq)
		if err := cut(s.disk, seg.name, sc.good); err != nil {
			return nil, err
		}
	}
	seg.last, seg.size = sc.chain.seq, sc.good
	s.j.head = sc.chain
	return nil, nil
}

// renew writes the header of an empty last segment. When it is the only one,
// those before it were acknowledged and are gone.
func (s *Spool) renew(seg *segment, only bool) error {
	if only {
		s.j.head = chain{s.acked, genesis(s.j.id)}
	}
	c := s.j.head
	if err := s.disk.Remove(seg.name); err != nil {
		return err
	}
	seg.name, seg.first, seg.last = segmentName(c.seq+1), c.seq+1, c.seq
	f, err := s.disk.Create(seg.name)
	if err != nil {
		return err
	}
	b := (&header{id: s.j.id, first: seg.first, prev: c.hash}).append(nil, spoolMagic)
	seg.size = int64(len(b))
	return errors.Join(writeSync(f, b, 0), f.Close(), s.disk.SyncDir())
}

// setAside starts the spool again under a new id. The files stay, for whoever
// wants to know what happened; those of an earlier time go.
func (s *Spool) setAside(segments []*segment, damage error) ([]entry, error) {
	var lost []entry
	var size int
	for _, seg := range segments {
		b, err := s.disk.Read(seg.name, maxSegment)
		if err != nil {
			continue
		}
		for {
			f, end, ok := laterFrame(b)
			if !ok {
				break
			}
			b = b[end:]
			if f.typ == frameEvent && f.seq > s.acked && size < int(s.c.MaxBytes/2) {
				lost = append(lost, entry{typ: frameEvent, payload: append([]byte(nil), f.payload...)})
				size += f.size
			}
		}
	}
	if err := s.rename(segments); err != nil {
		return nil, err
	}
	id, err := s.makeID()
	if err != nil {
		return nil, err
	}
	old := s.j.id
	s.j.id, s.j.segments, s.acked = id, nil, 0
	s.j.head = chain{0, genesis(id)}
	s.c.Log.Error("audit spool was damaged and starts anew", "err", damage, "events_kept", len(lost),
		"old", old.String(), "new", id.String())
	note := sallyport.Event{Name: AuditRecovered, Code: AuditRecoveredCode, Fields: map[string]any{
		"error": damage.Error(), "spool": old.String(), "events_kept": int64(len(lost))}}
	lost = append([]entry{{typ: frameEvent, payload: s.encode(note)}}, lost...)
	return lost, s.writeAck(0)
}

func (s *Spool) rename(segments []*segment) error {
	entries, err := s.disk.List()
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), asidePrefix) {
			if err := s.disk.Remove(e.Name()); err != nil {
				return err
			}
		}
	}
	for _, seg := range segments {
		if err := s.disk.Rename(seg.name, asidePrefix+seg.name); err != nil {
			return err
		}
	}
	return s.disk.SyncDir()
}

// ID names the spool: "<host>/<UUID>".
func (s *Spool) ID() string { return s.c.Host + "/" + s.j.id.String() }

// encode completes an event and writes it as JSON.
func (s *Spool) encode(e sallyport.Event) []byte {
	return Encode(complete(e, s.c.Host))
}

// complete gives an event the time, the UUID and the host when it has none.
func complete(e sallyport.Event, host string) sallyport.Event {
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	if e.UID == "" {
		e.UID = uuid.NewString()
	}
	if e.ServerID == "" {
		e.ServerID = host
	}
	return e
}

// Emit takes an event. It returns once the event is in the spool; with durable
// after the commit that holds it, and an error means that it is not there. The
// error is a *sallyport.Problem of kind ErrExhausted or ErrUnavailable, and of
// ErrClosed when the spool has been closed.
func (s *Spool) Emit(ctx context.Context, e sallyport.Event, durable bool) error {
	c, err := s.Take(ctx, Line{e.Name, s.encode(e)}, durable)
	switch {
	case err != nil:
		return err
	case !durable:
		c.Pause(ctx)
		return nil
	}
	select {
	case <-c.Done():
		return c.Err()
	case <-ctx.Done():
		return &sallyport.Problem{Kind: sallyport.ErrUnavailable, Cause: ctx.Err(),
			Fact: "audit spool did not answer in time", Hint: "look at the disk that holds the data directory"}
	}
}

// Line is an encoded event.
type Line struct {
	Name string // of the event: the ends of sessions have a reserve
	JSON []byte // as Encode writes it
}

// LineOf completes an event of a host and encodes it.
func LineOf(e sallyport.Event, host string) Line { return Line{e.Name, Encode(complete(e, host))} }

// Commit is a line on its way to the disk.
type Commit struct {
	spool *Spool
	wait  *waiter
	pause time.Duration
}

// Take takes a line as Begin does, but while the disk is behind it waits, until ctx
// is done and for behindPatience at most.
func (s *Spool) Take(ctx context.Context, l Line, durable bool) (Commit, error) {
	c, err := s.Begin(l, durable)
	if errors.Is(err, errBehind) {
		return s.takeBehind(ctx, l, durable)
	}
	return c, err
}

// takeBehind tries until the disk has caught up.
func (s *Spool) takeBehind(ctx context.Context, l Line, durable bool) (c Commit, err error) {
	ctx, cancel := context.WithTimeout(ctx, behindPatience)
	defer cancel()
	for {
		s.j.mu.Lock()
		changed := s.j.changed
		s.j.mu.Unlock()
		if c, err = s.Begin(l, durable); !errors.Is(err, errBehind) {
			return c, err
		}
		retry := time.NewTimer(retryDelay) // a disk that fails changes nothing, and says so
		select {
		case <-changed:
		case <-retry.C:
		case <-ctx.Done():
			retry.Stop()
			return c, err
		}
		retry.Stop()
	}
}

// Pause waits when the spool is more than half full, longer the fuller it is, for
// longestPause at most and until ctx is done, unless the line is an end. So who does
// much in little time is slowed down while there still is room for what he does.
func (c Commit) Pause(ctx context.Context) {
	if c.pause <= 0 {
		return
	}
	timer := time.NewTimer(c.pause)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// Begin takes a line without waiting for anything. Lines are in the spool in
// the order in which they were taken. The Commit can be asked only with durable.
func (s *Spool) Begin(l Line, durable bool) (Commit, error) {
	used, err := s.admit(int64(len(l.JSON)+frameSize), l.Name)
	if err != nil {
		return Commit{}, err
	}
	most := maxPending
	c := Commit{spool: s}
	if Ends(l.Name) {
		most += endReserve
	} else {
		c.pause = s.pause(used, len(l.JSON))
	}
	if durable {
		c.wait = &waiter{done: make(chan struct{})}
	}
	if err := s.j.submit([]entry{{typ: frameEvent, payload: l.JSON, wait: c.wait, patient: Ends(l.Name)}}, most); err != nil {
		return Commit{}, s.refusal(err)
	}
	return c, nil
}

// Done is closed when the line is on the disk, or has been given up.
func (c Commit) Done() <-chan struct{} { return c.wait.done }

// Err is nil when the line is on the disk. It is for after Done.
func (c Commit) Err() error {
	if c.wait.err == nil {
		return nil
	}
	return c.spool.refusal(c.wait.err)
}

func (s *Spool) refusal(err error) error {
	if errors.Is(err, ErrClosed) {
		return &sallyport.Problem{Kind: sallyport.ErrUnavailable, Cause: err, Fact: "audit spool is closed", Hint: "try again in a moment"}
	}
	if errors.Is(err, errBehind) {
		return &sallyport.Problem{Kind: sallyport.ErrExhausted, Cause: err,
			Fact: "audit spool is too slow: new sessions are refused", Hint: "look at the disk that holds the data directory"}
	}
	if noSpace(err) {
		return fullProblem(err)
	}
	return unwritable(err)
}

// Acknowledgements are kept in a file of fixed size that is written in place,
// so that a full disk can be emptied. It need not be durable: what is sent
// twice is dropped by the log.
const ackSize = 8 + 16 + 4

func (s *Spool) openAck(id uuid.UUID) error {
	f, err := s.disk.Open(ackName)
	if missing(err) {
		if f, err = s.disk.Create(ackName); err == nil {
			_, err = f.WriteAt(make([]byte, ackSize), 0)
		}
	}
	if err != nil {
		return err
	}
	s.ack = f
	b := make([]byte, ackSize)
	if _, err := f.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
		return errors.Join(err, f.Close())
	}
	if crc32.Checksum(b[:ackSize-4], crcTable) == binary.LittleEndian.Uint32(b[ackSize-4:]) && [16]byte(b[8:24]) == id {
		s.acked = binary.LittleEndian.Uint64(b)
	}
	return nil
}

func (s *Spool) writeAck(seq uint64) error {
	b := binary.LittleEndian.AppendUint64(nil, seq)
	b = append(b, s.j.id[:]...)
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, crcTable))
	_, err := s.ack.WriteAt(b, 0)
	return err
}

// Acknowledge says that auth has everything up to the number; whole segments
// up to it are deleted.
func (s *Spool) Acknowledge(seq uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.j.mu.Lock()
	last := s.j.head.seq
	s.j.mu.Unlock()
	if seq > last {
		return &sallyport.Problem{Kind: sallyport.ErrInvalid,
			Fact: fmt.Sprintf("audit spool: %d is acknowledged and %d is the last", seq, last)}
	}
	if seq <= s.acked {
		return nil
	}
	if err := s.writeAck(seq); err != nil {
		return unwritable(err)
	}
	s.acked = seq
	return s.forget(seq)
}

// forget deletes closed segments that hold nothing after seq.
func (s *Spool) forget(seq uint64) error {
	s.j.mu.Lock()
	var gone []*segment
	for len(s.j.segments) > 0 && s.j.segments[0].f == nil && s.j.segments[0].last <= seq {
		gone = append(gone, s.j.segments[0])
		s.j.segments = s.j.segments[1:]
	}
	s.j.mu.Unlock()
	for _, seg := range gone {
		if err := s.disk.Remove(seg.name); err != nil {
			return unwritable(err)
		}
	}
	return nil
}

// Status tells how the spool is.
func (s *Spool) Status() SpoolStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := SpoolStatus{ID: s.ID(), Acknowledged: s.acked, Bytes: s.bytes(), MaxBytes: s.c.MaxBytes}
	s.j.mu.Lock()
	defer s.j.mu.Unlock()
	st.Sequence = s.j.head.seq
	switch {
	case s.j.failure != nil && !noSpace(s.j.failure):
		st.Problem = ProblemUnwritable
	case s.j.failure != nil || s.starved:
		st.Problem = "the disk is full"
	case s.full:
		st.Problem = "the spool is full"
	}
	st.Refusing = st.Problem != ""
	return st
}

// Close writes what is pending and closes the spool.
func (s *Spool) Close() error {
	err := s.j.close()
	if err != nil {
		err = unwritable(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lock == nil {
		return err
	}
	err = errors.Join(err, s.ack.Close(), s.lock.Close())
	s.lock = nil
	return err
}
