package login

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/store"
)

// User is a local user, without what proves who it is.
type User struct {
	Name    string
	Roles   []string
	Traits  map[string][]string
	Created time.Time
	Claimed bool   // has a password
	MFA     string // id of the one-time code device; "" without

	// Credential changes with the password and the device, and tells nothing of
	// them: what was begun by the old ones can be told from what is begun by the
	// new. It is "" for who is not claimed.
	Credential string

	// Revision is that of the record. An update gives the one it was based on,
	// or store.Any.
	Revision int64
}

// record is how a user stands in the store.
type record struct {
	Version  int                 `json:"version"`
	Name     string              `json:"name"`
	Roles    []string            `json:"roles"`
	Traits   map[string][]string `json:"traits,omitempty"`
	Created  time.Time           `json:"created"`
	Password string              `json:"password,omitempty"` // PHC string
	TOTP     *device             `json:"totp,omitempty"`
	Link     string              `json:"link,omitempty"` // hash of the one token that is good

	stored []byte // as it was read; see store.Keep
}

// device is something that makes one-time codes.
type device struct {
	ID     string `json:"id"`
	Secret []byte `json:"secret"` // sealed
}

const recordVersion = 1

// Bounds of what is stored about a user. Together they fit a certificate.
const (
	maxName       = 64
	maxRoles      = 128
	maxRole       = 128
	maxTraits     = 64
	maxTraitName  = 128
	maxTraitValue = 1024
	maxTraitBytes = 32 << 10
)

func userKey(name string) string { return "users/" + strings.ToLower(name) }

// CreateUser makes a user without a password, and the link by which the person
// claims it. ttl 0 means InviteTTL.
func (l *Login) CreateUser(ctx context.Context, u User, ttl time.Duration) (Link, error) {
	if err := checkUser(u); err != nil {
		return Link{}, err
	}
	ttl, err := linkTTL(ttl, InviteTTL, MaxInviteTTL)
	if err != nil {
		return Link{}, err
	}
	rec := record{Version: recordVersion, Name: u.Name, Roles: u.Roles, Traits: u.Traits, Created: l.now().UTC().Truncate(time.Second)}
	link, err := l.putWithLink(ctx, rec, store.Absent, ttl)
	if errors.Is(err, sallyport.ErrExists) {
		return Link{}, &sallyport.Problem{Kind: sallyport.ErrExists, Fact: "user " + u.Name + " exists already",
			Hint: "names that differ only in case are the same user"}
	}
	return link, err
}

// ResetUser takes the user's password and device away at once, and makes a
// link for new ones. ttl 0 means ResetTTL.
func (l *Login) ResetUser(ctx context.Context, name string, ttl time.Duration) (Link, error) {
	ttl, err := linkTTL(ttl, ResetTTL, MaxResetTTL)
	if err != nil {
		return Link{}, err
	}
	rec, it, err := l.get(ctx, name)
	if err != nil {
		return Link{}, err
	}
	rec.Password, rec.TOTP = "", nil
	return l.putWithLink(ctx, rec, it.Revision, ttl)
}

// UpdateUser sets roles and traits.
func (l *Login) UpdateUser(ctx context.Context, u User) (User, error) {
	if err := checkUser(u); err != nil {
		return User{}, err
	}
	rec, it, err := l.get(ctx, u.Name)
	if err != nil {
		return User{}, err
	}
	if u.Revision != store.Any && u.Revision != it.Revision {
		return User{}, &sallyport.Problem{Kind: sallyport.ErrConflict, Fact: "user " + u.Name + " was changed meanwhile",
			Hint: "read it again and repeat the change"}
	}
	rec.Roles, rec.Traits = u.Roles, u.Traits
	rev, err := l.put(ctx, rec, it.Revision)
	if err != nil {
		return User{}, err
	}
	return rec.user(rev), nil
}

// DeleteUser removes the user and the link that would claim it.
func (l *Login) DeleteUser(ctx context.Context, name string) error {
	rec, it, err := l.get(ctx, name)
	if err != nil {
		return err
	}
	ops := []store.Op{
		{Key: it.Key, Delete: true, Expect: it.Revision},
		{Key: codeKey(name), Delete: true, Expect: store.Any},
	}
	if rec.Link != "" {
		ops = append(ops, store.Op{Key: linkKey(rec.Link), Delete: true, Expect: store.Any})
	}
	_, err = l.store.Apply(ctx, ops...)
	return err
}

// GetUser returns one user.
func (l *Login) GetUser(ctx context.Context, name string) (User, error) {
	rec, it, err := l.get(ctx, name)
	if err != nil {
		return User{}, err
	}
	return rec.user(it.Revision), nil
}

// ListUsers returns all users in the order of their names in lower case.
func (l *Login) ListUsers(ctx context.Context) ([]User, error) {
	items, _, err := l.store.List(ctx, "users")
	if err != nil {
		return nil, err
	}
	var out []User
	for _, it := range items {
		rec, err := decode(it)
		if err != nil {
			return nil, err
		}
		out = append(out, rec.user(it.Revision))
	}
	return out, nil
}

// get reads a user by its exact name.
func (l *Login) get(ctx context.Context, name string) (record, store.Item, error) {
	if !validName(name) {
		return record{}, store.Item{}, noUser(name)
	}
	it, err := l.store.Get(ctx, userKey(name))
	if errors.Is(err, sallyport.ErrNotFound) {
		return record{}, store.Item{}, noUser(name)
	}
	if err != nil {
		return record{}, store.Item{}, err
	}
	rec, err := decode(it)
	if err != nil {
		return record{}, store.Item{}, err
	}
	if rec.Name != name {
		return record{}, store.Item{}, noUser(name)
	}
	return rec, it, nil
}

func noUser(name string) error {
	if !validName(name) {
		name = "of that name"
	}
	return &sallyport.Problem{Kind: sallyport.ErrNotFound, Fact: "no user " + name}
}

func (l *Login) put(ctx context.Context, rec record, expect int64) (int64, error) {
	value, err := store.Keep(rec.stored, rec)
	if err != nil {
		return 0, err
	}
	return l.store.Apply(ctx, store.Op{Key: userKey(rec.Name), Value: value, Expect: expect})
}

func decode(it store.Item) (record, error) {
	var rec record
	if err := json.Unmarshal(it.Value, &rec); err != nil {
		return record{}, fmt.Errorf("%s: %w", it.Key, err)
	}
	if rec.Version != recordVersion {
		return record{}, fmt.Errorf("%s: version %d is not known", it.Key, rec.Version)
	}
	rec.stored = it.Value
	return rec, nil
}

func (r record) user(revision int64) User {
	u := User{Name: r.Name, Roles: r.Roles, Traits: r.Traits, Created: r.Created, Claimed: r.Password != "", Revision: revision}
	if r.TOTP != nil {
		u.MFA = r.TOTP.ID
	}
	if u.Claimed {
		sum := sha256.Sum256([]byte("sallyport-credential\x00" + r.Password + "\x00" + u.MFA))
		u.Credential = hex.EncodeToString(sum[:])
	}
	return u
}

// validName takes what can stand in a store key, a SPIFFE id and a link alike.
func validName(s string) bool {
	if s == "" || len(s) > maxName || s == "." || s == ".." || s[0] == '-' {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if (c|0x20 < 'a' || c|0x20 > 'z') && (c < '0' || c > '9') && !strings.ContainsRune("._@+=-", rune(c)) {
			return false
		}
	}
	return true
}

func checkUser(u User) error {
	if !validName(u.Name) {
		return invalid(fmt.Sprintf("user name: want 1 to %d letters, digits and . _ @ + = -, not beginning with -", maxName))
	}
	if len(u.Roles) == 0 || len(u.Roles) > maxRoles {
		return invalid(fmt.Sprintf("user %s: want 1 to %d roles", u.Name, maxRoles))
	}
	for i, r := range u.Roles {
		if !text(r, maxRole) || r == "" || slices.Contains(u.Roles[:i], r) {
			return invalid(fmt.Sprintf("user %s: role %d is empty, given twice, too long or not printable", u.Name, i+1))
		}
	}
	return checkTraits(u)
}

func checkTraits(u User) error {
	if len(u.Traits) > maxTraits {
		return invalid(fmt.Sprintf("user %s: more than %d traits", u.Name, maxTraits))
	}
	sum := 0
	for name, values := range u.Traits {
		if name == "" || !text(name, maxTraitName) {
			return invalid(fmt.Sprintf("user %s: a trait's name is empty, too long or not printable", u.Name))
		}
		for _, v := range values {
			if !text(v, maxTraitValue) {
				return invalid(fmt.Sprintf("user %s: a value of trait %s is too long or not printable", u.Name, name))
			}
			sum += len(v) + 8
		}
		sum += len(name) + 8
	}
	if sum > maxTraitBytes {
		return invalid(fmt.Sprintf("user %s: traits of more than %d bytes", u.Name, maxTraitBytes))
	}
	return nil
}

func text(s string, most int) bool {
	return len(s) <= most && utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl)
}

func invalid(fact string) error {
	return &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: fact}
}
