package main

import (
	"strings"
	"testing"
	"time"
)

func TestParseRemote(t *testing.T) {
	for arg, want := range map[string]remotePath{
		"web:a": {"web", "a"}, "root@web:/etc": {"root@web", "/etc"}, "web:": {"web", ""}, "web:a:b": {"web", "a:b"},
	} {
		if got, ok := parseRemote(arg); !ok || got != want {
			t.Errorf("%q: %+v, %v", arg, got, ok)
		}
	}
	for _, arg := range []string{"a", "./a:b", "/a:b", ":a", ""} {
		if got, ok := parseRemote(arg); ok {
			t.Errorf("%q: %+v", arg, got)
		}
	}
}

// TestA88_SafeName: a node cannot have files written beside the directory that
// they are copied to.
func TestA88_SafeName(t *testing.T) {
	for _, name := range []string{"", ".", "..", "a/b", "../a", "/a", "a\x00b", `..\a`} {
		if safeName(name) {
			t.Errorf("%q", name)
		}
	}
	for _, name := range []string{"a", "...", ".a", "a b", "a\nb", "-rf"} {
		if !safeName(name) {
			t.Errorf("%q is refused", name)
		}
	}
}

func TestProgressLine(t *testing.T) {
	for _, c := range []struct {
		name        string
		moved, size int64
		took        time.Duration
		want        string
	}{
		{"a", 50 << 20, 100 << 20, 10 * time.Second, "50%    50 MiB     5 MiB/s 00:10"},
		{"a", 100, 100, 70 * time.Second, "100%     100 B   1.429 B/s 01:10"},
		{"a", 0, 100, 0, "0%       0 B       0 B/s 00:00"},
		{"a\x1b[2J", 1, 0, time.Second, "100%       1 B       1 B/s 00:01"},
	} {
		if got := progressLine(c.name, c.moved, c.size, c.took); !strings.HasSuffix(got, c.want) || strings.ContainsRune(got, 0x1b) {
			t.Errorf("%q, want …%q", got, c.want)
		}
	}
}
