//go:build !linux

package main

import "github.com/sallyport/sallyport/bench/flow"

type cores struct{ relay, traffic int }

func pickCores() (cores, error) { return cores{}, flow.ErrSystem }

func pinned(int, func() error) error { return flow.ErrSystem }
