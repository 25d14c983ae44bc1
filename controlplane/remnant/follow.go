package remnant

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"time"

	"github.com/sallyport/sallyport"
	handoverv1 "github.com/sallyport/sallyport/wire/sallyport/handover/v1"
)

const (
	greetTime  = 5 * time.Second
	writeTime  = 10 * time.Second
	firstPause = 10 * time.Millisecond // an owner that changes is away for less than a second
	mostPause  = 250 * time.Millisecond
	stateEvery = time.Second
)

// Cancel is a PostgreSQL cancel request. Without a holder the secret key must do.
type Cancel struct {
	ProcessID uint32
	SecretKey []byte
	Holder    *Holder
}

// Holder is who asks, as the door knows him.
type Holder struct {
	Kind    sallyport.IdentityKind
	Cluster string
	Name    string
}

// follow keeps a connection to the owner, whoever that is.
func (s *Spool) follow(ctx context.Context, since time.Time) {
	pause := firstPause
	for {
		began := time.Now()
		err := s.attend(ctx, since)
		s.lost()
		if ctx.Err() != nil {
			return
		}
		s.c.Log.Debug("the audit spool's owner is away", "error", err)
		if time.Since(began) > stateEvery {
			pause = firstPause
		}
		if !sleep(ctx, pause) {
			return
		}
		pause = min(2*pause, mostPause)
	}
}

// lost: what was not answered is sent again on the next connection.
func (s *Spool) lost() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sent = 0
	if s.since.IsZero() {
		s.since = time.Now()
	}
}

// attend is one connection.
func (s *Spool) attend(ctx context.Context, since time.Time) error {
	conn, err := (&net.Dialer{Timeout: greetTime}).DialContext(ctx, "unix", s.c.Socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if err := trusted(conn); err != nil {
		return err
	}
	in := bufio.NewReader(conn)
	told, err := s.greet(conn, in, since)
	if err != nil {
		return err
	}
	heard := make(chan error, 1)
	s.work.Go(func() { heard <- s.hear(in, conn) })
	return s.tell(conn, told, heard)
}

// trusted refuses anybody but the user that this process runs as.
func trusted(conn net.Conn) error {
	uc, ok := conn.(*net.UnixConn)
	if !ok {
		return fmt.Errorf("remnants: %T is no Unix socket", conn)
	}
	uid, err := peerUID(uc)
	if err != nil {
		return err
	}
	if uid != os.Geteuid() {
		return fmt.Errorf("remnants: user %d is at the other end of the socket", uid)
	}
	return nil
}

func (s *Spool) greet(conn net.Conn, in *bufio.Reader, since time.Time) (told Sessions, err error) {
	if err := conn.SetDeadline(time.Now().Add(greetTime)); err != nil { // lifted below: the owner has answered
		return told, err
	}
	hello := &handoverv1.RemnantHello{Pid: uint32(os.Getpid()), Version: s.c.Version, SinceUnixMs: since.UnixMilli()}
	if err := put(conn, &handoverv1.FromRemnant{Message: &handoverv1.FromRemnant_Hello{Hello: hello}}); err != nil {
		return told, err
	}
	told = s.sessions()
	if err := put(conn, stateMessage(told)); err != nil {
		return told, err
	}
	var m handoverv1.FromOwner
	if err := get(in, &m); err != nil {
		return told, err
	}
	if m.GetWelcome() == nil {
		return told, errors.New("remnants: the first message is not a welcome")
	}
	s.mu.Lock()
	s.since = time.Time{}
	s.mu.Unlock()
	return told, conn.SetDeadline(time.Time{})
}

func (s *Spool) sessions() Sessions {
	if s.c.Sessions == nil {
		return Sessions{}
	}
	return s.c.Sessions()
}

func stateMessage(n Sessions) *handoverv1.FromRemnant {
	return &handoverv1.FromRemnant{Message: &handoverv1.FromRemnant_State{State: &handoverv1.RemnantState{Kinds: n.Kinds, Users: n.Users}}}
}

// tell sends events as they come, and the state when it changes, until the
// reader ends.
func (s *Spool) tell(conn net.Conn, told Sessions, heard <-chan error) error {
	out := bufio.NewWriterSize(conn, 64<<10)
	ticks := time.NewTicker(stateEvery)
	defer ticks.Stop()
	for {
		err := s.sendAll(conn, out)
		if err == nil {
			select {
			case err := <-heard:
				return err
			case <-s.wake:
				continue
			case <-ticks.C:
			}
			if now := s.sessions(); !maps.Equal(now.Kinds, told.Kinds) || !maps.Equal(now.Users, told.Users) {
				told = now
				err = errors.Join(conn.SetWriteDeadline(time.Now().Add(writeTime)), put(out, stateMessage(told)), out.Flush())
			}
		}
		if err != nil {
			conn.Close()
			<-heard
			return err
		}
	}
}

// sendAll sends what has not been sent on this connection.
func (s *Spool) sendAll(conn net.Conn, out *bufio.Writer) error {
	for it := s.nextUnsent(); it != nil; it = s.nextUnsent() {
		if err := conn.SetWriteDeadline(time.Now().Add(writeTime)); err != nil {
			return err
		}
		e := &handoverv1.RemnantEvent{Number: it.number, Name: it.line.Name, Json: it.line.JSON, Durable: it.durable}
		if err := put(out, &handoverv1.FromRemnant{Message: &handoverv1.FromRemnant_Event{Event: e}}); err != nil {
			return err
		}
	}
	return out.Flush()
}

func (s *Spool) nextUnsent() *item {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sent >= len(s.queue) {
		return nil
	}
	it := s.queue[s.sent]
	it.sent = true
	s.sent++
	return it
}

// hear acts on what the owner says until the connection ends.
func (s *Spool) hear(in *bufio.Reader, conn net.Conn) error {
	defer conn.Close()
	for {
		var m handoverv1.FromOwner
		if err := get(in, &m); err != nil {
			return err
		}
		switch m := m.Message.(type) {
		case *handoverv1.FromOwner_Taken:
			if err := s.answered(m.Taken); err != nil {
				return err
			}
		case *handoverv1.FromOwner_Cancel:
			if s.c.Cancel != nil {
				s.c.Cancel(cancelOf(m.Cancel))
			}
		}
	}
}

// answered takes the event off the queue: it is the oldest that was sent.
func (s *Spool) answered(t *handoverv1.EventTaken) error {
	s.mu.Lock()
	if s.sent == 0 || s.queue[0].number != t.GetNumber() {
		s.mu.Unlock()
		return fmt.Errorf("remnants: event %d was answered out of order", t.GetNumber())
	}
	it := s.queue[0]
	s.queue[0] = nil
	s.queue = s.queue[1:]
	s.sent--
	s.shrunkLocked(it)
	s.mu.Unlock()
	err := refusalOf(t.GetRefused())
	s.refused(it, err)
	if err != nil && !it.durable {
		s.c.Log.Error("event is not in the audit log", "event", it.line.Name, "error", err)
	}
	it.answer(err)
	return nil
}

// refused remembers why an event that nobody waits for was not taken: its session
// cannot be told any more, but what comes next can.
func (s *Spool) refused(it *item, err error) {
	if it.durable {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refuse = refusal{err, time.Now()}
}

func refusalOf(r *handoverv1.EventRefused) error {
	if r == nil {
		return nil
	}
	kind := sallyport.ErrUnavailable
	if r.GetExhausted() {
		kind = sallyport.ErrExhausted
	}
	return &sallyport.Problem{Kind: kind, Fact: r.GetFact(), Hint: r.GetHint()}
}

func cancelOf(c *handoverv1.CancelStatement) Cancel {
	out := Cancel{ProcessID: c.GetProcessId(), SecretKey: c.GetSecretKey()}
	if h := c.GetHolder(); h != nil {
		out.Holder = &Holder{sallyport.IdentityKind(h.GetKind()), h.GetCluster(), h.GetName()}
	}
	return out
}
