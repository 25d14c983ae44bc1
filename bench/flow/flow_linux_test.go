package flow

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/tools/peers/port"
)

// still is a meter of one process that uses a fixed time between readings.
type still struct{ reads int }

func (s *still) CPU() (map[string]time.Duration, error) {
	s.reads++
	return map[string]time.Duration{"relay": time.Duration(s.reads) * time.Millisecond}, nil
}

func (s *still) Core() (busy, whole time.Duration) {
	return time.Duration(s.reads) * 5 * time.Millisecond, time.Duration(s.reads) * 10 * time.Millisecond
}

func (s *still) Held() (map[string]Footprint, error) {
	s.reads++
	n := float64(s.reads)
	return map[string]Footprint{"relay": {RSS: 1000 * n, FDs: 4 * n, Pipes: n}}, nil
}

// served starts the servers until the test ends.
func served(t *testing.T) Backends {
	t.Helper()
	var b Backends
	for _, a := range []*string{&b.Sink, &b.Echo, &b.One, &b.Source, &b.Count} {
		var err error
		if *a, err = port.Reserve(); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, b) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	for _, addr := range []string{b.Sink, b.Echo, b.One, b.Source, b.Count} {
		await(t, addr)
	}
	return b
}

func await(t *testing.T, addr string) {
	t.Helper()
	for until := time.Now().Add(time.Minute); ; {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			conn.Close()
			return
		}
		if time.Now().After(until) {
			t.Fatal(err)
		}
	}
}

func TestJobs(t *testing.T) {
	to := served(t)
	for _, c := range []struct {
		name string
		job  Job
	}{
		{"up", Job{Kind: Up, Conns: 3}},
		{"down", Job{Kind: Down, Conns: 3}},
		{"connect", Job{Kind: Connect, Conns: 8, Sources: 4}},
		{"ping, one after the other", Job{Kind: Ping, Conns: 1}},
		{"ping, at a rate, beside a stream, with held ones", Job{Kind: Ping, Conns: 4, Rate: 2000, Beside: 1e7, Held: 5, Sources: 3}},
		{"idle", Job{Kind: Idle, Conns: 20}},
	} {
		for _, hello := range []bool{true, false} {
			j := c.job
			j.To, j.Count, j.Hello, j.Warm, j.Window = to, to.Count, hello, 10*time.Millisecond, 100*time.Millisecond
			r, err := Run(t.Context(), j, &still{})
			if err != nil {
				t.Errorf("%s, hello %v: %v", c.name, hello, err)
				continue
			}
			if r.Units < 1 || r.Seconds < 0.1 {
				t.Errorf("%s, hello %v: %v units in %v s", c.name, hello, r.Units, r.Seconds)
			}
			switch j.Kind {
			case Idle:
				if g := r.Grown["relay"]; g.RSS != 1000 || g.FDs != 4 || g.Pipes != 1 {
					t.Errorf("%s: grown by %+v", c.name, g)
				}
			case Ping, Connect:
				if l := r.Latencies; l.P50 <= 0 || l.P90 < l.P50 || l.P99 < l.P90 || l.Max < l.P99 {
					t.Errorf("%s: %+v", c.name, l)
				}
				fallthrough
			default:
				if r.CPU["relay"] != time.Millisecond || r.Others < 0.39 || r.Others > 0.41 {
					t.Errorf("%s: CPU %v, others %v", c.name, r.CPU, r.Others)
				}
			}
		}
	}
}

// TestConnectCountsWhatIsCut: a relay that closes without a byte is counted,
// and a sample in which nothing got through is none.
func TestConnectCountsWhatIsCut(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { l.Close(); <-done })
	go func() {
		defer close(done)
		for n := 0; ; n++ {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			switch n % 3 { // two are cut before one gets through: a window may end behind any
			case 0:
				conn.Write([]byte{alertRecord}) // a refusal is no answer
			case 2:
				conn.Write([]byte{1})
			}
			conn.Close()
		}
	}()
	j := Job{Kind: Connect, Conns: 4, Window: 100 * time.Millisecond, To: Backends{One: l.Addr().String()}}
	r, err := Run(t.Context(), j, &still{})
	if err != nil || r.Failed < 2*int(r.Units) || r.Units == 0 {
		t.Errorf("%d cut, %v got through: %v", r.Failed, r.Units, err)
	}
}

// TestConnectByIPv6, where there is such a loopback.
func TestConnectByIPv6(t *testing.T) {
	l, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Skip("no IPv6 here: ", err)
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
			conn.Write([]byte{1})
			conn.Close()
		}
	}()
	j := Job{Kind: Connect, Conns: 2, Window: 50 * time.Millisecond, To: Backends{One: l.Addr().String()}}
	if r, err := Run(t.Context(), j, &still{}); err != nil || r.Units == 0 {
		t.Errorf("%+v, %v", r, err)
	}
}

// TestBulkNeedsBytes: a sample in which nothing moves is none.
func TestBulkNeedsBytes(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var held []net.Conn
	done := make(chan struct{})
	t.Cleanup(func() {
		l.Close()
		<-done
		for _, c := range held {
			c.Close()
		}
	})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			held = append(held, conn)
		}
	}()
	r := &runner{Job: Job{Kind: Down, Conns: 1, Window: 10 * time.Millisecond, To: Backends{Source: l.Addr().String()}}, meter: &still{}, most: 50 * time.Millisecond}
	_, err = r.bulk(t.Context())
	if err == nil || !strings.Contains(err.Error(), "no byte arrived") {
		t.Errorf("%v", err)
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	to := served(t)
	for _, kind := range []Kind{Up, Connect, Ping, Idle} {
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(50*time.Millisecond, cancel)
		_, err := Run(ctx, Job{Kind: kind, Conns: 1, To: to, Count: to.Count, Window: time.Hour}, &still{})
		if err == nil {
			t.Errorf("%s: no error", kind)
		}
	}
}

func TestRunSaysWhoIsNotThere(t *testing.T) {
	// Nobody listens there, and nobody else gets the port meanwhile.
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	at, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	addr := fmt.Sprintf("127.0.0.1:%d", at.(*unix.SockaddrInet4).Port)
	_, err = Run(t.Context(), Job{Kind: Up, Conns: 1, Window: time.Second, To: Backends{Sink: addr}}, &still{})
	if err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("%v", err)
	}
}
