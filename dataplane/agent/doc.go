// Package agent runs beside resources: it joins the streams that tunnels bring
// to the door and to the protocols that serve them.
//
//	tunnel.RunAgent ── Stream ─▶ access.Door ── Candidate ─▶ Service of the resource
//
// What an agent serves is what two sides agree on: its own configuration says
// how a resource is reached, auth's assignment says which of them, and under
// which name, it may serve.
package agent
