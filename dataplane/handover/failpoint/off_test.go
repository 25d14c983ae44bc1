//go:build !failpoints || !unix

package failpoint

import "testing"

// TestOff: without the tag a point is nothing, whatever the environment says.
func TestOff(t *testing.T) {
	t.Setenv("SALLYPORT_FAILPOINTS", "a=panic")
	if Enabled {
		t.Error("enabled")
	}
	if err := Hit("a"); err != nil {
		t.Error(err)
	}
}
