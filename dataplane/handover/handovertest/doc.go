// Package handovertest hands parts over from one instance to another within one
// process, so that a test of a part needs no second one. The transport and the
// order are the real ones; what stands in for the death of a new process is that
// every descriptor which its takers were given is closed.
package handovertest
