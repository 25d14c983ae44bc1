package main

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

const againHead = "version: 1 # of the format\nroles: [gateway]\nlog: {level: \"info\"}\ngateway:\n  listen: [\":8443\"]\n  routes:\n"

const againRoutes = `    - {names: [a.example.com], to: ["10.0.0.1:443"]}
    # the shop
    - names:
        - "*.shop.example.com"
      # and its servers
      to: ["10.0.0.2:443", 'unix:/run/shop']

    - match: {sni: ["b.example.com"], alpn: [h2]}
      upstream: b
`

const againTail = "  upstreams:\n    b: {servers: [\"10.0.0.3:443\"]}\nmetrics: {listen: \"127.0.0.1:9090\"}\n"

// TestReadAgain: a file that was changed is read as it is the first time, by a part of it
// where that can be told apart.
func TestReadAgain(t *testing.T) {
	all := againHead + againRoutes + againTail
	change := func(old, new string) string {
		t.Helper()
		if strings.Count(all, old) != 1 {
			t.Fatalf("%q is there %d times", old, strings.Count(all, old))
		}
		return strings.Replace(all, old, new, 1)
	}
	for _, tc := range []struct {
		name, text string
		parts      bool
	}{
		{"nothing", all, true},
		{"a server", change("10.0.0.1:443", "10.0.0.9:443"), true},
		{"a server of a list", change("10.0.0.2:443", "10.0.0.9:443"), true},
		{"a name", change("a.example.com", "c.example.com"), true},
		{"a route more", change("    # the shop\n", "    - {names: [c.example.com], upstream: b}\n"), true},
		{"a route less", change("    - {names: [a.example.com], to: [\"10.0.0.1:443\"]}\n", ""), true},
		{"routes change places", againHead + strings.Join(slicesOf(againRoutes), "") + againTail, true},
		{"comments", change("    # the shop\n", "# \"the [shop\n"), true},
		{"something else", change(`"info"`, "debug"), true},
		{"an upstream", change("10.0.0.3:443", "10.0.0.4:443"), true},
		{"the lists' indentation", againHead + strings.ReplaceAll("\n"+againRoutes, "\n  ", "\n") + againTail, true},
		{"windows", strings.ReplaceAll(all, "\n", "\r\n"), true},
		{"no route", againHead + againTail, false},
		{"a name that is no name", change("a.example.com", "a..example.com"), false},
		{"a name twice", change("a.example.com", `"*.shop.example.com"`), false},
		{"a route twice", change("    # the shop\n", "    - {names: [a.example.com], to: [\"10.0.0.1:443\"]}\n"), false},
		{"no such upstream", change("upstream: b", "upstream: c"), false},
		{"an upstream that is used goes", change("    b: {servers", "    d: {servers"), false},
		{"a list over two lines", change("[a.example.com], to", "[a.example.com,\n       c.example.com], to"), false},
		{"a quote over two lines", change(`"10.0.0.1:443"]}`, "\"10.0.0.1:4\\\n43\"]}"), false},
		{"a quote that stays open", change(`'unix:/run/shop'`, `'unix:/run/shop`), false},
		{"a list that stays open", change(`"10.0.0.1:443"]}`, `"10.0.0.1:443"}`), false},
		{"a text over many lines", change(`"info"}`, "\"info\"}\nupgrade: |\n  gateway:"), false},
		{"anchors", change("to: [\"10.0.0.1:443\"]", "to: &x [\"10.0.0.1:443\"]"), false},
		{"a word of no language", change("a.example.com", "ä.example.com"), false},
		{"a dash alone", change("    - names:\n", "    -\n      names:\n"), false},
		{"a tab", change("  listen:", "\tlisten:"), false},
		{"two documents", all + "---\n" + all, false},
		{"two gateways", all + "gateway:\n  routes:\n    - {names: [c.example.com], to: [\"10.0.0.1:1\"]}\n", false},
		{"an unknown field", change("upstream: b", "upstram: b"), false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if parts := readsAsTheFirstTime(t, all, tc.text); parts != tc.parts {
				t.Errorf("read by parts: %v, want %v", parts, tc.parts)
			}
		})
	}
}

// slicesOf are the routes of againRoutes, the last first.
func slicesOf(routes string) (out []string) {
	var one string
	for line := range strings.Lines(routes) {
		if strings.HasPrefix(line, "    - ") && one != "" {
			out, one = append([]string{one}, out...), ""
		}
		one += line
	}
	return append([]string{one}, out...)
}

// readsAsTheFirstTime reads one text after the other, and says whether that was done by parts.
func readsAsTheFirstTime(t *testing.T, before, after string) (parts bool) {
	t.Helper()
	old, err := parseConfig([]byte(before))
	if err != nil {
		return false
	}
	got, next, parts := readingOf([]byte(before), old).again([]byte(after), "")
	if !parts {
		return false
	}
	want, err := parseConfig([]byte(after))
	if err != nil {
		t.Fatalf("%q after %q was taken: %v", after, before, err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%q after %q:\n%+v\nwant\n%+v", after, before, got, want)
	}
	if whole := readingOf([]byte(after), want); !reflect.DeepEqual(next, whole) {
		t.Errorf("%q after %q: %+v is remembered, want %+v", after, before, next, whole)
	}
	return true
}

// TestReadAgainEdits: hasty edits, most of which make no configuration.
func TestReadAgainEdits(t *testing.T) {
	const bits = "\"'[]{}:,-#|>&*!?\\ \n\t%@`ab1.\r\u00e4"
	r := rand.New(rand.NewPCG(1, 2))
	all, parts := againHead+againRoutes+againTail, 0
	for range editRounds {
		lines := slices.Collect(strings.Lines(all))
		for range 1 + r.IntN(3) {
			i, j := r.IntN(len(lines)), r.IntN(len(lines))
			switch at := r.IntN(len(lines[i])); r.IntN(7) {
			case 0:
				lines = slices.Insert(lines, j, lines[i])
			case 1:
				lines[i], lines[j] = lines[j], lines[i]
			case 2:
				if len(lines) > 1 {
					lines = slices.Delete(lines, i, i+1)
				}
			case 3: // further in, or out
				lines[i] = strings.Repeat(" ", r.IntN(3)) + strings.TrimPrefix(lines[i], strings.Repeat(" ", r.IntN(5)))
			case 4:
				b := []rune(bits)
				lines[i] = lines[i][:at] + string(b[r.IntN(len(b))]) + lines[i][at:]
			case 5:
				lines[i] = lines[i][:at] + lines[i][at+1:]
			case 6:
				lines[i] = strings.ReplaceAll(lines[i], "10.0.0.", "10.0.1.")
			}
			lines = slices.DeleteFunc(lines, func(s string) bool { return s == "" })
			if len(lines) == 0 {
				break
			}
		}
		if readsAsTheFirstTime(t, all, strings.Join(lines, "")) {
			parts++
		}
	}
	if parts < editRounds/20 {
		t.Errorf("%d of %d edits were read by parts: this tests little", parts, editRounds)
	}
}

const editRounds = 3000

// TestReadAgainAndAgain: what was read by parts is what the next is read by.
func TestReadAgainAndAgain(t *testing.T) {
	text := manyRoutes(100)
	c, err := parseConfig(text)
	if err != nil {
		t.Fatal(err)
	}
	read := readingOf(text, c)
	for i := range 100 {
		text = bytes.Replace(text, fmt.Appendf(nil, "r%d.example.com", i), fmt.Appendf(nil, "s%d.example.com", i), 1)
		var parts bool
		if c, read, parts = read.again(text, ""); !parts {
			t.Fatalf("change %d was not read by parts", i)
		}
	}
	if want, err := parseConfig(text); err != nil || !reflect.DeepEqual(c, want) {
		t.Errorf("%+v, want %+v, %v", c, want, err)
	}
}

// TestPlainDataDir: where a process can be asked is known without its routes, and where
// that cannot be told the file is read as a whole.
func TestPlainDataDir(t *testing.T) {
	for text, want := range map[string]string{
		againHead + againRoutes + againTail:                                           defaultData,
		"data_dir: there\n" + againHead + againRoutes + againTail:                     "DIR/there",
		"data_dir: /over/there\n" + againHead + againRoutes + "    - {nonsense: 1}\n": "/over/there",
		"data_dir: there\n" + againHead + "    - {names: [\"a\n":                      "",
		"data_dir: there\nversion: 1\nroles: [auth]\n":                                "",
	} {
		file := filepath.Join(t.TempDir(), "c.yaml")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		want = strings.Replace(want, "DIR", filepath.Dir(file), 1)
		if got := plainDataDir(file); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
	if got := plainDataDir(filepath.Join(t.TempDir(), "none")); got != "" {
		t.Errorf("no file: %q", got)
	}
}

// FuzzReadAgain: whatever was read before, a text that is read by parts is one that is
// good, and means what it means when it is read whole.
func FuzzReadAgain(f *testing.F) {
	all := againHead + againRoutes + againTail
	f.Add(all, all)
	f.Add(all, strings.Replace(all, "a.example", "c.example", 1))
	f.Add(all, strings.Replace(all, "\n    ", "\n  ", -1))
	f.Add(all, againHead+"    - {names: [a.example.com], to: [\"10.0.0.1:443\"]}\n    - names: [x]\n      to: [\"y:1\"]\n"+againTail)
	f.Add("version: 1\nroles: [gateway]\ngateway:\n routes:\n - names: [a.example.com]\n   to: [\"b:1\"]\n", "version: 1\nroles: [gateway]\ngateway:\n routes:\n - names: [b.example.com]\n   to: [\"b:1\"]\n")
	f.Fuzz(func(t *testing.T, before, after string) {
		if len(before) > 1<<12 || len(after) > 1<<12 {
			return
		}
		readsAsTheFirstTime(t, before, after)
	})
}

// BenchmarkReadAgain: a reload of 10,000 routes of which one has changed is this and
// gateway.Reload.
func BenchmarkReadAgain(b *testing.B) {
	text := manyRoutes(10_000)
	c, err := parseConfig(text)
	if err != nil {
		b.Fatal(err)
	}
	read := readingOf(text, c)
	text = bytes.Replace(text, []byte("r5000."), []byte("s5000."), 1)
	for b.Loop() {
		if _, _, parts := read.again(text, ""); !parts {
			b.Fatal("it was read whole")
		}
	}
}
