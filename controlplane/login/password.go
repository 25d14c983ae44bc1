package login

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/crypto/argon2"
)

// Length of a password in bytes. Longer ones are refused before they cost
// anything, whoever they are for.
const (
	MinPassword = 12
	MaxPassword = 128
)

// Cost is what one password hash costs. The zero value means the second
// recommended option of RFC 9106, section 4.
type Cost struct {
	Time    uint32 // default 3
	Memory  uint32 // KiB, default 65536
	Threads uint8  // default 4
}

const (
	saltSize = 16
	hashSize = 32

	// Bounds of what a stored hash may ask for.
	maxTime    = 16
	maxMemory  = 1 << 20 // KiB
	maxThreads = 16
)

func (c Cost) orDefault() Cost {
	if c == (Cost{}) {
		return Cost{Time: 3, Memory: 64 << 10, Threads: 4}
	}
	return c
}

func (c Cost) valid() bool {
	return c.Time >= 1 && c.Time <= maxTime && c.Threads >= 1 && c.Threads <= maxThreads &&
		c.Memory >= 8*uint32(c.Threads) && c.Memory <= maxMemory // RFC 9106, section 3.1
}

func checkPassword(p string) error {
	if len(p) < MinPassword || len(p) > MaxPassword {
		return invalid(fmt.Sprintf("password: want %d to %d bytes", MinPassword, MaxPassword))
	}
	return nil
}

// hasher computes password hashes, a bounded number at once.
type hasher struct {
	cost  Cost
	gate  *gate
	count func() // called once per hash; tests count
}

// make returns the PHC string of a new hash.
func (h *hasher) make(ctx context.Context, password string) (string, error) {
	leave, err := h.gate.enter(ctx, "")
	if err != nil {
		return "", err
	}
	defer leave()
	salt := make([]byte, saltSize)
	rand.Read(salt)
	return phc{h.cost, salt, h.hash(password, salt, h.cost)}.String(), nil
}

// check compares in constant time. With stored "" it does the same work and
// says no: that is how unknown users cost what known ones do.
func (h *hasher) check(ctx context.Context, source, password, stored string) (bool, error) {
	leave, err := h.gate.enter(ctx, source)
	if err != nil {
		return false, err
	}
	defer leave()
	p := phc{cost: h.cost, salt: make([]byte, saltSize), sum: make([]byte, hashSize)}
	known := stored != ""
	if known {
		if p, err = parsePHC(stored); err != nil {
			return false, err
		}
	}
	same := subtle.ConstantTimeCompare(h.hash(password, p.salt, p.cost), p.sum) == 1
	return same && known, nil
}

func (h *hasher) hash(password string, salt []byte, c Cost) []byte {
	if h.count != nil {
		h.count()
	}
	return argon2.IDKey([]byte(password), salt, c.Time, c.Memory, c.Threads, hashSize)
}

// phc is a stored hash: $argon2id$v=19$m=65536,t=3,p=4$<salt>$<hash>.
type phc struct {
	cost Cost
	salt []byte
	sum  []byte
}

func (p phc) String() string {
	b64 := base64.RawStdEncoding
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, p.cost.Memory, p.cost.Time, p.cost.Threads,
		b64.EncodeToString(p.salt), b64.EncodeToString(p.sum))
}

var errHash = errors.New("a stored password hash cannot be read")

func parsePHC(s string) (phc, error) {
	parts := strings.Split(s, "$")
	if len(s) > 256 || len(parts) != 6 || parts[0] != "" || parts[1] != "argon2id" || parts[2] != fmt.Sprintf("v=%d", argon2.Version) {
		return phc{}, errHash
	}
	var p phc
	if _, err := fmt.Sscanf(parts[3], "m=%d,t=%d,p=%d", &p.cost.Memory, &p.cost.Time, &p.cost.Threads); err != nil || !p.cost.valid() {
		return phc{}, errHash
	}
	var err, err2 error
	p.salt, err = base64.RawStdEncoding.DecodeString(parts[4])
	p.sum, err2 = base64.RawStdEncoding.DecodeString(parts[5])
	if err != nil || err2 != nil || len(p.salt) < 8 || len(p.sum) != hashSize || p.String() != s {
		return phc{}, errHash
	}
	return p, nil
}
