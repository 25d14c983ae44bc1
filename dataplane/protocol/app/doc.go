// Package app serves web applications: it is the reverse proxy between the
// door and an application that knows nothing of us.
//
//	client ─▶ door ─▶ Serve: one HTTP server for this one connection
//	                    └ each request: whose is it (421) ─▶ Open (403) ─▶ headers ─▶ application
//
// What a client may not say of itself is taken out of its request, in every
// spelling: our cookies and headers, and those that applications believe a proxy
// about (who the user is, where the request comes from). What an application may
// not say is taken out of its answer: cookies that are ours or would reach other
// origins, and redirects to its inner name come back by its outer one.
//
// Bodies pass through one buffer of 32 KiB; a message of HTTP is read by
// net/http and written anew, so that the application sees one request, framed in
// one way, for each that was taken here (RFC 9112, section 11.2).
//
// Invariant: a connection to the application serves the holder of one certificate
// only; what an application leaves in it reaches nobody else. When a client sends
// credentials that an application may bind to a connection (NTLM), or has upgraded
// one, that one serves the client's own connection only.
package app
