// Package tunnel brings clients to agents that have no open port, so that
// nobody else has to know how. Both halves are here: RunAgent dials, Hub is what
// it reaches inside a gateway. docs/tunnel.md has the formats and bounds.
//
// A tunnel is one control connection (TLS, messages) and a pool of parked data
// connections (TCP, one client's stream each):
//
//	agent ── Hello, StreamUp, Retire ─▶ Hub.Serve ─┐
//	      ◀─ Welcome, Need, PgCancel ──                   ▼
//	      ══ data hello ═════════════▶ Hub.Park ───▶ pool of the tunnel
//	                                                      │ claim
//	      ◀═ open frame, client's bytes ══ Lease ◀── Hub.Lease ◀── client
//
// In the order in which bytes meet them: frame.go and control.go are the wire,
// pure; serve.go and registry.go the gateway's control connections; park.go,
// pool.go, lease.go, queue.go and strangers.go its data connections, driven by
// relay.Loop; agent.go, link.go and data.go the agent's half; talk.go what
// both halves of a control connection do.
//
// Invariant: a parked connection is claimed under its pool's lock, and then
// touched only by who claimed it, on the loop whose epoll set it is in.
package tunnel
