package main

import (
	"os"
	"strings"
	"testing"

	"github.com/sallyport/sallyport/bench/flow"
)

func TestNewTarget(t *testing.T) {
	for name, c := range map[string]struct {
		o       options
		addr    string
		asks    string
		problem string
	}{
		"a name":          {o: options{target: "127.0.0.1:443", name: "shop.test"}, addr: "127.0.0.1:443", asks: "shop.test"},
		"the host":        {o: options{target: "localhost:443"}, asks: "localhost"},
		"servers":         {o: options{target: "127.0.0.1:443", servers: "127.0.0.1:9001"}, addr: "127.0.0.1:443", asks: "127.0.0.1"},
		"IPv6":            {o: options{target: "[::1]:443", name: "shop.test"}, addr: "[::1]:443", asks: "shop.test"},
		"no port":         {o: options{target: "127.0.0.1"}, problem: "missing port"},
		"no name":         {o: options{target: "127.0.0.1:443"}, problem: "routes by names"},
		"name and server": {o: options{target: "127.0.0.1:443", name: "a.test", servers: "127.0.0.1:9001"}, problem: "exclude each other"},
	} {
		got, err := newTarget(c.o)
		switch {
		case c.problem != "":
			if err == nil || !strings.Contains(err.Error(), c.problem) {
				t.Errorf("%s: %v", name, err)
			}
		case err != nil || c.addr != "" && got.addr != c.addr || got.name != c.asks:
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

func TestConsecutive(t *testing.T) {
	got, err := consecutive("127.0.0.1:9001")
	want := flow.Backends{Sink: "127.0.0.1:9001", Echo: "127.0.0.1:9002", One: "127.0.0.1:9003", Source: "127.0.0.1:9004", Count: "127.0.0.1:9005"}
	if err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
	for _, bad := range []string{"", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:65532", "127.0.0.1:x"} {
		if _, err := consecutive(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

// TestTargetMeasures: of a gateway whose servers are unknown only connections
// are measured, and CPU only of a process that is told.
func TestTargetMeasures(t *testing.T) {
	w, z := &relayWorld{loose: true}, sizesFor(options{quick: true})
	count := func(all []comparison) (cpu int) {
		for _, c := range all {
			for _, q := range c.Quantities {
				if q.Key == "cpu" {
					cpu++
				}
				if q.Key == "others" {
					t.Errorf("%s: others on a core that is nobody's", c.Name)
				}
			}
		}
		return cpu
	}
	named := w.targetMeasures(target{addr: "127.0.0.1:443", name: "a.test"}, z)
	if len(named) != 2 || named[0].b != nil || named[0].B != "" || count(named) != 0 {
		t.Errorf("by name: %d measures, CPU in %d", len(named), count(named))
	}
	served := w.targetMeasures(target{addr: "127.0.0.1:443", servers: "127.0.0.1:9001", pid: os.Getpid()}, z)
	if len(served) != 8 || served[0].b == nil || !served[0].Floor || count(served) != 8 {
		t.Errorf("with servers: %d measures, CPU in %d", len(served), count(served))
	}
}

func TestTargetRoutes(t *testing.T) {
	to, err := consecutive("127.0.0.1:9001")
	if err != nil {
		t.Fatal(err)
	}
	got := target{}.routes(to)
	for _, want := range []string{flow.SinkName + " -> 127.0.0.1:9001\n", flow.SourceName + " -> 127.0.0.1:9004\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
}
