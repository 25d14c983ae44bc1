//go:build !linux

package kube

import "syscall"

// tied has no means here.
func tied() *syscall.SysProcAttr { return &syscall.SysProcAttr{} }
