package main

import (
	"errors"
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// cores are where things run: what is measured has one core for itself, and
// whoever makes its traffic another.
type cores struct{ relay, traffic int }

// pickCores takes the first and the second CPU that this process may use, or
// one for both where there is no other.
func pickCores() (cores, error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return cores{}, fmt.Errorf("affinity: %w", err)
	}
	var found []int
	for cpu := 0; len(found) < 2 && cpu < 8*len(set)*8; cpu++ {
		if set.IsSet(cpu) {
			found = append(found, cpu)
		}
	}
	if len(found) == 0 {
		return cores{}, errors.New("affinity: no CPU")
	}
	return cores{relay: found[0], traffic: found[len(found)-1]}, nil
}

// pinned runs start on a thread that may only use one CPU. A process that is
// started there inherits this.
func pinned(cpu int, start func() error) error {
	runtime.LockOSThread()
	var before, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("affinity: %w", err)
	}
	one.Set(cpu)
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("affinity to CPU %d: %w", cpu, err)
	}
	err := start()
	if back := unix.SchedSetaffinity(0, &before); back != nil {
		return errors.Join(err, fmt.Errorf("affinity: %w", back)) // the thread stays locked, and ends with its goroutine
	}
	runtime.UnlockOSThread()
	return err
}
