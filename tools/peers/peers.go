// Package peers says what is to be done when a real program that a test needs
// is not there.
package peers

import (
	"os"
	"testing"
)

// Missing ends a test for want of a peer, for example "postgres". On a laptop
// the test is skipped and the peer named; where CI is set, missing is failing.
func Missing(t testing.TB, peer string) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatalf("%s is not installed, and in CI missing is failing", peer)
	}
	t.Skipf("%s is not installed; tools/peers installs it", peer)
}
