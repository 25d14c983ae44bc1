//go:build unix && !linux

package ssh

// sendBreak does nothing: a pseudo terminal has no line to break.
func sendBreak(int) error { return nil }

// setModes keeps the system's defaults; clients adapt to what they see.
func setModes(int, []mode) error { return nil }
