package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
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
// Each direction is one goroutine, which alone reads its source and writes its
// target. run owns both and ends them; it alone writes to the client after down
// has ended, so an ErrorResponse of ours never lands inside of a message.
type relay struct {
	live   *live
	client net.Conn
	db     *backend

	split splitter // up's
	track tracker  // down's until it has ended

	up, down chan error // one value each, when it has ended

	terminated atomic.Bool // the client said Terminate or ended its half
	database.Traffic
}

func newRelay(l *live, db *backend) *relay {
	return &relay{
		live:   l,
		client: l.client,
		db:     db,
		split:  splitter{limit: l.bounds.Message, Buffer: database.Buffer{Rooms: &l.server.rooms}},
		track:  tracker{last: msgReadyForQuery},
		up:     make(chan error, 1),
		down:   make(chan error, 1),
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
				return r.dismiss(&up, &down, refusalOf(err, stateProtocol))
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

// pumpUp passes the client's messages on, each after its event.
func (r *relay) pumpUp() {
	audit := newAuditor(r.live)
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
			pass, err := r.split.take(n, audit.see)
			if err != nil {
				if bad, ok := errors.AsType[*refusal](err); ok {
					audit.malformed(bad, r.split.Unpassed())
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
	for {
		n, readErr := r.db.r.Read(buf)
		if n > 0 {
			if err := r.track.advance(buf[:n]); err != nil {
				return database.LostServer(err)
			}
			if _, err := r.client.Write(buf[:n]); err != nil {
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

// serverEnded ends the session after the server's direction has ended: the
// client is told if the server has not done it itself.
func (r *relay) serverEnded(err error, up *chan error) error {
	why, _ := errors.AsType[*database.Lost](err)
	if why == nil || !why.ByServer() {
		return err
	}
	hard := time.AfterFunc(r.live.bounds.Farewell, func() { database.HangUp(r.client) })
	defer hard.Stop()
	database.HangUp(r.db.conn)
	until := r.stopUp(up)
	gone := refuse(stateConnectionLost, sallyport.ErrUnavailable,
		fmt.Sprintf("database %s closed the connection", r.live.name), "connect again").because(why.Unwrap())
	told := r.terminated.Load() || r.track.last == msgErrorResponse
	if !r.track.whole() {
		return gone // in the middle of a message nothing can be said
	}
	r.client.SetWriteDeadline(until)
	if !told {
		r.client.Write(gone.message())
	}
	database.Part(r.client, until)
	if r.terminated.Load() {
		return nil
	}
	return gone
}

// dismiss ends the session from our side: nothing of the client's passes from
// here on, what runs at the server is cancelled, the message that is on its way
// to the client is finished if that can be soon, and then the client is told.
func (r *relay) dismiss(up, down *chan error, why *refusal) error {
	hard := time.AfterFunc(r.live.bounds.Farewell, func() { database.HangUp(r.client); database.HangUp(r.db.conn) })
	defer hard.Stop()
	r.db.conn.SetWriteDeadline(database.Past())
	until := r.stopUp(up)
	r.live.cancelLater()
	r.client.SetWriteDeadline(until)
	r.db.conn.SetReadDeadline(database.Past())
	<-*down
	*down = nil
	if !r.finish(time.Now().Add(r.live.bounds.Farewell / 4)) {
		return why
	}
	database.HangUp(r.db.conn)
	if _, err := r.client.Write(why.message()); err == nil {
		database.Part(r.client, until)
	}
	return why
}

// stopUp ends the client's direction and returns by when all must be over.
func (r *relay) stopUp(up *chan error) time.Time {
	until := time.Now().Add(r.live.bounds.Farewell)
	if *up == nil {
		return until
	}
	r.db.conn.SetWriteDeadline(database.Past())
	r.client.SetReadDeadline(database.Past())
	<-*up
	*up = nil
	return until
}

// finish passes on the rest of the message that the client has a part of. It
// reports whether the client's stream stands between two messages.
func (r *relay) finish(until time.Time) bool {
	r.db.conn.SetReadDeadline(until)
	buf := make([]byte, database.BufferSize)
	for !r.track.whole() {
		n, err := r.db.r.Read(buf[:min(len(buf), r.track.missing())])
		if n > 0 {
			if r.track.advance(buf[:n]) != nil {
				return false
			}
			if _, err := r.client.Write(buf[:n]); err != nil {
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

// abort ends what still runs.
func (r *relay) abort(up, down chan error) {
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
	return refuse(stateEnded, sallyport.ErrDenied,
		fmt.Sprintf("the session was idle for %s", r.idleLimit()), "connect again")
}

// totals are the figures of a relay that has ended.
func (r *relay) totals() totals {
	received, sent := r.Totals()
	return totals{received: received, sent: sent, errors: r.track.errors}
}
