package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/gateway"
	"github.com/sallyport/sallyport/dataplane/handover"
	"github.com/sallyport/sallyport/dataplane/handover/failpoint"
	"github.com/sallyport/sallyport/dataplane/handover/verdict"
	handoverv1 "github.com/sallyport/sallyport/wire/sallyport/handover/v1"
)

const (
	canaryMost     = 0.5 // of the connections: the other side is what it is compared with
	canaryWatchMin = time.Second
	canaryWatchMax = 24 * time.Hour

	canaryTick    = 250 * time.Millisecond
	canarySilence = 5 * time.Second // without a report it is not waited for any longer

	// comeBackWithin is what all connections have to come back, as long as some do.
	comeBackWithin = 15 * time.Second
	comeBackMost   = 64 // at once
	comeBackAgain  = 20 * time.Millisecond

	// spareFDs are left to the process when connections come back, and to the
	// canary when they go.
	spareFDs = 256
)

// canarySpec is what was asked for.
type canarySpec struct {
	share float64
	watch time.Duration
	force bool // go on when nothing can be said at the end
	by    string
}

// canary is a process of the program on disk that gets a share of the new
// connections. It ends before the upgrade: its connections come back, and then
// all go to a fresh process by the ordinary way.
type canary struct {
	canarySpec
	node    *node
	gateway *gateway.Gateway
	version string
	mark    programMark
	started time.Time
	before  uint64 // connections that were passed by earlier canaries

	proc   *exec.Cmd
	talk   *handover.Talk
	gone   chan struct{} // closed when it has ended the talk
	exited chan struct{} // closed when the process has been reaped
	died   error         // how; to be read after exited
	place  *remnantFile  // its record, without the lock, which is its own

	room     atomic.Int64                            // connections that it may still get
	unsaid   atomic.Int64                            // connections that it has got since it has said how many it has
	returned chan *handoverv1.CanaryReturned         // answers
	ready    chan *handoverv1.CanaryFailed           // nil: it is
	orders   chan canaryOrder                        // by operators
	done     chan struct{}                           // closed when it is over
	last     atomic.Pointer[handoverv1.CanaryReport] // what it has said
	heard    atomic.Int64                            // when, Unix nanoseconds
	coming   atomic.Bool                             // its connections are on their way back
	leases   *gateway.Lender                         // nil without tunnels

	mu      sync.Mutex
	settled bool           // no order is heard any more
	relays  map[string]int // by route, as it has said
	shown   int            // relays in all, as the gateway counts them
	apart   bool           // what it still has is its own, and not the gateway's to count
}

// canaryOrder is what an operator wants of a canary.
type canaryOrder struct {
	finish bool
	by     string
}

// programMark tells whether program and configuration are what was tried.
type programMark struct {
	program os.FileInfo
	config  [sha256.Size]byte
}

func markOf(program, config string) (m programMark, err error) {
	if m.program, err = os.Stat(program); err != nil {
		return m, err
	}
	b, err := os.ReadFile(config)
	m.config = sha256.Sum256(b)
	return m, err
}

func (m programMark) same(o programMark) bool {
	return os.SameFile(m.program, o.program) && m.program.Size() == o.program.Size() && m.program.ModTime().Equal(o.program.ModTime()) && m.config == o.config
}

// startCanary begins one, or says why not.
func (n *node) startCanary(spec canarySpec) (*upgradeReport, error) {
	u := &n.upgrades
	r := &upgradeReport{Time: time.Now(), By: spec.by, Outcome: upgradeRefused, FromVersion: version, FromPID: os.Getpid()}
	if !u.turn.take(false) {
		return r.failed(busy("sallyport status tells what came of it"))
	}
	defer u.turn.end()
	c, err := n.hatch(spec, r)
	if err != nil {
		n.log.Error("no canary; everything goes on as it was", "by", spec.by, "reason", err)
		r, err = r.failed(err)
		n.remember(*r)
		return r, err
	}
	n.log.Info("a canary gets new connections", "by", spec.by, "pid", c.pid(), "version", c.version, "share", spec.share, "watch", spec.watch)
	r.Outcome, r.Canary = upgradeWatching, c.status()
	n.canary.Store(c)
	u.caller.Add(1) // the process does not end before its record is written
	c.gateway.Try(gateway.Trial{Share: spec.share, Leases: c.leases != nil, Pass: c.pass})
	go c.run(u.ctx)
	return r, nil
}

// failed is the report of an error.
func (r *upgradeReport) failed(err error) (*upgradeReport, error) {
	r.Problem, r.Hint = problemText(err)
	return r, err
}

func (n *node) remember(r upgradeReport) {
	if err := addHistory(n.cfg.DataDir, r); err != nil {
		n.log.Warn("the record of upgrades could not be written", "error", err)
	}
}

// hatch starts the process and waits until it is ready.
func (n *node) hatch(spec canarySpec, r *upgradeReport) (*canary, error) {
	u := &n.upgrades
	if err := n.mayUpgrade(); err != nil {
		return nil, err
	}
	role := n.shownGateway.Load()
	if role == nil {
		return nil, &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: "a canary is for gateways: this process has none", Hint: "sallyport upgrade without --canary"}
	}
	v, err := n.probe()
	if v != nil {
		r.ToVersion = v.Version
	}
	if err != nil {
		return nil, err
	}
	if v.Canary == 0 {
		return nil, &sallyport.Problem{Kind: sallyport.ErrConflict, Fact: fmt.Sprintf("version %s cannot be a canary", v.Version), Hint: "sallyport upgrade without --canary"}
	}
	mark, err := markOf(u.program, n.reloads.file)
	if err != nil {
		return nil, err
	}
	c := &canary{canarySpec: spec, node: n, gateway: role.gateway, version: v.Version, mark: mark, started: time.Now(),
		before: role.gateway.Snapshot().Outcomes[gateway.OutcomePassed], gone: make(chan struct{}), exited: make(chan struct{}),
		returned: make(chan *handoverv1.CanaryReturned, 1), ready: make(chan *handoverv1.CanaryFailed, 1),
		orders: make(chan canaryOrder, 1), done: make(chan struct{}), relays: map[string]int{}}
	if err := c.start(role); err != nil {
		return nil, err
	}
	return c, nil
}

// start starts the process, and ends it when it is not ready in time.
func (c *canary) start(role *gatewayRole) error {
	u := &c.node.upgrades
	if err := failpoint.Hit("canary.old.start"); err != nil {
		return err
	}
	mine, its, err := handover.Pair()
	if err != nil {
		return err
	}
	end := its.File()
	c.proc = exec.Command(u.program, "canary", "--config="+c.node.reloads.file)
	c.proc.Dir, c.proc.Env, c.proc.Stderr = u.dir, quietEnvironment(os.Environ()), os.Stderr
	c.proc.ExtraFiles = []*os.File{end}
	err = c.proc.Start()
	_ = end.Close()
	if err != nil {
		mine.Close()
		return err
	}
	c.talk = handover.NewTalk(mine)
	if role.hub != nil {
		c.leases = gateway.NewLender(c.talk, role.config.Tunnels, role.loops)
	}
	c.heard.Store(time.Now().UnixNano())
	go c.reap()
	go c.listen()
	ctx, cancel := context.WithTimeout(u.ctx, readyWithin)
	defer cancel()
	if err := c.meet(ctx, role); err != nil {
		c.kill()
		c.node.watched.Store(0)
		return err
	}
	return nil
}

func (c *canary) meet(ctx context.Context, role *gatewayRole) error {
	if err := failpoint.Hit("canary.old.meet"); err != nil {
		return err
	}
	place, err := c.enroll()
	if err != nil {
		return c.unrecorded(err)
	}
	defer place.file.Close() // then the lock is the canary's alone, and ends with it
	if err := c.introduce(ctx, role, place); err != nil {
		return err
	}
	select {
	case failed := <-c.ready:
		if failed != nil {
			return &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: "the canary could not begin: " + failed.GetReason(), Hint: orText(failed.GetHint(), "nothing was changed: the process goes on")}
		}
		c.setRoom(0)
		if c.place, err = remnantOf(c.node.cfg.DataDir, c.pid()); err != nil {
			return c.unrecorded(err)
		}
		return nil
	case <-c.gone:
		return &sallyport.Problem{Kind: sallyport.ErrUnavailable, Fact: "the canary has ended before it began: " + c.obituary(), Hint: "nothing was changed: the process goes on"}
	case <-ctx.Done():
		return &sallyport.Problem{Kind: sallyport.ErrUnavailable, Fact: fmt.Sprintf("the canary was not ready within %v", readyWithin), Hint: "nothing was changed: the process goes on"}
	}
}

// enroll puts the canary on record: whatever becomes of this process, and however
// the canary hangs, whoever is the main process finds it there.
func (c *canary) enroll() (*remnantFile, error) {
	c.node.watched.Store(int64(c.pid()))
	return openRemnant(c.node.cfg.DataDir, remnantReport{PID: c.pid(), Version: c.version, Since: c.started, Until: c.started.Add(c.watch + c.node.drainTime()), Canary: true})
}

func (c *canary) unrecorded(err error) error {
	return &sallyport.Problem{Kind: sallyport.ErrUnavailable, Cause: err, Fact: "the canary cannot be put on record: " + err.Error(), Hint: "see to " + c.node.cfg.DataDir + ", and try again"}
}

// introduce is the first that the canary hears: what is not in its configuration,
// and the file of its record.
func (c *canary) introduce(ctx context.Context, role *gatewayRole, place *remnantFile) error {
	r, err := canaryRecord(handoverv1.CanaryKind_CANARY_KIND_START, &handoverv1.CanaryStart{Cluster: role.config.Cluster, Tunnels: c.leases != nil, Version: version})
	if err != nil {
		return err
	}
	fd, err := dup(place.file)
	if err != nil {
		return err
	}
	r.FDs = []int{fd}
	defer closeFDs(r.FDs)
	return c.talk.Send(ctx, r)
}

func (c *canary) pid() int { return c.proc.Process.Pid }

// reap waits for the process.
func (c *canary) reap() {
	c.died = c.proc.Wait()
	close(c.exited)
}

// obituary is how the process has ended, after it has ended the talk.
func (c *canary) obituary() string {
	select {
	case <-c.exited:
	case <-time.After(canaryLeaves):
		return "it still runs"
	}
	if c.died == nil {
		return "exit status 0"
	}
	return c.died.Error()
}

// kill ends the process, and returns when nothing of it is left.
func (c *canary) kill() {
	_ = c.proc.Process.Signal(syscall.SIGKILL) // it may have ended
	<-c.exited
	<-c.gone // everything that it had sent is here
}

func (c *canary) say(ctx context.Context, kind handoverv1.CanaryKind, m proto.Message) error {
	r, err := canaryRecord(kind, m)
	if err != nil {
		return err
	}
	return c.talk.Send(ctx, r)
}

// pass gives the canary a connection; it is called on the loops' threads.
func (c *canary) pass(r handover.Record) bool {
	if c.room.Add(-1) < 0 || failpoint.Hit("canary.old.pass") != nil {
		return false
	}
	sent, err := c.talk.TrySend(r)
	if !sent || err != nil {
		return false
	}
	c.unsaid.Add(1)
	return true
}

// setRoom bounds what the canary gets by the descriptors that it may have: two
// for each connection.
func (c *canary) setRoom(has uint64) {
	c.room.Store((fdLimit()-spareFDs)/2 - int64(has))
}

// fdLimit is how many descriptors a process may have.
func fdLimit() int64 {
	var lim unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &lim) != nil || lim.Cur > 1<<30 {
		return 1 << 30
	}
	return int64(lim.Cur)
}

// roomFor is how many connections may come back at once. A relay has at most six
// descriptors.
func roomFor() int {
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 1
	}
	return int(max(0, min(comeBackMost, (fdLimit()-spareFDs/2-int64(len(open)))/6)))
}

// listen takes what the canary says, until it has ended.
func (c *canary) listen() {
	defer close(c.gone)
	for {
		r, err := c.talk.Receive()
		if err != nil {
			break
		}
		c.hear(r)
	}
	c.talk.Close()
	if c.leases != nil {
		c.leases.Close()
	}
	c.forget()
}

func (c *canary) hear(r handover.Record) {
	var err error
	switch handoverv1.CanaryKind(r.Kind) {
	case handoverv1.CanaryKind_CANARY_KIND_CONNECTION:
		err = c.takeBack(r, c.gateway.TakeConnection)
	case handoverv1.CanaryKind_CANARY_KIND_RELAY:
		err = c.takeBack(r, c.gateway.TakeRelay)
	default:
		closeFDs(r.FDs)
		err = c.hearWords(r)
	}
	if err != nil {
		c.node.log.Error("what the canary has sent could not be taken", "kind", r.Kind, "error", err)
	}
}

// takeBack goes on with what has come back. Its descriptors are the gateway's.
func (c *canary) takeBack(r handover.Record, take func(handover.Record) error) error {
	if err := failpoint.Hit("canary.old.take"); err != nil {
		closeFDs(r.FDs)
		return err
	}
	err := take(r)
	if c.leases != nil {
		c.leases.Back(r)
	}
	return err
}

func (c *canary) hearWords(r handover.Record) error {
	switch handoverv1.CanaryKind(r.Kind) {
	case handoverv1.CanaryKind_CANARY_KIND_READY:
		c.answer(nil)
	case handoverv1.CanaryKind_CANARY_KIND_FAILED:
		m := &handoverv1.CanaryFailed{}
		if err := proto.Unmarshal(r.Body, m); err != nil {
			return err
		}
		c.answer(m)
	case handoverv1.CanaryKind_CANARY_KIND_REPORT:
		m := &handoverv1.CanaryReport{}
		if err := proto.Unmarshal(r.Body, m); err != nil {
			return err
		}
		c.count(m)
	case handoverv1.CanaryKind_CANARY_KIND_RETURNED:
		m := &handoverv1.CanaryReturned{}
		if err := proto.Unmarshal(r.Body, m); err != nil {
			return err
		}
		select {
		case c.returned <- m:
		default: // nobody has asked
		}
	default:
		if c.leases != nil {
			return c.leases.Hear(r)
		}
	}
	return nil
}

func (c *canary) answer(m *handoverv1.CanaryFailed) {
	select {
	case c.ready <- m:
	default: // it was asked once
	}
}

// count takes a report: metrics and status show both processes as one gateway.
func (c *canary) count(m *handoverv1.CanaryReport) {
	c.heard.Store(time.Now().UnixNano())
	c.last.Store(m)
	c.unsaid.Store(0)
	c.setRoom(m.GetRelays() + m.GetWaiting())
	g := gateway.GuestReport{Outcomes: m.GetOutcomes(), BytesIn: m.GetBytesIn(), BytesOut: m.GetBytesOut()}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.apart {
		now := int(min(m.GetRelays(), 1<<30))
		g.Relays, c.shown = now-c.shown, now
	}
	for _, r := range m.GetRoutes() {
		d := gateway.RouteSnapshot{Name: r.GetName(), BytesIn: r.GetBytesIn(), BytesOut: r.GetBytesOut(), Results: r.GetResults()}
		if !c.apart {
			d.Relays = int(r.GetRelays())
			c.relays[d.Name] += d.Relays
		}
		g.Routes = append(g.Routes, d)
	}
	c.gateway.CountGuest(g)
}

// forget takes the gauges of a canary back that is gone, or goes on by itself. It
// may be called twice.
func (c *canary) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.apart = true
	g := gateway.GuestReport{Relays: -c.shown}
	c.shown = 0
	for name, n := range c.relays {
		g.Routes = append(g.Routes, gateway.RouteSnapshot{Name: name, Relays: -n})
	}
	clear(c.relays)
	c.gateway.CountGuest(g)
}

// compared are both sides.
func (c *canary) compared() verdict.Compare {
	old := c.gateway.Tally()
	its := c.last.Load()
	return verdict.Compare{Old: sampleOf(old.Results, old.FirstByte), New: sampleOf(its.GetResults(), its.GetFirstByte()), Bound: gateway.TrialSlot}
}

func sampleOf(results map[string]uint64, times []uint64) verdict.Sample {
	s := verdict.Sample{Good: results["relayed"] + results["served"], Closed: results[gateway.ResultClosed], Broken: results[gateway.ResultBroken],
		Times: times[:min(len(times), gateway.TrialSlots)]}
	for _, r := range []string{"unreachable", "refused", "ended_early"} {
		s.Failed += results[r]
	}
	return s
}

// decision is how a canary ends.
type decision struct {
	finish  bool
	by      string
	verdict *verdict.Verdict
	problem string // why it goes back; "" when an operator wants it
}

// run watches the canary to its end, and does what comes then.
func (c *canary) run(ctx context.Context) {
	defer c.node.upgrades.caller.Done()
	defer close(c.done)
	defer c.letLoose()
	d := c.watched(ctx)
	c.coming.Store(true)
	c.gateway.Tried()
	left, all := c.comeBack(ctx)
	status := c.status()
	status.Verdict, status.Lost, status.Left = d.verdict, c.lost(), left
	if d.finish {
		d = c.blame(d, all)
	}
	c.leave(ctx, left)
	d = c.settle(d)
	n := c.node
	r := upgradeReport{Time: c.started, By: d.by, Outcome: upgradeBack, FromVersion: version, FromPID: os.Getpid(), ToVersion: c.version, Canary: status}
	switch {
	case ctx.Err() != nil:
		n.canary.Store(nil)
		return // the service ends
	case !d.finish:
		r.Problem, r.Hint = d.problem, "the old process serves everything; nothing of its own was touched"
		switch {
		case status.Lost > 0:
			r.Hint = fmt.Sprintf("with it ended what it had, %s or so; the old process's own go on", counted(status.Lost, "connection"))
		case left > 0:
			r.Hint = fmt.Sprintf("%s did not come back and stay with process %d, which sallyport status shows; it ends with the last of them, after upgrade.drain, or with the service", counted(left, "connection"), c.pid())
		}
		n.log.Warn("the canary has gone back", "by", d.by, "reason", orText(d.problem, "asked to"), "left", left, "lost", status.Lost)
		n.remember(r)
		n.canary.Store(nil)
		return
	}
	n.log.Info("the canary was good; all connections follow", "by", d.by)
	n.canary.Store(nil)
	_, _ = n.upgradeTo(upgradeCall{by: d.by, canary: status, mark: &c.mark}) // the record and the log have it
}

// watched returns when it is decided what comes of the canary.
func (c *canary) watched(ctx context.Context) decision {
	tick := time.NewTicker(canaryTick)
	defer tick.Stop()
	end := time.NewTimer(c.watch)
	defer end.Stop()
	look := uint64(verdict.FewestToBlame)
	var quiet silence
	for {
		select {
		case <-ctx.Done():
			return decision{by: c.by}
		case o := <-c.orders:
			v := c.compared().Judge()
			return decision{finish: o.finish, by: o.by, verdict: &v}
		case <-c.gone:
			return decision{by: c.by, problem: "the canary has ended by itself: " + c.obituary()}
		case <-end.C:
			return c.judged()
		case <-tick.C:
		}
		if quiet.lasts(c.heard.Load()) {
			return decision{by: c.by, problem: fmt.Sprintf("the canary has said nothing for %v", canarySilence)}
		}
		// Each doubling is one look, so that there are few that luck could use.
		s := c.compared()
		if decided := s.New.Good + s.New.Failed; decided >= look {
			look = 2 * decided
			if v := s.Blame(); v != nil {
				return decision{by: c.by, verdict: v, problem: "the new program is worse: " + v.Reason}
			}
		}
	}
}

// silence is how long nothing was heard, in ticks that this process was awake for: a
// machine that stood still for long is no fault of the canary's, and a Ticker does
// not make up for what it has missed.
type silence struct {
	heard int64 // when, the last time
	ticks int
}

// lasts counts a tick, and says whether it has been quiet for longer than canarySilence.
func (s *silence) lasts(heard int64) bool {
	if s.ticks++; heard != s.heard {
		s.heard, s.ticks = heard, 0
	}
	return s.ticks > int(canarySilence/canaryTick)
}

// judged is the decision at the end of the watch.
func (c *canary) judged() decision {
	v := c.compared().Judge()
	d := decision{by: c.by, verdict: &v, finish: v.Outcome == verdict.Good || v.Outcome == verdict.Undecided && c.force}
	switch {
	case d.finish:
	case v.Outcome == verdict.Worse:
		d.problem = "the new program is worse: " + v.Reason
	default:
		d.problem = "nothing can be said of the new program: " + v.Reason
	}
	return d
}

// blame is the decision once the connections of a good canary have come back: a
// program that crashes or hangs at that gets no more of them.
func (c *canary) blame(d decision, all bool) decision {
	select {
	case <-c.gone:
		d.finish, d.problem = false, "the canary has ended by itself when its connections were to come back: "+c.obituary()
	default:
		if !all {
			d.finish, d.problem = false, "the canary did not give all its connections back, or did not say so"
		}
	}
	return d
}

// settle is the decision with what an operator, or a drain, has said since. Whoever
// comes later is told so.
func (c *canary) settle(d decision) decision {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.settled = true
	select {
	case o := <-c.orders:
		if d.finish && !o.finish {
			d.finish, d.by = false, o.by
		}
	default:
	}
	return d
}

// tell reports whether the order will be heard.
func (c *canary) tell(o canaryOrder) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.settled {
		return false
	}
	select {
	case c.orders <- o:
		return true
	default:
		return false
	}
}

// comeBack takes all connections back, and says how many did not come; all is true
// only when the canary has said so.
func (c *canary) comeBack(ctx context.Context) (left int, all bool) {
	left = c.has()
	fewest := math.MaxInt
	for moved := time.Now(); time.Since(moved) < comeBackWithin; {
		m, err := c.askBack(ctx)
		if err != nil {
			break
		}
		if left = int(m.GetLeft()); left == 0 {
			return 0, true
		}
		if m.GetGiven() > 0 && left < fewest { // none are added: what does not grow fewer does not come
			moved, fewest = time.Now(), left
			continue
		}
		select {
		case <-time.After(comeBackAgain):
		case <-ctx.Done():
			return left, false
		}
	}
	select {
	case <-c.gone:
		return 0, false // what had not come back is closed, and nobody has it
	default:
		return left, false
	}
}

// askBack asks for some connections.
func (c *canary) askBack(ctx context.Context) (*handoverv1.CanaryReturned, error) {
	ctx, cancel := context.WithTimeout(ctx, comeBackWithin)
	defer cancel()
	err := errors.Join(failpoint.Hit("canary.old.return"), c.say(ctx, handoverv1.CanaryKind_CANARY_KIND_RETURN, &handoverv1.CanaryReturn{Most: uint32(roomFor())}))
	if err != nil {
		return nil, err
	}
	select {
	case m := <-c.returned:
		return m, nil
	case <-c.gone:
		return nil, errors.New("the canary has ended")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// lost is how many connections a canary had that has died with them.
func (c *canary) lost() int {
	select {
	case <-c.gone:
		return c.has()
	default:
		return 0
	}
}

// has is about how many connections the canary has: what it has said last, and what
// it has got since. One that hangs is given its share until that is noticed, and
// says of none of these.
func (c *canary) has() int {
	last := c.last.Load()
	return int(min(min(last.GetRelays(), 1<<30)+min(last.GetWaiting(), 1<<30)+uint64(c.unsaid.Load()), 1<<30))
}

// leave ends the process. One that has connections left serves them out by
// itself (canary_left.go); with the service everything ends.
func (c *canary) leave(ctx context.Context, left int) {
	if left > 0 && ctx.Err() == nil {
		c.letGo(left)
		return
	}
	within, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if failpoint.Hit("canary.old.leave") == nil {
		_ = c.say(within, handoverv1.CanaryKind_CANARY_KIND_END, nil) // who does not hear it is killed
	}
	select {
	case <-c.exited:
		<-c.gone
	case <-time.After(canaryLeaves):
		c.kill()
	}
}

// order tells the canary's watch what an operator wants.
func (n *node) order(o canaryOrder) (*upgradeReport, error) {
	c := n.canary.Load()
	r := &upgradeReport{Time: time.Now(), By: o.by, Outcome: upgradeRefused, FromVersion: version, FromPID: os.Getpid()}
	if c == nil {
		return r.failed(&sallyport.Problem{Kind: sallyport.ErrNotFound, Fact: "there is no canary", Hint: "sallyport upgrade --canary 5% begins one; sallyport status shows what came of the last"})
	}
	if !c.tell(o) {
		return r.failed(&sallyport.Problem{Kind: sallyport.ErrConflict, Fact: "the canary has been told already", Hint: "sallyport status shows what comes of it"})
	}
	r.Outcome, r.ToVersion, r.Canary = upgradeWatching, c.version, c.status()
	return r, nil
}

// endCanary takes its connections back, for something that cannot go on beside
// it, and returns when that is done.
func (n *node) endCanary(ctx context.Context, by string) {
	c := n.canary.Load()
	if c == nil {
		return
	}
	c.tell(canaryOrder{by: by}) // else it ends as it was told to before
	select {
	case <-c.done:
	case <-ctx.Done():
	}
}

// errCanary refuses what would change what is being compared.
func errCanary(c *canary) error {
	return &sallyport.Problem{Kind: sallyport.ErrConflict, Fact: fmt.Sprintf("a canary is being watched: process %d, version %s", c.pid(), c.version),
		Hint: "wait for it, or sallyport upgrade --finish, or --back"}
}
