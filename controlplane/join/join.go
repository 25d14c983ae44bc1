// Package join keeps the tokens by which hosts join the cluster, so that a host
// gets its certificate only from who was given a token for its kind.
//
// A token is a secret that is shown once. The store holds its hash, so a
// stolen backup joins nobody. A token says which kinds of host it is for, what
// an agent that joins by it may serve (Allow), and how long it is good.
//
// A single-use token is used up by compare-and-swap and bound to the first
// key that came with it: the same host may repeat a call whose answer it did
// not get, another one may not.
package join

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/uuid"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/store"
)

const (
	DefaultTTL = 30 * time.Minute
	MaxTTL     = 48 * time.Hour

	secretSize = 20 // bytes; 6 characters of 40 are shown, 136 bits remain
	shown      = 6  // characters of a secret that a list shows

	// A secret that somebody chose cannot be measured, only its length.
	minChosen = 32
	maxChosen = 128

	maxNames  = 64
	maxLabels = 64
	maxText   = 256
)

// Allow bounds what an agent may serve. Package inventory enforces it.
type Allow struct {
	Kinds  []sallyport.Kind  `json:"kinds,omitempty"`  // empty: all
	Names  []string          `json:"names,omitempty"`  // globs as in path.Match; empty: all
	Labels map[string]string `json:"labels,omitempty"` // every resource must carry these
}

// Token is what is known of a token after its secret was shown.
type Token struct {
	Name      string // first characters and a hash; "chosen-" and a hash when somebody chose it
	Roles     []sallyport.IdentityKind
	Allow     Allow
	Labels    map[string]string // the token's own, for people
	Created   time.Time
	Expires   time.Time
	SingleUse bool
	UsedBy    string // id of the host that used it up
}

// Spec asks for a token.
type Spec struct {
	Secret    string                   // empty: random
	Roles     []sallyport.IdentityKind // agent, gateway
	Allow     Allow
	Labels    map[string]string
	TTL       time.Duration // 0: DefaultTTL
	SingleUse bool

	// Record, when set, is called with the token before it is stored. Its
	// error ends the creation.
	Record func(Token) error
}

// Tokens keeps them. All methods may be called concurrently.
type Tokens struct {
	store store.Store
	now   func() time.Time
}

// New needs the store; now may be nil for time.Now.
func New(s store.Store, now func() time.Time) *Tokens {
	if now == nil {
		now = time.Now
	}
	return &Tokens{store: s, now: now}
}

// record is how a token stands in the store, by the hash of its secret.
type record struct {
	Version   int                      `json:"version"`
	Name      string                   `json:"name"`
	Roles     []sallyport.IdentityKind `json:"roles"`
	Allow     Allow                    `json:"allow"`
	Labels    map[string]string        `json:"labels,omitempty"`
	Created   time.Time                `json:"created"`
	Expires   time.Time                `json:"expires"`
	SingleUse bool                     `json:"single_use,omitempty"`
	UsedBy    string                   `json:"used_by,omitempty"`  // host id
	UsedKey   string                   `json:"used_key,omitempty"` // hash of its public key
}

const recordVersion = 1

// hash has a prefix of its own: no other secret of ours hashes to a token.
func hash(secret string) string {
	sum := sha256.Sum256([]byte("sallyport-join-token\x00" + secret))
	return hex.EncodeToString(sum[:])
}

func key(hash string) string { return "tokens/" + hash }

// Create makes a token and returns its secret, this once.
func (t *Tokens) Create(ctx context.Context, s Spec) (secret string, _ Token, err error) {
	if s.TTL == 0 {
		s.TTL = DefaultTTL
	}
	if err := check(s); err != nil {
		return "", Token{}, err
	}
	rec := record{
		Version: recordVersion, Roles: s.Roles, Allow: s.Allow, Labels: s.Labels, SingleUse: s.SingleUse,
		Created: t.now().UTC().Truncate(time.Second), Expires: t.now().Add(s.TTL).UTC().Truncate(time.Second),
	}
	secret = s.Secret
	if secret == "" {
		b := make([]byte, secretSize)
		rand.Read(b)
		secret = hex.EncodeToString(b)
		rec.Name = secret[:shown] + "-" + hash(secret)[:8]
	} else {
		rec.Name = "chosen-" + hash(secret)[:8]
	}
	if s.Record != nil {
		if err := s.Record(rec.token()); err != nil {
			return "", Token{}, err
		}
	}
	value, err := json.Marshal(rec)
	if err != nil {
		return "", Token{}, err
	}
	_, err = t.store.Apply(ctx, store.Op{Key: key(hash(secret)), Value: value, Expect: store.Absent})
	if errors.Is(err, sallyport.ErrExists) {
		return "", Token{}, &sallyport.Problem{Kind: sallyport.ErrExists, Fact: "this token exists already", Hint: "remove it first, or choose another"}
	}
	if err != nil {
		return "", Token{}, err
	}
	return secret, rec.token(), nil
}

// List returns all tokens, the oldest first, and removes those that ended.
func (t *Tokens) List(ctx context.Context) ([]Token, error) {
	items, _, err := t.store.List(ctx, "tokens")
	if err != nil {
		return nil, err
	}
	var out []Token
	for _, it := range items {
		rec, err := decode(it)
		if err != nil {
			return nil, err
		}
		if t.ended(rec) {
			_, err := t.store.Apply(ctx, store.Op{Key: it.Key, Delete: true, Expect: it.Revision})
			if err != nil && !raced(err) {
				return nil, err
			}
			continue
		}
		out = append(out, rec.token())
	}
	slices.SortStableFunc(out, func(a, b Token) int { return a.Created.Compare(b.Created) })
	return out, nil
}

// Delete removes a token by its name or its secret.
func (t *Tokens) Delete(ctx context.Context, nameOrSecret string) error {
	it, _, err := t.find(ctx, nameOrSecret)
	if err != nil {
		return err
	}
	_, err = t.store.Apply(ctx, store.Op{Key: it.Key, Delete: true, Expect: store.Any})
	return err
}

// Find returns a token by its name or its secret.
func (t *Tokens) Find(ctx context.Context, nameOrSecret string) (Token, error) {
	_, rec, err := t.find(ctx, nameOrSecret)
	return rec.token(), err
}

func (t *Tokens) find(ctx context.Context, nameOrSecret string) (store.Item, record, error) {
	items, _, err := t.store.List(ctx, "tokens")
	if err != nil {
		return store.Item{}, record{}, err
	}
	want := key(hash(nameOrSecret))
	for _, it := range items {
		rec, err := decode(it)
		if err != nil {
			return store.Item{}, record{}, err
		}
		if it.Key == want || rec.Name == nameOrSecret {
			return it, rec, nil
		}
	}
	return store.Item{}, record{}, &sallyport.Problem{Kind: sallyport.ErrNotFound, Fact: "no such token", Hint: "list them with sallyctl tokens ls"}
}

// Use is a host that wants to join.
type Use struct {
	Secret string
	Kind   sallyport.IdentityKind // agent or gateway
	HostID string                 // UUID; empty: a new one
	Key    []byte                 // the host's TLS public key, PKIX DER
}

// Grant is what a token gives to a host. It goes into the host's record.
type Grant struct {
	HostID string
	Kind   sallyport.IdentityKind
	Allow  Allow
	Token  string // name, for the audit log
}

// maxRaces is how often a change is repeated when others were faster.
const maxRaces = 16

// Consume uses a token. All tokens that are not good get the same answer.
func (t *Tokens) Consume(ctx context.Context, u Use) (Grant, error) {
	if len(u.Secret) < minChosen || len(u.Secret) > maxChosen || len(u.Key) == 0 || !validKind(u.Kind) {
		return Grant{}, refused()
	}
	if id, err := uuid.Parse(u.HostID); u.HostID != "" && (err != nil || id.String() != u.HostID) {
		return Grant{}, &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: "host id is not a UUID in its plain form"}
	}
	for range maxRaces {
		g, err := t.consume(ctx, u)
		if !raced(err) {
			return g, err
		}
	}
	return Grant{}, &sallyport.Problem{Kind: sallyport.ErrExhausted, Fact: "too many hosts join by this token at once", Hint: "try again"}
}

func (t *Tokens) consume(ctx context.Context, u Use) (Grant, error) {
	it, err := t.store.Get(ctx, key(hash(u.Secret)))
	if errors.Is(err, sallyport.ErrNotFound) {
		return Grant{}, refused()
	}
	if err != nil {
		return Grant{}, err
	}
	rec, err := decode(it)
	if err != nil {
		return Grant{}, err
	}
	if t.ended(rec) || !slices.Contains(rec.Roles, u.Kind) {
		return Grant{}, refused()
	}
	if u.HostID == "" {
		u.HostID = uuid.NewString()
	}
	g := Grant{HostID: u.HostID, Kind: u.Kind, Allow: rec.Allow, Token: rec.Name}
	if !rec.SingleUse {
		return g, nil
	}
	sum := sha256.Sum256(u.Key)
	keyHash := string(u.Kind) + ":" + hex.EncodeToString(sum[:])
	if rec.UsedBy != "" {
		if rec.UsedKey != keyHash {
			return Grant{}, refused()
		}
		g.HostID = rec.UsedBy
		return g, nil
	}
	rec.UsedBy, rec.UsedKey = g.HostID, keyHash
	value, err := store.Keep(it.Value, rec)
	if err != nil {
		return Grant{}, err
	}
	_, err = t.store.Apply(ctx, store.Op{Key: it.Key, Value: value, Expect: it.Revision})
	return g, err
}

func (t *Tokens) ended(r record) bool { return !t.now().Before(r.Expires) }

func refused() error {
	return &sallyport.Problem{Kind: sallyport.ErrUnauthorized, Fact: "this token is not good, or not for this",
		Hint: "tokens are for one kind of host, end, and may be for one use; make a new one with sallyctl tokens add"}
}

func raced(err error) bool {
	return errors.Is(err, sallyport.ErrConflict) || errors.Is(err, sallyport.ErrNotFound)
}

func decode(it store.Item) (record, error) {
	var rec record
	if err := json.Unmarshal(it.Value, &rec); err != nil {
		return record{}, fmt.Errorf("join token: %w", err)
	}
	if rec.Version != recordVersion {
		return record{}, fmt.Errorf("join token: version %d is not known", rec.Version)
	}
	return rec, nil
}

func (r record) token() Token {
	return Token{Name: r.Name, Roles: r.Roles, Allow: r.Allow, Labels: r.Labels, Created: r.Created, Expires: r.Expires,
		SingleUse: r.SingleUse, UsedBy: r.UsedBy}
}

func validKind(k sallyport.IdentityKind) bool {
	return k == sallyport.KindAgent || k == sallyport.KindGateway
}

func check(s Spec) error {
	if s.TTL < time.Minute || s.TTL > MaxTTL {
		return invalid(fmt.Sprintf("a token for %v: want %v to %v", s.TTL, time.Minute, MaxTTL))
	}
	if len(s.Roles) == 0 {
		return invalid("a token needs a role: agent or gateway")
	}
	for i, k := range s.Roles {
		if !validKind(k) || slices.Contains(s.Roles[:i], k) {
			return invalid(fmt.Sprintf("token role %q: want agent or gateway, each once", trim(string(k))))
		}
	}
	if err := checkSecret(s.Secret); err != nil {
		return err
	}
	if err := checkLabels(s.Labels); err != nil {
		return err
	}
	return checkAllow(s.Allow)
}

func checkSecret(s string) error {
	if s == "" {
		return nil
	}
	if len(s) < minChosen || len(s) > maxChosen {
		return invalid(fmt.Sprintf("a chosen token: want %d to %d characters, random ones", minChosen, maxChosen))
	}
	if strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return invalid("a chosen token: want printable ASCII without blanks")
	}
	return nil
}

func checkAllow(a Allow) error {
	for i, k := range a.Kinds {
		switch k {
		case sallyport.KindNode, sallyport.KindDatabase, sallyport.KindKube, sallyport.KindApp, sallyport.KindTCP, sallyport.KindDesktop:
		default:
			return invalid(fmt.Sprintf("kind %q is not known", trim(string(k))))
		}
		if slices.Contains(a.Kinds[:i], k) {
			return invalid("kind " + string(k) + " is given twice")
		}
	}
	if len(a.Names) > maxNames {
		return invalid(fmt.Sprintf("more than %d names", maxNames))
	}
	for _, n := range a.Names {
		if _, err := path.Match(n, "x"); err != nil || n == "" || !text(n) {
			return invalid(fmt.Sprintf("name %q is not a pattern", trim(n)))
		}
	}
	return checkLabels(a.Labels)
}

func checkLabels(m map[string]string) error {
	if len(m) > maxLabels {
		return invalid(fmt.Sprintf("more than %d labels", maxLabels))
	}
	for k, v := range m {
		if k == "" || !text(k) || !text(v) {
			return invalid(fmt.Sprintf("label %q is empty, too long or not printable", trim(k)))
		}
	}
	return nil
}

func text(s string) bool {
	return len(s) <= maxText && utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl)
}

func trim(s string) string {
	if len(s) > 64 {
		return s[:64]
	}
	return s
}

func invalid(fact string) error {
	return &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: fact}
}
