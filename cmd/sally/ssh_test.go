package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"sync/atomic"
	"testing"

	"github.com/sallyport/sallyport/cmd/internal/fail"
)

// TestLostConnection: the end of a connection was the exit code 255 and not a word.
func TestLostConnection(t *testing.T) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for _, tt := range []struct {
		name string
		cmd  sshCmd
		said string
		ctrl bool // Ctrl-C was pressed before
	}{
		{name: "forwards", cmd: sshCmd{sshForwards: sshForwards{NoExec: true}}, said: "Connection to web closed.\n"},
		{name: "session", cmd: sshCmd{Command: []string{"cat"}}, said: "Connection to web closed.\n"},
		{name: "session after Ctrl-C", cmd: sshCmd{Command: []string{"cat"}}, said: "Connection to web closed.\n", ctrl: true},
		{name: "quiet", cmd: sshCmd{Quiet: true, Command: []string{"cat"}}},
	} {
		var sessions atomic.Int32
		tr := reachFar(t, &farHost{serve: func(in io.Reader, out io.WriteCloser) {
			if sessions.Add(1) == 1 {
				ownServer(in, out) // that of reachFar
				return
			}
			_, _ = io.Copy(io.Discard, in) // then it ends, and nobody hears how
		}})
		var said bytes.Buffer
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		if tt.ctrl {
			cancel()
		}
		p := &program{ctx: ctx, stdin: null, stdout: io.Discard, stderr: &said}
		if tt.cmd.NoExec {
			tr.ssh.Close()
		}
		err := tt.cmd.connected(p, tr.ssh, "web")
		var exit fail.Exit
		if !errors.As(err, &exit) || exit.Code != 255 || said.String() != tt.said {
			t.Errorf("%s: %v, said %q", tt.name, err, said.String())
		}
	}
}
