package main

import (
	"testing"
	"time"
)

func TestJumped(t *testing.T) {
	const passed = 5 * time.Second
	at := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	for moved, want := range map[time.Duration]time.Duration{
		passed:                                   0,
		passed + time.Second:                     0, // a leap second
		passed - time.Second:                     0,
		passed + time.Hour + time.Millisecond:    time.Hour,
		passed - 24*time.Hour:                    -24 * time.Hour,
		passed + 10*365*24*time.Hour:             10 * 365 * 24 * time.Hour,
		passed - 56*365*24*time.Hour:             -56 * 365 * 24 * time.Hour,
		passed + clockJump + 20*time.Millisecond: clockJump,
	} {
		if got := jumped(at, at.Add(moved), passed); got != want {
			t.Errorf("the clock by %s in %s: %s, want %s", moved, passed, got, want)
		}
	}
}
