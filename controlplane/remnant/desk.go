package remnant

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"slices"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/audit"
	handoverv1 "github.com/sallyport/sallyport/wire/sallyport/handover/v1"
)

const (
	maxRemnants = 64   // connections at once
	maxAnswers  = 1024 // events of one remnant on their way to the disk
	maxCancels  = 64   // waiting for one remnant
	listenPause = time.Second
)

// Remnant is an old process that still has sessions.
type Remnant struct {
	PID     int
	Version string
	Since   time.Time
	Sessions
}

// desk is the owner's end of one remnant's connection. A goroutine reads, one
// writes.
type desk struct {
	spool   *audit.Spool
	conn    net.Conn
	answers chan answer
	cancels chan *handoverv1.CancelStatement
	gone    chan struct{} // closed when the writer has ended
	remnant Remnant       // guarded by Spool.deskMu
}

// answer is an event that was taken, or refused.
type answer struct {
	number  uint64
	commit  audit.Commit
	waits   bool // for the commit
	refused error
}

// serve serves remnants until ctx is done. It returns when all that was taken
// has been answered.
func (s *Spool) serve(ctx context.Context, own *audit.Spool) {
	for {
		l, err := s.listen()
		if err == nil {
			s.accept(ctx, own, l)
			return
		}
		s.c.Log.Error("remnants cannot reach the audit spool; trying again", "error", err, "in", listenPause)
		if !sleep(ctx, listenPause) {
			return
		}
	}
}

// listen makes the socket anew. What is there is of an earlier owner: whoever
// gets here has the spool's lock.
func (s *Spool) listen() (*net.UnixListener, error) {
	if err := os.Remove(s.c.Socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: s.c.Socket, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false) // the name may be another owner's by then
	if err := os.Chmod(s.c.Socket, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

func (s *Spool) accept(ctx context.Context, own *audit.Spool, l *net.UnixListener) {
	defer l.Close()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	slots := make(chan struct{}, maxRemnants)
	for {
		conn, err := l.AcceptUnix()
		if ctx.Err() != nil {
			if err == nil {
				conn.Close()
			}
			return
		}
		if err != nil {
			s.c.Log.Warn("remnants: accept", "error", err)
			if !sleep(ctx, lockPause) {
				return
			}
			continue
		}
		select {
		case slots <- struct{}{}:
			s.work.Go(func() {
				defer func() { <-slots }()
				s.receive(ctx, own, conn)
			})
		default:
			conn.Close()
		}
	}
}

// receive serves one remnant.
func (s *Spool) receive(ctx context.Context, own *audit.Spool, conn *net.UnixConn) {
	defer conn.Close()
	d := &desk{spool: own, conn: conn, gone: make(chan struct{}),
		answers: make(chan answer, maxAnswers), cancels: make(chan *handoverv1.CancelStatement, maxCancels)}
	// What is being read when the spool moves on was not taken, and comes again.
	defer context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })()
	in := bufio.NewReaderSize(conn, 64<<10)
	if err := d.greet(ctx, in); err != nil {
		s.c.Log.Debug("remnant turned away", "error", err)
		return
	}
	s.enter(d)
	defer s.leave(d)
	s.work.Go(d.write)
	err := s.read(ctx, in, d)
	close(d.answers)
	<-d.gone
	s.c.Log.Debug("remnant's connection ended", "pid", d.remnant.PID, "error", err)
}

func (d *desk) greet(ctx context.Context, in *bufio.Reader) error {
	if err := trusted(d.conn); err != nil {
		return err
	}
	if err := d.conn.SetDeadline(time.Now().Add(greetTime)); err != nil { // lifted below: it is one of ours
		return err
	}
	var m handoverv1.FromRemnant
	if err := get(in, &m); err != nil {
		return err
	}
	hello := m.GetHello()
	if hello == nil {
		return errors.New("remnants: the first message is not a hello")
	}
	d.remnant = Remnant{PID: int(hello.GetPid()), Version: hello.GetVersion(), Since: time.UnixMilli(hello.GetSinceUnixMs())}
	welcome := &handoverv1.OwnerWelcome{Spool: d.spool.ID()}
	if err := put(d.conn, &handoverv1.FromOwner{Message: &handoverv1.FromOwner_Welcome{Welcome: welcome}}); err != nil {
		return err
	}
	if err := d.conn.SetDeadline(time.Time{}); err != nil {
		return err
	}
	return ctx.Err() // the deadline of the end may just have been lifted
}

func (s *Spool) enter(d *desk) {
	s.deskMu.Lock()
	defer s.deskMu.Unlock()
	s.desks[d] = struct{}{}
}

func (s *Spool) leave(d *desk) {
	s.deskMu.Lock()
	defer s.deskMu.Unlock()
	delete(s.desks, d)
}

// read takes events until the connection or the ownership ends.
func (s *Spool) read(ctx context.Context, in *bufio.Reader, d *desk) error {
	for {
		var m handoverv1.FromRemnant
		if err := get(in, &m); err != nil {
			return err
		}
		switch m := m.Message.(type) {
		case *handoverv1.FromRemnant_State:
			s.deskMu.Lock()
			d.remnant.Sessions = Sessions{m.State.GetKinds(), m.State.GetUsers()}
			s.deskMu.Unlock()
		case *handoverv1.FromRemnant_Event:
			a := d.take(ctx, m.Event)
			if a.refused != nil && ctx.Err() != nil { // it had waited for the disk
				return a.refused // not taken: it comes again
			}
			if errors.Is(a.refused, audit.ErrClosed) {
				return a.refused // not taken: it comes again
			}
			select {
			case d.answers <- a:
			case <-d.gone:
				return errors.New("remnants: the other side does not read")
			}
		}
	}
}

// take gives one event to the spool, once the disk has caught up. What is no event
// would end the chain's use at auth, so it is looked at.
func (d *desk) take(ctx context.Context, e *handoverv1.RemnantEvent) answer {
	a := answer{number: e.GetNumber(), waits: e.GetDurable()}
	decoded, err := audit.Decode(e.GetJson())
	if err != nil {
		a.refused = err
		return a
	}
	a.commit, a.refused = d.spool.Take(ctx, audit.Line{Name: decoded.Name, JSON: e.GetJson()}, e.GetDurable())
	return a
}

// write answers in order until the reader has ended.
func (d *desk) write() {
	defer close(d.gone)
	out := bufio.NewWriterSize(d.conn, 16<<10)
	for {
		var m *handoverv1.FromOwner
		var err error
		select {
		case a, ok := <-d.answers:
			if !ok {
				_ = d.flush(out) // an error means that the remnant is gone
				return
			}
			m, err = d.answer(out, a)
		case c := <-d.cancels:
			m = &handoverv1.FromOwner{Message: &handoverv1.FromOwner_Cancel{Cancel: c}}
		}
		if err == nil {
			err = errors.Join(d.conn.SetWriteDeadline(time.Now().Add(writeTime)), put(out, m))
		}
		if err == nil && len(d.answers) == 0 {
			err = d.flush(out)
		}
		if err != nil {
			d.conn.Close()
			return
		}
	}
}

func (d *desk) flush(out *bufio.Writer) error {
	if err := d.conn.SetWriteDeadline(time.Now().Add(writeTime)); err != nil {
		return err
	}
	return out.Flush()
}

// answer waits for the commit where that was asked for. An error means that the
// event was not taken after all, and comes again.
func (d *desk) answer(out *bufio.Writer, a answer) (*handoverv1.FromOwner, error) {
	if a.refused == nil && a.waits {
		if err := d.flush(out); err != nil { // what is done is told before the wait
			return nil, err
		}
		<-a.commit.Done()
		a.refused = a.commit.Err()
		if errors.Is(a.refused, audit.ErrClosed) {
			return nil, a.refused
		}
	}
	taken := &handoverv1.EventTaken{Number: a.number}
	if a.refused != nil {
		taken.Refused = refusedOf(a.refused)
	}
	return &handoverv1.FromOwner{Message: &handoverv1.FromOwner_Taken{Taken: taken}}, nil
}

func refusedOf(err error) *handoverv1.EventRefused {
	r := &handoverv1.EventRefused{Exhausted: errors.Is(err, sallyport.ErrExhausted), Fact: "audit spool refused an event"}
	var p *sallyport.Problem
	if errors.As(err, &p) {
		r.Fact, r.Hint = p.Fact, p.Hint
	}
	return r
}

// Remnants are the old processes that are connected, the oldest first.
func (s *Spool) Remnants() []Remnant {
	s.deskMu.Lock()
	defer s.deskMu.Unlock()
	out := make([]Remnant, 0, len(s.desks))
	for d := range s.desks {
		out = append(out, d.remnant)
	}
	slices.SortFunc(out, func(a, b Remnant) int { return a.Since.Compare(b.Since) })
	return out
}

// UserSessions is how many sessions a user has in remnants.
func (s *Spool) UserSessions(user string) (n int64) {
	s.deskMu.Lock()
	defer s.deskMu.Unlock()
	for d := range s.desks {
		n += max(d.remnant.Users[user], 0)
	}
	return n
}

// Cancel passes a cancel request to all remnants: a process id that is not known
// here may be one of theirs. It does not block; a remnant that does not read
// does not get it.
func (s *Spool) Cancel(c Cancel) {
	m := &handoverv1.CancelStatement{ProcessId: c.ProcessID, SecretKey: c.SecretKey}
	if c.Holder != nil {
		m.Holder = &handoverv1.Holder{Kind: string(c.Holder.Kind), Cluster: c.Holder.Cluster, Name: c.Holder.Name}
	}
	s.deskMu.Lock()
	defer s.deskMu.Unlock()
	for d := range s.desks {
		select {
		case d.cancels <- m:
		default:
			s.c.Log.Warn("cancel request dropped", "remnant", fmt.Sprint(d.remnant.PID))
		}
	}
}
