//go:build unix

package audit

import (
	"errors"
	"syscall"
)

// noSpace tells a full disk, a quota or a size limit from other faults.
func noSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, syscall.EFBIG)
}
