// Package uring makes several system calls in one, so that a loop need not
// make them one by one (io_uring(7)).
//
//	Close(fd), Close(fd), …  ──▶  Make: one io_uring_enter  ──▶  what each came to
//
// It has only such calls as the kernel makes at once, on the thread that asks:
// when Make returns nothing is under way. So no call can meet a descriptor that
// has been closed meanwhile, or whose number is another's, or that another
// process has taken over. To connect, to accept and to shut down are none of
// them: see docs/io_uring.md.
package uring
