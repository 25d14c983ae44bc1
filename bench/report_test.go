package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// made is a run with n pairs, in which A is always rate and B is 100.
func made(n int, rate float64) Run {
	m := Measure{
		Name: "thing", Title: "Thing", A: "ours", B: "theirs", Load: "one | two",
		Quantities: []Quantity{{Key: "rate", Title: "things", Unit: "/s", More: true}, {Key: "cpu", Title: "CPU", Unit: "µs", Bar: 150}},
	}
	for range n {
		m.Pairs = append(m.Pairs, Pair{First: "A", A: Sample{"rate": rate, "cpu": 200}, B: Sample{"rate": 100}})
	}
	return Run{
		Schema: schema, Started: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Commit: "abc", Programs: true,
		Settings: []Setting{{Name: "somaxconn", Was: "1", Wanted: "2"}},
		Peers:    []Peer{{Name: "sshd", Version: "OpenSSH_9.2"}, {Name: "postgres", Missing: true}}, Measures: []Measure{m},
	}
}

func TestReport(t *testing.T) {
	r := made(9, 50)
	r.Measures = append(r.Measures, Measure{Name: "none", Title: "None", Missing: "postgres"}, Measure{Name: "cut", Title: "Cut", Error: "it broke"})
	got := string(report([]Run{r}))
	for _, want := range []string{
		"| things | 50.0/s | 100/s | 0.50× | 0.50× to 0.50× | worse |",
		"- Thing, things: 0.50× of theirs",
		"| Thing: CPU | 200µs | 200 to 200 | 150µs | **not met** |",
		"| postgres | missing", "Not measured: postgres is missing.", "**Ended early**, after 0 pairs: it broke", `one \| two`,
	} {
		if !strings.Contains(got, want) {
			t.Errorf("not in the report: %s\n%s", want, got)
		}
	}
	for _, not := range []string{"quick run", "not quiet"} {
		if strings.Contains(got, not) {
			t.Errorf("in the report of a full run on a quiet machine: %s", not)
		}
	}
}

// TestReportEvery: a bar for each sample is missed by the one that misses it, may be
// 0 and may be reached; and it is not kept by what ended early.
func TestReportEvery(t *testing.T) {
	r := made(9, 50)
	m := &r.Measures[0]
	m.Quantities = []Quantity{{Key: "lost", Title: "lost", Every: true}, {Key: "kept", Title: "kept", Every: true, More: true, Bar: 100}, {Key: "none", Title: "none", Every: true}}
	for i := range m.Pairs {
		m.Pairs[i].A = Sample{"lost": 0, "kept": 100}
	}
	look := func(wants ...string) {
		t.Helper()
		got := string(report([]Run{r}))
		for _, want := range wants {
			if !strings.Contains(got, want) {
				t.Errorf("not in the report: %s\n%s", want, got)
			}
		}
	}
	look("| Thing: lost | 0.00 | the worst of 9 | 0.00 | met |", "| Thing: kept | 100 | the worst of 9 | at least 100 | met |")
	if strings.Contains(string(report([]Run{r})), "Thing: none") {
		t.Error("a bar of what was not measured")
	}
	m.Error = "it broke"
	look("| Thing: lost | 0.00 | the worst of 9 | 0.00 | **not met** |")
	m.Error = ""
	m.Pairs[4].A = Sample{"lost": 1, "kept": 99}
	look("| Thing: lost | 1.00 | the worst of 9 | 0.00 | **not met** |", "| Thing: kept | 99.0 | the worst of 9 | at least 100 | **not met** |")
}

func TestReportWarns(t *testing.T) {
	r := made(5, 150)
	r.Quick, r.Measures[0].Others = true, 0.4
	got := string(report([]Run{r}))
	for _, want := range []string{"This is a quick run", "up to 40 %", "(94 % only, 5 values)", "| better |"} {
		if !strings.Contains(got, want) {
			t.Errorf("not in the report: %s\n%s", want, got)
		}
	}
	if strings.Contains(got, "Where it is behind") {
		t.Error("a loss is told where there is none")
	}
}

// TestReportChoosesFull: a quick run never takes a full one's place.
func TestReportChoosesFull(t *testing.T) {
	full, quick := made(9, 50), made(9, 60)
	quick.Quick, quick.Started = true, full.Started.Add(time.Hour)
	if got := chosen([]Run{full, quick}); got.Quick {
		t.Error("the quick run was chosen")
	}
	if got := chosen([]Run{quick}); !got.Quick {
		t.Error("no run was chosen")
	}
}

// TestReportJoins: of each measure the newest full run's figure is shown, and
// which run that was; what was measured on another machine is marked.
func TestReportJoins(t *testing.T) {
	older, newer, foreign := made(9, 50), made(9, 60), made(9, 70)
	newer.Started, foreign.Started = older.Started.Add(time.Hour), older.Started.Add(-time.Hour)
	foreign.Machine.CPU = "another"
	other := older.Measures[0]
	other.Name = "other"
	older.Measures = append(older.Measures, other)
	foreign.Measures[0].Name = "foreign"
	got := chosen([]Run{foreign, older, newer})
	if len(got.Measures) != 3 || got.Measures[0].Pairs[0].A["rate"] != 60 || got.Measures[1].Name != "other" || got.Measures[1].machine != 0 || got.Measures[2].machine != 1 {
		t.Errorf("got %+v", got.Measures)
	}
	if len(got.parts) != 3 || got.parts[0].measures != 1 || got.parts[1].measures != 1 {
		t.Errorf("parts %+v", got.parts)
	}
	text := string(report([]Run{foreign, older, newer}))
	if strings.Count(text, "| when | 20") != 3 || !strings.Contains(text, ": 1 of the measures |") {
		t.Errorf("the report does not say which runs it joins:\n%s", text)
	}
	for _, want := range []string{"several machines", "1 of the measures, on machine 2 |", "| machine | ", "| machine 2 | another", "### " + foreign.Measures[0].Title + ", on machine 2\n"} {
		if !strings.Contains(text, want) {
			t.Errorf("the report does not have %q:\n%s", want, text)
		}
	}
	if text := string(report([]Run{older, newer})); strings.Contains(text, "machine 2") || strings.Contains(text, "several machines") {
		t.Errorf("one machine is told as several:\n%s", text)
	}
}

// peersOf is a run with several peers for one task.
func peersOf(task, key string, peers ...string) Run {
	r := made(9, 50)
	m := r.Measures[0]
	m.Quantities = []Quantity{{Key: key, Title: "CPU per GB", Unit: " s", Ratio: 0.7}}
	for i := range m.Pairs {
		m.Pairs[i] = Pair{First: "A", A: Sample{key: 1}, B: Sample{key: 2}}
	}
	r.Measures = nil
	for _, p := range peers {
		m.Name, m.B = task+"/"+p, "program "+p
		r.Measures = append(r.Measures, m)
	}
	return r
}

// TestReportTasks: measures that differ by the peer alone are one table.
func TestReportTasks(t *testing.T) {
	r := peersOf("relay-up-4", "cpu", "nginx", "sslh", "gone", "cut")
	r.Measures[1].Load = "less (400 here)"
	r.Measures[2].Missing, r.Measures[2].Pairs = "gone", nil
	r.Measures[3].Error, r.Measures[3].Pairs = "it ended", nil
	got := string(report([]Run{r}))
	for _, want := range []string{
		"| program nginx | CPU per GB | 1.00 s | 2.00 s | 0.50× | 0.50× to 0.50× | better |\n| program sslh | CPU", "- `gone` was not measured: gone is missing.",
		"- `cut` **ended early**, after 0 pairs: it ended", "; one sample: less (400 here).", "![Relay: CPU per GB, Sallyport to each peer](bench/plots/relay-bulk.svg)",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("not in the report: %s\n%s", want, got)
		}
	}
	if n := strings.Count(got, "### Thing"); n != 1 {
		t.Errorf("%d sections", n)
	}
}

func TestPictures(t *testing.T) {
	r := peersOf("relay-up-4", "cpu", "nginx", "sslh")
	floor := peersOf("relay-up-4", "cpu", "direct").Measures[0]
	floor.Floor = true
	r.Measures = append(r.Measures, floor)
	for _, n := range []string{"1", "9000"} {
		r.Measures = append(r.Measures, peersOf("relay-crowd-"+n, "p50", crowdPeer, "nginx").Measures...)
	}
	all := pictures(&r)
	if len(all) != 2 || all[0].file != "relay-bulk.svg" || all[1].file != "relay-crowd.svg" {
		t.Fatalf("%d pictures", len(all))
	}
	if svg := string(all[0].svg); strings.Count(svg, "<circle") != 2 || !strings.Contains(svg, ">up 4, nginx<") || strings.Contains(svg, "direct") {
		t.Errorf("%s", svg)
	}
	if svg := string(all[1].svg); !strings.Contains(svg, ">Sallyport<") || !strings.Contains(svg, ">9,000<") || strings.Count(svg, "<circle") != 3*2+3 {
		t.Errorf("%s", svg)
	}
	dir := filepath.Join(t.TempDir(), "plots")
	if err := keepPictures(dir, all); err != nil {
		t.Fatal(err)
	}
	if err := keepPictures(dir, all[:1]); err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(dir + "/*"); len(left) != 1 {
		t.Errorf("%v are left", left)
	}
}

// TestReportRatios: a bar to a peer counts as met when the interval's lower end
// is below it.
func TestReportRatios(t *testing.T) {
	r := made(9, 50)
	r.Measures[0].Quantities = []Quantity{
		{Key: "rate", Title: "met", Ratio: 0.6}, {Key: "rate", Title: "missed", Ratio: 0.5},
		{Key: "rate", Title: "noted", Note: true},
	}
	got := string(report([]Run{r}))
	for _, want := range []string{"| Thing: met, to theirs | 0.50× | 0.50× to 0.50× | 0.60× | met |", "| Thing: missed, to theirs | 0.50× | 0.50× to 0.50× | 0.50× | **not met** |", "| somaxconn | 2 (1 before and after) |", "| noted | 50.0 | 100 | 0.50× | 0.50× to 0.50× |  |"} {
		if !strings.Contains(got, want) {
			t.Errorf("not in the report: %s\n%s", want, got)
		}
	}
}

// TestReportRates: a bar of a rate counts as met when the interval's upper end is
// above it.
func TestReportRates(t *testing.T) {
	r := made(9, 50)
	r.Measures[0].Quantities = []Quantity{
		{Key: "rate", Title: "met", More: true, Ratio: 0.4, Bar: 40}, {Key: "rate", Title: "missed", More: true, Ratio: 0.6, Bar: 60},
	}
	r.Measures[0].Pairs[0].A["rate"], r.Measures[0].Pairs[1].A["rate"], r.Measures[0].Pairs[2].A["rate"] = 70, 70, 70
	got := string(report([]Run{r}))
	for _, want := range []string{
		"| Thing: met | 50.0 | 50.0 to 70.0 | at least 40.0 | met |", "| Thing: missed | 50.0 | 50.0 to 70.0 | at least 60.0 | met, not surely |",
		"| Thing: met, to theirs | 0.50× | 0.50× to 0.70× | at least 0.40× | met |",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("not in the report: %s\n%s", want, got)
		}
	}
	for i := range r.Measures[0].Pairs {
		r.Measures[0].Pairs[i].A["rate"] = 50
	}
	if got := string(report([]Run{r})); !strings.Contains(got, "| Thing: missed, to theirs | 0.50× | 0.50× to 0.50× | at least 0.60× | **not met** |") {
		t.Errorf("a missed bar of a rate is not told:\n%s", got)
	}
}

func TestReportFloor(t *testing.T) {
	r := made(9, 50)
	r.Measures[0].Floor = true
	if got := string(report([]Run{r})); strings.Contains(got, "behind") || strings.Contains(got, "worse") {
		t.Errorf("a floor counts as a peer:\n%s", got)
	}
}

func TestKeepRun(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "results")
	first, second := made(9, 50), made(9, 60)
	second.Started = first.Started.Add(time.Second)
	for _, r := range []*Run{&second, &first} {
		if _, err := keepRun(dir, r); err != nil {
			t.Fatal(err)
		}
	}
	runs, err := loadRuns(dir)
	if err != nil || len(runs) != 2 || !runs[0].Started.Before(runs[1].Started) {
		t.Fatalf("%d runs, %v", len(runs), err)
	}
	if !bytes.Equal(report(runs), report([]Run{first, second})) {
		t.Error("the report of what was kept is another")
	}
	if err := os.WriteFile(filepath.Join(dir, "x.json"), []byte(`{"schema": 99}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := loadRuns(dir); err == nil {
		t.Error("a schema of another harness was read")
	}
	if _, err := loadRuns(t.TempDir()); err == nil {
		t.Error("nothing was read as results")
	}
}

// TestReportIsFresh: what is committed is made of what is committed.
func TestReportIsFresh(t *testing.T) {
	runs, err := loadRuns("results")
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile("../BENCHMARKS.md")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(report(runs), want) {
		t.Error("BENCHMARKS.md is not what go run ./bench -report writes")
	}
	drawn, err := filepath.Glob("plots/*.svg")
	if err != nil {
		t.Fatal(err)
	}
	all := pictures(chosen(runs))
	if len(drawn) != len(all) {
		t.Errorf("%d pictures are kept, the report has %d", len(drawn), len(all))
	}
	for _, p := range all {
		if b, err := os.ReadFile(filepath.Join("plots", p.file)); err != nil || !bytes.Equal(b, p.svg) {
			t.Errorf("plots/%s is not what go run ./bench -report writes: %v", p.file, err)
		}
	}
	for _, r := range runs {
		for _, m := range r.Measures {
			if m.Error == "" && m.Missing == "" && len(m.Pairs) < leastPairs {
				t.Errorf("%s of %s: %d pairs, fewer than %d", m.Name, r.Commit, len(m.Pairs), leastPairs)
			}
		}
	}
}
