package verdict

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

func bound(slot int) time.Duration {
	return time.Duration(float64(100*time.Microsecond) * math.Pow(2, float64(slot+1)/4))
}

// times draws n of a distribution with this median.
func times(r *rand.Rand, n int, median time.Duration) []uint64 {
	h := make([]uint64, 80)
	for range n {
		d := float64(median) * math.Exp(0.5*r.NormFloat64())
		slot := 0
		for slot < len(h)-1 && float64(bound(slot)) < d {
			slot++
		}
		h[slot]++
	}
	return h
}

func side(r *rand.Rand, n int, failing float64, median time.Duration) Sample {
	var s Sample
	for range n {
		if r.Float64() < failing {
			s.Failed++
		} else {
			s.Good++
			s.Closed++
		}
	}
	s.Times = times(r, int(s.Good), median)
	return s
}

func TestFisher(t *testing.T) {
	// R: fisher.test(matrix(c(a, n-a, b, m-b), 2), alternative = "greater")
	for _, c := range []struct {
		a, n, b, m uint64
		p          float64
	}{
		{3, 4, 1, 4, 0.24285714},
		{10, 20, 2, 20, 0.0069070739},
		{0, 20, 0, 20, 1},
		{20, 20, 0, 380, 3.5863362e-34},
		{5, 100, 50, 1000, 0.5722147},
	} {
		if p := fisher(c.a, c.n, c.b, c.m); math.Abs(p-c.p) > 1e-6*c.p {
			t.Errorf("%d of %d against %d of %d: %g, want %g", c.a, c.n, c.b, c.m, p, c.p)
		}
	}
}

func TestWilson(t *testing.T) {
	// Newcombe 1998, table I: 81 of 263.
	if low, up := wilson(81, 263); math.Abs(low-0.2553) > 5e-4 || math.Abs(up-0.3662) > 5e-4 {
		t.Errorf("%.4f to %.4f", low, up)
	}
	// Newcombe 1998, table II, method 10: 56 of 70 and 48 of 80: +0.0524 to +0.3339.
	if up := beyond(56, 70, 48, 80); math.Abs(up-0.3339) > 5e-4 {
		t.Errorf("%.4f", up)
	}
}

func TestVerdicts(t *testing.T) {
	const ms = time.Millisecond
	for name, c := range map[string]struct {
		old, new int
		fails    float64 // of the new side; the old one's are 0.2%
		was, is  time.Duration
		want     Outcome
	}{
		"alike":              {old: 9500, new: 500, fails: 0.002, was: 4 * ms, is: 4 * ms, want: Good},
		"alike, much":        {old: 95000, new: 5000, fails: 0.002, was: 4 * ms, is: 4 * ms, want: Good},
		"few":                {old: 1900, new: 100, fails: 0.002, was: 4 * ms, is: 4 * ms, want: Undecided},
		"few, all well":      {old: 20, new: 1, was: 4 * ms, is: 4 * ms, want: Undecided},
		"nothing":            {want: Undecided},
		"none of the old":    {new: 1000, was: ms, is: ms, want: Undecided},
		"refuses":            {old: 380, new: 20, fails: 1, was: 4 * ms, is: 4 * ms, want: Worse},
		"fails often":        {old: 1900, new: 100, fails: 0.2, was: 4 * ms, is: 4 * ms, want: Worse},
		"fails seldom":       {old: 95000, new: 5000, fails: 0.02, was: 4 * ms, is: 4 * ms, want: Worse},
		"slow":               {old: 1900, new: 100, fails: 0.002, was: 4 * ms, is: 20 * ms, want: Worse},
		"a little slower":    {old: 95000, new: 5000, fails: 0.002, was: 40 * ms, is: 44 * ms, want: Good},
		"better":             {old: 9500, new: 500, was: 20 * ms, is: 4 * ms, want: Good},
		"better, but of few": {old: 190, new: 10, was: 20 * ms, is: 4 * ms, want: Undecided},
	} {
		t.Run(name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(1, 2))
			v := Compare{side(r, c.old, 0.002, c.was), side(r, c.new, c.fails, c.is), bound}.Judge()
			if v.Outcome != c.want || v.Reason == "" {
				t.Errorf("%+v, want %s", v, c.want)
			}
		})
	}
}

// TestTail: a program that is slow for one client in ten, and quick for the
// others, is found out, though its median is the same.
func TestTail(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	old, new := side(r, 9000, 0, 4*time.Millisecond), side(r, 450, 0, 4*time.Millisecond)
	slow := side(r, 50, 0, time.Second)
	new.Good += slow.Good
	for i, n := range slow.Times {
		new.Times[i] += n
	}
	if v := (Compare{old, new, bound}).Judge(); v.Outcome != Worse {
		t.Errorf("%+v", v)
	}
}

// TestResets: relays that break are not to be passed over because connections
// succeed.
func TestResets(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	old, new := side(r, 9000, 0, 4*time.Millisecond), side(r, 500, 0, 4*time.Millisecond)
	new.Broken, new.Closed = 40, new.Closed-40
	if v := (Compare{old, new, bound}).Judge(); v.Outcome != Worse {
		t.Errorf("%+v", v)
	}
}

// TestLuck: a program that is as good as the other is hardly ever blamed, though
// it is looked at again and again; and hardly any bad one is called good.
func TestLuck(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	const runs = 40
	blamed, praised := 0, 0
	for range runs {
		var old, new Sample
		old.Times, new.Times = make([]uint64, 80), make([]uint64, 80)
		worse := false
		for n := FewestToBlame; n <= 640; n *= 2 {
			grow(&old, side(r, 4*n, 0.01, 4*time.Millisecond))
			grow(&new, side(r, n, 0.01, 4*time.Millisecond))
			worse = worse || Compare{old, new, bound}.Blame() != nil
		}
		if worse {
			blamed++
		}
		bad := side(r, 300, 0.05, 4*time.Millisecond) // and the old one has 1%
		if (Compare{old, bad, bound}).Judge().Outcome == Good {
			praised++
		}
	}
	if blamed > runs/20 {
		t.Errorf("%d of %d good programs were blamed", blamed, runs)
	}
	if praised > runs/20 {
		t.Errorf("%d of %d bad programs were called good", praised, runs)
	}
	t.Logf("%d of %d good ones blamed, %d bad ones praised", blamed, runs, praised)
}

func grow(s *Sample, by Sample) {
	s.Good, s.Failed, s.Closed = s.Good+by.Good, s.Failed+by.Failed, s.Closed+by.Closed
	for i, n := range by.Times {
		s.Times[i] += n
	}
}
