package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/sallyport/sallyport/cmd/internal/notify"
	handoverv1 "github.com/sallyport/sallyport/wire/sallyport/handover/v1"
)

func TestChooseKeeping(t *testing.T) {
	manager := notify.New("/run/systemd/notify")
	tests := []struct {
		name    string
		pid     int
		manager notify.Manager
		pidFile string
		want    handoverv1.Keeping
	}{
		{"foreground", 4711, notify.Manager{}, "", handoverv1.Keeping_KEEPING_SUPERVISOR},
		{"systemd", 4711, manager, "", handoverv1.Keeping_KEEPING_MANAGER},
		{"systemd with a file", 4711, manager, "/run/p", handoverv1.Keeping_KEEPING_MANAGER},
		{"init with a file", 4711, notify.Manager{}, "/run/p", handoverv1.Keeping_KEEPING_FILE},
		{"container", 1, notify.Manager{}, "", handoverv1.Keeping_KEEPING_SUPERVISOR},
		{"container with a manager outside", 1, manager, "/run/p", handoverv1.Keeping_KEEPING_SUPERVISOR},
	}
	for _, tt := range tests {
		if k := chooseKeeping(tt.pid, tt.manager, tt.pidFile); k.how != tt.want || k.pidFile != tt.pidFile {
			t.Errorf("%s: %v, want %v", tt.name, k.how, tt.want)
		}
	}
}

// TestPIDFile: the file names the new process before the old one ends.
func TestPIDFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pid")
	k := chooseKeeping(4711, notify.Manager{}, path)
	if err := k.present(); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != formatPID(os.Getpid()) {
		t.Errorf("%q, %v", b, err)
	}
	if err := k.announce(4712); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "4712\n" {
		t.Errorf("%q, %v", b, err)
	}
	k.over() // another one's stays
	if _, err := os.Stat(path); err != nil {
		t.Error(err)
	}
	if err := k.present(); err != nil {
		t.Fatal(err)
	}
	k.over()
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after the end: %v", err)
	}
}

// TestLeash: it ends when the last writing end is closed, and not before.
func TestLeash(t *testing.T) {
	l, err := newLeash()
	if err != nil {
		t.Fatal(err)
	}
	r, err := dup(l.read)
	if err != nil {
		t.Fatal(err)
	}
	w, err := dup(l.write)
	if err != nil {
		t.Fatal(err)
	}
	next := openLeash(r, w)
	over := make(chan struct{})
	go func() {
		defer close(over)
		l.wait()
	}()
	if err := l.drop(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-over:
		t.Fatal("it ended while there is a main process")
	default:
	}
	if err := next.close(); err != nil {
		t.Fatal(err)
	}
	<-over
	if err := l.close(); err != nil {
		t.Fatal(err)
	}
}

func TestAge(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0s", 59 * time.Second: "59s", time.Minute: "1m", 59*time.Minute + 59*time.Second: "59m", time.Hour: "1h00m",
		26*time.Hour + 5*time.Minute: "26h05m", 72 * time.Hour: "3d",
	} {
		if got := age(d); got != want {
			t.Errorf("%v: %s, want %s", d, got, want)
		}
	}
}
