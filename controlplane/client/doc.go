// Package client is the control plane as seen from outside it, so that agents,
// gateways and people's programs need not know how auth is reached.
//
//	Dialer ── TLS by ALPN, server checked by SPIFFE id or by pin
//	Host   ── one agent's or gateway's standing: join, renew, announce
//	Keeper ── the newest signed snapshot, on disk and in memory: trust, roles, locks
//	Shipper── the audit spool's way to auth
//
// What a host has learned is kept in its directory (0700, files 0600), so that a
// restart while auth is away changes nothing.
package client
