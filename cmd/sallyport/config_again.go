package main

import (
	"bytes"
	"crypto/sha256"
	"os"
	"path/filepath"
	"strings"
)

// A configuration of 10,000 routes takes the YAML library a fifth of a second. When
// it is read again most of them are what they were, letter by letter, so only the
// others are given to it: the file without the lines of the routes that are known.
// That is the same configuration but for those, if each route has its lines for
// itself. Where that cannot be told by a glance, or anything is wrong, all is read
// as the first time, which also finds the places of faults.

// routeSum stands for the lines of a route.
type routeSum [16]byte

// reading is what was read last: the routes, and the sums of their lines. Without
// sums the lines could not be told apart.
type reading struct {
	routes []routeConfig
	sums   []routeSum
}

// readingOf remembers how the routes of a configuration were written.
func readingOf(data []byte, c *config) *reading {
	r := &reading{routes: c.Gateway.Routes}
	if t, ok := layoutOf(data); ok && len(t.routes) == len(c.Gateway.Routes) {
		for i := range t.routes {
			r.sums = append(r.sums, t.sum(i))
		}
	}
	return r
}

// again reads a configuration by what was read before. It reports false when all of it
// has to be read, whatever it is.
func (r *reading) again(data []byte, cluster string) (*config, *reading, bool) {
	if r == nil || len(r.sums) == 0 {
		return nil, nil, false
	}
	t, ok := layoutOf(data)
	if !ok {
		return nil, nil, false
	}
	known := make(map[routeSum]int, len(r.sums))
	for i, s := range r.sums {
		known[s] = i
	}
	next := &reading{routes: make([]routeConfig, len(t.routes)), sums: make([]routeSum, len(t.routes))}
	var unknown []int
	for i := range t.routes {
		next.sums[i] = t.sum(i)
		if at, ok := known[next.sums[i]]; ok {
			next.routes[i] = r.routes[at]
		} else {
			unknown = append(unknown, i)
		}
	}
	c, ok := t.decode(unknown)
	if !ok || len(c.Gateway.Routes) != len(unknown) {
		return nil, nil, false
	}
	for n, i := range unknown {
		next.routes[i] = c.Gateway.Routes[n]
	}
	c.Gateway.Routes = next.routes
	if c.checkOf(cluster) != nil {
		return nil, nil, false
	}
	c.complete()
	return c, next, true
}

// layout is where in a file the routes stand.
type layout struct {
	lines  [][]byte
	owner  []int // of each line the route; nobodys otherwise
	routes []struct{ from, to int }
}

const nobodys = -1

// sum is over the lines of a route, from its first to its last.
func (t *layout) sum(route int) (s routeSum) {
	h := sha256.New()
	for i := t.routes[route].from; i < t.routes[route].to; i++ {
		if t.owner[i] == route {
			h.Write(t.lines[i])
		}
	}
	copy(s[:], h.Sum(nil))
	return s
}

// only is the file with these routes, of all.
func (t *layout) only(routes []int) []byte {
	var b bytes.Buffer
	for i, line := range t.lines {
		if t.owner[i] == nobodys {
			b.Write(line)
			continue
		}
		if len(routes) > 0 && routes[0] < t.owner[i] {
			routes = routes[1:]
		}
		if len(routes) > 0 && routes[0] == t.owner[i] {
			b.Write(line)
		}
	}
	return b.Bytes()
}

// decode reads the file with these routes; nothing of it is checked or completed.
func (t *layout) decode(routes []int) (c *config, ok bool) {
	defer func() {
		if recover() != nil { // the library's: see parseConfigOf
			ok = false
		}
	}()
	c, _, err := decodeConfig(t.only(routes))
	return c, err == nil
}

// plainDataDir is data_dir of a file that has routes, which it does not read, as file
// names it; "" when it cannot be told.
func plainDataDir(file string) string {
	data, err := os.ReadFile(file)
	if err != nil || len(data) > maxConfig {
		return ""
	}
	t, ok := layoutOf(data)
	if !ok {
		return ""
	}
	c, ok := t.decode(nil)
	if !ok {
		return ""
	}
	c.complete()
	c.resolve(filepath.Dir(file))
	return c.DataDir
}

// layoutOf finds the routes of a file that is written plainly: gateway at the first
// column, routes below it, an item of a block sequence for each, and nowhere a value
// that goes on in the next line but by indentation (YAML 1.2.2, section 8.2.1).
func layoutOf(data []byte) (t *layout, ok bool) {
	t = &layout{}
	const (
		before  = iota // gateway
		within         // it, and before its routes
		listing        // the routes
		behind
	)
	at, child, item := before, -1, -1
	for line := range bytes.Lines(data) {
		n := len(t.lines)
		t.lines, t.owner = append(t.lines, line), append(t.owner, nobodys)
		text := strings.TrimRight(string(line), "\r\n ")
		indent := len(text) - len(strings.TrimLeft(text, " "))
		text = text[indent:]
		if text == "" || text[0] == '#' {
			continue
		}
		if !closed(text) || indent == 0 && (strings.HasPrefix(text, "---") || strings.HasPrefix(text, "...")) {
			return nil, false
		}
		dash := strings.HasPrefix(text, "- ")
		if at == listing {
			if item < 0 && dash && indent >= child {
				item = indent
			}
			switch {
			case dash && indent == item:
				t.routes = append(t.routes, struct{ from, to int }{from: n})
			case item < 0 || indent <= child && indent <= item:
				at = behind
			case indent <= item:
				return nil, false
			}
			if at == listing {
				last := len(t.routes) - 1
				t.owner[n], t.routes[last].to = last, n+1
				continue
			}
		}
		switch {
		case at == before && indent == 0 && text == "gateway:":
			at = within
		case at == within && child < 0 && indent > 0:
			child = indent
			fallthrough
		case at == within && indent > 0:
			if indent == child && text == "routes:" {
				at = listing
			}
		case at == within:
			return nil, false // it has none
		}
	}
	return t, len(t.routes) > 0
}

// closed says that what begins in a line ends in it: quotes, brackets, braces. Text
// in which that cannot be told by a glance is not.
func closed(text string) bool {
	var open []byte
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case c == '"' || c == '\'':
			end := strings.IndexByte(text[i+1:], c)
			if end < 0 || strings.IndexByte(text[i+1:i+1+end], '\\') >= 0 {
				return false
			}
			i += 1 + end
		case c == '[' || c == '{':
			open = append(open, c+2) // "]" and "}" in ASCII
		case c == ']' || c == '}':
			if len(open) == 0 || open[len(open)-1] != c {
				return false
			}
			open = open[:len(open)-1]
		case c == '#' && (i == 0 || text[i-1] == ' '):
			return len(open) == 0
		case c < ' ' || c > '~' || strings.IndexByte("\\&*!|>%@`?", c) >= 0:
			return false
		}
	}
	return len(open) == 0
}
