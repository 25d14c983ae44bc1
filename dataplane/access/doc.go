// Package access is the door: the one place where a connection becomes somebody
// who may use a resource.
//
// It ends the client's TLS, says who the client is by its certificate, and
// stands between the protocol and every use. Nothing here asks the network:
// trust, roles and locks are in memory.
//
//	Serve ─▶ hello: name and ALPN ─▶ certificate ─▶ Candidate ─▶ protocol ─▶ Open ─▶ Session
//	           │ not this agent's      │ not ours      └ Refusal: ours, but      └ denied: audited,
//	           └ alert                 └ alert            told in the protocol      told in the protocol
//
// Two kinds of refusal are kept apart on purpose. Who does not hold one of our
// certificates is a stranger and learns nothing: a TLS alert, the same for every
// reason, and a counter. Who does hold one is told what is wrong with it, in the
// words of the protocol it speaks, and the refusal is audited.
//
// A session lives as long as what allowed it: a change of the snapshot (lock,
// role), the expiry of the certificate or of the session, an idle client, or
// the agent's shutdown ends its Context at once; a protocol that does not let go
// within a second loses its connection.
package access
