package flow

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// bulk moves bytes over all connections at once. They are counted where they
// arrive.
func (r *runner) bulk(ctx context.Context) (Result, error) {
	kind := SinkName
	if r.Kind == Down {
		kind = SourceName
	}
	conns, err := r.openAll(ctx, kind, r.Conns)
	if err != nil {
		closeAll(conns)
		return Result{}, err
	}
	var received atomic.Uint64
	count, move := r.taken, func(c net.Conn) { send(c, 0) }
	if r.Kind == Down {
		count = func() (float64, error) { return float64(received.Load()), nil }
		move = func(c net.Conn) { _ = receive(c, func(n int) { received.Add(uint64(n)) }) }
	}
	var moving sync.WaitGroup
	defer moving.Wait()
	defer closeAll(conns)
	for _, c := range conns {
		moving.Go(func() { move(c) })
	}
	return r.count(ctx, count)
}

// count waits until all is warm, and then for the window.
func (r *runner) count(ctx context.Context, units func() (float64, error)) (Result, error) {
	if err := pause(ctx, r.Warm); err != nil {
		return Result{}, err
	}
	n, err := units()
	if err != nil {
		return Result{}, err
	}
	w, err := r.begin(n)
	if err != nil {
		return Result{}, err
	}
	if err := pause(ctx, r.Window); err != nil {
		return Result{}, err
	}
	if n, err = units(); err != nil {
		return Result{}, err
	}
	return r.end(w, n)
}

// send writes until the connection closes, at most rate bytes per second; 0 is
// as fast as it goes. It returns what it has sent.
func send(c net.Conn, rate float64) (sent float64) {
	data := make([]byte, chunk)
	for began := time.Now(); ; {
		n, err := c.Write(data)
		sent += float64(n)
		if err != nil {
			return sent
		}
		if rate == 0 {
			continue
		}
		if ahead := time.Duration(sent/rate*float64(time.Second)) - time.Since(began); ahead > 0 {
			time.Sleep(ahead)
		}
	}
}

// receive takes everything until the end.
func receive(c net.Conn, took func(n int)) error {
	if tcp, ok := c.(*net.TCPConn); ok {
		return discard(tcp, took)
	}
	for room := make([]byte, chunk); ; {
		n, err := c.Read(room)
		took(n)
		if err != nil {
			return err
		}
	}
}
