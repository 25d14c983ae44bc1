// Package aws serves Amazon's cloud, and what speaks like it, to people who hold
// no key of it: it takes requests that their client has signed with a key that
// is worth nothing, and signs them anew as the role that they may use.
//
//	client ─▶ sally's port (checks its own key) ─▶ door ─▶ Serve
//	    each request: service and region of its signature ─▶ Open (role) ─▶ endpoint ─▶ SDK's signer ─▶ AWS
//
// Where a request goes is made of a service and a region, both words, by rules of
// this package, or is the one place that the configuration names: nothing that a
// client says is a host. Metadata services and the like are never dialed.
//
// Credentials do not leave this process. A body is not kept here: the client's
// side has said its hash, and AWS compares.
package aws
