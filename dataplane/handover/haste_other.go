//go:build !linux

package handover

// hasten has no means.
func hasten() (slow func()) { return func() {} }
