package etcd

import (
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/controlplane/store"
)

// TestLeavesNothing: after Close neither goroutines nor descriptors stay.
func TestLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	use := func() {
		s, err := OpenEmbedded(t.Context(), EmbeddedConfig{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		c, err := OpenCluster(t.Context(), ClusterConfig{Endpoints: []string{"unix://" + dir + "/" + clientSock}})
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range []*Store{c, s} {
			s.Watch(t.Context(), "a", 0)
			id, err := s.Grant(t.Context(), time.Minute)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := s.Apply(t.Context(), store.Op{Key: "a", Lease: id, Expect: store.Any}); err != nil {
				t.Fatal(err)
			}
			if err := s.KeepAlive(t.Context(), id); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	use() // what is started once per process
	before := stacks()
	use()
	use()
	deadline := time.Now().Add(time.Minute)
	for {
		after := stacks()
		if strings.Count(after, "\n\n") <= strings.Count(before, "\n\n") {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("goroutines left:\n%s", after)
		}
		runtime.Gosched()
	}
}

func stacks() string {
	b := make([]byte, 1<<20)
	return string(b[:runtime.Stack(b, true)])
}
