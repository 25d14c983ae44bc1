package mysql

import (
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	proto "github.com/go-mysql-org/go-mysql/mysql"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/database"
)

// relay passes packets between a client and the database of one session.
//
//	client ──▶ up:   splitter ─▶ audit ─▶ ──▶ database
//	client ◀── down: ◀──────── tracker ◀──── database
//
// Nothing but PassDown writes to the client before that has returned, so an ERR of
// ours never lands inside of a packet.
type relay struct {
	database.Relay
	live *live
	db   *backend
	talk *talk

	split splitter // up's
	track tracker  // down's until it has ended
	kept  []byte   // down's: read from the database and not passed

	terminated atomic.Bool // the client said COM_QUIT or ended its half
}

func newRelay(l *live, db *backend) *relay {
	t := newTalk()
	return &relay{
		Relay: database.Relay{
			Client: l.client, Server: db.conn, Stopping: t.stop,
			Farewell: l.bounds.Farewell, Linger: l.bounds.Linger, Longest: l.sess.Options.ClientIdleTimeout,
		},
		live:  l,
		db:    db,
		talk:  t,
		split: splitter{limit: l.bounds.Command, Buffer: database.Buffer{Rooms: &l.server.rooms, User: l.sess.Identity.Name}, file: t.file, ended: t.fileEnded},
		track: tracker{
			deprecateEOF: l.first.caps&proto.CLIENT_DEPRECATE_EOF != 0,
			next:         t.pop, prepared: t.prepared, accepted: t.accepted, file: t.ask, asking: t.asking,
		},
	}
}

// PassUp passes the client's commands on, each after its event.
func (r *relay) PassUp() error {
	audit := newAuditor(r.live, r.talk)
	r.split.see = audit.see
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
			audit.refused(bad, r.split.Unpassed())
			return bad
		}
		n, readErr := r.Client.Read(space)
		more := n > 0
		if more {
			r.Received(n)
		}
		for ; more; more = r.split.more {
			pass, err := r.split.take(n)
			n = 0
			if err != nil {
				if bad, ok := errors.AsType[*refusal](err); ok {
					audit.refused(bad, r.split.Unpassed())
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
	have := 0
	for {
		n, readErr := r.Server.Read(buf[have:])
		have += n
		if n > 0 {
			pass, bad := r.track.advance(buf[:have])
			if pass > 0 {
				if _, err := r.Client.Write(buf[:pass]); err != nil {
					return database.LostClient(err)
				}
				r.Sent(pass)
			}
			if bad != nil {
				return r.unreadable(bad)
			}
			full := have == len(buf)
			rest := buf[pass:have]
			if full && len(buf) < database.BufferSize {
				buf = make([]byte, database.BufferSize)
			}
			have = copy(buf, rest)
		}
		if readErr != nil {
			r.kept = buf[:have]
			return database.LostServer(readErr)
		}
	}
}

// unreadable is what becomes of a stream that the tracker does not understand,
// or will not pass.
func (r *relay) unreadable(bad error) error {
	if why, ok := errors.AsType[*refusal](bad); ok {
		return why
	}
	return refuse(faultMalformed(), sallyport.ErrInvalid,
		fmt.Sprintf("database %s: the server sent %s", r.live.sess.Resource.Name, bad), "tell your administrator").because(bad)
}

// Refused ends a session in which the client sent what cannot be passed on.
func (r *relay) Refused(err error) error { return r.dismiss(refusalOf(err, faultMalformed())) }

// Ended ends a session that may not go on.
func (r *relay) Ended(cause error) error { return r.dismiss(ended(cause)) }

// ServerEnded ends the session after the server's direction has ended: the
// client is told if the server has not done it itself.
func (r *relay) ServerEnded(err error) error {
	hard := time.AfterFunc(r.Farewell, func() { database.HangUp(r.Client) })
	defer hard.Stop()
	if bad, ok := errors.AsType[*refusal](err); ok {
		newAuditor(r.live, r.talk).refused(bad, nil)
		database.HangUp(r.Server)
		return r.tell(bad, r.StopUp())
	}
	why, _ := errors.AsType[*database.Lost](err)
	if why == nil || !why.ByServer() {
		return err
	}
	database.HangUp(r.Server)
	until := r.StopUp()
	gone := refuse(faultKilled(), sallyport.ErrUnavailable,
		fmt.Sprintf("database %s closed the connection", r.live.sess.Resource.Name), "connect again").because(why.Unwrap())
	if r.terminated.Load() || r.track.failed && r.track.whole() {
		database.Part(r.Client, until)
		if r.terminated.Load() {
			return nil
		}
		return gone
	}
	return r.tell(gone, until)
}

// tell ends the client's connection with an ERR, unless it has a part of a
// packet: then nothing can be said.
func (r *relay) tell(why *refusal, until time.Time) error {
	if !r.track.whole() {
		return why
	}
	r.Client.SetWriteDeadline(until)
	if _, err := r.Client.Write(appendPacket(nil, r.track.sequence(), why.payload())); err == nil {
		database.Part(r.Client, until)
	}
	return why
}

// dismiss ends the session from our side: nothing of the client's passes from
// here on, what runs at the server is killed, the packet that is on its way to
// the client is finished if that can be soon, and then the client is told.
func (r *relay) dismiss(why *refusal) error {
	hard := time.AfterFunc(r.Farewell, func() { database.HangUp(r.Client); database.HangUp(r.Server) })
	defer hard.Stop()
	r.Server.SetWriteDeadline(database.Past())
	until := r.StopUp()
	r.Client.SetWriteDeadline(until)
	runs := r.talk.busy()
	if runs { // at once: a client that does not read would hold up what follows
		r.live.killLater(r.db.thread)
	}
	r.StopDown()
	// Of a batch, or a procedure, more may run behind results that have come.
	if !runs && (r.talk.busy() || r.track.place != idle) {
		r.live.killLater(r.db.thread)
	}
	if !r.finish(time.Now().Add(r.Farewell / 4)) {
		return why
	}
	database.HangUp(r.Server)
	return r.tell(why, until)
}

// finish passes on the rest of the packet that the client has a part of. It
// reports whether the client's stream stands between two packets.
func (r *relay) finish(until time.Time) bool {
	r.Server.SetReadDeadline(until)
	buf := make([]byte, database.BufferSize)
	have := copy(buf, r.kept)
	for !r.track.whole() {
		n, err := r.Server.Read(buf[have:])
		have += n
		pass := min(have, r.track.body)
		if pass == 0 && r.track.continued {
			var bad error
			if pass, bad = r.track.advance(buf[:have]); bad != nil {
				return false
			}
		} else {
			r.track.body -= pass
		}
		if _, err := r.Client.Write(buf[:pass]); err != nil {
			return false
		}
		r.Sent(pass)
		have = copy(buf, buf[pass:have])
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
