//go:build unix

package relay

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// noIPv6 says why this machine has no IPv6 loopback, if it has none.
func noIPv6(t *testing.T) error {
	t.Helper()
	l, err := net.Listen("tcp6", "[::1]:0")
	if errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EAFNOSUPPORT) {
		return err
	}
	if err != nil {
		t.Fatal(err)
	}
	return l.Close()
}

// needIPv6 skips what such a machine cannot do.
func needIPv6(t *testing.T) {
	t.Helper()
	if err := noIPv6(t); err != nil {
		t.Skipf("this machine has no IPv6 loopback: %v", err)
	}
}

func TestListen(t *testing.T) {
	for _, c := range []struct {
		address string
		dial    []string
		refused []string
	}{
		{"127.0.0.1:0", []string{"127.0.0.1"}, []string{"127.0.0.2"}},
		{"[::1]:0", []string{"::1"}, []string{"127.0.0.1"}},
		{":0", []string{"127.0.0.1", "::1"}, nil},
		{"[::]:0", []string{"127.0.0.1", "::1"}, nil},
		{"0.0.0.0:0", []string{"127.0.0.1"}, []string{"::1"}},
		{"localhost:0", []string{"localhost"}, nil},
	} {
		t.Run(c.address, func(t *testing.T) {
			noLeak(t)
			if strings.HasPrefix(c.address, "[") {
				needIPv6(t)
			}
			fd, err := Listen(c.address)
			if err != nil {
				t.Fatal(err)
			}
			defer Close(fd)
			port := LocalAddr(fd).Port()
			if _, _, err := Accept(fd); err != ErrAgain {
				t.Fatalf("accept with nobody there: %v", err)
			}
			for _, host := range c.dial {
				if host == "::1" && noIPv6(t) != nil {
					continue
				}
				conn, err := net.Dial("tcp", net.JoinHostPort(host, portText(port)))
				if err != nil {
					t.Fatal(err)
				}
				awaitReadable(t, fd)
				got, peer, err := Accept(fd)
				if err != nil {
					t.Fatal(err)
				}
				local := conn.LocalAddr().(*net.TCPAddr).AddrPort()
				local = netip.AddrPortFrom(local.Addr().Unmap(), local.Port())
				if peer != local || PeerAddr(got) != local {
					t.Errorf("peer %v and %v, want %v", peer, PeerAddr(got), local)
				}
				if flags, _ := unix.FcntlInt(uintptr(got), unix.F_GETFL, 0); flags&unix.O_NONBLOCK == 0 {
					t.Error("the accepted descriptor blocks")
				}
				if flags, _ := unix.FcntlInt(uintptr(got), unix.F_GETFD, 0); flags&unix.FD_CLOEXEC == 0 {
					t.Error("the accepted descriptor is inherited")
				}
				Close(got)
				conn.Close()
			}
			for _, host := range c.refused {
				conn, err := net.Dial("tcp", net.JoinHostPort(host, portText(port)))
				if err != nil {
					continue
				}
				conn.Close()
				if _, peer, err := Accept(fd); err != ErrAgain { // else another program has the port there
					t.Errorf("%s answers too: %v, %v", host, peer, err)
				}
			}
		})
	}
}

func portText(port uint16) string {
	_, text, _ := net.SplitHostPort(netip.AddrPortFrom(netip.IPv4Unspecified(), port).String())
	return text
}

func TestListenShares(t *testing.T) {
	noLeak(t)
	a, err := Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer Close(a)
	b, err := Listen(LocalAddr(a).String())
	if err != nil {
		t.Fatalf("a second loop's listener: %v", err)
	}
	Close(b)
}

func TestListenRefuses(t *testing.T) {
	noLeak(t)
	for _, address := range []string{"", "127.0.0.1", "127.0.0.1:70000", "192.0.2.1:0"} {
		if fd, err := Listen(address); err == nil {
			Close(fd)
			t.Errorf("listening at %q", address)
		}
	}
}

func TestConnect(t *testing.T) {
	dir, err := os.MkdirTemp("", "sock") // t.TempDir is too long for an address
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "s")
	for network, address := range map[string]string{"tcp4": "127.0.0.1:0", "tcp6": "[::1]:0", "unix": path} {
		t.Run(network, func(t *testing.T) {
			noLeak(t)
			if network == "tcp6" {
				needIPv6(t)
			}
			l, err := net.Listen(network, address)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			var fd int
			if network == "unix" {
				fd, err = ConnectUnix(path)
			} else {
				fd, err = Connect(netip.MustParseAddrPort(l.Addr().String()))
			}
			if err != nil {
				t.Fatal(err)
			}
			defer Close(fd)
			peer, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer peer.Close()
			until(t, "connection", func() bool {
				ok, err := Connected(fd)
				if err != nil {
					t.Fatal(err)
				}
				return ok
			})
			if _, err := Write(fd, []byte("hello")); err != nil {
				t.Fatal(err)
			}
			want(t, peer, "hello")
		})
	}
	if fd, err := ConnectUnix(filepath.Join(dir, "nobody")); err == nil {
		Close(fd)
		t.Error("connected to nobody")
	}
}

func TestPeek(t *testing.T) {
	noLeak(t)
	k := tcp(t)
	defer Close(k.fd)
	b := make([]byte, 64)
	if n, err := Peek(k.fd, b); n != 0 || err != ErrAgain {
		t.Fatalf("peek %d, %v with nothing there", n, err)
	}
	if n, err := Read(k.fd, b); n != 0 || err != ErrAgain {
		t.Fatalf("read %d, %v with nothing there", n, err)
	}
	say(t, k.peer, "hello")
	awaitReadable(t, k.fd)
	for range 2 {
		if n, err := Peek(k.fd, b); err != nil || string(b[:n]) != "hello" {
			t.Fatalf("peek %q, %v", b[:n], err)
		}
	}
	if n, err := Read(k.fd, b[:2]); err != nil || string(b[:n]) != "he" {
		t.Fatalf("read %q, %v", b[:n], err)
	}
	k.peer.CloseWrite()
	if n, err := Read(k.fd, b); err != nil || string(b[:n]) != "llo" {
		t.Fatalf("read %q, %v", b[:n], err)
	}
	awaitReadable(t, k.fd)
	if n, err := Peek(k.fd, b); n != 0 || err != io.EOF {
		t.Fatalf("peek %d, %v at the end", n, err)
	}
	if err := ShutdownWrite(k.fd); err != nil {
		t.Fatal(err)
	}
	wantEOF(t, k.peer)
}

func TestSetRcvLowat(t *testing.T) {
	eachKind(t, 1, func(t *testing.T, loops []Loop) {
		l := loops[0]
		k := tcp(t)
		if err := SetRcvLowat(k.fd, 10); err != nil {
			t.Fatal(err)
		}
		seen := make(chan int, 64)
		on(t, l, func() {
			l.Watch(k.fd, ready(func(r Readiness) {
				if r&Readable != 0 {
					b := make([]byte, 64)
					n, _ := Peek(k.fd, b)
					seen <- n
				}
			}))
		})
		say(t, k.peer, "12345")
		until(t, "the bytes' way", func() bool { return outstandingAt(k.fd) == 5 })
		on(t, l, func() {})
		if len(seen) != 0 {
			t.Error("readable below the mark")
		}
		say(t, k.peer, "67890")
		if n := wait(t, seen, "an event"); n != 10 {
			t.Errorf("%d bytes at the first event, want 10", n)
		}
		on(t, l, func() { l.Unwatch(k.fd); Close(k.fd) })
	})
}

func outstandingAt(fd int) int {
	b := make([]byte, 64)
	n, _ := peek(fd, b)
	return n
}

// What a peer sent before it read our answer must not take the answer away.
func TestLingerClose(t *testing.T) {
	answer := bytes.Repeat([]byte("alert "), 10000)
	for _, c := range []struct {
		name   string
		before int  // bytes sent before the answer
		after  int  // bytes sent after it
		ends   bool // the peer ends its stream
	}{
		{"nothing sent", 0, 0, true},
		{"unread input", 100 << 10, 0, true},
		{"input goes on", 100 << 10, 200 << 10, true},
		{"peer stays", 10, 0, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			eachKind(t, 1, func(t *testing.T, loops []Loop) {
				k := tcp(t)
				if c.before > 0 {
					if _, err := k.peer.Write(make([]byte, c.before)); err != nil {
						t.Fatal(err)
					}
				}
				closed := make(chan struct{})
				begin := time.Now()
				on(t, loops[0], func() {
					g := LingerClose(loops[0], k.fd, answer, func() { close(closed) })
					if c.ends { // its time is not what closes it
						loops[0].Disarm(g)
					}
				})
				if c.after > 0 {
					if _, err := k.peer.Write(make([]byte, c.after)); err != nil {
						t.Fatal(err)
					}
				}
				want(t, k.peer, string(answer))
				wantEOF(t, k.peer)
				if c.ends {
					k.peer.CloseWrite()
				}
				wait(t, closed, "close")
				if d := time.Since(begin); !c.ends && d < lingerTime {
					t.Errorf("closed after %v, want %v", d, lingerTime)
				}
			})
		})
	}
}

// A peer that never stops sending, and one that is gone, are got rid of.
func TestLingerCloseBounded(t *testing.T) {
	eachKind(t, 1, func(t *testing.T, loops []Loop) {
		k := tcp(t)
		closed := make(chan struct{})
		on(t, loops[0], func() { LingerClose(loops[0], k.fd, []byte("x"), func() { close(closed) }) })
		sent := 0
		for b := make([]byte, 64<<10); ; {
			n, err := k.peer.Write(b)
			if sent += n; err != nil {
				break
			}
		}
		wait(t, closed, "close")
		if sent < lingerMost/2 || sent > 32<<20 {
			t.Errorf("%d bytes were taken", sent)
		}

		k = tcp(t)
		resetPeer(t, k.peer)
		gone := make(chan struct{})
		on(t, loops[0], func() { LingerClose(loops[0], k.fd, []byte("x"), func() { close(gone) }) })
		wait(t, gone, "close")
	})
}

func TestLingerAbort(t *testing.T) {
	eachKind(t, 1, func(t *testing.T, loops []Loop) {
		k := tcp(t)
		calls := 0
		on(t, loops[0], func() {
			g := LingerClose(loops[0], k.fd, nil, func() { calls++ })
			g.Abort()
			g.Abort()
		})
		on(t, loops[0], func() {
			if calls != 1 {
				t.Errorf("told %d times", calls)
			}
		})
		wantEOF(t, k.peer)
	})
}

func TestResetClose(t *testing.T) {
	noLeak(t)
	k := tcp(t)
	ResetClose(k.fd)
	wantReset(t, k.peer)
}

func TestNetConn(t *testing.T) {
	noLeak(t)
	for _, prefix := range []string{"", "kept before, "} {
		k := tcp(t)
		conn, err := NetConn(k.fd, []byte(prefix))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := unix.FcntlInt(uintptr(k.fd), unix.F_GETFD, 0); err == nil {
			t.Error("the original descriptor is still open")
		}
		if conn.RemoteAddr().String() != k.peer.LocalAddr().String() {
			t.Errorf("remote address %v", conn.RemoteAddr())
		}
		say(t, k.peer, "and live")
		want(t, conn, prefix+"and live")

		if err := conn.SetReadDeadline(time.Now().Add(-time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("read past the deadline: %v", err)
		}
		conn.SetReadDeadline(time.Time{})

		half, ok := conn.(interface{ CloseWrite() error })
		if !ok {
			t.Fatal("no CloseWrite")
		}
		say(t, conn, "bye")
		if err := half.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		want(t, k.peer, "bye")
		wantEOF(t, k.peer)
		say(t, k.peer, "still heard")
		want(t, conn, "still heard")
		conn.Close()
	}
}

func TestNetConnRefuses(t *testing.T) {
	noLeak(t)
	var fds [2]int
	if err := unix.Pipe(fds[:]); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[1])
	if conn, err := NetConn(fds[0], nil); err == nil {
		conn.Close()
		t.Error("a pipe became a connection")
	}
	if _, err := NetConn(-1, nil); err == nil {
		t.Error("no descriptor became a connection")
	}
}
