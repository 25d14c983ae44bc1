// Package timerslack lets the runtime's monitor thread rest.
//
// Go watches its processors from a thread of its own, which sleeps for 20
// microseconds at a time whenever the process has just been idle, for a
// millisecond and more. A process that serves one short thing after the other is
// always that, and spent a seventh of its CPU time there, and as many changes of
// thread. The kernel may end a sleep later than asked, by the thread's timer
// slack (PR_SET_TIMERSLACK(2const)): with more of it the monitor looks less
// often. What it looks for, a goroutine that runs for 10 ms or a system call that
// blocks, has the time.
//
// The monitor's slack is that of the thread which started the program, and
// nothing changes it from outside without privileges. So the program starts
// itself anew, once, in the same process; the programs that an upgrade starts
// inherit the slack. Timers of goroutines may be late by as much; the runtime
// rounds their waits up to a millisecond as it is. Threads that need exact waits,
// and those that start programs of others, ask for what is usual.
package timerslack
