//go:build !linux

package tunnel

import (
	"net"
	"time"
)

// userTimeout: TCP_USER_TIMEOUT is Linux's; elsewhere keep-alive has to do.
func userTimeout(net.Conn, time.Duration) {}
