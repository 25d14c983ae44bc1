package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"

	"github.com/sallyport/sallyport/cmd/internal/fail"
	"github.com/sallyport/sallyport/cmd/internal/notify"
	"github.com/sallyport/sallyport/cmd/internal/supervise"
	handoverv1 "github.com/sallyport/sallyport/wire/sallyport/handover/v1"
)

// Process 1 of a container is the parent of every process that has lost its own:
// what people leave running in their sessions, and what that leaves. Nobody else
// waits for those, and a process that has children of its own cannot tell them
// apart. So process 1 is a supervisor from the beginning, and does nothing else.

const (
	// lineVariable tells the first main process which descriptor is its line to
	// process 1.
	lineVariable = "SALLYPORT_LINE"
	lineFD       = 3

	firstGeneration = 1 // of a main process that process 1 has started
)

// keepAsFirst is for process 1: it starts this program again, and is the
// supervisor of that until the end. kept is false when this is not process 1. It
// becomes no other program, as the first process of a shell does: the system gives
// process 1 no signal that it does not listen for, and who stops a container would
// not be heard (pid_namespaces(7)).
func keepAsFirst(asked context.Context, pid int) (kept bool, err error) {
	if pid != 1 {
		return false, nil
	}
	duties, stop := supervise.Listen()
	defer stop()
	keeper, line, err := supervise.Pair()
	if err != nil {
		return true, err
	}
	defer keeper.Close()
	path, err := os.Executable()
	if err != nil {
		return true, err
	}
	main, err := startWithLine(path, line)
	if err != nil {
		return true, err
	}
	keeper.Main(firstGeneration, main)
	return true, keep(asked, keeper, duties)
}

// keep supervises until no main process is left, and ends with its exit code.
// asked is done when somebody wanted the end before duties were listened for.
func keep(asked context.Context, k *supervise.Keeper, duties supervise.Duties) error {
	if asked.Err() != nil {
		k.Signal(syscall.SIGTERM)
	}
	if code, _ := k.Run(context.Background(), duties); code != 0 {
		return fail.Exit{Code: code}
	}
	return nil
}

// startWithLine starts this program again, with its end of the line.
func startWithLine(path string, line *supervise.Line) (pid int, err error) {
	fd, err := line.Dup()
	if err := errors.Join(err, line.Close()); err != nil {
		return 0, err
	}
	end := os.NewFile(uintptr(fd), "line")
	defer end.Close()
	p, err := os.StartProcess(path, os.Args, &os.ProcAttr{
		Env: append(os.Environ(), lineVariable+"="+strconv.Itoa(lineFD)), Files: []*os.File{os.Stdin, os.Stdout, os.Stderr, end},
	})
	if err != nil {
		return 0, err
	}
	pid = p.Pid // which Release forgets
	return pid, p.Release()
}

// keepingOf is how this process is kept: as who has started it says.
func keepingOf(pidFile string) (keeping, error) {
	k := chooseKeeping(os.Getpid(), notify.New(os.Getenv(notify.Variable)), pidFile)
	text, there := os.LookupEnv(lineVariable)
	if !there {
		return k, nil
	}
	fd, err := strconv.Atoi(text)
	if err := errors.Join(err, os.Unsetenv(lineVariable)); err != nil || fd != lineFD || os.Getppid() != 1 {
		return k, fmt.Errorf("%s is for process 1 of a container: do not set it", lineVariable)
	}
	if k.line, err = supervise.Inherited(fd); err != nil {
		return k, fmt.Errorf("%s: %w", lineVariable, err)
	}
	k.how, k.generation = handoverv1.Keeping_KEEPING_SUPERVISOR, firstGeneration
	return k, nil
}
