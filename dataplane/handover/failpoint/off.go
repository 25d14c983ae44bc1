//go:build !failpoints || !unix

package failpoint

// Enabled says whether the program can be stopped.
const Enabled = false

// Hit is a point where a test may stop the program, or let the step fail.
func Hit(string) error { return nil }
