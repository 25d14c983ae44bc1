// Package api serves the control plane: one handler for programs, agents,
// gateways, the admin socket and, behind a gateway, the web origin.
//
//	sallyport-auth/1 ─ mutual TLS ─▶ Caller (user, agent, gateway) ─┐
//	sallyport-join/1 ─ server TLS ─▶ Caller (nobody) ───────────────┼▶ methods table ─▶ service
//	admin.sock ─ peer credentials ─▶ Caller (local-admin:<uid>) ────┘
//	gateway's web origin ─ sallyport-auth/1 as the gateway ─▶ public methods and pages
//
// The table in methods.go is the only place that says who may call what; a
// method without a row is refused. Before it counts, every call asks whether the
// caller still stands: locks, removed users and ended certificates hold on open
// connections too (standing.go). What changes something is recorded before it
// is done (record.go). docs/api.md has the table.
package api
