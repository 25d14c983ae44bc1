// Package login knows the local users and decides whether somebody is one of
// them: passwords, one-time codes, and the links by which people claim their
// accounts.
//
// # What a stranger learns
//
// Nothing about who exists. An unknown name, a wrong password and a wrong code
// get the same answer, after the same work: one password hash and the same
// reads and writes of the store. Only who gave the right password is told more.
//
// # What is bounded
//
//	password hashes        2 at once, 32 waiting, 16 of them from one address
//	wrong passwords        5 in 5 minutes per address and user, 30 per address
//	wrong one-time codes   5 in 5 minutes per user, 5 per address
//	wrong codes of devices 5 in 5 minutes per user (Guess)
//
// Addresses are IPv4 addresses and IPv6 /64 networks. The count per user is of
// wrong codes after a right password: a stranger cannot lock a user out. All
// counts are in the store, so they hold for all auth processes together, and
// each try is counted before it is judged.
//
// # Records
//
//	users/<name in lower case>    the user, with password hash and sealed TOTP secret
//	links/<hash of the token>     whose account the link claims
//	codes/<name in lower case>    the last time step of which a code was taken
//	tries/<what>/<hash>           times of recent tries; they end with a lease
//
// Names are compared exactly but stored in lower case: "Alice" cannot be made
// beside "alice".
package login
