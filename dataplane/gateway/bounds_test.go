//go:build unix

package gateway

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport/sallyport/alpn"
	"github.com/sallyport/sallyport/dataplane/relay"
	"github.com/sallyport/sallyport/dataplane/tunnel"
)

// TestA32_Deadlines: a client that stops at any stage is closed in time.
func TestA32_Deadlines(t *testing.T) {
	if got := (Bounds{}).withDefaults().Stage; got != 10*time.Second {
		t.Errorf("the default is %v", got)
	}
	const stage = 500 * time.Millisecond
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		ca := newAuthority(t)
		silent := newBackend(t, "tcp", "127.0.0.1:0", func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })
		r := newRig(t, loops, func(c *Config) {
			c.Bounds.Stage = stage
			c.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
			c.Ends = map[alpn.Class]End{alpn.Web: webEnd(t, ca.server(t, "h2", "http/1.1"))}
			c.Auth = Upstream{Address: silent.Addr().String()}
		})
		hello := helloBytes(t, r.ca.client("orders.db.gw.test", alpn.PostgreSQL))
		type step struct {
			send []byte
			want string
		}
		stages := map[string][]step{
			"nothing":                     {},
			"one byte":                    {{hello[:1], ""}},
			"record header":               {{hello[:5], ""}},
			"all but a byte":              {{hello[:len(hello)-1], ""}},
			"20 KiB of a hello":           {{rerecord(padded(hello[5:], 30<<10), 1<<14)[:20<<10], ""}},
			"after S":                     {{pgSSL, "S"}},
			"after S, half a hello":       {{pgSSL, "S"}, {hello[:100], ""}},
			"after N":                     {{pgGSSENC, "N"}},
			"after N and S":               {{pgGSSENC, "N"}, {pgSSL, "S"}},
			"half an SSLRequest":          {{pgSSL[:5], ""}},
			"half a startup":              {{pgStartup[:12], ""}},
			"half a cancel":               {{pgCancel[:12], ""}},
			"half a PROXY line":           {{proxyLine[:20], ""}},
			"after a PROXY line":          {{proxyLine, ""}},
			"PROXY, half a hello":         {{join(proxyLine, hello[:60]), ""}},
			"half a data hello":           {{[]byte("SLYP and so on"), ""}},
			"half a request":              {{[]byte("GET / HTTP/1.1\r\nHost: x\r\n"), ""}},
			"half a connection request":   {{rdp[:9], ""}},
			"auth never answers":          {{helloBytes(t, r.ca.client(cluster, alpn.Auth1)), ""}},
			"handshake here, not gone on": {{helloBytes(t, ca.client(cluster, "h2")), "\x16"}},
		}
		// goes takes the steps. It may fail when they take longer than a stage.
		goes := func(conn net.Conn, steps []step) error {
			for _, s := range steps {
				if _, err := conn.Write(s.send); err != nil {
					return err
				}
				got := make([]byte, len(s.want))
				if _, err := io.ReadFull(conn, got); err != nil || string(got) != s.want {
					return fmt.Errorf("got %q, %v; want %q", got, err, s.want)
				}
			}
			return nil
		}
		open := map[string]net.Conn{}
		for name, steps := range stages {
			for tries := 1; open[name] == nil; tries++ {
				began, conn := time.Now(), r.dial()
				if err := goes(conn, steps); err == nil {
					open[name] = conn
				} else if time.Since(began) < stage || tries == 20 {
					t.Fatalf("%s: %v", name, err)
				}
			}
		}
		for name, conn := range open {
			check(t, conn.SetReadDeadline(time.Now().Add(patience)))
			if _, err := io.Copy(io.Discard, conn); isTimeout(err) {
				t.Errorf("%s: not closed", name)
			}
		}
		eventually(t, "no place is held", func() bool { return r.Snapshot().Waiting == 0 })

		// An agent that is given a client and says nothing.
		conn := r.saysAtOnce(loops, hello)
		for range 3 {
			_ = r.tunnels.agent()
		}
		want := alpn.UnrecognizedName.Record()
		if got := readAll(t, conn); string(got) != string(want[:]) {
			t.Errorf("silent agents: %v", got)
		}
		// A lease that is never answered.
		r.tunnels.answerNone()
		if got := readAll(t, r.saysAtOnce(loops, hello)); string(got) != string(want[:]) {
			t.Errorf("no answer to a lease: %v", got)
		}
	})
}

// TestA32_NoByteMovesTheDeadline: a drip does not keep a connection alive.
func TestA32_NoByteMovesTheDeadline(t *testing.T) {
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		r := newRig(t, loops, func(c *Config) { c.Bounds.Stage = 200 * time.Millisecond })
		hello := helloBytes(t, r.ca.client("orders.db.gw.test", alpn.PostgreSQL))
		conn := r.dial()
		const most = 500 // bytes: with the pauses, many times a stage
		said := 0
		for said < most {
			if _, err := conn.Write(hello[said : said+1]); err != nil {
				break
			}
			said++
			check(t, conn.SetReadDeadline(time.Now().Add(10*time.Millisecond)))
			if _, err := conn.Read(make([]byte, 1)); !isTimeout(err) {
				break
			}
		}
		if said == most || most >= len(hello) {
			t.Errorf("%d bytes of %d have kept it open", said, len(hello))
		}
		r.reaches(outcomeTimeout, 1)
	})
}

// TestEndedEarly: the end behind a part of a hello is seen at once.
func TestEndedEarly(t *testing.T) {
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		r := newRig(t, loops, nil)
		hello := helloBytes(t, r.ca.client("orders.db.gw.test", alpn.PostgreSQL))
		conn := r.say(hello[:100])
		r.waiting(1)
		check(t, conn.CloseWrite())
		closes(t, conn)
		r.reaches(outcomeEndedEarly, 1)
		conn = r.say(hello[:100])
		check(t, conn.CloseWrite())
		closes(t, conn)
		r.reaches(outcomeEndedEarly, 2)
	})
}

// TestA140_Flood: silent connections of one source take its share and no more;
// who says at once what he wants is served meanwhile.
func TestA140_Flood(t *testing.T) {
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		r := newRig(t, loops, func(c *Config) { c.Bounds.WaitingSource = 8 })
		var silent []net.Conn
		for range 8 {
			silent = append(silent, r.dial())
		}
		r.waiting(8)
		for range 50 {
			closes(t, r.dial())
		}
		r.reaches(outcomeSourceFull, 50)

		hello := helloBytes(t, r.ca.client("orders.db.gw.test", alpn.PostgreSQL))
		// The loops look when the whole hello is there: one that came a moment
		// after its connection would be one of the crowd.
		look, held := make(chan struct{}), make(chan struct{})
		for _, l := range loops {
			l.Post(func() { held <- struct{}{}; <-look })
			<-held
		}
		conn := r.dial()
		_, err := conn.Write(hello)
		close(look)
		check(t, err)
		turned := make(chan struct{})
		go func() {
			defer close(turned)
			_, _ = conn.Read(make([]byte, 1))
		}()
		select {
		case a := <-r.tunnels.agents:
			a.Close()
		case <-turned:
			t.Error("who said at once what he wants was not served")
		}
		conn.Close()
		<-turned
		for _, c := range silent {
			c.Close()
		}
		r.waiting(0)
	})
}

// TestA141_HalfHellos: the place of one that goes is free for the next.
func TestA141_HalfHellos(t *testing.T) {
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		r := newRig(t, loops, func(c *Config) { c.Bounds.WaitingSource = 4 })
		for range 20 {
			var all []net.Conn
			for range 4 {
				all = append(all, r.say([]byte{0x16, 3, 1, 2, 0, 1}))
			}
			r.waiting(4)
			for _, c := range all {
				c.Close()
			}
			r.waiting(0)
		}
	})
}

// TestLargeHellos: buffers for large hellos are bounded, and come back.
func TestLargeHellos(t *testing.T) {
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		r := newRig(t, loops[:1], func(c *Config) { c.Bounds.LargeHellos = 2 })
		small := helloBytes(t, r.ca.client("orders.db.gw.test", alpn.PostgreSQL))
		part := rerecord(padded(small[5:], 30<<10), 1<<14)[:20<<10]
		for range 3 {
			a, b := r.say(part), r.say(part)
			large := func() (n int) { r.each(func(w *lane) { n = w.large }); return n }
			eventually(t, "both have a buffer", func() bool { return large() == 2 })
			before := r.count(outcomeLargeHellos)
			closes(t, r.say(part))
			r.reaches(outcomeLargeHellos, before+1)
			a.Close()
			b.Close()
			eventually(t, "the buffers are back", func() bool { return large() == 0 })
		}
	})
}

// TestCrowd: the bounds, by a clock of the test's own.
func TestCrowd(t *testing.T) {
	now := time.Unix(1000, 0)
	addr := netip.MustParseAddr
	enter := func(c *crowd, a string, charge bool) (*slot, outcome) {
		s := &slot{}
		bound, ok := c.enter(s, addr(a), charge, now)
		if ok {
			return s, outcomeAccepted
		}
		return s, bound
	}
	t.Run("per source", func(t *testing.T) {
		c := newCrowd(Bounds{WaitingSource: 2}.withDefaults(), true)
		first, _ := enter(c, "2001:db8::1", false)
		_, _ = enter(c, "2001:db8::2", false)
		if _, b := enter(c, "2001:db8::ffff", false); b != outcomeSourceFull {
			t.Errorf("third of a /64: %v", b)
		}
		if _, b := enter(c, "2001:db8:0:1::1", false); b != outcomeAccepted {
			t.Errorf("another /64: %v", b)
		}
		if _, b := enter(c, "::ffff:192.0.2.1", false); b != outcomeAccepted {
			t.Errorf("an IPv4 address: %v", b)
		}
		_, _ = enter(c, "192.0.2.1", false)
		if _, b := enter(c, "192.0.2.1", false); b != outcomeSourceFull {
			t.Errorf("the same address, written twice: %v", b)
		}
		c.leave(first, false, now)
		c.leave(first, false, now) // twice does no harm
		if _, b := enter(c, "2001:db8::3", false); b != outcomeAccepted {
			t.Errorf("after one has left: %v", b)
		}
		if c.size() != 5 || len(c.half) != 3 {
			t.Errorf("%d in %v", c.size(), c.half)
		}
	})
	t.Run("reserve", func(t *testing.T) {
		c := newCrowd(Bounds{WaitingGateway: 8}.withDefaults(), true)
		c.prove(addr("192.0.2.200"), now)
		for i := range 6 {
			if _, b := enter(c, fmt.Sprintf("192.0.2.%d", i), false); b != outcomeAccepted {
				t.Fatalf("%d: %v", i, b)
			}
		}
		if _, b := enter(c, "192.0.2.100", false); b != outcomeGatewayFull {
			t.Errorf("a stranger in the reserve: %v", b)
		}
		for range 2 {
			if _, b := enter(c, "192.0.2.200", false); b != outcomeAccepted {
				t.Errorf("a known source: %v", b)
			}
		}
		if _, b := enter(c, "192.0.2.200", false); b != outcomeGatewayFull {
			t.Errorf("beyond all places: %v", b)
		}
	})
	t.Run("known", func(t *testing.T) {
		c := newCrowd(Bounds{WaitingSource: 2, SourceRate: 1}.withDefaults(), true)
		const known = "192.0.2.200"
		c.prove(addr(known), now)
		for i := range 32 { // sixteen times a stranger's, and no rate
			if _, b := enter(c, known, true); b != outcomeAccepted {
				t.Fatalf("%d: %v", i, b)
			}
		}
		if _, b := enter(c, known, true); b != outcomeSourceFull {
			t.Errorf("a known source takes one more than it may: %v", b)
		}
		if usual := (Bounds{}).withDefaults().WaitingSource * knownFactor; usual < 256 {
			t.Errorf("%d of a pool of 256 may come at once", usual)
		}
		now = now.Add(10*time.Minute - time.Second)
		if _, ok := c.known.get(sourceOf(addr(known)), now); !ok {
			t.Error("it is forgotten early")
		}
		now = now.Add(10*time.Minute + time.Second)
		if _, ok := c.known.get(sourceOf(addr(known)), now); ok {
			t.Error("after twenty minutes it is still known")
		}
	})
	t.Run("taken over", func(t *testing.T) {
		c := newCrowd(Bounds{WaitingSource: 2}.withDefaults(), true)
		s := &slot{}
		c.restore(s, addr("192.0.2.1"))
		c.restore(new(slot), addr("192.0.2.1"))
		if _, b := enter(c, "192.0.2.1", false); b != outcomeSourceFull {
			t.Errorf("beside two that another process had: %v", b)
		}
		c.leave(s, false, now)
		if _, b := enter(c, "192.0.2.1", false); b != outcomeAccepted || c.size() != 2 {
			t.Errorf("after one of them has left: %v, %d wait", b, c.size())
		}
	})
	t.Run("speech", func(t *testing.T) {
		c := newCrowd(Bounds{WaitingSSH: 4}.withDefaults(), true)
		speak := func(a string, want outcome) {
			t.Helper()
			bound, ok := c.speak(addr(a), now)
			if ok {
				bound = outcomeAccepted
			}
			if bound != want {
				t.Errorf("%s with %d speaking: %v, want %v", a, c.speech, bound, want)
			}
		}
		c.prove(addr("192.0.2.200"), now)
		for i := range 3 {
			speak(fmt.Sprintf("192.0.2.%d", i), outcomeAccepted)
		}
		speak("192.0.2.100", outcomeGatewayFull) // the rest is for known sources
		speak("192.0.2.200", outcomeAccepted)
		speak("192.0.2.200", outcomeGatewayFull)
		c.hush()
		speak("192.0.2.200", outcomeAccepted)
	})
	t.Run("rate", func(t *testing.T) {
		c := newCrowd(Bounds{WaitingSource: 1000, SourceRate: 10}.withDefaults(), true)
		var all []*slot
		for i := range 10 {
			s, b := enter(c, "192.0.2.1", true)
			if b != outcomeAccepted {
				t.Fatalf("%d: %v", i, b)
			}
			all = append(all, s)
		}
		if _, b := enter(c, "192.0.2.1", true); b != outcomeSourceRate {
			t.Errorf("eleventh in a moment: %v", b)
		}
		if _, b := enter(c, "192.0.2.2", true); b != outcomeAccepted {
			t.Errorf("another source: %v", b)
		}
		c.leave(all[1], false, now) // it came to nothing
		if _, b := enter(c, "192.0.2.1", true); b != outcomeSourceRate {
			t.Errorf("after one was not good: %v", b)
		}
		c.leave(all[0], true, now) // it came to something
		if _, b := enter(c, "192.0.2.1", true); b != outcomeAccepted {
			t.Errorf("after one was good: %v", b)
		}
		now = now.Add(100 * time.Millisecond)
		if _, b := enter(c, "192.0.2.1", true); b != outcomeAccepted {
			t.Errorf("a tenth of a second later: %v", b)
		}
		if _, b := enter(c, "192.0.2.1", true); b != outcomeSourceRate {
			t.Errorf("and one more: %v", b)
		}
		now = now.Add(time.Hour)
		for i := range 10 {
			if _, b := enter(c, "192.0.2.1", true); b != outcomeAccepted {
				t.Fatalf("an hour later, %d: %v", i, b)
			}
		}
	})
	t.Run("forgets", func(t *testing.T) {
		c := newCrowd(Bounds{}.withDefaults(), true)
		for i := range 3 * fadingMost {
			c.prove(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), now)
		}
		if n := len(c.known.now) + len(c.known.past); n > 2*fadingMost {
			t.Errorf("%d sources are remembered", n)
		}
	})
}

// TestA143_Ended: places of clients whose TLS has ended here, by a clock of the
// test's own: per source, in all with a part kept for known sources, and given
// back one by one.
func TestA143_Ended(t *testing.T) {
	now := time.Unix(1000, 0)
	addr := netip.MustParseAddr
	const granted = outcomeAccepted
	c := newCrowd(Bounds{EndedSource: 2, EndedGateway: 8}.withDefaults(), true)
	hold := func(a string, want outcome) {
		t.Helper()
		bound, ok := c.hold(addr(a), now)
		if ok {
			bound = granted
		}
		if bound != want {
			t.Errorf("%s with %d held: %v, want %v", a, c.holding(), bound, want)
		}
	}
	hold("2001:db8::1", granted)
	hold("2001:db8::2", granted)
	hold("2001:db8::3", outcomeSourceFull) // the third of a /64
	hold("::ffff:192.0.2.1", granted)
	hold("192.0.2.1", granted)
	hold("192.0.2.1", outcomeSourceFull) // the same address, written otherwise

	c.prove(addr("192.0.2.200"), now)
	hold("192.0.2.200", granted)
	hold("192.0.2.200", granted)
	hold("192.0.2.3", outcomeGatewayFull) // the rest is for known sources
	hold("192.0.2.200", granted)          // which may hold more each
	hold("192.0.2.200", granted)
	hold("192.0.2.200", outcomeGatewayFull)

	c.release(addr("192.0.2.200"))
	hold("192.0.2.200", granted)
	c.release(addr("2001:db8::ffff")) // by source, not by address
	c.release(addr("192.0.2.1"))
	c.release(addr("192.0.2.1"))
	if n := c.ended[sourceOf(addr("2001:db8::1"))]; n != 1 || c.holding() != 5 {
		t.Errorf("%d held by a source that had two and gave one back, %d in all", n, c.holding())
	}
	if _, there := c.ended[sourceOf(addr("192.0.2.1"))]; there || len(c.ended) != 2 {
		t.Errorf("a source that holds nothing is remembered: %v", c.ended)
	}
	hold("192.0.2.3", granted)
	if c.size() != 0 {
		t.Errorf("%d places of those who wait were taken", c.size())
	}

	c.bound(Bounds{EndedSource: 1, EndedGateway: 100}.withDefaults(), true)
	hold("2001:db8::1", outcomeSourceFull) // a lower bound holds for the next
	hold("192.0.2.9", granted)
}

// TestA143_EachWay: where a source has no place left, none of what it may say at once
// gets it one: nothing is answered, connected or ended for it. What waits is charged
// to its rate.
func TestA143_EachWay(t *testing.T) {
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		ca := newAuthority(t)
		b := newBackend(t, "tcp", "127.0.0.1:0", func(c net.Conn) { _, _ = c.Write([]byte("reached")) })
		r := newRig(t, loops, func(c *Config) {
			c.Bounds.WaitingSource = 2
			c.Ends = map[alpn.Class]End{alpn.Web: webEnd(t, ca.server(t, "h2", "http/1.1"))}
			c.SSH = func(_ context.Context, conn Stranger) { _, _ = conn.Write([]byte("SSH-2.0-server\r\n")) }
			c.Auth = Upstream{Address: b.Addr().String()}
			c.Static = []StaticRoute{to("shop.example.com", b.Addr().String())}
		})
		for range 2 {
			r.dial()
		}
		r.waiting(2)
		for _, first := range [][]byte{
			[]byte("GET / HTTP/1.1\r\nHost: gw.test\r\n\r\n"),
			[]byte("SSH-2.0-client\r\n"),
			pgStartup,
			helloBytes(t, ca.client("unknown.example.com")),
			helloBytes(t, ca.client(cluster, "h2")),
			helloBytes(t, ca.client(cluster, alpn.Auth1)),
			helloBytes(t, ca.client(cluster, alpn.Join1)),
			helloBytes(t, ca.client("shop.example.com")),
		} {
			closes(t, r.saysAtOnce(loops, first))
		}
		r.waiting(2)
	})
	r := newRig(t, newLoops(t, relay.NewDefault, 1), func(c *Config) { c.Bounds.SourceRate = 1 })
	eventually(t, "one that came too soon is turned away", func() bool {
		r.dial()
		return r.count(outcomeSourceRate) > 0
	})
}

// TestA143_EndedHere: of clients whose TLS has ended here and who have shown no
// certificate a source may have some at a time. One that shows a good one is not
// counted, and makes its source known.
func TestA143_EndedHere(t *testing.T) {
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		ca := newAuthority(t)
		config := ca.server(t, "http/1.1")
		config.ClientAuth, config.ClientCAs = tls.VerifyClientCertIfGiven, ca.pool
		held := make(chan net.Conn, 8)
		r := newRig(t, loops, func(c *Config) {
			c.Bounds.EndedSource = 2
			c.Ends = map[alpn.Class]End{alpn.Web: {TLS: config, Handlers: map[string]Handler{"http/1.1": func(_ context.Context, conn *tls.Conn) {
				held <- conn
				_, _ = conn.Write([]byte{1})
			}}}}
		})
		nobody := ca.client(cluster, "http/1.1")
		somebody := nobody.Clone()
		somebody.Certificates = []tls.Certificate{ca.issue(t, "/user/kate")}
		served := func(config *tls.Config) bool {
			_, err := io.ReadFull(tls.Client(r.dial(), config), make([]byte, 1))
			return err == nil
		}
		wants := func(what string, got, want bool, ended int) {
			t.Helper()
			if n := r.Snapshot().Ended; got != want || n != ended {
				t.Errorf("%s: %v, with %d counted; want %v and %d", what, got, n, want, ended)
			}
		}
		wants("the first", served(nobody), true, 1)
		wants("the second", served(nobody), true, 2)
		wants("the third", served(nobody), false, 2)
		r.reaches(outcomeSourceFull, 1)
		(<-held).Close()
		wants("one whose place has come back", served(nobody), true, 2)
		wants("somebody", served(somebody), true, 2)
		wants("one beside somebody", served(nobody), true, 3)
		for range 4 {
			(<-held).Close()
		}
		if n := r.Snapshot().Ended; n != 0 {
			t.Errorf("%d places are held by nobody", n)
		}
	})
}

// TestEndedHereProven: who has proved himself by what is inside his TLS is not counted
// any more, and makes his source known, as one does who has proved himself to an agent.
func TestEndedHereProven(t *testing.T) {
	type prover interface{ Proven() }
	for name, prove := range map[string]func(*rig, *tls.Conn){
		"here":     func(_ *rig, c *tls.Conn) { c.NetConn().(prover).Proven() },
		"an agent": func(r *rig, _ *tls.Conn) { r.Proven(netip.MustParseAddr("127.0.0.1")) },
	} {
		t.Run(name, func(t *testing.T) {
			ca := newAuthority(t)
			held := make(chan *tls.Conn, 8)
			r := newRig(t, newLoops(t, relay.NewDefault, 1), func(c *Config) {
				c.Bounds.EndedSource = 1
				c.Ends = map[alpn.Class]End{alpn.Web: {TLS: ca.server(t, "http/1.1"), Handlers: map[string]Handler{"http/1.1": func(_ context.Context, conn *tls.Conn) {
					held <- conn
					_, _ = conn.Write([]byte{1})
				}}}}
			})
			served := func() bool {
				_, err := io.ReadFull(tls.Client(r.dial(), ca.client(cluster, "http/1.1")), make([]byte, 1))
				return err == nil
			}
			if !served() || served() {
				t.Error("the first is not served, or the second is")
			}
			first := <-held
			prove(r, first)
			for range 3 {
				if !served() {
					t.Error("refused")
				}
			}
			first.Close()
			for range 3 {
				(<-held).Close()
			}
			if n := r.Snapshot().Ended; n != 0 {
				t.Errorf("%d places are held by nobody", n)
			}
		})
	}
}

// TestSourceRateOfRoutes: joining is charged to its source's rate even when it
// says everything at once, and auth's answer does not pay it back; calls to auth
// are charged until auth answers; a static route's clients are not charged.
func TestSourceRateOfRoutes(t *testing.T) {
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		ca := newAuthority(t)
		b := newBackend(t, "tcp", "127.0.0.1:0", echoTLS(ca.server(t, alpn.Auth1, alpn.Join1)))
		const some = 20
		start := func(t *testing.T) *rig {
			return newRig(t, loops, func(c *Config) {
				c.Auth = Upstream{Address: b.Addr().String()}
				c.Static = []StaticRoute{{Match: alpn.Match{SNI: []string{"shop.example.com"}}, Upstreams: []string{b.Addr().String()}}}
				c.Bounds = Bounds{WaitingSource: some, SourceRate: 1}
			})
		}
		config := map[string]*tls.Config{
			"join": ca.client(cluster, alpn.Join1), "auth": ca.client(cluster, alpn.Auth1), "static": ca.client("shop.example.com"),
		}
		for name, refuses := range map[string]bool{"join": true, "static": false} {
			t.Run(name, func(t *testing.T) {
				r := start(t)
				hello := helloBytes(t, config[name])
				release := stop(loops) // so that all bytes are there when the connection is accepted
				for range some {
					r.say(hello)
				}
				release()
				eventually(t, "all were served or refused", func() bool { return r.count(outcomeRelayed)+r.count(outcomeSourceRate) == some })
				if refused := r.count(outcomeSourceRate); refuses != (refused > 0) {
					t.Errorf("%d of %d at once were refused", refused, some)
				}
			})
		}
		t.Run("auth", func(t *testing.T) {
			r := start(t)
			for range some {
				echoes(t, tls.Client(r.dial(), config["auth"]))
			}
			if refused := r.count(outcomeSourceRate); refused > 0 {
				t.Errorf("%d of %d, one after the other, were refused", refused, some)
			}
		})
	})
}

// saysAtOnce is say whose bytes are there when the connection is accepted: its stage
// may be as short as it likes.
func (r *rig) saysAtOnce(loops []relay.Loop, b []byte) *net.TCPConn {
	r.Helper()
	defer stop(loops)()
	return r.say(b)
}

// stop keeps loops busy until release is called.
func stop(loops []relay.Loop) (release func()) {
	gate := make(chan struct{})
	var stopped sync.WaitGroup
	for _, l := range loops {
		stopped.Add(1)
		l.Post(func() { stopped.Done(); <-gate })
	}
	stopped.Wait()
	return func() { close(gate) }
}

// TestOutcomesHaveNames: a metric without a name would be lost.
func TestOutcomesHaveNames(t *testing.T) {
	seen := map[string]bool{}
	for o := range outcomes {
		if o.String() == "" || seen[o.String()] {
			t.Errorf("outcome %d is named %q", o, o.String())
		}
		seen[o.String()] = true
	}
}

func TestListen(t *testing.T) {
	addresses := []string{"127.0.0.1:0", "[::1]:0"}
	if l, err := net.Listen("tcp6", "[::1]:0"); errors.Is(err, syscall.EADDRNOTAVAIL) || errors.Is(err, syscall.EAFNOSUPPORT) {
		t.Logf("this machine has no IPv6 loopback: %v", err)
		addresses = []string{"127.0.0.1:0", "127.0.0.1:0"}
	} else {
		check(t, err)
		check(t, l.Close())
	}
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		r := newRig(t, loops, func(c *Config) { c.Listen = addresses })
		for _, a := range r.Addrs() {
			conn, err := net.Dial("tcp", a.String())
			check(t, err)
			_, err = conn.Write([]byte("GET / HTTP/1.1\r\nHost: gw.test\r\n\r\n"))
			check(t, err)
			check(t, conn.SetDeadline(time.Now().Add(patience)))
			if got := readAll(t, conn); !strings.HasPrefix(string(got), "HTTP/1.1 308") {
				t.Errorf("%v: %q", a, got)
			}
			conn.Close()
		}
		// A second one at the same address does not share it in silence.
		_, err := Start(Config{Listen: []string{r.addr}, Loops: loops})
		if err == nil || !strings.Contains(err.Error(), "in use") {
			t.Errorf("a second gateway: %v", err)
		}
		if _, err := Start(Config{Listen: []string{"127.0.0.1:0", "not an address"}, Loops: loops}); err == nil {
			t.Error("a bad address was taken")
		}
	})
}

// TestListenBeside: all of IPv4 could not be listened at where the port was in use at
// an address of IPv6.
func TestListenBeside(t *testing.T) {
	other, err := net.Listen("tcp6", "[::1]:0")
	if errors.Is(err, syscall.EADDRNOTAVAIL) || errors.Is(err, syscall.EAFNOSUPPORT) {
		t.Skipf("this machine has no IPv6 loopback: %v", err)
	}
	check(t, err)
	defer other.Close()
	_, port, err := net.SplitHostPort(other.Addr().String())
	check(t, err)
	r := newRig(t, newLoops(t, relay.NewDefault, 1), func(c *Config) { c.Listen = []string{"0.0.0.0:" + port} })
	if got := r.Addrs()[0].String(); got != "0.0.0.0:"+port {
		t.Errorf("it listens at %s", got)
	}
}

// TestNobodyKnown: where nobody can prove who he is a quarter of the places was kept
// for those who have.
func TestNobodyKnown(t *testing.T) {
	loops := newLoops(t, relay.NewDefault, 1)
	proxies := []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
	for name, c := range map[string]struct {
		change func(*Config)
		want   int
	}{
		"routes alone":            {func(c *Config) { c.Tunnels = nil }, 8},
		"tunnels":                 {func(*Config) {}, 6},
		"routes behind a proxy":   {func(c *Config) { c.Tunnels, c.TrustedProxies = nil, proxies }, 6},
		"routes and a login page": {func(c *Config) { c.Tunnels, c.Ends = nil, map[alpn.Class]End{alpn.Web: {TLS: new(tls.Config)}} }, 6},
	} {
		places := func(r *rig) (n int) {
			for ; n < 100; n++ {
				if _, ok := r.crowd.enter(new(slot), netip.AddrFrom4([4]byte{10, 0, 0, byte(n)}), false, time.Now()); !ok {
					break
				}
			}
			return n
		}
		bounds := Bounds{WaitingGateway: 8}
		r := newRig(t, loops, func(cfg *Config) { cfg.Bounds = bounds; c.change(cfg) })
		if n := places(r); n != c.want {
			t.Errorf("%s: %d of 8 may wait, want %d", name, n, c.want)
		}
		if name != "routes alone" {
			continue
		}
		// A reload can name a proxy.
		_, err := r.Reload(t.Context(), Settings{Bounds: Bounds{WaitingGateway: 16}, TrustedProxies: proxies})
		check(t, err)
		if n := places(r); n != 12-8 {
			t.Errorf("after the reload %d more may wait, want 4", n)
		}
	}
}

// exhaustedChild makes this test binary a gateway with few descriptors.
const exhaustedChild = "GATEWAY_TEST_EXHAUSTED"

// TestA142_Descriptors: with no descriptor left the gateway resets the silent,
// tells others, waits, and serves again as soon as there are some (F19 likewise).
func TestA142_Descriptors(t *testing.T) {
	exe, err := os.Executable()
	check(t, err)
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), exhaustedChild+"=1")
	stdin, err := cmd.StdinPipe()
	check(t, err)
	stdout, err := cmd.StdoutPipe()
	check(t, err)
	cmd.Stderr = os.Stderr
	check(t, cmd.Start())
	t.Cleanup(func() { stdin.Close(); _ = cmd.Wait() })
	lines := bufio.NewScanner(stdout)
	if !lines.Scan() {
		t.Fatal("the child said nothing")
	}
	addr := lines.Text()

	var all []net.Conn
	for range 150 {
		c, err := net.DialTimeout("tcp", addr, patience)
		if err != nil {
			continue // shed while it was being made
		}
		defer c.Close()
		all = append(all, c)
	}
	if !lines.Scan() || lines.Text() != "exhausted" {
		t.Fatalf("the child said %q", lines.Text())
	}
	eventually(t, "a client that says what it wants is told", func() bool {
		conn, err := tls.Dial("tcp", addr, &tls.Config{ServerName: cluster, MinVersion: tls.VersionTLS13})
		if err == nil {
			conn.Close()
			t.Fatal("served without a descriptor")
		}
		// Another error: it was accepted before its hello had come.
		return strings.Contains(err.Error(), "internal error")
	})
	opens := func(when string) {
		_, err := io.WriteString(stdin, "open\n")
		check(t, err)
		if !lines.Scan() || lines.Text() != "opened" {
			t.Errorf("%s the process opens no file: %q", when, lines.Text())
		}
	}
	opens("when nobody more is accepted")
	hello := helloBytes(t, &tls.Config{ServerName: "a.example.com"})
	told := make(chan bool, len(all))
	for _, c := range all {
		go func() {
			_ = c.SetDeadline(time.Now().Add(patience))
			_, _ = c.Write(hello) // those that were shed are gone
			var first [1]byte
			n, _ := c.Read(first[:])
			told <- n == 1
		}()
	}
	answered := false
	for i := 0; i < len(all) && !answered; i++ {
		answered = <-told
	}
	if !answered {
		t.Error("nobody is told that there is no descriptor for an upstream")
	}
	opens("when nobody more is connected")
	for _, c := range all {
		c.Close()
	}
	eventually(t, "a client is served", func() bool { // once the gateway has seen them go
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			return false
		}
		defer conn.Close()
		check(t, conn.SetDeadline(time.Now().Add(patience)))
		_, _ = conn.Write([]byte("GET / HTTP/1.1\r\nHost: gw.test\r\n\r\n"))
		got, _ := io.ReadAll(conn)
		return strings.HasPrefix(string(got), "HTTP/1.1 308")
	})
}

// runExhausted is the child: it says its address, then that it has run out.
func runExhausted() {
	fail := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	fail(syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 64, Max: 64}))
	loops, err := relay.New(2)
	fail(err)
	bounds := generous()
	bounds.Stage = time.Hour // what is held is held until the test lets go
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	fail(err)
	g, err := Start(Config{
		Cluster: cluster, Listen: []string{"127.0.0.1:0"}, Loops: loops, Bounds: bounds, Static: []StaticRoute{to("a.example.com", silent.Addr().String())},
	})
	fail(err)
	fmt.Println(g.Addrs()[0])
	for g.Snapshot().Outcomes[outcomeExhausted.String()] == 0 || g.Snapshot().Outcomes[outcomeShed.String()] == 0 {
		time.Sleep(time.Millisecond)
	}
	fmt.Println("exhausted")
	for asked := bufio.NewScanner(os.Stdin); asked.Scan(); {
		fmt.Println(openSome())
	}
}

// openSome opens as many files as somebody who asks the process something may need.
func openSome() string {
	for range 4 {
		f, err := os.Open(os.DevNull)
		if err != nil {
			return err.Error()
		}
		defer f.Close()
	}
	return "opened"
}

// TestEndToEnd: a real agent's half over the one port: control connection, data
// connections, a stream.
func TestEndToEnd(t *testing.T) {
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		e := startEndToEnd(t, loops)
		for range 20 {
			conn, err := tls.Dial("tcp", e.addr, e.ca.client("orders.db.gw.test", alpn.PostgreSQL))
			check(t, err)
			echoes(t, conn)
			conn.Close()
		}
		eventually(t, "no relay is left", func() bool { return e.Snapshot().Relays == 0 })
	})
}

var _ Tunnels = Through((*tunnel.Hub)(nil))
