package main

import (
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestParseRemote(t *testing.T) {
	for arg, want := range map[string]remotePath{
		"web:a": {"web", "a"}, "root@web:/etc": {"root@web", "/etc"}, "web:": {"web", ""}, "web:a:b": {"web", "a:b"},
		"[::1]:a": {"::1", "a"}, "root@[web]:/etc": {"root@web", "/etc"}, "scp://root@web:22//etc/x": {"root@web", "/etc/x"}, "scp://web/a": {"web", "a"}, "scp://web": {"web", ""},
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

// TestHomePaths: sftp took "~" for a name: web:~/a was the file a in a directory ~.
func TestHomePaths(t *testing.T) {
	for path, want := range map[string]string{"~": ".", "~/": ".", "~/a": "a", "~/a/~b": "a/~b", "~//etc": "etc", "": ".", "a~": "a~", "./~bob": "./~bob", "/~": "/~"} {
		down := scpCmd{Files: []string{"web:" + path, "~"}}
		if got, err := down.asked(); err != nil || !reflect.DeepEqual(got, copying{host: "web", from: []string{want}, to: "~"}) {
			t.Errorf("from %q: %+v, %v", path, got, err)
		}
		up := scpCmd{Files: []string{"~", "web:" + path}}
		if got, err := up.asked(); err != nil || !reflect.DeepEqual(got, copying{host: "web", up: true, from: []string{"~"}, to: want}) {
			t.Errorf("to %q: %+v, %v", path, got, err)
		}
	}
	for _, path := range []string{"~bob", "~bob/a", "~~"} {
		for _, files := range [][]string{{"web:" + path, "."}, {"a", "web:" + path}} {
			if _, err := (&scpCmd{Files: files}).asked(); !errors.Is(err, errInvalid) || !strings.Contains(err.Error(), path) {
				t.Errorf("%q: %v", files, err)
			}
		}
	}
}

// TestA88_SafeName: a node cannot have files written beside the directory that
// they are copied to.
func TestA88_SafeName(t *testing.T) {
	for _, name := range []string{"", ".", "..", "a/b", "../a", "/a", "a\x00b"} {
		if safeName(name) {
			t.Errorf("%q", name)
		}
	}
	for _, name := range []string{"a", "...", ".a", "a b", "a\nb", "-rf", `dev-disk-by\x2duuid.swap`, `..\a`} {
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
