package jump

import (
	"os"
	"testing"

	"github.com/sallyport/sallyport/test/leak"
)

func TestMain(m *testing.M) { os.Exit(leak.CodeOf(m.Run(), "dataplane/jump.", "crypto/ssh.")) }
