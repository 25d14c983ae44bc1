package main

import "golang.org/x/sys/unix"

// adoptOrphans makes this process the parent of what its children leave behind:
// daemons and upgraded programs (PR_SET_CHILD_SUBREAPER of prctl(2)).
func adoptOrphans() { _ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) }
