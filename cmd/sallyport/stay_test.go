package main

import (
	"fmt"
	"net"
	"os"
	"testing"
	"time"
)

// TestStopShutsPortFirst: while the service's end waited for old processes the port was
// open, and who came was cut a moment later.
func TestStopShutsPortFirst(t *testing.T) {
	s := serve(t, fmt.Sprintf("  routes: [{names: [a.example.com], to: [%q]}]\n", backend(t, "one")))
	if a := s.reaches("a.example.com"); a != "one" {
		t.Fatalf("a is %q", a)
	}
	leash, err := newLeash()
	if err != nil {
		t.Fatal(err)
	}
	defer leash.close()
	s.keeping.leash = leash
	old, err := openRemnant(s.cfg.DataDir, remnantReport{PID: os.Getpid(), Since: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	s.stop()
	leash.wait() // old processes are told, and waited for
	if conn, err := net.DialTimeout("tcp", s.addr, 20*time.Second); err == nil {
		conn.Close()
		t.Error("the port is open while old processes end")
	}
	if err := old.close(s.cfg.DataDir); err != nil {
		t.Error(err)
	}
}
