//go:build unix && !linux && !darwin

package tunnel

import "golang.org/x/sys/unix"

const tcpKeepIdle = unix.TCP_KEEPIDLE
