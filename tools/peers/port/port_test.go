package port

import (
	"net"
	"runtime"
	"testing"
)

// TestReserve: while many ask for any port, nobody gets one that is reserved, and
// who asks for it by its number does.
func TestReserve(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("how ports are given out is the kernel's: this is Linux's way")
	}
	reserved := map[string]bool{}
	for range 300 {
		a, err := Reserve()
		if err != nil {
			t.Fatal(err)
		}
		if reserved[a] {
			t.Fatalf("%s twice", a)
		}
		reserved[a] = true
	}
	all, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer all.Close()
	go func() {
		for c, err := all.Accept(); err == nil; c, err = all.Accept() {
			c.Close()
		}
	}()
	for range 500 {
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		if reserved[l.Addr().String()] {
			t.Errorf("%s is given to a listener", l.Addr())
		}
		l.Close()
		c, err := net.Dial("tcp4", all.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if reserved[c.LocalAddr().String()] {
			t.Errorf("%s is given to a client", c.LocalAddr())
		}
		c.Close()
	}
	for a := range reserved {
		l, err := net.Listen("tcp4", a)
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
	}
}
