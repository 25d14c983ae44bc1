// Package dial is the client's half: it connects people's programs to resources
// and to the cluster's own services, through the one port of a gateway.
//
//	Dialer.DialResource ─▶ TCP (or HTTP CONNECT) ─▶ TLS with <name>.<kind>.<cluster> ─▶ the agent
//	Dialer.DialALPN     ─▶ the same, with <cluster> ─▶ auth or the gateway itself
//
// Nothing here asks the control plane. Local programs reach what was dialed by
// Pipe (ssh's ProxyCommand) or LocalProxy (a port on the loopback).
package dial
