package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"
)

// side takes one sample.
type side func(ctx context.Context) (Sample, error)

// comparison is a measure with what takes its samples. b is nil where there is
// nothing to hold a against.
type comparison struct {
	Measure
	pairs  int
	within time.Duration // for all of it
	a, b   side

	open  func(ctx context.Context) (closed func(), err error) // before the first sample; nil when nothing is to be opened
	holdA func(n int)                                          // connections that side A holds open meanwhile; of relays only
}

// take warms both sides up by a sample that is not kept, then takes the pairs.
// Which side comes first alternates, so that what changes slowly on the machine
// falls on both. A fault ends the measure, and what was taken is kept.
func (c *comparison) take(ctx context.Context) error {
	if c.Missing != "" {
		return nil
	}
	began := time.Now()
	c.Started, c.LoadBefore = began.UTC().Truncate(time.Second), loadAverage()
	others := watchOthers()
	within, cancel := context.WithTimeout(ctx, c.within)
	defer cancel()
	err := c.opened(within)
	c.Seconds, c.LoadAfter = time.Since(began).Seconds(), loadAverage()
	c.Others = others()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		c.Error = err.Error()
	}
	return nil
}

// opened takes the pairs while what they need is open.
func (c *comparison) opened(ctx context.Context) error {
	if c.open != nil {
		closed, err := c.open(ctx)
		if err != nil {
			return err
		}
		defer closed()
	}
	return c.takePairs(ctx)
}

func (c *comparison) takePairs(ctx context.Context) error {
	if _, err := c.pair(ctx, 0); err != nil {
		return fmt.Errorf("warm-up: %w", err)
	}
	for i := range c.pairs {
		p, err := c.pair(ctx, i)
		if err != nil {
			return fmt.Errorf("pair %d: %w", i+1, err)
		}
		c.Pairs = append(c.Pairs, p)
	}
	return nil
}

func (c *comparison) pair(ctx context.Context, i int) (Pair, error) {
	p := Pair{First: "A"}
	var errA, errB error
	if i%2 == 0 || c.b == nil {
		p.A, errA = c.a(ctx)
		if c.b != nil && errA == nil {
			p.B, errB = c.b(ctx)
		}
	} else {
		p.First = "B"
		if p.B, errB = c.b(ctx); errB == nil {
			p.A, errA = c.a(ctx)
		}
	}
	if errA != nil {
		errA = fmt.Errorf("side A: %w", errA)
	}
	if errB != nil {
		errB = fmt.Errorf("side B: %w", errB)
	}
	return p, errors.Join(errA, errB)
}

// timed is a side whose sample is how often something was done per second.
// done returns how much was done.
func timed(key string, done func(ctx context.Context) (float64, error)) side {
	return func(ctx context.Context) (Sample, error) {
		began := time.Now()
		n, err := done(ctx)
		if err != nil {
			return nil, err
		}
		took := time.Since(began).Seconds()
		return Sample{key: n / took, "seconds": took}, nil
	}
}

// withCPU adds what processes used of the CPU per thing done, in microseconds:
// user and system time of the process alone, without its children.
func withCPU(s side, per float64, pids func() map[string]int) side {
	return func(ctx context.Context) (Sample, error) {
		watched := pids()
		before := map[string]time.Duration{}
		for name, pid := range watched {
			d, err := cpuTime(pid)
			if err != nil {
				return nil, err
			}
			before[name] = d
		}
		out, err := s(ctx)
		if err != nil {
			return nil, err
		}
		cpu := Sample{}
		for name, pid := range watched {
			d, err := cpuTime(pid)
			if err != nil {
				return nil, err
			}
			cpu[name+"_cpu_us"] = float64((d - before[name]).Nanoseconds()) / 1000 / per
		}
		maps.Copy(out, cpu)
		return out, nil
	}
}
