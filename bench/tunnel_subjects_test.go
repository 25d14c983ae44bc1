package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sallyport/sallyport/bench/flow"
)

func TestFRPConfigs(t *testing.T) {
	p := place{listen: "127.0.0.1:8443", routes: []flow.Route{{Name: "a.test", Address: "127.0.0.1:9001"}, {Name: "b.test", Address: "127.0.0.1:9002"}}}
	for _, c := range []struct {
		mode           frpMode
		server, client []string
	}{
		{frpMode{place: p, bind: "127.0.0.1:7000", mux: true, tls: true, cert: "/c", key: "/k"},
			[]string{"bindPort = 7000\n", "vhostHTTPSPort = 8443\n", "transport.tcpMux = true\n"},
			[]string{"serverPort = 7000\n", "transport.poolCount = 0\n", "transport.tls.enable = true\n", "customDomains = [\"b.test\"]\n[proxies.plugin]\ntype = \"tls2raw\"\nlocalAddr = \"127.0.0.1:9002\"\ncrtPath = \"/c\"\nkeyPath = \"/k\"\n"}},
		{frpMode{place: p, bind: "127.0.0.1:7000"}, []string{"transport.tcpMux = false\n"}, []string{"transport.poolCount = 50\n", "transport.tls.enable = false\n"}},
	} {
		for _, want := range c.server {
			if got := c.mode.server(); !strings.Contains(got, want) {
				t.Errorf("server: no %q in\n%s", want, got)
			}
		}
		for _, want := range c.client {
			if got := c.mode.client(); !strings.Contains(got, want) {
				t.Errorf("client: no %q in\n%s", want, got)
			}
		}
	}
}

// TestFRPConfigsAreRead by frp, where it is installed. It is no package of Debian's, so
// it is not asked for in CI.
func TestFRPConfigsAreRead(t *testing.T) {
	dir := t.TempDir()
	m := frpMode{place: somewhere(t), bind: "127.0.0.1:7000", mux: true, tls: true, cert: "/c", key: "/k"}
	for program, text := range map[string]string{"frps": m.server(), "frpc": m.client()} {
		path, err := exec.LookPath(program)
		if err != nil {
			t.Skip(program + " is not on the PATH")
		}
		file := filepath.Join(dir, program+".toml")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(path, "verify", "-c", file).CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s\n%s", program, err, out, text)
		}
	}
}

func TestModule(t *testing.T) {
	text := frpModule.gomod()
	for _, want := range []string{"require github.com/fatedier/frp v0.70.0\n", "\nreplace github.com/hashicorp/yamux => "} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if strings.Contains(chiselModule.gomod(), "replace") {
		t.Error("a replace where none is needed")
	}
	m := module{path: "example.test/a/peer", version: "v1.2.3", programs: map[string]string{"bench-no-such-program": ""}}
	cache := t.TempDir()
	dir := filepath.Join(cache, "example.test_a_peer@v1.2.3")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if m.built(dir, map[string]string{}) {
		t.Error("an empty directory has the programs")
	}
	program := filepath.Join(dir, "bench-no-such-program")
	if err := os.WriteFile(program, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	paths, err := m.find(t.Context(), cache)
	if err != nil || paths["bench-no-such-program"] != program {
		t.Errorf("%v, %v", paths, err)
	}
	if p := m.peer(nil, paths); p.Version != "v1.2.3" || p.Name != "peer" || p.Missing {
		t.Errorf("%+v", p)
	}
	if p := m.peer(nil, map[string]string{"x": "/usr/bin/x"}); p.Version != "on the PATH: /usr/bin" {
		t.Errorf("%+v", p)
	}
	if p := m.peer(errors.New("no network"), nil); !p.Missing {
		t.Errorf("%+v", p)
	}
}

// TestTunnelBarsAreOfMeasures, as those of relays.
func TestTunnelBarsAreOfMeasures(t *testing.T) {
	w := &tunnels{relayWorld: &relayWorld{}, cluster: &world{}, chiselErr: errors.New("none")}
	have, missing := map[string]bool{}, 0
	for _, m := range w.tunnelMeasures(sizesFor(options{})) {
		if m.Missing != "" {
			missing++
		}
		for _, q := range m.Quantities {
			have[m.Name+" "+q.Key] = true
		}
	}
	for bar := range tunnelBars {
		if !have[bar] {
			t.Errorf("no measure %s", bar)
		}
	}
	if missing == 0 {
		t.Error("chisel is not here, and no measure says so")
	}
}
