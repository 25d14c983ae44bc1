// Package identity translates between certificates and sallyport.Identity, so
// that nobody else reads a certificate's names or private extension.
//
// It is pure: no I/O, no clock, no keys. What it is given has been verified by
// the caller (chain, purpose, time); what it returns is what the certificate
// says, or an error when the certificate says it in two ways.
//
// # X.509
//
// A certificate names its holder by exactly one URI SAN,
//
//	spiffe://<cluster>/<kind>/<name>
//
// and, for users, by the same name as common name. The rest of the identity is
// one non-critical private extension with the object identifier
//
//	2.25.56334.36196.26358.18535.48492.17542.6132.17720.1
//
// The arc is the UUID dc0e8d64-66f6-4867-bd6c-448617f44538, cut into eight
// 16-bit numbers below 2.25 (ITU-T X.667 has it as one 128-bit number, which
// crypto/x509 and other parsers refuse: they stop at 31 bits per arc). The
// extension's value is a DER OCTET STRING around the message below.
//
// # SSH
//
// A user certificate carries the same message as the value of the extension
// "identity@sallyport". Its key id is the user's name; its principals are the
// certificate's own, so the message leaves them out.
//
// # The message
//
// Protocol buffers, written by hand so that equal identities have equal bytes:
// fields in order of number, traits by name, nothing at its default.
//
//	 1 kind        2 name          3 cluster
//	 4 roles*      5 traits* {1 name, 2 values*}
//	 6 principals* 7 mfa           8 pinned_addr    9 login_addr
//	10 allowed_resources*         11 active_requests*
//	12 usage      13 bound_to     14 disallow_reissue (bool)
//	15 generation (uint64)
//
// At most 64 KiB, with the counts of codec.go.
//
// # How versions mix
//
// A field that a reader does not know is skipped when its number is below 1024
// and refuses the whole certificate when it is 1024 or above. So a later
// version gives facts and grants a low number: older readers go without. It
// gives whatever restricts a number from 1024 on: older readers, which could
// not enforce it, refuse the certificate instead of overlooking it. For the
// same reason an unknown value of usage refuses the certificate.
package identity
