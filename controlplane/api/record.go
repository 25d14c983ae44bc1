package api

import (
	"context"
	"errors"
	"maps"
	"time"

	"github.com/google/uuid"

	"github.com/sallyport/sallyport"
)

// recordTimeout bounds the record of what has happened already: that its
// caller is gone must not keep it out of the log.
const recordTimeout = 10 * time.Second

// The order of record and change, for every method that changes something:
//
//   - What is made in memory and handed out (certificates) is recorded before
//     it is handed out. Without the record it is dropped.
//   - What is stored (users, roles, locks, tokens) is recorded before it is
//     stored (change). Without the record nothing is stored. When the store then
//     refuses, a second record says so.
//
// So everything that happened is in the log, and a full disk of the log stops
// all changes.
//
// Two things are handed out again and again and recorded once. An agent's
// certificates for what it serves are recorded as its assignment, when that
// changes (assign); those that follow twice a day say the same for another week.
// What an application is told about a visitor (IssueAppToken) is good for minutes,
// for that application, and anew at each of them: the agent has recorded the
// visitor's session there (app.session.start) before the first.

// emit records what a caller did, durably.
func (s *Server) emit(ctx context.Context, c Caller, e sallyport.Event) error {
	e.Cluster = s.cfg.CA.Cluster()
	if e.User == "" {
		e.User = c.name()
	}
	if e.UserKind == "" {
		e.UserKind = c.userKind()
	}
	if c.Addr.IsValid() {
		e.Addr = c.Addr.String()
	}
	return s.cfg.Audit.Emit(ctx, e, true)
}

// change records e, then makes the change. Its error is the record's or the
// change's: after the former nothing was changed.
func (s *Server) change(ctx context.Context, e sallyport.Event, do func() error) error {
	e.UID = uuid.NewString()
	if err := s.emitBefore(ctx, e); err != nil {
		return err
	}
	err := do()
	if err == nil {
		return nil
	}
	return errors.Join(err, s.emitUndone(ctx, e, err))
}

// emitBefore records what is about to be done. A caller who goes while the record
// is being made would leave one of what was not done: nothing is begun for a
// caller who has gone, and then it is waited for. Where the wait ends all the
// same the record may still be made, and a second one follows it.
func (s *Server) emitBefore(ctx context.Context, e sallyport.Event) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	waits, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTimeout)
	defer cancel()
	err := s.emit(waits, callerOf(ctx), e)
	if err != nil && waits.Err() != nil {
		return errors.Join(err, s.emitUndone(ctx, e, err))
	}
	return err
}

// emitUndone says that the change of a recorded event was not made. After an
// error of kind ErrUnavailable that is not sure, and the text says which it was.
func (s *Server) emitUndone(ctx context.Context, e sallyport.Event, cause error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTimeout)
	defer cancel()
	no := false
	e.Fields = maps.Clone(e.Fields)
	if e.Fields == nil {
		e.Fields = map[string]any{}
	}
	e.Fields["undone_uid"], e.Fields["error"] = e.UID, factOf(cause)
	e.UID, e.Success = "", &no
	return s.emit(ctx, callerOf(ctx), e)
}

// emitAttempt records something that was refused. source is who or where it
// came from: of one source only so many are recorded, so that nobody fills the
// log by being refused. The next record says how many were left out.
func (s *Server) emitAttempt(ctx context.Context, c Caller, source string, e sallyport.Event, cause error) error {
	ok, left := s.quotas.take(source, s.cfg.Now())
	if !ok {
		return nil
	}
	if e.Fields == nil {
		e.Fields = map[string]any{}
	}
	e.Fields["error"] = factOf(cause)
	if left > 0 {
		e.Fields["left_out"] = int64(left)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTimeout)
	defer cancel()
	return s.emit(ctx, c, e)
}

// inForce makes what was stored count at once, here and at all hosts.
func (s *Server) inForce(ctx context.Context) error {
	err := s.state.reload(ctx, false)
	if err == nil {
		return nil
	}
	mark(s.state.dirty)
	s.cfg.Log.Error("a change is stored but not in force", "error", err)
	return &sallyport.Problem{Kind: sallyport.ErrUnavailable, Fact: "the change is stored and recorded, but not in force yet",
		Hint: "auth tries again by itself; its log has more", Cause: err}
}
