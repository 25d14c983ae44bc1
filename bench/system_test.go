package main

import (
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// TestPrepareSystem: what was there comes back, and what cannot be set is told.
func TestPrepareSystem(t *testing.T) {
	root := t.TempDir()
	for _, w := range wantedSettings[1:] {
		path := filepath.Join(root, w[0])
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("1 2\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	settings, restore := prepareSystem(root)
	if len(settings) != len(wantedSettings)+1 || settings[0].Error == "" || settings[len(settings)-1].Name != "RLIMIT_NOFILE" {
		t.Fatalf("%+v", settings)
	}
	for i, w := range wantedSettings[1:] {
		s := settings[i+1]
		b, err := os.ReadFile(filepath.Join(root, w[0]))
		if err != nil || string(b) != w[1] || s.Was != "1 2" || s.Error != "" {
			t.Errorf("%q in %s: %+v, %v", b, w[0], s, err)
		}
	}
	if err := restore(); err != nil {
		t.Fatal(err)
	}
	for _, w := range wantedSettings[1:] {
		if b, _ := os.ReadFile(filepath.Join(root, w[0])); string(b) != "1 2" {
			t.Errorf("%s is left as %q", w[0], b)
		}
	}
}

// TestEndings: a terminal that was closed ended a run at once, and the machine kept
// the run's settings.
func TestEndings(t *testing.T) {
	if !signal.Ignored(syscall.SIGHUP) {
		if !slices.Contains(endings(), os.Signal(syscall.SIGHUP)) {
			t.Error("a run does not end in order when its terminal is closed")
		}
		signal.Ignore(syscall.SIGHUP)
		defer signal.Reset(syscall.SIGHUP)
	}
	if slices.Contains(endings(), os.Signal(syscall.SIGHUP)) {
		t.Error("a run under nohup ends with its terminal")
	}
}

func TestSettingText(t *testing.T) {
	for _, c := range []struct {
		s    Setting
		want string
	}{
		{Setting{Was: "bbr", Wanted: "cubic"}, "cubic (bbr before and after)"},
		{Setting{Was: "cubic", Wanted: "cubic"}, "cubic"},
		{Setting{Was: "bbr", Wanted: "cubic", Error: "permission denied"}, "bbr; cubic was wanted: permission denied"},
	} {
		if got := c.s.text(); got != c.want {
			t.Errorf("%+v: %q, want %q", c.s, got, c.want)
		}
	}
}

func TestReason(t *testing.T) {
	_, err := os.ReadFile(filepath.Join(t.TempDir(), "x"))
	if got := reason(err); strings.Contains(got, "/") || got == "" {
		t.Errorf("%q", got)
	}
}
