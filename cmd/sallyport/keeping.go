package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"time"

	"github.com/sallyport/sallyport/cmd/internal/notify"
	"github.com/sallyport/sallyport/cmd/internal/supervise"
	handoverv1 "github.com/sallyport/sallyport/wire/sallyport/handover/v1"
)

// keeping is how who started the service knows its main process, now that it
// may become another.
type keeping struct {
	how        handoverv1.Keeping
	generation uint64 // counts main processes
	upgraded   bool   // another main process was before this one
	pidFile    string
	manager    notify.Manager

	line   *supervise.Line   // to the supervisor, in every process but the first
	keeper *supervise.Keeper // in the first, which will be the supervisor
	leash  *leash            // nil before the first upgrade, but in a demo
}

// chooseKeeping decides it for a fresh start. Process 1 is looked at by its
// container, whatever else there is.
func chooseKeeping(pid int, m notify.Manager, pidFile string) keeping {
	k := keeping{manager: m, pidFile: pidFile}
	switch {
	case pid == 1:
		k.how = handoverv1.Keeping_KEEPING_SUPERVISOR
	case m.Listens():
		k.how = handoverv1.Keeping_KEEPING_MANAGER
	case pidFile != "":
		k.how = handoverv1.Keeping_KEEPING_FILE
	default:
		k.how = handoverv1.Keeping_KEEPING_SUPERVISOR
	}
	return k
}

// successor is what a new process gets. What has to be made is made once, and
// kept when the upgrade fails.
func (k *keeping) successor() (keeping, error) {
	if k.leash == nil {
		l, err := newLeash()
		if err != nil {
			return keeping{}, err
		}
		k.leash = l
	}
	if k.how == handoverv1.Keeping_KEEPING_SUPERVISOR && k.line == nil {
		keeper, line, err := supervise.Pair()
		if err != nil {
			return keeping{}, err
		}
		k.keeper, k.line = keeper, line
	}
	next := *k
	next.generation++
	next.upgraded = true
	return next, nil
}

// announce says who the main process is from now on, before this one ends. The
// new process says the same of itself where it can: this one may die in between.
func (k *keeping) announce(pid int) error {
	generation := k.generation + 1
	switch {
	case k.keeper != nil:
		k.keeper.Main(generation, pid)
		return k.manager.Ready() // who listens outside of a container
	case k.line != nil:
		return errors.Join(k.line.Main(generation, pid), k.manager.Ready())
	case k.how == handoverv1.Keeping_KEEPING_MANAGER:
		return k.manager.Main(pid)
	case k.how == handoverv1.Keeping_KEEPING_FILE:
		return writePID(k.pidFile, pid)
	}
	return nil
}

// ready says that this process serves.
func (k *keeping) ready() error {
	if k.upgraded {
		return nil // the old process says it: who started the service believes nobody else yet
	}
	return k.manager.Ready()
}

// present says that this process is the main one, as far as it is believed: the
// old process may have died before it could say so.
func (k *keeping) present() error {
	if k.line != nil && k.keeper == nil {
		if err := errors.Join(k.line.Main(k.generation, os.Getpid()), k.line.Crash()); err != nil {
			return err
		}
	}
	if k.pidFile != "" {
		return writePID(k.pidFile, os.Getpid())
	}
	return nil
}

// over says that the main process ends and no other one follows: its file goes, as
// far as it is this process's still, and may be removed.
func (k *keeping) over() {
	if k.pidFile == "" {
		return
	}
	if text, err := os.ReadFile(k.pidFile); err == nil && string(text) == formatPID(os.Getpid()) {
		_ = os.Remove(k.pidFile) // in a directory of somebody else's it stays
	}
}

// writePID replaces the file, or writes into it where only that is allowed.
func writePID(path string, pid int) error {
	text := []byte(formatPID(pid))
	if err := replaceFileMode(path, text, 0o644); !errors.Is(err, fs.ErrPermission) {
		return err
	}
	return os.WriteFile(path, text, 0o644)
}

func formatPID(pid int) string { return strconv.Itoa(pid) + "\n" }

// age is a time for people.
func age(d time.Duration) string {
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}
