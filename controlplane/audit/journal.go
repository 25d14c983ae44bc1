package audit

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
)

// When a journal writes: at once when the last commit is long ago, otherwise
// when one of these is reached. What nobody waits for, and the ends of sessions,
// come in groups of commitDelay. What somebody waits for, a session's start above all, comes after
// a pause: as many times what the last commit took as there were who waited for that,
// at most commitShare. A fast disk answers at once. A slow one is kept busy half of
// the time by starts that come one by one, which no pause would bring together, and
// a fifth by a crowd.
const (
	commitDelay = 10 * time.Millisecond
	commitPause = time.Millisecond // the least, also on the fastest disk
	commitShare = 4
	commitBytes = 256 << 10
	retryDelay  = time.Second // between attempts to write again after a failure
	maxPending  = 8 << 20     // bytes waiting in memory
	openedShare = 4           // a segment is at least so many times its opening
)

// ErrClosed says that an event came when the spool or the log was closed
// already: it was not taken.
var ErrClosed = errors.New("closed")

// entry is one record on its way to the disk.
type entry struct {
	typ     byte
	payload []byte
	wait    *waiter // nil: nobody waits
	patient bool    // who waits has the time of a group
	note    any     // the owner's, given back by committed
}

// waiter is told once how a commit ended.
type waiter struct {
	done chan struct{}
	err  error
}

// segment is one file of a journal.
type segment struct {
	name   string
	first  uint64
	last   uint64 // of the last durable frame; first-1 when there is none
	size   int64  // durable bytes
	opened int64  // bytes of its header and opening; 0 when it was found at the start
	f      file   // open while it is written, nil after
	packed string // name of the compressed file, "" while there is none
	minT   int64  // Unix milliseconds of its events; of packed ones only
	maxT   int64
}

// journal appends frames to segments in one directory and commits them in
// groups. One goroutine, run, owns the files; everything else is behind mu.
//
//	submit ─▶ pending ─▶ run: write, fsync ─▶ waiters
//	                        └ failure: waiters get it, nothing is acknowledged,
//	                          the file is never written to again; retried in
//	                          a new segment from the last durable frame
type journal struct {
	disk         disk
	magic        string
	segmentBytes int64
	log          *slog.Logger
	hooks        hooks

	mu           sync.Mutex
	pending      []entry
	pendingBytes int
	awaited      bool // somebody waits for something of pending, and is not patient
	timed        bool // run sleeps until pending is due, as it was when it looked
	failure      error
	closing      bool
	segments     []*segment // by first; the last may be open
	head         chain      // durable
	changed      chan struct{}

	id      uuid.UUID
	wake    chan struct{}
	stopped chan struct{}
	syncs   int // commits, for tests

	// Of the goroutine alone.
	last    time.Time     // of the last commit
	took    time.Duration // it
	waited  int           // who waited for it
	damaged bool          // the open segment must not be written to any more
}

// hooks are what a spool and a log do differently. They are called by the
// journal's goroutine.
type hooks struct {
	// opening adds frames at the start of a new segment.
	opening func(b []byte, c *chain) ([]byte, error)
	// closing adds frames at the end of a batch; seal says that the segment ends.
	closing func(b []byte, c *chain, seal bool) ([]byte, error)
	// committed is called with what is durable now and can be read.
	committed func(batch []entry)
	// failing is called when writing fails and before each new attempt; it may
	// free space and returns what to write first.
	failing func(err error) []entry
	// resumed is called when writing works again; it returns what to write next.
	resumed func() []entry
	// sealed is called when a segment has ended.
	sealed func(s *segment)
}

// start runs the journal from a state that was loaded.
func (j *journal) start() {
	j.wake = make(chan struct{}, 1)
	j.stopped = make(chan struct{})
	j.changed = make(chan struct{})
	go j.run()
}

// submit queues entries of one batch, which are written together. Beside others
// they are refused when more than so many bytes would wait.
func (j *journal) submit(entries []entry, most int) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	switch {
	case j.closing:
		return ErrClosed
	case j.failure != nil:
		return j.failure
	}
	size := 0
	for _, e := range entries {
		size += len(e.payload) + frameSize
	}
	if j.pendingBytes > 0 && j.pendingBytes+size > most {
		return errBehind
	}
	j.queueLocked(entries)
	return nil
}

// errBehind: the disk does not keep up.
var errBehind = errors.New("too much is waiting for the disk")

func (j *journal) queueLocked(entries []entry) {
	sooner := false
	for _, e := range entries {
		j.pendingBytes += len(e.payload) + frameSize
		sooner = sooner || e.wait != nil && !e.patient && !j.awaited
		j.awaited = j.awaited || sooner
	}
	j.pending = append(j.pending, entries...)
	// What joins a group that is due already wakes nobody: that would cost more
	// than to take the event.
	if !j.timed || sooner || j.pendingBytes >= commitBytes {
		j.nudge()
	}
}

func (j *journal) nudge() {
	select {
	case j.wake <- struct{}{}:
	default:
	}
}

// run is the journal's goroutine.
func (j *journal) run() {
	defer close(j.stopped)
	timer := time.NewTimer(time.Hour)
	timer.Stop()
	for {
		select {
		case <-j.wake:
		case <-timer.C:
		}
		wait, stop := j.due()
		if wait > 0 {
			timer.Reset(wait)
			continue
		}
		if wait == 0 {
			j.commit()
			j.nudge() // look again: more may have come
		}
		if stop {
			j.finish()
			return
		}
	}
}

// due returns how long to wait before the next commit: 0 for now, negative
// when there is nothing to do.
func (j *journal) due() (wait time.Duration, stop bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	defer func() { j.timed = wait > 0 }()
	since := time.Since(j.last)
	switch {
	case j.closing:
		if len(j.pending) > 0 {
			return 0, true
		}
		return -1, true
	case j.failure != nil:
		return max(retryDelay-since, 0), false
	case len(j.pending) == 0:
		return -1, false
	case j.pendingBytes >= commitBytes:
		return 0, false
	}
	return max(j.pauseLocked()-since, 0), false
}

// pauseLocked is how long after the last commit the next may come.
func (j *journal) pauseLocked() time.Duration {
	if !j.awaited {
		return commitDelay
	}
	share := time.Duration(min(max(j.waited, 1), commitShare))
	return min(max(share*j.took, commitPause), commitDelay)
}

// impatient is how many of a batch somebody waits for.
func impatient(batch []entry) (n int) {
	for _, e := range batch {
		if e.wait != nil && !e.patient {
			n++
		}
	}
	return n
}

// commit writes what is pending and tells those who wait.
func (j *journal) commit() {
	j.mu.Lock()
	batch, failure := j.pending, j.failure
	j.pending, j.pendingBytes, j.awaited = nil, 0, false
	j.mu.Unlock()
	began := time.Now()
	if failure != nil && j.hooks.failing != nil {
		batch = append(j.hooks.failing(failure), batch...)
	}
	s, size, c, err := j.write(batch)
	j.last = time.Now()
	j.took, j.waited = j.last.Sub(began), impatient(batch)
	if err != nil {
		j.fail(batch, failure, err)
		return
	}
	if failure != nil {
		j.log.Info("audit journal is written again", "sequence", c.seq)
		if j.hooks.resumed != nil {
			// Before anybody else may submit.
			more := j.hooks.resumed()
			j.mu.Lock()
			j.queueLocked(more)
			j.mu.Unlock()
		}
	}
	j.succeed(batch, s, size, c)
}

// write appends the batch to the open segment, or to a new one, and syncs it.
func (j *journal) write(batch []entry) (s *segment, size int64, c chain, err error) {
	s, c, err = j.writable()
	if err != nil || len(batch) == 0 && j.hooks.closing == nil {
		return s, sizeOf(s), c, err
	}
	var b []byte
	if s.last < s.first { // nothing in it yet
		if j.hooks.opening != nil {
			if b, err = j.hooks.opening(b, &c); err != nil {
				return s, 0, c, err
			}
		}
		s.opened = s.size + int64(len(b))
	}
	for _, e := range batch {
		b = c.append(b, e.typ, e.payload)
	}
	if j.hooks.closing != nil {
		if b, err = j.hooks.closing(b, &c, false); err != nil {
			return s, 0, c, err
		}
	}
	if err := writeSync(s.f, b, s.size); err != nil {
		j.damaged = true
		return s, 0, c, err
	}
	j.mu.Lock()
	j.syncs++
	j.mu.Unlock()
	return s, s.size + int64(len(b)), c, nil
}

func sizeOf(s *segment) int64 {
	if s == nil {
		return 0
	}
	return s.size
}

func writeSync(f file, b []byte, at int64) error {
	if _, err := f.WriteAt(b, at); err != nil {
		return err
	}
	return f.Sync()
}

// writable returns the open segment and the chain's end, after changing to a
// new one when the open one is full or damaged.
func (j *journal) writable() (*segment, chain, error) {
	j.mu.Lock()
	c := j.head
	var s *segment
	if n := len(j.segments); n > 0 && j.segments[n-1].f != nil {
		s = j.segments[n-1]
	}
	j.mu.Unlock()
	switch {
	case s != nil && j.damaged:
		if err := j.abandon(s); err != nil {
			return nil, c, err
		}
	case s != nil && s.size < max(j.segmentBytes, openedShare*s.opened):
		return s, c, nil
	case s != nil:
		if err := j.seal(s); err != nil {
			return nil, c, err
		}
	}
	j.mu.Lock()
	c = j.head
	j.mu.Unlock()
	s, err := j.create(c)
	return s, c, err
}

// abandon ends a segment whose last write failed. What stands behind the last
// commit is cut. The descriptor is not trusted again: after a failed fsync the
// kernel may take lost pages for written ones.
func (j *journal) abandon(s *segment) error {
	f, err := j.disk.Open(s.name)
	if err != nil {
		return err
	}
	err = f.Truncate(s.size)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return j.detach(s)
}

// detach closes the open segment; what it holds is durable already.
func (j *journal) detach(s *segment) error {
	old := s.f
	j.mu.Lock()
	s.f = nil
	empty := s.last < s.first
	if empty { // nothing was committed to it: it gives its name to the next
		j.segments = j.segments[:len(j.segments)-1]
	}
	j.mu.Unlock()
	j.damaged = false
	_ = old.Close() // its data is on the disk, or has been given up
	if empty {
		return j.disk.Remove(s.name)
	}
	if j.hooks.sealed != nil {
		j.hooks.sealed(s)
	}
	return nil
}

// seal ends a full segment.
func (j *journal) seal(s *segment) error {
	if j.hooks.closing != nil {
		j.mu.Lock()
		c := j.head
		j.mu.Unlock()
		b, err := j.hooks.closing(nil, &c, true)
		if err != nil {
			return err
		}
		if err := writeSync(s.f, b, s.size); err != nil {
			j.damaged = true
			return err
		}
		j.succeed(nil, s, s.size+int64(len(b)), c)
	}
	return j.detach(s)
}

// create makes the segment that follows the chain's end.
func (j *journal) create(c chain) (*segment, error) {
	s := &segment{name: segmentName(c.seq + 1), first: c.seq + 1, last: c.seq}
	h := header{id: j.id, first: s.first, prev: c.hash}
	b := h.append(nil, j.magic)
	// A file of that name can only be left from an attempt that failed before
	// its first commit.
	if err := j.disk.Remove(s.name); err != nil {
		return nil, err
	}
	f, err := j.disk.Create(s.name)
	if err != nil {
		return nil, err
	}
	err = writeSync(f, b, 0)
	if err == nil {
		err = j.disk.SyncDir()
	}
	if err != nil {
		return nil, errors.Join(err, f.Close(), j.disk.Remove(s.name))
	}
	s.f, s.size = f, int64(len(b))
	j.mu.Lock()
	j.segments = append(j.segments, s)
	j.mu.Unlock()
	return s, nil
}

// succeed makes a commit visible: first to readers, then to whoever asks what
// was taken. So what is acknowledged is found.
func (j *journal) succeed(batch []entry, s *segment, size int64, c chain) {
	j.mu.Lock()
	s.size, s.last = size, c.seq
	j.head = c
	j.failure = nil
	close(j.changed)
	j.changed = make(chan struct{})
	j.mu.Unlock()
	if j.hooks.committed != nil {
		j.hooks.committed(batch)
	}
	tell(batch, nil)
}

func tell(batch []entry, err error) {
	for i := range batch {
		w := batch[i].wait
		if w == nil || i+1 < len(batch) && batch[i+1].wait == w {
			continue // told with the last entry of its batch
		}
		w.err = err
		close(w.done)
	}
}

// fail tells those who wait, and keeps the rest for the next attempt: it was
// taken, and may still be written.
func (j *journal) fail(batch []entry, before, err error) {
	if before == nil {
		j.log.Error("audit journal cannot be written", "err", err)
	}
	keep := slices.DeleteFunc(slices.Clone(batch), func(e entry) bool { return e.wait != nil })
	j.mu.Lock()
	waiting := slices.DeleteFunc(slices.Clone(j.pending), func(e entry) bool { return e.wait == nil })
	rest := slices.DeleteFunc(j.pending, func(e entry) bool { return e.wait != nil })
	j.pending, j.pendingBytes, j.awaited = nil, 0, false
	j.failure = fmt.Errorf("the last write failed: %w", err)
	j.queueLocked(append(keep, rest...))
	j.mu.Unlock()
	tell(batch, err)
	tell(waiting, err)
}

// finish closes the open segment.
func (j *journal) finish() {
	j.mu.Lock()
	defer j.mu.Unlock()
	if n := len(j.segments); n > 0 && j.segments[n-1].f != nil {
		if err := j.segments[n-1].f.Close(); err != nil {
			j.log.Warn("audit segment was not closed", "segment", j.segments[n-1].name, "err", err)
		}
		j.segments[n-1].f = nil
	}
	tell(j.pending, ErrClosed)
	j.pending = nil
	close(j.changed)
}

// close writes what is pending and ends the goroutine.
func (j *journal) close() error {
	j.mu.Lock()
	already := j.closing
	j.closing = true
	j.nudge()
	j.mu.Unlock()
	<-j.stopped
	if already {
		return nil
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.failure
}

// read returns up to max bytes of frames from a durable place of a segment.
func (j *journal) read(s *segment, at int64, limit int) ([]byte, error) {
	j.mu.Lock()
	size := s.size
	j.mu.Unlock()
	n := min(int64(limit), size-at)
	if n <= 0 {
		return nil, io.EOF
	}
	f, err := j.disk.Open(s.name)
	if err != nil {
		return nil, err
	}
	b := make([]byte, n)
	_, err = f.ReadAt(b, at)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return b, errors.Join(err, f.Close())
}
