package handover

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	handoverv1 "github.com/sallyport/sallyport/wire/sallyport/handover/v1"
)

const (
	// batches is how many are under way unacknowledged. What is under way is in
	// the kernel's memory and counts towards the limit of descriptors.
	batches = 4

	// fullBatch descriptors leave no room for a pair.
	fullBatch = MaxFDs - 1

	// again is when a sender tries anew that waits for room and not for an
	// acknowledgement, because other programs use it up.
	again = 5 * time.Millisecond
)

// errOver says that the hand-over has ended; records come too late.
var errOver = errors.New("the hand-over has ended")

// counts is what has been sent.
type counts struct{ records, descriptors, bytes uint64 }

// writer is the old process's Writer. Small records wait until a batch is full,
// or until the part has returned from Copy or Freeze; meanwhile the batch has
// descriptors of its own for them.
type writer struct {
	link *Link

	mu    sync.Mutex // guards all below
	batch batch
	lone  batch         // room for one that goes with the caller's descriptors
	sent  uint64        // batches
	taken uint64        // of them, acknowledged
	moved chan struct{} // closed, and made anew, when taken or err changes
	err   error
	total counts
}

// batch is a packet that is being filled.
type batch struct {
	encoded []byte
	fds     []int
	records int
}

func newWriter(l *Link) *writer {
	return &writer{link: l, moved: make(chan struct{}), batch: batch{fds: make([]int, 0, MaxFDs)}}
}

// Send implements Writer.
func (w *writer) Send(ctx context.Context, r Record) error {
	return w.insist(ctx, func() (bool, error) { return w.putLocked(r) })
}

// TrySend implements Writer.
func (w *writer) TrySend(r Record) (bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.putLocked(r)
}

// Room implements Pacer.
func (w *writer) Room(ctx context.Context) error {
	w.mu.Lock()
	full, moved, err := w.sent-w.taken >= batches, w.moved, w.err
	w.mu.Unlock()
	if err != nil || !full {
		return err
	}
	return wait(ctx, moved)
}

// Taken implements Pacer.
func (w *writer) Taken(ctx context.Context) error { return w.drain(ctx) }

// flush sends what waits to be a full batch.
func (w *writer) flush(ctx context.Context) error {
	return w.insist(ctx, w.flushLocked)
}

// drain flushes, and returns when everything is taken.
func (w *writer) drain(ctx context.Context) error {
	return w.insist(ctx, func() (bool, error) {
		ok, err := w.flushLocked()
		return ok && w.taken == w.sent, err
	})
}

// insist calls f, with the lock, until it is done.
func (w *writer) insist(ctx context.Context, f func() (bool, error)) error {
	for {
		w.mu.Lock()
		done, err := f()
		moved := w.moved
		w.mu.Unlock()
		if done || err != nil {
			return err
		}
		if err := wait(ctx, moved); err != nil {
			return err
		}
	}
}

func wait(ctx context.Context, moved <-chan struct{}) error {
	timer := time.NewTimer(again)
	defer timer.Stop()
	select {
	case <-moved:
	case <-timer.C:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return nil
}

// putLocked puts a record into the batch. False: a full batch has to go first
// and cannot yet.
func (w *writer) putLocked(r Record) (bool, error) {
	if w.err != nil {
		return false, w.err
	}
	if err := checkRecord(r); err != nil {
		return false, err
	}
	if len(r.FDs) >= fullBatch {
		return w.aloneLocked(r) // at once: it needs no descriptors of its own
	}
	if !w.batch.fits(r) {
		if ok, err := w.flushLocked(); !ok {
			return false, err
		}
	}
	err := w.batch.add(r, true)
	if noneLeft(err) {
		return w.aloneLocked(r)
	}
	if err != nil {
		return false, err
	}
	if w.batch.full() {
		// It need not go yet: the record is kept.
		_, err = w.flushLocked()
	}
	return err == nil, err
}

// aloneLocked sends a record with the caller's descriptors: when it fills a batch
// by itself, or when there are no more to be had.
func (w *writer) aloneLocked(r Record) (bool, error) {
	if ok, err := w.flushLocked(); !ok {
		return false, err
	}
	w.lone.reset()
	if err := w.lone.add(r, false); err != nil {
		return false, err
	}
	return w.sendLocked(&w.lone)
}

// flushLocked sends the batch, if there is one.
func (w *writer) flushLocked() (bool, error) {
	if w.err != nil {
		return false, w.err
	}
	if w.batch.records == 0 {
		return true, nil
	}
	ok, err := w.sendLocked(&w.batch)
	if ok {
		closeAll(w.batch.fds)
		w.batch.reset()
	}
	return ok, err
}

func (w *writer) sendLocked(b *batch) (bool, error) {
	if w.sent-w.taken >= batches {
		return false, nil
	}
	encoded, err := appendPacket(b.encoded, &handoverv1.Packet{Batch: w.sent + 1})
	if err != nil {
		return false, err
	}
	switch err := w.link.send(encoded, b.fds); {
	case errors.Is(err, errLater):
		return false, nil
	case err != nil:
		w.failLocked(err)
		return false, err
	}
	w.sent++
	w.total.records += uint64(b.records)
	w.total.descriptors += uint64(len(b.fds))
	w.total.bytes += uint64(len(encoded))
	return true, nil
}

// acknowledge is told by the receiver.
func (w *writer) acknowledge(taken uint64) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if taken <= w.taken || taken > w.sent {
		return fmt.Errorf("batch %d is acknowledged; %d of %d were", taken, w.taken, w.sent)
	}
	w.taken = taken
	w.wakeLocked()
	return nil
}

// end lets every call fail from now on. Nothing is sent after it.
func (w *writer) end(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.failLocked(err)
	closeAll(w.batch.fds)
	w.batch.reset()
}

// finish ends it when everything has been taken. A part that sends after it has
// returned from Freeze would lose what it sends.
func (w *writer) finish() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return w.err
	}
	if w.batch.records > 0 || w.taken != w.sent {
		return errors.New("a part has sent something after its freeze")
	}
	w.failLocked(errOver)
	return nil
}

func (w *writer) failLocked(err error) {
	if w.err == nil {
		w.err = err
		w.wakeLocked()
	}
}

func (w *writer) wakeLocked() {
	close(w.moved)
	w.moved = make(chan struct{})
}

func (w *writer) counted() counts {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.total
}

// fits says whether r has room beside what is there.
func (b *batch) fits(r Record) bool {
	return b.records == 0 ||
		b.records < maxRecords && len(b.fds)+len(r.FDs) <= MaxFDs && len(b.encoded)+len(r.Body)+maxEnvelope <= maxPacket
}

// full says that hardly another record has room.
func (b *batch) full() bool {
	return len(b.fds) >= fullBatch || len(b.encoded) >= MaxBody || b.records >= maxRecords
}

// add encodes a record behind the others. With its own descriptors the caller
// may close those of r.
func (b *batch) add(r Record, ownDescriptors bool) error {
	encoded, err := appendPacket(b.encoded, &handoverv1.Packet{Records: []*handoverv1.Packet_Record{{
		Part: r.Part, Kind: r.Kind, Body: r.Body, Descriptors: uint32(len(r.FDs)),
	}}})
	if err != nil {
		return err
	}
	before := len(b.fds)
	for _, fd := range r.FDs {
		if ownDescriptors {
			if fd, err = own(fd); err != nil {
				closeAll(b.fds[before:])
				b.fds = b.fds[:before]
				return fmt.Errorf("part %s: a descriptor of kind %d: %w", r.Part, r.Kind, err)
			}
		}
		b.fds = append(b.fds, fd)
	}
	b.encoded = encoded
	b.records++
	return nil
}

func (b *batch) reset() {
	b.encoded, b.fds, b.records = b.encoded[:0], b.fds[:0], 0
}
