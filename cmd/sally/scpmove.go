package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/pkg/sftp"
	"golang.org/x/term"

	"github.com/sallyport/sallyport/cmd/internal/fail"
	"github.com/sallyport/sallyport/cmd/internal/table"
)

// move carries the bytes of one file, in blocks of which some are under way at
// once. When the connection breaks it goes on at the first block that has not
// arrived.
//
//	run ─▶ workers ─ all done ─▶ close
//	  ▲       └─ connection broken ─▶ connect, reopen ─┐
//	  └────────────────────────────────────────────────┘
type move struct {
	*transfer
	name string
	size int64 // as it was at the start; of 0 the end decides
	from io.ReaderAt
	to   io.WriterAt

	far    *sftp.File                 // the half that is on the node
	reopen func() (*sftp.File, error) // after a new connection
	attach func(*sftp.File)

	mu    sync.Mutex
	next  int64          // the first byte that nobody carries yet
	open  map[int64]bool // blocks under way, by their first byte
	moved int64          // bytes, in all connections
	end   int64          // of the file, once a block was shorter; -1 before
	err   error
}

func (m *move) run() error {
	m.open, m.end = make(map[int64]bool), -1
	bar := m.bar()
	defer bar()
	last, since := int64(-1), time.Now()
	for {
		err := m.carry()
		if err == nil {
			return m.finish()
		}
		if m.NoResume || !broken(err) || m.program.ctx.Err() != nil {
			m.far.Close()
			return moveProblem(m.name, err)
		}
		if m.moved > last {
			last, since = m.moved, time.Now()
		}
		if err := m.again(since); err != nil {
			return err
		}
	}
}

// finish closes the file on the node: only then is it known to be whole there.
func (m *move) finish() error {
	if err := m.far.Close(); err != nil {
		return remoteProblem(m.name, err)
	}
	if m.size > 0 && m.end >= 0 && m.end < m.size {
		return problem(errInvalid, fmt.Sprintf("%s has become shorter while it was copied", m.name), "copy it again")
	}
	return nil
}

// again connects anew, for as long as there is hope.
func (m *move) again(since time.Time) error {
	for {
		m.close()
		err := m.connect(m.program.ctx)
		if err == nil {
			m.far, err = m.reopen()
		}
		if err == nil {
			m.attach(m.far)
			m.err = nil
			return nil
		}
		if time.Since(since) > resumeFor || m.program.ctx.Err() != nil || m.files != nil && !broken(err) {
			return err
		}
		select {
		case <-time.After(resumePause):
		case <-m.program.ctx.Done():
			return m.program.ctx.Err()
		}
	}
}

// carry runs the workers until all is moved or one has failed.
func (m *move) carry() error {
	m.mu.Lock()
	for at := range m.open { // of the connection before
		m.next = min(m.next, at)
	}
	clear(m.open)
	m.mu.Unlock()
	var workers sync.WaitGroup
	for range blocks {
		workers.Go(m.work)
	}
	workers.Wait()
	return m.err
}

func (m *move) work() {
	buf := make([]byte, min(blockSize, max(m.size+1, 32<<10)))
	for {
		at, ok := m.take(int64(len(buf)))
		if !ok {
			return
		}
		n, ended, err := m.read(buf, at)
		if err == nil {
			_, err = m.to.WriteAt(buf[:n], at)
		}
		m.done(at, n, err, ended)
	}
}

// read fills a block, or meets the file's end. A node may give less than it is asked
// for, which the library takes for the end: short of the size that the file had, the
// end is where there is nothing at all.
func (m *move) read(buf []byte, at int64) (n int, ended bool, err error) {
	for n < len(buf) {
		got, err := m.from.ReadAt(buf[n:], at+int64(n))
		n += got
		switch {
		case err == nil && n < len(buf): // success, says a node that gives nothing
			return n, false, io.ErrNoProgress
		case err != nil && !errors.Is(err, io.EOF):
			return n, false, err
		case err != nil && (got == 0 || at+int64(n) >= m.size):
			return n, true, nil
		}
	}
	return n, false, nil
}

// take gives the next block to a worker.
func (m *move) take(size int64) (at int64, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil || m.end >= 0 && m.next >= m.end || m.size > 0 && m.next >= m.size || m.program.ctx.Err() != nil {
		if m.err == nil {
			m.err = m.program.ctx.Err()
		}
		return 0, false
	}
	at = m.next
	m.next += size
	m.open[at] = true
	return at, true
}

func (m *move) done(at int64, n int, err error, ended bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err != nil {
		if m.err == nil {
			m.err = err
		}
		return // the block stays open: it is taken again
	}
	delete(m.open, at)
	m.moved += int64(n)
	if end := at + int64(n); ended && (m.end < 0 || end < m.end) {
		m.end = end
	}
}

// bar shows progress on a person's terminal until it is called.
func (m *move) bar() func() {
	if m.Quiet || !term.IsTerminal(2) {
		return func() {}
	}
	started, stop, stopped := time.Now(), make(chan struct{}), make(chan struct{})
	show := func() {
		m.mu.Lock()
		moved := m.moved
		m.mu.Unlock()
		fmt.Fprint(m.program.stderr, "\r\x1b[K"+progressLine(m.name, moved, m.size, time.Since(started)))
	}
	go func() {
		defer close(stopped)
		tick := time.NewTicker(500 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				show()
			case <-stop:
				return
			}
		}
	}()
	return func() {
		close(stop)
		<-stopped
		show()
		fmt.Fprintln(m.program.stderr)
	}
}

// progressLine is like scp's: name, share, bytes, rate, and time left or taken.
func progressLine(name string, moved, size int64, took time.Duration) string {
	rate := float64(moved) / max(took.Seconds(), 1e-3)
	share, rest := int64(100), took
	if size > 0 {
		share = min(100*moved/size, 100)
		if moved < size && rate > 0 {
			rest = time.Duration(float64(size-moved) / rate * float64(time.Second))
		}
	}
	return fmt.Sprintf("%s %3d%% %9s %9s/s %02d:%02d", table.Column(fail.Clean(name), 40, "…"), share, amount(float64(moved)), amount(rate), int(rest.Minutes()), int(rest.Seconds())%60)
}

func amount(n float64) string {
	for _, unit := range []string{"B", "KiB", "MiB", "GiB"} {
		if n < 1000 {
			return fmt.Sprintf("%.4g %s", n, unit)
		}
		n /= 1024
	}
	return fmt.Sprintf("%.4g TiB", n)
}

// tail keeps the first bytes of what is written.
type tail struct {
	mu    sync.Mutex
	b     []byte
	ended chan struct{} // closed when what is listened to has ended
}

const (
	maxSaid = 4 << 10

	// saidWithin is how long a node that has ended sftp may take for its last words.
	saidWithin = 5 * time.Second
)

// listen reads r until it ends, so that what is said takes no room of what is
// copied. The goroutine ends with the connection.
func listen(r io.Reader) *tail {
	t := &tail{ended: make(chan struct{})}
	go t.listen(r)
	return t
}

func (t *tail) listen(r io.Reader) {
	defer close(t.ended)
	_, _ = io.Copy(t, r) // what was said until then is what there is
}

// all waits for the end and returns what was said.
func (t *tail) all(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, saidWithin)
	defer cancel()
	select {
	case <-t.ended:
	case <-ctx.Done():
	}
	return t.text()
}

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, b[:min(len(b), maxSaid-len(t.b))]...)
	return len(b), nil
}

func (t *tail) text() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.b)
}
