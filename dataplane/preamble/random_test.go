package preamble

import (
	"bytes"
	"flag"
	"math/rand/v2"
	"testing"
)

var (
	randomRuns = flag.Int("random", 3000, "inputs of each random loop")
	randomSeed = flag.Uint64("seed", 1, "where random loops begin")
)

// mutants gives check the seeds, bent in a few places, without the cost of
// measuring coverage: for long runs, "go test -run Random -random 100000000".
func mutants(t *testing.T, seeds [][]byte, check func(*testing.T, []byte)) {
	var (
		r   = rand.New(rand.NewPCG(*randomSeed, 0))
		in  []byte
		run int
	)
	defer func() {
		if t.Failed() {
			t.Logf("run %d of seed %d, []byte(%q)", run, *randomSeed, in)
		}
	}()
	for ; run < *randomRuns; run++ {
		in = bytes.Clone(seeds[r.IntN(len(seeds))])
		for range r.IntN(4) {
			in = mutant(r, in)
		}
		check(t, in)
	}
}

// mutant bends b once: a bit, a byte, a cut, a repetition, a word.
func mutant(r *rand.Rand, b []byte) []byte {
	if len(b) == 0 {
		return []byte{byte(r.IntN(256))}
	}
	at := r.IntN(len(b))
	switch r.IntN(6) {
	case 0:
		b[at] ^= 1 << r.IntN(8)
	case 1:
		b[at] = byte(r.IntN(256))
	case 2:
		b[at]++
	case 3:
		return append(bytes.Clone(b[:at]), b[min(at+1+r.IntN(8), len(b)):]...)
	case 4:
		again := b[at:min(at+1+r.IntN(20), len(b))]
		return append(append(bytes.Clone(b[:at]), again...), b[at:]...)
	case 5:
		words := []string{"\x00", "\r\n", " ", "\n", "UNKNOWN", "TCP6", "::1", "0", "65535", "\x00\x00", "user\x00", "\x01\x00\x08\x00", "\xff\xff", "Host: x\r\n"}
		word := words[r.IntN(len(words))]
		return append(append(bytes.Clone(b[:at]), word...), b[at:]...)
	}
	return b
}
