//go:build !linux

package crowd

import "context"

// Crowd is only on Linux.
type Crowd struct{}

// New says so.
func New(Config) (*Crowd, error) { return nil, ErrSystem }

// Servers are none.
func (*Crowd) Servers() []string { return nil }

// Open is never reached, as all below.
func (*Crowd) Open(context.Context, string) error { return ErrSystem }

// Begin is never reached.
func (*Crowd) Begin(context.Context) error { return ErrSystem }

// End is never reached.
func (*Crowd) End() Window { return Window{} }

// Check is never reached.
func (*Crowd) Check(context.Context) error { return ErrSystem }

// SoFar is never reached.
func (*Crowd) SoFar() Report { return Report{} }

// Finish is never reached.
func (*Crowd) Finish(context.Context) (Report, error) { return Report{}, ErrSystem }

// Close is never reached.
func (*Crowd) Close() {}
