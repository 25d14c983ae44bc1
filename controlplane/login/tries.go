package login

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/store"
)

// window is the time over which tries are counted.
const window = 5 * time.Minute

// limit is one count: at most most tries of a subject within the window.
type limit struct {
	what    string
	subject string
	most    int
}

func (m limit) key() string {
	sum := sha256.Sum256([]byte(m.subject))
	return "tries/" + m.what + "/" + hex.EncodeToString(sum[:16])
}

// tries counts tries in the store. A try is entered before it is judged and
// taken back when it was right, so tries at the same time cannot outrun the
// count.
type tries struct {
	store store.Store
	now   func() time.Time

	mu      sync.Mutex
	lease   store.LeaseID // of all counts of one window
	granted time.Time
}

// enter counts one try against all limits, or against none and says no.
func (t *tries) enter(ctx context.Context, limits ...limit) (ok bool, err error) {
	for range maxRaces {
		ok, err = t.tryEnter(ctx, limits)
		if !raced(err) {
			return ok, err
		}
	}
	return false, busy()
}

func (t *tries) tryEnter(ctx context.Context, limits []limit) (bool, error) {
	lease, err := t.currentLease(ctx)
	if err != nil {
		return false, err
	}
	now := t.now().Unix()
	var ops []store.Op
	full := false
	for _, m := range limits {
		times, rev, err := t.read(ctx, m)
		if err != nil {
			return false, err
		}
		full = full || len(times) >= m.most
		value, err := json.Marshal(append(times, now))
		if err != nil {
			return false, err
		}
		ops = append(ops, store.Op{Key: m.key(), Value: value, Expect: rev, Lease: lease})
	}
	if full {
		return false, nil
	}
	_, err = t.store.Apply(ctx, ops...)
	t.forget(lease, err)
	return err == nil, err
}

// Guess counts a try of a user at something short that people type. It is
// counted before it is judged, and taken back when right says so: five wrong
// ones within five minutes, whatever they are at.
func (l *Login) Guess(ctx context.Context, what, user string, right func() (bool, error)) error {
	m := limit{"guess-" + what, strings.ToLower(user), wrongGuesses}
	if ok, err := l.tries.enter(ctx, m); err != nil || !ok {
		return orTooMany(err)
	}
	ok, err := right()
	if err != nil || !ok {
		return err
	}
	return l.tries.takeBack(ctx, m)
}

// takeBack removes one try that turned out right.
func (t *tries) takeBack(ctx context.Context, limits ...limit) error {
	for range maxRaces {
		err := t.tryTakeBack(ctx, limits)
		if !raced(err) {
			return err
		}
	}
	return nil // a busy subject keeps one try too many for five minutes
}

func (t *tries) tryTakeBack(ctx context.Context, limits []limit) error {
	lease, err := t.currentLease(ctx)
	if err != nil {
		return err
	}
	var ops []store.Op
	for _, m := range limits {
		times, rev, err := t.read(ctx, m)
		if err != nil {
			return err
		}
		if len(times) == 0 {
			continue
		}
		value, err := json.Marshal(times[:len(times)-1])
		if err != nil {
			return err
		}
		ops = append(ops, store.Op{Key: m.key(), Value: value, Expect: rev, Lease: lease})
	}
	if len(ops) == 0 {
		return nil
	}
	_, err = t.store.Apply(ctx, ops...)
	t.forget(lease, err)
	return err
}

// forget drops the lease when it may have ended, as after a long sleep.
func (t *tries) forget(lease store.LeaseID, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if errors.Is(err, sallyport.ErrNotFound) && t.lease == lease {
		t.lease = 0
	}
}

// read returns the times within the window. Times in the future, from before a
// clock went back, count.
func (t *tries) read(ctx context.Context, m limit) ([]int64, int64, error) {
	it, err := t.store.Get(ctx, m.key())
	if errors.Is(err, sallyport.ErrNotFound) {
		return nil, store.Absent, nil
	}
	if err != nil {
		return nil, 0, err
	}
	var times []int64
	if err := json.Unmarshal(it.Value, &times); err != nil {
		return nil, 0, err
	}
	from := t.now().Add(-window).Unix()
	return slices.DeleteFunc(times, func(at int64) bool { return at <= from }), it.Revision, nil
}

// currentLease gives counts an end: one lease per window and process.
func (t *tries) currentLease(ctx context.Context) (store.LeaseID, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	age := t.now().Sub(t.granted)
	if t.lease != 0 && age >= 0 && age < window {
		return t.lease, nil
	}
	id, err := t.store.Grant(ctx, 3*window)
	if err != nil {
		return 0, err
	}
	t.lease, t.granted = id, t.now()
	return id, nil
}

// maxRaces is how often a change is repeated when others were faster.
const maxRaces = 16

func raced(err error) bool {
	return errors.Is(err, sallyport.ErrConflict) || errors.Is(err, sallyport.ErrExists) || errors.Is(err, sallyport.ErrNotFound)
}

// sourceOf is the network that counts as one source.
func sourceOf(addr netip.Addr) string {
	addr = addr.Unmap().WithZone("")
	if addr.Is6() {
		if p, err := addr.Prefix(64); err == nil {
			return p.String()
		}
	}
	return addr.String()
}
