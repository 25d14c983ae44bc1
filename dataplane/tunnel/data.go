package tunnel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"time"

	tunnelv1 "github.com/sallyport/sallyport/wire/sallyport/tunnel/v1"
)

// An agent's data connections: each has a goroutine from dial to the end of
// its stream.

const (
	parallelDials = 32 // per link
	dialAttempts  = 3
	dialPause     = 50 * time.Millisecond

	// frameLimit is how long the rest of an open frame may take.
	frameLimit = 10 * time.Second

	// parkedFor is how long a connection is kept waiting before the agent asks
	// the gateway to retire it; retireLimit is how long the gateway may take.
	parkedFor   = 30 * time.Minute
	retireLimit = time.Minute
)

var errServedBefore = errors.New("connection id was served before")

// need dials as many connections as the gateway asks for, within the ceiling.
func (l *link) need(n int) {
	l.mu.Lock()
	n = min(n, l.ceiling-l.held)
	l.held += max(n, 0)
	l.mu.Unlock()
	for range n {
		l.agent.tasks.Go(l.dataConnection)
	}
}

// dataConnection is the life of one of them.
func (l *link) dataConnection() {
	conn, at, err := l.dialData()
	if err != nil {
		l.release()
		l.agent.Log.Debug("data connection", "gateway_id", l.gateway, "err", err)
		return
	}
	defer conn.Close()
	frame, err := l.park(conn, at)
	l.release()
	if err != nil {
		l.agent.Log.Debug("data connection ended", "gateway_id", l.gateway, "err", err)
		return
	}
	l.serveStream(conn, frame)
}

func (l *link) release() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.held--
	l.unparkLocked()
}

// dialData makes a data connection. It tries a few times: a gateway's next
// request would come seconds later.
func (l *link) dialData() (conn net.Conn, at Binding, err error) {
	select {
	case l.dialing <- struct{}{}:
		defer func() { <-l.dialing }()
	case <-l.parked.Done():
		return nil, at, l.parked.Err()
	}
	for attempt := range dialAttempts {
		if attempt > 0 && !sleep(l.parked, jitter(dialPause<<attempt)) {
			return nil, at, l.parked.Err()
		}
		if conn, at, err = l.open(); err == nil {
			return conn, at, nil
		}
	}
	l.chooseAgain()
	return nil, at, err
}

// sayHello says who the connection belongs to, and hears the answer, for which it
// waits for so long, when it is to find out whether it arrived.
func (l *link) sayHello(conn net.Conn, hello DataHello, wait time.Duration) error {
	if tc, ok := conn.(*net.TCPConn); ok {
		_ = tc.SetKeepAliveConfig(keepAliveConfig())
	}
	userTimeout(conn, greetLimit) // lifted in park: see keepAlive
	_ = conn.SetWriteDeadline(time.Now().Add(greetLimit))
	if _, err := conn.Write(AppendDataHello(make([]byte, 0, HelloSize), hello, l.keys.agent)); err != nil {
		return err
	}
	if !hello.Answer {
		return nil
	}
	_ = conn.SetReadDeadline(time.Now().Add(wait))
	var b [AnswerSize]byte
	if _, err := io.ReadFull(conn, b[:]); err != nil {
		return fmt.Errorf("answer: %w", err)
	}
	return CheckAnswer(b[:], Binding{hello.Tunnel, hello.Counter}, l.keys.gateway)
}

// park waits for the open frame. Nothing may be said meanwhile. The wait ends
// with the tunnel; the stream that follows does not.
func (l *link) park(conn net.Conn, at Binding) (OpenFrame, error) {
	stop := context.AfterFunc(l.parked, func() { conn.Close() })
	frame, err := l.readFrame(conn, at)
	if !stop() && err == nil {
		err = l.parked.Err()
	}
	if err != nil {
		return OpenFrame{}, err
	}
	if !l.agent.served.first(frame.ConnectionID) {
		return OpenFrame{}, errServedBefore
	}
	userTimeout(conn, 0)
	// The gateway is known by the frame. The client's handshake has its own
	// deadline, set by who serves it.
	return frame, conn.SetDeadline(time.Time{})
}

func (l *link) readFrame(conn net.Conn, at Binding) (OpenFrame, error) {
	var buf [MaxFrameSize]byte
	if err := l.firstByte(conn, at, buf[:1]); err != nil {
		return OpenFrame{}, err
	}
	_ = conn.SetReadDeadline(time.Now().Add(frameLimit))
	if _, err := io.ReadFull(conn, buf[1:FrameHeaderSize]); err != nil {
		return OpenFrame{}, err
	}
	n, err := FrameSize(buf[:FrameHeaderSize])
	if err != nil {
		return OpenFrame{}, fmt.Errorf("open frame: %w", err)
	}
	if _, err := io.ReadFull(conn, buf[FrameHeaderSize:n]); err != nil {
		return OpenFrame{}, err
	}
	f, err := ParseOpenFrame(buf[:n], at, l.keys.gateway)
	if err != nil {
		return OpenFrame{}, fmt.Errorf("open frame: %w", err)
	}
	return f, nil
}

// firstByte waits for the lease. After a long time it asks to be retired, and
// goes on waiting: a lease may be on its way.
func (l *link) firstByte(conn net.Conn, at Binding, b []byte) error {
	_ = conn.SetReadDeadline(time.Now().Add(parkedFor + rand.N(parkedFor)))
	_, err := conn.Read(b)
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	if l.isLeaving() {
		return err // the gateway's next process has not kept it for so long
	}
	l.send(&tunnelv1.Control{Message: &tunnelv1.Control_Retire{Retire: &tunnelv1.Retire{Counters: []uint64{at.Counter}}}})
	_ = conn.SetReadDeadline(time.Now().Add(retireLimit))
	_, err = conn.Read(b)
	return err
}

// serveStream gives the stream to who serves it, if there is room.
func (l *link) serveStream(conn net.Conn, f OpenFrame) {
	a := l.agent
	s := &Stream{
		Conn: conn, ConnectionID: f.ConnectionID, Kind: f.Kind, Name: f.Name,
		Client: f.Client, GatewayID: l.gateway, link: l,
	}
	select {
	case a.streams <- struct{}{}:
		defer func() { <-a.streams }()
	default:
		s.Refuse("busy")
		return
	}
	defer s.Refuse("ended") // unless it came up
	a.Serve(a.ctx, s)
}
