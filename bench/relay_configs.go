package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/sallyport/sallyport/bench/flow"
)

// place is what a relay's configuration needs to know.
type place struct {
	dir    string // the relay's own
	listen string
	routes []flow.Route
	files  int // descriptors it may have
}

// relays is how many connections fit the descriptors, two each, with some left.
func (p place) relays() int { return max(100, min(9500, (p.files-500)/2)) }

// sallyportConfig is what a user writes: everything else is the default.
func sallyportConfig(p place) string {
	var b strings.Builder
	fmt.Fprintf(&b, "version: 1\nroles: [gateway]\ndata_dir: %s\ngateway:\n  listen: [%q]\n  routes:\n", filepath.Join(p.dir, "data"), p.listen)
	for _, r := range p.routes {
		fmt.Fprintf(&b, "    - {names: [%s], to: [%q]}\n", r.Name, r.Address)
	}
	return b.String() + "log: {level: warn}\n"
}

// haproxyConfig is for one thread. "default" is what most configurations have;
// "tuned" always splices, with pipes as large as the best of the field use.
func haproxyConfig(mode string, p place) string {
	pipe, options := 256<<10, "    option splice-request\n    option splice-response\n"
	if mode == "default" {
		pipe, options = 64<<10, "    option splice-auto\n"
	}
	busy := ""
	if mode == "busy" {
		busy = "    busy-polling\n"
	}
	var b strings.Builder
	fmt.Fprintf(&b, `global
    nbthread 1
%s    maxconn %d
    tune.pipesize %d
    maxpipes 200
defaults
    mode tcp
    timeout connect 5s
    timeout client 300s
    timeout server 300s
%sfrontend f
    bind %s backlog 16384
    tcp-request inspect-delay 5s
    tcp-request content accept if { req.ssl_hello_type 1 }
`, busy, p.relays(), pipe, options, p.listen)
	for i, r := range p.routes {
		fmt.Fprintf(&b, "    use_backend b%d if { req.ssl_sni -i %s }\n", i, r.Name)
	}
	for i, r := range p.routes {
		fmt.Fprintf(&b, "backend b%d\n    server s %s\n", i, r.Address)
	}
	return b.String()
}

// nginxStreamModule is where Debian has the stream module; elsewhere it is
// built in.
const nginxStreamModule = "/usr/lib/nginx/modules/ngx_stream_module.so"

func nginxConfig(module string, p place) string {
	var b strings.Builder
	if module != "" {
		fmt.Fprintf(&b, "load_module %s;\n", module)
	}
	fmt.Fprintf(&b, `worker_processes 1;
worker_rlimit_nofile %d;
daemon off;
pid %s/nginx.pid;
error_log stderr error;
events { worker_connections %d; }
stream {
  map $ssl_preread_server_name $backend {
`, p.files, p.dir, 2*p.relays())
	for _, r := range p.routes {
		fmt.Fprintf(&b, "    %s %s;\n", r.Name, r.Address)
	}
	fmt.Fprintf(&b, "  }\n  server { listen %s backlog=16384; ssl_preread on; proxy_pass $backend; proxy_timeout 300s; }\n}\n", p.listen)
	return b.String()
}

// streamModule is the module's path, or "" where nginx needs none.
func streamModule() string {
	if _, err := os.Stat(nginxStreamModule); err != nil {
		return ""
	}
	return nginxStreamModule
}

func sslhConfig(p place) string {
	host, port, _ := strings.Cut(p.listen, ":")
	var lines []string
	for _, r := range p.routes {
		h, n, _ := strings.Cut(r.Address, ":")
		lines = append(lines, fmt.Sprintf(` { name: "tls"; host: %q; port: %q; sni_hostnames: [ %q ]; }`, h, n, r.Name))
	}
	return fmt.Sprintf("foreground: true;\ninetd: false;\nnumeric: true;\ntransparent: false;\ntimeout: 5;\nlisten: ( { host: %q; port: %q; } );\nprotocols: (\n%s\n);\n", host, port, strings.Join(lines, ",\n"))
}
