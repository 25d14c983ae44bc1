//go:build unix

package gateway

// Snapshot returns the counters. It may be called at any time.
func (g *Gateway) Snapshot() Snapshot {
	s := Snapshot{
		Waiting:  g.crowd.size(),
		Relays:   int(g.counts.relays.Load()),
		BytesIn:  g.counts.bytesIn.Load(),
		BytesOut: g.counts.bytesOut.Load(),
		Outcomes: make(map[string]uint64, outcomes),
	}
	for o := range outcomes {
		s.Outcomes[o.String()] = g.counts.outcomes[o].Load()
	}
	return s
}
