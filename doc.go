// Package sallyport holds the words that every part of Sallyport shares: who
// somebody is (Identity), what can be reached (Resource), what happened (Event)
// and what was decided (AccessRequest, Decision).
//
// There is no behaviour and no I/O here, and nothing of ours is imported: this
// package is the ground that the data plane and the control plane stand on
// without knowing each other. docs/words.md says what each word means.
package sallyport
