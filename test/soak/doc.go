// Package soak loads a gateway for a long time with everything that clients and
// servers do to it, right and wrong, and then looks whether it is as it was.
package soak
