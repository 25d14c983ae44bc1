//go:build !linux

package redis

import "syscall"

// tieToUs has no means here.
func tieToUs(*syscall.SysProcAttr) {}
