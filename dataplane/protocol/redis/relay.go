package redis

import (
	"cmp"
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
// Nothing but PassDown writes to the client before that has returned, so an error
// of ours never lands inside of a message.
type relay struct {
	database.Relay
	live  *live
	ahead []byte // what the server is told first

	split *splitter // up's
	swaps *swaps
	track tracker // down's until it has ended
	kept  []byte  // down's: read from the database and not passed

	terminated atomic.Bool // the client said QUIT or ended its half
}

func newRelay(l *live, db net.Conn, ahead []byte) *relay {
	r := &relay{
		Relay: database.Relay{
			Client: l.client, Server: db,
			Farewell: l.bounds.Farewell, Linger: l.bounds.Linger, Longest: l.sess.Options.ClientIdleTimeout,
		},
		live:  l,
		ahead: ahead,
		split: l.in.split,
		swaps: newSwaps(),
	}
	r.split.keep = func(name []byte) (int, int, error) { return keep(name, l.bounds.Script) }
	r.track.swaps = r.swaps
	return r
}

// PassUp passes the client's commands on, each after its event.
func (r *relay) PassUp() error {
	audit := newAuditor(r.live, r.swaps)
	err := r.copyUp(audit)
	if bad, ok := errors.AsType[*refusal](err); ok {
		audit.refused(bad, r.split.rest())
	}
	if l, ok := errors.AsType[*database.Lost](err); ok && !l.ByServer() && l.InOrder() {
		r.terminated.Store(true)
		if !audit.quit { // then the server closes, after its answer
			database.CloseWrite(r.Server)
		}
	}
	return err
}

func (r *relay) copyUp(audit *auditor) error {
	if err := r.Forward(r.ahead); err != nil {
		return err
	}
	for {
		if err := r.passUp(audit); err != nil {
			return err
		}
		n, err := r.Client.Read(r.split.space())
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
		return r.Forward(b)
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
			if err := r.Forward(instead); err != nil {
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
		return r.Forward(b)
	}
	return r.Forward(r.split.part())
}

// PassDown passes the server's bytes on as they come.
func (r *relay) PassDown() error {
	buf := make([]byte, firstSize)
	have := 0
	for {
		n, readErr := r.Server.Read(buf[have:])
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
	if _, err := r.Client.Write(b); err != nil {
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

// Refused ends a session in which the client sent what cannot be passed on.
func (r *relay) Refused(err error) error { return r.dismiss(refusalOf(err, codeError)) }

// Ended ends a session that may not go on.
func (r *relay) Ended(cause error) error { return r.dismiss(ended(cause)) }

// ServerEnded ends the session after the server's direction has ended: the
// client is told.
func (r *relay) ServerEnded(err error) error {
	hard := time.AfterFunc(r.Farewell, func() { database.HangUp(r.Client) })
	defer hard.Stop()
	if bad, ok := errors.AsType[*refusal](err); ok {
		database.HangUp(r.Server)
		return r.tell(bad, r.StopUp())
	}
	why, _ := errors.AsType[*database.Lost](err)
	if why == nil || !why.ByServer() {
		return err
	}
	database.HangUp(r.Server)
	until := r.StopUp()
	if r.terminated.Load() {
		database.Part(r.Client, until)
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
	r.Client.SetWriteDeadline(until)
	if _, err := r.Client.Write(why.reply()); err == nil {
		database.Part(r.Client, until)
	}
	return why
}

// dismiss ends the session from our side: nothing of the client's passes from
// here on, the message that is on its way to the client is finished if that can
// be soon, and then the client is told. A command that blocks at the server ends
// with its connection.
func (r *relay) dismiss(why *refusal) error {
	hard := time.AfterFunc(r.Farewell, func() { database.HangUp(r.Client); database.HangUp(r.Server) })
	defer hard.Stop()
	r.Server.SetWriteDeadline(database.Past())
	until := r.StopUp()
	r.Client.SetWriteDeadline(until)
	r.StopDown()
	if !r.finish(time.Now().Add(r.Farewell / 4)) {
		return why
	}
	database.HangUp(r.Server)
	return r.tell(why, until)
}

// finish passes on the rest of the message that the client has a part of. It
// reports whether the client's stream stands between two messages.
func (r *relay) finish(until time.Time) bool {
	r.Server.SetReadDeadline(until)
	r.track.one = true
	buf := make([]byte, bufferSize)
	have := copy(buf, r.kept)
	for !r.track.whole() {
		n, err := r.Server.Read(buf[have:])
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

// totals are the figures of a relay that has ended.
func (r *relay) totals() totals {
	received, sent := r.Totals()
	return totals{received: received, sent: sent, errors: r.track.errors}
}
