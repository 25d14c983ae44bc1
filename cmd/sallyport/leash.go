package main

import (
	"errors"
	"io"
	"os"
	"sync"
	"sync/atomic"
)

// leash ends what has handed over when the service ends. It is a pipe: the main
// process has the writing end and passes it on; whoever has handed over has
// closed it, and reads the end of file when no main process is left, however
// that one ended. Nothing is ever written.
type leash struct {
	read, write *os.File
	once        sync.Once
	dropped     atomic.Bool
}

func newLeash() (*leash, error) {
	r, w, err := os.Pipe()
	return &leash{read: r, write: w}, err
}

// openLeash takes over both ends.
func openLeash(read, write int) *leash {
	return &leash{read: os.NewFile(uintptr(read), "leash"), write: os.NewFile(uintptr(write), "leash")}
}

// drop lets go of the writing end: this process is not the main one any more.
func (l *leash) drop() (err error) {
	l.dropped.Store(true)
	l.once.Do(func() { err = l.write.Close() })
	return err
}

// wait returns when no main process is left, or after close.
func (l *leash) wait() { _, _ = io.Copy(io.Discard, l.read) }

func (l *leash) close() error { return errors.Join(l.drop(), l.read.Close()) }
