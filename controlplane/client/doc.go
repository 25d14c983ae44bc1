// Package client is the control plane as seen from outside it, so that agents,
// gateways and people's programs need not know how auth is reached.
//
//	Dialer    ── TLS by ALPN, server checked by SPIFFE id or by pin
//	Host      ── one agent's or gateway's standing: join, renew, announce
//	Keeper    ── the newest signed snapshot, on disk and in memory: trust, roles, locks
//	Presence  ── a gateway's word on which agents have a tunnel to it
//	Ship      ── the audit spool's way to auth
//	WebOrigin ── a gateway's way to auth for visitors who are not logged in
//
// What a host has learned is kept in its directory (0700, files 0600), so that a
// restart while auth is away changes nothing. docs/snapshots.md has the format.
package client
