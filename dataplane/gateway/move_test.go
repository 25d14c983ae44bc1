//go:build unix

package gateway

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/sallyport/sallyport/alpn"
	"github.com/sallyport/sallyport/dataplane/handover"
	"github.com/sallyport/sallyport/dataplane/relay"
	handoverv1 "github.com/sallyport/sallyport/wire/sallyport/handover/v1"
)

// wire brings records to an heir as another process would get them: with
// descriptors of its own.
type wire struct {
	heir *Heir

	mu    sync.Mutex
	sent  int // records
	fails int // after so many; 0 never
	full  bool
}

var errWire = errors.New("the wire is cut")

func (w *wire) Send(ctx context.Context, r handover.Record) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(r.Body) > handover.MaxBody || len(r.FDs) > handover.MaxFDs {
		return fmt.Errorf("a record of %d bytes and %d descriptors", len(r.Body), len(r.FDs))
	}
	if w.sent++; w.fails > 0 && w.sent >= w.fails {
		return errWire
	}
	r.Body = bytes.Clone(r.Body)
	fds := make([]int, len(r.FDs))
	for i, fd := range r.FDs {
		var err error
		if fds[i], err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0); err != nil {
			return err
		}
	}
	r.FDs = fds
	return w.heir.Take(r)
}

// TrySend has no room every second time.
func (w *wire) TrySend(r handover.Record) (bool, error) {
	w.mu.Lock()
	w.full = !w.full
	full := w.full
	w.mu.Unlock()
	if full {
		return false, nil
	}
	err := w.Send(context.Background(), r)
	return err == nil, err
}

// heir makes the next gateway, which waits.
func (r *rig) heir(loops []relay.Loop, change func(*Config)) *Heir {
	r.Helper()
	cfg := r.cfg
	cfg.Loops = loops
	if change != nil {
		change(&cfg)
	}
	h, err := Inherit(cfg)
	check(r, err)
	r.Cleanup(func() { h.Close(); h.Gateway().Close() })
	return h
}

// moves goes on in another gateway, on loops of its own.
func (r *rig) moves(loops []relay.Loop, change func(*Config)) {
	r.Helper()
	h := r.heir(loops, change)
	old := r.Gateway
	w := &wire{heir: h}
	check(r, old.Giver().Copy(r.Context(), w))
	check(r, old.Giver().Freeze(r.Context(), w))
	check(r, h.Complete(r.Context()))
	h.Start()
	old.Giver().Leave()
	old.Close()
	r.Gateway = h.Gateway()
	r.addr = r.Addrs()[0].String()
}

// turnsBack fails at every record in turn, and goes on as before.
func (r *rig) turnsBack(kind func() (relay.Loop, error)) {
	r.Helper()
	for fails := 1; ; fails++ {
		h := r.heir(newLoops(r, kind, 2), nil)
		w := &wire{heir: h, fails: fails}
		err := r.Giver().Copy(r.Context(), w)
		if err == nil {
			err = r.Giver().Freeze(r.Context(), w)
		}
		if err == nil {
			check(r, h.Complete(r.Context()))
		}
		h.Close() // the new process is dead before the old one goes on
		check(r, r.Giver().Thaw())
		switch {
		case err == nil:
			return
		case !errors.Is(err, errWire):
			r.Fatal(err)
		}
	}
}

// visits goes to a guest on other loops, one by one, and comes back.
func (r *rig) visits(loops []relay.Loop) {
	r.Helper()
	cfg := r.cfg
	cfg.Loops = loops
	guest, err := StartGuest(cfg)
	check(r, err)
	r.Cleanup(guest.Close)
	r.allGo(r.Gateway, guest)
	r.allGo(guest, r.Gateway)
}

// allGo takes all from one gateway to another, a few at a time.
func (r *rig) allGo(from, to *Gateway) {
	r.Helper()
	full := false
	send := func(m handover.Record) bool {
		if full = !full; full {
			return false // no room, every second time
		}
		if len(m.Body) > handover.MaxBody || len(m.FDs) > handover.MaxFDs {
			r.Errorf("a record of %d bytes and %d descriptors", len(m.Body), len(m.FDs))
		}
		m.Body, m.FDs = bytes.Clone(m.Body), append([]int{}, m.FDs...)
		for i, fd := range m.FDs {
			var err error
			if m.FDs[i], err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0); err != nil {
				r.Error(err)
			}
		}
		take := to.TakeConnection
		if m.Kind == uint32(handoverv1.CanaryKind_CANARY_KIND_RELAY) {
			take = to.TakeRelay
		}
		if err := take(m); err != nil {
			r.Errorf("kind %d: %v", m.Kind, err)
		}
		return true
	}
	eventually(r, "all have gone", func() bool {
		from.GiveBack(3, send)
		left := 0
		var mu sync.Mutex
		from.each(func(w *lane) {
			mu.Lock()
			defer mu.Unlock()
			for c := range w.conns {
				if c.stage != lingering {
					left++
				}
			}
			left += w.links.len()
		})
		return left == 0
	})
}

// onMoves runs a test that moves on each kind of loop: as many loops, fewer,
// more, and none at all, but every way back.
func onMoves(t *testing.T, f func(t *testing.T, loops []relay.Loop, move func(*rig))) {
	for name, kind := range loopKinds() {
		for how, move := range map[string]func(*rig){
			"as many": func(r *rig) { r.moves(newLoops(r, kind, 4), nil) },
			"fewer": func(r *rig) { // and to a program that reads the first generation of records
				r.Giver().Speak(1)
				r.moves(newLoops(r, kind, 1), nil)
			},
			"more":  func(r *rig) { r.moves(newLoops(r, kind, 6), nil) },
			"twice": func(r *rig) { r.moves(newLoops(r, kind, 2), nil); r.moves(newLoops(r, kind, 3), nil) },
			"back":  func(r *rig) { r.turnsBack(kind) },
			"guest": func(r *rig) { r.visits(newLoops(r, kind, 2)) },
			"back and forth": func(r *rig) {
				r.turnsBack(kind)
				r.moves(newLoops(r, kind, 4), nil)
				r.turnsBack(kind)
			},
		} {
			t.Run(name+"/"+how, func(t *testing.T) { f(t, newLoops(t, kind, 4), move) })
		}
	}
}

// TestMoveEdges: a session that runs is moved, and ends in every way that it can
// end; also a part of its end may come before, and the rest after.
func TestMoveEdges(t *testing.T) {
	big := hundred()
	onMoves(t, func(t *testing.T, loops []relay.Loop, move func(*rig)) {
		w := newWays(t, loops)
		var before, after []func()
		edge := func(first func(s *session), then func(s *session)) {
			for _, way := range w.both(t) {
				s := w.open(t, way.hello, way.far)
				before = append(before, func() { first(s) })
				after = append(after, func() { then(s); s.client.Close(); s.far.Close() })
			}
		}
		edge(func(s *session) {}, func(s *session) { // says nothing until after it
			s.says(s.client, "question")
			s.wants(s.far, []byte("question"))
			s.says(s.far, string(big))
			check(s, s.far.Close())
			s.wants(s.client, big)
			s.wantsEnd(s.client)
		})
		edge(func(s *session) { // half-closed by the client
			check(s, s.client.CloseWrite())
			s.wantsEnd(s.far)
		}, func(s *session) {
			s.says(s.far, string(big))
			check(s, s.far.Close())
			s.wants(s.client, big)
			s.wantsEnd(s.client)
		})
		edge(func(s *session) { // half-closed by the far end
			check(s, s.far.CloseWrite())
			s.wantsEnd(s.client)
		}, func(s *session) {
			s.says(s.client, string(big))
			check(s, s.client.Close())
			s.wants(s.far, big)
			s.wantsEnd(s.far)
		})
		edge(func(s *session) { reset(s, s.far) }, func(s *session) { s.wantsReset(s.client) })
		edge(func(s *session) {}, func(s *session) {
			reset(s, s.client)
			s.wantsReset(s.far)
		})
		edge(func(s *session) { // ended in order
			check(s, s.client.CloseWrite())
			check(s, s.far.CloseWrite())
		}, func(s *session) {
			s.wantsEnd(s.client)
			s.wantsEnd(s.far)
		})
		edge(func(s *session) { // bytes under way in all buffers, both ways
			s.says(s.client, string(big))
			s.says(s.far, string(big))
		}, func(s *session) {
			s.wants(s.far, big)
			s.wants(s.client, big)
			check(s, s.client.CloseWrite())
			s.wantsEnd(s.far)
			check(s, s.far.CloseWrite())
			s.wantsEnd(s.client)
		})
		for _, f := range before {
			f()
		}
		move(w.rig)
		for _, f := range after {
			f()
		}
		eventually(t, "no relay is left", func() bool { return w.Snapshot().Relays == 0 })
		for _, r := range w.Snapshot().Routes {
			if r.Relays != 0 {
				t.Errorf("%s has %d relays at the end", r.Name, r.Relays)
			}
		}
	})
}

// way leads to a far end.
type way struct {
	hello []byte
	far   func() net.Conn
}

func (w *ways) both(t *testing.T) []way {
	return []way{
		{w.static, func() net.Conn {
			conn, err := w.backend.Accept()
			check(t, err)
			return conn
		}},
		{w.tunnel, func() net.Conn { return w.tunnels.agent().Conn }},
	}
}

// TestMoveCopied: what happens to relays between the copy and the freeze is so in
// the other process, too. Those to which nothing has happened are not spoken of
// again; in the first generation of records all are.
func TestMoveCopied(t *testing.T) {
	const sessions = 2 * copyFew
	edges := []struct{ first, then func(s *session) }{
		{func(s *session) {}, func(s *session) {
			s.says(s.far, "first")
			s.wants(s.client, []byte("first"))
		}},
		{func(s *session) {
			s.says(s.client, "question")
			s.wants(s.far, []byte("question"))
		}, func(s *session) {
			s.says(s.far, "answer")
			s.wants(s.client, []byte("answer"))
		}},
		{func(s *session) {
			check(s, s.client.CloseWrite())
			s.wantsEnd(s.far)
		}, func(s *session) {
			s.says(s.far, "last words")
			check(s, s.far.Close())
			s.wants(s.client, []byte("last words"))
			s.wantsEnd(s.client)
		}},
		{func(s *session) { reset(s, s.far); s.wantsReset(s.client) }, func(*session) {}},
		{func(s *session) {
			s.says(s.client, string(hundred()))
			eventually(s, "some has arrived", func() bool { return queued(s, s.far) > 0 })
		}, func(s *session) { s.wants(s.far, hundred()) }},
	}
	for name, generation := range map[string]uint32{"first generation": wordless, "newest": 0} {
		t.Run(name, func(t *testing.T) {
			w := newWays(t, newLoops(t, relay.NewDefault, 2))
			all := make([]*session, sessions)
			for i := range all {
				way := w.both(t)[i%2]
				all[i] = w.open(t, way.hello, way.far)
			}
			h := w.heir(newLoops(t, relay.NewDefault, 2), nil)
			out, old := &words{wire: wire{heir: h}}, w.Gateway
			old.Giver().Speak(generation)
			check(t, old.Giver().Copy(t.Context(), out))
			for i, edge := range edges {
				edge.first(all[i])
			}
			eventually(t, "what was reset has ended", func() bool { return old.Snapshot().Relays == sessions-1 })
			check(t, old.Giver().Freeze(t.Context(), out))
			const changed = 3 // but for late events that say nothing new
			if generation == 0 && (out.said < changed || out.said > sessions/2) || generation == wordless && out.said != sessions-1 {
				t.Errorf("%d relays of %d were spoken of after the freeze; %d had changed", out.said, sessions, changed)
			}
			check(t, h.Complete(t.Context()))
			h.Start()
			old.Giver().Leave()
			old.Close()
			w.Gateway = h.Gateway()
			for i, s := range all {
				if i < len(edges) {
					edges[i].then(s)
					continue
				}
				edges[0].then(s) // nothing has happened to it
			}
		})
	}
}

// words counts relays that are spoken of after the freeze.
type words struct {
	wire
	said int
}

func (w *words) Send(ctx context.Context, r handover.Record) error {
	switch handoverv1.GatewayKind(r.Kind) {
	case handoverv1.GatewayKind_GATEWAY_KIND_WORDS:
		m := &handoverv1.GatewayWords{}
		if err := proto.Unmarshal(r.Body, m); err != nil {
			return err
		}
		w.count(len(m.Id))
	case handoverv1.GatewayKind_GATEWAY_KIND_BUSY:
		m := &handoverv1.GatewayBusy{}
		if err := proto.Unmarshal(r.Body, m); err != nil {
			return err
		}
		w.count(len(m.Relay))
	}
	return w.wire.Send(ctx, r)
}

func (w *words) count(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.said += n
}

// TestMoveStages: a connection is moved at each step on its way, and gets where
// it would have got.
func TestMoveStages(t *testing.T) {
	onMoves(t, func(t *testing.T, loops []relay.Loop, move func(*rig)) {
		w := newWays(t, loops)
		r := w.rig
		trusting := r.cfg
		trusting.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
		_, err := r.Reload(t.Context(), Settings{Static: trusting.Static, TrustedProxies: trusting.TrustedProxies, Bounds: generous()})
		check(t, err)
		r.cfg.TrustedProxies = trusting.TrustedProxies

		hello := w.tunnel
		large := rerecord(padded(hello[5:], 40<<10), 1<<14)
		reaches := func(conn net.Conn, whole []byte) *agentConn {
			t.Helper()
			agent := r.tunnels.agent()
			s := &session{TB: t, client: conn.(*net.TCPConn), far: agent.Conn.(*net.TCPConn)}
			s.wants(agent, whole)
			s.says(agent, "answer")
			s.wants(conn, []byte("answer"))
			s.says(conn, "more")
			s.wants(agent, []byte("more"))
			check(t, agent.Close())
			s.wantsEnd(conn)
			check(t, conn.Close())
			return agent
		}

		// They wait, each for another thing.
		silent := r.dial()
		half := r.say(hello[:100])
		proxied := r.say(append(bytes.Clone(proxyLine), hello[:7]...))
		postgres := r.say(pgSSL)
		expect(t, postgres, "S")
		again := r.say(pgSSL)
		expect(t, again, "S")
		buffered := r.say(large[:30<<10])
		refused := r.say(helloBytes(t, r.ca.client("nobody.db.gw.test", alpn.PostgreSQL)))
		alert := alpn.UnrecognizedName.Record()
		expect(t, refused, string(alert[:]))
		nobody := helloBytes(t, r.ca.client("nobody.db.gw.test", alpn.PostgreSQL))
		refusedLarge := r.say(rerecord(padded(nobody[5:], 40<<10), 1<<14)) // more than can be looked at in place
		expect(t, refusedLarge, string(alert[:]))
		r.reaches(outcomeLeaseFailed, 2)
		r.waiting(8)
		eventually(t, "the large hello is read", func() bool {
			return r.sum(func(c *conn) bool { return len(c.buf) == 30<<10 }) == 1
		})

		offered := r.say(hello)
		agent := r.tunnels.agent()
		static := r.say(w.static)
		server, err := w.backend.Accept()
		check(t, err)
		t.Cleanup(func() { server.Close() })
		check(t, server.SetDeadline(time.Now().Add(patience)))

		move(r)

		_, err = silent.Write(hello)
		check(t, err)
		reaches(silent, hello)
		_, err = half.Write(hello[100:])
		check(t, err)
		reaches(half, hello)
		_, err = proxied.Write(hello[7:])
		check(t, err)
		if a := reaches(proxied, hello); a.request.Source.Addr() != netip.MustParseAddr("192.0.2.7") {
			t.Errorf("behind the proxy is %v", a.request.Source)
		}
		_, err = postgres.Write(hello)
		check(t, err)
		reaches(postgres, hello)
		_, err = again.Write(pgSSL) // it may be asked once
		check(t, err)
		closes(t, again)
		_, err = buffered.Write(large[30<<10:])
		check(t, err)
		reaches(buffered, large)
		for _, conn := range []*net.TCPConn{refused, refusedLarge} {
			check(t, conn.CloseWrite())
			if rest := readAll(t, conn); len(rest) > 0 {
				t.Errorf("%d bytes behind the alert", len(rest))
			}
		}

		s := &session{TB: t, client: offered, far: agent.Conn.(*net.TCPConn)}
		s.wants(agent, hello)
		s.says(agent, "late")
		s.wants(offered, []byte("late"))
		check(t, agent.Close())
		s.wantsEnd(offered)
		check(t, offered.Close())

		s = &session{TB: t, client: static, far: server.(*net.TCPConn)}
		s.wants(server, w.static)
		s.says(server, "late")
		s.wants(static, []byte("late"))
		check(t, server.Close())
		s.wantsEnd(static)
		check(t, static.Close())
	})
}

// TestMoveAnswered: an older process still says of a connection that it has
// answered how large its hello was, which must not stop a hand-over: anybody may
// send such a hello.
func TestMoveAnswered(t *testing.T) {
	r := newRig(t, newLoops(t, relay.NewDefault, 1), nil)
	here := encoded(netip.MustParseAddrPort("127.0.0.1:443"))
	in := func(s stage) *handoverv1.GatewayConnection {
		return &handoverv1.GatewayConnection{Stage: s.image(), Peer: here, Local: here, Lowat: 1, Flight: 40 << 10, Sent: 50 << 10}
	}
	c, err := r.lanes[0].connOf(in(lingering))
	if err != nil || c.flight != 0 || c.sent != 0 {
		t.Errorf("got %+v, %v", c, err)
	}
	if _, err := r.lanes[0].connOf(in(reading)); err == nil {
		t.Error("one that has not been answered can have sent more than there is")
	}
}

// TestMoveLeasing: who waits for a data connection waits on, with the same
// connection id.
func TestMoveLeasing(t *testing.T) {
	for name, kind := range loopKinds() {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, newLoops(t, kind, 2), nil)
			hello := helloBytes(t, r.ca.client("orders.db.gw.test", alpn.PostgreSQL))
			r.tunnels.answerNone()
			conn := r.say(hello)
			eventually(t, "a lease is asked for", func() bool { return r.tunnels.asked() == 1 })
			r.turnsBack(kind)
			if got := r.tunnels.asked(); got != 1 {
				t.Fatalf("%d leases were asked for on the way back", got)
			}
			r.tunnels.answerAll()
			r.moves(newLoops(t, kind, 2), nil)
			agent := r.tunnels.agent()
			s := &session{TB: t, client: conn, far: agent.Conn.(*net.TCPConn)}
			s.wants(agent, hello)
			agent.answers(conn)
			if first := r.tunnels.requests[0]; first.ConnectionID != agent.request.ConnectionID || agent.request.Attempt != 0 {
				t.Errorf("asked for %+v, then %+v", first, agent.request)
			}
			check(t, agent.Close())
			s.wantsEnd(conn)
		})
	}
}

// TestMoveRetry: what was offered to a far end that then closes goes to another
// one, also when the second belongs to another process.
func TestMoveRetry(t *testing.T) {
	onMoves(t, func(t *testing.T, loops []relay.Loop, move func(*rig)) {
		r := newRig(t, loops, nil)
		hello := helloBytes(t, r.ca.client("orders.db.gw.test", alpn.PostgreSQL))
		conn := r.say(hello)
		first := r.tunnels.agent()
		s := &session{TB: t, client: conn, far: first.Conn.(*net.TCPConn)}
		s.wants(first, hello)
		move(r)
		check(t, first.Close())
		second := r.tunnels.agent()
		s.wants(second, hello)
		second.answers(conn)
		if first.request.ConnectionID != second.request.ConnectionID || second.request.Attempt != 1 {
			t.Errorf("leased %+v, then %+v", first.request, second.request)
		}
		check(t, second.Close())
		s.wantsEnd(conn)
		check(t, conn.Close())
		eventually(t, "all streams are given back", func() bool { return r.tunnels.endedNow() == 2 })
	})
}

// TestMoveNarrow: a flight of which the far end has taken a part only.
func TestMoveNarrow(t *testing.T) {
	onMoves(t, func(t *testing.T, loops []relay.Loop, move func(*rig)) {
		r := newRig(t, loops, func(c *Config) { c.Bounds.Connect, c.Bounds.Stage = patience, patience }) // the agent reads when the test has the time
		r.tunnels.answerNarrow()
		small := helloBytes(t, r.ca.client("orders.db.gw.test", alpn.PostgreSQL))
		hello := rerecord(padded(small[5:], 60<<10), 1<<14)
		conn := r.say(hello)
		agent := r.tunnels.agent()
		move(r)
		s := &session{TB: t, client: conn, far: agent.Conn.(*net.TCPConn)}
		s.wants(agent, hello)
		agent.answers(conn)
		check(t, agent.Close())
		s.wantsEnd(conn)
	})
}

// TestMoveConnecting: an upstream that has not answered yet; its route stays,
// leads elsewhere, or is no more.
func TestMoveConnecting(t *testing.T) {
	tests := map[string]struct {
		static []StaticRoute
		served bool // by the one that did not answer
		want   string
	}{
		"stays":           {static: []StaticRoute{to("shop.example.com", "")}, served: true},
		"leads elsewhere": {static: []StaticRoute{to("shop.example.com", "elsewhere")}, served: true},
		"by another name": {static: []StaticRoute{to("*.example.com", "elsewhere")}, want: "elsewhere"},
		"is no more":      {want: string(alertOf(alpn.UnrecognizedName))},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			onLoops(t, func(t *testing.T, loops []relay.Loop) {
				full := newFullServer(t)
				elsewhere := newBackend(t, "tcp", "127.0.0.1:0", func(conn net.Conn) {
					_, _ = io.WriteString(conn, "elsewhere")
					_, _ = io.Copy(io.Discard, conn)
				})
				r := newRig(t, loops, func(c *Config) {
					c.Static = []StaticRoute{to("shop.example.com", full.addr)}
					c.Bounds.Connect, c.Bounds.Stage = patience, patience // a SYN that was dropped is sent again ever later
				})
				hello := helloBytes(t, r.ca.client("shop.example.com", "h2"))
				conn := r.say(hello)
				eventually(t, "it connects", func() bool { return r.inStage(connecting) == 1 })
				static := make([]StaticRoute, len(tt.static))
				for i, route := range tt.static {
					static[i] = to(route.Match.SNI[0], full.addr)
					if route.Upstreams[0] == "elsewhere" {
						static[i].Upstreams[0] = elsewhere.Addr().String()
					}
				}
				r.moves(newLoops(t, relay.NewDefault, 3), func(c *Config) { c.Static = static })
				if !tt.served {
					expect(t, conn, tt.want)
					return
				}
				server := full.empty()
				s := &session{TB: t, client: conn, far: server}
				s.wants(server, hello)
				s.says(server, "late")
				s.wants(conn, []byte("late"))
				check(t, server.Close())
				s.wantsEnd(conn)
			})
		})
	}
}

// fullServer is a listening socket whose queue is full: who connects waits.
type fullServer struct {
	testing.TB
	fd    int
	addr  string
	extra []int
}

func newFullServer(t testing.TB) *fullServer {
	t.Helper()
	fd, err := relay.Bind("127.0.0.1:0")
	check(t, err)
	check(t, unix.Listen(fd, 0))
	s := &fullServer{TB: t, fd: fd, addr: relay.LocalAddr(fd).String()}
	t.Cleanup(s.close)
	for {
		fd, err := relay.Connect(relay.LocalAddr(s.fd))
		check(t, err)
		s.extra = append(s.extra, fd)
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		if n, _ := unix.Poll(fds, 100); n == 0 {
			return s // a SYN is not answered any more
		}
	}
}

// empty accepts what fills the queue, and then the first that comes.
func (s *fullServer) empty() *net.TCPConn {
	s.Helper()
	filling := map[netip.AddrPort]bool{}
	for _, fd := range s.extra {
		filling[relay.LocalAddr(fd)] = true
	}
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		fds := []unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLIN}}
		_, _ = unix.Poll(fds, 100)
		fd, peer, err := relay.Accept(s.fd)
		switch {
		case errors.Is(err, relay.ErrAgain):
			continue
		case err == nil && filling[peer]:
			relay.Close(fd)
			continue
		}
		check(s, err)
		conn, err := relay.NetConn(fd, nil)
		check(s, err)
		s.Cleanup(func() { conn.Close() })
		check(s, conn.SetDeadline(time.Now().Add(patience)))
		return conn.(*net.TCPConn)
	}
	s.Fatal("nobody connects")
	return nil
}

func (s *fullServer) close() {
	for _, fd := range append(s.extra, s.fd) {
		relay.Close(fd)
	}
}

// inStage counts connections on their way.
func (r *rig) inStage(s stage) (n int) { return r.sum(func(c *conn) bool { return c.stage == s }) }

func (r *rig) sum(is func(*conn) bool) (n int) {
	var mu sync.Mutex
	r.each(func(w *lane) {
		mu.Lock()
		defer mu.Unlock()
		for c := range w.conns {
			if is(c) {
				n++
			}
		}
	})
	return n
}

// holding counts the relays that hold bytes now.
func (r *rig) holding() (n int) {
	var mu sync.Mutex
	r.each(func(w *lane) {
		mu.Lock()
		defer mu.Unlock()
		for l := range w.links.all() {
			if l.relay.Image().Holds() {
				n++
			}
		}
	})
	return n
}

func alertOf(a alpn.Alert) []byte { b := a.Record(); return b[:] }

// TestMoveBulk: streams of checked bytes both ways, over ten moves, four of
// them turned back.
func TestMoveBulk(t *testing.T) {
	const streams, moves = 6, 10
	sizes := map[string]int{"default": 24 << 20, "batched": 6 << 20, "portable": 6 << 20}
	for name, kind := range loopKinds() {
		t.Run(name, func(t *testing.T) {
			w := newWays(t, newLoops(t, kind, 4))
			var tasks sync.WaitGroup
			done, size := make(chan struct{}), sizes[name]
			for i := range streams {
				way := w.both(t)[i%2]
				s := w.open(t, way.hello, way.far)
				for _, c := range []*net.TCPConn{s.client, s.far} {
					check(t, c.SetDeadline(time.Now().Add(4*patience)))
					tasks.Go(func() { s.sends(c, size) })
					tasks.Go(func() { s.receives(c, size) })
				}
			}
			go func() { tasks.Wait(); close(done) }()
			carried := 0
			for i := range moves {
				if i%3 == 2 {
					w.turnsBack(kind)
					continue
				}
				carried += w.holding()
				w.moves(newLoops(t, kind, 1+i%4), nil)
			}
			<-done
			eventually(t, "no relay is left", func() bool { return w.Snapshot().Relays == 0 })
			t.Logf("%d moves, %d relays had bytes in them before one", moves, carried)
		})
	}
}

// sends writes checked bytes and ends the stream.
func (s *session) sends(c *net.TCPConn, size int) {
	_, err := io.Copy(c, io.LimitReader(rand.NewChaCha8([32]byte{9}), int64(size)))
	if err == nil {
		err = c.CloseWrite()
	}
	if err != nil {
		s.Error(err)
	}
}

func (s *session) receives(c *net.TCPConn, size int) {
	got, want := sha256.New(), sha256.New()
	n, err := io.Copy(got, c)
	if err != nil || n != int64(size) {
		s.Errorf("%d bytes, %v", n, err)
		return
	}
	_, _ = io.Copy(want, io.LimitReader(rand.NewChaCha8([32]byte{9}), int64(size)))
	if !bytes.Equal(got.Sum(nil), want.Sum(nil)) {
		s.Error("other bytes have come")
	}
}

// TestMoveListeners: addresses that stay, come and go; what was queued at one
// that goes is still served.
func TestMoveListeners(t *testing.T) {
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		r := newRig(t, loops, func(c *Config) { c.Listen = []string{"127.0.0.1:0", "127.0.0.1:0"} })
		stays, goes := r.Addrs()[0], r.Addrs()[1]
		hello := helloBytes(t, r.ca.client("orders.db.gw.test", alpn.PostgreSQL))
		old := r.Gateway
		h := r.heir(newLoops(t, relay.NewDefault, 3), func(c *Config) { c.Listen = []string{stays.String(), "localhost:0"} })
		w := &wire{heir: h}
		check(t, old.Giver().Copy(t.Context(), w))
		check(t, old.Giver().Freeze(t.Context(), w))

		// Nobody accepts; the sockets queue.
		var waiting []*net.TCPConn
		for i := range 24 {
			r.addr = []netip.AddrPort{stays, goes}[i%2].String()
			waiting = append(waiting, r.say(hello))
		}
		check(t, h.Complete(t.Context()))
		comes := h.Gateway().Addrs()[1]
		if conn, err := net.Dial("tcp", comes.String()); err == nil {
			conn.Close()
			t.Error("the new address takes connections before the commit")
		}
		h.Start()
		eventually(t, "the address that went is closed", func() bool {
			conn, err := net.Dial("tcp", goes.String())
			if err == nil {
				conn.Close()
			}
			return err != nil
		})
		old.Giver().Leave()
		old.Close()
		r.Gateway = h.Gateway()

		for _, conn := range waiting {
			agent := r.tunnels.agent()
			s := &session{TB: t, client: conn, far: agent.Conn.(*net.TCPConn)}
			s.wants(agent, hello)
			s.says(agent, ".")
			check(t, agent.Close())
		}
		for _, conn := range waiting {
			if got := readAll(t, conn); string(got) != "." {
				t.Errorf("one that was queued got %q", got)
			}
		}
		for _, addr := range []netip.AddrPort{stays, comes} {
			for range 12 {
				r.addr = addr.String()
				conn := r.say(hello)
				agent := r.tunnels.agent()
				agent.answers(conn)
				check(t, agent.Close())
				check(t, conn.Close())
			}
		}
	})
}

// TestMoveAddressTaken: an address that another program has ends the upgrade
// before the commit, and nothing was lost.
func TestMoveAddressTaken(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	defer l.Close()
	r := newRig(t, newLoops(t, relay.NewDefault, 2), nil)
	h := r.heir(newLoops(t, relay.NewDefault, 2), func(c *Config) { c.Listen = append(c.Listen, l.Addr().String()) })
	w := &wire{heir: h}
	check(t, r.Giver().Copy(t.Context(), w))
	check(t, r.Giver().Freeze(t.Context(), w))
	if err := h.Complete(t.Context()); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("complete: %v", err)
	}
	h.Close()
	check(t, r.Giver().Thaw())
	conn := r.say(helloBytes(t, r.ca.client("orders.db.gw.test", alpn.PostgreSQL)))
	r.tunnels.agent().answers(conn)
}

// TestMoveHandlers: a connection whose TLS has ended stays with the old gateway,
// which says when the last one is gone, and asks for it.
func TestMoveHandlers(t *testing.T) {
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		ca := newAuthority(t)
		r := newRig(t, loops, func(c *Config) {
			echo := func(ctx context.Context, conn *tls.Conn) {
				stop := context.AfterFunc(ctx, func() { conn.Close() })
				defer stop()
				_, _ = io.Copy(conn, conn)
				conn.Close()
			}
			c.Ends = map[alpn.Class]End{alpn.Web: {TLS: ca.server(t, "h2"), Handlers: map[string]Handler{"h2": echo}}}
		})
		old := r.Gateway
		var conns []*tls.Conn
		for range 2 {
			conn := tls.Client(r.dial(), ca.client(cluster, "h2"))
			check(t, conn.Handshake())
			conns = append(conns, conn)
		}
		r.reaches(outcomeHandshake, 2)
		h := r.heir(newLoops(t, relay.NewDefault, 2), nil)
		w := &wire{heir: h}
		check(t, old.Giver().Copy(t.Context(), w))
		check(t, old.Giver().Freeze(t.Context(), w))
		check(t, h.Complete(t.Context()))
		h.Start()
		old.Giver().Leave()
		r.Gateway = h.Gateway()

		if got := old.Serving(); got != 2 {
			t.Errorf("%d connections are served, not 2", got)
		}
		echoes(t, conns[0])
		select {
		case <-old.Served():
			t.Error("served, with one still there")
		default:
		}
		old.Dismiss()
		check(t, conns[1].SetDeadline(time.Now().Add(patience)))
		if _, err := conns[1].Read(make([]byte, 1)); err == nil || isTimeout(err) {
			t.Errorf("after it was dismissed: %v", err)
		}
		<-old.Served()
		if got := old.Serving(); got != 0 {
			t.Errorf("%d connections are served, with all gone", got)
		}
		old.Close()
	})
}

// TestMoveEnded: relays that end after they were copied are not in the next
// gateway; their peers learn of it at once.
func TestMoveEnded(t *testing.T) {
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		w := newWays(t, loops)
		var sessions []*session
		for range 40 {
			for _, way := range w.both(t) {
				sessions = append(sessions, w.open(t, way.hello, way.far))
			}
		}
		h := w.heir(newLoops(t, relay.NewDefault, 3), nil)
		out := &wire{heir: h}
		check(t, w.Giver().Copy(t.Context(), out))
		if out.sent == 0 {
			t.Fatal("nothing was copied")
		}
		for i, s := range sessions[:60] {
			switch i % 3 {
			case 0:
				check(t, s.client.CloseWrite())
				s.wantsEnd(s.far)
				check(t, s.far.CloseWrite())
				s.wantsEnd(s.client)
			case 1:
				reset(t, s.client)
				s.wantsReset(s.far)
			case 2:
				reset(t, s.far)
				s.wantsReset(s.client)
			}
		}
		old := w.Gateway
		eventually(t, "they are over", func() bool { return old.Snapshot().Relays == 20 })
		check(t, old.Giver().Freeze(t.Context(), out))
		check(t, h.Complete(t.Context()))
		h.Start()
		old.Giver().Leave()
		old.Close()
		w.Gateway = h.Gateway()
		if got := w.Snapshot().Relays; got != 20 {
			t.Errorf("%d relays have come", got)
		}
		for _, s := range sessions[60:] {
			s.says(s.client, "still")
			s.wants(s.far, []byte("still"))
			check(t, s.client.Close())
			s.wantsEnd(s.far)
		}
	})
}

// TestMoveStreams: leased streams are counted by the next gateway's tunnels.
func TestMoveStreams(t *testing.T) {
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		w := newWays(t, loops)
		var sessions []*session
		for range 10 {
			way := w.both(t)[1]
			sessions = append(sessions, w.open(t, way.hello, way.far))
		}
		w.moves(newLoops(t, relay.NewDefault, 2), nil)
		eventually(t, "all are adopted", func() bool { return w.tunnels.adoptedNow() == 10 })
		if got := w.tunnels.endedNow(); got != 0 {
			t.Errorf("%d streams ended by the move", got)
		}
		for _, s := range sessions {
			check(t, s.far.Close())
			s.wantsEnd(s.client)
			check(t, s.client.Close())
		}
		eventually(t, "all are given back", func() bool { return w.tunnels.endedNow() == 10 })
	})
}

// TestMoveIdle: an idle time begins again, and ends what is idle.
func TestMoveIdle(t *testing.T) {
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		w := newWays(t, loops)
		w.cfg.Idle, w.cfg.Bounds.Stage = 50*time.Millisecond, DefaultStage // the server says nothing for as long
		w.moves(newLoops(t, relay.NewDefault, 2), nil)
		client := w.say(w.static)
		far, err := w.backend.Accept()
		check(t, err)
		t.Cleanup(func() { far.Close() })
		check(t, far.SetDeadline(time.Now().Add(patience)))
		// It may have been idle for so long already: nobody says a word any more.
		eventually(t, "the relay runs", func() bool { return w.count(outcomeRelayed) > 0 })
		w.moves(newLoops(t, relay.NewDefault, 2), nil)
		if got := readAll(t, client); len(got) > 0 {
			t.Errorf("nobody said %q", got)
		}
		if got := readAll(t, far); !bytes.Equal(got, w.static) {
			t.Errorf("%d bytes have come, and not the hello of %d", len(got), len(w.static))
		}
	})
}

// TestMoveRemovedRoute: relays of a route that is no more go on, and are counted
// under its name.
func TestMoveRemovedRoute(t *testing.T) {
	w := newWays(t, newLoops(t, relay.NewDefault, 2))
	way := w.both(t)[0]
	s := w.open(t, way.hello, way.far)
	w.moves(newLoops(t, relay.NewDefault, 2), func(c *Config) { c.Static = nil })
	var found bool
	for _, r := range w.Snapshot().Routes {
		found = found || r.Name == "shop.example.com" && r.Relays == 1
	}
	if !found {
		t.Errorf("routes: %+v", w.Snapshot().Routes)
	}
	s.says(s.client, "still")
	s.wants(s.far, []byte("still"))
	check(t, s.client.Close())
	s.wantsEnd(s.far)
}

// roomless has no room until somebody has been asked for some.
type roomless struct {
	wire
	ask func()
	had bool // asked; of the test's, and of the loop's thread when that has been called
}

func (w *roomless) TrySend(r handover.Record) (bool, error) {
	if !w.had {
		return false, nil
	}
	return true, w.Send(context.Background(), r)
}

// Room implements handover.Pacer.
func (w *roomless) Room(context.Context) error {
	w.had = true
	w.ask()
	return nil
}

// Taken implements handover.Pacer.
func (*roomless) Taken(context.Context) error { return nil }

// TestMoveEndsWhileItWaits: relays that end between two slices of a copy took the
// process along with all others.
func TestMoveEndsWhileItWaits(t *testing.T) {
	const sessions = 2 * copyFew
	w := newWays(t, newLoops(t, relay.NewDefault, 1))
	all := make([]*session, sessions)
	for i := range all {
		way := w.both(t)[i%2]
		all[i] = w.open(t, way.hello, way.far)
	}
	old, h := w.Gateway, w.heir(newLoops(t, relay.NewDefault, 1), nil)
	out := &roomless{wire: wire{heir: h}, ask: sync.OnceFunc(func() {
		for _, s := range all[:sessions/2] {
			reset(s, s.client)
		}
		eventually(t, "half have ended", func() bool { return old.Snapshot().Relays == sessions/2 })
	})}
	check(t, old.Giver().Copy(t.Context(), out))
	if !out.had {
		t.Fatal("there was room")
	}
	check(t, old.Giver().Freeze(t.Context(), out))
	check(t, h.Complete(t.Context()))
	h.Start()
	old.Giver().Leave()
	old.Close()
	w.Gateway = h.Gateway()
	for _, s := range all[sessions/2:] {
		s.says(s.client, "still")
		s.wants(s.far, []byte("still"))
	}
}

// TestMoveLongLabels: records were cut by the number of what is in them alone, and
// where routes have many protocol ids, or servers long names, one was too large:
// nothing could be handed over.
func TestMoveLongLabels(t *testing.T) {
	long := func(with string) (ids []string) {
		ids = append(ids, with)
		for i := range 20 {
			ids = append(ids, strings.Repeat(string(rune('a'+i)), 200))
		}
		return ids
	}
	for name, copied := range map[string]int{"before the freeze": copyFew + 20, "in the freeze": copyFew - 20} {
		t.Run(name, func(t *testing.T) {
			backend, err := net.Listen("tcp", "127.0.0.1:0")
			check(t, err)
			t.Cleanup(func() { backend.Close() })
			w := &ways{rig: newRig(t, newLoops(t, relay.NewDefault, 1), func(c *Config) {
				shop := to("shop.example.com", backend.Addr().String())
				shop.Match.ALPN = long("h2")
				c.Static = []StaticRoute{shop}
				for i := range 2 * namesRecord {
					server := fmt.Sprintf("%s.s%d.invalid:443", strings.Repeat("x", 4000), i)
					c.Static = append(c.Static, to(fmt.Sprintf("s%d.example.com", i), server))
				}
			}), backend: backend}
			hello := helloBytes(t, w.ca.client("shop.example.com", "h2"))
			all := make([]*session, copied)
			for i := range all {
				all[i] = w.open(t, hello, func() net.Conn {
					conn, err := backend.Accept()
					check(t, err)
					return conn
				})
			}
			w.moves(newLoops(t, relay.NewDefault, 1), nil)
			for _, s := range all {
				s.says(s.client, "still")
				s.wants(s.far, []byte("still"))
			}
		})
	}
}

// TestConnectionsLongLabels: a route's label counts in a record of connections.
func TestConnectionsLongLabels(t *testing.T) {
	r := newRig(t, newLoops(t, relay.NewDefault, 1), nil)
	w := r.lanes[0]
	acct := &account{name: strings.Repeat("x", 4000)}
	var records []handover.Record
	w.on(func() {
		real := w.conns
		defer func() { w.conns = real }()
		w.conns = map[*conn]struct{}{}
		for range 100 {
			w.conns[&conn{lane: w, fd: 0, other: -1, acct: acct}] = struct{}{}
		}
		records = w.connectionsRecords(nil)
	})
	n := 0
	for _, one := range records {
		n += len(one.FDs)
		if len(one.Body) > handover.MaxBody {
			t.Errorf("a record of %d bytes, more than %d", len(one.Body), handover.MaxBody)
		}
	}
	if n != 100 {
		t.Errorf("%d connections, want 100", n)
	}
}

// TestMoveRouteBytes: bytes of a route's last relay were gone from its account, and
// counted in the sum alone, when another process had begun it.
func TestMoveRouteBytes(t *testing.T) {
	w := newWays(t, newLoops(t, relay.NewDefault, 2))
	way := w.both(t)[0]
	s := w.open(t, way.hello, way.far)
	w.moves(newLoops(t, relay.NewDefault, 2), nil)
	s.says(s.client, "still")
	s.wants(s.far, []byte("still"))
	check(t, s.client.Close())
	s.wantsEnd(s.far)
	check(t, s.far.Close())
	eventually(t, "the relay has ended", func() bool { return w.Snapshot().Relays == 0 })
	sum := w.Snapshot()
	var in, out uint64
	for _, r := range sum.Routes {
		in, out = in+r.BytesIn, out+r.BytesOut
	}
	if in != sum.BytesIn || out != sum.BytesOut || in < uint64(len("still")) {
		t.Errorf("%d and %d bytes of the routes %+v, %d and %d in all", in, out, sum.Routes, sum.BytesIn, sum.BytesOut)
	}
}

// TestMoveKnown: who has proved himself is known to the next gateway, names lead
// where they led, and places among those who wait are kept.
func TestMoveKnown(t *testing.T) {
	r := newRig(t, newLoops(t, relay.NewDefault, 2), func(c *Config) {
		c.Static = []StaticRoute{to("shop.example.com", "nowhere.invalid:443")}
	})
	known := netip.MustParseAddr("192.0.2.7")
	r.crowd.prove(known, time.Now())
	addr := netip.MustParseAddr("192.0.2.9")
	r.current.Load().servers["nowhere.invalid:443"].standFor([]netip.Addr{addr})
	for range 3 {
		r.dial()
	}
	r.waiting(3)
	r.moves(newLoops(t, relay.NewDefault, 2), func(c *Config) { c.Bounds.WaitingSource = 1 })
	if _, ok := r.crowd.known.get(sourceOf(known), time.Now()); !ok {
		t.Error("the source is not known")
	}
	if got, ok := r.current.Load().servers["nowhere.invalid:443"].target(0); !ok || got.addr != netip.AddrPortFrom(addr, 443) {
		t.Errorf("the name leads to %+v", got)
	}
	r.waiting(3)
}

// TestLinkSize: there is one for each idle session.
func TestLinkSize(t *testing.T) {
	if got := unsafe.Sizeof(link{}); got > 80 {
		t.Errorf("a link takes %d bytes, more than 80, its size class", got)
	}
}

// TestMoveWildcard: an address that is part of one that goes is taken over while
// the old sockets are still there.
func TestMoveWildcard(t *testing.T) {
	r := newRig(t, newLoops(t, relay.NewDefault, 2), func(c *Config) { c.Listen = []string{":0"} })
	port := r.Addrs()[0].Port()
	r.moves(newLoops(t, relay.NewDefault, 2), func(c *Config) { c.Listen = []string{at("127.0.0.1:0", port)} })
	hello := helloBytes(t, r.ca.client("orders.db.gw.test", alpn.PostgreSQL))
	for range 10 {
		conn := r.say(hello)
		agent := r.tunnels.agent()
		agent.answers(conn)
		check(t, agent.Close())
		check(t, conn.Close())
	}
	// And back, by another text that means the same.
	was := r.Addrs()[0]
	r.moves(newLoops(t, relay.NewDefault, 2), func(c *Config) { c.Listen = []string{at("localhost:0", port)} })
	if got := r.Addrs()[0]; got != was {
		t.Errorf("it listens at %v, not at %v", got, was)
	}
}

// TestMoveOfferedElsewhere: who was offered to a server of a route that is no
// more is served by it, and when it closes by whom the new routes name.
func TestMoveOfferedElsewhere(t *testing.T) {
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		w := newWays(t, loops)
		elsewhere := newBackend(t, "tcp", "127.0.0.1:0", func(conn net.Conn) {
			_, _ = io.WriteString(conn, "elsewhere")
			_, _ = io.Copy(io.Discard, conn)
		})
		conn := w.say(w.static)
		first, err := w.backend.Accept()
		check(t, err)
		defer first.Close()
		s := &session{TB: t, client: conn, far: first.(*net.TCPConn)}
		s.wants(first, w.static)
		w.moves(newLoops(t, relay.NewDefault, 2), func(c *Config) {
			c.Static = []StaticRoute{to("*.example.com", elsewhere.Addr().String())}
		})
		check(t, first.Close())
		expect(t, conn, "elsewhere")
	})
}
