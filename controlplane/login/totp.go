package login

import (
	"context"
	"crypto/subtle"
	"encoding/base32"
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/pquerna/otp/hotp"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/store"
)

const (
	totpSecretSize = 20               // bytes: RFC 4226, section 4, R6 recommends 160 bits
	totpPeriod     = 30 * time.Second // RFC 6238, section 4.1
	totpSkew       = 1                // steps before and after the present one
)

// Code is the code of a device at a time; secret is base32. It is for programs
// that hold the secret: the demo, tests.
func Code(secret string, at time.Time) (string, error) {
	return hotp.GenerateCode(secret, uint64(stepAt(at)))
}

func stepAt(t time.Time) int64 { return t.Unix() / int64(totpPeriod/time.Second) }

// matchCode finds the step of which this is the code. It always compares with
// all steps of the window.
func matchCode(secret []byte, code string, now time.Time) (step int64, ok bool) {
	b32 := base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(secret)
	code = strings.ReplaceAll(code, " ", "")
	for s := stepAt(now) - totpSkew; s <= stepAt(now)+totpSkew; s++ {
		want, err := hotp.GenerateCode(b32, uint64(s))
		if err == nil && subtle.ConstantTimeCompare([]byte(want), []byte(code)) == 1 {
			step, ok = s, true
		}
	}
	return step, ok
}

func secretName(user string) string { return userKey(user) + "/totp" }

func codeKey(user string) string { return "codes/" + strings.ToLower(user) }

func stepOp(user string, step int64, expect int64) store.Op {
	return store.Op{Key: codeKey(user), Value: strconv.AppendInt(nil, step, 10), Expect: expect}
}

// lastStep is the newest step of which a code was taken.
func (l *Login) lastStep(ctx context.Context, user string) (step, revision int64, err error) {
	it, err := l.store.Get(ctx, codeKey(user))
	if errors.Is(err, sallyport.ErrNotFound) {
		return -1, store.Absent, nil
	}
	if err != nil {
		return 0, 0, err
	}
	step, err = strconv.ParseInt(string(it.Value), 10, 64)
	return step, it.Revision, err
}

// useStep takes the step for this login. Each step is taken once, in order,
// whatever the clock does and however many processes try; the loser is told no.
func (l *Login) useStep(ctx context.Context, user string, step int64) (bool, error) {
	last, rev, err := l.lastStep(ctx, user)
	if err != nil || step <= last {
		return false, err
	}
	_, err = l.store.Apply(ctx, stepOp(user, step, rev))
	if errors.Is(err, sallyport.ErrExists) || errors.Is(err, sallyport.ErrConflict) || errors.Is(err, sallyport.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}
