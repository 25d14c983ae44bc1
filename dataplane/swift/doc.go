// Package swift reads and writes TCP connections without telling Go's scheduler.
//
// The net package announces each system call, in case it blocks. A read or write of
// a socket that does not block needs none of that, and the announcement wakes the
// runtime's monitor thread whenever the process has just been idle: in a
// conversation of small messages once per message, a third of all wake-ups.
package swift
