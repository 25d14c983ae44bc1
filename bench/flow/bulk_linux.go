package flow

import (
	"context"
	"errors"
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
		count = func() (counted, error) { return counted{float64(received.Load()), time.Now()}, nil }
		move = func(c net.Conn) { _ = receive(c, func(n int) { received.Add(uint64(n)) }) }
	}
	var moving sync.WaitGroup
	defer moving.Wait()
	defer closeAll(conns)
	defer interrupt(conns) // else each close waits until its stream has its turn among the others
	for _, c := range conns {
		moving.Go(func() { move(c) })
	}
	return r.count(ctx, count)
}

// counted is what has arrived until some moment.
type counted struct {
	bytes float64
	at    time.Time
}

// count waits until all is warm, and then for the window. The processes' CPU is
// read a little later than the bytes, and on a core full of streams not always
// by as much: so the bytes are those of the window in which CPU was read, at
// the rate of the one in which they were counted.
func (r *runner) count(ctx context.Context, bytes func() (counted, error)) (Result, error) {
	if err := pause(ctx, r.Warm); err != nil {
		return Result{}, err
	}
	first, err := bytes()
	if err != nil {
		return Result{}, err
	}
	w, err := r.begin(0)
	if err != nil {
		return Result{}, err
	}
	last := first
	for wait := time.Duration(0); last.bytes == first.bytes && wait < r.most; wait += r.Window {
		if err := pause(ctx, r.Window); err != nil {
			return Result{}, err
		}
		if last, err = bytes(); err != nil {
			return Result{}, err
		}
	}
	if last.bytes == first.bytes {
		return Result{}, errors.New("no byte arrived")
	}
	res, err := r.end(w, 0)
	res.Units = (last.bytes - first.bytes) / last.at.Sub(first.at).Seconds() * res.Seconds
	return res, err
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
