package remnant

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/audit"
)

const (
	// DefaultPatience is how long an event waits for an owner.
	DefaultPatience = 10 * time.Second

	maxQueue   = 8 << 20 // bytes of events that wait in memory
	endReserve = 1 << 20 // beyond it, for the ends of sessions
)

// Config says what a process has to do with the spool. Functions may be called
// concurrently.
type Config struct {
	// Socket is where the owner serves remnants. Its directory lets nobody else
	// in.
	Socket  string
	Host    string // the host's UUID
	Version string // of this program

	// Open opens the spool.
	Open func() (*audit.Spool, error)

	// Ship sends the spool's events to auth until ctx is done. nil: nobody does.
	Ship func(ctx context.Context, s *audit.Spool)

	// Cancel is given cancel requests in a remnant. It must not block.
	Cancel func(Cancel)

	// Sessions are those that run in this process. nil: none.
	Sessions func() Sessions

	Patience time.Duration // 0: DefaultPatience
	Log      *slog.Logger  // nil: nothing is logged
}

// Sessions counts sessions.
type Sessions struct {
	Kinds map[string]int64 // by kind of resource
	Users map[string]int64 // by user
}

// Spool is the audit spool of an agent as one of its processes sees it. All
// methods may be called concurrently.
type Spool struct {
	c   Config
	own atomic.Pointer[audit.Spool] // nil: this process does not own it

	turn     sync.Mutex         // held while the spool becomes something else
	stopWork context.CancelFunc // of what Start or Follow has begun; guarded by turn
	goBack   context.CancelFunc // of a Return that is tried again; the same. nil: none
	work     sync.WaitGroup     // the same
	settling sync.WaitGroup     // events that Open gave to the spool

	mu     sync.Mutex
	queue  []*item // not answered, in order
	sent   int     // of these, on this connection
	bytes  int
	number uint64
	since  time.Time // since when nobody takes events; zero: somebody does
	refuse refusal   // the owner's last
	closed bool
	moved  chan struct{} // closed and replaced when the queue gets shorter

	wake chan struct{} // there is something to send

	deskMu sync.Mutex
	desks  map[*desk]struct{}
}

// item is an event that waits.
type item struct {
	line    audit.Line
	durable bool
	number  uint64
	sent    bool          // on some connection
	done    chan struct{} // closed when it is answered
	err     error
}

// Mark is where a spool ended when it was closed.
type Mark struct {
	ID           string
	Sequence     uint64
	Acknowledged uint64
}

// New makes the spool of a process that does not own it yet.
func New(c Config) *Spool {
	if c.Patience <= 0 {
		c.Patience = DefaultPatience
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Spool{c: c, since: time.Now(), moved: make(chan struct{}), wake: make(chan struct{}, 1), desks: map[*desk]struct{}{}}
}

// Emit takes an event; see audit.Spool. It meets session.Sink.
func (s *Spool) Emit(ctx context.Context, e sallyport.Event, durable bool) error {
	line := audit.LineOf(e, s.c.Host)
	var patience <-chan time.Time // with a full queue
	for {
		if own := s.own.Load(); own != nil {
			c, err := own.Take(ctx, line, durable)
			switch {
			case err == nil && durable:
				err = s.await(ctx, c)
			case err == nil:
				c.Pause(ctx)
			}
			if !errors.Is(err, audit.ErrClosed) {
				return err
			}
		}
		it, again, err := s.put(line, durable)
		if again != nil && err == nil {
			continue
		}
		if again != nil {
			if patience == nil {
				timer := time.NewTimer(s.c.Patience)
				defer timer.Stop()
				patience = timer.C
			}
			select {
			case <-again:
				continue
			case <-patience:
			case <-ctx.Done():
			}
		}
		if err != nil || !durable {
			return err
		}
		return s.awaitOwner(ctx, it)
	}
}

func (s *Spool) await(ctx context.Context, c audit.Commit) error {
	select {
	case <-c.Done():
		return c.Err()
	case <-ctx.Done():
		return late(ctx.Err())
	}
}

// awaitOwner waits until the owner has made an event durable.
func (s *Spool) awaitOwner(ctx context.Context, it *item) error {
	timer := time.NewTimer(s.c.Patience)
	defer timer.Stop()
	select {
	case <-it.done:
		return it.err
	case <-timer.C:
		s.takeBack(it)
		return nobody()
	case <-ctx.Done():
		s.takeBack(it)
		return late(ctx.Err())
	}
}

func late(cause error) error {
	return &sallyport.Problem{Kind: sallyport.ErrUnavailable, Cause: cause,
		Fact: "audit spool did not answer in time", Hint: "look at the disk that holds the data directory"}
}

func nobody() error {
	return &sallyport.Problem{Kind: sallyport.ErrExhausted, Fact: "audit spool is not served: new sessions are refused",
		Hint: "look at the sallyport that was started last"}
}

// put queues an event. When again is not nil, try again when it is closed: the
// spool is here after all, or the queue was full, and err says so.
func (s *Spool) put(line audit.Line, durable bool) (it *item, again <-chan struct{}, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.own.Load() != nil {
		return nil, atOnce, nil
	}
	ends, size := audit.Ends(line.Name), len(line.JSON)
	unserved := !s.since.IsZero() && time.Since(s.since) > s.c.Patience
	limit := maxQueue
	if ends {
		limit += endReserve
	}
	switch {
	case s.closed:
		return nil, nil, &sallyport.Problem{Kind: sallyport.ErrUnavailable, Cause: audit.ErrClosed, Fact: "audit spool is closed"}
	case unserved && !ends:
		return nil, nil, nobody()
	case s.refuse.err != nil && !ends && time.Since(s.refuse.at) < refusalHolds:
		return nil, nil, s.refuse.err
	case s.bytes+size > limit:
		return nil, s.moved, &sallyport.Problem{Kind: sallyport.ErrExhausted, Fact: "audit spool is too slow: new sessions are refused"}
	}
	s.number++
	it = &item{line: line, durable: durable, number: s.number, done: make(chan struct{})}
	s.queue = append(s.queue, it)
	s.bytes += size
	nudge(s.wake)
	if unserved && durable {
		return nil, nil, nobody() // it stays for the next owner; nobody waits
	}
	return it, nil, nil
}

// refusal is why the owner did not take an event that nobody waited for. For
// refusalHolds all events but ends are refused for the same reason; then one goes to
// the owner again, since only he knows when there is room.
type refusal struct {
	err error
	at  time.Time
}

const refusalHolds = time.Second

// atOnce is closed.
var atOnce = func() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

func nudge(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// takeBack forgets an event that nobody has seen and that its session does not
// wait for any more: what was refused must not be told as done. Ends are true
// all the same.
func (s *Spool) takeBack(it *item) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if it.sent || audit.Ends(it.line.Name) {
		return
	}
	for i, other := range s.queue {
		if other == it {
			s.queue = append(s.queue[:i], s.queue[i+1:]...)
			s.shrunkLocked(it)
			return
		}
	}
}

func (s *Spool) shrunkLocked(it *item) {
	s.bytes -= len(it.line.JSON)
	s.movedLocked()
}

func (s *Spool) movedLocked() {
	close(s.moved)
	s.moved = make(chan struct{})
}

// Open opens the spool and gives it what waits. It tries until ctx is done while
// another process is just letting go.
func (s *Spool) Open(ctx context.Context) error {
	s.turn.Lock()
	defer s.turn.Unlock()
	s.forgetReturn()
	return s.open(ctx)
}

func (s *Spool) open(ctx context.Context) error {
	if s.own.Load() != nil {
		return nil
	}
	own, err := s.c.Open()
	for errors.Is(err, sallyport.ErrConflict) && sleep(ctx, lockPause) {
		own, err = s.c.Open()
	}
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, it := range s.queue {
		c, err := own.Take(ctx, it.line, it.durable) // what waited may be more than the disk is given at once
		if err == nil && it.durable {
			s.settling.Go(func() { it.settle(c) })
			continue
		}
		if err != nil {
			s.c.Log.Error("event is not in the audit log", "event", it.line.Name, "error", err)
		}
		it.answer(err)
	}
	s.queue, s.sent, s.bytes, s.since = nil, 0, 0, time.Time{}
	s.own.Store(own)
	s.movedLocked()
	return nil
}

// lockPause is how soon a directory that is in use is tried again.
const lockPause = 10 * time.Millisecond

func (it *item) settle(c audit.Commit) {
	<-c.Done()
	it.answer(c.Err())
}

func (it *item) answer(err error) {
	it.err = err
	close(it.done)
}

// Check says whether the spool that was opened goes on where another process
// left it.
func (s *Spool) Check(m Mark) error {
	own := s.own.Load()
	if own == nil {
		return errors.New("audit spool: not open")
	}
	if st := own.Status(); st.ID != m.ID || st.Sequence < m.Sequence {
		return fmt.Errorf("audit spool: %s ends at %d; the old process left %s at %d", st.ID, st.Sequence, m.ID, m.Sequence)
	}
	return nil
}

// Start serves remnants and ships to auth, when the spool is open.
func (s *Spool) Start() {
	s.turn.Lock()
	defer s.turn.Unlock()
	s.start()
}

func (s *Spool) start() {
	own := s.own.Load()
	if own == nil || s.stopWork != nil {
		return
	}
	ctx := s.begin()
	s.work.Go(func() { s.serve(ctx, own) })
	if s.c.Ship != nil {
		s.work.Go(func() { s.c.Ship(ctx, own) })
	}
}

func (s *Spool) begin() context.Context {
	ctx, stop := context.WithCancel(context.Background())
	s.stopWork = stop
	return ctx
}

// end waits for what Start, Follow or Return has begun.
func (s *Spool) end() {
	s.forgetReturn()
	if s.stopWork != nil {
		s.stopWork()
		s.stopWork = nil
	}
	s.work.Wait()
	s.settling.Wait()
}

// Yield closes the spool so that another process can open it. From now on events
// wait. With an error the spool may be closed or not; Open is the way back.
func (s *Spool) Yield() (Mark, error) {
	s.turn.Lock()
	defer s.turn.Unlock()
	own := s.own.Load()
	if own == nil {
		return Mark{}, errors.New("audit spool: not open")
	}
	if st := own.Status(); st.Problem == audit.ProblemUnwritable {
		return Mark{}, &sallyport.Problem{Kind: sallyport.ErrUnavailable, Fact: "audit spool: " + st.Problem, Hint: "look at the disk that holds the data directory"}
	}
	s.end()
	s.mu.Lock()
	s.own.Store(nil)
	s.since = time.Now()
	s.mu.Unlock()
	err := own.Close()
	st := own.Status()
	return Mark{st.ID, st.Sequence, st.Acknowledged}, err
}

// Return is the way back from Yield, also from one that failed or was never
// called. After an error it is tried again until it succeeds, or until the spool is
// to become something else: nobody else would come back to it.
func (s *Spool) Return(ctx context.Context) error {
	s.turn.Lock()
	defer s.turn.Unlock()
	s.forgetReturn()
	if err := s.open(ctx); err != nil {
		var again context.Context
		again, s.goBack = context.WithCancel(context.Background())
		s.work.Go(func() { s.returnLater(again) })
		return err
	}
	s.start()
	return nil
}

// returnPause is how soon a Return that has failed is tried again.
const returnPause = time.Second

// returnLater returns when the spool is here again. ctx ends under turn.
func (s *Spool) returnLater(ctx context.Context) {
	once, cancel := context.WithCancel(ctx)
	cancel() // open waits for nobody: turn is held meanwhile
	for sleep(ctx, returnPause) {
		for !s.turn.TryLock() { // who has it may wait for this to end
			if !sleep(ctx, lockPause) {
				return
			}
		}
		open := ctx.Err() == nil && s.open(once) == nil
		if open {
			s.start()
			s.forgetReturn()
		}
		s.turn.Unlock()
		if open {
			s.c.Log.Info("the audit spool is open again")
			return
		}
	}
}

// forgetReturn is called with turn held.
func (s *Spool) forgetReturn() {
	if s.goBack != nil {
		s.goBack()
		s.goBack = nil
	}
}

// Follow sends events to whoever owns the spool now. It comes after Yield.
func (s *Spool) Follow() {
	s.turn.Lock()
	defer s.turn.Unlock()
	if s.own.Load() != nil || s.stopWork != nil {
		return
	}
	s.forgetReturn()
	ctx, since := s.begin(), time.Now()
	s.work.Go(func() { s.follow(ctx, since) })
}

// Close ends all of it; what waits has until ctx is done.
func (s *Spool) Close(ctx context.Context) error {
	s.turn.Lock()
	defer s.turn.Unlock()
	if s.own.Load() == nil && s.stopWork != nil {
		s.drain(ctx)
	}
	s.end()
	s.mu.Lock()
	own := s.own.Swap(nil)
	s.closed = true
	left := s.queue
	s.queue, s.bytes = nil, 0
	s.movedLocked()
	s.mu.Unlock()
	for _, it := range left {
		it.answer(nobody())
	}
	if len(left) > 0 {
		s.c.Log.Error("events are not in the audit log: nobody served the spool", "events", len(left))
	}
	if own == nil {
		return nil
	}
	return own.Close()
}

// drain waits until everything is answered.
func (s *Spool) drain(ctx context.Context) {
	for {
		s.mu.Lock()
		left, moved := len(s.queue), s.moved
		unserved := !s.since.IsZero() && time.Since(s.since) > s.c.Patience
		s.mu.Unlock()
		if left == 0 || unserved {
			return
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return
		}
	}
}

// Status tells how the spool is. In a remnant it knows no numbers.
func (s *Spool) Status() audit.SpoolStatus {
	if own := s.own.Load(); own != nil {
		return own.Status()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	st := audit.SpoolStatus{Bytes: int64(s.bytes), MaxBytes: maxQueue}
	if !s.since.IsZero() && time.Since(s.since) > s.c.Patience {
		st.Refusing, st.Problem = true, "nobody serves the spool"
	}
	return st
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
