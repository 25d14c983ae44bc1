// Command bench measures Sallyport beside the programs whose place it takes,
// keeps every sample, and writes BENCHMARKS.md from what it kept.
//
//	go run ./bench            measure, keep the raw results, write BENCHMARKS.md
//	go run ./bench -quick     the same with small loads: for trying the harness
//	go run ./bench -report    only write BENCHMARKS.md from the results kept
//
//	go run ./bench -target HOST:PORT -name NAME
//	go run ./bench -target HOST:PORT -servers 127.0.0.1:9001
//
// measure a gateway that runs already, whichever it is: with -name how fast a
// TLS server behind it answers, with -servers all that is measured of relays,
// once the gateway passes the names that are printed to the harness's servers.
//
// Everything happens on the loopback of one machine: auth, gateway, agent and
// the peers are processes of their own, so that each one's CPU and memory can
// be read. What is measured as a relay has a core for itself; its clients and
// servers have another.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// options are the command line.
type options struct {
	quick   bool
	report  bool
	bin     string // directory of programs built before; "" builds them
	only    string // names of measures, separated by commas
	results string
	output  string
	keep    bool
	pairs   int

	target  string // a gateway of the user's own
	name    string
	servers string
	pid     int
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), endings()...)
	defer stop()
	if isRole(os.Args) {
		if err := play(ctx, os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	var o options
	flag.BoolVar(&o.quick, "quick", false, "small loads: tries the harness, the figures mean little")
	flag.BoolVar(&o.report, "report", false, "measure nothing; write the report from the results kept")
	flag.StringVar(&o.bin, "bin", "", "directory of sallyport, sally and sallyctl; built when empty")
	flag.StringVar(&o.only, "only", "", "prefixes of the measures to take, separated by commas; all when empty")
	flag.StringVar(&o.results, "results", "bench/results", "directory of the raw results")
	flag.StringVar(&o.output, "o", "BENCHMARKS.md", "the report")
	flag.BoolVar(&o.keep, "keep", false, "leave the directory with configurations and logs")
	flag.IntVar(&o.pairs, "pairs", 0, "pairs of each measure; 9")
	flag.StringVar(&o.target, "target", "", "HOST:PORT of a gateway of your own that is to be measured, and nothing else; see -name, -servers, -pid")
	flag.StringVar(&o.name, "name", "", "with -target: the server name to ask for; the target's host when empty")
	flag.StringVar(&o.servers, "servers", "", "with -target: HOST:PORT for the harness's own servers, five ports from this one on, to which the gateway passes their names")
	flag.IntVar(&o.pid, "pid", 0, "with -target: the gateway's process on this machine, for its CPU time")
	flag.Parse()
	run := bench
	if o.target != "" {
		run = func(ctx context.Context, o options) error { return measureTarget(ctx, o, os.Stdout) }
	}
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "ERROR: "+err.Error())
		os.Exit(1)
	}
}

// endings are the signals at which a run ends in order: what it has set on this
// machine is put back, and what it has started is stopped. A terminal that is closed
// is one of them, but for who asked that it be none (nohup).
func endings() []os.Signal {
	all := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) {
		all = append(all, syscall.SIGHUP)
	}
	return all
}

// bench measures, unless only the report is wanted, and writes the report. A
// run that was cut short is not kept.
func bench(ctx context.Context, o options) error {
	if !o.report {
		run, err := measure(ctx, o)
		if err != nil {
			return err
		}
		path, err := keepRun(o.results, run)
		if err != nil {
			return err
		}
		fmt.Println("raw results:", path)
	}
	runs, err := loadRuns(o.results)
	if err != nil {
		return err
	}
	if err := os.WriteFile(o.output, report(runs), 0o644); err != nil {
		return err
	}
	if err := keepPictures(filepath.Join(filepath.Dir(o.output), plots), pictures(chosen(runs))); err != nil {
		return err
	}
	fmt.Println("report:", o.output)
	return nil
}

// measure builds the programs, starts everything, takes all measures and ends
// everything.
func measure(ctx context.Context, o options) (run *Run, err error) {
	dir, err := os.MkdirTemp("", "sallybench")
	if err != nil {
		return nil, err
	}
	if o.keep {
		fmt.Println("kept:", dir)
	} else {
		defer os.RemoveAll(dir)
	}
	if o.bin == "" {
		o.bin = filepath.Join(dir, "bin")
		if err := buildPrograms(ctx, o.bin); err != nil {
			return nil, err
		}
	} else if o.bin, err = filepath.Abs(o.bin); err != nil {
		return nil, err
	}
	run = &Run{Schema: schema, Started: time.Now().UTC().Truncate(time.Second), Quick: o.quick, Command: os.Args[1:], Programs: o.bin == filepath.Join(dir, "bin")}
	run.Commit, run.Dirty = commit(ctx)
	run.Machine = machine()
	settings, restore := prepareSystem("/proc/sys")
	run.Settings = settings
	defer func() { err = errors.Join(err, restore()) }()
	for _, g := range groups() {
		if !g.wanted(o.only) {
			continue
		}
		if err := takeGroup(ctx, o, g, run, dir); err != nil {
			return nil, err
		}
	}
	run.Ended = time.Now().UTC().Truncate(time.Second)
	if len(run.Measures) == 0 {
		return nil, errors.New("no measure has such a name")
	}
	return run, ctx.Err()
}

// takeGroup starts what a group needs, takes its measures and ends all of it.
func takeGroup(ctx context.Context, o options, g group, run *Run, dir string) error {
	dir = filepath.Join(dir, strings.TrimRight(g.prefixes[0], "-/"))
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	up, err := g.open(ctx, &rig{dir: dir, bin: o.bin, sizes: sizesFor(o)})
	if err != nil {
		return err
	}
	defer up.close()
	run.Settings = append(run.Settings, up.settings...)
	for _, p := range up.peers {
		if !slices.Contains(run.Peers, p) { // several groups may have one
			run.Peers = append(run.Peers, p)
		}
	}
	for _, m := range up.measures {
		if !wanted(o.only, m.Name) {
			continue
		}
		z := sizesFor(o)
		m.pairs, m.within = cmp.Or(m.pairs, z.pairs), cmp.Or(m.within, z.within)
		fmt.Printf("%s: %s\n", m.Name, m.A)
		if err := m.take(ctx); err != nil {
			return err
		}
		if m.Error != "" {
			fmt.Println("  not measured to its end:", m.Error)
		}
		run.Measures = append(run.Measures, m.Measure)
	}
	return nil
}

func wanted(only, name string) bool {
	if only == "" {
		return true
	}
	for prefix := range strings.SplitSeq(only, ",") {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}
