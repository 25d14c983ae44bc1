//go:build !linux

package mariadb

import "syscall"

// tieToUs has no means here.
func tieToUs(*syscall.SysProcAttr) {}
