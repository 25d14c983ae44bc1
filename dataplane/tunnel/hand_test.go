package tunnel

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sallyport/sallyport"
	tunnelv1 "github.com/sallyport/sallyport/wire/sallyport/tunnel/v1"
)

// handAgent is an agent that does only what a test tells it to.
type handAgent struct {
	t       testing.TB
	conn    *tls.Conn
	welcome *tunnelv1.Welcome
	tunnel  ID
	keys    keys
	counter atomic.Uint64
	heard   chan *tunnelv1.Control // what is no ping; closed at the end
	done    sync.WaitGroup
}

// byHand connects, and answers pings until the test is over.
func byHand(t testing.TB, g *gateway, id string, assignment []byte) *handAgent {
	t.Helper()
	return byHandSaying(t, g, &tunnelv1.Hello{AgentId: id, Version: "hand", Assignment: assignment})
}

func byHandSaying(t testing.TB, g *gateway, hello *tunnelv1.Hello) *handAgent {
	t.Helper()
	a := &handAgent{t: t, heard: make(chan *tunnelv1.Control, 4096)}
	a.conn = dialControl(t, g, g.ca.issue(t, sallyport.KindAgent, hello.AgentId))
	a.say(&tunnelv1.Control{Message: &tunnelv1.Control_Hello{Hello: hello}})
	m, err := ReadControl(a.conn)
	check0(t, err)
	a.welcome = m.GetWelcome()
	a.tunnel = ID(a.welcome.GetTunnelId())
	a.keys, err = deriveKeys(a.conn.ConnectionState(), a.tunnel)
	check0(t, err)
	a.done.Go(a.listen)
	t.Cleanup(a.close)
	return a
}

func dialControl(t testing.TB, g *gateway, cert tls.Certificate) *tls.Conn {
	t.Helper()
	c, err := tls.Dial("tcp", g.control.Addr().String(), g.ca.client(cert))
	check0(t, err)
	return c
}

func (a *handAgent) say(m *tunnelv1.Control) {
	a.t.Helper()
	check0(a.t, putControl(a.conn, m, patience))
}

func (a *handAgent) listen() {
	defer close(a.heard)
	for {
		m, err := ReadControl(a.conn)
		if err != nil {
			return
		}
		if p := m.GetPing(); p != nil {
			_ = putControl(a.conn, &tunnelv1.Control{Message: &tunnelv1.Control_Pong{Pong: &tunnelv1.Pong{Sequence: p.Sequence}}}, patience)
			continue
		}
		a.heard <- m
	}
}

func (a *handAgent) close() {
	a.conn.Close()
	a.done.Wait()
}

// need waits for the next request for connections.
func (a *handAgent) need() int {
	a.t.Helper()
	for {
		m := receive(a.t, a.heard)
		if m == nil {
			a.t.Fatal("the control connection has ended")
		}
		if n := m.GetNeed(); n != nil {
			return int(n.Connections)
		}
	}
}

// hello are the bytes of the next data hello.
func (a *handAgent) hello() (b []byte, at Binding) {
	at = Binding{a.tunnel, a.counter.Add(1)}
	return AppendDataHello(nil, DataHello{Tunnel: at.Tunnel, Counter: at.Counter}, a.keys.agent), at
}

// handData is a data connection of a handAgent.
type handData struct {
	net.Conn
	at    Binding
	agent *handAgent
}

// park makes one data connection and waits until the gateway has taken it.
func (a *handAgent) park(g *gateway) *handData {
	a.t.Helper()
	b, at := a.hello()
	c := sendHello(a.t, g, b)
	check0(a.t, receive(a.t, g.parkErr))
	return &handData{c, at, a}
}

func sendHello(t testing.TB, g *gateway, b []byte) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", g.data.Addr().String())
	check0(t, err)
	t.Cleanup(func() { c.Close() })
	check0(t, c.SetDeadline(time.Now().Add(patience)))
	_, err = c.Write(b)
	check0(t, err)
	return c
}

// frame reads the open frame.
func (d *handData) frame() OpenFrame {
	d.agent.t.Helper()
	b := make([]byte, MaxFrameSize)
	_, err := io.ReadFull(d, b[:FrameHeaderSize])
	check0(d.agent.t, err)
	n, err := FrameSize(b)
	check0(d.agent.t, err)
	_, err = io.ReadFull(d, b[FrameHeaderSize:n])
	check0(d.agent.t, err)
	f, err := ParseOpenFrame(b[:n], d.at, d.agent.keys.gateway)
	check0(d.agent.t, err)
	return f
}

func (a *handAgent) streamUp(id ID) {
	a.say(&tunnelv1.Control{Message: &tunnelv1.Control_StreamUp{StreamUp: &tunnelv1.StreamUp{ConnectionId: id[:]}}})
}

func (a *handAgent) streamRefused(id ID) {
	a.say(&tunnelv1.Control{Message: &tunnelv1.Control_StreamRefused{StreamRefused: &tunnelv1.StreamRefused{ConnectionId: id[:], Reason: "no"}}})
}

// wantClosed fails unless the other side closes without a word.
func wantClosed(t testing.TB, c net.Conn) {
	t.Helper()
	n, err := c.Read(make([]byte, 1))
	if n != 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read %d bytes, %v; want a closed connection", n, err)
	}
}
