package api

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/ca/signed"
	"github.com/sallyport/sallyport/controlplane/login"
	"github.com/sallyport/sallyport/controlplane/rbac"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
)

const (
	rolePrefix = "role/"
	lockPrefix = "lock/"
	userPrefix = "users/"

	resourcePrefix = "resources/"
	gatewayPrefix  = "gateways/"
	removedPrefix  = "removed/"

	// reissueEvery shows hosts that auth is there: they count the age of what
	// they hold from its time of issue.
	reissueEvery = time.Minute

	// settle gathers changes that come together, as when many agents start.
	settle = 50 * time.Millisecond

	// snapshotTTL bounds what a stolen copy is good for; hosts' own bound is
	// offline.max_age.
	snapshotTTL = 30 * 24 * time.Hour
)

// view is one reading of what decisions rest on. It never changes.
type view struct {
	// revision is the store's before anything was read: the view holds all
	// that happened up to it, and perhaps more.
	revision uint64
	policy   *rbac.Policy
	roles    []*rbac.Role
	locks    []*sallyportv1.Lock
	users    map[string]login.User
	removed  map[string]bool // hosts whose certificates stand no more

	issued  time.Time
	content [sha256.Size]byte // of all but revision and times
	signed  *sallyportv1.Signed
}

// state holds the newest view and tells when it changes.
type state struct {
	cfg   *Config
	log   *slog.Logger
	dirty chan struct{} // something may have changed

	now    atomic.Pointer[view]
	readAt atomic.Uint64 // the store's revision at the last reading, issued or not

	asking  sync.Mutex // serializes what hosts ask for
	mu      sync.Mutex // serializes reloads
	changed chan struct{}
	wake    sync.Mutex // guards changed
}

func newState(cfg *Config) *state {
	return &state{cfg: cfg, log: cfg.Log, dirty: make(chan struct{}, 1), changed: make(chan struct{})}
}

// view returns the newest view.
func (s *state) view() *view { return s.now.Load() }

// next returns a channel that is closed when there is a newer view.
func (s *state) next() <-chan struct{} {
	s.wake.Lock()
	defer s.wake.Unlock()
	return s.changed
}

// reload reads what a view rests on. Unless anew is set, a view like the one
// before is not issued again.
func (s *state) reload(ctx context.Context, anew bool) error {
	return s.reloadFor(ctx, anew, false)
}

// reloadFor also issues a view like the one before for who reads it from here:
// its revision is newer. Those who wait for another view are not woken for that.
func (s *state) reloadFor(ctx context.Context, anew, one bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, err := s.read(ctx)
	if err != nil {
		return err
	}
	m, err := s.snapshot(ctx, v)
	if err != nil {
		return err
	}
	if v.content, err = contentOf(m, v.users); err != nil {
		return err
	}
	s.readAt.Store(v.revision)
	old := s.now.Load()
	like := old != nil && !anew && old.content == v.content
	if like && !one {
		return nil
	}
	if err := s.sign(v, m); err != nil {
		return err
	}
	s.now.Store(v)
	if like {
		return nil
	}
	s.wake.Lock()
	close(s.changed)
	s.changed = make(chan struct{})
	s.wake.Unlock()
	return nil
}

func (s *state) read(ctx context.Context) (*view, error) {
	roles, revision, err := s.readRoles(ctx)
	if err != nil {
		return nil, err
	}
	locks, err := s.readLocks(ctx)
	if err != nil {
		return nil, err
	}
	people, err := s.cfg.Users.ListUsers(ctx)
	if err != nil {
		return nil, err
	}
	v := &view{revision: uint64(revision), roles: roles, locks: locks, users: make(map[string]login.User, len(people)), issued: s.cfg.Now()}
	for _, u := range people {
		v.users[u.Name] = u
	}
	removed, err := s.cfg.Inventory.Removed(ctx)
	if err != nil {
		return nil, err
	}
	v.removed = make(map[string]bool, len(removed))
	for _, id := range removed {
		v.removed[id] = true
	}
	v.policy = rbac.NewPolicy(roles, v.revision)
	return v, nil
}

// contentOf is the same for views that nobody can tell apart but by their age.
func contentOf(m *sallyportv1.Snapshot, users map[string]login.User) (sum [sha256.Size]byte, err error) {
	payload, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return sum, err
	}
	people, err := json.Marshal(users)
	if err != nil {
		return sum, err
	}
	h := sha256.New()
	fmt.Fprintf(h, "%d ", len(payload))
	h.Write(payload)
	h.Write(people)
	h.Sum(sum[:0])
	return sum, nil
}

func (s *state) readRoles(ctx context.Context) ([]*rbac.Role, int64, error) {
	items, revision, err := s.cfg.Store.List(ctx, rolePrefix)
	if err != nil {
		return nil, 0, err
	}
	var roles []*rbac.Role
	for _, it := range items {
		r, _, err := rbac.ParseRole(it.Value)
		if err != nil {
			return nil, 0, fmt.Errorf("stored role %q: %w", strings.TrimPrefix(it.Key, rolePrefix), err)
		}
		roles = append(roles, r)
	}
	return roles, revision, nil
}

func (s *state) readLocks(ctx context.Context) ([]*sallyportv1.Lock, error) {
	items, _, err := s.cfg.Store.List(ctx, lockPrefix)
	if err != nil {
		return nil, err
	}
	var locks []*sallyportv1.Lock
	for _, it := range items {
		var d lockDocument
		if err := json.Unmarshal(it.Value, &d); err != nil {
			return nil, fmt.Errorf("stored lock %q: %w", strings.TrimPrefix(it.Key, lockPrefix), err)
		}
		locks = append(locks, d.wire())
	}
	return locks, nil
}

// snapshot is what hosts get of a view, without revision and times.
func (s *state) snapshot(ctx context.Context, v *view) (*sallyportv1.Snapshot, error) {
	users, err := s.databaseUsers(ctx, v)
	if err != nil {
		return nil, err
	}
	m := &sallyportv1.Snapshot{
		Cluster: s.cfg.CA.Cluster(), Authorities: authorities(s.cfg.CA), Locks: v.locks, DatabaseUsers: users,
		Settings: &sallyportv1.ClusterSettings{OfflineMaxAgeSeconds: int64(s.cfg.OfflineMaxAge.Seconds()), SecondFactor: s.cfg.SecondFactor},
	}
	for _, r := range v.roles {
		m.Roles = append(m.Roles, r.JSON())
	}
	gateways, err := s.cfg.Inventory.Gateways(ctx)
	if err != nil {
		return nil, err
	}
	for _, g := range gateways {
		m.Gateways = append(m.Gateways, &sallyportv1.Gateway{Id: g.ID, Address: g.Address})
	}
	m.RemovedHosts = slices.Sorted(maps.Keys(v.removed))
	m.Locks = append(slices.Clip(m.Locks), removalLocks(m.RemovedHosts)...)
	return m, nil
}

// removalLocks make an agent end what it serves when it is told that it was
// removed, in the way in which every version obeys.
func removalLocks(removed []string) []*sallyportv1.Lock {
	var out []*sallyportv1.Lock
	for _, id := range removed {
		out = append(out, &sallyportv1.Lock{Name: removedPrefix + id, ServerId: id, Message: hostRemoved})
	}
	return out
}

func (s *state) sign(v *view, m *sallyportv1.Snapshot) error {
	m.Revision, m.IssuedAt, m.NotAfter = v.revision, timestamppb.New(v.issued), timestamppb.New(v.issued.Add(snapshotTTL))
	payload, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return err
	}
	v.signed, err = s.cfg.CA.Sign(signed.Snapshot, payload)
	return err
}

func (s *state) databaseUsers(ctx context.Context, v *view) (map[string]*sallyportv1.StringList, error) {
	var who []rbac.UserRoles
	for _, name := range slices.Sorted(maps.Keys(v.users)) {
		u := v.users[name]
		who = append(who, rbac.UserRoles{Name: u.Name, Roles: u.Roles, Traits: u.Traits})
	}
	entries, err := s.cfg.Inventory.List(ctx, sallyport.KindDatabase)
	if err != nil {
		return nil, err
	}
	var resources []sallyport.Resource
	for _, e := range entries {
		resources = append(resources, e.Resource)
	}
	out := map[string]*sallyportv1.StringList{}
	for db, names := range v.policy.DatabaseUsers(who, resources) {
		out[db] = &sallyportv1.StringList{Values: names}
	}
	return out, nil
}

// prefixes are what a view is read from.
func prefixes() []string {
	return []string{rolePrefix, lockPrefix, userPrefix, resourcePrefix, gatewayPrefix, removedPrefix}
}

// run reloads when something changed, and each minute, until ctx is done.
func (s *state) run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, prefix := range prefixes() {
		wg.Go(func() { s.watch(ctx, prefix) })
	}
	tick := time.NewTicker(reissueEvery)
	defer tick.Stop()
	for {
		anew := false
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			anew = true
		case <-s.dirty:
			if pause(ctx, settle) != nil {
				return nil
			}
		}
		if err := s.reload(ctx, anew); err != nil && ctx.Err() == nil {
			s.log.Warn("reload of roles and locks: the last good view stays", "error", err)
			if pause(ctx, time.Second) != nil {
				return nil
			}
			mark(s.dirty)
		}
	}
}

// watch marks dirty at each change below prefix. A watch that was closed is
// opened again, and what was missed meanwhile is read by the reload.
func (s *state) watch(ctx context.Context, prefix string) {
	for ctx.Err() == nil {
		for range s.cfg.Store.Watch(ctx, prefix, int64(s.readAt.Load())) {
			mark(s.dirty)
		}
		if pause(ctx, time.Second) != nil {
			return
		}
		mark(s.dirty)
	}
}

// atLeast reads again for a host that has seen a newer view, from another auth
// process. What the host says is not believed: it costs at most one reading a
// second, and other hosts hear of it only when something has changed.
func (s *state) atLeast(ctx context.Context, revision uint64) error {
	if !s.behind(revision) {
		return nil // does not wait for those who say otherwise
	}
	s.asking.Lock()
	defer s.asking.Unlock()
	if !s.behind(revision) {
		return nil
	}
	return s.reloadFor(ctx, false, true)
}

func (s *state) behind(revision uint64) bool {
	v := s.view()
	return revision > v.revision && s.cfg.Now().Sub(v.issued) >= time.Second
}

func mark(dirty chan<- struct{}) {
	select {
	case dirty <- struct{}{}:
	default:
	}
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
