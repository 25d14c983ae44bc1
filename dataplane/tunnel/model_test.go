package tunnel

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/dataplane/relay"
	"github.com/sallyport/sallyport/test/leak"
	tunnelv1 "github.com/sallyport/sallyport/wire/sallyport/tunnel/v1"
)

// scriptLoop is a Loop that runs only when it is told to, on the caller's
// goroutine, by a clock of its own: every order of events can be played.
type scriptLoop struct {
	mail    []func()
	watched map[int]relay.Handler
	timers  map[relay.Timer]time.Time
	clock   *time.Time
}

func newScriptLoop(clock *time.Time) *scriptLoop {
	return &scriptLoop{watched: map[int]relay.Handler{}, timers: map[relay.Timer]time.Time{}, clock: clock}
}

func (l *scriptLoop) Watch(fd int, h relay.Handler) error { l.watched[fd] = h; return nil }
func (l *scriptLoop) Unwatch(fd int)                      { delete(l.watched, fd) }
func (l *scriptLoop) Arm(t relay.Timer, d time.Duration)  { l.timers[t] = l.clock.Add(d) }
func (l *scriptLoop) Disarm(t relay.Timer)                { delete(l.timers, t) }
func (l *scriptLoop) Post(f func()) bool                  { l.mail = append(l.mail, f); return true }
func (l *scriptLoop) Now() time.Time                      { return *l.clock }
func (l *scriptLoop) Scratch() []byte                     { return nil }
func (l *scriptLoop) Close() error                        { return nil }

// step runs one posted function, or, when there is none, delivers events and
// timers. It reports whether there was anything posted.
func (l *scriptLoop) step() bool {
	if len(l.mail) > 0 {
		f := l.mail[0]
		l.mail = l.mail[1:]
		f()
		return true
	}
	l.events()
	return false
}

// events delivers what is ready and due, whatever has been posted.
func (l *scriptLoop) events() {
	fds := make([]int, 0, len(l.watched))
	for fd := range l.watched {
		fds = append(fds, fd)
	}
	slices.Sort(fds)
	for _, fd := range fds {
		if h := l.watched[fd]; h != nil {
			h.Ready(relay.Readable | relay.Writable) // spurious calls happen
		}
	}
	for t, at := range l.timers {
		if !at.After(*l.clock) {
			delete(l.timers, t)
			t.Due(*l.clock)
		}
	}
}

// model is what must be true of a hub whatever happens, told by a script.
type model struct {
	t       *testing.T
	hub     *Hub
	clock   time.Time
	loops   []*scriptLoop
	tunnels []*modelTunnel
	data    []*modelData
	clients []*modelClient
}

type modelTunnel struct {
	*tunnel
	counter uint64
	hellos  [][]byte // that were accepted
	over    bool
}

// modelData is the agent's end of a data connection.
type modelData struct {
	tunnel *modelTunnel
	at     Binding
	fd     int
	spoke  bool // said something while it was parked
	shut   bool // closed by the agent
	leased *modelClient
}

// modelClient is a client, and the words that it will say.
type modelClient struct {
	m         *model
	kind      string
	id        ID
	cancel    func()
	cancelled bool
	answers   int
	lease     *Lease
	up        bool // the agent said so
	over      bool
}

func (c *modelClient) Leased(l *Lease) {
	c.answers++
	c.lease = l
	if c.cancelled {
		c.m.t.Fatal("a cancelled client got a lease")
	}
	words := fmt.Appendf(slices.Clone(l.Frame), "words of %x", c.id)
	if _, err := unix.Write(l.FD, words); err != nil && !c.m.anyShut() {
		c.m.t.Fatalf("writing to a leased connection: %v", err)
	}
}

func (c *modelClient) LeaseFailed(string) {
	c.answers++
	if c.cancelled {
		c.m.t.Fatal("a cancelled client got an answer")
	}
}

func (m *model) anyShut() bool {
	return slices.ContainsFunc(m.data, func(d *modelData) bool { return d.shut })
}

func newModel(t *testing.T) *model {
	m := &model{t: t, clock: time.Unix(1e9, 0)}
	m.loops = []*scriptLoop{newScriptLoop(&m.clock), newScriptLoop(&m.clock)}
	m.hub = NewHub(HubConfig{
		Verify: verifyAssigned, Now: func() time.Time { return m.clock }, Log: slog.New(slog.DiscardHandler),
		Bounds: Bounds{PoolFloor: 2, PoolCeiling: 6, HalfOpenAgent: 4, HalfOpenSource: 3, HalfOpenGateway: 8},
	})
	m.connect(0)
	m.connect(1)
	return m
}

// connect makes agent n's next tunnel. Both serve tcp/both, each its own name.
func (m *model) connect(n int) {
	agent := []string{agentID, agent2ID}[n]
	t := &tunnel{
		id: newID(), agent: agent, pool: newPool(m.hub.bounds, m.hub.parking), talk: &talk{out: make(chan *tunnelv1.Control, outbox), wake: make(chan struct{}, 1)},
		keys: keys{Key{1, byte(n)}, Key{2, byte(n)}}, end: func(error) {},
	}
	t.names.Store(&map[resourceName]bool{})
	check0(m.t, m.hub.adopt(t, assigned(1, "tcp/both", fmt.Sprintf("tcp/own%d", n))))
	for _, old := range m.tunnels {
		old.over = old.over || old.agent == agent
	}
	m.hub.open(t)
	m.hub.announce(t)
	m.tunnels = append(m.tunnels, &modelTunnel{tunnel: t})
}

func (m *model) park(t *modelTunnel, l *scriptLoop, hello []byte, at Binding, want bool) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	check0(m.t, err)
	check0(m.t, unix.SetNonblock(fds[0], true))
	check0(m.t, unix.SetNonblock(fds[1], true))
	err = m.hub.Park(l, fds[0], hello, netip.AddrPort{})
	if err != nil {
		if n, _ := unix.Read(fds[1], make([]byte, 1)); n != 0 {
			m.t.Fatalf("refused (%v), and read %d", err, n)
		}
		unix.Close(fds[1])
	}
	if !want && err == nil {
		m.t.Fatalf("a hello that must not be accepted was")
	}
	if err != nil {
		return
	}
	m.data = append(m.data, &modelData{tunnel: t, at: at, fd: fds[1]})
	t.hellos = append(t.hellos, hello)
}

// play runs one operation of the script.
func (m *model) play(op, arg byte) {
	l := m.loops[int(arg)%len(m.loops)]
	t := m.tunnels[int(arg>>1)%len(m.tunnels)]
	switch op % 14 {
	case 0, 1:
		t.counter++
		at := Binding{t.id, t.counter}
		m.park(t, l, AppendDataHello(nil, DataHello{Tunnel: at.Tunnel, Counter: at.Counter}, t.keys.agent), at, !t.over)
	case 2:
		if len(t.hellos) > 0 {
			m.park(t, l, t.hellos[int(arg>>4)%len(t.hellos)], Binding{}, false)
		}
	case 3:
		b := AppendDataHello(nil, DataHello{Tunnel: t.id, Counter: t.counter + 1}, t.keys.agent)
		b[6+int(arg>>2)%(HelloSize-6)] ^= 1 << (arg % 8)
		m.park(t, l, b, Binding{}, false)
	case 4, 5:
		c := &modelClient{m: m, kind: []string{"both", "own0", "own1", "none"}[arg>>2%4&3], id: newID()}
		m.clients = append(m.clients, c)
		src := netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, arg >> 5}), 1)
		c.cancel = m.hub.Lease(l, LeaseRequest{Kind: "tcp", Name: c.kind, Source: src, ConnectionID: c.id}, c)
	case 6:
		if c := pick(m.clients, arg); c != nil && c.answers == 0 {
			c.cancelled = true
			c.cancel()
		}
	case 7:
		if d := pick(m.data, arg); d != nil && !d.shut && !m.inUse(d) {
			d.spoke = true
			_, _ = unix.Write(d.fd, []byte("x"))
		}
	case 8:
		if d := pick(m.data, arg); d != nil && !d.shut && !m.inUse(d) {
			d.shut = true
			unix.Close(d.fd)
		}
	case 9, 10:
		if c := pick(m.clients, arg); c != nil && c.lease != nil {
			if op%2 == 0 {
				c.up = true
				m.hub.streamUp(c.lease.tunnel, c.id[:])
			} else {
				m.end(c)
			}
		}
	case 11:
		m.clock = m.clock.Add(time.Duration(arg) * 10 * time.Millisecond)
		m.hub.tick(t.tunnel)
	case 12:
		l.step()
	case 13:
		if arg > 240 && len(m.tunnels) < 8 {
			m.connect(int(arg) % 2)
		}
		l.events()
	}
	m.check()
}

func pick[T any](s []*T, arg byte) *T {
	if len(s) == 0 {
		return nil
	}
	return s[int(arg)%len(s)]
}

// inUse says that a data connection has a frame on it, or will get one.
func (m *model) inUse(d *modelData) bool {
	m.deliver()
	return d.leased != nil
}

// deliver reads what came at the agents' ends: one frame for that very
// connection, and the words of the client that it names.
func (m *model) deliver() {
	for _, d := range m.data {
		if d.shut || d.leased != nil {
			continue
		}
		b := make([]byte, MaxFrameSize+64)
		n, err := unix.Read(d.fd, b)
		if err != nil || n == 0 {
			continue
		}
		size, err := FrameSize(b[:n])
		check0(m.t, err)
		f, err := ParseOpenFrame(b[:size], d.at, d.tunnel.keys.gateway)
		check0(m.t, err)
		for _, c := range m.clients {
			if c.id == f.ConnectionID {
				d.leased = c
			}
		}
		if d.leased == nil || f.Name != d.leased.kind || !bytes.Equal(b[size:n], fmt.Appendf(nil, "words of %x", d.leased.id)) {
			m.t.Fatalf("frame %+v, then %q", f, b[size:n])
		}
		if d.spoke {
			m.t.Fatal("a connection on which the agent spoke was leased")
		}
		if own := "own0"; d.tunnel.agent == agent2ID && f.Name == own {
			m.t.Fatal("a stream went to an agent that does not serve it")
		}
	}
}

func (m *model) end(c *modelClient) {
	if c.lease == nil || c.over {
		return
	}
	c.over = true
	unix.Close(c.lease.FD)
	c.lease.Ended()
}

// check compares the hub's books with what is there.
func (m *model) check() {
	for _, t := range m.tunnels {
		p := t.pool
		n := 0
		for _, s := range p.shelves {
			n += s.length
		}
		if n != p.parked || n > p.ceiling+len(m.clients) || p.halfCount < len(p.half) || p.halfCount > p.halfMax {
			m.t.Fatalf("%d entries, parked %d, half-open %d of %d", n, p.parked, len(p.half), p.halfCount)
		}
	}
	halfOpen := 0
	for _, c := range m.clients {
		if c.answers > 1 {
			m.t.Fatalf("%d answers", c.answers)
		}
		if c.answers == 0 && !c.cancelled || c.lease != nil && !c.over && !c.up && !m.over(c.lease.tunnel) {
			halfOpen++
		}
	}
	if n := m.hub.strangers.total; n != halfOpen || n > m.hub.bounds.HalfOpenGateway {
		m.t.Fatalf("%d half-open, want %d", n, halfOpen)
	}
}

func (m *model) over(t *tunnel) bool {
	return slices.ContainsFunc(m.tunnels, func(o *modelTunnel) bool { return o.tunnel == t && o.over })
}

// finish lets everything come to its end, and looks for what is left.
func (m *model) finish() {
	m.clock = m.clock.Add(time.Minute)
	m.settle()
	m.deliver()
	for _, c := range m.clients {
		if c.answers == 0 && !c.cancelled {
			m.t.Fatal("a client was forgotten")
		}
		m.end(c)
	}
	m.settle()
	for _, t := range m.tunnels {
		m.hub.close(t.tunnel)
	}
	m.settle()
	for _, t := range m.tunnels {
		if t.pool.halfCount != 0 || t.streams() != 0 {
			m.t.Fatalf("left: %d half-open, %d streams", t.pool.halfCount, t.streams())
		}
	}
	if s := m.hub.strangers; s.total != 0 || len(s.half) != 0 {
		m.t.Fatalf("left: %d half-open, of %d sources", s.total, len(s.half))
	}
	if n := m.hub.queue.length.Load(); n != 0 || len(m.hub.queue.names) != 0 {
		m.t.Fatalf("left: %d in the queue", n)
	}
	for _, l := range m.loops {
		if len(l.watched) != 0 || len(l.timers) != 0 {
			m.t.Fatalf("left: %d watched, %d timers", len(l.watched), len(l.timers))
		}
	}
	for _, d := range m.data {
		m.wantEnd(d)
	}
}

// wantEnd: the gateway's end of every data connection has been closed, once.
func (m *model) wantEnd(d *modelData) {
	if d.shut {
		return
	}
	for {
		n, err := unix.Read(d.fd, make([]byte, 512))
		if err == unix.ECONNRESET || err == nil && n == 0 {
			break
		}
		if err != nil {
			m.t.Fatalf("a data connection is still open: %v", err)
		}
	}
	unix.Close(d.fd)
}

func (m *model) settle() {
	for quiet := 0; quiet < 3; {
		quiet++
		for _, l := range m.loops {
			for l.step() {
				quiet = 0
			}
		}
	}
}

// TestServedBetween: a client that was served between joining the queue and its
// second look is not served twice; what it found there goes back.
func TestServedBetween(t *testing.T) {
	m := newModel(t)
	m.play(0, 0)
	c := &modelClient{m: m}
	q := &request{hub: m.hub, loop: m.loops[1], waiter: c, name: resourceName{"tcp", "own0"}, LeaseRequest: LeaseRequest{Kind: "tcp", Name: "own0"}}
	if e, lease := m.hub.lookAgain(q); e != nil || lease != nil {
		t.Error("it found a connection though it had one")
	}
	m.settle()
	if p := m.tunnels[0].pool; p.parked != 1 || p.halfCount != 0 || c.answers != 0 {
		t.Errorf("parked %d, half-open %d, answers %d", p.parked, p.halfCount, c.answers)
	}
	m.finish()
}

// FuzzHub (Z4) plays scripts of hellos, leases, cancels, ends and time over two
// agents and two loops, against the model.
func FuzzHub(f *testing.F) {
	f.Add([]byte{0, 0, 0, 1, 4, 0, 12, 0, 12, 1, 9, 0, 10, 0})
	f.Add([]byte{4, 0, 5, 1, 0, 0, 0, 1, 12, 0, 12, 1, 12, 0, 12, 1, 11, 255})
	f.Add([]byte{0, 0, 0, 0, 0, 2, 4, 1, 6, 0, 12, 0, 12, 1, 4, 0, 7, 0, 8, 1, 12, 0, 13, 255, 2, 0, 3, 9})
	f.Add([]byte{0, 0, 0, 0, 0, 0, 4, 1, 4, 1, 4, 1, 13, 250, 12, 0, 12, 1, 10, 0, 10, 1, 11, 100})
	f.Fuzz(func(t *testing.T, script []byte) {
		if len(script) > 2000 {
			return
		}
		play := func() {
			m := newModel(t)
			for i := 0; i+1 < len(script); i += 2 {
				m.play(script[i], script[i+1])
			}
			m.finish()
		}
		before := openFiles()
		play()
		if after := openFiles(); after != before {
			// The collector may have closed what an earlier test has left. It does
			// so here first, which is too slow for every script.
			same := leak.Descriptors(t)
			play()
			same()
		}
	})
}

// TestHubScripts plays long random scripts: what FuzzHub does, each time anew.
func TestHubScripts(t *testing.T) {
	for seed := range uint64(60) {
		script := io.LimitReader(randomBytes(seed), 600)
		b, err := io.ReadAll(script)
		check0(t, err)
		m := newModel(t)
		for i := 0; i+1 < len(b); i += 2 {
			m.play(b[i], b[i+1])
		}
		m.finish()
	}
}

func openFiles() int {
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return -1
	}
	return len(d)
}

var _ relay.Loop = (*scriptLoop)(nil)

func randomBytes(seed uint64) io.Reader {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	return rand.NewChaCha8(key)
}

// TestLeaseAllocs: a lease from the same loop costs the request, the lease, the
// frame and its MAC, whatever the number of parked connections.
func TestLeaseAllocs(t *testing.T) {
	m := newModel(t)
	for range 6 {
		m.play(0, 0)
	}
	r := LeaseRequest{Kind: "tcp", Name: "own0", Source: netip.MustParseAddrPort("192.0.2.1:1"), ConnectionID: newID()}
	var again reparker
	n := testing.AllocsPerRun(1000, func() {
		m.hub.Lease(m.loops[0], r, &again)
		m.hub.streamUp(again.lease.tunnel, r.ConnectionID[:])
		again.lease.Ended()
		_ = m.hub.shelve(m.loops[0], &entry{tunnel: again.lease.tunnel, fd: again.lease.FD})
	})
	if n > 14 { // two of them are the test's, for parking again
		t.Errorf("%v allocations, want 14", n)
	}
	m.finish()
}

// reparker keeps what it got, for its test to park again.
type reparker struct{ lease *Lease }

func (r *reparker) Leased(l *Lease)      { r.lease = l }
func (*reparker) LeaseFailed(why string) { panic(why) }
