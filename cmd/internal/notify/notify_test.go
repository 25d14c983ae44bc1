package notify

import (
	"math"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"testing"
	"time"
)

func TestNotify(t *testing.T) {
	dir, err := os.MkdirTemp("", "sp")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	sockets := []string{filepath.Join(dir, "n")}
	if runtime.GOOS == "linux" {
		sockets = append(sockets, "@sallyport-test-"+filepath.Base(dir))
	}
	for _, socket := range sockets {
		l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		m := New(socket)
		tests := []struct {
			say  func() error
			want string
		}{
			{m.Ready, `^READY=1$`},
			{m.Stopping, `^STOPPING=1$`},
			{m.Alive, `^WATCHDOG=1$`},
			{func() error { return m.Status("draining") }, `^STATUS=draining$`},
			{func() error { return m.Main(4711) }, `^MAINPID=4711\nREADY=1$`},
		}
		if runtime.GOOS == "linux" {
			tests = append(tests, struct {
				say  func() error
				want string
			}{m.Reloading, `^RELOADING=1\nMONOTONIC_USEC=[1-9][0-9]+$`})
		}
		for _, tt := range tests {
			if err := tt.say(); err != nil {
				t.Fatalf("%s: %v", tt.want, err)
			}
			if err := l.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
				t.Fatal(err)
			}
			b := make([]byte, 256)
			n, err := l.Read(b)
			if err != nil || !regexp.MustCompile(tt.want).Match(b[:n]) {
				t.Errorf("%q, %v, want %s", b[:n], err, tt.want)
			}
		}
	}
}

// TestWatchdog: who is watched is who was named, or who came after it.
func TestWatchdog(t *testing.T) {
	me := strconv.Itoa(os.Getpid())
	for _, tt := range []struct {
		m         Manager
		usec, pid string
		upgraded  bool
		want      time.Duration
	}{
		{New("/run/n"), "", "", false, 0},
		{New("/run/n"), "30000000", "", false, 30 * time.Second},
		{New("/run/n"), "30000000", me, false, 30 * time.Second},
		{New("/run/n"), "30000000", "1", false, 0},
		{New("/run/n"), "30000000", "1", true, 30 * time.Second},
		{New(""), "30000000", me, false, 0},
		{New("/run/n"), "-1", me, false, 0},
		{New("/run/n"), "soon", me, false, 0},
		{New("/run/n"), "9223372036854775807", me, false, math.MaxInt64 / time.Microsecond * time.Microsecond},
	} {
		if got := tt.m.Watchdog(tt.usec, tt.pid, tt.upgraded); got != tt.want {
			t.Errorf("%+v: %v", tt, got)
		}
	}
}

// TestNobody: without a manager everything may be said; one that has gone is an
// error and no wait.
func TestNobody(t *testing.T) {
	for _, socket := range []string{"", "relative", "vsock:2:1"} {
		m := New(socket)
		if m.Listens() {
			t.Errorf("%q is a manager", socket)
		}
		if err := m.Ready(); err != nil {
			t.Error(err)
		}
	}
	if m := New(filepath.Join(t.TempDir(), "gone")); !m.Listens() || m.Ready() == nil {
		t.Error("a manager that has gone was told")
	}
}
