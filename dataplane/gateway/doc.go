// Package gateway owns the public port: it accepts every connection, finds out
// what it is without consuming a byte of it, and brings it where it belongs.
// Nothing else listens.
//
// Up to the hand-off each connection is a plain struct, conn, driven by the
// events of the one loop that accepted it. There is no goroutine per connection
// and no byte is copied: first bytes are peeked.
//
//	accept ─▶ reading ─▶ leasing ──▶ offering ─▶ relay              resources
//	             │  ▲      (tunnels.Lease)  │ far end closed: again
//	   preamble  └──┘                       ▼
//	             ├─▶ connecting ─▶ offering ─▶ relay                auth, static routes
//	             │         └▶ asking ─▶┘                            static routes: PostgreSQL
//	             ├─▶ parked (tunnels.Park)                          agents' data connections
//	             ├─▶ handed off: a goroutine ends TLS               web, tunnel
//	             ├─▶ handed off: a goroutine speaks SSH             jump server
//	             └─▶ lingering: an answer, then closed              alerts, redirects
//
// offering: the client's first flight has been written to the far end and is
// still queued here; it is consumed when the far end's first byte has come. If
// the far end closes before that, another one gets the same flight.
//
// A gateway moves to another process with all of that but what was handed off:
// Giver sends it, Heir takes it over. What was sent while it went on working is
// only watched there, in epoll sets that nobody waits on; the words about it
// follow when the loops are held.
//
// What a stranger can hold is bounded: at each stage by a deadline, and until
// it is routed by a slot that is counted per source and in all (crowd).
package gateway
