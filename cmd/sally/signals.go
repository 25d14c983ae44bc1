package main

import (
	"context"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"syscall"
)

// interruptible is done at the first SIGINT or SIGTERM, so that what goes on can
// end in order. The second one does what it does to any program: whatever is
// waited for then is waited for no more.
func interruptible() (ctx context.Context, stop func()) {
	ctx, stop = signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	return ctx, stop
}

// onTerm calls f at the first SIGTERM before stop: for what is not to end at
// Ctrl-C, which is somebody else's to hear.
func onTerm(f func()) (stop func()) {
	terms, over := make(chan os.Signal, 1), make(chan struct{})
	signal.Notify(terms, syscall.SIGTERM)
	go func() {
		select {
		case <-terms:
			signal.Stop(terms) // the second one is not ours
			f()
		case <-over:
			signal.Stop(terms)
		}
	}()
	return sync.OnceFunc(func() { close(over) })
}

// holdSignals keeps what ends a program from this one until signal.Stop: what it has
// made is removed first. A terminal that closes sends SIGHUP twice, by its shell and by
// the system, and Ctrl-\ is for a client that has the terminal too.
func holdSignals() (held chan os.Signal) {
	held = make(chan os.Signal, 1)
	signal.Notify(held, syscall.SIGTERM, syscall.SIGQUIT)
	if !signal.Ignored(syscall.SIGHUP) {
		signal.Notify(held, syscall.SIGHUP)
	}
	return held
}

// runClient runs a program of the user's. Ctrl-C is for it, since it has the
// terminal too: it may end a statement and nothing more. SIGTERM is passed on, and
// SIGHUP unless it is ignored (nohup(1)): it decides when to end, and what was made
// for it is removed after that.
func runClient(cmd *exec.Cmd) error {
	interrupts, terms := make(chan os.Signal, 1), make(chan os.Signal, 1)
	signal.Notify(interrupts, os.Interrupt)
	defer signal.Stop(interrupts)
	signal.Notify(terms, syscall.SIGTERM)
	if !signal.Ignored(syscall.SIGHUP) {
		signal.Notify(terms, syscall.SIGHUP)
	}
	defer signal.Stop(terms)
	if err := cmd.Start(); err != nil {
		return err
	}
	over, passed := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(passed)
		for {
			select {
			case s := <-terms:
				_ = cmd.Process.Signal(s) // it may have ended
			case <-over:
				return
			}
		}
	}()
	err := cmd.Wait()
	close(over)
	<-passed
	return err
}
