package handover

import (
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/test/leak"
	handoverv1 "github.com/sallyport/sallyport/wire/sallyport/handover/v1"
)

func pair(t testing.TB) (a, b *Link) {
	t.Helper()
	a, b, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

// limitFiles lets this process have only so many more descriptors than it has.
func limitFiles(t testing.TB, more int) {
	t.Helper()
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	// The limit is on the number, so that the free ones below it have to go first.
	first, err := own(0)
	if err != nil {
		t.Fatal(err)
	}
	filled := []int{first}
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	highest := first
	for _, e := range d {
		n := 0
		for _, c := range e.Name() {
			n = 10*n + int(c-'0')
		}
		highest = max(highest, n)
	}
	for {
		fd, err := own(0)
		if err != nil {
			t.Fatal(err)
		}
		if fd > highest {
			highest = fd - 1
			closeAll([]int{fd})
			break
		}
		filled = append(filled, fd)
	}
	limit := was
	limit.Cur = uint64(highest + 1 + more)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
			t.Error(err)
		}
		closeAll(filled)
	})
}

// TestReceiveOwnsNothing: descriptors of packets that are refused are closed.
func TestReceiveOwnsNothing(t *testing.T) {
	good := encoded(t, &handoverv1.Packet{Batch: 1, Records: []*handoverv1.Packet_Record{record("a", 10, 3)}})
	for _, c := range []struct {
		name string
		b    []byte
		fds  int
		want string
	}{
		{"garbage", []byte("\xff\xff\xff garbage"), 3, "cannot be read"},
		{"too few", good, 2, "speaks of 3 descriptors came with 2"},
		{"too many", good, 4, "speaks of 3"},
		{"as many as a packet can have", good, 253, "speaks of 3"},
		{"big", make([]byte, maxPacket+1), 3, "more than 99328"},
		{"bigger", make([]byte, maxPacket+5000), 1, "more than 99328"},
	} {
		t.Run(c.name, func(t *testing.T) {
			same := leak.Descriptors(t)
			a, b, err := Pair()
			if err != nil {
				t.Fatal(err)
			}
			if err := a.send(c.b, make([]int, c.fds)); err != nil {
				t.Fatal(err)
			}
			p, fds, err := b.receive()
			if err == nil || len(fds) != 0 || p != nil {
				t.Errorf("%v, %v, %v", p, fds, err)
			} else if !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
			a.Close()
			b.Close()
			same()
		})
	}
}

// TestReceiveWithoutRoom: the kernel gives what fits below the limit; that is
// closed and the packet refused.
func TestReceiveWithoutRoom(t *testing.T) {
	a, b := pair(t)
	if err := a.send(encoded(t, &handoverv1.Packet{Batch: 1, Records: []*handoverv1.Packet_Record{record("a", 10, 3)}}), []int{0, 1, 2}); err != nil {
		t.Fatal(err)
	}
	limitFiles(t, 1)
	_, fds, err := b.receive()
	if err == nil || !strings.Contains(err.Error(), "ulimit") || fds != nil {
		t.Errorf("%v, %v", fds, err)
	}
	fd, err := own(0)
	if err != nil {
		t.Fatalf("the one that fitted was not closed: %v", err)
	}
	closeAll([]int{fd})
}

// TestReceivedClosesOnExec: no program that is started later gets them.
func TestReceivedClosesOnExec(t *testing.T) {
	a, b := pair(t)
	if err := a.send(encoded(t, &handoverv1.Packet{Batch: 1, Records: []*handoverv1.Packet_Record{record("a", 0, 1)}}), []int{0}); err != nil {
		t.Fatal(err)
	}
	_, fds, err := b.receive()
	if err != nil || len(fds) != 1 {
		t.Fatal(fds, err)
	}
	defer closeAll(fds)
	for _, fd := range append(fds, a.fd, b.fd) {
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("descriptor %d: flags %d, %v", fd, flags, err)
		}
	}
}

// TestLastWords: what was sent before the end is received, also when the other
// end was closed with packets unread.
func TestLastWords(t *testing.T) {
	a, b := pair(t)
	if err := b.send(encoded(t, &handoverv1.Packet{Taken: 1}), nil); err != nil {
		t.Fatal(err)
	}
	if err := a.send(encoded(t, &handoverv1.Packet{Step: handoverv1.Packet_STEP_ABORT}), nil); err != nil {
		t.Fatal(err)
	}
	a.Close()
	if p, _, err := b.receive(); err != nil || p.GetStep() != handoverv1.Packet_STEP_ABORT {
		t.Errorf("%v, %v", p, err)
	}
	if _, _, err := b.receive(); !errors.Is(err, io.EOF) {
		t.Errorf("%v, want EOF", err)
	}
	if err := a.send([]byte("x"), nil); !errors.Is(err, os.ErrClosed) {
		t.Errorf("send after Close: %v", err)
	}
	if err := b.send([]byte("x"), nil); err == nil || errors.Is(err, errLater) {
		t.Errorf("send to a closed end: %v", err)
	}
}

// TestCloseEndsReceive: a goroutine that waits for a packet does not keep the
// link open.
func TestCloseEndsReceive(t *testing.T) {
	a, _ := pair(t)
	done := make(chan error)
	go func() {
		_, _, err := a.receive()
		done <- err
	}()
	a.Close()
	if err := <-done; err == nil {
		t.Error("a packet came")
	}
}

// TestBatches: small records wait for each other, and no more than four batches
// are under way.
func TestBatches(t *testing.T) {
	same := leak.Descriptors(t)
	a, b := pair(t)
	w := newWriter(a)
	sent := 0
	for {
		ok, err := w.TrySend(Record{Part: "a", Kind: uint32(sent), FDs: []int{0, 1}})
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			break
		}
		sent++
	}
	// Four under way, and one that is full.
	if want := (batches + 1) * MaxFDs / 2; sent != want {
		t.Errorf("%d records were accepted, want %d", sent, want)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(io.ErrUnexpectedEOF)
	if err := w.Send(ctx, Record{Part: "a", FDs: []int{0, 1}}); err != io.ErrUnexpectedEOF {
		t.Errorf("Send: %v, want the cause", err)
	}
	next := uint32(0)
	for n := uint64(1); n <= batches+1; n++ {
		p, fds, err := b.receive()
		if err != nil || p.GetBatch() != n || len(fds) != MaxFDs {
			t.Fatalf("batch %d of %d descriptors, %v", p.GetBatch(), len(fds), err)
		}
		closeAll(fds)
		for _, r := range p.GetRecords() {
			if r.GetKind() != next {
				t.Fatalf("record %d, want %d", r.GetKind(), next)
			}
			next++
		}
		if err := w.acknowledge(n); err != nil {
			t.Fatal(err)
		}
		if err := w.flush(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.drain(context.Background()); err != nil {
		t.Error(err)
	}
	for _, n := range []uint64{0, batches + 1, batches + 2} {
		if w.acknowledge(n) == nil {
			t.Errorf("acknowledgement %d was believed", n)
		}
	}
	w.end(errOver)
	if _, err := w.TrySend(Record{Part: "a"}); !errors.Is(err, errOver) {
		t.Errorf("TrySend after the end: %v", err)
	}
	a.Close()
	b.Close()
	same()
}

// TestFullRecords: a record that is a batch by itself goes at once, behind what
// came before it, or not at all; there is room when one has been taken.
func TestFullRecords(t *testing.T) {
	a, b := pair(t)
	w := newWriter(a)
	send := func(kind uint32, fds int) bool {
		ok, err := w.TrySend(Record{Part: "a", Kind: kind, FDs: make([]int, fds)})
		if err != nil {
			t.Fatal(err)
		}
		return ok
	}
	var got []uint32
	take := func(n uint64) {
		p, fds, err := b.receive()
		if err != nil {
			t.Fatal(err)
		}
		closeAll(fds)
		for _, r := range p.GetRecords() {
			got = append(got, r.GetKind())
		}
		if err := w.acknowledge(n); err != nil {
			t.Fatal(err)
		}
	}
	if !send(1, 2) || !send(2, MaxFDs) || !send(3, MaxFDs) || !send(4, MaxFDs) {
		t.Fatal("there is no room for four batches")
	}
	if err := w.Room(context.Background()); err != nil || send(5, MaxFDs) {
		t.Fatalf("there is room for five batches; %v", err)
	}
	room := make(chan error, 1)
	go func() { room <- w.Room(context.Background()) }()
	take(1)
	if err := <-room; err != nil || !send(5, MaxFDs) {
		t.Fatalf("there is no room again; %v", err)
	}
	taken := make(chan error, 1)
	go func() { taken <- w.Taken(context.Background()) }()
	for n := range uint64(batches) {
		select {
		case <-taken:
			t.Fatal("all is said to be taken before it is")
		default:
		}
		take(n + 2)
	}
	if err := <-taken; err != nil || !slices.Equal(got, []uint32{1, 2, 3, 4, 5}) {
		t.Errorf("%v came; %v", got, err)
	}
	w.end(errOver)
	for _, f := range []func(context.Context) error{w.Room, w.Taken} {
		if err := f(context.Background()); !errors.Is(err, errOver) {
			t.Errorf("after the end: %v", err)
		}
	}
}

// TestBigRecords: bytes bound a batch, too.
func TestBigRecords(t *testing.T) {
	a, b := pair(t)
	w := newWriter(a)
	for range 3 {
		if ok, err := w.TrySend(Record{Part: "a", Body: make([]byte, MaxBody*2/5)}); !ok || err != nil {
			t.Fatal(ok, err)
		}
	}
	if p, _, err := b.receive(); err != nil || len(p.GetRecords()) != 2 {
		t.Errorf("%d records, %v", len(p.GetRecords()), err)
	}
	if ok, err := w.TrySend(Record{Part: "a", Body: make([]byte, MaxBody)}); !ok || err != nil {
		t.Error(ok, err)
	}
	for range 2 {
		if p, _, err := b.receive(); err != nil || len(p.GetRecords()) != 1 {
			t.Errorf("%d records, %v", len(p.GetRecords()), err)
		}
	}
}

// TestSmallBuffer: where the system allows less than four batches, fewer are
// under way.
func TestSmallBuffer(t *testing.T) {
	a, b := pair(t)
	if err := unix.SetsockoptInt(a.fd, unix.SOL_SOCKET, unix.SO_SNDBUF, maxPacket*3/4); err != nil { // the kernel doubles it
		t.Fatal(err)
	}
	w := newWriter(a)
	const records = 30
	done := make(chan error, 1)
	go func() {
		for n := uint64(1); n <= records; n++ {
			p, _, err := b.receive()
			if err == nil && (p.GetBatch() != n || len(p.GetRecords()) != 1) {
				err = errors.New(p.String()[:20])
			}
			if err == nil {
				err = w.acknowledge(n)
			}
			if err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	for range records {
		if err := w.Send(context.Background(), Record{Part: "a", Body: make([]byte, MaxBody)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.drain(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestSendClosesNothing: the caller's descriptors are its own after Send, and
// what it closes arrives nevertheless.
func TestSendClosesNothing(t *testing.T) {
	a, b := pair(t)
	w := newWriter(a)
	fd, err := own(0)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Send(context.Background(), Record{Part: "a", FDs: []int{fd}}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Close(fd); err != nil {
		t.Errorf("it was closed: %v", err)
	}
	if err := w.flush(context.Background()); err != nil {
		t.Fatal(err)
	}
	p, fds, err := b.receive()
	if err != nil || len(p.GetRecords()) != 1 || len(fds) != 1 {
		t.Fatal(p, fds, err)
	}
	closeAll(fds)
}

// TestNoDescriptorLeft: with the limit reached records still go, each by itself.
func TestNoDescriptorLeft(t *testing.T) {
	a, b := pair(t)
	w := newWriter(a)
	limitFiles(t, 1)
	for range 3 {
		if ok, err := w.TrySend(Record{Part: "a", FDs: []int{0, 1}}); !ok || err != nil {
			t.Fatal(ok, err)
		}
	}
	w.end(errOver)
	fd, err := own(0)
	if err != nil {
		t.Fatalf("descriptors of a batch are still open: %v", err)
	}
	closeAll([]int{fd})
	for range 3 {
		b.receiving.Lock()
		n, _, _, _, err := unix.Recvmsg(b.fd, b.buf, nil, 0) // there is no room for what it brings
		b.receiving.Unlock()
		if err != nil {
			t.Fatal(err)
		}
		if p, err := decodePacket(b.buf[:n], 2); err != nil || len(p.GetRecords()) != 1 {
			t.Errorf("%v, %v", p, err)
		}
	}
}
