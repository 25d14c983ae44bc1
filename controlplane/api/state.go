package api

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/ca/signed"
	"github.com/sallyport/sallyport/controlplane/rbac"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
)

const (
	rolePrefix = "role/"
	lockPrefix = "lock/"
	caPrefix   = "ca/"
	userPrefix = "users/"

	resourcePrefix = "resources/"
	gatewayPrefix  = "gateways/"

	// reissueEvery shows hosts that auth is there: they count the age of what
	// they hold from its time of issue.
	reissueEvery = time.Minute

	// snapshotTTL bounds what a stolen copy is good for; hosts' own bound is
	// offline.max_age.
	snapshotTTL = 30 * 24 * time.Hour
)

// view is one consistent reading of what decisions rest on. It never changes.
type view struct {
	revision uint64
	policy   *rbac.Policy
	roles    []*rbac.Role
	locks    []*sallyportv1.Lock
	signed   *sallyportv1.Signed
}

// state holds the newest view and tells when it changes.
type state struct {
	cfg *Config
	log *slog.Logger

	now atomic.Pointer[view]

	mu      sync.Mutex // serializes reloads
	changed chan struct{}
	wake    sync.Mutex // guards changed
}

// View returns the newest view.
func (s *state) view() *view { return s.now.Load() }

// next returns a channel that is closed when there is a newer view.
func (s *state) next() <-chan struct{} {
	s.wake.Lock()
	defer s.wake.Unlock()
	return s.changed
}

// reload reads roles, locks and what snapshots hold besides, and signs anew.
func (s *state) reload(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	roles, revision, err := s.readRoles(ctx)
	if err != nil {
		return err
	}
	locks, lockRevision, err := s.readLocks(ctx)
	if err != nil {
		return err
	}
	v := &view{revision: uint64(max(revision, lockRevision)), roles: roles, locks: locks}
	v.policy = rbac.NewPolicy(roles, v.revision)
	if v.signed, err = s.sign(ctx, v); err != nil {
		return err
	}
	s.now.Store(v)
	s.wake.Lock()
	close(s.changed)
	s.changed = make(chan struct{})
	s.wake.Unlock()
	return nil
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

func (s *state) readLocks(ctx context.Context) ([]*sallyportv1.Lock, int64, error) {
	items, revision, err := s.cfg.Store.List(ctx, lockPrefix)
	if err != nil {
		return nil, 0, err
	}
	var locks []*sallyportv1.Lock
	for _, it := range items {
		var d lockDocument
		if err := json.Unmarshal(it.Value, &d); err != nil {
			return nil, 0, fmt.Errorf("stored lock %q: %w", strings.TrimPrefix(it.Key, lockPrefix), err)
		}
		locks = append(locks, d.wire())
	}
	return locks, revision, nil
}

func (s *state) sign(ctx context.Context, v *view) (*sallyportv1.Signed, error) {
	users, err := s.databaseUsers(ctx, v.policy)
	if err != nil {
		return nil, err
	}
	now := s.cfg.Now()
	m := &sallyportv1.Snapshot{
		Cluster: s.cfg.CA.Cluster(), Revision: v.revision, IssuedAt: timestamppb.New(now), NotAfter: timestamppb.New(now.Add(snapshotTTL)),
		Authorities: authorities(s.cfg.CA), Locks: v.locks, DatabaseUsers: users,
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
	payload, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return nil, err
	}
	return s.cfg.CA.Sign(signed.Snapshot, payload)
}

func (s *state) databaseUsers(ctx context.Context, p *rbac.Policy) (map[string]*sallyportv1.StringList, error) {
	people, err := s.cfg.Users.ListUsers(ctx)
	if err != nil {
		return nil, err
	}
	var who []rbac.UserRoles
	for _, u := range people {
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
	for db, names := range p.DatabaseUsers(who, resources) {
		out[db] = &sallyportv1.StringList{Values: names}
	}
	return out, nil
}

// prefixes are what a view is read from.
func prefixes() []string {
	return []string{rolePrefix, lockPrefix, caPrefix, userPrefix, resourcePrefix, gatewayPrefix}
}

// run reloads when something changed, and each minute, until ctx is done.
func (s *state) run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	dirty := make(chan struct{}, 1)
	for _, prefix := range prefixes() {
		wg.Go(func() { s.watch(ctx, prefix, dirty) })
	}
	tick := time.NewTicker(reissueEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-dirty:
		}
		if err := s.reload(ctx); err != nil && ctx.Err() == nil {
			s.log.Warn("reload of roles and locks: the last good view stays", "error", err)
			if pause(ctx, time.Second) != nil {
				return nil
			}
			mark(dirty)
		}
	}
}

// watch marks dirty at each change below prefix. A watch that was closed is
// opened again, and what was missed meanwhile is read by the reload.
func (s *state) watch(ctx context.Context, prefix string, dirty chan<- struct{}) {
	for ctx.Err() == nil {
		for range s.cfg.Store.Watch(ctx, prefix, int64(s.view().revision)) {
			mark(dirty)
		}
		if pause(ctx, time.Second) != nil {
			return
		}
		mark(dirty)
	}
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
