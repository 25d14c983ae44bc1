// Package alpn says what a connection is, from its first bytes, so that nobody
// else has to look at them.
//
// It is pure: no I/O, no clock, nothing of ours imported, and no allocation on
// the good path. Bytes are only looked at; a caller that peeks shows a longer
// view of the same bytes after each "more", and every answer is computed afresh
// from the first byte, so it cannot depend on how the bytes were cut.
//
//	first bytes ──Probe──▶ Protocol ──(TLS)──▶ Hello.Parse ──▶ Table.Route ──▶ Route
//
// A hello that cannot be parsed, and a name that is not written as DNS writes
// host names, never reach a route: there is no default for what is not
// understood.
package alpn
