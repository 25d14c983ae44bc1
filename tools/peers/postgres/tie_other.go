//go:build !linux

package postgres

import "syscall"

// tieToUs has no means here.
func tieToUs(*syscall.SysProcAttr) {}
