package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/sallyport/sallyport/bench/plot"
)

// picture is one file beside the report.
type picture struct {
	file, title string
	svg         []byte
}

// panel is a picture of ratios: quantities of measures, by prefixes of names.
type panel struct {
	file, title string
	prefixes    []string
	key         string
}

// panels are what is drawn, in the order of the report.
var panels = [...]panel{
	{"relay-bulk.svg", "Relay: CPU per GB, Sallyport to each peer", []string{"relay-up-", "relay-down-"}, "cpu"},
	{"relay-connect.svg", "Relay: CPU per routed connection, Sallyport to each peer", []string{"relay-connect/"}, "cpu"},
	{"relay-p50.svg", "Relay: 64 bytes there and back, median, Sallyport to each peer", []string{"relay-ping-"}, "p50"},
	{"relay-p99.svg", "Relay: 64 bytes there and back, the slowest in a hundred, Sallyport to each peer", []string{"relay-ping-"}, "p99"},
	{"relay-idle.svg", "Relay: memory per idle connection, Sallyport to each peer", []string{"relay-idle/"}, "rss"},
	{"tunnel-bulk.svg", "Tunnel: CPU per GB of gateway and agent, Sallyport to each peer", []string{"tunnel-up-", "tunnel-down-"}, "cpu"},
	{"tunnel-connect.svg", "Tunnel: CPU per connection of gateway and agent, Sallyport to each peer", []string{"tunnel-connect/"}, "cpu"},
	{"tunnel-p50.svg", "Tunnel: first byte, and 64 bytes there and back, median, Sallyport to each peer", []string{"tunnel-first/", "tunnel-ping-1/"}, "p50"},
	{"tunnel-beside.svg", "Tunnel: 64 bytes there and back beside 200 MB/s, the slowest in ten, Sallyport to each peer", []string{"tunnel-ping-beside/"}, "p90"},
	{"tunnel-idle.svg", "Tunnel: memory per idle connection of gateway and agent, Sallyport to each peer", []string{"tunnel-idle/"}, "rss"},
	{"access.svg", "SSH and databases: how often per second, Sallyport to the server itself (more is better)", []string{"ssh-exec/", "ssh-bytes/", "db-session/", "copy/"}, "rate"},
}

// pictures are those that a run has values for.
func pictures(r *Run) []picture {
	var out []picture
	for _, p := range panels {
		if rows := p.rows(r); len(rows) > 0 {
			out = append(out, picture{p.file, p.title, plot.Ratios{Title: p.title, Rows: rows}.SVG()})
		}
	}
	if c := crowded(r); len(c.Series) > 0 {
		out = append(out, picture{"relay-crowd.svg", c.Title, c.SVG()})
	}
	return out
}

func (p panel) rows(r *Run) []plot.Ratio {
	var out []plot.Ratio
	for _, m := range r.Measures {
		if m.Floor || !slices.ContainsFunc(p.prefixes, func(s string) bool { return strings.HasPrefix(m.Name, s) }) {
			continue
		}
		for _, q := range m.Quantities {
			e := estimateMedian(ratios(m.Pairs, q.Key))
			if q.Key != p.key || e.N == 0 {
				continue
			}
			row := plot.Ratio{Label: rowLabel(m.Name), Median: e.Median, Low: e.Low, High: e.High, Bar: q.Ratio}
			switch verdict(q, e) {
			case "better":
				row.Sign = plot.Better
			case "worse":
				row.Sign = plot.Worse
			}
			out = append(out, row)
		}
	}
	return out
}

// rowLabel is a measure's name for readers: "relay-up-4/nginx" is "up 4, nginx".
func rowLabel(name string) string {
	task, peer, _ := strings.Cut(name, "/")
	for _, prefix := range []string{"relay-", "tunnel-"} {
		if rest, ok := strings.CutPrefix(task, prefix); ok {
			return strings.ReplaceAll(rest, "-", " ") + ", " + peer
		}
	}
	return strings.ReplaceAll(task, "-", " ") + ", " + peer
}

// crowded is the median of pings over the number of connections: times, so all of
// one machine.
func crowded(r *Run) plot.Lines {
	out := plot.Lines{Title: "Relay: 64 bytes there and back, median, over the number of connections", X: "connections", Y: "µs"}
	series := map[string]*plot.Series{}
	var order []string
	add := func(label string, n float64, values []float64) {
		e := estimateMedian(values)
		if e.N == 0 {
			return
		}
		if series[label] == nil {
			series[label] = &plot.Series{Label: label}
			order = append(order, label)
		}
		series[label].Points = append(series[label].Points, plot.Point{X: n, Y: e.Median, Low: e.Low, High: e.High})
	}
	machine := -1
	for _, m := range r.Measures {
		var n float64
		task, peer, _ := strings.Cut(m.Name, "/")
		if _, err := fmt.Sscanf(task, "relay-crowd-%g", &n); err != nil {
			continue
		}
		if machine < 0 {
			machine = m.machine
		}
		if m.machine != machine {
			continue
		}
		if peer == crowdPeer {
			add("Sallyport", n, values(m.Pairs, sideA, "p50"))
		}
		add(peer, n, values(m.Pairs, sideB, "p50"))
	}
	for _, label := range order {
		out.Series = append(out.Series, *series[label])
	}
	return out
}

// keepPictures writes them into a directory, in which there is nothing else.
func keepPictures(dir string, all []picture) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	old, err := filepath.Glob(filepath.Join(dir, "*.svg"))
	if err != nil {
		return err
	}
	var errs []error
	for _, path := range old {
		if !slices.ContainsFunc(all, func(p picture) bool { return p.file == filepath.Base(path) }) {
			errs = append(errs, os.Remove(path))
		}
	}
	for _, p := range all {
		errs = append(errs, os.WriteFile(filepath.Join(dir, p.file), p.svg, 0o644))
	}
	return errors.Join(errs...)
}

// plots is where the report finds them, from the repository's root.
const plots = "bench/plots"

func writePictures(b *bytes.Buffer, r *Run) {
	all := pictures(r)
	if len(all) == 0 {
		return
	}
	b.WriteString("## In pictures\n\nA dot is the median ratio of the pairs, Sallyport to the peer, the line through it its interval. Left of 1 is less, which is better unless said. Green: the whole interval is on the better side; red: on the worse; grey: neither is shown. A dashed mark is a bar.\n\n")
	for _, p := range all {
		fmt.Fprintf(b, "![%s](%s/%s)\n\n", cell(p.title), plots, p.file)
	}
}
