package login

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/store"
)

// Policy says whether a second factor is asked for.
type Policy string

const (
	Off      Policy = "off"      // never
	Optional Policy = "optional" // from who has one
	TOTP     Policy = "totp"     // from everybody
)

// Sealer encrypts what must not stand in the store in clear; package ca has one.
type Sealer interface {
	Seal(name string, plain []byte) ([]byte, error)
	Open(name string, sealed []byte) ([]byte, error)
}

// Config says what logins need. The limits in the package comment are fixed.
type Config struct {
	Store        store.Store
	Sealer       Sealer
	Issuer       string // shown by apps for one-time codes: the cluster's name
	SecondFactor Policy // default optional
	Now          func() time.Time
	Cost         Cost
}

// Login knows the local users. All methods may be called concurrently.
type Login struct {
	store  store.Store
	sealer Sealer
	issuer string
	policy Policy
	now    func() time.Time
	hasher *hasher
	tries  *tries
}

const (
	hashesAtOnce     = 2
	hashesWaiting    = 32
	hashesPerSource  = 16
	hashPatience     = 10 * time.Second
	wrongPerPair     = 5
	wrongPerSource   = 30
	wrongCodesPer    = 5 // per user and per source
	wrongGuesses     = 5 // per user and what is guessed
	maxCodeLength    = 16
	maxLoginNameSize = 256
)

// New checks the configuration.
func New(cfg Config) (*Login, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.SecondFactor == "" {
		cfg.SecondFactor = Optional
	}
	if p := cfg.SecondFactor; p != Off && p != Optional && p != TOTP {
		return nil, &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: fmt.Sprintf("second factor %q is not supported", p),
			Hint: "use off, optional or totp"}
	}
	cost := cfg.Cost.orDefault()
	if !cost.valid() {
		return nil, invalid("cost of password hashes is out of bounds")
	}
	return &Login{
		store: cfg.Store, sealer: cfg.Sealer, issuer: cfg.Issuer, policy: cfg.SecondFactor, now: cfg.Now,
		hasher: &hasher{cost: cost, gate: newGate(hashesAtOnce, hashesWaiting, hashesPerSource, hashPatience)},
		tries:  &tries{store: cfg.Store, now: cfg.Now},
	}, nil
}

// SecondFactor is the policy in force.
func (l *Login) SecondFactor() Policy { return l.policy }

// Attempt is one try to log in.
type Attempt struct {
	User     string
	Password string
	Code     string
	Addr     netip.Addr // where it comes from
}

// attempt is an Attempt on its way.
type attempt struct {
	Attempt
	source   string
	rec      record // zero when there is no such user, or it has no password
	password bool   // the password is right
}

// Login decides about one try. A refusal is of kind ErrUnauthorized, or of
// ErrExhausted when there were too many; neither says what was wrong, unless
// the password was right.
func (l *Login) Login(ctx context.Context, in Attempt) (User, error) {
	if !plausible(in) {
		return User{}, wrong()
	}
	a := &attempt{Attempt: in, source: sourceOf(in.Addr)}
	passwords := []limit{
		{"pair", a.source + "\x00" + strings.ToLower(in.User), wrongPerPair},
		{"source", a.source, wrongPerSource},
	}
	if ok, err := l.tries.enter(ctx, passwords...); err != nil || !ok {
		return User{}, orTooMany(err)
	}
	if err := l.checkPassword(ctx, a); err != nil {
		return User{}, err
	}
	codeOK, err := l.checkCode(ctx, a)
	if err != nil {
		return User{}, err
	}
	if !a.password || !codeOK {
		return User{}, wrong()
	}
	if err := l.tries.takeBack(ctx, passwords...); err != nil {
		return User{}, err
	}
	if l.policy == TOTP && a.rec.TOTP == nil {
		return User{}, sallyport.Denied("this cluster asks for a one-time code and you have no device",
			"ask an administrator for a reset link (sallyctl users reset)")
	}
	return l.current(ctx, a)
}

// current reads the user again: what was reset or removed while the password
// was hashed does not log in.
func (l *Login) current(ctx context.Context, a *attempt) (User, error) {
	rec, it, err := l.get(ctx, a.User)
	if errors.Is(err, sallyport.ErrNotFound) || err == nil && rec.Password != a.rec.Password {
		return User{}, wrong()
	}
	if err != nil {
		return User{}, err
	}
	return rec.user(it.Revision), nil
}

// plausible refuses, before any work and for all users alike, what nobody's
// credentials can be.
func plausible(in Attempt) bool {
	return in.User != "" && len(in.User) <= maxLoginNameSize && len(in.Code) <= maxCodeLength && checkPassword(in.Password) == nil
}

// checkPassword hashes once, whether there is such a user or not.
func (l *Login) checkPassword(ctx context.Context, a *attempt) error {
	key := a.User
	if !validName(key) {
		key = "-" // the same read, and nobody has this name
	}
	it, err := l.store.Get(ctx, userKey(key))
	if err != nil && !errors.Is(err, sallyport.ErrNotFound) {
		return err
	}
	if err == nil {
		rec, err := decode(it)
		if err != nil {
			return err
		}
		if rec.Name == a.User && rec.Password != "" {
			a.rec = rec
		}
	}
	a.password, err = l.hasher.check(ctx, a.source, a.Password, a.rec.Password)
	return err
}

// checkCode judges the second factor. Who did not give the right password goes
// the same way against a subject of its own, so that the way tells nothing.
func (l *Login) checkCode(ctx context.Context, a *attempt) (bool, error) {
	if l.policy == Off || a.password && a.rec.TOTP == nil {
		return true, nil
	}
	if a.Code == "" {
		return false, nil // costs no try: programs may ask for the code only then
	}
	subject := a.User
	if !a.password {
		subject = "\x00" + a.source
	}
	limits := []limit{{"code-user", strings.ToLower(subject), wrongCodesPer}, {"code-source", a.source, wrongCodesPer}}
	if ok, err := l.tries.enter(ctx, limits...); err != nil || !ok {
		return false, orTooMany(err)
	}
	secret := make([]byte, totpSecretSize)
	if a.password {
		var err error
		if secret, err = l.sealer.Open(secretName(a.rec.Name), a.rec.TOTP.Secret); err != nil {
			return false, err
		}
	}
	step, ok := matchCode(secret, a.Code, l.now())
	if !ok || !a.password {
		return false, nil
	}
	if used, err := l.useStep(ctx, a.rec.Name, step); err != nil || !used {
		return false, err
	}
	return true, l.tries.takeBack(ctx, limits...)
}

// wrong is the one answer to whatever was wrong.
func wrong() error {
	return &sallyport.Problem{Kind: sallyport.ErrUnauthorized, Fact: "wrong user name, password or one-time code",
		Hint: "a one-time code is good once; wait for the next"}
}

func orTooMany(err error) error {
	if err != nil {
		return err
	}
	return &sallyport.Problem{Kind: sallyport.ErrExhausted, Fact: "too many wrong tries", Hint: "wait five minutes and try again"}
}
