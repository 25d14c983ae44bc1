package inventory

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"path"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/store"
)

// Allow bounds what an agent may serve. It comes from the token by which the
// agent joined, and stays for all of its announcements.
type Allow struct {
	Kinds  []sallyport.Kind  `json:"kinds,omitempty"`  // empty: all
	Names  []string          `json:"names,omitempty"`  // globs as in path.Match; empty: all
	Labels map[string]string `json:"labels,omitempty"` // every resource must carry these
}

// Host is an agent or a gateway that has joined.
type Host struct {
	ID        string // UUID
	Kind      sallyport.IdentityKind
	Name      string // what it calls itself
	Allow     Allow
	Addresses []string // of a gateway: host:port
	Joined    time.Time
	Token     string // name of the token it joined by
	Tag       uint16 // of an agent: PostgreSQL cancel tag
}

// hostRecord is how a host stands in the store.
type hostRecord struct {
	Version   int                    `json:"version"`
	ID        string                 `json:"id"`
	Kind      sallyport.IdentityKind `json:"kind"`
	Name      string                 `json:"name,omitempty"`
	Allow     Allow                  `json:"allow"`
	Addresses []string               `json:"addresses,omitempty"`
	Joined    time.Time              `json:"joined"`
	Token     string                 `json:"token,omitempty"`
	Key       string                 `json:"key"` // hash of the TLS public key it joined with
	Tag       uint16                 `json:"tag,omitempty"`
}

const (
	recordVersion = 1
	maxHostName   = 253
	maxAddresses  = 16
	tagTries      = 64
	maxRaces      = 16 // how often a change is repeated when others were faster
)

// Inventory is all hosts of a cluster. All methods may be called concurrently.
type Inventory struct {
	store store.Store
	now   func() time.Time
	ttl   time.Duration

	changes changes

	mu       sync.Mutex
	reported map[string]*report // by gateway: what it reported to this process
}

// Config says what the inventory needs.
type Config struct {
	Store       store.Store
	Now         func() time.Time
	PresenceTTL time.Duration // a gateway that is silent for so long is gone; default 10 s
}

// New opens the inventory.
func New(cfg Config) *Inventory {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.PresenceTTL == 0 {
		cfg.PresenceTTL = 10 * time.Second
	}
	return &Inventory{store: cfg.Store, now: cfg.Now, ttl: cfg.PresenceTTL, reported: make(map[string]*report)}
}

func hostKey(id string) string { return "hosts/" + id }

// Join records a host, or the same host again: the same id with another key or
// as another kind is refused, so that a token does not make anybody a host that
// exists. tlsKey is the public key that came with the call.
func (inv *Inventory) Join(ctx context.Context, h Host, tlsKey []byte) (Host, error) {
	if err := checkHost(h); err != nil {
		return Host{}, err
	}
	rec := hostRecord{Version: recordVersion, ID: h.ID, Kind: h.Kind, Name: h.Name, Allow: h.Allow, Addresses: h.Addresses,
		Joined: inv.now().UTC().Truncate(time.Second), Token: h.Token, Key: keyHash(tlsKey)}
	for range maxRaces {
		out, err := inv.tryJoin(ctx, rec)
		if !raced(err) {
			return out, err
		}
	}
	return Host{}, busy()
}

// keyHash is how a record has a key.
func keyHash(tlsKey []byte) string {
	sum := sha256.Sum256(tlsKey)
	return hex.EncodeToString(sum[:])
}

func (inv *Inventory) tryJoin(ctx context.Context, rec hostRecord) (Host, error) {
	old, it, err := inv.getHost(ctx, rec.ID)
	if err != nil && !errors.Is(err, sallyport.ErrNotFound) {
		return Host{}, err
	}
	if _, gone := inv.store.Get(ctx, removedKey(rec.ID)); !errors.Is(gone, sallyport.ErrNotFound) {
		if gone != nil {
			return Host{}, gone
		}
		return Host{}, &sallyport.Problem{Kind: sallyport.ErrExists, Fact: "the host with this id was removed from the cluster",
			Hint: "join without an id to get a new one: with an empty data directory, and a new token"}
	}
	var ops []store.Op
	switch {
	case err == nil:
		if subtle.ConstantTimeCompare([]byte(old.Key), []byte(rec.Key)) != 1 || old.Kind != rec.Kind {
			return Host{}, &sallyport.Problem{Kind: sallyport.ErrExists, Fact: "a host with this id has joined already",
				Hint: "join without an id to get a new one, or remove the old host first"}
		}
		rec.Tag, rec.Joined = old.Tag, old.Joined
	case rec.Kind == sallyport.KindAgent:
		var op store.Op
		if rec.Tag, op, err = inv.freeTag(ctx, rec.ID); err != nil {
			return Host{}, err
		}
		ops = append(ops, op)
	}
	value, err := store.Keep(it.Value, rec)
	if err != nil {
		return Host{}, err
	}
	ops = append(ops, store.Op{Key: hostKey(rec.ID), Value: value, Expect: it.Revision})
	if _, err := inv.store.Apply(ctx, ops...); err != nil {
		return Host{}, err
	}
	return rec.host(), nil
}

func tagKey(tag uint16) string { return "tags/" + strconv.Itoa(int(tag)) }

// freeTag finds a tag that no host has. It is not taken before the returned
// step is applied.
func (inv *Inventory) freeTag(ctx context.Context, id string) (uint16, store.Op, error) {
	for range tagTries {
		tag := uint16(1 + rand.IntN(1<<16-1)) // 0 is no tag
		_, err := inv.store.Get(ctx, tagKey(tag))
		if errors.Is(err, sallyport.ErrNotFound) {
			return tag, store.Op{Key: tagKey(tag), Value: []byte(id), Expect: store.Absent}, nil
		}
		if err != nil {
			return 0, store.Op{}, err
		}
	}
	return 0, store.Op{}, &sallyport.Problem{Kind: sallyport.ErrExhausted, Fact: "no PostgreSQL cancel tag is free",
		Hint: "remove agents that are gone for good"}
}

// Host returns one host.
func (inv *Inventory) Host(ctx context.Context, id string) (Host, error) {
	rec, _, err := inv.getHost(ctx, id)
	return rec.host(), err
}

// JoinedWith says whether a host joined with this TLS public key, in the form in
// which Join got it. The error is of kind ErrNotFound when there is no such host.
func (inv *Inventory) JoinedWith(ctx context.Context, id string, tlsKey []byte) (bool, error) {
	rec, _, err := inv.getHost(ctx, id)
	if err != nil {
		return false, err
	}
	return subtle.ConstantTimeCompare([]byte(rec.Key), []byte(keyHash(tlsKey))) == 1, nil
}

// Hosts returns all hosts in the order of their ids.
func (inv *Inventory) Hosts(ctx context.Context) ([]Host, error) {
	items, _, err := inv.store.List(ctx, "hosts")
	if err != nil {
		return nil, err
	}
	var out []Host
	for _, it := range items {
		rec, err := decodeHost(it)
		if err != nil {
			return nil, err
		}
		out = append(out, rec.host())
	}
	return out, nil
}

// SetAddresses records under which addresses a gateway is reached.
func (inv *Inventory) SetAddresses(ctx context.Context, id string, addresses []string) error {
	for range maxRaces {
		err := inv.trySetAddresses(ctx, id, addresses)
		if !errors.Is(err, sallyport.ErrConflict) {
			return err
		}
	}
	return busy()
}

func (inv *Inventory) trySetAddresses(ctx context.Context, id string, addresses []string) error {
	rec, it, err := inv.getHost(ctx, id)
	if err != nil {
		return err
	}
	if slices.Equal(rec.Addresses, addresses) {
		return nil
	}
	rec.Addresses = addresses
	if err := checkHost(rec.host()); err != nil {
		return err
	}
	value, err := store.Keep(it.Value, rec)
	if err != nil {
		return err
	}
	_, err = inv.store.Apply(ctx, store.Op{Key: it.Key, Value: value, Expect: it.Revision})
	return err
}

// removedRecord stands for a host that was removed: its id is nobody's any more.
type removedRecord struct {
	Version int                    `json:"version"`
	Kind    sallyport.IdentityKind `json:"kind"`
	Until   time.Time              `json:"until"` // when its last certificate has ended
}

func removedKey(id string) string { return "removed/" + id }

// Remove forgets a host: its names are free, it can neither announce nor renew
// any more, and its id is refused to whoever joins. Until the given time, when
// the last of its certificates has ended, Removed names it. It returns the names
// that are free now, "<kind>/<name>" in their order. A removal that was cut short
// is ended by the next call.
func (inv *Inventory) Remove(ctx context.Context, id string, until time.Time) (freed []string, err error) {
	rec, it, err := inv.getHost(ctx, id)
	if errors.Is(err, sallyport.ErrNotFound) && validID(id) {
		if _, gone := inv.store.Get(ctx, removedKey(id)); gone != nil {
			return nil, err
		}
		if freed, rerr := inv.releaseAll(ctx, id); rerr != nil || len(freed) > 0 {
			return freed, halfRemoved(rerr)
		}
		return nil, err
	}
	if err != nil {
		return nil, err
	}
	value, err := json.Marshal(removedRecord{Version: recordVersion, Kind: rec.Kind, Until: until.UTC().Truncate(time.Second)})
	if err != nil {
		return nil, err
	}
	// First the host, so that it takes no new names meanwhile.
	ops := []store.Op{{Key: it.Key, Delete: true, Expect: store.Any}, {Key: removedKey(id), Value: value, Expect: store.Any, Reserve: true}}
	if rec.Tag != 0 {
		ops = append(ops, store.Op{Key: tagKey(rec.Tag), Delete: true, Expect: store.Any})
	}
	if rec.Kind == sallyport.KindGateway {
		ops = append(ops, store.Op{Key: gatewayKey(id), Delete: true, Expect: store.Any})
	}
	if _, err := inv.store.Apply(ctx, ops...); err != nil {
		return nil, err
	}
	freed, err = inv.releaseAll(ctx, id)
	return freed, halfRemoved(err)
}

// halfRemoved says of what stopped a removal that the host itself is gone.
func halfRemoved(err error) error {
	if err == nil {
		return nil
	}
	return &sallyport.Problem{Kind: sallyport.ErrUnavailable, Fact: "the host was removed, but perhaps not all of its names are free yet", Hint: "remove it once more", Cause: err}
}

// releaseAll gives up all names of an agent, and forgets removals that matter no
// more.
func (inv *Inventory) releaseAll(ctx context.Context, id string) (freed []string, err error) {
	held, err := inv.held(ctx, id)
	if err != nil {
		return nil, err
	}
	for _, key := range slices.Sorted(maps.Keys(held)) {
		r := held[key]
		if err := inv.release(ctx, id, r.Resource, true); err != nil {
			return nil, err
		}
		freed = append(freed, key)
	}
	return freed, inv.forgetRemoved(ctx)
}

// Remains says of an id that no host has whether its host was removed, and whether
// it still holds names because that was cut short: what the next Remove frees.
func (inv *Inventory) Remains(ctx context.Context, id string) (removed, holds bool, err error) {
	if !validID(id) {
		return false, false, nil
	}
	if _, err := inv.store.Get(ctx, removedKey(id)); err != nil {
		if errors.Is(err, sallyport.ErrNotFound) {
			err = nil
		}
		return false, false, err
	}
	held, err := inv.held(ctx, id)
	return true, len(held) > 0, err
}

// Removed are the ids of hosts that were removed and may still hold certificates,
// in their order.
func (inv *Inventory) Removed(ctx context.Context) ([]string, error) {
	var ids []string
	err := inv.eachRemoved(ctx, func(it store.Item, ended bool) {
		if !ended {
			ids = append(ids, segment(it.Key, 1))
		}
	})
	return ids, err
}

// forgetRemoved drops the records of those whose certificates have all ended, a
// step's worth of them at most.
func (inv *Inventory) forgetRemoved(ctx context.Context) error {
	var ops []store.Op
	err := inv.eachRemoved(ctx, func(it store.Item, ended bool) {
		if ended && len(ops) < store.MaxOps {
			ops = append(ops, store.Op{Key: it.Key, Delete: true, Expect: store.Any})
		}
	})
	if err != nil || len(ops) == 0 {
		return err
	}
	_, err = inv.store.Apply(ctx, ops...)
	return err
}

func (inv *Inventory) eachRemoved(ctx context.Context, see func(it store.Item, ended bool)) error {
	items, _, err := inv.store.List(ctx, "removed")
	if err != nil {
		return err
	}
	for _, it := range items {
		var rec removedRecord
		if err := json.Unmarshal(it.Value, &rec); err != nil {
			return fmt.Errorf("%s: %w", it.Key, err)
		}
		see(it, !inv.now().Before(rec.Until))
	}
	return nil
}

func (inv *Inventory) getHost(ctx context.Context, id string) (hostRecord, store.Item, error) {
	if !validID(id) {
		return hostRecord{}, store.Item{}, noHost()
	}
	it, err := inv.store.Get(ctx, hostKey(id))
	if errors.Is(err, sallyport.ErrNotFound) {
		return hostRecord{}, store.Item{}, noHost()
	}
	if err != nil {
		return hostRecord{}, store.Item{}, err
	}
	rec, err := decodeHost(it)
	return rec, it, err
}

func noHost() error {
	return &sallyport.Problem{Kind: sallyport.ErrNotFound, Fact: "no host with this id has joined, or it was removed",
		Hint: "join again with a new token"}
}

func busy() error {
	return &sallyport.Problem{Kind: sallyport.ErrExhausted, Fact: "too many changes of the same record at once", Hint: "try again"}
}

func decodeHost(it store.Item) (hostRecord, error) {
	var rec hostRecord
	if err := json.Unmarshal(it.Value, &rec); err != nil {
		return hostRecord{}, fmt.Errorf("%s: %w", it.Key, err)
	}
	if rec.Version != recordVersion {
		return hostRecord{}, fmt.Errorf("%s: version %d is not known", it.Key, rec.Version)
	}
	return rec, nil
}

func (r hostRecord) host() Host {
	return Host{ID: r.ID, Kind: r.Kind, Name: r.Name, Allow: r.Allow, Addresses: r.Addresses, Joined: r.Joined, Token: r.Token, Tag: r.Tag}
}

func checkHost(h Host) error {
	switch {
	case !validID(h.ID):
		return invalid("host id is not a UUID in its plain form")
	case h.Kind != sallyport.KindAgent && h.Kind != sallyport.KindGateway:
		return invalid("a host is an agent or a gateway")
	case !text(h.Name, maxHostName):
		return invalid("host name is too long or not printable")
	case len(h.Addresses) > maxAddresses:
		return invalid(fmt.Sprintf("more than %d addresses", maxAddresses))
	}
	for _, a := range h.Addresses {
		if _, _, err := net.SplitHostPort(a); err != nil || !text(a, maxHostName+6) {
			return invalid("a gateway's address is not host:port")
		}
	}
	return nil
}

func validID(s string) bool {
	id, err := uuid.Parse(s)
	return err == nil && id.String() == s
}

// refuses says why a host with this Allow may not serve a resource, or "".
func (a Allow) refuses(r sallyport.Resource) (reason string) {
	if len(a.Kinds) > 0 && !slices.Contains(a.Kinds, r.Kind) {
		return "its token does not allow the kind " + string(r.Kind)
	}
	if len(a.Names) > 0 && !slices.ContainsFunc(a.Names, func(glob string) bool {
		ok, err := path.Match(glob, r.Name)
		return ok && err == nil
	}) {
		return "its token does not allow this name"
	}
	for k, v := range a.Labels {
		if got, ok := r.Labels[k]; !ok || got != v {
			return "its token asks for the label " + k + "=" + v
		}
	}
	return ""
}

func raced(err error) bool {
	return errors.Is(err, sallyport.ErrConflict) || errors.Is(err, sallyport.ErrExists) && !isFinal(err)
}

// isFinal tells our own refusal of a taken id from the store's conflict.
func isFinal(err error) bool {
	var p *sallyport.Problem
	return errors.As(err, &p) && p.Hint != ""
}

func invalid(fact string) error {
	return &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: fact}
}
