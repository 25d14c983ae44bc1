package main

import (
	"os/exec"
	"strings"
	"testing"
)

func TestReplaceLogin(t *testing.T) {
	const text = "root:x:0:0:root:/root:/bin/bash\nbin:x:2:2:bin:/bin:/usr/sbin/nologin\nroots:x:1:1::/roots:/bin/zsh"
	got, ok := replaceLogin(text, "root", "/empty")
	if want := "root:x:0:0:root:/empty:/bin/sh\nbin:x:2:2:bin:/bin:/usr/sbin/nologin\nroots:x:1:1::/roots:/bin/zsh"; !ok || got != want {
		t.Errorf("%v\n%s", ok, got)
	}
	if _, ok := replaceLogin(text, "nobody", "/empty"); ok {
		t.Error("a user who is not there was changed")
	}
}

// TestBareLogin: what is started so sees the other home, and nobody else does.
func TestBareLogin(t *testing.T) {
	onLinux(t)
	before, err := output(exec.Command("cat", "/etc/passwd"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	l, s := bareLogin(t.Context(), dir, "root")
	if s.Error != "" {
		if l.passwd != "" {
			t.Errorf("not possible, and used: %+v", l)
		}
		t.Skip("no file system of one's own here: ", s.Error)
	}
	inside, err := output(l.wrap(exec.Command("cat", "/etc/passwd")))
	if err != nil || !strings.Contains(string(inside), "root:x:0:0:root:"+dir+"/empty:/bin/sh\n") {
		t.Errorf("inside: %v\n%s", err, inside)
	}
	after, err := output(exec.Command("cat", "/etc/passwd"))
	if err != nil || string(after) != string(before) {
		t.Errorf("outside: %v\n%s", err, after)
	}
}

func TestWrapWithoutLogin(t *testing.T) {
	cmd := exec.Command("true")
	if (login{}).wrap(cmd) != cmd {
		t.Error("a command was changed without need")
	}
}
