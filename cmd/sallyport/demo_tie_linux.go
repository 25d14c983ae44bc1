package main

import "syscall"

// tieToUs lets a server stop in order when this process dies without stopping
// it (prctl(2), PR_SET_PDEATHSIG). SIGINT is PostgreSQL's fast shutdown.
func tieToUs(attr *syscall.SysProcAttr) { attr.Pdeathsig = syscall.SIGINT }
