package redis

import (
	"cmp"
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

// relay passes commands and answers between a client and the database of one
// session.
//
//	client ──▶ up:   splitter ─▶ audit ─▶ ──▶ database
//	client ◀── down: ◀──────── tracker ◀──── database
//
// Each direction is one goroutine, which alone reads its source and writes its
// target. run owns both and ends them; it alone writes to the client after down
// has ended, so an error of ours never lands inside of a message.
type relay struct {
	live   *live
	client net.Conn
	db     net.Conn
	ahead  []byte // what the server is told first

	split *splitter // up's
	swaps *swaps
	track tracker // down's until it has ended
	kept  []byte  // down's: read from the database and not passed

	up, down chan error // one value each, when it has ended

	terminated atomic.Bool // the client said QUIT or ended its half
	database.Traffic
}

func newRelay(l *live, db net.Conn, ahead []byte) *relay {
	r := &relay{
		live:   l,
		client: l.client,
		db:     db,
		ahead:  ahead,
		split:  l.in.split,
		swaps:  newSwaps(),
		up:     make(chan error, 1),
		down:   make(chan error, 1),
	}
	r.split.keep = func(name []byte) (int, int, error) { return keep(name, l.bounds.Script) }
	r.track.swaps = r.swaps
	return r
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
				return r.dismiss(&up, &down, refusalOf(err, codeError))
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
	audit := newAuditor(r.live, r.swaps)
	err := r.copyUp(audit)
	if bad, ok := errors.AsType[*refusal](err); ok {
		audit.refused(bad, r.split.rest())
	}
	if l, ok := errors.AsType[*database.Lost](err); ok && !l.ByServer() && l.InOrder() {
		r.terminated.Store(true)
		if !audit.quit { // then the server closes, after its answer
			database.CloseWrite(r.db)
		}
	}
	r.up <- err
}

func (r *relay) copyUp(audit *auditor) error {
	if err := r.toServer(r.ahead); err != nil {
		return err
	}
	for {
		if err := r.passUp(audit); err != nil {
			return err
		}
		n, err := r.client.Read(r.split.space())
		r.split.add(n)
		if n > 0 {
			r.Received(n)
		} else if err != nil {
			return database.LostClient(err)
		}
	}
}

// passUp passes on what has been read: commands that are whole in one write, if
// nothing is put in place of one, and what there is of a long one.
func (r *relay) passUp(audit *auditor) error {
	from, to := 0, 0 // what is to be written, in the splitter's buffer
	pass := func() error {
		b := r.split.buf[from:to]
		from, to = 0, 0
		return r.toServer(b)
	}
	for {
		c, err := r.split.next()
		if c == nil {
			if failed := pass(); failed != nil || err != nil {
				return cmp.Or(failed, err)
			}
			break
		}
		instead, err := audit.see(c)
		switch {
		case err != nil:
			return cmp.Or(pass(), err)
		case instead == nil && from == to:
			from, to = c.from, c.to
		case instead == nil && to == c.from:
			to = c.to
		default:
			if err := pass(); err != nil {
				return err
			}
			if from, to = c.from, c.to; instead != nil {
				from, to = 0, 0
			}
			if err := r.toServer(instead); err != nil {
				return err
			}
		}
		if audit.quit {
			return cmp.Or(pass(), error(database.LostClient(io.EOF)))
		}
	}
	if r.split.stuck() {
		b, err := r.split.spill()
		if err != nil {
			return err
		}
		return r.toServer(b)
	}
	return r.toServer(r.split.part())
}

func (r *relay) toServer(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	if _, err := r.db.Write(b); err != nil {
		return database.LostServer(err)
	}
	return nil
}

// pumpDown passes the server's bytes on as they come.
func (r *relay) pumpDown() { r.down <- r.copyDown() }

func (r *relay) copyDown() error {
	buf := make([]byte, firstSize)
	have := 0
	for {
		n, readErr := r.db.Read(buf[have:])
		have += n
		if n > 0 {
			taken, err := r.track.advance(buf[:have], r.toClient)
			if err != nil {
				return r.unreadable(err)
			}
			full := have == len(buf)
			rest := buf[taken:have]
			if full && len(buf) < bufferSize {
				buf = make([]byte, bufferSize)
			}
			have = copy(buf, rest)
		}
		if readErr != nil {
			r.kept = buf[:have]
			return database.LostServer(readErr)
		}
	}
}

func (r *relay) toClient(b []byte) error {
	if _, err := r.client.Write(b); err != nil {
		return database.LostClient(err)
	}
	r.Sent(len(b))
	return nil
}

// unreadable is what becomes of a stream that the tracker does not understand.
func (r *relay) unreadable(bad error) error {
	if _, ok := errors.AsType[*database.Lost](bad); ok {
		return bad
	}
	return refuse(codeError, sallyport.ErrUnavailable,
		fmt.Sprintf("database %s: the server sent %s", r.live.name, bad), "tell your administrator").because(bad)
}

// serverEnded ends the session after the server's direction has ended: the
// client is told.
func (r *relay) serverEnded(err error, up *chan error) error {
	hard := time.AfterFunc(r.live.bounds.Farewell, func() { database.HangUp(r.client) })
	defer hard.Stop()
	if bad, ok := errors.AsType[*refusal](err); ok {
		database.HangUp(r.db)
		return r.tell(bad, r.stopUp(up))
	}
	why, _ := errors.AsType[*database.Lost](err)
	if why == nil || !why.ByServer() {
		return err
	}
	database.HangUp(r.db)
	until := r.stopUp(up)
	if r.terminated.Load() {
		database.Part(r.client, until)
		return nil
	}
	return r.tell(refuse(codeError, sallyport.ErrUnavailable,
		fmt.Sprintf("database %s closed the connection", r.live.name), "connect again").because(why.Unwrap()), until)
}

// tell ends the client's connection with an error, unless it has a part of a
// message: then nothing can be said.
func (r *relay) tell(why *refusal, until time.Time) error {
	if !r.track.whole() {
		return why
	}
	r.client.SetWriteDeadline(until)
	if _, err := r.client.Write(why.reply()); err == nil {
		database.Part(r.client, until)
	}
	return why
}

// dismiss ends the session from our side: nothing of the client's passes from
// here on, the message that is on its way to the client is finished if that can
// be soon, and then the client is told. A command that blocks at the server ends
// with its connection.
func (r *relay) dismiss(up, down *chan error, why *refusal) error {
	hard := time.AfterFunc(r.live.bounds.Farewell, func() { database.HangUp(r.client); database.HangUp(r.db) })
	defer hard.Stop()
	r.db.SetWriteDeadline(database.Past())
	until := r.stopUp(up)
	r.client.SetWriteDeadline(until)
	r.db.SetReadDeadline(database.Past())
	<-*down
	*down = nil
	if !r.finish(time.Now().Add(r.live.bounds.Farewell / 4)) {
		return why
	}
	database.HangUp(r.db)
	return r.tell(why, until)
}

// stopUp ends the client's direction and returns by when all must be over.
func (r *relay) stopUp(up *chan error) time.Time {
	until := time.Now().Add(r.live.bounds.Farewell)
	if *up == nil {
		return until
	}
	r.db.SetWriteDeadline(database.Past())
	r.client.SetReadDeadline(database.Past())
	<-*up
	*up = nil
	return until
}

// finish passes on the rest of the message that the client has a part of. It
// reports whether the client's stream stands between two messages.
func (r *relay) finish(until time.Time) bool {
	r.db.SetReadDeadline(until)
	r.track.one = true
	buf := make([]byte, bufferSize)
	have := copy(buf, r.kept)
	for !r.track.whole() {
		n, err := r.db.Read(buf[have:])
		have += n
		taken, bad := r.track.advance(buf[:have], r.toClient)
		if bad != nil {
			return false
		}
		have = copy(buf, buf[taken:have])
		if err != nil {
			return r.track.whole()
		}
	}
	return true
}

// abort ends what still runs.
func (r *relay) abort(up, down chan error) {
	database.HangUp(r.client)
	database.HangUp(r.db)
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
	return refuse(codeNoPerm, sallyport.ErrDenied, fmt.Sprintf("the session was idle for %s", r.idleLimit()), "connect again")
}

// totals are the figures of a relay that has ended.
func (r *relay) totals() totals {
	received, sent := r.Totals()
	return totals{received: received, sent: sent, errors: r.track.errors}
}
