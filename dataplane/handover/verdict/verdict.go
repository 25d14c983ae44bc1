// Package verdict says whether a new program serves as well as the old one, by
// what came of connections that were shared out between the two at random.
//
// Two questions are asked, and they are not the opposite of each other:
//
//	Worse   while it runs: could this be luck? Only if it could not, and it is by
//	        more than anybody would put up with, the new program is worse.
//	Good    at the end: could it be worse than we would put up with, and we have not
//	        seen it? Only if it could not, the new program is good.
//
// Between them lies "undecided": too few connections to tell. Connections were
// drawn one by one, so all that the tests assume is that.
package verdict

import (
	"fmt"
	"math"
	"slices"
	"time"
)

// Sample is what came of the connections of one side.
type Sample struct {
	Good, Failed   uint64   // connections that reached their server, and that did not
	Closed, Broken uint64   // relays that ended in order, and by a reset
	Times          []uint64 // to the first byte of the server: a histogram
}

func (s Sample) decided() uint64 { return s.Good + s.Failed }

const (
	// Fewest decided connections on each side, before anything good is said.
	// With none of so many failed, less than one in fifty of all do (97.5%).
	Fewest = 200

	// FewestToBlame is how many of the new side's must be decided before it is
	// looked at whether it is worse.
	FewestToBlame = 20

	// luck is how often one look may blame a program that is as good as the other.
	// Looks come with each doubling of the connections: there are some fifteen,
	// with four tests each.
	luck = 1e-4

	// slowShare of all connections are called slow, and more of them on one side
	// than on the other by slowMost are too many.
	slowShare = 0.01
	slowMost  = 0.05

	failedMost = 0.02 // more failed connections than the old side has
	failedTold = 0.005
	brokenMost = 0.05 // more relays that end by a reset
	medianMost = 1.5  // times the old side's median, and
	medianPlus = 2 * time.Millisecond
	medianLate = 5 * time.Millisecond // and by that it is to be blamed

	// countMost of anything is all that is counted. It is more than comes in
	// years; a process that says more has counted wrongly, and sums of what it
	// says must not overflow.
	countMost = 1 << 40

	// sure is the number of standard deviations of a one-sided bound of 97.5%.
	sure = 1.959964
)

// Outcome is what can be said.
type Outcome string

// The outcomes.
const (
	Undecided Outcome = "undecided"
	Good      Outcome = "good"
	Worse     Outcome = "worse"
)

// Verdict is an outcome, and why.
type Verdict struct {
	Outcome Outcome `json:"outcome"`
	Reason  string  `json:"reason"`
}

// Compare compares the two sides. bound is the upper bound of a slot of the
// histograms.
type Compare struct {
	Old, New Sample
	Bound    func(slot int) time.Duration
}

// bounded is what can be reckoned with, whatever the other process has said.
func (c Compare) bounded() Compare {
	for _, s := range []*Sample{&c.Old, &c.New} {
		for _, n := range []*uint64{&s.Good, &s.Failed, &s.Closed, &s.Broken} {
			*n = min(*n, countMost)
		}
		s.Times = slices.Clone(s.Times)
		for i := range s.Times {
			s.Times[i] = min(s.Times[i], countMost)
		}
	}
	return c
}

// Blame says whether the new side is worse, beyond luck and by more than one
// would put up with; nil when it is not, or cannot be told.
func (c Compare) Blame() *Verdict {
	c = c.bounded()
	if c.New.decided() < FewestToBlame || c.Old.decided() < FewestToBlame {
		return nil
	}
	for _, test := range []func() string{c.failures, c.breaks, c.tail, c.median} {
		if reason := test(); reason != "" {
			return &Verdict{Worse, reason}
		}
	}
	return nil
}

func (c Compare) failures() string {
	o, n := c.Old, c.New
	if more(n.Failed, n.decided(), o.Failed, o.decided(), failedTold) {
		return fmt.Sprintf("%s of its connections failed, and %s of the old one's", share(n.Failed, n.decided()), share(o.Failed, o.decided()))
	}
	return ""
}

func (c Compare) breaks() string {
	o, n := c.Old, c.New
	if more(n.Broken, n.Broken+n.Closed, o.Broken, o.Broken+o.Closed, failedTold) {
		return fmt.Sprintf("%s of its relays ended by a reset, and %s of the old one's", share(n.Broken, n.Broken+n.Closed), share(o.Broken, o.Broken+o.Closed))
	}
	return ""
}

// slow counts what is beyond the slot in which the slowest hundredth of all
// begins: of both sides together, so that neither is favoured.
func (c Compare) slow() (ofNew, ofOld uint64, bound time.Duration) {
	all := make([]uint64, max(len(c.Old.Times), len(c.New.Times)))
	for _, h := range [][]uint64{c.Old.Times, c.New.Times} {
		for i, n := range h {
			all[i] += n
		}
	}
	at := Quantile(all, 1-slowShare)
	return above(c.New.Times, at), above(c.Old.Times, at), c.Bound(at)
}

// tail holds the slow ones of both sides against each other.
func (c Compare) tail() string {
	sn, so, bound := c.slow()
	n, o := sum(c.New.Times), sum(c.Old.Times)
	if more(sn, n, so, o, slowMost) {
		return fmt.Sprintf("%s of its connections waited more than %v for the first byte, and %s of the old one's", share(sn, n), bound.Round(10*time.Microsecond), share(so, o))
	}
	return ""
}

func (c Compare) median() string {
	n, o := sum(c.New.Times), sum(c.Old.Times)
	if n < FewestToBlame || o < FewestToBlame {
		return ""
	}
	mine, its := c.Bound(Quantile(c.New.Times, 0.5)), c.Bound(Quantile(c.Old.Times, 0.5))
	if float64(mine) <= medianMost*float64(its)+float64(medianLate) || ranks(c.New.Times, c.Old.Times) < normalBeyond(luck) {
		return ""
	}
	return fmt.Sprintf("half of its connections waited more than %v for the first byte, and half of the old one's %v", mine.Round(10*time.Microsecond), its.Round(10*time.Microsecond))
}

// Judge says at the end what can be said.
func (c Compare) Judge() Verdict {
	c = c.bounded()
	if v := c.Blame(); v != nil {
		return *v
	}
	o, n := c.Old, c.New
	for _, side := range []struct {
		name string
		s    Sample
	}{{"the new program", n}, {"the old one", o}} {
		if got := side.s.decided(); got < Fewest {
			return Verdict{Undecided, fmt.Sprintf("too little traffic: %d connections came to %s, and %d are needed on each side", got, side.name, Fewest)}
		}
		if got := sum(side.s.Times); got < Fewest/2 {
			return Verdict{Undecided, fmt.Sprintf("too little to time: %d servers answered clients of %s, and %d are needed on each side", got, side.name, Fewest/2)}
		}
	}
	if up := beyond(n.Failed, n.decided(), o.Failed, o.decided()); up > failedMost {
		return Verdict{Undecided, fmt.Sprintf("%s of its connections failed, and %s of the old one's: it may be luck, or up to %.1f%% more fail", share(n.Failed, n.decided()), share(o.Failed, o.decided()), 100*up)}
	}
	if ended := n.Broken + n.Closed; ended >= Fewest {
		if up := beyond(n.Broken, ended, o.Broken, o.Broken+o.Closed); up > brokenMost {
			return Verdict{Undecided, fmt.Sprintf("%s of its relays ended by a reset, and %s of the old one's: it may be luck", share(n.Broken, ended), share(o.Broken, o.Broken+o.Closed))}
		}
	}
	sn, so, bound := c.slow()
	if up := beyond(sn, sum(n.Times), so, sum(o.Times)); up > slowMost {
		return Verdict{Undecided, fmt.Sprintf("%s of its connections waited more than %v, and %s of the old one's: it may be luck", share(sn, sum(n.Times)), bound.Round(10*time.Microsecond), share(so, sum(o.Times)))}
	}
	most, its := c.Bound(medianUp(n.Times)), c.Bound(Quantile(o.Times, 0.5))
	if float64(most) > medianMost*float64(its)+float64(medianPlus) {
		return Verdict{Undecided, fmt.Sprintf("the median of its waits may be %v, and the old one's is %v: it may be luck", most.Round(10*time.Microsecond), its.Round(10*time.Microsecond))}
	}
	return Verdict{Good, fmt.Sprintf("%d connections, as good as the old one's %d", n.decided(), o.decided())}
}

// more says that a of n is more than b of m, by more than margin and by no luck.
func more(a, n, b, m uint64, margin float64) bool {
	if n < FewestToBlame || m < FewestToBlame {
		return false
	}
	return part(a, n)-part(b, m) > margin && fisher(a, n, b, m) < luck
}

func part(a, n uint64) float64 {
	if n == 0 {
		return 0
	}
	return float64(a) / float64(n)
}

func share(a, n uint64) string { return fmt.Sprintf("%d of %d", a, n) }

func sum(h []uint64) (n uint64) {
	for _, k := range h {
		n += k
	}
	return n
}

// above counts what is in slots beyond one.
func above(h []uint64, slot int) uint64 {
	if slot+1 >= len(h) {
		return 0
	}
	return sum(h[slot+1:])
}

// Quantile is the slot below whose bound a part q of all lies.
func Quantile(h []uint64, q float64) int {
	want := uint64(math.Ceil(q * float64(sum(h))))
	var n uint64
	for i, k := range h {
		if n += k; n >= want {
			return i
		}
	}
	return max(len(h)-1, 0)
}

// medianUp is the slot of an upper bound of the median: the order statistic that
// is below it in one of forty cases (binomial, by the normal distribution).
func medianUp(h []uint64) int {
	n := float64(sum(h))
	return Quantile(h, min(1, 0.5+sure*0.5/math.Sqrt(max(n, 1))))
}

// fisher is the chance of a or more of n, when a+b of n+m are shared out by luck:
// Fisher's exact test, one-sided.
func fisher(a, n, b, m uint64) float64 {
	k := a + b
	most := float64(k) * float64(n) / float64(n+m) // from here on each term is less than the one before
	p := 0.0
	for x := a; x <= min(k, n); x++ {
		if k-x > m {
			continue
		}
		term := math.Exp(choose(n, x) + choose(m, k-x) - choose(n+m, k))
		if p += term; term < p*1e-12 || term == 0 && float64(x) > most {
			break
		}
	}
	return min(p, 1)
}

// choose is the logarithm of n over k.
func choose(n, k uint64) float64 {
	return logGamma(n+1) - logGamma(k+1) - logGamma(n-k+1)
}

func logGamma(n uint64) float64 {
	v, _ := math.Lgamma(float64(n))
	return v
}

// ranks is how many standard deviations the times of a are above those of b:
// the test of Mann and Whitney, with ties.
func ranks(a, b []uint64) float64 {
	n, m := float64(sum(a)), float64(sum(b))
	var u, below, ties float64 // below: of b, in lower slots
	for i := range max(len(a), len(b)) {
		x, y := at(a, i), at(b, i)
		u += x * (below + y/2)
		below += y
		ties += math.Pow(x+y, 3) - (x + y)
	}
	all := n + m
	variance := n * m / 12 * (all + 1 - ties/(all*(all-1)))
	if variance <= 0 {
		return 0
	}
	return (u - n*m/2) / math.Sqrt(variance)
}

func at(h []uint64, i int) float64 {
	if i >= len(h) {
		return 0
	}
	return float64(h[i])
}

// normalBeyond is the number of standard deviations beyond which a part p of the
// normal distribution lies.
func normalBeyond(p float64) float64 { return math.Sqrt2 * math.Erfinv(1-2*p) }

// beyond is the upper bound of how much greater the share a of n is than b of m:
// Newcombe's method 10, of two of Wilson's intervals.
func beyond(a, n, b, m uint64) float64 {
	p, q := part(a, n), part(b, m)
	_, up := wilson(a, n)
	low, _ := wilson(b, m)
	return p - q + math.Sqrt((up-p)*(up-p)+(q-low)*(q-low))
}

// wilson is the score interval of a share.
func wilson(a, n uint64) (low, up float64) {
	if n == 0 {
		return 0, 1
	}
	p, k, z := part(a, n), float64(n), sure
	middle := (p + z*z/(2*k)) / (1 + z*z/k)
	half := z / (1 + z*z/k) * math.Sqrt(p*(1-p)/k+z*z/(4*k*k))
	return max(0, middle-half), min(1, middle+half)
}
