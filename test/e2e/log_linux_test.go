package e2e

import (
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestLogUnread: whoever was to read the log does not. Connections, the admin socket
// and an upgrade go on, and what the process said meanwhile is there when he reads
// again; the old process ends without him, a second after its work.
func TestLogUnread(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	room, err := unix.FcntlInt(w.Fd(), unix.F_SETPIPE_SZ, os.Getpagesize())
	if err != nil {
		t.Fatal(err)
	}
	one := newBackend(t, "one", false)
	g := startRoutesAs(t, oneRoute(one)+"log: {level: debug}\n", func(args ...string) *exec.Cmd {
		cmd := exec.Command("sh", append([]string{"-c", `exec "$@" 2>&3 3>&-`, "sh", program(t, "sallyport")}, args...)...)
		cmd.ExtraFiles = []*os.File{w}
		return cmd
	})
	w.Close()
	old, err := meet(g.addr, "a.example.com", "")
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	for n := 0; n < room/20; n++ { // a line each
		c, err := net.Dial("tcp", g.addr)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(runWait))
		_, err = c.Write(make([]byte, 20))
		if _, rerr := io.ReadAll(c); os.IsTimeout(rerr) {
			err = rerr
		}
		c.Close()
		if err != nil {
			t.Fatalf("stranger %d: %v", n, err)
		}
	}
	works := func(when string) {
		t.Helper()
		g.expect("a.example.com", "one -")
		if err := errors.Join(old.SetDeadline(time.Now().Add(runWait)), old.echo(when)); err != nil {
			t.Errorf("%s: an open connection: %v", when, err)
		}
	}
	works("with the log full")
	g.upgrade()
	works("after an upgrade")
	var read tail
	go io.Copy(&read, r)
	await(t, "what the new process had said", runWait, func() bool { return strings.Contains(read.String(), "sallyport has taken over") })
}
