package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/bench/flow"
)

// TestCopyProxy: it brings a hello where its name leads, and the bytes both ways.
func TestCopyProxy(t *testing.T) {
	server, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	addr, err := freeAddress()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- copyProxy(ctx, addr, []flow.Route{{Name: "a.test", Address: server.Addr().String()}}) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	hello, err := flow.HelloFor("a.test")
	if err != nil {
		t.Fatal(err)
	}
	client := dialWhenUp(t, addr)
	defer client.Close()
	client.SetDeadline(time.Now().Add(time.Minute))
	if _, err := client.Write(hello); err != nil {
		t.Fatal(err)
	}
	far, err := server.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	got := make([]byte, len(hello))
	if _, err := io.ReadFull(far, got); err != nil || !bytes.Equal(got, hello) {
		t.Fatalf("the hello came as %d bytes: %v", len(got), err)
	}
	if _, err := far.Write([]byte("answer")); err != nil {
		t.Fatal(err)
	}
	far.(*net.TCPConn).CloseWrite()
	if b, err := io.ReadAll(client); err != nil || string(b) != "answer" {
		t.Errorf("%q, %v", b, err)
	}
}

func dialWhenUp(t *testing.T, addr string) net.Conn {
	t.Helper()
	for until := time.Now().Add(time.Minute); ; {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			return conn
		}
		if time.Now().After(until) {
			t.Fatal(err)
		}
	}
}

func TestPlayRefuses(t *testing.T) {
	for _, args := range [][]string{{"@nothing"}, {roleServers}, {roleServers, "no JSON"}, {roleCopy, "127.0.0.1:0", "no JSON"}} {
		if err := play(t.Context(), args); err == nil {
			t.Errorf("%q was played", args)
		}
	}
	if isRole([]string{"bench"}) || isRole([]string{"bench", "-quick"}) || !isRole([]string{"bench", roleTraffic}) {
		t.Error("roles and flags are mixed up")
	}
}

// TestTraffic: an order is done as a process would, with this process watched.
func TestTraffic(t *testing.T) {
	onLinux(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	defer func() { l.Close(); <-done }()
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conn.Write([]byte{1})
			conn.Close()
		}
	}()
	o := order{PIDs: map[string][]int{"relay": {os.Getpid()}}, Job: flow.Job{Kind: flow.Connect, Conns: 2, Window: 50 * time.Millisecond, To: flow.Backends{One: l.Addr().String()}}}
	in, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := makeTraffic(t.Context(), bytes.NewReader(in), &out); err != nil {
		t.Fatal(err)
	}
	var r flow.Result
	if err := json.Unmarshal(out.Bytes(), &r); err != nil || r.Units == 0 || r.CPU["relay"] <= 0 {
		t.Errorf("%s: %v", out.String(), err)
	}
	if err := makeTraffic(t.Context(), strings.NewReader("{"), io.Discard); err == nil {
		t.Error("half an order was done")
	}
}

func TestMeterHeld(t *testing.T) {
	onLinux(t)
	m := meter{pids: map[string][]int{"relay": {os.Getpid()}}}
	before, err := m.Held()
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	after, err := m.Held()
	if err != nil {
		t.Fatal(err)
	}
	if a, b := after["relay"], before["relay"]; a.Pipes < 2 || a.FDs <= 2 || a.RSS <= 0 || b.Pipes > a.Pipes {
		t.Errorf("%+v, then with a pipe %+v", b, a)
	}
	if _, err := (meter{pids: map[string][]int{"gone": {1 << 30}}}).Held(); err == nil {
		t.Error("a process that is not there holds something")
	}
}

func TestPinned(t *testing.T) {
	onLinux(t)
	c, err := pickCores()
	if err != nil {
		t.Fatal(err)
	}
	ran := false
	if err := pinned(c.relay, func() error { ran = true; return io.EOF }); err != io.EOF || !ran {
		t.Errorf("ran %v, %v", ran, err)
	}
	if err := pinned(1<<20, func() error { return nil }); err == nil {
		t.Error("pinned to a CPU that is not there")
	}
}
