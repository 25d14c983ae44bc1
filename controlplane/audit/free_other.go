//go:build !linux

package audit

import "math"

// free cannot be told here: whoever wants the space tries to take it.
func free(string) (int64, error) { return math.MaxInt64, nil }
