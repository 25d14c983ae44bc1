//go:build !linux

package etcd

import (
	"errors"
	"math"
)

func allocateBlocks(string, int64) error { return errors.ErrUnsupported }

func freeBytes(string) (int64, error) { return math.MaxInt64, nil }
