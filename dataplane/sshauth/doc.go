// Package sshauth is what all SSH servers here have in common: which algorithms
// they speak, whether a user certificate is good, and how a refusal reads.
//
// There is one of it, so that no server is more permissive than another. What
// it says about a certificate does not prove that the client has the key.
package sshauth
