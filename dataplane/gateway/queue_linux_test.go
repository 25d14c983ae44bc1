package gateway

import (
	"bytes"
	"io"
	"net"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/alpn"
	"github.com/sallyport/sallyport/dataplane/relay"
)

// fullSocket listens at a Unix socket whose queue is full. Room accepts what fills
// it, and then answers with its name whoever says something.
func fullSocket(t *testing.T, name string) (path string, room func()) {
	t.Helper()
	path = filepath.Join(t.TempDir(), name)
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	check(t, err)
	t.Cleanup(func() { _ = unix.Shutdown(fd, unix.SHUT_RDWR); relay.Close(fd) })
	check(t, unix.Bind(fd, &unix.SockaddrUnix{Name: path}))
	check(t, unix.Listen(fd, 1))
	filling := 0
	for err == nil {
		var full int
		if full, err = relay.ConnectUnix(path); err == nil {
			filling++
			t.Cleanup(func() { relay.Close(full) })
		}
	}
	if filling == 0 {
		t.Fatalf("nobody has room: %v", err)
	}
	return path, func() {
		for range filling {
			nfd, _, err := unix.Accept(fd)
			check(t, err)
			relay.Close(nfd)
		}
		go func() {
			for {
				nfd, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
				if err != nil {
					return // the test has ended
				}
				go answers(nfd, name)
			}
		}()
	}
}

func answers(fd int, name string) {
	conn, err := relay.NetConn(fd, nil)
	if err != nil {
		return
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		_, _ = io.WriteString(conn, name)
		_, _ = io.Copy(io.Discard, conn)
	}
}

// TestQueueFull: clients of a server at a Unix socket were refused as soon as its queue
// was full, where those of a server at an address wait.
func TestQueueFull(t *testing.T) {
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		alone, room := fullSocket(t, "alone")
		busy, _ := fullSocket(t, "busy")
		free, freed := fullSocket(t, "free")
		freed()
		r := newRig(t, loops, func(c *Config) {
			c.Static = []StaticRoute{to("a.example.com", "unix:"+alone), to("b.example.com", "unix:"+busy, "unix:"+free)}
		})
		gets := func(conn net.Conn, want string) {
			t.Helper()
			got := make([]byte, len(want))
			if _, err := io.ReadFull(conn, got); err != nil || string(got) != want {
				t.Errorf("%q, %v, not %q", got, err, want)
			}
		}
		hello := func(name string) []byte { return helloBytes(t, r.ca.client(name)) }
		for range 4 { // another one that has room is taken at once
			gets(r.say(hello("b.example.com")), "free")
		}
		waits := r.say(hello("a.example.com"))
		eventually(t, "the queue is full", func() bool {
			return slices.ContainsFunc(r.Snapshot().Down, func(d DownServer) bool { return d.Address == "unix:"+alone })
		})
		room()
		gets(waits, "alone")
	})
}

// TestQueueStaysFull: who waits for room in a queue is told when his time is over.
func TestQueueStaysFull(t *testing.T) {
	onLoops(t, func(t *testing.T, loops []relay.Loop) {
		path, _ := fullSocket(t, "busy")
		r := newRig(t, loops, func(c *Config) {
			c.Static = []StaticRoute{to("a.example.com", "unix:"+path)}
			c.Bounds.Stage = time.Second
		})
		conn := r.say(helloBytes(t, r.ca.client("a.example.com")))
		if got := readAll(t, conn); !bytes.Equal(got, alertOf(alpn.InternalError)) {
			t.Errorf("%q", got)
		}
		r.reaches(outcomeNoUpstream, 1)
		if down := r.Snapshot().Down; len(down) != 1 {
			t.Errorf("servers that are down: %+v", down)
		}
	})
}

// TestMoveQueued: who waits for room in a queue does so in the next process.
func TestMoveQueued(t *testing.T) {
	path, room := fullSocket(t, "late")
	r := newRig(t, newLoops(t, relay.NewDefault, 2), func(c *Config) { c.Static = []StaticRoute{to("a.example.com", "unix:"+path)} })
	conn := r.say(helloBytes(t, r.ca.client("a.example.com")))
	eventually(t, "the queue is full", func() bool { return len(r.Snapshot().Down) > 0 })
	r.moves(newLoops(t, relay.NewDefault, 2), nil)
	r.waiting(1)
	room()
	got := make([]byte, 4)
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != "late" {
		t.Errorf("%q, %v", got, err)
	}
}
