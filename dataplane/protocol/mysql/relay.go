package mysql

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
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
// Each direction is one goroutine, which alone reads its source and writes its
// target. run owns both and ends them; it alone writes to the client after down
// has ended, so an ERR of ours never lands inside of a packet.
type relay struct {
	live   *live
	client net.Conn
	db     *backend
	talk   *talk

	split splitter // up's
	track tracker  // down's until it has ended
	kept  []byte   // down's: read from the database and not passed

	up, down chan error // one value each, when it has ended

	terminated atomic.Bool // the client said COM_QUIT or ended its half
	database.Traffic
}

func newRelay(l *live, db *backend) *relay {
	t := newTalk()
	return &relay{
		live:   l,
		client: l.client,
		db:     db,
		talk:   t,
		split:  splitter{limit: l.bounds.Command, Buffer: database.Buffer{Rooms: &l.server.rooms}, file: t.file, ended: t.fileEnded},
		track: tracker{
			deprecateEOF: l.first.caps&proto.CLIENT_DEPRECATE_EOF != 0,
			next:         t.pop, prepared: t.prepared, file: t.ask,
		},
		up:   make(chan error, 1),
		down: make(chan error, 1),
	}
}

// run relays until one side ends or ctx is done. Both pumps have ended when it
// returns.
func (r *relay) run(ctx context.Context) error {
	r.Begin()
	up, down := r.up, r.down
	go r.pumpUp()
	go r.pumpDown()
	defer func() { r.abort(up, down) }()

	idle := r.idleTimer()
	defer idle.Stop()
	var linger <-chan time.Time
	for {
		select {
		case err := <-up:
			up = nil
			why, ok := errors.AsType[*database.Lost](err)
			switch {
			case !ok: // what the client sent cannot be passed on
				return r.dismiss(&up, &down, refusalOf(err, faultMalformed()))
			case why.ByServer(): // what it still said is on its way down
				linger = time.After(r.live.bounds.Farewell)
			case why.InOrder():
				linger = time.After(r.live.bounds.Linger)
			default:
				return err
			}
		case err := <-down:
			down = nil
			return r.serverEnded(err, &up)
		case <-ctx.Done():
			return r.dismiss(&up, &down, ended(ctx))
		case <-idle.C:
			if r.IdleFor() >= r.idleLimit() {
				return r.dismiss(&up, &down, r.idled())
			}
			idle.Reset(r.idleLimit() - r.IdleFor())
		case <-linger:
			return nil
		}
	}
}

// pumpUp passes the client's commands on, each after its event.
func (r *relay) pumpUp() {
	audit := newAuditor(r.live, r.talk)
	r.split.see = audit.see
	err := r.copyUp(audit)
	if l, ok := errors.AsType[*database.Lost](err); ok && !l.ByServer() && l.InOrder() {
		r.terminated.Store(true)
		database.CloseWrite(r.db.conn)
	}
	r.up <- err
}

func (r *relay) copyUp(audit *auditor) error {
	for {
		n, readErr := r.client.Read(r.split.Space())
		if n > 0 {
			r.Received(n)
			pass, err := r.split.take(n)
			if err != nil {
				if bad, ok := errors.AsType[*refusal](err); ok {
					audit.refused(bad, r.split.Unpassed())
				}
				return err
			}
			if len(pass) > 0 {
				if _, err := r.db.conn.Write(pass); err != nil {
					return database.LostServer(err)
				}
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

// pumpDown passes the server's bytes on as they come.
func (r *relay) pumpDown() { r.down <- r.copyDown() }

func (r *relay) copyDown() error {
	buf := make([]byte, database.FirstSize)
	have := 0
	for {
		n, readErr := r.db.conn.Read(buf[have:])
		have += n
		if n > 0 {
			pass, bad := r.track.advance(buf[:have])
			if pass > 0 {
				if _, err := r.client.Write(buf[:pass]); err != nil {
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

// serverEnded ends the session after the server's direction has ended: the
// client is told if the server has not done it itself.
func (r *relay) serverEnded(err error, up *chan error) error {
	hard := time.AfterFunc(r.live.bounds.Farewell, func() { database.HangUp(r.client) })
	defer hard.Stop()
	if bad, ok := errors.AsType[*refusal](err); ok {
		newAuditor(r.live, r.talk).refused(bad, nil)
		database.HangUp(r.db.conn)
		return r.tell(bad, r.stopUp(up))
	}
	why, _ := errors.AsType[*database.Lost](err)
	if why == nil || !why.ByServer() {
		return err
	}
	database.HangUp(r.db.conn)
	until := r.stopUp(up)
	gone := refuse(faultKilled(), sallyport.ErrUnavailable,
		fmt.Sprintf("database %s closed the connection", r.live.sess.Resource.Name), "connect again").because(why.Unwrap())
	if r.terminated.Load() || r.track.failed && r.track.whole() {
		database.Part(r.client, until)
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
	r.client.SetWriteDeadline(until)
	if _, err := r.client.Write(appendPacket(nil, r.track.sequence(), why.payload())); err == nil {
		database.Part(r.client, until)
	}
	return why
}

// dismiss ends the session from our side: nothing of the client's passes from
// here on, what runs at the server is killed, the packet that is on its way to
// the client is finished if that can be soon, and then the client is told.
func (r *relay) dismiss(up, down *chan error, why *refusal) error {
	hard := time.AfterFunc(r.live.bounds.Farewell, func() { database.HangUp(r.client); database.HangUp(r.db.conn) })
	defer hard.Stop()
	r.db.conn.SetWriteDeadline(database.Past())
	until := r.stopUp(up)
	if r.talk.busy() {
		r.live.killLater(r.db.thread)
	}
	r.client.SetWriteDeadline(until)
	r.db.conn.SetReadDeadline(database.Past())
	<-*down
	*down = nil
	if !r.finish(time.Now().Add(r.live.bounds.Farewell / 4)) {
		return why
	}
	database.HangUp(r.db.conn)
	return r.tell(why, until)
}

// stopUp ends the client's direction and returns by when all must be over.
func (r *relay) stopUp(up *chan error) time.Time {
	until := time.Now().Add(r.live.bounds.Farewell)
	r.talk.stop()
	if *up == nil {
		return until
	}
	r.db.conn.SetWriteDeadline(database.Past())
	r.client.SetReadDeadline(database.Past())
	<-*up
	*up = nil
	return until
}

// finish passes on the rest of the packet that the client has a part of. It
// reports whether the client's stream stands between two packets.
func (r *relay) finish(until time.Time) bool {
	r.db.conn.SetReadDeadline(until)
	buf := make([]byte, database.BufferSize)
	have := copy(buf, r.kept)
	for !r.track.whole() {
		n, err := r.db.conn.Read(buf[have:])
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
		if _, err := r.client.Write(buf[:pass]); err != nil {
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

// abort ends what still runs.
func (r *relay) abort(up, down chan error) {
	r.talk.stop()
	database.HangUp(r.client)
	database.HangUp(r.db.conn)
	if up != nil {
		<-up
	}
	if down != nil {
		<-down
	}
}

func (r *relay) idleLimit() time.Duration { return r.live.sess.Options.ClientIdleTimeout }

// idleTimer never fires when the session may be idle for ever.
func (r *relay) idleTimer() *time.Timer {
	if limit := r.idleLimit(); limit > 0 {
		return time.NewTimer(limit)
	}
	t := time.NewTimer(time.Hour)
	t.Stop()
	return t
}

func (r *relay) idled() *refusal {
	return refuse(faultKilled(), sallyport.ErrDenied,
		fmt.Sprintf("the session was idle for %s", r.idleLimit()), "connect again")
}

// totals are the figures of a relay that has ended.
func (r *relay) totals() totals {
	received, sent := r.Totals()
	return totals{received: received, sent: sent, errors: r.track.errors}
}
