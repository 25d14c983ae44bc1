//go:build unix

package gateway

import (
	"sync/atomic"
	"time"

	"github.com/sallyport/sallyport/alpn"
)

// outcome is what became of a connection, or of a part of its way. Each is a
// counter.
type outcome uint8

const (
	outcomeAccepted outcome = iota
	outcomeAcceptError
	outcomeExhausted // no descriptor was left
	outcomeShed
	outcomePassed // to the canary
	outcomeSilent // led to where those go that say nothing

	outcomeParked
	outcomeParkRefused
	outcomeLeased
	outcomeLeaseFailed
	outcomeLeaseAgain    // a far end closed before its first byte
	outcomeConnectFailed // of one server of an upstream; others may follow
	outcomeNotTaken      // an SSLRequest, by one server of an upstream; others may follow
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
	outcomeNoPostgres // no server of the upstream has taken an SSLRequest
	outcomeNoPort     // this machine has no address or port left to connect to a server from
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
		outcomeAccepted: "accepted", outcomeAcceptError: "accept_error", outcomeExhausted: "descriptors_exhausted", outcomeShed: "shed", outcomePassed: OutcomePassed, outcomeSilent: "silent",
		outcomeParked: "parked", outcomeParkRefused: "park_refused",
		outcomeLeased: "leased", outcomeLeaseFailed: "lease_failed", outcomeLeaseAgain: "lease_again",
		outcomeConnectFailed: "connect_failed", outcomeNotTaken: "pg_ssl_not_taken", outcomeRelayed: "relayed", outcomeHandedOff: "handed_off", outcomeHandshake: "handshake", outcomeHandshakeFailed: "handshake_failed",
		outcomeCancelled: "pg_cancel", outcomeCancelRefused: "pg_cancel_refused", outcomeRedirected: "http_redirect", outcomeStartupInClear: "pg_startup_in_clear",
		outcomeEmpty: "empty", outcomeEndedEarly: "ended_early", outcomeReset: "reset", outcomeTimeout: "timeout",
		outcomeUnknown: "unknown_protocol", outcomeSSH: "ssh", outcomeRDP: "rdp", outcomeMalformed: "malformed",
		outcomeProxyRefused: "proxy_refused", outcomeEarlyBytes: "early_bytes", outcomeOutOfOrder: "out_of_order",
		outcomeHelloRecord: "hello_record", outcomeHelloSyntax: "hello_syntax", outcomeHelloLarge: "hello_large", outcomeHelloName: "hello_name",
		outcomeUnrecognizedName: "unrecognized_name", outcomeNoApplicationProtocol: "no_application_protocol", outcomeNoUpstream: "no_upstream", outcomeNoPostgres: "pg_no_upstream", outcomeNoPort: "no_local_port",
		outcomeSourceFull: "source_full", outcomeGatewayFull: "gateway_full", outcomeSourceRate: "source_rate",
		outcomeLargeHellos: "large_hellos", outcomeInternal: "internal", outcomeClosed: "closed",
	}[o]
}

// refusal says that the outcome is a connection that was turned away, or that
// came to nothing by what its client did.
func (o outcome) refusal() bool {
	switch o {
	case outcomeParkRefused, outcomeLeaseFailed, outcomeHandshakeFailed, outcomeCancelRefused, outcomeStartupInClear, outcomeShed:
		return true
	}
	return o >= outcomeEmpty && o <= outcomeInternal
}

// counters belong to one loop, which alone writes them but for outside's;
// anybody reads them.
type counters struct {
	outcomes [outcomes]atomic.Uint64
	relays   atomic.Int64 // that run
	bytesIn  atomic.Uint64
	bytesOut atomic.Uint64

	firstByte timings // from accept to the far end's first byte
	lease     timings // from the question to the data connection
	connect   timings // from the route to an upstream's connection
}

func (c *counters) add(o outcome) { c.outcomes[o].Add(1) }

// timings is a histogram of durations.
type timings struct {
	buckets [timingBuckets + 1]atomic.Uint64 // the last is for all that is longer
	sum     atomic.Int64                     // nanoseconds
}

// timingBuckets is the number of bounds.
const timingBuckets = 15

// timingBounds are the upper bounds of the buckets: from a loop's round to a
// stage's deadline.
func timingBounds() [timingBuckets]time.Duration {
	const us, ms = time.Microsecond, time.Millisecond
	return [...]time.Duration{
		100 * us, 250 * us, 500 * us, 1 * ms, 2500 * us, 5 * ms, 10 * ms, 25 * ms, 50 * ms, 100 * ms, 250 * ms, 500 * ms,
		time.Second, 2500 * ms, 10 * time.Second,
	}
}

func (t *timings) observe(d time.Duration) {
	i := 0
	for _, bound := range timingBounds() {
		if d <= bound {
			break
		}
		i++
	}
	t.buckets[i].Add(1)
	t.sum.Add(int64(d))
}

// account is what has come of the connections of one route.
type account struct {
	name    string
	results [results]atomic.Uint64
	relays  atomic.Int64
	in, out atomic.Uint64 // bytes of relays that have ended
}

// result is an outcome as a route's account has it.
type result uint8

const (
	resultNone result = iota
	resultRelayed
	resultServed      // its TLS ends here
	resultUnreachable // no upstream, no agent
	resultRefused     // by a bound, or for its protocol
	resultEnded       // before it got anywhere

	results // their number
)

// String names the result as metrics do.
func (r result) String() string {
	return [...]string{
		resultNone: "", resultRelayed: "relayed", resultServed: "served", resultUnreachable: "unreachable", resultRefused: "refused", resultEnded: "ended_early",
	}[r]
}

// result is what an outcome of a routed connection is to its route. What is no
// end of it (another try) is nothing.
func (o outcome) result() result {
	switch o {
	case outcomeRelayed:
		return resultRelayed
	case outcomeHandedOff:
		return resultServed
	case outcomeNoUpstream, outcomeNoPostgres, outcomeLeaseFailed:
		return resultUnreachable
	case outcomeSourceFull, outcomeGatewayFull, outcomeSourceRate, outcomeLargeHellos, outcomeUnrecognizedName, outcomeNoApplicationProtocol,
		outcomeExhausted, outcomeShed, outcomeNoPort:
		return resultRefused
	case outcomeReset, outcomeTimeout, outcomeEndedEarly, outcomeInternal, outcomeClosed:
		return resultEnded
	}
	return resultNone
}

// add counts an outcome. A connection that is not routed has no account.
func (a *account) add(o outcome) {
	if a == nil {
		return
	}
	if r := o.result(); r != resultNone {
		a.results[r].Add(1)
	}
}

// classes are the accounts of what no static route leads to: as many as there
// are classes and kinds of resources. Read-only.
type classes struct {
	other     [alpn.Static]*account
	resources map[string]*account // by kind
}

func newClasses() classes {
	c := classes{resources: map[string]*account{}}
	for i := range c.other {
		c.other[i] = &account{name: clusterPrefix + alpn.Class(i).String()}
	}
	for _, kind := range alpn.Kinds() {
		c.resources[kind] = &account{name: clusterPrefix + kind}
	}
	return c
}

// clusterPrefix tells the cluster's own routes from static ones, in whose names
// no colon can be.
const clusterPrefix = "cluster:"

// of is the account of a route that is not static; nil for a refusal.
func (c *classes) of(r alpn.Route) *account {
	switch r.Class {
	case alpn.Refuse, alpn.Static:
		return nil
	case alpn.Resource:
		return c.resources[r.Kind]
	}
	return c.other[r.Class]
}

// count counts what has become of a connection.
func (c *conn) count(why outcome) {
	c.counts.add(why)
	c.acct.add(why)
	c.judge(why.result())
}
