package gateway

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/alpn"
	"github.com/sallyport/sallyport/dataplane/relay"
)

// fewPortsChild is set in a process that has a network of its own.
const fewPortsChild = "SALLYPORT_TEST_FEW_PORTS"

// TestNoLocalPort: to a server to which this machine has used up all its ports there is
// no connection more; it is none the worse for that, and gets the next client as soon as
// there is a port again.
func TestNoLocalPort(t *testing.T) {
	if os.Getenv(fewPortsChild) == "" {
		inOwnNetwork(t)
		return
	}
	const portRange = "/proc/sys/net/ipv4/ip_local_port_range"
	const noIPv6 = "/proc/sys/net/ipv6/conf/all/disable_ipv6"
	if err := os.WriteFile(noIPv6, []byte("1"), 0); err != nil && !errors.Is(err, os.ErrNotExist) { // then there is none
		t.Skip(err)
	}
	if err := errors.Join(loopbackUp(), os.WriteFile(portRange, []byte("32768 60999"), 0)); err != nil {
		t.Skip(err) // a container may not
	}
	client := 30000 // the last one's port
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		check(t, os.WriteFile(portRange, []byte("32768 60999"), 0))
		ca := newAuthority(t)
		first, second := named(t, ca, "only"), named(t, ca, "more")
		r := newRig(t, loops, func(c *Config) {
			c.Static = []StaticRoute{to("a.example.com", first), to("b.example.com", first, second), to("c.example.com", "[::1]:1")}
		})
		const ports = 4
		check(t, os.WriteFile(portRange, []byte("20000 20003"), 0))

		dial := func() net.Conn { // clients have ports of their own
			client++
			d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2), Port: client}}
			conn, err := d.DialContext(t.Context(), "tcp", r.addr)
			check(t, err)
			t.Cleanup(func() { conn.Close() })
			check(t, conn.SetDeadline(time.Now().Add(patience)))
			return conn
		}
		meets := func(name string) (*tls.Conn, string) {
			conn := tls.Client(dial(), ca.client(name))
			got := make([]byte, 4)
			_, err := io.ReadFull(conn, got)
			check(t, err)
			return conn, string(got)
		}
		var open []*tls.Conn
		for range ports {
			conn, _ := meets("a.example.com")
			open = append(open, conn)
		}
		for range 3 {
			conn := dial()
			_, err := conn.Write(helloBytes(t, ca.client("a.example.com")))
			check(t, err)
			if got := readAll(t, conn); !bytes.Equal(got, alertOf(alpn.InternalError)) {
				t.Errorf("%q", got)
			}
		}
		r.reaches(outcomeNoPort, 3)
		if down := r.Snapshot().Down; len(down) != 0 || r.count(outcomeConnectFailed) != 0 {
			t.Errorf("%d times blamed, and down are %+v", r.count(outcomeConnectFailed), down)
		}
		// Where this machine has no address of the family it is no want of ports.
		conn := dial()
		_, err := conn.Write(helloBytes(t, ca.client("c.example.com")))
		check(t, err)
		if got := readAll(t, conn); !bytes.Equal(got, alertOf(alpn.InternalError)) {
			t.Errorf("%q", got)
		}
		r.reaches(outcomeNoUpstream, 1)
		if n := r.count(outcomeNoPort); n != 3 {
			t.Errorf("%d times without a port", n)
		}
		for range 2 { // another server, to which there are ports
			if _, got := meets("b.example.com"); got != "more" {
				t.Errorf("reaches %q", got)
			}
		}
		// A reset leaves nothing behind that keeps the port.
		check(t, open[0].NetConn().(*net.TCPConn).SetLinger(0))
		check(t, open[0].NetConn().Close())
		eventually(t, "the relay has ended", func() bool { return r.Snapshot().Relays == ports+1 })
		if _, got := meets("a.example.com"); got != "only" {
			t.Errorf("reaches %q", got)
		}
	})
}

// inOwnNetwork runs the test in a process that has a network of its own.
func inOwnNetwork(t *testing.T) {
	t.Helper()
	c := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v") //nolint:gosec // this test itself
	c.Env = append(os.Environ(), fewPortsChild+"=1")
	c.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
	}
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	if err := c.Start(); err != nil {
		t.Skipf("no network of its own for a process: %v", err)
	}
	err := c.Wait()
	switch {
	case err != nil:
		t.Errorf("%v\n%s", err, out.Bytes())
	case bytes.Contains(out.Bytes(), []byte("--- SKIP")):
		t.Skipf("%s", out.Bytes())
	}
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr)
}
