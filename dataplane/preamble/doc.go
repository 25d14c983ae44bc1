// Package preamble knows the small talk that comes before TLS: the PROXY
// header, PostgreSQL's requests, RDP's connection request, and HTTP that should
// have been HTTPS.
//
// Everything here is pure: parsers over the bytes seen so far that answer yes,
// no, or how many bytes they need, and encoders of answers. What is said before
// TLS is never believed beyond its own purpose, and a peer that sends more than
// its turn allows is cut off: bytes that arrive in clear before an answer must
// not be taken for bytes inside the TLS that follows (CVE-2021-23214,
// CVE-2021-23222).
//
//	PROXY line ─▶ look again
//	SSLRequest ─▶ 'S' ─▶ ClientHello        GSSENCRequest ─▶ 'N' ─▶ look again
//	StartupMessage ─▶ ErrorResponse 28000   CancelRequest ─▶ the agent, no answer
//	GET / ─▶ 308                            X.224 request ─▶ closed and counted
package preamble

import "errors"

// ErrMalformed and ErrTooLarge are the two ways in which a preamble is refused.
var (
	ErrMalformed = errors.New("malformed")
	ErrTooLarge  = errors.New("too large")
)
