// Package tcp serves resources whose protocol we do not know: it carries bytes
// between a client and the target, both ways, each direction ending by itself.
//
// With the protocol id sallyport-tcp/1 the agent speaks first, one greeting
// before the target's bytes, because the target's protocol has no words for a
// refusal:
//
//	00                              open; everything after it is the target's
//	01 fact hint                    refused; each string is a 2-byte big-endian
//	                                length (at most 1,024) and UTF-8, then the end
//
// Other clients (any protocol id, or none) get the target's bytes from the
// first on, and in place of a refusal the end of the stream.
//
// A stream that breaks on one side is cut on the other: neither end ever takes
// half of the bytes for all of them.
package tcp
