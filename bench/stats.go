package main

import (
	"math"
	"slices"
)

// confidence is that of all intervals.
const confidence = 0.95

// estimate is a median with its interval.
type estimate struct {
	Median, Low, High float64
	Coverage          float64 // the interval's true confidence; below 0.95 when there are fewer than six values
	N                 int
}

// median of at least one value.
func median(values []float64) float64 {
	v := slices.Sorted(slices.Values(values))
	n := len(v)
	if n%2 == 1 {
		return v[n/2]
	}
	return (v[n/2-1] + v[n/2]) / 2
}

// estimateMedian returns the median and its order-statistics interval: from the
// k-th smallest to the k-th largest value, for the largest k with
//
//	1 - 2 P(Binomial(n, 1/2) < k)  >=  confidence
//
// It assumes nothing of the distribution but independent values (Conover,
// Practical Nonparametric Statistics, section 3.2). With fewer than six values
// no such k exists: the interval is then from the smallest to the largest.
func estimateMedian(values []float64) estimate {
	n := len(values)
	if n == 0 {
		return estimate{Median: math.NaN(), Low: math.NaN(), High: math.NaN()}
	}
	v := slices.Sorted(slices.Values(values))
	k := 1
	for k+1 <= (n+1)/2 && coverage(n, k+1) >= confidence {
		k++
	}
	return estimate{Median: median(v), Low: v[k-1], High: v[n-k], Coverage: coverage(n, k), N: n}
}

// coverage is the confidence of the interval from the k-th smallest to the
// k-th largest of n values.
func coverage(n, k int) float64 {
	tail := 0.0 // P(Binomial(n, 1/2) < k)
	for i := range k {
		tail += binomial(n, i)
	}
	return max(0, 1-2*tail)
}

// binomial is P(Binomial(n, 1/2) = k).
func binomial(n, k int) float64 {
	a, _ := math.Lgamma(float64(n + 1))
	b, _ := math.Lgamma(float64(k + 1))
	c, _ := math.Lgamma(float64(n - k + 1))
	return math.Exp(a - b - c - float64(n)*math.Ln2)
}

// ratios are those of the pairs, A to B, for one quantity. Pairs that lack it
// on either side, or have zero for B, are left out.
func ratios(pairs []Pair, key string) []float64 {
	var out []float64
	for _, p := range pairs {
		a, okA := p.A[key]
		b, okB := p.B[key]
		if okA && okB && b != 0 {
			out = append(out, a/b)
		}
	}
	return out
}

// values are those of one side.
func values(pairs []Pair, side func(Pair) Sample, key string) []float64 {
	var out []float64
	for _, p := range pairs {
		if v, ok := side(p)[key]; ok {
			out = append(out, v)
		}
	}
	return out
}

func sideA(p Pair) Sample { return p.A }
func sideB(p Pair) Sample { return p.B }
