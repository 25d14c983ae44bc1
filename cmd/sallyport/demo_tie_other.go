//go:build !linux

package main

import "syscall"

// tieToUs has nothing to tie with: a demo that is killed leaves its server.
func tieToUs(*syscall.SysProcAttr, syscall.Signal) {}
