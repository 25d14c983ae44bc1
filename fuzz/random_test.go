package fuzz

import (
	"encoding/binary"
	"flag"
	"math/rand/v2"
	"testing"
)

var (
	randomRuns = flag.Int("random", 3000, "inputs of each random loop")
	randomSeed = flag.Uint64("seed", 1, "where random loops begin")
)

// atRandom gives check random bytes, without the cost of measuring coverage:
// for long runs, "go test ./fuzz -run Random -random 100000000 -seed 2".
func atRandom(t *testing.T, size int, check func(*testing.T, []byte)) {
	var (
		key [32]byte
		run int
		in  []byte
	)
	binary.BigEndian.PutUint64(key[:], *randomSeed)
	source, buf := rand.NewChaCha8(key), make([]byte, size)
	defer func() {
		if t.Failed() {
			t.Logf("run %d of seed %d, []byte(%q)", run, *randomSeed, in)
		}
	}()
	for ; run < *randomRuns; run++ {
		in = buf[:1+source.Uint64()%uint64(size)]
		_, _ = source.Read(in)
		check(t, in)
	}
}

// dice turns input bytes into choices; when they are used up it chooses the first.
type dice struct{ rest []byte }

func (d *dice) roll(n int) int {
	if len(d.rest) == 0 {
		return 0
	}
	v := int(d.rest[0])
	d.rest = d.rest[1:]
	return v % n
}

func (d *dice) pick(n int, from []string) []string {
	var out []string
	for range n {
		out = append(out, from[d.roll(len(from))])
	}
	return out
}
