package main

import "syscall"

// tieToUs lets a server stop in order when this process dies without stopping
// it (prctl(2), PR_SET_PDEATHSIG), by the signal given.
func tieToUs(attr *syscall.SysProcAttr, stop syscall.Signal) { attr.Pdeathsig = stop }
