// Package kube serves Kubernetes clusters to clients whose certificate the door
// has accepted: it reads each request, asks whether roles allow it, and sends it
// to the API server with the agent's own credentials, acting as the user and
// groups that the roles give.
//
//	kubectl              Serve                      gate         API server
//	  │ TLS, h2 or http/1.1  │  Open                   │              │
//	  │                      ├────────────────────────▶│              │
//	  │ GET /api/v1/pods     │  Ask(list pods)         │              │
//	  ├─────────────────────▶├────────────────────────▶│              │
//	  │◀── Status, 403 ──────┤◀─ denied ───────────────┤              │
//	  │                      ├─ Impersonate-User, -Group ────────────▶│
//	  │◀── filtered list ────┤◀───────────────────────────────────────┤
//	  │ exec: Upgrade        │  Open (session.start)   │              │
//	  ├─────────────────────▶├────────────────────────▶│              │
//	  │                      ├─ a connection of its own ─────────────▶│
//	  │◀═══════════════ bytes of SPDY or WebSocket ══════════════════▶│
//
// # What is recorded
//
// A connection begins with session.connect. Each request is kube.request, when
// the API server has answered and before the client hears of it, with the
// answer's status in response_code; a denial has 403 and success false. An exec
// or attach that was switched over is a session of its own, session.start to
// session.end with the command; a port-forward is port, and ends with
// session.end. Starts are durable before the first byte passes. Of a query nothing is
// recorded but a kubelet's, in request_query: commands for pods stand there.
//
// # What is not passed on
//
// Headers that say who somebody is, whatever their spelling: Impersonate-*,
// Authorization, client certificates and names that proxies add. Paths that two
// readers could take for two things. The forms of lists that cannot be filtered:
// when a role narrows a list, the client's Accept is narrowed to JSON, which
// includes tables.
//
// References are to the Kubernetes API reference, "API concepts", and to the API
// server's source by the name of the function.
package kube
