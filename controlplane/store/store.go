// Package store keeps the control plane's state so that nobody else has to know
// where: a small ordered key-value space with revisions, compare-and-swap,
// leases and watches. One implementation, etcd v3, embedded by default or an
// external cluster; storetest is the suite that any implementation passes.
package store

import (
	"context"
	"time"
)

// Limits of the space. Larger input is refused with sallyport.ErrInvalid.
const (
	MaxKey   = 1 << 10
	MaxValue = 1 << 20
	MaxOps   = 64                // of one Apply
	MaxApply = MaxValue + 64<<10 // bytes of all keys and values of one Apply

	MinTTL = time.Second // of a lease; whole seconds
	MaxTTL = 24 * time.Hour
)

// Item is one key with its value. Revision is that of its last change;
// Created that of its creation. Lease is 0 without one.
type Item struct {
	Key      string
	Value    []byte
	Revision int64
	Created  int64
	Lease    LeaseID
}

// LeaseID names a lease: when it is not kept alive, its keys are deleted.
type LeaseID int64

// Any as an expected revision means: whatever is there. Absent means: the key
// must not exist.
const (
	Any    int64 = -1
	Absent int64 = 0
)

// Op is one step of a transaction. With Delete the key goes; with Check nothing
// happens to it, only the expectation must hold; else it is set to Value. Expect is the revision that the key must have (Any, Absent, or
// Item.Revision); so the zero value creates and never overwrites.
//
// A full store takes no values, but for those with Reserve: a little is kept for
// them, and for deletions. They are what administrators stop somebody with; nothing
// that an agent or a user can have written has Reserve. It counts when all values
// of the transaction have it.
type Op struct {
	Key     string
	Value   []byte
	Delete  bool
	Check   bool
	Reserve bool
	Expect  int64
	Lease   LeaseID
}

// Change is one event of a watch. Deleted items have no value.
type Change struct {
	Item    Item
	Deleted bool
}

// Store is the space. Keys are slash-separated paths without a leading or
// trailing slash, of printable ASCII without blanks. Every method may be called
// concurrently; errors are of the kinds sallyport.ErrNotFound, ErrExists,
// ErrConflict, ErrInvalid, ErrUnavailable. After ErrUnavailable an Apply may
// have happened or not.
//
// A prefix is a path too: "users" and "users/" both mean everything below
// "users/", and "" means everything.
type Store interface {
	Get(ctx context.Context, key string) (Item, error)

	// List returns all items below prefix in key order and the revision at
	// which they were read.
	List(ctx context.Context, prefix string) (items []Item, revision int64, err error)

	// Apply does all steps or none and returns the new revision. When an
	// expectation does not hold, nothing changes and the error is ErrConflict
	// (ErrExists when Absent was expected, ErrNotFound when the key is gone).
	// When it returns without error the change is durable.
	Apply(ctx context.Context, ops ...Op) (revision int64, err error)

	// Watch delivers every change below prefix after revision, in order,
	// until ctx is done or the watcher falls too far behind; then the channel
	// is closed and the caller lists again.
	Watch(ctx context.Context, prefix string, revision int64) <-chan []Change

	// Grant makes a lease; KeepAlive renews it once; Revoke ends it at once.
	Grant(ctx context.Context, ttl time.Duration) (LeaseID, error)
	KeepAlive(ctx context.Context, id LeaseID) error
	Revoke(ctx context.Context, id LeaseID) error

	// Revision is the newest revision.
	Revision(ctx context.Context) (int64, error)

	Close() error
}
