package main

import (
	"math"
	"math/rand/v2"
	"testing"
)

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		in   []float64
		want float64
	}{{[]float64{3}, 3}, {[]float64{9, 1, 5}, 5}, {[]float64{4, 1, 3, 2}, 2.5}} {
		if got := median(c.in); got != c.want {
			t.Errorf("median(%v) = %v, want %v", c.in, got, c.want)
		}
	}
}

func TestMedianLeavesItsValues(t *testing.T) {
	in := []float64{3, 1, 2}
	estimateMedian(in)
	if in[0] != 3 || in[1] != 1 || in[2] != 2 {
		t.Errorf("sorted in place: %v", in)
	}
}

// TestEstimateMedian holds the ranks and their confidence against the table of
// the sign test (Conover, table A3).
func TestEstimateMedian(t *testing.T) {
	for _, c := range []struct {
		n, rank  int // the interval is from the rank-th value to the rank-th from the end
		coverage float64
	}{
		{1, 1, 0}, {2, 1, 0.5}, {5, 1, 0.9375}, {6, 1, 0.96875}, {8, 1, 0.9921875}, {9, 2, 0.9609375},
		{11, 2, 0.98828125}, {12, 3, 0.961426}, {15, 4, 0.964844}, {17, 5, 0.950958}, {25, 8, 0.956715},
	} {
		var v []float64
		for i := range c.n {
			v = append(v, float64(i+1))
		}
		rand.Shuffle(c.n, func(i, j int) { v[i], v[j] = v[j], v[i] })
		e := estimateMedian(v)
		if e.Low != float64(c.rank) || e.High != float64(c.n+1-c.rank) || math.Abs(e.Coverage-c.coverage) > 1e-6 || e.N != c.n {
			t.Errorf("%d values: %v to %v at %v, want %d to %d at %v", c.n, e.Low, e.High, e.Coverage, c.rank, c.n+1-c.rank, c.coverage)
		}
	}
	if e := estimateMedian(nil); e.N != 0 || !math.IsNaN(e.Median) {
		t.Errorf("no values: %+v", e)
	}
}

// TestEstimateMedianCovers draws from a skewed distribution with a known median
// and counts how often the interval holds it.
func TestEstimateMedianCovers(t *testing.T) {
	const draws, n = 4000, 9
	rng, hit := rand.New(rand.NewPCG(1, 2)), 0
	for range draws {
		v := make([]float64, n)
		for i := range v {
			v[i] = rng.ExpFloat64()
		}
		if e := estimateMedian(v); e.Low <= math.Ln2 && math.Ln2 <= e.High {
			hit++
		}
	}
	if got := float64(hit) / draws; math.Abs(got-0.9609) > 0.012 {
		t.Errorf("the interval holds the median in %.3f of all draws, want 0.961", got)
	}
}

// TestRatios: the ratio is taken within each pair, since what slows the
// machine slows both sides of a pair.
func TestRatios(t *testing.T) {
	pairs := []Pair{
		{A: Sample{"rate": 10}, B: Sample{"rate": 5}},
		{A: Sample{"rate": 100}, B: Sample{"rate": 50}},
		{A: Sample{"rate": 1, "only": 7}, B: Sample{"rate": 0}},
		{A: Sample{"rate": 1}},
	}
	if got := ratios(pairs, "rate"); len(got) != 2 || got[0] != 2 || got[1] != 2 {
		t.Errorf("ratios: %v", got)
	}
	if got := ratios(pairs, "only"); got != nil {
		t.Errorf("what one side has: %v", got)
	}
	if got := values(pairs, sideA, "only"); len(got) != 1 || got[0] != 7 {
		t.Errorf("values: %v", got)
	}
}

func TestVerdict(t *testing.T) {
	more, less := Quantity{More: true}, Quantity{}
	for _, c := range []struct {
		q    Quantity
		e    estimate
		want string
	}{
		{more, estimate{Low: 0.5, High: 0.9}, "worse"}, {more, estimate{Low: 1.1, High: 2}, "better"}, {more, estimate{Low: 0.9, High: 1.1}, "no difference shown"},
		{less, estimate{Low: 0.5, High: 0.9}, "better"}, {less, estimate{Low: 1.1, High: 2}, "worse"}, {less, estimate{Low: 1, High: 2}, "no difference shown"},
	} {
		if got := verdict(c.q, c.e); got != c.want {
			t.Errorf("more %v, %v to %v: %s, want %s", c.q.More, c.e.Low, c.e.High, got, c.want)
		}
	}
}
