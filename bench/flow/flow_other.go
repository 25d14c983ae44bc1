//go:build !linux

package flow

import (
	"context"
)

// Serve is for Linux.
func Serve(context.Context, Backends) error { return ErrSystem }

// Run is for Linux.
func Run(context.Context, Job, Meter) (Result, error) { return Result{}, ErrSystem }
