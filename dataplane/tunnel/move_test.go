package tunnel

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/handover"
	"github.com/sallyport/sallyport/dataplane/relay"
)

// house is a gateway whose process can be changed: its listening sockets stay,
// and each process has loops and a hub of its own. Where a gateway would move
// relays and connections that wait, the house does.
type house struct {
	*gateway // hub and loops are the present process's
	change   func(*HubConfig)
	still    bool // processes to come do not look at their orphans by themselves
	kind     func() (relay.Loop, error)

	moving  sync.RWMutex // held for writing while the loops stand still, and by who accepts
	now     *process
	clients map[*client]bool // guarded by lot
	lot     sync.Mutex
	ends    sync.WaitGroup // of processes
	once    sync.Once
}

// process is one of the house's.
type process struct {
	hub    *Hub
	loops  []relay.Loop
	ctx    context.Context
	cancel context.CancelFunc
	serves sync.WaitGroup
}

func newHouse(t testing.TB, kind func() (relay.Loop, error), loops int, change func(*HubConfig)) *house {
	t.Helper()
	control, err := net.Listen("tcp", "127.0.0.1:0")
	check0(t, err)
	data, err := net.Listen("tcp", "127.0.0.1:0")
	check0(t, err)
	h := &house{change: change, kind: kind, clients: map[*client]bool{}, gateway: &gateway{
		t: t, ca: newAuthority(t), control: control, data: data, presence: make(chan Presence, 10000),
		ended: make(chan error, 10000), parkErr: make(chan error, 1000000),
	}}
	h.loops = make([]relay.Loop, loops)
	h.settleIn(h.process())
	tc := h.ca.server(h.ca.issue(t, sallyport.KindGateway, gatewayID))
	h.tasks.Go(func() { h.acceptControl(tc) })
	h.tasks.Go(h.acceptData)
	t.Cleanup(h.stop)
	return h
}

// process starts a process that has nothing yet.
func (h *house) process() *process {
	p := &process{}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	for range h.loops {
		l, err := h.kind()
		check0(h.t, err)
		p.loops = append(p.loops, l)
	}
	cfg := HubConfig{
		GatewayID: gatewayID, Cluster: testCluster, DataAddress: h.data.Addr().String(), Loops: p.loops,
		Verify: verifyAssigned, Presence: func(p Presence) { h.presence <- p },
	}
	if h.change != nil {
		h.change(&cfg)
	}
	p.hub = NewHub(cfg)
	p.hub.adoptedFor = time.Hour // tests say when it is over
	if h.still {
		p.hub.orphanTick = time.Hour // and when a second has passed
	}
	return p
}

func (h *house) settleIn(p *process) { h.now, h.hub, h.loops = p, p.hub, p.loops }

func (h *house) acceptControl(tc *tls.Config) {
	for {
		c, err := h.control.Accept()
		if err != nil {
			return
		}
		h.moving.RLock()
		p := h.now
		p.serves.Go(func() { h.ended <- p.hub.Serve(p.ctx, tls.Server(c, tc)) })
		h.moving.RUnlock()
	}
}

// acceptData parks while the loops go: what comes meanwhile waits.
func (h *house) acceptData() {
	for {
		c, err := h.data.Accept()
		if err != nil {
			return
		}
		hello := make([]byte, HelloSize)
		if _, err := io.ReadFull(c, hello); err != nil {
			c.Close()
			continue
		}
		fd, from := takeFD(h.t, c), c.RemoteAddr().(*net.TCPAddr).AddrPort()
		h.moving.RLock()
		p := h.now
		l := p.loops[int(h.next.Add(1))%len(p.loops)]
		parked := make(chan error, 1)
		if l.Post(func() { parked <- p.hub.Park(l, fd, hello, from) }) {
			h.parkErr <- <-parked
		} else {
			unix.Close(fd)
		}
		h.moving.RUnlock()
	}
}

func (h *house) stop() {
	h.once.Do(func() {
		h.control.Close()
		h.data.Close()
		h.tasks.Wait()
		h.now.end()
		h.ends.Wait()
	})
}

func (p *process) end() {
	p.cancel()
	p.serves.Wait()
	for _, l := range p.loops {
		l.Close()
	}
}

// wire is a Writer whose new process is in this one. As between two, each
// descriptor is another one there. Every third TrySend has to wait.
type wire struct {
	mu     sync.Mutex
	taker  handover.Taker
	tries  int
	fail   func(handover.Record) error
	record []handover.Record // without descriptors
}

func (w *wire) Send(_ context.Context, r handover.Record) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.send(r)
}

func (w *wire) TrySend(r handover.Record) (bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.tries++; w.tries%3 == 0 {
		return false, nil
	}
	return true, w.send(r)
}

func (w *wire) send(r handover.Record) error {
	if len(r.FDs) > handover.MaxFDs || len(r.Body) > handover.MaxBody {
		return errors.New("a record beyond the bounds")
	}
	if w.fail != nil {
		if err := w.fail(r); err != nil {
			return err
		}
	}
	fds := make([]int, len(r.FDs))
	for i, fd := range r.FDs {
		var err error
		if fds[i], err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0); err != nil {
			return err
		}
	}
	w.record = append(w.record, handover.Record{Part: r.Part, Kind: r.Kind, Body: r.Body})
	return w.taker.Take(handover.Record{Part: r.Part, Kind: r.Kind, Body: r.Body, FDs: fds})
}

// die lets a new process's descriptors go as its death does.
func (k *taker) die() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, a := range k.came {
		a.release()
	}
}

// abortAt are the moments at which a new process of a test dies.
type abortAt int

const (
	never abortAt = iota
	inCopy
	afterCopy
	inFreeze
	afterFreeze
	afterComplete
)

var errPlanned = errors.New("planned")

// move changes the process, or fails to at a moment.
func (h *house) move(t testing.TB, at abortAt, meanwhile func()) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 6*patience)
	defer cancel()
	next := h.process()
	g, k := h.now.hub.Giver(), next.hub.Taker(next.ctx).(*taker)
	w := &wire{taker: k}
	n := 0
	w.fail = func(handover.Record) error {
		if n++; at == inCopy && n == 3 || at == inFreeze && g.(*giver).frozen {
			return errPlanned
		}
		return nil
	}
	back := func() {
		t.Helper()
		k.die()
		check0(t, g.Thaw())
		next.end()
	}
	if err := g.Copy(ctx, w); err != nil {
		if at != inCopy || !errors.Is(err, errPlanned) {
			t.Fatalf("copy: %v", err)
		}
		back()
		return
	}
	if meanwhile != nil {
		meanwhile()
	}
	if at == inCopy || at == afterCopy {
		back()
		return
	}
	h.moving.Lock()
	defer h.moving.Unlock()
	var held []*relay.Held
	for _, l := range h.now.loops {
		held = append(held, relay.Hold(l))
	}
	release := func() {
		for _, l := range held {
			l.Release()
		}
	}
	err := g.Freeze(ctx, w)
	if err == nil && at != afterFreeze {
		err = k.Complete(ctx)
	}
	if at != never || err != nil {
		if err != nil && !(at == inFreeze && errors.Is(err, errPlanned)) {
			t.Errorf("freeze: %v", err)
		}
		back()
		release()
		return
	}
	again := h.moveClients(next, held)
	g.Leave()
	release()
	k.Start()
	h.follow(t, next, again)
}

// follow goes on with the next process; the one before comes to its end.
func (h *house) follow(t testing.TB, next *process, again []*client) {
	old := h.now
	h.settleIn(next)
	for _, c := range again {
		h.seek(c)
	}
	h.ends.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 6*patience)
		defer cancel()
		if err := old.hub.Wait(ctx); err != nil {
			t.Errorf("the old process still has %+v", old.hub.Remaining())
		}
		old.end()
	})
}

// client is one of the house's: a lease, and then a stream.
type client struct {
	house   *house
	request LeaseRequest
	loop    relay.Loop
	cancel  func()

	// Of its loop's thread, or of who holds it.
	lease   *Lease
	turn    *atomic.Bool // the question has been asked, or never will be
	answer  chan outcome
	stop    func() // the lease's Ended, in whichever process
	stopped sync.Mutex
}

// come is a client that wants a stream.
func (h *house) stream(r LeaseRequest) *client {
	c := &client{house: h, request: r, answer: make(chan outcome, 4)}
	h.moving.RLock()
	defer h.moving.RUnlock()
	h.lot.Lock()
	h.clients[c] = true
	h.lot.Unlock()
	h.seek(c)
	return c
}

// seek asks the present process.
func (h *house) seek(c *client) {
	p := h.now
	l := p.loops[int(h.next.Add(1))%len(p.loops)]
	turn := &atomic.Bool{}
	c.loop, c.turn = l, turn
	if !l.Post(func() {
		if turn.CompareAndSwap(false, true) {
			c.cancel = p.hub.Lease(l, c.request, c)
		}
	}) {
		h.t.Error("the loop is closed")
	}
}

func (c *client) Leased(l *Lease) {
	c.lease, c.stop = l, l.Ended
	c.answer <- outcome{lease: l}
}

func (c *client) LeaseFailed(reason string) { c.answer <- outcome{reason: reason} }

// over ends the client's stream.
func (c *client) over() {
	c.stopped.Lock()
	defer c.stopped.Unlock()
	if c.stop != nil {
		c.stop()
	}
	c.house.lot.Lock()
	defer c.house.lot.Unlock()
	delete(c.house.clients, c)
}

// moveClients takes back what waits, and binds what runs. The loops stand still.
func (h *house) moveClients(to *process, held []*relay.Held) (again []*client) {
	h.lot.Lock()
	var all []*client
	for c := range h.clients {
		all = append(all, c)
	}
	h.lot.Unlock()
	for _, c := range all {
		if c.lease != nil {
			c.stopped.Lock()
			h.lot.Lock()
			if h.clients[c] {
				c.stop = to.hub.AdoptStream(c.lease.Ref())
			}
			h.lot.Unlock()
			c.stopped.Unlock()
			continue
		}
		if len(c.answer) > 0 {
			continue // failed
		}
		asked := !c.turn.CompareAndSwap(false, true)
		for i, l := range h.now.loops {
			if l == c.loop && asked {
				held[i].Do(c.cancel)
			}
		}
		again = append(again, c)
	}
	return again
}

func crowd(c *HubConfig) {
	c.Bounds = Bounds{
		HalfOpenSource: 1000, HalfOpenAgent: 1000, SourceRate: 1000000, PoolFloor: 8, LeaseWait: 6 * patience,
	}
}

func onHouse(t *testing.T, loops int, change func(*HubConfig), f func(t *testing.T, h *house)) {
	for _, k := range loopKinds() {
		t.Run(k.name, func(t *testing.T) { f(t, newHouse(t, k.make, loops, change)) })
	}
}

// TestMoves: clients come, talk and go while the process changes ten times;
// everybody is served, by whom he asked for, and hears his own words.
func TestMoves(t *testing.T) {
	before := openSockets()
	onHouse(t, 4, crowd, func(t *testing.T, h *house) {
		var stops []func()
		for _, id := range []string{agentID, agent2ID} {
			stops = append(stops, startAgent(t, h.ca, []string{h.control.Addr().String()}, func(c *AgentConfig) { c.AgentID, c.Log = id, nil }))
		}
		h.come(t)
		h.come(t)
		var storm sync.WaitGroup
		var over atomic.Bool
		var served atomic.Int64
		defer storm.Wait()
		defer over.Store(true)
		for n := range 6 {
			storm.Go(func() {
				for i := 0; !over.Load(); i++ {
					h.visit(t, fmt.Sprintf("client %d, stream %d", n, i))
					served.Add(1)
				}
			})
		}
		long := h.stay(t)
		for i := range 10 {
			if i == 5 {
				h.move(t, afterFreeze, nil)
			}
			before := served.Load()
			h.move(t, never, nil)
			for end := time.Now().Add(6 * patience); served.Load() <= before+20; time.Sleep(time.Millisecond) {
				if time.Now().After(end) {
					t.Fatalf("%d clients were served after move %d", served.Load()-before, i)
				}
			}
		}
		over.Store(true)
		storm.Wait()
		long()
		eventually(t, "agents of the last process", func() bool { return h.live() == 2 })
		eventually(t, "nothing held", func() bool { s := h.hub.Status(); return s.HalfOpen == 0 && s.Waiting == 0 })
		for _, s := range h.hub.Status().Tunnels {
			if s.Streams != 0 {
				t.Errorf("agent %s: %d streams are left", s.AgentID, s.Streams)
			}
		}
		for _, stop := range stops {
			stop()
		}
		h.stop()
	})
	eventually(t, "as many sockets and loops as before", func() bool { return openSockets() <= before })
}

// openSockets counts what a hand-over may leave behind; the runtime keeps pipes.
func openSockets() (n int) {
	files, _ := os.ReadDir("/proc/self/fd") // elsewhere nothing is counted
	for _, f := range files {
		what, _ := os.Readlink("/proc/self/fd/" + f.Name())
		if strings.HasPrefix(what, "socket:") || strings.HasSuffix(what, "[eventpoll]") {
			n++
		}
	}
	return n
}

// live is how many tunnels have a control connection.
func (h *house) live() (n int) {
	for _, s := range h.hub.Status().Tunnels {
		if !s.Moved {
			n++
		}
	}
	return n
}

func clientRequest() LeaseRequest {
	return LeaseRequest{Kind: "tcp", Name: "echo", Source: netip.MustParseAddrPort("192.0.2.1:4711"), ConnectionID: newID()}
}

// visit is one client: it is served, however often the process changes.
func (h *house) visit(t *testing.T, words string) {
	c := h.stream(clientRequest())
	defer c.over()
	o := <-c.answer
	if o.lease == nil {
		t.Errorf("%s: %s", words, o.reason)
		return
	}
	conn := connOf(t, o.lease.FD)
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(6 * patience)) // it is open
	got := make([]byte, len(words))
	_, err := conn.Write(append(o.lease.Frame, words...))
	if err == nil {
		_, err = io.ReadFull(conn, got)
	}
	if err != nil || string(got) != words {
		t.Errorf("%s: got %q, %v", words, got, err)
	}
}

// stay is a stream that is there from before the first move until it is called.
func (h *house) stay(t *testing.T) func() {
	c := h.stream(clientRequest())
	o := receive(t, c.answer)
	if o.lease == nil {
		t.Fatal(o.reason)
	}
	conn := clientConn(t, o.lease)
	check0(t, conn.SetDeadline(time.Time{}))
	ask(t, conn, "before")
	return func() {
		ask(t, conn, "after")
		conn.Close()
		c.over()
	}
}
