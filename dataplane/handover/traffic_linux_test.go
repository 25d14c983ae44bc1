package handover_test

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// traffic is clients of an echo: some whose streams go on all the time, and
// others that come and go. Every byte is compared.
type traffic struct {
	addr  string
	pause time.Duration // of a stream after each write
	stop  chan struct{}
	group sync.WaitGroup

	back, visits atomic.Int64

	mu   sync.Mutex // guards errs
	errs []error
}

// patience is after which a client calls itself stuck.
const patience = 2 * time.Minute

// run starts clients that go on until end, and leave time for others.
func run(addr string, streams int) *traffic { return runPaced(addr, streams, time.Millisecond) }

func runPaced(addr string, streams int, pause time.Duration) *traffic {
	tr := &traffic{addr: addr, pause: pause, stop: make(chan struct{})}
	for i := range streams {
		tr.group.Go(func() { tr.note(tr.stream(uint64(i))) })
	}
	tr.group.Go(func() { tr.note(tr.visit()) })
	return tr
}

func (tr *traffic) note(err error) {
	if err != nil {
		tr.mu.Lock()
		tr.errs = append(tr.errs, err)
		tr.mu.Unlock()
	}
}

// end stops all and fails the test unless every byte came back.
func (tr *traffic) end(t testing.TB) {
	t.Helper()
	if err := tr.finish(); err != nil {
		t.Errorf("clients: %v", err)
	}
	t.Logf("%d bytes came back, %d short connections", tr.back.Load(), tr.visits.Load())
}

func (tr *traffic) finish() error {
	close(tr.stop)
	tr.group.Wait()
	return errors.Join(tr.errs...)
}

// more returns when every client has got something from now on, so that what
// serves them now is known to work. False: a client has failed.
func (tr *traffic) more() bool {
	from, visits := tr.back.Load(), tr.visits.Load()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if tr.back.Load() > from+1<<17 && tr.visits.Load() > visits+2 {
			return true
		}
		tr.mu.Lock()
		bad := len(tr.errs) > 0
		tr.mu.Unlock()
		if bad {
			return false
		}
	}
	return false
}

// stream sends without end and compares what comes back.
func (tr *traffic) stream(seed uint64) error {
	c, err := net.Dial("tcp", tr.addr)
	if err != nil {
		return err
	}
	defer c.Close()
	var sent int64
	wrote := make(chan error, 1)
	go func() { wrote <- tr.write(c.(*net.TCPConn), seed, &sent) }()
	n, err := tr.compare(c, seed)
	if w := <-wrote; err == nil {
		err = w
	}
	if err == nil && n != sent {
		err = fmt.Errorf("%d bytes sent, %d came back", sent, n)
	}
	if err != nil {
		return fmt.Errorf("stream %d: %w", seed, err)
	}
	return nil
}

func (tr *traffic) write(c *net.TCPConn, seed uint64, sent *int64) error {
	source := rand.NewChaCha8([32]byte{byte(seed)})
	b := make([]byte, 8<<10)
	for {
		select {
		case <-tr.stop:
			return c.CloseWrite()
		default:
		}
		_, _ = source.Read(b)
		_ = c.SetWriteDeadline(time.Now().Add(patience))
		n, err := c.Write(b)
		*sent += int64(n)
		if err != nil {
			return err
		}
		time.Sleep(tr.pause)
	}
}

func (tr *traffic) compare(c net.Conn, seed uint64) (total int64, err error) {
	source := rand.NewChaCha8([32]byte{byte(seed)})
	got, want := make([]byte, 8<<10), make([]byte, 8<<10)
	for {
		_ = c.SetReadDeadline(time.Now().Add(patience))
		n, err := c.Read(got)
		_, _ = source.Read(want[:n])
		if string(got[:n]) != string(want[:n]) {
			return total, fmt.Errorf("other bytes came back after %d", total)
		}
		total += int64(n)
		tr.back.Add(int64(n))
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

// visit connects anew all the time.
func (tr *traffic) visit() error {
	for {
		select {
		case <-tr.stop:
			return nil
		default:
		}
		if err := hello(tr.addr); err != nil {
			return fmt.Errorf("a short connection: %w", err)
		}
		time.Sleep(tr.pause)
		tr.visits.Add(1)
	}
}

// hello is one short connection.
func hello(addr string) error {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Write([]byte("hello")); err != nil {
		return err
	}
	b := make([]byte, 5)
	if _, err := io.ReadFull(c, b); err != nil {
		return err
	}
	if string(b) != "hello" {
		return fmt.Errorf("%q came back", b)
	}
	return nil
}
