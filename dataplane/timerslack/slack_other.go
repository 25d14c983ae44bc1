//go:build !linux

package timerslack

// Widen does nothing: other systems have no such slack.
func Widen() error { return nil }

// Usual does nothing.
func Usual() error { return nil }
