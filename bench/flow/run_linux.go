package flow

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	openWait   = 30 * time.Second // for one connection; the machine may be busy
	opensAtOne = 16               // connections that are opened at a time

	// mostWindow is how long a window may become until something is in it: on a
	// busy machine a relay may get no time for a while.
	mostWindow = 10 * time.Second
)

// Run does a job and returns what it found.
func Run(ctx context.Context, j Job, m Meter) (Result, error) {
	if err := j.check(); err != nil {
		return Result{}, err
	}
	r := &runner{Job: j, meter: m, most: mostWindow}
	var err error
	if r.config, err = j.clientTLS(); err != nil {
		return Result{}, err
	}
	if j.Held > 0 {
		held, err := r.openAll(ctx, EchoName, j.Held)
		defer closeAll(held)
		if err != nil {
			return Result{}, fmt.Errorf("held connections: %w", err)
		}
	}
	switch j.Kind {
	case Up, Down:
		return r.bulk(ctx)
	case Connect:
		if r.config != nil {
			return r.handshakes(ctx)
		}
		return r.connect(ctx)
	case Ping:
		return r.ping(ctx)
	case Idle:
		return r.idle(ctx)
	}
	return Result{}, fmt.Errorf("no kind of job %q", j.Kind)
}

type runner struct {
	Job
	meter  Meter
	most   time.Duration                 // for a window
	config func(name string) *tls.Config // nil without TLS
}

// window is what is read at its two ends.
type window struct {
	began time.Time
	cpu   map[string]time.Duration
	units float64

	busy, whole time.Duration // of the core
}

func (r *runner) begin(units float64) (w window, err error) {
	w.units = units
	w.cpu, err = r.meter.CPU()
	w.busy, w.whole = r.meter.Core()
	w.began = time.Now()
	return w, err
}

func (r *runner) end(w window, units float64) (Result, error) {
	cpu, err := r.meter.CPU()
	res := Result{Seconds: time.Since(w.began).Seconds(), Units: units - w.units, CPU: spent(w.cpu, cpu)}
	busy, whole := r.meter.Core()
	if whole -= w.whole; whole > 0 {
		own := time.Duration(0)
		for _, d := range res.CPU {
			own += d
		}
		res.Others = max(0, (busy-w.busy-own).Seconds()/whole.Seconds())
	}
	return res, err
}

// open makes one connection and says the preface.
func (r *runner) open(ctx context.Context, to server, source int) (net.Conn, error) {
	preface, err := r.preface(to.name)
	if err != nil {
		return nil, err
	}
	answer := to.answer
	if answer < 0 {
		answer = len(preface)
	}
	d := net.Dialer{Timeout: openWait, LocalAddr: r.source(source)}
	conn, err := d.DialContext(ctx, "tcp", to.addr)
	if err != nil {
		return nil, err
	}
	conn.SetDeadline(time.Now().Add(openWait))
	if r.config != nil {
		conn = tls.Client(conn, r.config(to.name))
	}
	if _, err = conn.Write(preface); err == nil {
		_, err = io.ReadFull(conn, make([]byte, answer))
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("the first answer: %w", err)
	}
	conn.SetDeadline(time.Time{}) // a sample ends with its context
	return conn, nil
}

// clientTLS returns what configures a connection's TLS; nil where there is none.
func (j Job) clientTLS() (func(name string) *tls.Config, error) {
	if j.TLS == nil {
		return nil, nil
	}
	cert, err := tls.LoadX509KeyPair(j.TLS.Cert, j.TLS.Key)
	if err != nil {
		return nil, err
	}
	return func(name string) *tls.Config {
		return &tls.Config{ServerName: name, Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13, InsecureSkipVerify: true}
	}, nil
}

// source is the i-th address that clients come from: a relay that bounds each
// source sees many of them, as it does in the world.
func (r *runner) source(i int) net.Addr {
	if r.Sources == 0 {
		return nil
	}
	return &net.TCPAddr{IP: r.sourceIP(i)}
}

func (r *runner) sourceIP(i int) net.IP { return net.IPv4(127, 0, 0, byte(2+i%r.Sources)) }

// openAll opens n connections. What it returns is the caller's to close, with
// an error too.
func (r *runner) openAll(ctx context.Context, kind string, n int) ([]net.Conn, error) {
	to := r.server(kind)
	conns := make([]net.Conn, n)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(opensAtOne)
	for i := range n {
		g.Go(func() (err error) {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if conns[i], err = r.open(ctx, to, i); err != nil {
				return fmt.Errorf("connection %d of %d: %w", i+1, n, err)
			}
			return nil
		})
	}
	return conns, g.Wait()
}

// closeAll resets: thousands of closes need no one's time.
func closeAll(conns []net.Conn) {
	for _, c := range conns {
		switch c := c.(type) {
		case nil:
		case *tls.Conn:
			c.NetConn().Close() // with what is still on its way
		case *net.TCPConn:
			c.SetLinger(0)
			c.Close()
		}
	}
}

// taken asks the sink what it has taken, and when that was.
func (r *runner) taken() (counted, error) {
	conn, err := net.DialTimeout("tcp", r.Count, openWait)
	if err != nil {
		return counted{}, err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(openWait))
	var b [16]byte
	if _, err := io.ReadFull(conn, b[:]); err != nil {
		return counted{}, fmt.Errorf("the sink's count: %w", err)
	}
	return counted{float64(binary.BigEndian.Uint64(b[:])), time.Unix(0, int64(binary.BigEndian.Uint64(b[8:])))}, nil
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// idle reads what the processes grow by.
func (r *runner) idle(ctx context.Context) (Result, error) {
	first, err := r.openAll(ctx, EchoName, 1) // what the first connection costs is not of each
	closeAll(first)
	if err != nil {
		return Result{}, err
	}
	if err := pause(ctx, r.Warm); err != nil {
		return Result{}, err
	}
	before, err := r.meter.Held()
	if err != nil {
		return Result{}, err
	}
	conns, err := r.openAll(ctx, EchoName, r.Conns)
	defer closeAll(conns)
	if err != nil {
		return Result{}, err
	}
	if err := pause(ctx, r.Window); err != nil {
		return Result{}, err
	}
	after, err := r.meter.Held()
	if err != nil {
		return Result{}, err
	}
	grown := map[string]Footprint{}
	for name, f := range after {
		b := before[name]
		grown[name] = Footprint{RSS: f.RSS - b.RSS, FDs: f.FDs - b.FDs, Pipes: f.Pipes - b.Pipes}
	}
	return Result{Seconds: r.Window.Seconds(), Units: float64(r.Conns), Grown: grown}, nil
}
