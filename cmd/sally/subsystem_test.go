package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/cmd/internal/fail"
)

// TestSubsystem: with -s nothing was carried, and the end was "session not started".
func TestSubsystem(t *testing.T) {
	for _, tt := range []struct {
		name    []string
		refuses bool
		status  byte
	}{
		{name: []string{"echo"}},
		{name: []string{"echo", "two"}, status: 3},
		{name: []string{"echo"}, refuses: true},
	} {
		t.Run(fmt.Sprint(tt), func(t *testing.T) {
			var sessions atomic.Int32
			var asked atomic.Value
			tr := reachFar(t, &farHost{
				serve: func(in io.Reader, out io.WriteCloser) {
					if sessions.Add(1) == 1 {
						ownServer(in, out) // that of reachFar
						return
					}
					_, _ = io.Copy(out, in)
				},
				asks: func(q *ssh.Request, ch ssh.Channel) bool {
					if q.Type == "env" || strings.HasSuffix(string(q.Payload), "sftp") {
						return false
					}
					asked.Store(q.Type + string(q.Payload))
					_, _ = ch.SendRequest("exit-status", false, []byte{0, 0, 0, tt.status}) // before the echo's end can close all
					_ = q.Reply(!tt.refuses, nil)
					return true
				},
			})
			in, typed, err := os.Pipe()
			must(t, err)
			defer in.Close()
			_, err = typed.WriteString("through")
			must(t, errors.Join(err, typed.Close()))
			var out bytes.Buffer
			p := &program{ctx: t.Context(), stdin: in, stdout: &out, stderr: io.Discard}
			err = (&sshCmd{sshForwards: sshForwards{Subsystem: true}, Command: tt.name}).connected(p, tr.ssh, "web")
			name := strings.Join(tt.name, " ")
			if got, want := asked.Load(), "subsystem\x00\x00\x00"+string(rune(len(name)))+name; got != want {
				t.Errorf("asked for %q", got)
			}
			var exit fail.Exit
			errors.As(err, &exit)
			switch {
			case tt.refuses:
				if !errors.Is(err, sallyport.ErrNotFound) || !strings.Contains(err.Error(), `no subsystem "echo"`) {
					t.Errorf("%v", err)
				}
			case out.String() != "through" || exit.Code != int(tt.status) || (err == nil) != (tt.status == 0):
				t.Errorf("%q, %v", &out, err)
			}
		})
	}
}
