//go:build solaris || illumos

package relay

// reusePort: these systems have one socket for one address.
func reusePort(int) error { return nil }
