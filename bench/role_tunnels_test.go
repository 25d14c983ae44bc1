package main

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/sallyport/sallyport/bench/flow"
)

// farEnd is what the agents of a test need: certificates, and one echo server.
func farEnd(t *testing.T) (arg string, clients flow.TLS) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { l.Close(); <-done })
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() { io.Copy(conn, conn); conn.Close() }()
		}
	}()
	w := &tunnels{relayWorld: &relayWorld{dir: t.TempDir(), to: flow.Backends{Echo: l.Addr().String(), One: l.Addr().String(), Sink: l.Addr().String()}}}
	if err := w.certificates(); err != nil {
		t.Fatal(err)
	}
	return w.end, w.clients
}

// TestEnds: TLS ends at the far end, behind a listener and behind an SSH tunnel,
// and what is in it comes to the server that was asked for.
func TestEnds(t *testing.T) {
	onLinux(t)
	arg, clients := farEnd(t)
	for _, c := range []struct {
		name string
		run  func(ctx context.Context, listen string, play func(...string))
	}{
		{"listener", func(_ context.Context, listen string, play func(...string)) { play(roleEnder, listen, arg) }},
		{"ssh", func(_ context.Context, listen string, play func(...string)) {
			agents, err := freeAddress()
			if err != nil {
				t.Fatal(err)
			}
			play(roleSSHGateway, listen, agents)
			dialWhenUp(t, agents).Close() // as somebody who looks whether it listens
			play(roleSSHAgent, agents, arg)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			listen, err := freeAddress()
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			var ended []chan error
			c.run(ctx, listen, func(args ...string) {
				done := make(chan error, 1)
				go func() { done <- play(ctx, args) }()
				ended = append(ended, done)
			})
			dialWhenUp(t, listen).Close()
			for _, kind := range []flow.Kind{flow.Ping, flow.Connect, flow.Idle} {
				j := flow.Job{Kind: kind, Conns: 3, TLS: &clients, Window: 50 * time.Millisecond, To: flow.Backends{Echo: listen, One: listen}}
				r, err := flow.Run(t.Context(), j, meter{})
				if err != nil || r.Units < 1 || r.Failed > 0 {
					t.Errorf("%s: %+v, %v", kind, r, err)
				}
			}
			j := flow.Job{Kind: flow.Ping, Conns: 2, Rate: 1000, Beside: 1e6, TLS: &clients, Window: 50 * time.Millisecond, To: flow.Backends{Echo: listen, Sink: listen}}
			if r, err := flow.Run(t.Context(), j, meter{}); err != nil || r.Units < 1 {
				t.Errorf("beside a stream: %+v, %v", r, err)
			}
			cancel()
			for _, done := range ended {
				<-done // with an error where a connection was cut
			}
		})
	}
}

// TestEnderWantsCertificates: who has none of the clients' CA is refused.
func TestEnderWantsCertificates(t *testing.T) {
	onLinux(t)
	arg, _ := farEnd(t)
	var e ending
	if err := json.Unmarshal([]byte(arg), &e); err != nil {
		t.Fatal(err)
	}
	listen, err := freeAddress()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- play(ctx, []string{roleEnder, listen, arg}) }()
	defer func() { cancel(); <-done }()
	dialWhenUp(t, listen).Close()
	stranger := flow.TLS{Cert: e.Cert, Key: e.Key} // of another CA
	if _, err := flow.Run(t.Context(), flow.Job{Kind: flow.Idle, Conns: 1, TLS: &stranger, Window: time.Millisecond, To: flow.Backends{Echo: listen}}, meter{}); err == nil {
		t.Error("a stranger's certificate was taken")
	}
	e.CAs = filepath.Join(t.TempDir(), "none")
	if err := os.WriteFile(e.CAs, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	bad, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	for _, arg := range []string{string(bad), "no JSON", `{"cert": "/nothing"}`} {
		if _, err := newEnder(arg); err == nil {
			t.Errorf("%s: no error", arg)
		}
	}
}
