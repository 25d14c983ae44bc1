// Package ssh gives a client with a user certificate a shell or a command on
// the host that the agent runs on.
//
// It is the SSH server (RFC 4251 to 4254) inside the door's TLS. The person is
// named twice: by the outer TLS certificate, which the door has checked, and by
// the SSH certificate, which is checked here by the same rules and must name
// the same user.
//
//	Serve ── key exchange ── user certificate offered ─▶ checkCertificate
//	                                  │ proof of the key
//	                                  ▼
//	            identity ─▶ Gate.Admit ─▶ account of the login ─▶ Candidate.Open
//	                                  │ grant: one per connection
//	                                  ▼
//	   channels by the table in rules.go: session ─▶ env, pty-req ─▶ shell | exec
//	                                                       │
//	                                 process: setsid, setuid, reaped by us
//
// Events have Teleport's names, codes and fields. A command is in field command,
// 16 KiB of it at most, and with ? for each character that is not printable.
// When there was more, command_truncated is true; when the text is not the command
// to the byte, command_size is the number of its bytes and command_sha256 their hash,
// in hexadecimal.
//
// Nothing that a client only offers and has not proved counts. What is not in
// the table of rules is refused.
package ssh
