package port

import (
	"net"
	"runtime"
	"testing"
	"time"
)

// TestReserve: while many ask for any port, nobody gets one that is reserved, and
// who asks for it by its number does.
func TestReserve(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("how ports are given out is the kernel's: this is Linux's way")
	}
	reserved := map[string]time.Time{}
	// held says that a port is reserved, and not for so long that it may be free again.
	held := func(a string) bool {
		at, ok := reserved[a]
		return ok && time.Since(at) < 50*time.Second
	}
	for range 300 {
		began := time.Now()
		a, err := Reserve()
		if err != nil {
			t.Fatal(err)
		}
		if held(a) {
			t.Fatalf("%s twice", a)
		}
		reserved[a] = began
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
		if held(l.Addr().String()) {
			t.Errorf("%s is given to a listener", l.Addr())
		}
		l.Close()
		c, err := net.Dial("tcp4", all.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if held(c.LocalAddr().String()) {
			t.Errorf("%s is given to a client", c.LocalAddr())
		}
		c.Close()
	}
	for a := range reserved {
		l, err := net.Listen("tcp4", a)
		if err == nil {
			l.Close()
		} else if held(a) {
			t.Fatal(err)
		}
	}
}
