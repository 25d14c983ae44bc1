package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// schema is the version of the raw results' form.
const schema = 1

// Run is one run of the harness: everything that the report is made of.
type Run struct {
	Schema   int       `json:"schema"`
	Started  time.Time `json:"started"`
	Ended    time.Time `json:"ended"`
	Quick    bool      `json:"quick"`
	Command  []string  `json:"command"` // arguments of the harness
	Commit   string    `json:"commit"`
	Dirty    bool      `json:"dirty"`    // the working tree differed from the commit
	Programs bool      `json:"programs"` // built by this run; else given by -bin
	Machine  Machine   `json:"machine"`
	Peers    []Peer    `json:"peers"`
	Settings []Setting `json:"settings,omitempty"`
	Measures []Measure `json:"measures"`

	parts    []part    // of a report that joins several runs
	machines []Machine // of these, the newest run's first
}

// part is what a report takes of one run.
type part struct {
	run      *Run
	measures int
	machine  int // its place among the report's
}

// Machine is where it ran.
type Machine struct {
	OS       string `json:"os"`
	Arch     string `json:"arch"`
	Kernel   string `json:"kernel"`
	CPU      string `json:"cpu"`
	CPUs     int    `json:"cpus"`
	MemoryKB uint64 `json:"memory_kb"`
	Go       string `json:"go"`
}

// Peer is a foreign program.
type Peer struct {
	Name    string `json:"name"`
	Version string `json:"version,omitempty"`
	Missing bool   `json:"missing,omitempty"`
}

// Measure is one comparison: A is ours, B what it is held against.
type Measure struct {
	Name       string     `json:"name"`
	Title      string     `json:"title"`
	A          string     `json:"a"`
	B          string     `json:"b,omitempty"`
	Floor      bool       `json:"floor,omitempty"` // B does less than A: what is least possible here, no peer
	Load       string     `json:"load"`            // what one sample does
	Quantities []Quantity `json:"quantities"`
	Started    time.Time  `json:"started"`
	Seconds    float64    `json:"seconds"`
	LoadBefore float64    `json:"load_average_before"` // of the last minute
	LoadAfter  float64    `json:"load_average_after"`
	Others     float64    `json:"cpu_of_others"`     // share of the machine's CPU time, while it was measured, that went to processes not of this run
	Missing    string     `json:"missing,omitempty"` // the peer without which it could not be measured
	Error      string     `json:"error,omitempty"`   // what ended it early
	Pairs      []Pair     `json:"pairs"`

	machine int // its place among the report's
}

// Quantity is one thing that samples tell.
type Quantity struct {
	Key   string  `json:"key"`
	Title string  `json:"title"`
	Unit  string  `json:"unit"`
	More  bool    `json:"more"`            // more is better
	Bar   float64 `json:"bar,omitempty"`   // A must not be above, or with More not below; 0: none
	Ratio float64 `json:"ratio,omitempty"` // A must not be above so many times B, or with More not below; 0: none
	Every bool    `json:"every,omitempty"` // the bar is for each sample of A and may be reached, and a Bar of 0 is one
	Note  bool    `json:"note,omitempty"`  // no merit of either side
}

// Pair is one sample of each side, taken one after the other.
type Pair struct {
	First string `json:"first"` // "A" or "B": they take turns
	A     Sample `json:"a"`
	B     Sample `json:"b,omitempty"`
}

// Sample is one measurement: quantities by key.
type Sample map[string]float64

// keepRun writes a run into a file of its own.
func keepRun(dir string, r *Run) (string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	b, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return "", err
	}
	name := r.Started.Format("20060102T150405Z") + "-" + r.Commit
	if r.Quick {
		name += "-quick"
	}
	path := filepath.Join(dir, name+".json")
	return path, os.WriteFile(path, append(b, '\n'), 0o644)
}

// loadRuns reads all runs kept, oldest first.
func loadRuns(dir string) ([]Run, error) {
	paths, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil {
		return nil, err
	}
	var out []Run
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		var r Run
		if err := json.Unmarshal(b, &r); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		if r.Schema != schema {
			return nil, fmt.Errorf("%s: schema %d; this harness reads %d", path, r.Schema, schema)
		}
		out = append(out, r)
	}
	if len(out) == 0 {
		return nil, errors.New("no results in " + dir + "; go run ./bench makes some")
	}
	slices.SortFunc(out, func(a, b Run) int {
		return strings.Compare(a.Started.Format(time.RFC3339), b.Started.Format(time.RFC3339))
	})
	return out, nil
}
