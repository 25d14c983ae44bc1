package main

import (
	"bytes"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
)

// busyShare is the share of the machine's CPU time taken by others from which
// on the report warns: rates then say more of the neighbours than of us.
const busyShare = 0.10

// report is BENCHMARKS.md. It is made of the raw results and of nothing else.
func report(runs []Run) []byte {
	var b bytes.Buffer
	r := chosen(runs)
	b.WriteString("# Benchmarks\n\nWritten by `go run ./bench -report` from the raw results in `bench/results`; edit neither. `make bench` measures anew.\n\n")
	if r.Quick {
		b.WriteString("> **This is a quick run**: small loads that try the harness. The figures below mean little; `make bench` on a quiet machine makes those that count.\n\n")
	}
	if busy := busiest(r); busy >= busyShare {
		fmt.Fprintf(&b, "> **The machine was not quiet**: up to %.0f %% of its CPU time went to processes that are no part of this run. Rates of one side alone mean little; ratios of pairs suffer less, times of CPU least.\n\n", 100*busy)
	}
	if len(r.machines) > 1 {
		b.WriteString("> **These are measures of several machines**, each the newest that there is. Both sides of a pair ran on one and the same, so ratios stand for themselves; figures of one side alone are of that machine.\n\n")
	}
	writeMachine(&b, r)
	writeMethod(&b)
	writeBars(&b, r)
	writeLosses(&b, r)
	writePictures(&b, r)
	writeMeasures(&b, r)
	writeRuns(&b, runs)
	return b.Bytes()
}

// chosen is what the report shows: each measure as the newest full run has it, or
// the newest run of all where there is no full one.
func chosen(runs []Run) *Run {
	var full []*Run // newest first
	for i := range slices.Backward(runs) {
		if r := &runs[i]; !r.Quick {
			full = append(full, r)
		}
	}
	switch len(full) {
	case 0:
		return &runs[len(runs)-1]
	case 1:
		return full[0]
	}
	return joined(full)
}

// joined makes one run of several, the newest first. Peers and settings are of
// whoever names them first. A pair was taken on one machine, but the report may
// have several, of which the newest run's is the first.
func joined(runs []*Run) *Run {
	all := *runs[0]
	all.Measures, all.Peers, all.Settings = nil, nil, nil
	for _, r := range runs {
		used := 0
		machine := slices.Index(all.machines, r.Machine)
		if machine < 0 {
			machine = len(all.machines)
		}
		for _, m := range r.Measures {
			if !slices.ContainsFunc(all.Measures, func(o Measure) bool { return o.Name == m.Name }) {
				m.machine = machine
				all.Measures = slices.Insert(all.Measures, behindTask(all.Measures, m), m)
				used++
			}
		}
		if used == 0 {
			continue
		}
		if machine == len(all.machines) {
			all.machines = append(all.machines, r.Machine)
		}
		all.parts = append(all.parts, part{r, used, machine})
		all.Peers = missing(all.Peers, r.Peers, func(p Peer) string { return p.Name })
		all.Settings = missing(all.Settings, r.Settings, func(s Setting) string { return s.Name })
	}
	return &all
}

// behindTask is behind the last measure of the same task, or the end.
func behindTask(all []Measure, m Measure) int {
	task, _, _ := strings.Cut(m.Name, "/")
	for i := range slices.Backward(all) {
		if own, _, _ := strings.Cut(all[i].Name, "/"); own == task {
			return i + 1
		}
	}
	return len(all)
}

// missing appends what have lacks.
func missing[T any](have, more []T, name func(T) string) []T {
	for _, m := range more {
		if !slices.ContainsFunc(have, func(h T) bool { return name(h) == name(m) }) {
			have = append(have, m)
		}
	}
	return have
}

func busiest(r *Run) float64 {
	most := 0.0
	for _, m := range r.Measures {
		most = max(most, m.Others)
	}
	return most
}

func writeMachine(b *bytes.Buffer, r *Run) {
	b.WriteString("| | |\n|---|---|\n")
	if len(r.parts) == 0 {
		writeWhen(b, r, "")
	}
	for _, p := range r.parts {
		writeWhen(b, p.run, fmt.Sprintf(": %d of the measures%s", p.measures, whereabouts(p.machine)))
	}
	for i, m := range machines(r) {
		fmt.Fprintf(b, "| machine%s | %s, %d CPUs, %.1f GiB |\n| system | %s %s, %s |\n| compiler | %s |\n", which(i), cell(m.CPU), m.CPUs, float64(m.MemoryKB)/(1<<20), m.OS, m.Kernel, m.Arch, m.Go)
	}
	for _, p := range r.Peers {
		version := cell(p.Version)
		if p.Missing {
			version = "missing: what needs it was not measured"
		}
		fmt.Fprintf(b, "| %s | %s |\n", cell(p.Name), version)
	}
	for _, s := range r.Settings {
		fmt.Fprintf(b, "| %s | %s |\n", cell(s.Name), s.text())
	}
	b.WriteString("\n")
}

func machines(r *Run) []Machine {
	if len(r.machines) == 0 {
		return []Machine{r.Machine}
	}
	return r.machines
}

// which is the number of a machine that is not the first.
func which(machine int) string {
	if machine == 0 {
		return ""
	}
	return fmt.Sprintf(" %d", machine+1)
}

// whereabouts says where something was measured, if not on the first machine.
func whereabouts(machine int) string {
	if machine == 0 {
		return ""
	}
	return ", on machine" + which(machine)
}

// heading is a measure's title, and where it was measured.
func (m Measure) heading() string { return m.Title + whereabouts(m.machine) }

func writeWhen(b *bytes.Buffer, r *Run, what string) {
	state := ""
	if r.Dirty {
		state = ", with changes that are not committed"
	}
	if !r.Programs {
		state += ", programs given by `-bin`"
	}
	fmt.Fprintf(b, "| when | %s, %s%s |\n| commit | `%s`%s |\n| command | `%s` |\n", r.Started.Format("2006-01-02 15:04 MST"), r.Ended.Sub(r.Started).Round(time.Second), what,
		r.Commit, state, cell(strings.Join(append([]string{"go run ./bench"}, r.Command...), " ")))
}

// text is what the setting was while it was measured, and why, where that is not what
// was wanted.
func (s Setting) text() string {
	switch {
	case s.Error != "":
		return fmt.Sprintf("%s; %s was wanted: %s", cell(s.Was), cell(s.Wanted), cell(s.Error))
	case s.Was == s.Wanted:
		return cell(s.Wanted)
	}
	return fmt.Sprintf("%s (%s before and after)", cell(s.Wanted), cell(s.Was))
}

func writeMethod(b *bytes.Buffer) {
	b.WriteString(`## How it is measured

Each figure is the median of the pairs. A pair is one sample of A, which is
Sallyport, and one of B, which it is held against, taken one right after the other; which comes first alternates, and one pair before all is not
kept. The ratio is the median of the pairs' ratios, A to B. Intervals are order-statistics intervals of the median at 95 % at least, which
assume nothing of the distribution: for 9 pairs from the 2nd smallest to the 2nd largest value (96.1 %), for 15 from the 4th to the 4th (96.5 %).
CPU is user and system time of the process alone, by its CPU clock, per thing done; nothing is subtracted for what it does when idle. A bar is met when the
interval's lower end is below it, and one of a rate when the upper end is above it.

Relays and tunnels have one core for themselves: both ends of a tunnel share it. Clients and servers are two processes on another core, or on the same
where the machine has only one. So a rate is that of one core at most, and where a relay is faster than clients and servers together it says what those
can do: CPU per thing done is the firm figure. Every program that is measured has a session of its own, since Linux may share CPU time by sessions. Go programs run with
GOMAXPROCS=2, which is faster on one core than 1, ours and others'. Clients come from 64 addresses. The relays' servers answer to the first bytes, echo
and one-byte answers on gnet, sinks and sources by a blocking call per 128 KiB. Tunnels carry the clients' TLS, which their agent ends, but for chisel, whose
clients speak none; Sallyport's agent also decides who may, and writes it down. Tunnels have no packet loss here.

For SSH, files, databases, Kubernetes and applications, auth, gateway and agent run as three processes; clients, servers and they share one machine and its
loopback, so they share its CPUs too: a client that costs CPU takes it from the server it measures, on either side. So does an agent that ends TLS on both
sides: where clients and servers alone use all CPUs, a way through it cannot have the rate of a direct one, and its CPU per thing done is the firm figure.

Your own gateway, whichever it is: ` + "`go run ./bench -target HOST:PORT -name NAME`" + ` says how fast a TLS server answers through it;
` + "`-servers 127.0.0.1:9001`" + ` in place of the name starts servers for it to pass streams to, and ` + "`-pid`" + ` adds its CPU time.

`)
}

// writeBars lists what has a bar: of A itself, or of its ratio to B.
func writeBars(b *bytes.Buffer, r *Run) {
	b.WriteString("## Bars\n\n| what | measured | 95 % interval | bar | |\n|---|---:|---:|---:|---|\n")
	for _, m := range r.Measures {
		for _, q := range m.Quantities {
			if q.Every {
				writeEvery(b, m, q)
			} else if e := estimateMedian(values(m.Pairs, sideA, q.Key)); q.Bar != 0 && e.N > 0 {
				fmt.Fprintf(b, "| %s: %s | %s%s | %s to %s | %s%s | %s |\n", m.heading(), q.Title, number(e.Median), q.Unit, number(e.Low), number(e.High), atLeast(q)+number(q.Bar), q.Unit, met(q, e, q.Bar))
			}
			if e := estimateMedian(ratios(m.Pairs, q.Key)); q.Ratio != 0 && e.N > 0 {
				fmt.Fprintf(b, "| %s: %s, to %s | %s | %s to %s | %s | %s |\n", m.heading(), q.Title, m.B, times(e.Median), times(e.Low), times(e.High), atLeast(q)+times(q.Ratio), met(q, e, q.Ratio))
			}
		}
	}
	b.WriteString("\n")
}

// writeEvery is a bar that each sample has to keep: a median would hide the one
// that did not. A measure that ended early has not kept it.
func writeEvery(b *bytes.Buffer, m Measure, q Quantity) {
	all := values(m.Pairs, sideA, q.Key)
	if len(all) == 0 {
		return
	}
	worst, word := slices.Max(all), "met"
	if q.More {
		worst = slices.Min(all)
	}
	if m.Error != "" || q.More && worst < q.Bar || !q.More && worst > q.Bar {
		word = "**not met**"
	}
	fmt.Fprintf(b, "| %s: %s | %s%s | the worst of %d | %s%s | %s |\n", m.heading(), q.Title, number(worst), q.Unit, len(all), atLeast(q)+number(q.Bar), q.Unit, word)
}

// met says whether a bar is, by the interval's end on the good side.
func met(q Quantity, e estimate, bar float64) string {
	missed, surely := e.Low >= bar, e.High < bar
	if q.More {
		missed, surely = e.High <= bar, e.Low > bar
	}
	switch {
	case missed:
		return "**not met**"
	case surely:
		return "met"
	}
	return "met, not surely"
}

// atLeast marks a bar that is not to be fallen short of.
func atLeast(q Quantity) string {
	if q.More {
		return "at least "
	}
	return ""
}

// verdict of a ratio: worse, better or neither, by the whole interval.
func verdict(q Quantity, e estimate) string {
	below, above := e.High < 1, e.Low > 1
	switch {
	case q.Note:
		return ""
	case below && q.More, above && !q.More:
		return "worse"
	case below, above:
		return "better"
	}
	return "no difference shown"
}

// writeLosses puts first what a reader should hear first: where we are behind.
func writeLosses(b *bytes.Buffer, r *Run) {
	type loss struct {
		text string
		by   float64
	}
	var all []loss
	for _, m := range r.Measures {
		for _, q := range m.Quantities {
			e := estimateMedian(ratios(m.Pairs, q.Key))
			if m.Floor || e.N == 0 || verdict(q, e) != "worse" {
				continue
			}
			by := e.Median
			if q.More {
				by = 1 / e.Median
			}
			all = append(all, loss{fmt.Sprintf("- %s, %s: %s of %s (%s to %s)\n", m.heading(), q.Title, times(e.Median), m.B, times(e.Low), times(e.High)), by})
		}
	}
	slices.SortStableFunc(all, func(a, b loss) int {
		switch {
		case a.by > b.by:
			return -1
		case a.by < b.by:
			return 1
		}
		return 0
	})
	if len(all) == 0 {
		return
	}
	b.WriteString("## Where it is behind\n\nThe worst first; the whole interval is on the wrong side of 1.\n\n")
	for _, l := range all {
		b.WriteString(l.text)
	}
	b.WriteString("\n")
}

func writeMeasures(b *bytes.Buffer, r *Run) {
	b.WriteString("## All measures\n\n")
	for rest := r.Measures; len(rest) > 0; {
		n := together(rest)
		if n == 1 {
			writeMeasure(b, rest[0])
		} else {
			writeTask(b, rest[:n])
		}
		rest = rest[n:]
	}
}

// together is how many measures at the beginning differ by the peer alone.
func together(all []Measure) int {
	task, _, _ := strings.Cut(all[0].Name, "/")
	for i, m := range all {
		own, _, _ := strings.Cut(m.Name, "/")
		if own != task || m.Title != all[0].Title || m.A != all[0].A || m.machine != all[0].machine {
			return i
		}
	}
	return len(all)
}

// writeTask is one table for measures that differ by the peer alone.
func writeTask(b *bytes.Buffer, all []Measure) {
	task, _, _ := strings.Cut(all[0].Name, "/")
	fmt.Fprintf(b, "### %s\n\n`%s`. A: %s. One sample: %s.\n\n", cell(all[0].heading()), task, cell(all[0].A), cell(all[0].Load))
	b.WriteString("| B | | A | B | A to B | 95 % interval | |\n|---|---|---:|---:|---:|---:|---|\n")
	for _, m := range all {
		for _, q := range m.Quantities {
			writeRow(b, m, q, "| "+cell(m.B)+" ")
		}
	}
	b.WriteString("\n")
	for _, m := range all {
		switch _, peer, _ := strings.Cut(m.Name, "/"); {
		case m.Missing != "":
			fmt.Fprintf(b, "- `%s` was not measured: %s is missing.\n", peer, m.Missing)
		case m.Error != "":
			fmt.Fprintf(b, "- `%s` **ended early**, after %d pairs: %s\n", peer, len(m.Pairs), cell(m.Error))
		default:
			fmt.Fprintf(b, "- `%s`: %d pairs in %.0f s, %.0f %% of the CPU time went to others", peer, len(m.Pairs), m.Seconds, 100*m.Others)
			if m.Load != all[0].Load {
				fmt.Fprintf(b, "; one sample: %s", cell(m.Load))
			}
			b.WriteString(".\n")
		}
	}
	b.WriteString("\n")
}

func writeMeasure(b *bytes.Buffer, m Measure) {
	fmt.Fprintf(b, "### %s\n\n`%s`. A: %s.", cell(m.heading()), m.Name, cell(m.A))
	if m.B != "" {
		fmt.Fprintf(b, " B: %s.", cell(m.B))
	}
	fmt.Fprintf(b, " One sample: %s.\n\n", cell(m.Load))
	if m.Missing != "" {
		fmt.Fprintf(b, "Not measured: %s is missing.\n\n", m.Missing)
		return
	}
	if m.Error != "" {
		fmt.Fprintf(b, "**Ended early**, after %d pairs: %s\n\n", len(m.Pairs), cell(m.Error))
	}
	if len(m.Pairs) == 0 {
		return
	}
	b.WriteString("| | A | B | A to B | 95 % interval | |\n|---|---:|---:|---:|---:|---|\n")
	for _, q := range m.Quantities {
		writeRow(b, m, q, "")
	}
	fmt.Fprintf(b, "\n%d pairs in %.0f s; load average %.1f before, %.1f after; %.0f %% of the CPU time went to others.\n\n", len(m.Pairs), m.Seconds, m.LoadBefore, m.LoadAfter, 100*m.Others)
}

// writeRow is one quantity, after the cells that begin its row.
func writeRow(b *bytes.Buffer, m Measure, q Quantity, cells string) {
	ours, theirs := estimateMedian(values(m.Pairs, sideA, q.Key)), estimateMedian(values(m.Pairs, sideB, q.Key))
	if ours.N == 0 {
		return
	}
	fmt.Fprintf(b, "%s| %s | %s%s", cells, q.Title, number(ours.Median), q.Unit)
	ratio := estimateMedian(ratios(m.Pairs, q.Key))
	if ratio.N == 0 {
		fmt.Fprintf(b, " | | | A: %s to %s%s | |\n", number(ours.Low), number(ours.High), short(ours))
		return
	}
	word := verdict(q, ratio)
	if m.Floor {
		word = ""
	}
	fmt.Fprintf(b, " | %s%s | %s | %s to %s%s | %s |\n", number(theirs.Median), q.Unit, times(ratio.Median), times(ratio.Low), times(ratio.High), short(ratio), word)
}

// short says when there are too few values for the confidence promised.
func short(e estimate) string {
	if e.Coverage >= confidence {
		return ""
	}
	return fmt.Sprintf(" (%.0f %% only, %d values)", 100*e.Coverage, e.N)
}

// writeRuns lists what is kept, newest first.
func writeRuns(b *bytes.Buffer, runs []Run) {
	b.WriteString("## Runs kept\n\n| when | commit | kind | measures |\n|---|---|---|---:|\n")
	for i := range slices.Backward(runs) {
		r := runs[i]
		kind := "full"
		if r.Quick {
			kind = "quick"
		}
		dirty := ""
		if r.Dirty {
			dirty = " and changes"
		}
		fmt.Fprintf(b, "| %s | `%s`%s | %s | %d |\n", r.Started.Format("2006-01-02 15:04"), r.Commit, dirty, kind, len(r.Measures))
	}
}

// number writes three significant digits.
func number(v float64) string {
	switch {
	case math.IsNaN(v):
		return "-"
	case math.Abs(v) >= 100:
		return fmt.Sprintf("%.0f", v)
	case math.Abs(v) >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

func times(v float64) string { return number(v) + "×" }

// cell is text within a table or a line.
func cell(s string) string {
	return strings.NewReplacer("\n", " ", "\r", " ", "|", `\|`).Replace(strings.TrimSpace(s))
}
