package plot

import (
	"bytes"
	"encoding/xml"
	"io"
	"math"
	"strings"
	"testing"
)

func wellFormed(t *testing.T, b []byte) {
	t.Helper()
	for d := xml.NewDecoder(bytes.NewReader(b)); ; {
		_, err := d.Token()
		if err == io.EOF {
			return
		}
		if err != nil {
			t.Fatalf("%v\n%s", err, b)
		}
	}
}

func TestRatios(t *testing.T) {
	p := Ratios{Title: "CPU <per> GB & more", Rows: []Ratio{
		{Label: `"quoted"`, Median: 0.5, Low: 0.4, High: 0.7, Bar: 0.3, Sign: Better},
		{Label: "worse", Median: 12, Low: 10, High: 30, Sign: Worse},
		{Label: "no place", Median: 0, Low: -1, High: 2},
		{Label: "nor this", Median: 1, Low: 1, High: math.Inf(1)},
	}}
	b := p.SVG()
	wellFormed(t, b)
	for want, n := range map[string]int{"<circle": 2, "stroke-dasharray": 1, "CPU &lt;per&gt; GB &amp; more": 2, "&quot;quoted&quot;": 1, "no place": 0, "nor this": 0, ">12×<": 1, ">0.5×<": 2, "#c0392b": 2} {
		if got := strings.Count(string(b), want); got != n {
			t.Errorf("%d of %s, want %d\n%s", got, want, n, b)
		}
	}
	if !bytes.Equal(b, p.SVG()) {
		t.Error("the same numbers, another picture")
	}
	for _, bad := range []string{"NaN", "Inf"} {
		if strings.Contains(string(b), bad) {
			t.Errorf("%s in\n%s", bad, b)
		}
	}
}

func TestLines(t *testing.T) {
	p := Lines{Title: "p50", X: "connections", Y: "µs", Series: []Series{
		{Label: "ours", Points: []Point{{1, 20, 18, 22}, {9000, 60, 50, 90}}},
		{Label: "theirs", Points: []Point{{1, 30, 28, 32}, {100, 0, 0, 0}, {9000, 600, 500, 900}}},
	}}
	b := p.SVG()
	wellFormed(t, b)
	for want, n := range map[string]int{"<circle": 6, ">9,000<": 1, ">connections<": 1, ">ours<": 1, "NaN": 0} {
		if got := strings.Count(string(b), want); got != n {
			t.Errorf("%d of %s, want %d\n%s", got, want, n, b)
		}
	}
	wellFormed(t, Lines{Title: "empty"}.SVG())
	wellFormed(t, Ratios{Title: "empty"}.SVG())
	wellFormed(t, Lines{Series: []Series{{Points: []Point{{1, 5, 5, 5}}}}}.SVG())
}

func TestLogAxis(t *testing.T) {
	x := logAxis(0.1, 10, 100, 300)
	for v, want := range map[float64]float64{0.1: 100, 1: 200, 10: 300} {
		if got := x(v); math.Abs(got-want) > 1e-9 {
			t.Errorf("%v at %v, want %v", v, got, want)
		}
	}
	if got := logAxis(5, 5, 0, 100)(5); math.IsNaN(got) {
		t.Error("one value has no place")
	}
}

func TestShort(t *testing.T) {
	for v, want := range map[float64]string{0.05: "0.05", 0.5: "0.5", 0.123: "0.123", 1: "1", 1.5: "1.5", 1.25: "1.25", 12.3: "12", 9000: "9,000", 1234: "1234", 100: "100", 2: "2"} {
		if got := short(v); got != want {
			t.Errorf("%v: %s, want %s", v, got, want)
		}
	}
}
