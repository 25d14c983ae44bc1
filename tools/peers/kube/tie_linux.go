package kube

import "syscall"

// tied lets a process end at once when this one dies before Stop, as a test
// does that panics.
func tied() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
