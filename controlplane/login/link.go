package login

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/pquerna/otp"
	"github.com/pquerna/otp/totp"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/store"
)

// How long links are good.
const (
	InviteTTL    = time.Hour
	MaxInviteTTL = 48 * time.Hour
	ResetTTL     = 8 * time.Hour
	MaxResetTTL  = 24 * time.Hour

	tokenSize = 32 // bytes
)

// Link is what an administrator passes on. Token is a secret; it is shown once.
type Link struct {
	User    string
	Token   string
	Expires time.Time
}

// linkRecord is how a link stands in the store, by the hash of its token.
type linkRecord struct {
	User    string    `json:"user"`
	Expires time.Time `json:"expires"`
	TOTP    device    `json:"totp"` // offered with this link, not yet anybody's
}

// Offer is what the page of a link shows: whose account it is, and a device to
// set up. It is the same each time that the page is loaded.
type Offer struct {
	User         string
	Expires      time.Time
	SecondFactor Policy
	Secret       string // base32, to type
	URL          string // otpauth://, for a QR code
}

// Claim is what the person sends.
type Claim struct {
	Token    string
	Password string
	Code     string // of the offered device; "" for none where the policy allows it

	// Record, when set, is called once, when all has been checked and before
	// anything changes. Its error ends the claim, and the link stays good.
	Record func(User) error
}

func linkKey(hash string) string { return "links/" + hash }

func tokenHash(token string) string {
	sum := sha256.Sum256([]byte("sallyport-claim-link\x00" + token))
	return hex.EncodeToString(sum[:])
}

func linkTTL(ttl, usual, most time.Duration) (time.Duration, error) {
	switch {
	case ttl == 0:
		return usual, nil
	case ttl < time.Minute || ttl > most:
		return 0, invalid(fmt.Sprintf("a link for %v: want %v to %v", ttl, time.Minute, most))
	}
	return ttl, nil
}

// putWithLink writes the user with a new link, which takes the place of an older one.
func (l *Login) putWithLink(ctx context.Context, rec record, expect int64, ttl time.Duration) (Link, error) {
	b := make([]byte, tokenSize)
	rand.Read(b)
	link := Link{User: rec.Name, Token: base64.RawURLEncoding.EncodeToString(b), Expires: l.now().Add(ttl).UTC().Truncate(time.Second)}
	old, hash := rec.Link, tokenHash(link.Token)
	rec.Link = hash

	secret := make([]byte, totpSecretSize)
	rand.Read(secret)
	sealed, err := l.sealer.Seal(linkKey(hash), secret)
	if err != nil {
		return Link{}, err
	}
	linkValue, err := json.Marshal(linkRecord{User: rec.Name, Expires: link.Expires, TOTP: device{ID: uuid.NewString(), Secret: sealed}})
	if err != nil {
		return Link{}, err
	}
	userValue, err := store.Keep(rec.stored, rec)
	if err != nil {
		return Link{}, err
	}
	ops := []store.Op{
		{Key: userKey(rec.Name), Value: userValue, Expect: expect},
		{Key: linkKey(hash), Value: linkValue, Expect: store.Absent},
	}
	if old != "" {
		ops = append(ops, store.Op{Key: linkKey(old), Delete: true, Expect: store.Any})
	}
	_, err = l.store.Apply(ctx, ops...)
	return link, err
}

// Offer tells what a link is for.
func (l *Login) Offer(ctx context.Context, token string) (Offer, error) {
	c, err := l.openLink(ctx, token)
	if err != nil {
		return Offer{}, err
	}
	key, err := totp.Generate(totp.GenerateOpts{Issuer: l.issuer, AccountName: c.rec.Name, Secret: c.secret, Algorithm: otp.AlgorithmSHA1})
	if err != nil {
		return Offer{}, err
	}
	return Offer{User: c.rec.Name, Expires: c.link.Expires, SecondFactor: l.policy, Secret: key.Secret(), URL: key.URL()}, nil
}

// Claim sets the password and the device, and uses the link up: of several
// claims of one link one wins. The code of the step before the present one is
// taken too, which leaves the present one for the login that follows.
func (l *Login) Claim(ctx context.Context, claim Claim) (User, error) {
	c, err := l.openLink(ctx, claim.Token)
	if err != nil {
		return User{}, err
	}
	if err := checkPassword(claim.Password); err != nil {
		return User{}, err
	}
	step, withDevice, err := l.checkOffered(c, claim.Code)
	if err != nil {
		return User{}, err
	}
	password, err := l.hasher.make(ctx, claim.Password)
	if err != nil {
		return User{}, err
	}
	if err := claim.record(c, withDevice); err != nil {
		return User{}, err
	}
	for range maxRaces {
		u, err := l.useLink(ctx, c, password, withDevice, step)
		if !errors.Is(err, sallyport.ErrConflict) && !errors.Is(err, sallyport.ErrNotFound) {
			return u, err
		}
		// The user's roles were changed meanwhile, or the link is gone.
		if c, err = l.openLink(ctx, claim.Token); err != nil {
			return User{}, err
		}
	}
	return User{}, busy()
}

func (claim Claim) record(c *claimed, withDevice bool) error {
	if claim.Record == nil {
		return nil
	}
	u := c.rec.user(c.userItem.Revision)
	u.Claimed, u.MFA = true, ""
	if withDevice {
		u.MFA = c.link.TOTP.ID
	}
	return claim.Record(u)
}

// useLink writes the user as claimed and removes the link, both or none.
func (l *Login) useLink(ctx context.Context, c *claimed, password string, withDevice bool, step int64) (User, error) {
	rec := c.rec
	rec.Password, rec.TOTP, rec.Link = password, nil, ""
	ops := []store.Op{{Key: c.linkItem.Key, Delete: true, Expect: c.linkItem.Revision}}
	if withDevice {
		sealed, err := l.sealer.Seal(secretName(rec.Name), c.secret)
		if err != nil {
			return User{}, err
		}
		rec.TOTP = &device{ID: c.link.TOTP.ID, Secret: sealed}
		ops = append(ops, stepOp(rec.Name, step, store.Any))
	}
	value, err := store.Keep(rec.stored, rec)
	if err != nil {
		return User{}, err
	}
	ops = append(ops, store.Op{Key: c.userItem.Key, Value: value, Expect: c.userItem.Revision})
	rev, err := l.store.Apply(ctx, ops...)
	return rec.user(rev), err
}

// checkOffered says whether the claim sets up the offered device.
func (l *Login) checkOffered(c *claimed, code string) (step int64, with bool, err error) {
	if l.policy == Off || l.policy == Optional && code == "" {
		return 0, false, nil
	}
	if step, ok := matchCode(c.secret, code, l.now()); ok {
		return step, true, nil
	}
	return 0, false, &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: "the one-time code is not right",
		Hint: "add the shown secret to your app, then type the code that it shows now; check that your device's clock is right"}
}

// claimed is a link that is good, and all that belongs to it.
type claimed struct {
	link     linkRecord
	linkItem store.Item
	rec      record
	userItem store.Item
	secret   []byte
}

// openLink finds a link by its token. All links that are not good are the same.
func (l *Login) openLink(ctx context.Context, token string) (*claimed, error) {
	if len(token) != base64.RawURLEncoding.EncodedLen(tokenSize) {
		return nil, badLink()
	}
	hash := tokenHash(token)
	it, err := l.store.Get(ctx, linkKey(hash))
	if errors.Is(err, sallyport.ErrNotFound) {
		return nil, badLink()
	}
	if err != nil {
		return nil, err
	}
	c := &claimed{linkItem: it}
	if err := json.Unmarshal(it.Value, &c.link); err != nil {
		return nil, fmt.Errorf("%s: %w", it.Key, err)
	}
	if !l.now().Before(c.link.Expires) {
		return nil, badLink()
	}
	c.rec, c.userItem, err = l.get(ctx, c.link.User)
	if errors.Is(err, sallyport.ErrNotFound) || err == nil && c.rec.Link != hash {
		return nil, badLink()
	}
	if err != nil {
		return nil, err
	}
	c.secret, err = l.sealer.Open(linkKey(hash), c.link.TOTP.Secret)
	return c, err
}

func badLink() error {
	return &sallyport.Problem{Kind: sallyport.ErrNotFound, Fact: "this link is not good, or not any more",
		Hint: "links are good once and for a limited time; ask an administrator for a new one"}
}
