//go:build !linux

package notify

import (
	"errors"
	"time"
)

// monotonic is for systemd alone, which runs on Linux.
func monotonic() (time.Duration, error) { return 0, errors.ErrUnsupported }
