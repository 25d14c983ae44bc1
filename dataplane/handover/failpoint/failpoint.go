// Package failpoint stops a program where a test wants it to stop: before a
// durable write, or between two steps of a hand-over.
//
// It does nothing unless the program is built with the tag failpoints:
// then SALLYPORT_FAILPOINTS says what happens where.
//
//	SALLYPORT_FAILPOINTS="audit.sync=kill;store.put#3=error;handover.new.ready=sleep:500ms"
//
// A name stands for every time that the point is reached; name#3 for the third
// time only. What can happen is panic, exit (with status 3), kill (SIGKILL to
// the own process), error, hang, and sleep with a time.
//
// A point is named after its package and what comes next:
//
//	if err := failpoint.Hit("store.put"); err != nil {
//		return err
//	}
package failpoint

// Panic is what a process says that was told to panic at a point, and nothing
// else says: a test tells by it whose panic it was.
func Panic(name string) string { return "failpoint " + name + " was told to panic" }
