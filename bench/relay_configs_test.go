package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sallyport/sallyport/bench/flow"
	"github.com/sallyport/sallyport/tools/peers"
)

func somewhere(t *testing.T) place {
	t.Helper()
	listen, err := freeAddress()
	if err != nil {
		t.Fatal(err)
	}
	return place{dir: t.TempDir(), listen: listen, files: 4096, routes: []flow.Route{{Name: "a.test", Address: "127.0.0.1:9001"}, {Name: "b.test", Address: "127.0.0.1:9002"}}}
}

func TestConfigs(t *testing.T) {
	p := somewhere(t)
	for name, c := range map[string]struct {
		text      string
		want, not []string
	}{
		"sallyport":        {sallyportConfig(p), []string{"roles: [gateway]\n", fmt.Sprintf("listen: [%q]", p.listen), `    - {names: [b.test], to: ["127.0.0.1:9002"]}` + "\n"}, nil},
		"haproxy, default": {haproxyConfig("default", p), []string{"option splice-auto", "tune.pipesize 65536", "bind " + p.listen, "use_backend b1 if { req.ssl_sni -i b.test }", "server s 127.0.0.1:9002", "maxconn 1798"}, []string{"splice-request", "busy"}},
		"haproxy, tuned":   {haproxyConfig("tuned", p), []string{"option splice-request", "option splice-response", "tune.pipesize 262144"}, []string{"splice-auto", "busy"}},
		"haproxy, busy":    {haproxyConfig("busy", p), []string{"    busy-polling\n", "option splice-request"}, nil},
		"nginx":            {nginxConfig("/m.so", p), []string{"load_module /m.so;", "a.test 127.0.0.1:9001;", "listen " + p.listen + " backlog=16384", "worker_connections 3596;", "pid " + p.dir + "/nginx.pid;"}, nil},
		"nginx, built in":  {nginxConfig("", p), []string{"worker_processes 1;"}, []string{"load_module"}},
		"sslh":             {sslhConfig(p), []string{`host: "127.0.0.1"; port: "9002"; sni_hostnames: [ "b.test" ]; }` + "\n);", `"a.test" ]; },` + "\n"}, nil},
	} {
		for _, w := range c.want {
			if !strings.Contains(c.text, w) {
				t.Errorf("%s: no %q in\n%s", name, w, c.text)
			}
		}
		for _, n := range c.not {
			if strings.Contains(c.text, n) {
				t.Errorf("%s: %q in\n%s", name, n, c.text)
			}
		}
	}
}

// TestConfigsAreRead: the programs themselves find nothing to complain about.
func TestConfigsAreRead(t *testing.T) {
	for _, c := range []struct {
		program, config string
		args            []string
	}{
		{"haproxy", haproxyConfig("default", somewhere(t)), []string{"-c", "-f"}},
		{"haproxy", haproxyConfig("busy", somewhere(t)), []string{"-c", "-f"}},
		{"nginx", nginxConfig(streamModule(), somewhere(t)), []string{"-e", "stderr", "-t", "-c"}},
	} {
		t.Run(c.program, func(t *testing.T) {
			path, err := lookPeer(c.program)
			if err != nil {
				peers.Missing(t, c.program)
			}
			file := filepath.Join(t.TempDir(), "config")
			if err := os.WriteFile(file, []byte(c.config), 0o600); err != nil {
				t.Fatal(err)
			}
			if out, err := exec.Command(path, append(c.args, file)...).CombinedOutput(); err != nil {
				t.Errorf("%v\n%s\n%s", err, out, c.config)
			}
		})
	}
}

func TestPlaceRelays(t *testing.T) {
	for files, want := range map[int]int{200: 100, 4096: 1798, 20000: 9500, 65536: 9500} {
		if got := (place{files: files}).relays(); got != want {
			t.Errorf("%d descriptors: %d relays, want %d", files, got, want)
		}
	}
}
