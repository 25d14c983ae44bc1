package verdict

import (
	"encoding/binary"
	"math"
	"math/big"
	"slices"
	"testing"
	"time"
)

// numbers are a fuzzer's: small ones as they are, which an oracle can count
// through, or the whole range of what another process may say.
func numbers(data []byte, n int, wide bool) []uint64 {
	out := make([]uint64, n)
	for i := range out {
		var b [8]byte
		k := map[bool]int{true: 8, false: 1}[wide]
		if at := i * k; at < len(data) {
			copy(b[:k], data[at:])
		}
		out[i] = binary.LittleEndian.Uint64(b[:])
	}
	return out
}

func sampleOf(v []uint64) Sample {
	return Sample{Good: v[0], Failed: v[1], Closed: v[2], Broken: v[3], Times: v[4:]}
}

// FuzzVerdict: whatever two processes say that they have counted, an answer comes,
// it has its reason, and each side is worse than the other in nothing at once.
// What the tests reckon is compared with the same, counted through.
func FuzzVerdict(f *testing.F) {
	f.Add(false, []byte{200, 1, 190, 5, 10, 60, 100, 30, 0, 0, 0, 0, 100, 90, 80, 60, 0, 10, 60, 80, 30, 10, 0, 0})
	f.Add(false, []byte{0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 250, 0, 250})
	all := make([]byte, 8*24)
	for i := range all {
		all[i] = 0xff
	}
	f.Add(true, all)
	odd := slices.Clone(all)
	odd[0], odd[8], odd[8*12] = 0, 0, 7
	f.Add(true, odd)
	f.Fuzz(func(t *testing.T, wide bool, data []byte) {
		v := numbers(data, 24, wide)
		c := Compare{Old: sampleOf(v[:12]), New: sampleOf(v[12:]), Bound: bound}
		kept := slices.Clone(v)
		got := c.Judge()
		if !slices.Equal(v, kept) {
			t.Fatal("what was counted was changed")
		}
		if !slices.Contains([]Outcome{Undecided, Good, Worse}, got.Outcome) || got.Reason == "" {
			t.Fatalf("%+v", got)
		}
		if blame := c.Blame(); (blame != nil) != (got.Outcome == Worse) {
			t.Fatalf("blamed %+v, judged %+v", blame, got)
		}
		c = c.bounded()
		turned := Compare{Old: c.New, New: c.Old, Bound: bound}
		for i, test := range []func(Compare) string{Compare.failures, Compare.breaks, Compare.tail, Compare.median} {
			if test(c) != "" && test(turned) != "" {
				t.Fatalf("test %d: each side is worse than the other", i)
			}
		}
		if got.Outcome == Good && (c.Old.decided() < Fewest || c.New.decided() < Fewest) {
			t.Fatalf("%+v, of %d and %d connections", got, c.Old.decided(), c.New.decided())
		}
		if !wide {
			counted(t, c)
		}
	})
}

// counted compares the formulas with their definitions.
func counted(t *testing.T, c Compare) {
	a, n, b, m := c.New.Failed, c.New.decided(), c.Old.Failed, c.Old.decided()
	if got, want := fisher(a, n, b, m), hypergeometric(a, n, b, m); math.Abs(got-want) > 1e-9+1e-6*want {
		t.Fatalf("Fisher's test of %d of %d and %d of %d: %g, want %g", a, n, b, m, got, want)
	}
	var x, y []int
	for i := range c.New.Times {
		x = append(x, slices.Repeat([]int{i}, int(c.New.Times[i]%8))...) // pairs of them are counted
		y = append(y, slices.Repeat([]int{i}, int(c.Old.Times[i]%8))...)
	}
	hx, hy := make([]uint64, len(c.New.Times)), make([]uint64, len(c.Old.Times))
	for _, i := range x {
		hx[i]++
	}
	for _, i := range y {
		hy[i]++
	}
	if got, want := ranks(hx, hy), pairsAbove(x, y); math.Abs(got-want) > 1e-9*max(1, math.Abs(want)) {
		t.Fatalf("ranks of %v and %v: %g, want %g", hx, hy, got, want)
	}
	for _, q := range []float64{0.5, 0.99} {
		if len(x) > 0 && Quantile(hx, q) != x[int(math.Ceil(q*float64(len(x))))-1] {
			t.Fatalf("quantile %g of %v: slot %d", q, hx, Quantile(hx, q))
		}
	}
}

// hypergeometric is the chance of a or more of n marked ones, of a+b marked among
// n+m, by its definition.
func hypergeometric(a, n, b, m uint64) float64 {
	sum, one := new(big.Int), new(big.Int)
	over := func(n, k uint64) *big.Int { return new(big.Int).Binomial(int64(n), int64(k)) }
	for x := a; x <= min(a+b, n); x++ {
		if a+b-x <= m {
			sum.Add(sum, one.Mul(over(n, x), over(m, a+b-x)))
		}
	}
	r, _ := new(big.Rat).SetFrac(sum, over(n+m, a+b)).Float64()
	return r
}

// pairsAbove is the statistic of Mann and Whitney by its definition: of all pairs,
// those in which x is above, in its own deviations.
func pairsAbove(x, y []int) float64 {
	n, m := float64(len(x)), float64(len(y))
	u, ties := 0.0, 0.0
	for _, i := range x {
		for _, j := range y {
			switch {
			case i > j:
				u++
			case i == j:
				u += 0.5
			}
		}
	}
	for same := range tied(x, y) {
		ties += same*same*same - same
	}
	all := n + m
	variance := n * m / 12 * (all + 1 - ties/(all*(all-1)))
	if !(variance > 0) {
		return 0
	}
	return (u - n*m/2) / math.Sqrt(variance)
}

// tied yields how many are alike, for each value.
func tied(x, y []int) func(func(float64) bool) {
	return func(yield func(float64) bool) {
		of := map[int]float64{}
		for _, i := range slices.Concat(x, y) {
			of[i]++
		}
		for _, n := range of {
			if !yield(n) {
				return
			}
		}
	}
}

// TestImpossibleCounts: a look at numbers that cannot be ended in no time that
// anybody has waited for.
func TestImpossibleCounts(t *testing.T) {
	const all = math.MaxUint64
	c := Compare{
		Old:   Sample{Good: all, Failed: 40, Closed: 30, Broken: all, Times: []uint64{all, all, 1}},
		New:   Sample{Good: 40, Failed: all, Closed: all, Broken: all, Times: []uint64{1, all, all}},
		Bound: func(i int) time.Duration { return time.Duration(i) * time.Millisecond },
	}
	if v := c.Judge(); v.Outcome != Worse {
		t.Errorf("%+v", v)
	}
	c.Old, c.New = Sample{Good: 5000, Closed: 5000, Times: []uint64{0, 5000}}, Sample{Good: all, Failed: 1, Closed: all, Times: []uint64{0, all}}
	if v := c.Judge(); v.Outcome != Good {
		t.Errorf("its sums have no room: %+v", v)
	}
	// Shares that are no luck: each term of the test's sum is too small for a number.
	c.Old, c.New = Sample{Good: 1 << 39, Failed: 1 << 39}, Sample{Good: 1 << 37, Failed: 7 << 37}
	if v := c.Judge(); v.Outcome != Worse {
		t.Errorf("%+v", v)
	}
}
