package websession

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/store"
)

const (
	// IdleTTL ends a session that nobody uses.
	IdleTTL = time.Hour
	// MaxTTL ends any session.
	MaxTTL = 12 * time.Hour
	// CodeTTL is the life of a one-time code.
	CodeTTL = time.Minute

	maxPerUser    = 32 // sessions; the one unused for longest makes room
	maxApps       = 64 // of one session
	maxPerApp     = 3  // cookies of one application: two tabs may begin at once
	maxCodes      = 32 // made by one session within the life of a code: a browser may open that many tabs again
	maxBrowser    = 200
	seenEvery     = time.Minute // how exactly the time of the last use is kept
	leaseSlack    = time.Minute // leases end after what they clean up
	maxRaces      = 2 * maxCodes
	racePause     = 20 * time.Millisecond // at most, before the next try
	recordVersion = 1                     // version of the records
)

// Config says where sessions are kept.
type Config struct {
	Store store.Store
	Now   func() time.Time // default time.Now
}

// Sessions keeps web sessions. All methods may be called concurrently, also in
// several processes.
type Sessions struct {
	store store.Store
	now   func() time.Time
	waits waiting
	polls polls
}

// New makes the keeper.
func New(cfg Config) *Sessions {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Sessions{store: cfg.Store, now: cfg.Now}
}

// Session is one browser in which somebody is logged in.
type Session struct {
	ID      string
	User    string
	MFA     string // device of the login; "" without
	Addr    string // of the login
	Browser string // what it says it is
	Created time.Time
	Proved  time.Time // when the user last gave password and code in it
	Seen    time.Time
	Ends    time.Time // at the latest

	// Credential is that of the user's record at the login. A session whose
	// user has another by now is over.
	Credential string
}

// record is how a session stands in the store.
type record struct {
	Version    int                 `json:"version"`
	User       string              `json:"user"`
	MFA        string              `json:"mfa,omitempty"`
	Addr       string              `json:"addr"`
	Browser    string              `json:"browser,omitempty"`
	Created    time.Time           `json:"created"`
	Proved     time.Time           `json:"proved"`
	Seen       time.Time           `json:"seen"`
	Ends       time.Time           `json:"ends"`
	Credential string              `json:"credential"`
	Secret     string              `json:"secret"` // hash
	Apps       map[string][]string `json:"apps,omitempty"`
	Codes      []time.Time         `json:"codes,omitempty"` // ends of the codes that were made
}

func (r record) session(id string) Session {
	return Session{ID: id, User: r.User, MFA: r.MFA, Addr: r.Addr, Browser: r.Browser,
		Created: r.Created, Proved: r.Proved, Seen: r.Seen, Ends: r.Ends, Credential: r.Credential}
}

// over says that the session has ended by its own times. A clock that went back
// does not make it live longer than once around.
func (r record) over(now time.Time) bool {
	return !now.Before(r.Ends) || now.Sub(r.Seen) >= IdleTTL || now.Before(r.Created.Add(-IdleTTL))
}

// Gone is the one answer to a cookie that is not good, or not any more.
func Gone() error {
	return &sallyport.Problem{Kind: sallyport.ErrUnauthorized, Fact: "you are not logged in, or not any more", Hint: "log in again"}
}

// NewID is the id of a session to begin.
func NewID() string {
	var b [idSize]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// Begin makes a session, for which the caller has ended what is Beyond, of who has just proved who he is: its id, user, device,
// address, browser, credential, and when it ends at the latest. cookie is the
// value for the browser; it is not kept.
func (s *Sessions) Begin(ctx context.Context, in Session) (cookie string, out Session, err error) {
	if !validID(in.ID) {
		return "", Session{}, fmt.Errorf("session id %q", in.ID)
	}
	now := s.now().UTC()
	t := token{owner: ownerOf(in.User)}
	hex.Decode(t.id[:], []byte(in.ID))
	rand.Read(t.secret[:])
	rec := record{Version: recordVersion, User: in.User, MFA: in.MFA, Addr: in.Addr, Browser: printable(in.Browser, maxBrowser),
		Created: now, Proved: now, Seen: now, Ends: in.Ends.UTC(), Credential: in.Credential, Secret: t.hash()}
	if most := now.Add(MaxTTL); rec.Ends.After(most) || rec.Ends.IsZero() {
		rec.Ends = most
	}
	lease, err := s.store.Grant(ctx, rec.Ends.Sub(now).Truncate(time.Second)+leaseSlack)
	if err != nil {
		return "", Session{}, err
	}
	value, err := json.Marshal(rec)
	if err != nil {
		return "", Session{}, err
	}
	if _, err := s.store.Apply(ctx, store.Op{Key: t.key(), Value: value, Lease: lease}); err != nil {
		return "", Session{}, err
	}
	return t.String(), rec.session(in.ID), nil
}

func (t token) hash() string { return hashed("session", string(t.secret[:])) }

// appHash is of a cookie of an application's origin: it opens no other.
func (t token) appHash(app string) string { return hashed("app\x00"+app, string(t.secret[:])) }

// Beyond are the sessions of a user that have to end before another begins: those
// unused for longest, when there are as many as there may be.
func (s *Sessions) Beyond(ctx context.Context, user string) ([]Session, error) {
	list, err := s.List(ctx, user)
	if err != nil || len(list) < maxPerUser {
		return nil, err
	}
	return list[maxPerUser-1:], nil
}

// Find returns the session of a cookie of the cluster's origin, and notes that
// it is used. What is not good is ErrUnauthorized, whatever it is.
func (s *Sessions) Find(ctx context.Context, cookie string) (Session, error) {
	return s.find(ctx, cookie, func(r record, t token) bool { return same(r.Secret, t.hash()) })
}

// FindApp is Find for a cookie of an application's origin.
func (s *Sessions) FindApp(ctx context.Context, cookie, app string) (Session, error) {
	return s.find(ctx, cookie, func(r record, t token) bool { return r.hasApp(app, t) })
}

// SeeApp is FindApp for who only wants to know: it does not count as use.
func (s *Sessions) SeeApp(ctx context.Context, cookie, app string) (Session, error) {
	id, rec, _, err := s.look(ctx, cookie, func(r record, t token) bool { return r.hasApp(app, t) })
	if err != nil {
		return Session{}, err
	}
	return rec.session(id), nil
}

func (r record) hasApp(app string, t token) bool {
	want, found := t.appHash(app), false
	for _, h := range r.Apps[app] {
		found = same(h, want) || found
	}
	return found
}

func (s *Sessions) find(ctx context.Context, cookie string, good func(record, token) bool) (Session, error) {
	id, rec, it, err := s.look(ctx, cookie, good)
	if err != nil {
		return Session{}, err
	}
	if now := s.now().UTC(); now.Sub(rec.Seen) >= seenEvery {
		rec.Seen = now
		// Another request of the same browser may have been faster; the time
		// that it wrote is as good.
		if err := s.write(ctx, rec, it); err != nil && !raced(err) {
			return Session{}, err
		}
	}
	return rec.session(id), nil
}

// look returns the session of a cookie, and changes nothing.
func (s *Sessions) look(ctx context.Context, cookie string, good func(record, token) bool) (id string, rec record, it store.Item, err error) {
	t, ok := parseToken(cookie)
	if !ok {
		return "", record{}, store.Item{}, Gone()
	}
	id = hex.EncodeToString(t.id[:])
	rec, it, err = s.read(ctx, t.owner, id)
	if err == nil && !good(rec, t) {
		err = Gone()
	}
	return id, rec, it, err
}

// Of returns a session by its user and id: for who was told of it by auth.
func (s *Sessions) Of(ctx context.Context, user, id string) (Session, error) {
	if !validID(id) {
		return Session{}, Gone()
	}
	rec, _, err := s.read(ctx, ownerOf(user), id)
	if err == nil && rec.User != user {
		err = Gone()
	}
	if err != nil {
		return Session{}, err
	}
	return rec.session(id), nil
}

// read returns a session that is not over.
func (s *Sessions) read(ctx context.Context, owner [ownerSize]byte, id string) (record, store.Item, error) {
	it, err := s.store.Get(ctx, sessionKey(owner, id))
	if errors.Is(err, sallyport.ErrNotFound) {
		return record{}, store.Item{}, Gone()
	}
	if err != nil {
		return record{}, store.Item{}, err
	}
	rec, err := decode(it)
	if err == nil && rec.over(s.now()) {
		err = Gone()
	}
	return rec, it, err
}

func decode(it store.Item) (record, error) {
	var rec record
	if err := json.Unmarshal(it.Value, &rec); err != nil {
		return record{}, fmt.Errorf("%s: %w", it.Key, err)
	}
	if rec.Version != recordVersion {
		return record{}, fmt.Errorf("%s: version %d is not known", it.Key, rec.Version)
	}
	return rec, nil
}

func (s *Sessions) write(ctx context.Context, rec record, it store.Item) error {
	value, err := store.Keep(it.Value, rec)
	if err != nil {
		return err
	}
	_, err = s.store.Apply(ctx, store.Op{Key: it.Key, Value: value, Expect: it.Revision, Lease: it.Lease})
	return err
}

// change reads, changes and writes a session, again when others were faster.
func (s *Sessions) change(ctx context.Context, user, id string, do func(*record)) error {
	return race(ctx, func() error {
		rec, it, err := s.read(ctx, ownerOf(user), id)
		if err != nil {
			return err
		}
		do(&rec)
		return s.write(ctx, rec, it)
	})
}

// race tries again when others were faster, each after another pause: a browser
// that opens many pages at once changes its session as often.
func race(ctx context.Context, try func() error) error {
	for range maxRaces {
		if err := try(); !raced(err) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(mathrand.N(racePause)):
		}
	}
	return tooManyChanges()
}

func tooManyChanges() error {
	return &sallyport.Problem{Kind: sallyport.ErrExhausted, Fact: "too many changes of this session at once", Hint: "try again in a moment"}
}

func raced(err error) bool {
	return errors.Is(err, sallyport.ErrConflict) || errors.Is(err, sallyport.ErrNotFound)
}

// Prove notes that the user has just proved again who he is.
func (s *Sessions) Prove(ctx context.Context, user, id string) error {
	return s.change(ctx, user, id, func(r *record) { r.Proved, r.Seen = s.now().UTC(), s.now().UTC() })
}

// BeginApp makes a cookie for an application's origin. It ends with the session.
func (s *Sessions) BeginApp(ctx context.Context, user, id, app string) (cookie string, err error) {
	if !validID(id) {
		return "", Gone()
	}
	t := token{owner: ownerOf(user)}
	hex.Decode(t.id[:], []byte(id))
	rand.Read(t.secret[:])
	full := false
	err = s.change(ctx, user, id, func(r *record) {
		_, has := r.Apps[app]
		if full = !has && len(r.Apps) >= maxApps; full {
			return
		}
		if r.Apps == nil {
			r.Apps = map[string][]string{}
		}
		list := append([]string{t.appHash(app)}, r.Apps[app]...)
		r.Apps[app] = list[:min(len(list), maxPerApp)]
	})
	if err != nil {
		return "", err
	}
	if full {
		return "", &sallyport.Problem{Kind: sallyport.ErrExhausted, Fact: "this browser is logged in to too many applications", Hint: "log out and in again"}
	}
	return t.String(), nil
}

// EndApp logs out of one application in one browser. What is not good is not
// told from what has ended.
func (s *Sessions) EndApp(ctx context.Context, cookie, app string) (Session, error) {
	session, err := s.FindApp(ctx, cookie, app)
	if err != nil {
		return Session{}, err
	}
	return session, s.change(ctx, session.User, session.ID, func(r *record) { delete(r.Apps, app) })
}

// List returns a user's sessions, those used last first.
func (s *Sessions) List(ctx context.Context, user string) ([]Session, error) {
	items, _, err := s.store.List(ctx, ownerPrefix(ownerOf(user)))
	if err != nil {
		return nil, err
	}
	var out []Session
	for _, it := range items {
		rec, err := decode(it)
		if err != nil {
			return nil, err
		}
		if rec.User != user || rec.over(s.now()) {
			continue
		}
		out = append(out, rec.session(it.Key[strings.LastIndexByte(it.Key, '/')+1:]))
	}
	slices.SortStableFunc(out, func(a, b Session) int { return b.Seen.Compare(a.Seen) })
	return out, nil
}

// End ends one session of a user.
func (s *Sessions) End(ctx context.Context, user, id string) (Session, error) {
	session, err := s.Of(ctx, user, id)
	if errors.Is(err, sallyport.ErrUnauthorized) {
		return Session{}, &sallyport.Problem{Kind: sallyport.ErrNotFound, Fact: "there is no such session, or not any more"}
	}
	if err != nil {
		return Session{}, err
	}
	_, err = s.store.Apply(ctx, store.Op{Key: sessionKey(ownerOf(user), id), Delete: true, Expect: store.Any})
	return session, err
}

// printable keeps what may be shown, and no more than most bytes of it.
func printable(in string, most int) string {
	out := strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, strings.ToValidUTF8(in[:min(len(in), most)], ""))
	return strings.TrimSpace(out)
}
