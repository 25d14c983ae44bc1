// Package ca holds the cluster's certificate authorities and issues every
// certificate, so that nobody else touches a signing key.
//
// # Authorities
//
//	user   people: X.509 (client use only) and SSH user certificates
//	host   agents, gateways, auth: X.509 and SSH host certificates; what agents
//	       show to clients for a resource; the gateway's own name; and the
//	       signatures of package signed
//	db     databases: what agents log in to them with, and what they show
//
// No authority can do another's work: each is self-signed with its own key, may
// not have subordinates, and is constrained to the uses and names of its role,
// so that a verifier that was given the wrong pool still refuses.
//
// # Keys at rest
//
// Each authority is one record ca/<kind> in the store. Public parts are plain;
// private keys are sealed by the key-encryption key, which is not in the store
// (Sealer). Records are made once, all together, by compare-and-swap: of two
// auth processes that start at once, one makes them and both use them.
package ca
