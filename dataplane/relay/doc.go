// Package relay moves bytes between two sockets so that nobody else has to: it
// is the only place in Sallyport that copies raw bytes.
//
// A relay owns two descriptors, the bytes that were read and not yet written,
// and a little state; it is driven by events of a Loop and never holds a
// goroutine. Everything that is not in the kernel is in State, a plain struct,
// so that a live relay can be taken out of one process and started in another.
//
//	Start(State) ──▶ running ──▶ Ended (both halves closed, reset, idle, aborted)
//	                    │
//	                    └─ Take ──▶ State, for another loop or another process
package relay
