package etcd

import (
	"context"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/sallyport/sallyport/controlplane/store"
)

// A watcher may lag by this much before it is cut off and has to list again.
const (
	maxBehindChanges = 8192
	maxBehindBytes   = 16 << 20
)

// Watch delivers changes after revision; see store.Store. A prefix that cannot
// be right gets a closed channel.
func (s *Store) Watch(ctx context.Context, prefix string, revision int64) <-chan []store.Change {
	out := make(chan []store.Change)
	if checkPrefix(prefix) != nil || revision < 0 {
		close(out)
		return out
	}
	w := &watcher{store: s, out: out}
	go w.run(ctx, s.prefix+below(prefix), revision+1)
	return out
}

// watcher moves changes from etcd to one reader, and holds what the reader has
// not taken yet. Its goroutine ends with the context, with the client, or when
// the reader falls behind.
type watcher struct {
	store *Store
	out   chan<- []store.Change

	behind []store.Change
	bytes  int
}

func (w *watcher) run(ctx context.Context, prefix string, from int64) {
	defer close(w.out)
	// A member that is cut off from its cluster must not go on silently.
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	in := w.store.client.Watch(ctx, prefix, clientv3.WithPrefix(), clientv3.WithRev(from))
	for {
		var out chan<- []store.Change
		if len(w.behind) > 0 {
			out = w.out
		}
		select {
		case <-ctx.Done():
			return
		case <-w.store.done:
			return
		case out <- w.behind:
			w.behind, w.bytes = nil, 0
		case r, ok := <-in:
			if !ok || r.Err() != nil || !w.take(r) {
				return
			}
		}
	}
}

// take adds what happened, and reports whether the reader may still catch up.
func (w *watcher) take(r clientv3.WatchResponse) bool {
	for _, e := range r.Events {
		c := store.Change{Item: w.store.item(e.Kv), Deleted: e.Type == clientv3.EventTypeDelete}
		w.behind = append(w.behind, c)
		w.bytes += len(c.Item.Key) + len(c.Item.Value)
	}
	return len(w.behind) <= maxBehindChanges && w.bytes <= maxBehindBytes
}
