package audit

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"

	"github.com/sallyport/sallyport"
)

// Ends says that an event is the end of what has begun.
func Ends(name string) bool {
	return strings.HasSuffix(name, ".end") || strings.HasSuffix(name, ".leave")
}

// admit refuses events for which there is no room. The ends of sessions that
// run have a reserve, so that what has begun is told to its end. used is what the
// spool takes with this one.
func (s *Spool) admit(size int64, name string) (used int64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lock == nil { // another process may own the directory
		return 0, s.refusal(ErrClosed)
	}
	ends := Ends(name)
	if s.starved {
		s.feedLocked()
		if s.starved && !ends {
			return 0, fullProblem(nil)
		}
	}
	limit := s.c.MaxBytes
	if ends {
		limit += endReserve
	}
	used = s.bytes() + size
	if used > limit {
		if !s.full {
			s.full = true
			s.sayStoppedLocked("the spool is full")
		}
		return 0, fullProblem(fmt.Errorf("%d bytes are spooled; %d are the most", used-size, s.c.MaxBytes))
	}
	if s.full && !ends {
		s.full = false
		s.sayResumedLocked()
	}
	return used, nil
}

// pause is how long who made an event of so many bytes should wait before he goes on.
func (s *Spool) pause(used int64, size int) time.Duration {
	half := s.c.MaxBytes / 2
	if used <= half {
		return 0
	}
	filled := float64(used-half) / float64(s.c.MaxBytes-half)
	return time.Duration(float64(longestPause) * filled * float64(size) / MaxEvent)
}

// bytes is what the spool takes on the disk and will take.
func (s *Spool) bytes() int64 {
	s.j.mu.Lock()
	defer s.j.mu.Unlock()
	n := int64(s.j.pendingBytes)
	for _, seg := range s.j.segments {
		n += seg.size
	}
	return n
}

func (s *Spool) sayStoppedLocked(why string) {
	if s.stopped {
		return
	}
	s.stopped = true
	s.c.Log.Error("audit stopped: new sessions are refused", "reason", why)
	s.say(s.stoppedEvent(why))
}

func (s *Spool) stoppedEvent(why string) sallyport.Event {
	return sallyport.Event{Name: AuditStopped, Code: AuditStoppedCode, Fields: map[string]any{"reason": why}}
}

func (s *Spool) sayResumedLocked() {
	if !s.stopped {
		return
	}
	s.stopped = false
	s.c.Log.Info("audit resumed: new sessions are taken again")
	s.say(sallyport.Event{Name: AuditResumed, Code: AuditResumedCode})
}

// say queues an event of the spool's own, past every limit.
func (s *Spool) say(e sallyport.Event) {
	s.j.mu.Lock()
	defer s.j.mu.Unlock()
	if !s.j.closing {
		s.j.queueLocked([]entry{{typ: frameEvent, payload: s.encode(e)}})
	}
}

// failing is called by the journal before each attempt to write again. A full
// disk gets the ballast's space back for the last words.
func (s *Spool) failing(err error) []entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	if noSpace(err) && !s.starved {
		s.starved, s.tried = true, time.Now()
		if err := s.disk.Remove(ballastName); err != nil {
			s.c.Log.Warn("audit ballast was not released", "err", err)
		}
	}
	if s.stopped {
		return nil
	}
	s.stopped = true
	s.c.Log.Error("audit stopped: new sessions are refused", "reason", "the spool cannot be written")
	return []entry{{typ: frameEvent, payload: s.encode(s.stoppedEvent("the spool cannot be written"))}}
}

// resumed is called by the journal when a write went well after a failure.
func (s *Spool) resumed() []entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.starved || s.full || !s.stopped {
		return nil
	}
	s.stopped = false
	return []entry{{typ: frameEvent, payload: s.encode(sallyport.Event{Name: AuditResumed, Code: AuditResumedCode})}}
}

// feedLocked tries to get the ballast back, which is the sign that there is
// space again.
func (s *Spool) feedLocked() {
	if time.Since(s.tried) < retryDelay {
		return
	}
	s.tried = time.Now()
	if err := setBallast(s.disk, s.c.Ballast); err != nil {
		return
	}
	s.starved = false
	s.j.mu.Lock()
	failed := s.j.failure != nil
	s.j.mu.Unlock()
	if !failed && !s.full {
		s.sayResumedLocked()
	}
}

// failing is called by the log's journal before each attempt to write again.
// What a full disk gets back then is for auth's own events, without which
// nobody could be locked and nothing changed: hosts' are refused from then on.
func (l *Log) failing(err error) []entry {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.starved || !noSpace(err) {
		return nil
	}
	l.starved, l.tried = true, time.Now()
	if err := l.disk.Remove(ballastName); err != nil {
		l.c.Log.Warn("audit ballast was not released", "err", err)
	}
	l.c.Log.Error("audit stopped: hosts' events are refused", "reason", "the audit log's disk is full")
	return []entry{l.stopped()}
}

func (l *Log) stopped() entry {
	return l.own(sallyport.Event{Name: AuditStopped, Code: AuditStoppedCode,
		Fields: map[string]any{"reason": "the audit log's disk is full: hosts' events are refused"}}, nil)
}

// ballast is made, or found, when the log is opened. On a disk that is full but for
// it, it is given up: the log could not be opened otherwise.
func (l *Log) ballast() error {
	if free, err := l.disk.Free(); err == nil && free < 2*l.c.Ballast-ballastSize(l.disk) {
		if err := l.disk.Remove(ballastName); err != nil {
			return err
		}
		return syscall.ENOSPC
	}
	return setBallast(l.disk, l.c.Ballast)
}

// ballastSize is 0 where there is none.
func ballastSize(d disk) int64 {
	b, err := d.Open(ballastName)
	if err != nil {
		return 0
	}
	size, err := b.Size()
	if errors.Join(err, b.Close()) != nil {
		return 0
	}
	return size
}

// fed refuses hosts' events while there is no ballast, and tries to get it back.
func (l *Log) fed() error {
	l.mu.Lock()
	starved, due := l.starved, time.Since(l.tried) >= retryDelay
	if due {
		l.tried = time.Now()
	}
	l.mu.Unlock()
	switch {
	case !starved:
		return nil
	case !due || !l.feed():
		return unwritableLog(syscall.ENOSPC)
	}
	l.c.Log.Info("audit resumed: hosts' events are taken again")
	return l.Emit(context.Background(), sallyport.Event{Name: AuditResumed, Code: AuditResumedCode}, false)
}

// feed makes the ballast again. It is tried only where as much stays free: what
// is being filled would be missing to auth's own events at that moment.
func (l *Log) feed() bool {
	if free, err := l.disk.Free(); err != nil || free < 2*l.c.Ballast {
		return false
	}
	if err := setBallast(l.disk, l.c.Ballast); err != nil {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.starved = false
	return true
}

// setBallast fills the ballast file.
func setBallast(d disk, bytes int64) error {
	if ballastSize(d) == bytes && bytes > 0 {
		return nil
	}
	if err := d.Remove(ballastName); err != nil {
		return err
	}
	f, err := d.Create(ballastName)
	if err != nil {
		return err
	}
	zeros := make([]byte, min(bytes, 1<<20))
	for at := int64(0); at < bytes && err == nil; at += int64(len(zeros)) {
		_, err = f.WriteAt(zeros[:min(int64(len(zeros)), bytes-at)], at)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, d.Remove(ballastName))
	}
	return nil
}
