package main

import (
	"context"
	"fmt"
	"os/exec"
	"time"
)

// cliBar is the own time of sally status and sally ls: 50 ms.
const cliBar = 50

// cliMeasures are the times of commands that people wait for. They are held
// against the cheapest command there is: what is left is the machine's.
func (w *world) cliMeasures(z sizes) []comparison {
	var out []comparison
	for _, name := range []string{"status", "ls"} {
		m := comparison{Measure: Measure{
			Name: "cli/" + name, Title: "sally " + name, A: "sally " + name, B: "true(1): what starting any program takes", Floor: true,
			Load: fmt.Sprintf("mean of %d runs, one after the other", z.runs),
			Quantities: []Quantity{
				{Key: "cpu_ms", Title: "own time (user and system)", Unit: " ms", Bar: cliBar},
				{Key: "wall_ms", Title: "wall time", Unit: " ms"},
			},
		}}
		m.a = commandTimes(z.runs, func(ctx context.Context) *exec.Cmd { return w.sally(ctx, name) })
		m.b = commandTimes(z.runs, func(ctx context.Context) *exec.Cmd { return exec.CommandContext(ctx, "true") })
		out = append(out, m)
	}
	return out
}

// commandTimes takes a command's own time from wait4(2).
func commandTimes(n int, command func(context.Context) *exec.Cmd) side {
	return func(ctx context.Context) (Sample, error) {
		var cpu, wall time.Duration
		for range n {
			cmd := command(ctx)
			began := time.Now()
			if _, err := output(cmd); err != nil {
				return nil, err
			}
			wall += time.Since(began)
			cpu += cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
		}
		ms := func(d time.Duration) float64 { return d.Seconds() * 1000 / float64(n) }
		return Sample{"cpu_ms": ms(cpu), "wall_ms": ms(wall)}, nil
	}
}
