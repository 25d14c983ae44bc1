package tunnel

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"

	"github.com/sallyport/sallyport"
	tunnelv1 "github.com/sallyport/sallyport/wire/sallyport/tunnel/v1"
)

// The tests of this file run by a fake clock, over pipes.

// TestF13_AgentVanishes: nothing is heard, no packet says so; within 5 s
// nothing leads to the agent any more.
func TestF13_AgentVanishes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newAuthority(t)
		gone := make(chan time.Time, 1)
		h := NewHub(HubConfig{GatewayID: gatewayID, Verify: verifyAssigned, Presence: func(p Presence) {
			if !p.Up {
				gone <- time.Now()
			}
		}})
		here, there := net.Pipe()
		vanish := make(chan struct{})
		ended := make(chan error, 1)
		go func() {
			ended <- h.Serve(t.Context(), tls.Server(&mute{Conn: here, from: vanish}, ca.server(ca.issue(t, sallyport.KindGateway, gatewayID))))
		}()
		agent := tls.Client(there, ca.client(ca.issue(t, sallyport.KindAgent, agentID)))
		hello := &tunnelv1.Hello{AgentId: agentID, Assignment: assigned(1, "tcp/echo")}
		check0(t, putControl(agent, &tunnelv1.Control{Message: &tunnelv1.Control_Hello{Hello: hello}}, patience))
		for range 100 { // 200 s of pings: it lives as long as it answers
			m, err := ReadControl(agent)
			check0(t, err)
			if p := m.GetPing(); p != nil {
				check0(t, putControl(agent, &tunnelv1.Control{Message: &tunnelv1.Control_Pong{Pong: &tunnelv1.Pong{Sequence: p.Sequence}}}, patience))
			}
		}
		if !h.Live("tcp", "echo") {
			t.Fatal("the agent answers, and is not live")
		}
		close(vanish)
		vanished := time.Now()
		if d := (<-gone).Sub(vanished); d > 5*time.Second {
			t.Errorf("noticed after %v", d)
		}
		if h.Live("tcp", "echo") {
			t.Error("still live")
		}
		if err := <-ended; !errors.Is(err, ErrDead) && !isTimeout(err) {
			t.Errorf("Serve: %v", err)
		}
		if n := h.Status().Counters["control_dead"]; n != 1 {
			t.Errorf("control_dead: %d", n)
		}
		there.Close()
	})
}

// TestF13_GatewayVanishes: the agent notices as well, and dials again.
func TestF13_GatewayVanishes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newAuthority(t)
		h := NewHub(HubConfig{GatewayID: gatewayID, Verify: verifyAssigned})
		server := ca.server(ca.issue(t, sallyport.KindGateway, gatewayID))
		vanish := make(chan struct{})
		dialed := make(chan time.Time, 100)
		ctx, cancel := context.WithCancel(t.Context())
		first := true
		done := make(chan error, 1)
		go func() {
			done <- RunAgent(ctx, AgentConfig{
				AgentID: agentID, Gateways: []string{"gw.test:443"}, Assignments: once(assigned(1, "tcp/echo")), Serve: echo,
				TLS: func(string) (*tls.Config, error) {
					return ca.client(ca.issue(t, sallyport.KindAgent, agentID)), nil
				},
				Dial: func(_ context.Context, _, addr string) (net.Conn, error) {
					if addr != "gw.test:443" {
						return nil, errors.New("no data connections here")
					}
					dialed <- time.Now()
					if !first {
						return nil, errors.New("nobody there")
					}
					first = false
					here, there := net.Pipe()
					go func() { _ = h.Serve(t.Context(), tls.Server(&mute{Conn: here, from: vanish}, server)) }()
					return there, nil
				},
			})
		}()
		<-dialed
		time.Sleep(time.Minute)
		if !h.Live("tcp", "echo") {
			t.Fatal("not live after a minute")
		}
		drainTimes(dialed)
		vanished := time.Now()
		close(vanish)
		if d := (<-dialed).Sub(vanished); d > 5*time.Second+jitterMost {
			t.Errorf("dialed again after %v", d)
		}
		cancel()
		<-done
		time.Sleep(time.Minute)
	})
}

// jitterMost is the first pause at its longest.
const jitterMost = firstPause

func drainTimes(c chan time.Time) {
	for len(c) > 0 {
		<-c
	}
}

// mute is a connection whose other end vanishes: nothing goes through any more,
// and nobody is told.
type mute struct {
	net.Conn
	from chan struct{}
}

func (m *mute) Write(b []byte) (int, error) {
	select {
	case <-m.from:
		return len(b), nil
	default:
		return m.Conn.Write(b)
	}
}

// TestBackInTime: however long a gateway was away, the agent is there within
// 5 s of its return.
func TestBackInTime(t *testing.T) {
	for _, away := range []time.Duration{time.Millisecond, time.Second, 10 * time.Second, time.Hour} {
		for _, hangs := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				if d := backAfter(t, away, hangs); d > 5*time.Second {
					t.Errorf("away for %v (dials hang: %v): back after %v", away, hangs, d)
				}
			})
		}
	}
}

// backAfter says how long after a gateway's return the next dial begins.
func backAfter(t *testing.T, away time.Duration, hangs bool) time.Duration {
	ctx, cancel := context.WithCancel(t.Context())
	start, found := time.Now(), make(chan time.Time, 1)
	done := make(chan error, 1)
	go func() {
		done <- RunAgent(ctx, AgentConfig{
			AgentID: agentID, Gateways: []string{"gw.test:443"}, Assignments: once(assigned(1)), Serve: echo,
			TLS: func(string) (*tls.Config, error) { return &tls.Config{}, nil },
			Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
				if time.Since(start) >= away {
					select {
					case found <- time.Now():
					default:
					}
				}
				if hangs {
					<-ctx.Done()
				}
				return nil, io.ErrUnexpectedEOF
			},
		})
	}()
	back := (<-found).Sub(start.Add(away))
	cancel()
	<-done
	return back
}

// fallsSilent has a hub serve a stranger, who does what say does and then nothing
// more: he is closed when the time for a hello is over, and not before.
func fallsSilent(t *testing.T, name string, serve func(t *testing.T, h *Hub, here net.Conn), say func(t *testing.T, there net.Conn) (closed func())) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(HubConfig{GatewayID: gatewayID, Cluster: testCluster, Verify: verifyAssigned})
		here, there := net.Pipe()
		defer there.Close()
		served := make(chan struct{})
		began := time.Now()
		go func() { defer close(served); serve(t, h, here) }()
		say(t, there)()
		if d := time.Since(began); d < h.bounds.HelloWait || d > h.bounds.HelloWait+lastWords {
			t.Errorf("%s: closed after %v, want %v", name, d, h.bounds.HelloWait)
		}
		there.Close()
		<-served
		if s := h.Status(); s.Carried != 0 || s.Parked != 0 || s.HalfOpen != 0 || h.greeted.Load() != 0 {
			t.Errorf("%s: held: %+v", name, s)
		}
	})
}

// TestA32_HalfControl: who falls silent on a control connection, before TLS or in
// it, at every byte of a hello, is closed within the bound for hellos.
func TestA32_HalfControl(t *testing.T) {
	ca := newAuthority(t)
	server, client := ca.server(ca.issue(t, sallyport.KindGateway, gatewayID)), ca.client(ca.issue(t, sallyport.KindAgent, agentID))
	hello := AppendDataHello(nil, DataHello{Tunnel: testID, Counter: 1}, testKey)
	for name, c := range map[string]struct {
		inside bool // TLS
		say    []byte
		told   bool // a word
	}{
		"nothing": {}, "one byte": {say: []byte{tlsHandshake}}, "a record's head": {say: []byte{tlsHandshake, 3, 1, 2, 0, 1}},
		"nothing inside TLS": {inside: true}, "half a length": {inside: true, say: []byte{0, 0}},
		"a byte of a control message": {inside: true, say: []byte{0, 0, 0, 9, 1}, told: true},
		"the magic":                   {inside: true, say: hello[:4]}, "a data hello minus its last byte": {inside: true, say: hello[:HelloSize-1]},
	} {
		fallsSilent(t, name, func(t *testing.T, h *Hub, here net.Conn) {
			if err := h.Serve(t.Context(), tls.Server(here, server)); err == nil {
				t.Errorf("%s: no error", name)
			}
		}, func(t *testing.T, conn net.Conn) func() {
			if c.inside {
				tc := tls.Client(conn, client)
				check0(t, tc.Handshake())
				conn = tc
			}
			_, err := conn.Write(c.say)
			check0(t, err)
			return func() {
				if c.told {
					if m, err := ReadControl(conn); m.GetGoodbye() == nil {
						t.Errorf("%s: %v, %v; want a goodbye", name, m, err)
					}
				}
				wantClosed(t, conn)
			}
		})
	}
}

// TestA32_AfterUpgrade: who falls silent behind the answer 101 is closed within the
// bound for hellos, at every byte of one.
func TestA32_AfterUpgrade(t *testing.T) {
	ca := newAuthority(t)
	control := ca.server(ca.issue(t, sallyport.KindGateway, gatewayID))
	hello := AppendDataHello(nil, DataHello{Tunnel: testID, Counter: 1}, testKey)
	for name, first := range map[string][]byte{
		"nothing": nil, "one byte": hello[:1], "the magic": hello[:4], "a hello minus its last byte": hello[:HelloSize-1],
		"one byte of TLS": {tlsHandshake}, "a record's head": {tlsHandshake, 3, 1, 2, 0},
	} {
		fallsSilent(t, name, func(t *testing.T, h *Hub, here net.Conn) {
			l := &pipeListener{conns: make(chan net.Conn, 1), done: make(chan struct{})}
			l.conns <- here
			handler, over := h.Upgrade(control), make(chan struct{})
			server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				defer close(over)
				handler.ServeHTTP(w, r)
			})}
			go func() { <-over; server.Close() }()
			_ = server.Serve(l)
		}, func(t *testing.T, conn net.Conn) func() {
			c, _, err := websocket.Dial(t.Context(), "ws://gw.test"+UpgradePath, &websocket.DialOptions{
				HTTPClient: &http.Client{Transport: &http.Transport{
					DialContext: func(context.Context, string, string) (net.Conn, error) { return conn, nil },
				}},
			})
			check0(t, err)
			if len(first) > 0 {
				check0(t, c.Write(t.Context(), websocket.MessageBinary, first))
			}
			return func() {
				wantSocketClosed(t, name, c)
				c.CloseNow()
			}
		})
	}
}

// TestA32_HalfFrame: a gateway that falls silent at any byte of an open frame has its
// connection closed within the bound for frames. One that says nothing is kept far
// longer, and a stream that has begun is under no bound of the tunnel's.
func TestA32_HalfFrame(t *testing.T) {
	at := Binding{testID, 3}
	frame, err := AppendOpenFrame(nil, OpenFrame{ConnectionID: testID, Kind: "tcp", Name: "echo", Client: netip.MustParseAddrPort("192.0.2.1:258")}, at, testKey)
	check0(t, err)
	for n := 1; n <= len(frame); n++ {
		synctest.Test(t, func(t *testing.T) {
			l := &link{agent: &agent{served: newServed()}, keys: keys{gateway: testKey}, parked: t.Context()}
			here, there := net.Pipe()
			defer there.Close()
			var said time.Time
			go func() {
				time.Sleep(parkedFor - time.Second)
				said = time.Now()
				_, _ = there.Write(frame[:1])
				if n > 1 {
					time.Sleep(frameLimit / 2) // no byte moves the deadline
					_, _ = there.Write(frame[1:n])
				}
			}()
			f, err := l.park(here, at)
			d := time.Since(said)
			if n < len(frame) {
				if here.Close(); !isTimeout(err) || d != frameLimit {
					t.Errorf("%d bytes: %v after %v, want a timeout after %v", n, err, d, frameLimit)
				}
				return
			}
			if err != nil || f.Name != "echo" {
				t.Fatalf("the frame: %+v, %v", f, err)
			}
			go func() {
				time.Sleep(24 * time.Hour)
				_, _ = there.Write([]byte("hello"))
			}()
			if _, err := io.ReadFull(here, make([]byte, 5)); err != nil {
				t.Errorf("the stream: %v", err)
			}
			here.Close()
		})
	}
}

// pipeListener accepts what it is given.
type pipeListener struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

func (l *pipeListener) Addr() net.Addr { return &net.TCPAddr{} }
