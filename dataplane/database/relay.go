package database

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/sallyport/sallyport"
)

// Relay begins and ends the two directions of one session. What passes, and how a
// client is told of the end, is its protocol's.
//
//	client ──▶ PassUp ────▶ database
//	client ◀── PassDown ◀── database
//
// Each direction is one goroutine, which alone reads its source and writes its
// target. The goroutine of Run ends them; it alone writes to the client after
// PassDown has returned, so what is told never lands inside of a message.
type Relay struct {
	Client, Server net.Conn

	Farewell time.Duration // for what is on its way when a session ends
	Linger   time.Duration // for the server after the client has ended its half
	Longest  time.Duration // without a byte of the client's; 0: for ever
	Stopping func()        // lets go what PassUp waits for beside the two connections; nil: nothing

	Traffic

	ctx      context.Context // Run's; nil before
	up, down chan error      // one value each, when it has ended; nil when that was taken
}

// Passing is a protocol's part in a session. An error that is a *Lost says which
// side has ended it.
type Passing interface {
	PassUp() error   // passes the client's messages on until either side ends
	PassDown() error // passes the server's messages on until either side ends

	// One of these ends the session, and returns why. Before it writes to the client
	// it calls StopDown, unless PassDown has returned.
	Refused(err error) error     // what the client sent cannot be passed on
	Ended(cause error) error     // the session may not go on
	ServerEnded(err error) error // PassDown has returned
}

// Run relays until one side ends or ctx is done. Both directions have ended when it
// returns.
func (r *Relay) Run(ctx context.Context, p Passing) error {
	r.Begin()
	r.ctx = ctx
	r.up, r.down = make(chan error, 1), make(chan error, 1)
	go pass(p.PassUp, r.up)
	go pass(p.PassDown, r.down)
	defer r.abort()

	idle := r.idleTimer()
	defer idle.Stop()
	var linger <-chan time.Time
	for {
		select {
		case err := <-r.up:
			r.up = nil
			why, ok := errors.AsType[*Lost](err)
			switch {
			case !ok:
				return p.Refused(err)
			case why.ByServer(): // what it still said is on its way down
				linger = time.After(r.Farewell)
			case why.InOrder():
				linger = time.After(r.Linger)
			default:
				return err
			}
		case err := <-r.down:
			r.down = nil
			return p.ServerEnded(err)
		case <-ctx.Done():
			return p.Ended(context.Cause(ctx))
		case <-idle.C:
			if r.IdleFor() >= r.Longest {
				return p.Ended(r.idled())
			}
			idle.Reset(r.Longest - r.IdleFor())
		case <-linger:
			return nil
		}
	}
}

// Forward writes to the server what PassUp has read, unless the session is over:
// what was just read may then have no event.
func (r *Relay) Forward(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	if r.ctx != nil && r.ctx.Err() != nil {
		return LostServer(context.Cause(r.ctx))
	}
	if _, err := r.Server.Write(b); err != nil {
		return LostServer(err)
	}
	return nil
}

func pass(direction func() error, ended chan<- error) { ended <- direction() }

// idleTimer never fires when the session may be idle for ever.
func (r *Relay) idleTimer() *time.Timer {
	if r.Longest > 0 {
		return time.NewTimer(r.Longest)
	}
	t := time.NewTimer(time.Hour)
	t.Stop()
	return t
}

func (r *Relay) idled() *sallyport.Problem {
	return &sallyport.Problem{Kind: sallyport.ErrDenied, Fact: fmt.Sprintf("the session was idle for %s", r.Longest), Hint: "connect again"}
}

// StopUp ends the client's direction and returns by when all must be over.
func (r *Relay) StopUp() time.Time {
	until := time.Now().Add(r.Farewell)
	r.stopping()
	if r.up != nil {
		r.Server.SetWriteDeadline(Past())
		r.Client.SetReadDeadline(Past())
		<-r.up
		r.up = nil
	}
	return until
}

// StopDown ends the server's direction.
func (r *Relay) StopDown() {
	if r.down != nil {
		r.Server.SetReadDeadline(Past())
		<-r.down
		r.down = nil
	}
}

// abort ends what still runs.
func (r *Relay) abort() {
	r.stopping()
	HangUp(r.Client)
	HangUp(r.Server)
	for _, direction := range []chan error{r.up, r.down} {
		if direction != nil {
			<-direction
		}
	}
}

func (r *Relay) stopping() {
	if r.Stopping != nil {
		r.Stopping()
	}
}
