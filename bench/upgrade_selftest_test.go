package main

import (
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/sallyport/sallyport/test/executable"
)

// said is a self-test's result, with one field of it as asked.
func said(t *testing.T, quantities []Quantity, field, value string) string {
	t.Helper()
	var fields []string
	for _, q := range quantities {
		v := "1"
		if q.Key == field {
			v = value
		}
		fields = append(fields, strconv.Quote(q.Key)+": "+v)
	}
	if field == "problem" || field == "reasons" {
		fields = append(fields, strconv.Quote(field)+": "+value)
	}
	return "{" + strings.Join(append(fields, `"bytes_verified": 5`), ", ") + "}"
}

// TestSelfTestSample: what the self-test says is the sample, also when it is not
// content; what it does not say, and an early end, are errors.
func TestSelfTestSample(t *testing.T) {
	wants := selfTest{asked: 100, upgrades: 2, stall: 5, stallWorst: 100}.quantities()
	for _, c := range []struct {
		name, script string
		lost         float64
		err          string
	}{
		{"content", "echo '" + said(t, wants, "lost", "0") + "'", 0, ""},
		{"not content", "echo '" + said(t, wants, "lost", "3") + "'; exit 1", 3, ""},
		{"silent", "echo no room >&2; exit 1", 0, "no room"},
		{"silent and content", "exit 0", 0, "no result"},
		{"early end", "echo '" + said(t, wants, "problem", `"upgrade 2: it broke"`) + "'; exit 1", 0, "it broke"},
		{"less than is wanted", "echo '{\"lost\": 0}'", 0, "does not say"},
		{"no JSON", "echo hello", 0, "nothing that can be read"},
	} {
		t.Run(c.name, func(t *testing.T) {
			program := filepath.Join(t.TempDir(), "sallyport")
			if err := executable.Write(program, []byte("#!/bin/sh\n"+c.script+"\n"), 0o700); err != nil {
				t.Fatal(err)
			}
			got, err := takeSelfTest(t.Context(), program, []string{"selftest"}, wants)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Fatalf("%v, want %s", err, c.err)
				}
				return
			}
			if err != nil || got["lost"] != c.lost || got["stall_p99_ms"] != 1 || got["bytes_verified"] != 5 {
				t.Errorf("%v, %v", got, err)
			}
		})
	}
}

// TestSelfTestLoad: the load is that of the other upgrades, and the bar is of
// what was asked for, whatever a machine has room for.
func TestSelfTestLoad(t *testing.T) {
	z := sizesFor(options{})
	w := &upgradeWorld{}
	all := w.selfTests(z)
	if len(all) != 2 {
		t.Fatalf("%d self-tests", len(all))
	}
	for i, asked := range []float64{smallCrowd, 8000} {
		m := all[i]
		if m.b != nil || m.pairs != leastPairs || m.within != selfTestWithin || !strings.Contains(m.Load, "--upgrades=100") {
			t.Errorf("%s: %+v", m.Name, m)
		}
		bars := map[string]Quantity{}
		for _, q := range m.Quantities {
			bars[q.Key] = q
		}
		if bars["kept"].Bar != asked || !bars["kept"].Every || !bars["lost"].Every || !bars["corrupted"].Every || !bars["refused"].Every || bars["stall_max_ms"].Bar != 100 ||
			bars["released_ms"].Bar != 2000 || !bars["released_ms"].Every || bars["memory_peak"].Bar != 1.3 {
			t.Errorf("%s: %+v", m.Name, bars)
		}
	}
	if got := all[1].Quantities; got[6].Bar != 20 || all[0].Quantities[6].Bar != 5 {
		t.Errorf("the bars of the 99th of a hundred: %v, %v", all[0].Quantities[6], got[6])
	}
}
