//go:build unix

package gateway

import "sync/atomic"

// outcome is what became of a connection, or of a part of its way. Each is a
// counter.
type outcome uint8

const (
	outcomeAccepted outcome = iota
	outcomeAcceptError
	outcomeExhausted // no descriptor was left
	outcomeShed

	outcomeParked
	outcomeParkRefused
	outcomeLeased
	outcomeLeaseFailed
	outcomeLeaseAgain // a far end closed before its first byte
	outcomeRelayed
	outcomeHandedOff
	outcomeHandshake // done here
	outcomeHandshakeFailed
	outcomeCancelled
	outcomeCancelRefused
	outcomeRedirected
	outcomeStartupInClear

	outcomeEmpty // ended without a byte
	outcomeEndedEarly
	outcomeReset
	outcomeTimeout
	outcomeUnknown
	outcomeSSH
	outcomeRDP
	outcomeMalformed
	outcomeProxyRefused
	outcomeEarlyBytes // sent before it was the client's turn
	outcomeOutOfOrder
	outcomeHelloRecord
	outcomeHelloSyntax
	outcomeHelloLarge
	outcomeHelloName
	outcomeUnrecognizedName
	outcomeNoApplicationProtocol
	outcomeNoUpstream
	outcomeSourceFull
	outcomeGatewayFull
	outcomeSourceRate
	outcomeLargeHellos
	outcomeInternal
	outcomeClosed // with the gateway

	outcomes // their number
)

// String names the outcome as metrics do.
func (o outcome) String() string {
	return [...]string{
		outcomeAccepted: "accepted", outcomeAcceptError: "accept_error", outcomeExhausted: "descriptors_exhausted", outcomeShed: "shed",
		outcomeParked: "parked", outcomeParkRefused: "park_refused",
		outcomeLeased: "leased", outcomeLeaseFailed: "lease_failed", outcomeLeaseAgain: "lease_again",
		outcomeRelayed: "relayed", outcomeHandedOff: "handed_off", outcomeHandshake: "handshake", outcomeHandshakeFailed: "handshake_failed",
		outcomeCancelled: "pg_cancel", outcomeCancelRefused: "pg_cancel_refused", outcomeRedirected: "http_redirect", outcomeStartupInClear: "pg_startup_in_clear",
		outcomeEmpty: "empty", outcomeEndedEarly: "ended_early", outcomeReset: "reset", outcomeTimeout: "timeout",
		outcomeUnknown: "unknown_protocol", outcomeSSH: "ssh", outcomeRDP: "rdp", outcomeMalformed: "malformed",
		outcomeProxyRefused: "proxy_refused", outcomeEarlyBytes: "early_bytes", outcomeOutOfOrder: "out_of_order",
		outcomeHelloRecord: "hello_record", outcomeHelloSyntax: "hello_syntax", outcomeHelloLarge: "hello_large", outcomeHelloName: "hello_name",
		outcomeUnrecognizedName: "unrecognized_name", outcomeNoApplicationProtocol: "no_application_protocol", outcomeNoUpstream: "no_upstream",
		outcomeSourceFull: "source_full", outcomeGatewayFull: "gateway_full", outcomeSourceRate: "source_rate",
		outcomeLargeHellos: "large_hellos", outcomeInternal: "internal", outcomeClosed: "closed",
	}[o]
}

// counters are written by all loops and read by anybody.
type counters struct {
	outcomes [outcomes]atomic.Uint64
	relays   atomic.Int64 // that run
	bytesIn  atomic.Uint64
	bytesOut atomic.Uint64
}

func (c *counters) add(o outcome) { c.outcomes[o].Add(1) }

// Snapshot is what an operator may see of a gateway.
type Snapshot struct {
	Waiting  int               // connections that are not routed yet
	Relays   int               // that run
	BytesIn  uint64            // from clients, of relays that have ended
	BytesOut uint64            // to clients, of relays that have ended
	Outcomes map[string]uint64 // since the start, by name; all names are there
}
