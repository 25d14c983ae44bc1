//go:build unix && !linux

package relay

// NewDefault starts a loop of the system's best kind: here, the portable one.
func NewDefault() (Loop, error) { return NewPortable() }

// NewBatched is NewDefault: there is no io_uring.
func NewBatched() (Loop, error) { return NewDefault() }

// pollEnding: there is no event for a peer that has shut down writing.
const pollEnding = 0
