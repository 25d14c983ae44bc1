package etcd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	// reclaimTimeout bounds one attempt: what is left is copied.
	reclaimTimeout = time.Minute

	// reclaimPause is the least after an attempt that gained little: each stops
	// the store for as long as it takes. After a long one it is longer.
	reclaimPause = 5 * time.Second
	reclaimShare = 10 // times what the attempt took
)

// space gives back what an embedded store's history takes when the store is
// full. etcd raises an alarm then, keeps it over restarts, and takes no more
// writes until somebody has made room and taken the alarm away; meanwhile nobody
// could be locked, the host least of all that has filled it.
type space struct {
	quota      int64 // bytes; 0: the store is a cluster that others look after
	defragment func() error
	log        *slog.Logger

	mu    sync.Mutex    // held while room is made
	ended time.Time     // of the last attempt
	freed bool          // it ended well
	pause time.Duration // 0: and gained much
}

// reclaim makes room after a write that began at a time was refused. It says
// whether the write may be tried again.
func (s *Store) reclaim(began time.Time) bool {
	sp := &s.space
	if sp.quota == 0 {
		return false
	}
	sp.mu.Lock()
	defer sp.mu.Unlock()
	if sp.ended.After(began) { // while this one waited
		return sp.freed
	}
	if time.Since(sp.ended) < sp.pause {
		return false
	}
	ctx, cancel := context.WithTimeout(context.Background(), reclaimTimeout)
	defer cancel()
	start := time.Now()
	size, err := s.makeRoom(ctx)
	sp.ended, sp.freed, sp.pause = time.Now(), err == nil, 0
	if err != nil || size > sp.quota/4*3 {
		sp.pause = max(reclaimPause, reclaimShare*sp.ended.Sub(start))
	}
	if err != nil {
		sp.log.Error("the store is full", "bytes", size, "quota", sp.quota, "err", err)
	} else {
		sp.log.Warn("the store was full of its history, which was given up", "bytes", size, "quota", sp.quota)
	}
	return sp.freed
}

// makeRoom drops all history, gives its space back and, when the database is
// smaller than it may be, takes the alarm away. size is the database's then.
func (s *Store) makeRoom(ctx context.Context) (size int64, err error) {
	r, err := s.client.Get(ctx, s.prefix, clientv3.WithCountOnly())
	if err != nil {
		return 0, err
	}
	_, err = s.client.Compact(ctx, r.Header.Revision, clientv3.WithCompactPhysical())
	if err != nil && !errors.Is(err, rpctypes.ErrCompacted) {
		return 0, err
	}
	st, err := s.client.Status(ctx, "")
	if err != nil {
		return 0, err
	}
	if st.DbSizeInUse < s.space.quota { // else it would stop the store for nothing
		if err := s.space.defragment(); err != nil {
			return 0, err
		}
		if st, err = s.client.Status(ctx, ""); err != nil {
			return 0, err
		}
	}
	if st.DbSize >= s.space.quota {
		return st.DbSize, fmt.Errorf("without history it has %d bytes; %d are the most", st.DbSizeInUse, s.space.quota)
	}
	_, err = s.client.AlarmDisarm(ctx, &clientv3.AlarmMember{}) // all there are
	return st.DbSize, err
}
