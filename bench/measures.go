package main

import (
	"slices"
	"time"
)

// sizes are how much one sample does.
type sizes struct {
	pairs         int
	workers       int // at a time, where several are
	execs         int
	parallelExecs int
	sessions      int
	megabytes     int
	idle          int
	runs          int
	within        time.Duration // for one measure
}

// leastPairs is how many pairs a median is taken of, at least.
const leastPairs = 9

func sizesFor(o options) sizes {
	z := sizes{pairs: 15, workers: 8, execs: 20, parallelExecs: 80, sessions: 400, megabytes: 200, idle: 100, runs: 10, within: 15 * time.Minute}
	if o.quick {
		z = sizes{pairs: leastPairs, workers: 8, execs: 3, parallelExecs: 16, sessions: 50, megabytes: 20, idle: 20, runs: 3, within: 6 * time.Minute}
	}
	if o.pairs > 0 {
		z.pairs = o.pairs
	}
	return z
}

// measures are all there are, in the order of the report.
func measures(w *world, z sizes) []comparison {
	out := slices.Concat(w.sshMeasures(z), w.sessionMeasures(z), w.copyMeasures(z), w.bulkMeasures(z), w.cliMeasures(z), w.idleMeasures(z))
	for i := range out {
		out[i].pairs, out[i].within = z.pairs, z.within
	}
	return out
}
