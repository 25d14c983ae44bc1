package audit

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/sallyport/sallyport"
)

// Ends says that an event is the end of what has begun.
func Ends(name string) bool {
	return strings.HasSuffix(name, ".end") || strings.HasSuffix(name, ".leave")
}

// admit refuses events for which there is no room. The ends of sessions that
// run have a reserve, so that what has begun is told to its end.
func (s *Spool) admit(size int64, name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lock == nil { // another process may own the directory
		return s.refusal(ErrClosed)
	}
	ends := Ends(name)
	if s.starved {
		s.feedLocked()
		if s.starved && !ends {
			return fullProblem(nil)
		}
	}
	limit := s.c.MaxBytes
	if ends {
		limit += endReserve
	}
	if s.bytes()+size > limit {
		if !s.full {
			s.full = true
			s.sayStoppedLocked("the spool is full")
		}
		return fullProblem(fmt.Errorf("%d bytes are spooled; %d are the most", s.bytes(), s.c.MaxBytes))
	}
	if s.full && !ends {
		s.full = false
		s.sayResumedLocked()
	}
	return nil
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
	if err := s.setBallast(); err != nil {
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

// setBallast fills the ballast file.
func (s *Spool) setBallast() error {
	if b, err := s.disk.Open(ballastName); err == nil {
		size, err := b.Size()
		if err = errors.Join(err, b.Close()); err == nil && size == s.c.Ballast {
			return nil
		}
	}
	if err := s.disk.Remove(ballastName); err != nil {
		return err
	}
	f, err := s.disk.Create(ballastName)
	if err != nil {
		return err
	}
	zeros := make([]byte, min(s.c.Ballast, 1<<20))
	for at := int64(0); at < s.c.Ballast && err == nil; at += int64(len(zeros)) {
		_, err = f.WriteAt(zeros[:min(int64(len(zeros)), s.c.Ballast-at)], at)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, s.disk.Remove(ballastName))
	}
	return nil
}
