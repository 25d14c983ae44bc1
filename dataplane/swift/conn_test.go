package swift

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport/sallyport/test/leak"
)

// patience is how long anything may take before a test says that it hangs.
const patience = time.Minute

// TestMain fails when goroutines are left behind.
func TestMain(m *testing.M) { leak.Main(m) }

// pair is a connection, whose first end is swift.
func pair(t *testing.T) (swift net.Conn, far *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	near, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { near.Close(); conn.Close() })
	for _, c := range []net.Conn{near, conn} {
		c.SetDeadline(time.Now().Add(patience))
	}
	return Conn(near), conn.(*net.TCPConn)
}

// TestBothWays: more than any buffer holds, in both directions at once, and the
// ends of both.
func TestBothWays(t *testing.T) {
	a, b := pair(t)
	sent := make([]byte, 8<<20)
	rand.Read(sent)
	var wg sync.WaitGroup
	for _, c := range []net.Conn{a, b} {
		wg.Go(func() {
			if n, err := c.Write(sent); n != len(sent) || err != nil {
				t.Errorf("%d written, %v", n, err)
			}
			c.(interface{ CloseWrite() error }).CloseWrite()
		})
		wg.Go(func() {
			got, err := io.ReadAll(c)
			if err != nil || !bytes.Equal(got, sent) {
				t.Errorf("%d bytes of %d, %v", len(got), len(sent), err)
			}
		})
	}
	wg.Wait()
	if n, err := a.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("behind the end: %d, %v", n, err)
	}
}

func TestNothing(t *testing.T) {
	a, _ := pair(t)
	if n, err := a.Read(nil); n != 0 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	if n, err := a.Write(nil); n != 0 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
}

// TestDeadline: one that is over, and one that comes while a call waits.
func TestDeadline(t *testing.T) {
	a, _ := pair(t)
	late := func(what string, n int, err error) {
		t.Helper()
		var timeout net.Error
		if !errors.Is(err, os.ErrDeadlineExceeded) || !errors.As(err, &timeout) || !timeout.Timeout() {
			t.Errorf("%s: %d, %v", what, n, err)
		}
	}
	a.SetDeadline(time.Unix(1, 0))
	n, err := a.Read(make([]byte, 1))
	late("read", n, err)
	n, err = a.Write([]byte{1})
	late("write", n, err)
	if n != 0 {
		t.Errorf("%d bytes were written", n)
	}
	for what, wait := range map[string]func() (int, error){
		"read":  func() (int, error) { return a.Read(make([]byte, 1)) },
		"write": func() (int, error) { return a.Write(make([]byte, 64<<20)) }, // nobody reads
	} {
		a.SetDeadline(time.Now().Add(patience))
		time.AfterFunc(10*time.Millisecond, func() { a.SetDeadline(time.Unix(1, 0)) })
		n, err := wait()
		late(what+" that waits", n, err)
	}
}

// TestClosed: by us while a call waits, and by a reset.
func TestClosed(t *testing.T) {
	a, _ := pair(t)
	time.AfterFunc(10*time.Millisecond, func() { a.Close() })
	if n, err := a.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("closed: %d, %v", n, err)
	}
	if n, err := a.Write([]byte{1}); !errors.Is(err, net.ErrClosed) {
		t.Errorf("closed: %d, %v", n, err)
	}
	a, b := pair(t)
	b.SetLinger(0)
	b.Close()
	if n, err := a.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("reset: %d, %v", n, err)
	}
	if n, err := a.Write([]byte{1}); !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("reset: %d, %v", n, err)
	}
}

// TestCopy: io.Copy does not find a way around.
func TestCopy(t *testing.T) {
	a, b := pair(t)
	go func() {
		io.Copy(b, b)
		b.CloseWrite()
	}()
	if n, err := io.Copy(a, bytes.NewReader(make([]byte, 1000))); n != 1000 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	a.(interface{ CloseWrite() error }).CloseWrite()
	var got bytes.Buffer
	if n, err := io.Copy(&got, a); n != 1000 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
}

// TestOthers: what is no TCP connection stays what it is.
func TestOthers(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	if Conn(a) != a {
		t.Error("a pipe was changed")
	}
}

// TestAllocations: none for each call.
func TestAllocations(t *testing.T) {
	a, b := pair(t)
	buf := make([]byte, 100)
	if n := testing.AllocsPerRun(100, func() {
		a.Write(buf)
		io.ReadFull(b, buf)
		b.Write(buf)
		io.ReadFull(a, buf)
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}
