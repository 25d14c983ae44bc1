package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/sallyport/sallyport/alpn"
)

// appRateBar is of requests per second and core, to nginx's.
const appRateBar = 0.50

// nginxProxy is nginx in the place of gateway and agent: it ends the clients'
// TLS, checks their certificates, and speaks TLS with the application.
type nginxProxy struct {
	*process
	addr string
}

// stop knows that there may be none.
func (n *nginxProxy) stop() {
	if n != nil {
		n.process.stop()
	}
}

// startNginx starts it where there is one.
func (w *web) startNginx(ctx context.Context) error {
	path, err := lookPeer("nginx")
	if err != nil {
		return nil // the measures name it
	}
	addr, err := freeAddress()
	if err != nil {
		return err
	}
	dir := w.path("nginx")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	for name, b := range map[string][]byte{"cert": w.databases.cert, "key": w.databases.key, "clients": w.databases.clientCAs, "nginx.conf": []byte(reverseConfig(dir, addr, w.app.addr(), w.databases.serverCA))} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			return err
		}
	}
	p, err := startProcess(w.dir, "nginx", exec.Command(path, "-p", dir, "-e", "stderr", "-c", filepath.Join(dir, "nginx.conf")))
	if err != nil {
		return err
	}
	w.nginx = &nginxProxy{p, addr}
	return p.await(ctx, listens(addr))
}

// reverseConfig keeps connections on both sides, verifies on both sides, and
// writes no log: nothing that ours does is asked of it but that.
func reverseConfig(dir, addr, app, cas string) string {
	return fmt.Sprintf(`daemon off;
worker_processes 1;
pid %[1]s/pid;
error_log stderr error;
events { worker_connections 4096; }
http {
	access_log off;
	client_body_temp_path %[1]s/body;
	proxy_temp_path %[1]s/proxy;
	fastcgi_temp_path %[1]s/fastcgi;
	uwsgi_temp_path %[1]s/uwsgi;
	scgi_temp_path %[1]s/scgi;
	keepalive_requests 10000000;
	upstream app {
		server %[4]s;
		keepalive 64;
		keepalive_requests 10000000;
	}
	server {
		listen %[2]s ssl;
		ssl_protocols TLSv1.3;
		ssl_session_tickets off;
		ssl_certificate cert;
		ssl_certificate_key key;
		ssl_client_certificate clients;
		ssl_verify_client on;
		location / {
			proxy_pass https://app;
			proxy_http_version 1.1;
			proxy_set_header Connection "";
			proxy_set_header Host localhost;
			proxy_ssl_protocols TLSv1.3;
			proxy_ssl_verify on;
			proxy_ssl_name localhost;
			proxy_ssl_trusted_certificate %[3]s;
		}
	}
}
`, dir, addr, cas, app)
}

// nginxWatched are the processes of nginx: it works in a child.
func (w *web) nginxWatched() (map[string]int, error) {
	out := map[string]int{"master": w.nginx.pid()}
	below, err := descendants(w.nginx.pid())
	for _, s := range below {
		out[fmt.Sprint("worker", s.pid)] = s.pid
	}
	return out, err
}

// perCore adds the CPU that all the processes used together per request, and how
// many requests that is per second of one core.
func perCore(s side, n int, pids func() (map[string]int, error)) side {
	return func(ctx context.Context) (Sample, error) {
		watched, err := pids()
		if err != nil {
			return nil, err
		}
		sum := func() (all time.Duration, err error) {
			for _, pid := range watched {
				d, err := cpuTime(pid)
				if err != nil {
					return 0, err
				}
				all += d
			}
			return all, nil
		}
		before, err := sum()
		if err != nil {
			return nil, err
		}
		out, err := s(ctx)
		if err != nil {
			return nil, err
		}
		after, err := sum()
		if err != nil {
			return nil, err
		}
		used := (after - before).Seconds()
		maps.Copy(out, Sample{"cpu_us": used * 1e6 / float64(n), "per_core": float64(n) / used})
		return out, nil
	}
}

// appMeasures hold gateway and agent against nginx that does the same.
func (w *web) appMeasures(z sizes) []comparison {
	through := w.appThrough()
	ours := func() (map[string]int, error) { return w.watched(), nil }
	measure := func(name, title, load string, n int, ask func(visit, counting) side) comparison {
		m := comparison{Measure: Measure{
			Name: "app/" + name, Title: title, A: "gateway and agent, with a client certificate", B: "nginx, TLS and a client certificate there too",
			Load: load,
			Quantities: []Quantity{
				{Key: "per_core", Title: "requests per second of one core", Unit: "/s", More: true, Ratio: appRateBar},
				{Key: "cpu_us", Title: "CPU of all processes per request", Unit: "µs"},
				{Key: "rate", Title: "requests", Unit: "/s", More: true}, gatewayCPU("request"), agentCPU("request"),
			},
		}}
		m.a = ask(through, func(s side) side { return perCore(w.counted(s, n), n, ours) })
		if w.nginx == nil {
			m.Missing = "nginx"
			return m
		}
		m.b = ask(w.directTo(w.nginx.addr, visit{path: "/", size: pageSize, protocol: alpn.HTTP11}), func(s side) side { return perCore(s, n, w.nginxWatched) })
		return m
	}
	return []comparison{
		measure("kept", "Application requests, connections kept", fmt.Sprintf("%d answers of 4 KiB over HTTP/1.1, %d connections, the application at https too", z.requests, z.workers), z.requests,
			func(v visit, count counting) side { return v.kept(z.requests, z.workers, count) }),
		measure("new", "Application requests, each on a new connection", fmt.Sprintf("%d answers of 4 KiB over HTTP/1.1, %d at a time, the application at https", z.sessions, z.workers), z.sessions,
			func(v visit, count counting) side { return count(v.fresh(z.sessions, z.workers)) }),
	}
}
