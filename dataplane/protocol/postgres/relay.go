package postgres

import (
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/database"
)

// relay passes messages between a client and the database of one session.
//
//	client ──▶ up:   splitter ─▶ audit ─▶ ──▶ database
//	client ◀── down: ◀──────── tracker ◀──── database
//
// Nothing but PassDown writes to the client before that has returned, so an
// ErrorResponse of ours never lands inside of a message.
type relay struct {
	database.Relay
	live *live
	db   *backend

	split splitter // up's
	track tracker  // down's until it has ended

	terminated atomic.Bool // the client said Terminate or ended its half
}

func newRelay(l *live, db *backend) *relay {
	return &relay{
		Relay: database.Relay{
			Client: l.client, Server: db.conn,
			Farewell: l.bounds.Farewell, Linger: l.bounds.Linger, Longest: l.sess.Options.ClientIdleTimeout,
		},
		live:  l,
		db:    db,
		split: splitter{limit: l.bounds.Message, Buffer: database.Buffer{Rooms: &l.server.rooms, User: l.sess.Identity.Name}},
		track: tracker{last: msgReadyForQuery},
	}
}

// PassUp passes the client's messages on, each after its event.
func (r *relay) PassUp() error {
	audit := newAuditor(r.live)
	defer r.split.Drop()
	err := r.copyUp(audit)
	if l, ok := errors.AsType[*database.Lost](err); ok && !l.ByServer() && l.InOrder() {
		r.terminated.Store(true)
		database.CloseWrite(r.Server)
	}
	return err
}

func (r *relay) copyUp(audit *auditor) error {
	for {
		space := r.split.Space()
		if len(space) == 0 {
			bad := tooManyLong()
			audit.malformed(bad, r.split.Unpassed())
			return bad
		}
		n, readErr := r.Client.Read(space)
		if n > 0 {
			r.Received(n)
			pass, err := r.split.take(n, audit.see)
			if err != nil {
				if bad, ok := errors.AsType[*refusal](err); ok {
					audit.malformed(bad, r.split.Unpassed())
				}
				return err
			}
			if err := r.Forward(pass); err != nil {
				return err
			}
			if audit.terminated {
				return database.LostClient(io.EOF)
			}
		}
		if readErr != nil {
			return database.LostClient(readErr)
		}
	}
}

// PassDown passes the server's bytes on as they come.
func (r *relay) PassDown() error {
	buf := make([]byte, database.FirstSize)
	for {
		n, readErr := r.db.r.Read(buf)
		if n > 0 {
			if err := r.track.advance(buf[:n]); err != nil {
				return database.LostServer(err)
			}
			if _, err := r.Client.Write(buf[:n]); err != nil {
				return database.LostClient(err)
			}
			r.Sent(n)
		}
		if readErr != nil {
			return database.LostServer(readErr)
		}
		if n == len(buf) && n < database.BufferSize {
			buf = make([]byte, database.BufferSize)
		}
	}
}

// Refused ends a session in which the client sent what cannot be passed on.
func (r *relay) Refused(err error) error { return r.dismiss(refusalOf(err, stateProtocol)) }

// Ended ends a session that may not go on.
func (r *relay) Ended(cause error) error { return r.dismiss(ended(cause)) }

// ServerEnded ends the session after the server's direction has ended: the
// client is told if the server has not done it itself.
func (r *relay) ServerEnded(err error) error {
	why, _ := errors.AsType[*database.Lost](err)
	if why == nil || !why.ByServer() {
		return err
	}
	hard := time.AfterFunc(r.Farewell, func() { database.HangUp(r.Client) })
	defer hard.Stop()
	database.HangUp(r.Server)
	until := r.StopUp()
	gone := refuse(stateConnectionLost, sallyport.ErrUnavailable,
		fmt.Sprintf("database %s closed the connection", r.live.name), "connect again").because(why.Unwrap())
	told := r.terminated.Load() || r.track.last == msgErrorResponse
	if !r.track.whole() {
		return gone // in the middle of a message nothing can be said
	}
	r.Client.SetWriteDeadline(until)
	if !told {
		r.Client.Write(gone.message())
	}
	database.Part(r.Client, until)
	if r.terminated.Load() {
		return nil
	}
	return gone
}

// dismiss ends the session from our side: nothing of the client's passes from
// here on, what runs at the server is cancelled, the message that is on its way
// to the client is finished if that can be soon, and then the client is told.
func (r *relay) dismiss(why *refusal) error {
	hard := time.AfterFunc(r.Farewell, func() { database.HangUp(r.Client); database.HangUp(r.Server) })
	defer hard.Stop()
	r.Server.SetWriteDeadline(database.Past())
	until := r.StopUp()
	r.live.cancelLater()
	r.Client.SetWriteDeadline(until)
	r.StopDown()
	if !r.finish(time.Now().Add(r.Farewell / 4)) {
		return why
	}
	database.HangUp(r.Server)
	if _, err := r.Client.Write(why.message()); err == nil {
		database.Part(r.Client, until)
	}
	return why
}

// finish passes on the rest of the message that the client has a part of. It
// reports whether the client's stream stands between two messages.
func (r *relay) finish(until time.Time) bool {
	r.Server.SetReadDeadline(until)
	buf := make([]byte, database.BufferSize)
	for !r.track.whole() {
		n, err := r.db.r.Read(buf[:min(len(buf), r.track.missing())])
		if n > 0 {
			if r.track.advance(buf[:n]) != nil {
				return false
			}
			if _, err := r.Client.Write(buf[:n]); err != nil {
				return false
			}
			r.Sent(n)
		}
		if err != nil {
			return r.track.whole()
		}
	}
	return true
}

// totals are the figures of a relay that has ended.
func (r *relay) totals() totals {
	received, sent := r.Totals()
	return totals{received: received, sent: sent, errors: r.track.errors}
}
