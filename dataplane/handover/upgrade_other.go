//go:build !linux

package handover

import (
	"context"

	"github.com/sallyport/sallyport"
)

// Upgrader says that upgrades without a lost connection are for Linux.
type Upgrader struct{ Config }

// New works, so that a program need not ask where it runs.
func New(c Config) (*Upgrader, error) { return &Upgrader{Config: c.full()}, nil }

// Inherits says no.
func Inherits() bool { return false }

// Inherited returns none.
func (u *Upgrader) Inherited(context.Context) (*Heir, error) { return nil, nil }

// Upgrade is not offered.
func (u *Upgrader) Upgrade(context.Context, []Stage) (Report, error) {
	return Report{}, &sallyport.Problem{Kind: sallyport.ErrUnavailable,
		Fact: "an upgrade of the running process is offered on Linux only",
		Hint: "stop the program and start the new one"}
}
