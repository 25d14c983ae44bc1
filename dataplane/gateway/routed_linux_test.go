package gateway

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/alpn"
	"github.com/sallyport/sallyport/dataplane/relay"
)

// TestRoutedAllocations: a routed connection allocates nothing from accept to close,
// once there have been some: its relay and the relay's owner are those of one that has
// ended.
func TestRoutedAllocations(t *testing.T) {
	for _, c := range []struct {
		name string
		late bool // the hello comes after the connection
	}{
		{"hello at once", false},
		{"hello later", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			backend, err := relay.Listen("127.0.0.1:0")
			check(t, err)
			defer relay.Close(backend)
			r := newRig(t, newLoops(t, relay.NewDefault, 1), func(cfg *Config) {
				cfg.Static = []StaticRoute{{Match: alpn.Match{SNI: []string{"shop.example.com"}}, Upstreams: []string{relay.LocalAddr(backend).String()}}}
			})
			b := bareSession{TB: t, gateway: netip.MustParseAddrPort(r.addr), backend: backend, late: c.late,
				hello: helloBytes(t, r.ca.client("shop.example.com", "h2")), room: make([]byte, 4096)}
			for range 50 {
				b.run()
			}
			if n := testing.AllocsPerRun(300, b.run); n != 0 {
				t.Errorf("%v allocations a connection, want none", n)
			}
		})
	}
}

// bareSession is a client and a server without an allocation of their own.
type bareSession struct {
	testing.TB
	gateway netip.AddrPort
	backend int // a listening socket
	late    bool
	hello   []byte
	room    []byte
}

// run is one connection from its beginning to its orderly end.
func (b *bareSession) run() {
	client, err := relay.Connect(b.gateway)
	b.check(err)
	b.await(client, unix.POLLOUT)
	if b.late {
		_, err = relay.Write(client, b.hello[:1])
		b.check(err)
		_, err = relay.Write(client, b.hello[1:])
	} else {
		_, err = relay.Write(client, b.hello)
	}
	b.check(err)
	b.await(b.backend, unix.POLLIN)
	far, _, err := relay.Accept(b.backend)
	b.check(err)
	b.read(far, len(b.hello))
	_, err = relay.Write(far, b.hello[:1])
	b.check(err)
	b.read(client, 1)
	relay.Close(client)
	b.await(far, unix.POLLIN) // the end
	relay.Close(far)
}

func (b *bareSession) read(fd, n int) {
	for n > 0 {
		b.await(fd, unix.POLLIN)
		got, err := relay.Read(fd, b.room)
		b.check(err)
		n -= got
	}
}

func (b *bareSession) await(fd int, events int16) {
	fds := [1]unix.PollFd{{Fd: int32(fd), Events: events}}
	for {
		n, err := unix.Poll(fds[:], int(patience.Milliseconds()))
		if err == unix.EINTR { // the runtime's own signals
			continue
		}
		if n != 1 {
			b.Fatalf("descriptor not ready for %d: %v", events, err)
		}
		return
	}
}

func (b *bareSession) check(err error) {
	if err != nil {
		b.Fatal(err)
	}
}
