package handover

import (
	"context"
	"log/slog"
	"time"

	"github.com/sallyport/sallyport"
)

// Config is what an Upgrader works with.
type Config struct {
	Program Program

	// Path is the program that an upgrade starts. Empty: the one that this process
	// was started as, by the name it was started with, so that a symbolic link
	// which points to another version later leads there. It is looked up once, in
	// New: what is found later under a relative name, or in another PATH, does not
	// matter, and a file that was replaced or deleted meanwhile is found by its
	// old name.
	//
	// The arguments are this process's, and so are the environment and the
	// working directory it began in.
	Path string

	// Timeout is what the new process has from its start until it is ready. 0:
	// DefaultTimeout.
	Timeout time.Duration

	// Check says whether the new program will do, in time, before anything has
	// begun. nil: it will.
	Check func(ctx context.Context) error

	// Step is called before each step of an upgrade until the commit; an error
	// fails it there. nil: nothing is called.
	Step func(Step) error

	Log *slog.Logger // nil: none
}

func (c Config) full() Config {
	if c.Timeout <= 0 {
		c.Timeout = DefaultTimeout
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}

// failed is what the person reads who asked for an upgrade.
func failed(err error) error {
	return &sallyport.Problem{Kind: sallyport.ErrUnavailable, Cause: err,
		Fact: "no upgrade: " + err.Error(),
		Hint: "nothing has changed: this process goes on"}
}

// refused is an upgrade that has not begun.
func refused(fact, hint string) error {
	return &sallyport.Problem{Kind: sallyport.ErrConflict, Fact: fact, Hint: hint}
}
