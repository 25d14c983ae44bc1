package flow

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

const (
	pingSize    = 64
	pingsAtOnce = 64 // of one connection; more are counted as missed
)

// ping sends 64 bytes and waits for them: one after the other, or so many per
// second over all connections in turn. Then a round trip begins when it should
// have been sent, so that a relay that stalls is not spared what it delays.
func (r *runner) ping(ctx context.Context) (Result, error) {
	conns, err := r.openAll(ctx, EchoName, r.Conns)
	defer closeAll(conns)
	if err != nil {
		return Result{}, err
	}
	if r.Beside > 0 {
		end, err := r.beside(ctx)
		if err != nil {
			return Result{}, err
		}
		defer end()
	}
	if r.config != nil {
		return r.pingTLS(ctx, conns)
	}
	p := &pinger{runner: r}
	for _, c := range conns {
		line, err := newLine(c.(*net.TCPConn))
		if err != nil {
			return Result{}, err
		}
		p.lines = append(p.lines, line)
	}
	return p.run(ctx)
}

// beside sends a stream through the same relay until end is called.
func (r *runner) beside(ctx context.Context) (end func(), err error) {
	conns, err := r.openAll(ctx, SinkName, 1)
	if err != nil {
		closeAll(conns)
		return nil, err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		send(conns[0], r.Beside)
	}()
	return func() { interrupt(conns); closeAll(conns); <-done }, nil
}

// line is one connection with the pings that are on their way.
type line struct {
	fd    int
	sent  []time.Time // when each should have been sent
	got   int         // bytes of the first of them
	inSet bool        // among the pinger's busy ones
}

// newLine takes the descriptor; conn keeps it open and non-blocking.
func newLine(conn *net.TCPConn) (*line, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	l := &line{}
	return l, raw.Control(func(fd uintptr) { l.fd = int(fd) })
}

// pinger is one thread that polls. It yields in between: the servers are on
// the same core.
type pinger struct {
	*runner
	lines  []*line
	busy   []*line
	next   int       // line
	due    time.Time // of the next ping
	took   []time.Duration
	missed int
	room   [pingSize * pingsAtOnce]byte
}

func (p *pinger) run(ctx context.Context) (Result, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	p.due = time.Now()
	if err := p.until(ctx, p.due.Add(p.Warm)); err != nil {
		return Result{}, err
	}
	p.took, p.missed = p.took[:0], 0
	w, err := p.begin(0)
	if err != nil {
		return Result{}, err
	}
	for wait := time.Duration(0); len(p.took) == 0 && wait < p.most; wait += p.Window {
		if err := p.until(ctx, time.Now().Add(p.Window)); err != nil {
			return Result{}, err
		}
	}
	res, err := p.end(w, float64(len(p.took)))
	if len(p.took) == 0 {
		err = errors.Join(err, errors.New("no ping came back"))
	}
	res.Latencies, res.Missed = latencies(p.took), p.missed
	return res, err
}

func (p *pinger) until(ctx context.Context, end time.Time) error {
	for {
		now := time.Now()
		if ctx.Err() != nil || !now.Before(end) {
			return ctx.Err()
		}
		if err := p.sendDue(now); err != nil {
			return err
		}
		came, err := p.receive()
		if err != nil {
			return err
		}
		if !came {
			_, _, _ = unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
		}
	}
}

func (p *pinger) sendDue(now time.Time) error {
	if p.Rate == 0 {
		if len(p.busy) == 0 {
			return p.send(now)
		}
		return nil
	}
	for !now.Before(p.due) {
		if err := p.send(p.due); err != nil {
			return err
		}
		p.due = p.due.Add(time.Duration(float64(time.Second) / p.Rate))
	}
	return nil
}

// send takes the lines in turn.
func (p *pinger) send(at time.Time) error {
	l := p.lines[p.next]
	p.next = (p.next + 1) % len(p.lines)
	if len(l.sent) >= pingsAtOnce {
		p.missed++
		return nil
	}
	n, err := unix.Write(l.fd, p.room[:pingSize])
	if err == unix.EAGAIN {
		p.missed++
		return nil
	}
	if err != nil || n != pingSize {
		return fmt.Errorf("ping: %d bytes, %w", n, err)
	}
	l.sent = append(l.sent, at)
	if !l.inSet {
		l.inSet = true
		p.busy = append(p.busy, l)
	}
	return nil
}

// receive looks once at every line with a ping on its way.
func (p *pinger) receive() (came bool, err error) {
	keep := p.busy[:0]
	for _, l := range p.busy {
		n, err := unix.Read(l.fd, p.room[:])
		switch {
		case err == unix.EAGAIN:
		case err != nil:
			return false, fmt.Errorf("pong: %w", err)
		case n == 0:
			return false, errors.New("pong: closed")
		default:
			came = true
			p.arrived(l, n)
		}
		if l.inSet = len(l.sent) > 0; l.inSet {
			keep = append(keep, l)
		}
	}
	p.busy = keep
	return came, nil
}

func (p *pinger) arrived(l *line, n int) {
	now := time.Now()
	for l.got += n; l.got >= pingSize && len(l.sent) > 0; l.got -= pingSize {
		p.took = append(p.took, now.Sub(l.sent[0]))
		l.sent = append(l.sent[:0], l.sent[1:]...)
	}
}
