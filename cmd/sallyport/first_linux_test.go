package main

import (
	"bufio"
	"context"
	"errors"
	"os"
	"os/exec"
	"testing"

	"github.com/sallyport/sallyport/cmd/internal/fail"
	"github.com/sallyport/sallyport/cmd/internal/supervise"
)

// TestKeepEarly: who asks for the end before the supervisor listens is heard.
func TestKeepEarly(t *testing.T) {
	if os.Getenv("SALLYPORT_TEST_KEEP") != "" { // it reaps all children that there are
		beKeeper()
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestKeepEarly$")
	cmd.Env = append(os.Environ(), "SALLYPORT_TEST_KEEP=1")
	out, _ := cmd.CombinedOutput()
	if code := cmd.ProcessState.ExitCode(); code != 9 {
		t.Errorf("exit code %d\n%s", code, out)
	}
}

func beKeeper() {
	keeper, line, err := supervise.Pair()
	if err != nil {
		panic(err)
	}
	fd, err := line.Dup()
	if err := errors.Join(err, line.Close()); err != nil {
		panic(err)
	}
	end := os.NewFile(uintptr(fd), "line")
	cmd := exec.Command("sh", "-c", `trap 'kill $!; exit 9' TERM; sleep 120 >/dev/null 3>&- & echo; wait; exit 3`)
	cmd.ExtraFiles = []*os.File{end}
	out, err := cmd.StdoutPipe()
	if err := errors.Join(err, cmd.Start(), end.Close()); err != nil {
		panic(err)
	}
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		panic(err)
	}
	keeper.Main(1, cmd.Process.Pid)
	asked, ask := context.WithCancel(context.Background())
	ask()
	duties, stop := supervise.Listen()
	defer stop()
	var code fail.Exit
	if err := keep(asked, keeper, duties); !errors.As(err, &code) {
		panic(err)
	}
	os.Exit(code.Code)
}
