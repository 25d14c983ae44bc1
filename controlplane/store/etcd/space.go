package etcd

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/sallyport/sallyport/controlplane/store"
)

const (
	defaultQuota = 2 << 30

	// reserveMost and reserveShare, of the quota, bound what is kept beyond it: of
	// locks as large as may be 500, of ordinary ones some ten thousand.
	reserveMost  = 16 << 20
	reserveShare = 16

	// stepCost and leaseCost are etcd's own estimates of what a step and a lease
	// take besides key and value.
	stepCost  = 256
	leaseCost = 64

	// pagesAnew is what a change may take for a moment besides its own bytes: the
	// page that it comes to is written anew, with two other values at least
	// (bbolt's minKeysPerPage), and its old place is free one commit later.
	pagesAnew = 4 * store.MaxValue

	// reclaimTimeout bounds one attempt: what is left is copied.
	reclaimTimeout = time.Minute

	// reclaimPause is the least after an attempt that gained little: each stops
	// the store for as long as it takes. After a long one it is longer.
	reclaimPause = 5 * time.Second
	reclaimShare = 10 // times what the attempt took
)

// space is what an embedded store may take. Ordinary changes may fill the quota.
// etcd's own is larger by a reserve, for changes that may use that (store.Op) and
// for removals: whoever has filled the store can be locked, and be removed.
//
// When the quota is full the history is given up and its space given back. At the
// end of the reserve etcd raises an alarm, keeps it over restarts, and takes
// no more writes until somebody has made room and taken the alarm away.
type space struct {
	quota      int64 // bytes; 0: the store is a cluster that others look after
	backend    backend
	defragment func() error
	log        *slog.Logger

	closed atomic.Bool

	seats    sync.Mutex // held over commits, which wait while room is made
	underway int64      // bytes of ordinary changes that have begun and not ended
	unseen   int64      // those, and of changes that have ended what the size may not show

	mu    sync.Mutex    // held while room is made
	ended time.Time     // of the last attempt
	size  int64         // of the database after it; math.MaxInt64 when it failed
	pause time.Duration // before the next; 0: it gained much
}

// backend is the part of etcd's database that is asked. Sizes are of the last
// commit, which ForceCommit makes now.
type backend interface {
	Size() int64
	SizeInUse() int64
	ForceCommit()
}

// Space is what an embedded store takes and may take, in bytes.
type Space struct {
	Size    int64 // of the database: records, their history, and what is free in it
	InUse   int64 // of these, what is not free
	Quota   int64 // what Size may be by ordinary changes
	Reserve int64 // what is kept beyond for locks and removals
}

// Space is false of a cluster, which others look after, and of a closed store.
func (s *Store) Space() (Space, bool) {
	sp := &s.space
	if sp.quota == 0 || sp.closed.Load() {
		return Space{}, false
	}
	return Space{Size: sp.backend.Size(), InUse: sp.backend.SizeInUse(), Quota: sp.quota, Reserve: reserveOf(sp.quota)}, true
}

func reserveOf(quota int64) int64 { return min(reserveMost, quota/reserveShare) }

// most is what the database may be, the reserve included: etcd's own quota.
func (sp *space) most() int64 { return mostOf(sp.quota) }

func mostOf(quota int64) int64 { return quota + pagesAnew + reserveOf(quota) }

// costOf is how much steps may add to the database, and whether as an ordinary
// change: one that adds something without leave to use the reserve.
func costOf(ops []store.Op) (bytes int64, ordinary bool) {
	for _, op := range ops {
		if !op.Delete && !op.Check {
			bytes += stepCost + int64(len(op.Key)+len(op.Value))
			ordinary = ordinary || !op.Reserve
		}
	}
	return bytes, ordinary
}

// enter admits an ordinary change of so many bytes, or says that the store is
// full. leave is called when the change has ended.
func (s *Store) enter(bytes int64) (leave func(), err error) {
	sp := &s.space
	if sp.quota == 0 {
		return func() {}, nil
	}
	began := time.Now()
	if !sp.take(bytes) && !(s.reclaim(began, sp.quota-bytes) && sp.take(bytes)) {
		return nil, unavailable(rpctypes.ErrNoSpace)
	}
	return func() { sp.give(bytes) }, nil
}

// take says whether there is room for so many bytes. etcd knows the size of its
// database as of the last commit, of a moment ago: what has begun since is
// counted here, and only when it matters a commit is waited for.
func (sp *space) take(bytes int64) bool {
	sp.seats.Lock()
	defer sp.seats.Unlock()
	if sp.closed.Load() {
		return true // the change itself is told so
	}
	fits := func() bool { return sp.backend.Size()+sp.unseen+bytes < sp.quota }
	if !fits() {
		sp.backend.ForceCommit()
		sp.unseen = sp.underway
		if !fits() {
			return false
		}
	}
	sp.unseen += bytes
	sp.underway += bytes
	return true
}

func (sp *space) give(bytes int64) {
	sp.seats.Lock()
	defer sp.seats.Unlock()
	sp.underway -= bytes
}

// commit writes what etcd would write within a moment.
func (sp *space) commit() {
	sp.seats.Lock()
	defer sp.seats.Unlock()
	if !sp.closed.Load() {
		sp.backend.ForceCommit()
	}
}

// close is called before the database is closed, which is asked nothing any more.
func (sp *space) close() {
	sp.seats.Lock()
	defer sp.seats.Unlock()
	sp.closed.Store(true)
}

// reclaim makes room after a write that began at a time was refused. It says
// whether the database is smaller than most now, so that the write may be tried
// again.
func (s *Store) reclaim(began time.Time, most int64) bool {
	sp := &s.space
	if sp.quota == 0 {
		return false
	}
	sp.mu.Lock()
	defer sp.mu.Unlock()
	if sp.ended.After(began) { // while this one waited
		return sp.size < most
	}
	if time.Since(sp.ended) < sp.pause {
		return false
	}
	ctx, cancel := context.WithTimeout(context.Background(), reclaimTimeout)
	defer cancel()
	start := time.Now()
	size, err := s.makeRoom(ctx, most)
	sp.ended, sp.size, sp.pause = time.Now(), size, 0
	if err != nil {
		sp.size = math.MaxInt64
	}
	if err != nil || size > sp.quota/4*3 {
		sp.pause = max(reclaimPause, reclaimShare*sp.ended.Sub(start))
	}
	switch {
	case err != nil:
		sp.log.Error("the store is full, and its history could not be given up", "quota", sp.quota, "err", err)
	case size >= most:
		sp.log.Error("the store is full; auth.etcd.quota_mib is what it may have", "bytes", size, "quota", sp.quota)
	default:
		sp.log.Warn("the store was full of its history, which was given up", "bytes", size, "quota", sp.quota)
	}
	return sp.size < most
}

// freedKey is beside all records.
const freedKey = "sallyport-space"

// Counting what is free is tried countTries times, countPause apart.
const (
	countTries = 10
	countPause = 10 * time.Millisecond
)

// counted is etcd's status when the database's size in use is what it is, or when it
// is not below most after all. A commit that finds somebody reading what is older,
// be it that etcd has not yet let go of what it read itself (batchTxBuffered.unsafeCommit
// does so in a goroutine), leaves pages that are free for a later one.
func (s *Store) counted(ctx context.Context, most int64) (st *clientv3.StatusResponse, err error) {
	for try := 1; ; try++ {
		s.countFree(ctx)
		if st, err = s.client.Status(ctx, ""); err != nil || st.DbSizeInUse < most || try == countTries {
			return st, err
		}
		select {
		case <-time.After(countPause):
		case <-ctx.Done():
			return st, ctx.Err()
		}
	}
}

// countFree has the pages counted that the last commit has freed. The next one does
// that, which there is only when there is something to commit.
func (s *Store) countFree(ctx context.Context) {
	s.space.commit()
	if _, err := s.client.Put(ctx, freedKey, ""); err != nil { // beyond the reserve only deletions pass
		_, _ = s.client.Delete(ctx, freedKey)
	}
	s.space.commit()
}

// makeRoom drops all history, gives its space back where that is enough for
// somebody, and takes the alarm away when the database is smaller than it may be.
// size is the database's then.
func (s *Store) makeRoom(ctx context.Context, most int64) (size int64, err error) {
	r, err := s.client.Get(ctx, s.prefix, clientv3.WithCountOnly())
	if err != nil {
		return 0, err
	}
	_, err = s.client.Compact(ctx, r.Header.Revision, clientv3.WithCompactPhysical())
	if err != nil && !errors.Is(err, rpctypes.ErrCompacted) {
		return 0, err
	}
	st, err := s.counted(ctx, most)
	if err != nil {
		return 0, err
	}
	all := s.space.most()
	if st.DbSizeInUse < most || st.DbSize >= all && st.DbSizeInUse < all { // else it would stop the store for nothing
		err := s.space.defragment()
		s.disk.renewed()
		if err != nil {
			return 0, err
		}
		if st, err = s.client.Status(ctx, ""); err != nil {
			return 0, err
		}
	}
	if st.DbSize < all {
		_, err = s.client.AlarmDisarm(ctx, &clientv3.AlarmMember{}) // all there are
	}
	return st.DbSize, err
}
