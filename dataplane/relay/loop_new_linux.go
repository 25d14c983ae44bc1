package relay

import "golang.org/x/sys/unix"

// NewDefault starts a loop of the system's best kind: here, epoll.
func NewDefault() (Loop, error) { return NewEpoll() }

// pollEnding is poll's event for a peer that has shut down writing.
const pollEnding = unix.POLLRDHUP
