package main

import (
	"context"
	"slices"
	"strings"
	"time"
)

// sizes are how much one sample does.
type sizes struct {
	quick         bool
	pairs         int
	workers       int // at a time, where several are
	execs         int
	parallelExecs int
	sessions      int
	statements    int // one after the other
	requests      int // over HTTP
	megabytes     int
	fileMegabytes int
	idle          int
	runs          int
	within        time.Duration // for one measure

	settle       time.Duration // sessions are left alone for so long before memory is read
	warm, window time.Duration // of a sample of relays
	relays       int           // idle ones
	crowd        int           // connections that stay through an upgrade
	upgrades     int           // of one self-test, in a row
	tunnelled    int           // idle ones through a tunnel
	pings        float64       // per second, moderate load
	crowdPings   float64       // per second, over up to 9,000 connections
}

// leastPairs is how many pairs a median is taken of, at least.
const leastPairs = 9

func sizesFor(o options) sizes {
	z := sizes{pairs: leastPairs, workers: 8, execs: 20, parallelExecs: 80, sessions: 400, statements: 10000, requests: 4000, megabytes: 200, fileMegabytes: 1000, idle: 100, runs: 10, within: 15 * time.Minute,
		settle: 2 * time.Second, warm: 300 * time.Millisecond, window: time.Second, relays: 3000, crowd: 8000, upgrades: 100, tunnelled: 500, pings: 10000, crowdPings: 5000}
	if o.quick {
		z = sizes{quick: true, pairs: leastPairs, workers: 8, execs: 3, parallelExecs: 16, sessions: 50, statements: 500, requests: 200, megabytes: 20, fileMegabytes: 50, idle: 20, runs: 3, within: 2 * time.Minute,
			settle: 500 * time.Millisecond, warm: 50 * time.Millisecond, window: 150 * time.Millisecond, relays: 300, crowd: 400, upgrades: 2, tunnelled: 50, pings: 5000, crowdPings: 5000}
	}
	if o.pairs > 0 {
		z.pairs = o.pairs
	}
	return z
}

// group is measures that need the same things running.
type group struct {
	prefixes []string // of the names of its measures
	open     func(ctx context.Context, r *rig) (opened, error)
}

// opened is a group whose things run.
type opened struct {
	measures []comparison
	peers    []Peer
	settings []Setting
	close    func()
}

// rig is what a run has for all groups.
type rig struct {
	dir, bin string
	sizes    sizes
}

// counting adds to a side what processes used meanwhile.
type counting func(side) side

// uncounted adds nothing.
func uncounted(s side) side { return s }

// groups are all there are, in the order of the report.
func groups() []group {
	return []group{
		{prefixes: []string{"relay-"}, open: openRelays},
		{prefixes: []string{"tunnel-"}, open: openTunnels},
		{prefixes: []string{"upgrade"}, open: openUpgrades},
		{prefixes: []string{"ssh-", "db-", "copy", "cli/", "files/"}, open: openAccess},
		{prefixes: []string{"db/"}, open: openDatabases},
		{prefixes: []string{"kube/", "app/"}, open: openWeb},
	}
}

func openRelays(ctx context.Context, r *rig) (opened, error) {
	w, err := openRelayWorld(ctx, r.dir, r.bin)
	if err != nil {
		return opened{}, err
	}
	return opened{measures: w.relayMeasures(r.sizes), peers: relayVersions(ctx), close: w.close}, nil
}

func openAccess(ctx context.Context, r *rig) (opened, error) {
	w, err := openWorld(ctx, r.dir, r.bin)
	if err != nil {
		return opened{}, err
	}
	z := r.sizes
	all := slices.Concat(w.sshMeasures(z), w.sessionMeasures(z), w.copyMeasures(z), w.bulkMeasures(z), w.fileMeasures(z), w.cliMeasures(z), w.idleMeasures(z))
	return opened{measures: all, peers: foreignPrograms(ctx, "ssh", "sshd", "postgres"), settings: []Setting{w.setting}, close: w.close}, nil
}

// wanted says that some measure of the group may be wanted.
func (g group) wanted(only string) bool {
	if only == "" {
		return true
	}
	for prefix := range strings.SplitSeq(only, ",") {
		for _, own := range g.prefixes {
			if strings.HasPrefix(prefix, own) || strings.HasPrefix(own, prefix) {
				return true
			}
		}
	}
	return false
}
