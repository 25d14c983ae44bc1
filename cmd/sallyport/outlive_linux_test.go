package main

import (
	"errors"
	"os"
	"os/exec"
	"testing"

	"github.com/sallyport/sallyport/cmd/internal/logsink"
)

// TestOutliveReader: the program that read the log, such as the other half of
// "sallyport start 2>&1 | tee log", ended, and the next line took the gateway with
// it, and every connection.
func TestOutliveReader(t *testing.T) {
	const child = "SALLYPORT_TEST_OUTLIVE"
	if os.Getenv(child) != "" {
		outliveReader()
		log := logger(logsink.New(os.Stderr), logConfig{})
		log.Info("nobody")
		log.Info("reads this")
		out, err := exec.Command("sh", "-c", "kill -PIPE $$; exit 5").Output()
		if end := (*exec.ExitError)(nil); !errors.As(err, &end) || end.Exited() {
			os.Exit(8) // the signal is ignored there
		}
		os.Exit(7 + len(out))
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestOutliveReader$")
	cmd.Env, cmd.Stderr = append(os.Environ(), child+"=1"), w
	if err := errors.Join(r.Close(), cmd.Start(), w.Close()); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if cmd.ProcessState.ExitCode() != 7 {
		t.Errorf("ended by %v", cmd.ProcessState)
	}
}

func TestServes(t *testing.T) {
	for command, want := range map[string]bool{"start": true, "demo": true, "supervise": true, "canary": true, "demo-child": true, "status": false} {
		if serves([]string{"sallyport", command}) != want {
			t.Errorf("%s: %v", command, !want)
		}
	}
	if serves([]string{"sallyport"}) {
		t.Error("no command")
	}
}
