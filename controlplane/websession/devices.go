package websession

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/store"
)

const (
	// DeviceTTL is how long a program waits for somebody to type its code.
	DeviceTTL = 10 * time.Minute
	// PollEvery is how often it may ask.
	PollEvery = 5 * time.Second

	maxDevices   = 4096 // that wait, of all sources
	maxPerSource = 4
	countEvery   = time.Second
	maxPolls     = 2 * maxDevices
	maxHostName  = 253
)

// State is how far a request of a program is.
type State string

const (
	Pending  State = "pending"
	Approved State = "approved"
	Refused  State = "refused"
)

// Device is a program that waits for its user to type a code elsewhere.
type Device struct {
	TLSKey, SSHKey []byte
	Seconds        int64  // that the certificates shall live
	Host           string // what the program calls its machine
	Addr           string // where it called from
	Created        time.Time
	State          State
	User           string // who approved
	Session        string // in which session
}

type deviceRecord struct {
	Version int       `json:"version"`
	Secret  string    `json:"secret"` // hash
	TLSKey  []byte    `json:"tls_key"`
	SSHKey  []byte    `json:"ssh_key"`
	Seconds int64     `json:"seconds"`
	Host    string    `json:"host,omitempty"`
	Addr    string    `json:"addr"`
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires"`
	State   State     `json:"state"`
	User    string    `json:"user,omitempty"`
	Session string    `json:"session,omitempty"`
	Slot    string    `json:"slot"` // key of the place of its source
}

func deviceKey(userCode string) string { return "webdevices/" + userCode }

func (t deviceToken) hash() string { return hashed("device", string(t.secret[:])) }

// BeginDevice takes a stranger's request. source is the network that it counts
// for. What is kept of it is bounded: for each source, for all, and in time.
func (s *Sessions) BeginDevice(ctx context.Context, source string, d Device) (deviceCode, userCode string, expires time.Time, err error) {
	slots, err := s.freeSlots(ctx, source)
	if err != nil {
		return "", "", time.Time{}, err
	}
	if err := s.roomForDevice(ctx); err != nil {
		return "", "", time.Time{}, err
	}
	lease, err := s.store.Grant(ctx, DeviceTTL+leaseSlack)
	if err != nil {
		return "", "", time.Time{}, err
	}
	for _, slot := range slots {
		t := deviceToken{userCode: newUserCode()}
		rand.Read(t.secret[:])
		now := s.now().UTC()
		rec := deviceRecord{Version: recordVersion, Secret: t.hash(), TLSKey: d.TLSKey, SSHKey: d.SSHKey, Seconds: d.Seconds,
			Host: printable(d.Host, maxHostName), Addr: d.Addr, Created: now, Expires: now.Add(DeviceTTL), State: Pending,
			Slot: slot}
		value, err := json.Marshal(rec)
		if err != nil {
			return "", "", time.Time{}, err
		}
		_, err = s.store.Apply(ctx,
			store.Op{Key: deviceKey(t.userCode), Value: value, Lease: lease},
			store.Op{Key: rec.Slot, Value: []byte(t.userCode), Lease: lease})
		if errors.Is(err, sallyport.ErrExists) {
			continue
		}
		return t.String(), t.userCode, rec.Expires, err
	}
	s.store.Revoke(ctx, lease) // nothing is on it; else it ends by itself
	return "", "", time.Time{}, tooManyDevices()
}

// freeSlots are the keys of the places that a source has left, one at least.
// Who has none is refused by a read: a write, also one that fails, goes through
// the log of the store and holds up everybody's.
func (s *Sessions) freeSlots(ctx context.Context, source string) ([]string, error) {
	sum := sha256.Sum256([]byte(source))
	dir := "webdevice-sources/" + hex.EncodeToString(sum[:16])
	taken, _, err := s.store.List(ctx, dir)
	if err != nil {
		return nil, err
	}
	var free []string
	for n := range maxPerSource {
		slot := fmt.Sprintf("%s/%d", dir, n)
		if !slices.ContainsFunc(taken, func(it store.Item) bool { return it.Key == slot }) {
			free = append(free, slot)
		}
	}
	if len(free) == 0 {
		return nil, tooManyDevices()
	}
	return free, nil
}

func tooManyDevices() error {
	return &sallyport.Problem{Kind: sallyport.ErrExhausted, Fact: "too many logins wait for their code",
		Hint: "try again in ten minutes, or log in with --user=NAME"}
}

// waiting is how many programs wait, as it was a moment ago.
type waiting struct {
	mu    sync.Mutex
	count int
	at    time.Time
}

func (s *Sessions) roomForDevice(ctx context.Context) error {
	s.waits.mu.Lock()
	defer s.waits.mu.Unlock()
	if age := s.now().Sub(s.waits.at); age < 0 || age >= countEvery {
		items, _, err := s.store.List(ctx, "webdevices")
		if err != nil {
			return err
		}
		s.waits.count, s.waits.at = len(items), s.now()
	}
	if s.waits.count >= maxDevices {
		return tooManyDevices()
	}
	s.waits.count++
	return nil
}

// badUserCode is the one answer to a code that nobody waits for.
func badUserCode() error {
	return &sallyport.Problem{Kind: sallyport.ErrNotFound, Fact: "no login waits for this code, or not any more", Hint: "compare it with what sally shows"}
}

// Device shows who waits for a code. It is for users who are logged in, and the
// caller bounds how often they guess.
func (s *Sessions) Device(ctx context.Context, userCode string) (Device, error) {
	rec, _, err := s.device(ctx, userCode)
	if err == nil && rec.State != Pending {
		err = badUserCode()
	}
	return rec.device(), err
}

func (s *Sessions) device(ctx context.Context, userCode string) (deviceRecord, store.Item, error) {
	if code, ok := ParseUserCode(userCode); !ok || code != userCode {
		return deviceRecord{}, store.Item{}, badUserCode()
	}
	it, err := s.store.Get(ctx, deviceKey(userCode))
	if errors.Is(err, sallyport.ErrNotFound) {
		return deviceRecord{}, store.Item{}, badUserCode()
	}
	if err != nil {
		return deviceRecord{}, store.Item{}, err
	}
	var rec deviceRecord
	if err := json.Unmarshal(it.Value, &rec); err != nil {
		return deviceRecord{}, store.Item{}, fmt.Errorf("%s: %w", it.Key, err)
	}
	if rec.Version != recordVersion {
		return deviceRecord{}, store.Item{}, fmt.Errorf("%s: version %d is not known", it.Key, rec.Version)
	}
	if now := s.now(); !now.Before(rec.Expires) || rec.Expires.Sub(now) > DeviceTTL {
		return deviceRecord{}, store.Item{}, badUserCode()
	}
	return rec, it, nil
}

func (r deviceRecord) device() Device {
	return Device{TLSKey: r.TLSKey, SSHKey: r.SSHKey, Seconds: r.Seconds, Host: r.Host, Addr: r.Addr, Created: r.Created,
		State: r.State, User: r.User, Session: r.Session}
}

// Decide says for a user, in a session, whether the program gets what it waits
// for. It is decided once.
func (s *Sessions) Decide(ctx context.Context, userCode string, by Session, approve bool) error {
	rec, it, err := s.device(ctx, userCode)
	if err != nil {
		return err
	}
	if rec.State != Pending {
		return badUserCode()
	}
	rec.State = Refused
	if approve {
		rec.State, rec.User, rec.Session = Approved, by.User, by.ID
	}
	value, err := store.Keep(it.Value, rec)
	if err != nil {
		return err
	}
	_, err = s.store.Apply(ctx, store.Op{Key: it.Key, Value: value, Expect: it.Revision, Lease: it.Lease})
	if raced(err) {
		return badUserCode()
	}
	return err
}

// ErrTooSoon is for a program that asks more often than it may (RFC 8628,
// section 3.5, slow_down).
var ErrTooSoon = &sallyport.Problem{Kind: sallyport.ErrExhausted, Fact: "asked too soon", Hint: "wait longer between two polls"}

// Poll tells a program how far its request is. What is decided is told once.
func (s *Sessions) Poll(ctx context.Context, deviceCode string) (Device, error) {
	t, ok := parseDeviceToken(deviceCode)
	if !ok {
		return Device{}, expiredDevice()
	}
	rec, it, err := s.device(ctx, t.userCode)
	if errors.Is(err, sallyport.ErrNotFound) || err == nil && !same(rec.Secret, t.hash()) {
		return Device{}, expiredDevice()
	}
	if err != nil {
		return Device{}, err
	}
	if s.polls.tooSoon(t.userCode, s.now()) {
		return Device{}, ErrTooSoon
	}
	if rec.State == Pending {
		return rec.device(), nil
	}
	_, err = s.store.Apply(ctx,
		store.Op{Key: it.Key, Delete: true, Expect: it.Revision},
		store.Op{Key: rec.Slot, Delete: true, Expect: store.Any})
	if raced(err) {
		return Device{}, expiredDevice()
	}
	return rec.device(), err
}

func expiredDevice() error {
	return &sallyport.Problem{Kind: sallyport.ErrNotFound, Fact: "the code was not typed in time", Hint: "run sally login again"}
}

// polls remembers when each program asked last. It is of one process: with
// several, a program may ask each of them.
type polls struct {
	mu   sync.Mutex
	last map[string]time.Time
}

// tooSoon allows for a second of jitter on the way.
func (p *polls) tooSoon(userCode string, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.last) >= maxPolls || p.last == nil {
		p.last = map[string]time.Time{} // some may ask once too soon
	}
	last, known := p.last[userCode]
	p.last[userCode] = now
	age := now.Sub(last)
	return known && age >= 0 && age < PollEvery-time.Second
}
