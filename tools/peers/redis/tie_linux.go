package redis

import "syscall"

// tieToUs lets the server end at once when this process dies before Stop, as a
// test does that panics.
func tieToUs(attr *syscall.SysProcAttr) { attr.Pdeathsig = syscall.SIGKILL }
