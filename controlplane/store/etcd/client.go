package etcd

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/store"
	"github.com/sallyport/sallyport/dataplane/handover/failpoint"
)

const (
	// defaultPrefix is where our keys lie when nothing else is configured.
	defaultPrefix = "sallyport/"

	// opTimeout bounds each request whose context has no earlier deadline. It
	// is above etcd's own request timeout with our election timeout, so that
	// etcd's more precise error arrives first.
	opTimeout = 8 * time.Second

	// pageSize bounds one answer of a listing.
	pageSize = 256
)

// Store is an open store. It implements store.Store.
type Store struct {
	client *clientv3.Client
	prefix string // ends with a slash
	stop   func() error
	done   <-chan struct{}
	space  space
	disk   disk
}

var _ store.Store = (*Store)(nil)

// Get returns the item with the key.
func (s *Store) Get(ctx context.Context, key string) (store.Item, error) {
	if err := checkKey(key); err != nil {
		return store.Item{}, err
	}
	ctx, cancel, err := s.op(ctx)
	if err != nil {
		return store.Item{}, unavailable(err)
	}
	defer cancel()
	r, err := s.client.Get(ctx, s.prefix+key)
	if err != nil {
		return store.Item{}, unavailable(err)
	}
	if len(r.Kvs) == 0 {
		return store.Item{}, &sallyport.Problem{Kind: sallyport.ErrNotFound, Fact: "no record " + key}
	}
	return s.item(r.Kvs[0]), nil
}

// List reads page by page, all of them at the revision of the first.
func (s *Store) List(ctx context.Context, prefix string) ([]store.Item, int64, error) {
	if err := checkPrefix(prefix); err != nil {
		return nil, 0, err
	}
	from := s.prefix + below(prefix)
	end := clientv3.GetPrefixRangeEnd(from)
	var items []store.Item
	var revision int64
	for {
		r, err := s.page(ctx, from, end, revision)
		if err != nil {
			return nil, 0, unavailable(err)
		}
		if revision == 0 {
			revision = r.Header.Revision
		}
		for _, kv := range r.Kvs {
			items = append(items, s.item(kv))
		}
		if !r.More || len(r.Kvs) == 0 {
			return items, revision, nil
		}
		from = string(r.Kvs[len(r.Kvs)-1].Key) + "\x00"
	}
}

func (s *Store) page(ctx context.Context, from, end string, revision int64) (*clientv3.GetResponse, error) {
	ctx, cancel, err := s.op(ctx)
	if err != nil {
		return nil, err
	}
	defer cancel()
	return s.client.Get(ctx, from, clientv3.WithRange(end), clientv3.WithLimit(pageSize), clientv3.WithRev(revision),
		clientv3.WithSort(clientv3.SortByKey, clientv3.SortAscend))
}

// Apply is one etcd transaction. When a comparison fails the keys are read in
// the same transaction, to say which expectation did not hold and how.
func (s *Store) Apply(ctx context.Context, ops ...store.Op) (int64, error) {
	if err := checkOps(ops); err != nil {
		return 0, err
	}
	var cmps []clientv3.Cmp
	var steps, looks []clientv3.Op
	for _, op := range ops {
		key := s.prefix + op.Key
		if !op.Check {
			steps = append(steps, step(key, op))
		}
		looks = append(looks, clientv3.OpGet(key, clientv3.WithKeysOnly()))
		if op.Expect != store.Any {
			cmps = append(cmps, clientv3.Compare(clientv3.ModRevision(key), "=", op.Expect))
		}
	}
	if err := failpoint.Hit("store.apply"); err != nil {
		return 0, unavailable(err)
	}
	bytes, ordinary := costOf(ops)
	leave, err := s.disk.enter(bytes, ordinary)
	if err != nil {
		return 0, err
	}
	defer leave()
	if ordinary {
		leave, err := s.enter(bytes)
		if err != nil {
			return 0, err
		}
		defer leave()
	}
	asked := ctx
	ctx, cancel, err := s.op(ctx)
	if err != nil {
		return 0, unavailable(err)
	}
	defer cancel()
	began := time.Now()
	r, err := s.client.Txn(ctx).If(cmps...).Then(steps...).Else(looks...).Commit()
	if full := err; errors.Is(full, rpctypes.ErrNoSpace) && s.reclaim(began, s.space.most()-bytes) {
		again, cancel, closed := s.op(asked)
		if closed != nil {
			return 0, unavailable(closed)
		}
		defer cancel()
		r, err = s.client.Txn(again).If(cmps...).Then(steps...).Else(looks...).Commit()
		if err == nil && !r.Succeeded {
			// The one that raised the alarm was applied: its expectations may
			// not hold any more because of itself.
			return 0, &sallyport.Problem{Kind: sallyport.ErrUnavailable, Fact: "the store was full for a moment, and may have made this change all the same",
				Hint: "look before you repeat it", Cause: full}
		}
	}
	if errors.Is(err, rpctypes.ErrLeaseNotFound) {
		return 0, &sallyport.Problem{Kind: sallyport.ErrNotFound, Fact: "the lease has ended", Cause: err}
	}
	if err != nil {
		return 0, unavailable(err)
	}
	if !r.Succeeded {
		return 0, conflict(ops, r)
	}
	if err := failpoint.Hit("store.applied"); err != nil {
		return 0, unavailable(err)
	}
	return r.Header.Revision, nil
}

func step(key string, op store.Op) clientv3.Op {
	if op.Delete {
		return clientv3.OpDelete(key)
	}
	return clientv3.OpPut(key, string(op.Value), clientv3.WithLease(clientv3.LeaseID(op.Lease)))
}

// conflict names the first expectation that did not hold.
func conflict(ops []store.Op, r *clientv3.TxnResponse) error {
	for i, op := range ops {
		if op.Expect == store.Any || i >= len(r.Responses) {
			continue
		}
		var found int64
		if kvs := r.Responses[i].GetResponseRange().GetKvs(); len(kvs) > 0 {
			found = kvs[0].ModRevision
		}
		switch {
		case found == op.Expect:
			continue
		case op.Expect == store.Absent:
			return &sallyport.Problem{Kind: sallyport.ErrExists, Fact: "record " + op.Key + " exists already"}
		case found == 0:
			return &sallyport.Problem{Kind: sallyport.ErrNotFound, Fact: "no record " + op.Key}
		default:
			return &sallyport.Problem{Kind: sallyport.ErrConflict, Fact: "record " + op.Key + " was changed meanwhile", Hint: "read it again and repeat the change"}
		}
	}
	return &sallyport.Problem{Kind: sallyport.ErrConflict, Fact: "a record was changed meanwhile"}
}

// Grant makes a lease. etcd counts whole seconds.
func (s *Store) Grant(ctx context.Context, ttl time.Duration) (store.LeaseID, error) {
	if ttl < store.MinTTL || ttl > store.MaxTTL {
		return 0, invalid(fmt.Sprintf("lease of %v: want %v to %v", ttl, store.MinTTL, store.MaxTTL))
	}
	left, err := s.disk.enter(leaseCost, true)
	if err != nil {
		return 0, err
	}
	defer left()
	leave, err := s.enter(leaseCost)
	if err != nil {
		return 0, err
	}
	defer leave()
	asked := ctx
	ctx, cancel, err := s.op(ctx)
	if err != nil {
		return 0, unavailable(err)
	}
	defer cancel()
	began, seconds := time.Now(), int64((ttl+time.Second-1)/time.Second)
	r, err := s.client.Grant(ctx, seconds)
	if errors.Is(err, rpctypes.ErrNoSpace) && s.reclaim(began, s.space.most()-leaseCost) {
		again, cancel, closed := s.op(asked)
		if closed != nil {
			return 0, unavailable(closed)
		}
		defer cancel()
		r, err = s.client.Grant(again, seconds)
	}
	if err != nil {
		return 0, unavailable(err)
	}
	return store.LeaseID(r.ID), nil
}

// KeepAlive renews the lease once.
func (s *Store) KeepAlive(ctx context.Context, id store.LeaseID) error {
	ctx, cancel, err := s.op(ctx)
	if err != nil {
		return leaseError(err)
	}
	defer cancel()
	_, err = s.client.KeepAliveOnce(ctx, clientv3.LeaseID(id))
	return leaseError(err)
}

// Revoke ends the lease and deletes its keys.
func (s *Store) Revoke(ctx context.Context, id store.LeaseID) error {
	ctx, cancel, err := s.op(ctx)
	if err != nil {
		return leaseError(err)
	}
	defer cancel()
	_, err = s.client.Revoke(ctx, clientv3.LeaseID(id))
	return leaseError(err)
}

// Revision asks for nothing and reads the revision from the answer's header.
func (s *Store) Revision(ctx context.Context) (int64, error) {
	ctx, cancel, err := s.op(ctx)
	if err != nil {
		return 0, unavailable(err)
	}
	defer cancel()
	r, err := s.client.Get(ctx, s.prefix, clientv3.WithCountOnly())
	if err != nil {
		return 0, unavailable(err)
	}
	return r.Header.Revision, nil
}

// op bounds one request. One that has ended already, or that a closed store
// gets, is an error: the embedded server may answer it all the same.
func (s *Store) op(ctx context.Context) (context.Context, context.CancelFunc, error) {
	select {
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	case <-s.done:
		return nil, nil, context.Canceled
	default:
	}
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	return ctx, cancel, nil
}

// Done is closed when the store has stopped for good, by Close or because the
// embedded server could not go on. It never closes for an external cluster.
func (s *Store) Done() <-chan struct{} { return s.done }

// Close ends all watches and the client, and stops the embedded server.
func (s *Store) Close() error { return s.stop() }

func (s *Store) item(kv *mvccpb.KeyValue) store.Item {
	return store.Item{
		Key:      string(kv.Key[len(s.prefix):]),
		Value:    kv.Value,
		Revision: kv.ModRevision,
		Created:  kv.CreateRevision,
		Lease:    store.LeaseID(kv.Lease),
	}
}

func leaseError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, rpctypes.ErrLeaseNotFound):
		return &sallyport.Problem{Kind: sallyport.ErrNotFound, Fact: "the lease has ended", Cause: err}
	}
	return unavailable(err)
}

// unavailable keeps etcd's own words for the log: they may name addresses.
func unavailable(err error) error {
	if errors.Is(err, errDiskFull) {
		return diskFull(err)
	}
	if errors.Is(err, errLogEnds) {
		return logEnds(err)
	}
	fact, hint := "the store does not answer", ""
	if errors.Is(err, rpctypes.ErrNoSpace) {
		fact, hint = "the store is full", "remove what is not needed, or raise auth.etcd.quota_mib; of an etcd cluster of your own, compact, defragment and disarm the alarm"
	}
	return &sallyport.Problem{Kind: sallyport.ErrUnavailable, Fact: fact, Hint: hint, Cause: err}
}
