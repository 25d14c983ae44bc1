package main

import (
	"crypto/tls"
	"net/http"
	"testing"

	"github.com/sallyport/sallyport/alpn"
	"github.com/sallyport/sallyport/tools/peers"
)

func startedServer(t *testing.T, c credentials, clients tls.ClientAuthType, h http.HandlerFunc) *webServer {
	t.Helper()
	s, err := startWebServer(c, clients, h)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.close)
	return s
}

// TestAPIStub: requests over kept and new connections, and bytes both ways.
func TestAPIStub(t *testing.T) {
	w := &web{world: &world{databases: serverCredentials(t)}}
	w.api = startedServer(t, w.databases, tls.RequireAndVerifyClientCert, serveAPI)
	v := w.kubeDirect()
	for name, s := range map[string]side{
		"kept": v.kept(20, 4, uncounted), "new": v.fresh(8, 2), "exec down": v.stream("exec", "down", 2), "exec up": v.stream("exec", "up", 2),
	} {
		if got, err := s(t.Context()); err != nil || got["rate"] <= 0 {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	v.size++
	if _, err := v.kept(1, 1, uncounted)(t.Context()); err == nil {
		t.Error("an answer of another size was taken")
	}
	config, err := v.tls()
	if err != nil {
		t.Fatal(err)
	}
	config.Certificates = nil
	if err := w.kubeDirect().get(t.Context(), v.clientOf(config)); err == nil {
		t.Error("a client without a certificate was served")
	}
}

// TestNginx: it does what gateway and agent do, TLS on both sides and a client
// certificate, and its processes are found.
func TestNginx(t *testing.T) {
	w := &web{world: &world{dir: t.TempDir(), databases: serverCredentials(t)}}
	var err error
	if w.app, err = startApp(w.databases); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.app.close)
	if err := w.startNginx(t.Context()); err != nil {
		t.Fatal(err)
	}
	if w.nginx == nil {
		peers.Missing(t, "nginx")
	}
	t.Cleanup(w.nginx.stop)
	v := w.directTo(w.nginx.addr, visit{path: "/", size: pageSize, protocol: alpn.HTTP11})
	count := func(s side) side { return perCore(s, 50, w.nginxWatched) }
	for name, ask := range map[string]side{"kept": v.kept(50, 4, count), "new": count(v.fresh(50, 2))} {
		s, err := ask(t.Context())
		if err != nil || s["per_core"] <= 0 || s["rate"] <= 0 {
			t.Errorf("%s: %v, %v", name, s, err)
		}
	}
	pids, err := w.nginxWatched()
	if err != nil || len(pids) != 2 {
		t.Errorf("processes: %v, %v", pids, err)
	}
	config, err := v.tls()
	if err != nil {
		t.Fatal(err)
	}
	config.Certificates = nil
	if err := v.get(t.Context(), v.clientOf(config)); err == nil {
		t.Error("a client without a certificate was served")
	}
}
