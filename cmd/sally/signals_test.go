package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"syscall"
	"testing"
	"time"
)

// TestSignals: the first signal is heard, the second ends the program; a client
// has the terminal's for itself.
func TestSignals(t *testing.T) {
	if role := os.Getenv("SALLY_TEST_SIGNALS"); role != "" {
		beSignalled(role)
		return
	}
	for _, tt := range []struct {
		role  string
		steps []any // signals to send, lines to read
		dies  syscall.Signal
		exits int
	}{
		{role: "wait", steps: []any{syscall.SIGINT, "first", syscall.SIGINT}, dies: syscall.SIGINT},
		{role: "wait", steps: []any{syscall.SIGINT, "first", syscall.SIGTERM}, dies: syscall.SIGTERM},
		{role: "wait", steps: []any{syscall.SIGTERM, "first", syscall.SIGINT}, dies: syscall.SIGINT},
		{role: "term", steps: []any{syscall.SIGINT, "first", syscall.SIGTERM, "term", syscall.SIGTERM}, dies: syscall.SIGTERM},
		{role: "client", steps: []any{syscall.SIGINT, "first", syscall.SIGINT, syscall.SIGINT, syscall.SIGTERM}, exits: 7},
		{role: "client", steps: []any{syscall.SIGHUP}, exits: 8},
	} {
		if slices.Contains(tt.steps, any(syscall.SIGHUP)) && signal.Ignored(syscall.SIGHUP) {
			t.Log("SIGHUP is ignored here, as under nohup(1), and so by what is started: not tested")
			continue
		}
		t.Run(fmt.Sprint(tt.role, tt.steps), func(t *testing.T) {
			cmd := exec.Command(os.Args[0], "-test.run=^TestSignals$")
			cmd.Env = append(os.Environ(), "SALLY_TEST_SIGNALS="+tt.role)
			cmd.Stderr = os.Stderr
			out, err := cmd.StdoutPipe()
			must(t, err)
			must(t, cmd.Start())
			lines := bufio.NewScanner(out)
			wants := func(want string) {
				if !lines.Scan() || lines.Text() != want {
					t.Fatalf("%q, not %q", lines.Text(), want)
				}
			}
			wants("ready")
			for _, step := range tt.steps {
				switch step := step.(type) {
				case syscall.Signal:
					must(t, cmd.Process.Signal(step))
				case string:
					wants(step)
				}
			}
			// That the next one ends it is said a moment after the first was heard.
			ended := make(chan error, 1)
			go func() { ended <- cmd.Wait() }()
			var exit *exec.ExitError
			for exit == nil {
				select {
				case err := <-ended:
					if !errors.As(err, &exit) {
						t.Fatal(err)
					}
				case <-time.After(100 * time.Millisecond):
					if tt.dies != 0 {
						_ = cmd.Process.Signal(tt.dies) // it may have ended
					}
				}
			}
			if s := exit.Sys().(syscall.WaitStatus); tt.dies != 0 && (!s.Signaled() || s.Signal() != tt.dies) || tt.exits != 0 && s.ExitStatus() != tt.exits {
				t.Errorf("ended by %v", exit)
			}
		})
	}
}

func beSignalled(role string) {
	ctx, stop := interruptible()
	defer stop()
	first := func() {
		<-ctx.Done()
		fmt.Println("first")
	}
	switch role {
	case "term":
		onTerm(func() { fmt.Println("term") })
	case "client":
		go first()
		cmd := exec.Command("sh", "-c", `trap 'exit 7' TERM; trap 'exit 8' HUP; echo ready; while :; do sleep 0.02; done`)
		cmd.Stdout = os.Stdout
		var exit *exec.ExitError
		if errors.As(runClient(cmd), &exit) {
			os.Exit(exit.ExitCode())
		}
		os.Exit(9)
	}
	fmt.Println("ready")
	first()
	time.Sleep(time.Hour)
}
