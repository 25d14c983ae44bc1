package agent

import (
	"testing"

	"github.com/sallyport/sallyport/test/leak"
)

// TestMain fails when goroutines are left behind.
func TestMain(m *testing.M) { leak.Main(m) }
