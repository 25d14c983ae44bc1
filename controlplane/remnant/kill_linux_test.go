package remnant

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/controlplane/audit"
)

// The test program is the other process too.
const (
	roleVariable = "SALLYPORT_TEST_REMNANT"
	roleOwner    = "owner"
	roleRemnant  = "remnant"
)

func TestMain(m *testing.M) {
	dir := os.Getenv(roleVariable + "_DIR")
	switch os.Getenv(roleVariable) {
	case roleOwner:
		beOwner(dir)
	case roleRemnant:
		beRemnant(dir)
	default:
		os.Exit(m.Run())
	}
}

func otherHouse(dir string) *house { return &house{dir: dir} }

// beOwner serves remnants until standard input ends.
func beOwner(dir string) {
	s := New(otherHouse(dir).config())
	check(s.Open(context.Background()))
	s.Start()
	fmt.Println("up")
	_, _ = io.Copy(io.Discard, os.Stdin)
	check(s.Close(context.Background()))
}

// beRemnant writes events, says which are durable, and never stops.
func beRemnant(dir string) {
	s := New(otherHouse(dir).config())
	s.Follow()
	var out sync.Mutex
	for w := range 4 {
		go func() {
			session := fmt.Sprintf("r%d", w)
			for n := int64(1); ; n++ {
				check(s.Emit(context.Background(), event(session, n), true))
				out.Lock()
				fmt.Println(session, n)
				out.Unlock()
			}
		}()
	}
	select {}
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// other starts the test program in a role. in and out are its standard input and
// output.
type other struct {
	cmd *exec.Cmd
	in  io.Closer
	out *bufio.Reader
}

func (h *house) other(role string) *other {
	h.t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), roleVariable+"="+role, roleVariable+"_DIR="+h.dir)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		h.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		h.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	o := &other{cmd, in, bufio.NewReader(out)}
	h.t.Cleanup(o.kill)
	return o
}

// kill is kill -9. It may be called twice.
func (o *other) kill() {
	_ = o.cmd.Process.Kill()
	_ = o.cmd.Wait()
}

func (o *other) line(t *testing.T) string {
	t.Helper()
	s, err := o.out.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(s)
}

// spooled reads what an owner without auth has left.
func (h *house) spooled() []line {
	h.t.Helper()
	s, err := h.config().Open()
	if err != nil {
		h.t.Fatal(err)
	}
	defer s.Close()
	var out []line
	for at, last := uint64(0), s.Status().Sequence; at < last; {
		records, err := s.Next(context.Background(), at, 512)
		if err != nil {
			h.t.Fatal(err)
		}
		for _, r := range records {
			var l line
			if err := json.Unmarshal(r.JSON, &l); err != nil {
				h.t.Fatal(err)
			}
			if l.Event == audit.AuditRecovered {
				h.t.Fatalf("the chain was damaged: %s", r.JSON)
			}
			out, at = append(out, l), r.Sequence
		}
	}
	return out
}

// onceEach drops what came twice with the same uid.
func onceEach(all []line) []line {
	seen := map[string]bool{}
	return slices.DeleteFunc(slices.Clone(all), func(l line) bool {
		was := seen[l.UID]
		seen[l.UID] = true
		return was
	})
}

// TestOwnerKilled kills the new process under load, twice. What a remnant's
// sessions were told is durable is there, in order.
func TestOwnerKilled(t *testing.T) {
	h := newHouse(t)
	s := start(t, h.config())
	mark, err := s.Yield()
	if err != nil {
		t.Fatal(err)
	}
	owner := h.other(roleOwner)
	owner.line(t)
	s.Follow()
	stop := make(chan struct{})
	var writers sync.WaitGroup
	var count atomic.Int64
	acked := make([]int64, 4)
	for w := range acked {
		writers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := s.Emit(context.Background(), event(strconv.Itoa(w), acked[w]+1), true); err != nil {
					t.Error(err)
					return
				}
				acked[w]++
				count.Add(1)
			}
		})
	}
	for range 2 {
		for before := count.Load(); count.Load() < before+50; {
			runtime.Gosched()
		}
		owner.kill()
		owner = h.other(roleOwner)
		owner.line(t)
	}
	for before := count.Load(); count.Load() < before+50; {
		runtime.Gosched()
	}
	close(stop)
	writers.Wait()
	shut(t, s)
	owner.in.Close()
	if err := owner.cmd.Wait(); err != nil {
		t.Error(err)
	}
	got := numbers(onceEach(h.spooled()))
	for w, n := range acked {
		want := make([]int64, n)
		for i := range want {
			want[i] = int64(i + 1)
		}
		if !slices.Equal(got[strconv.Itoa(w)], want) {
			t.Errorf("session %d: %d events were taken, the spool has %v", w, n, got[strconv.Itoa(w)])
		}
	}
	again, err := h.config().Open()
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if again.Status().ID != mark.ID {
		t.Error("the spool began anew")
	}
}

// TestRemnantKilled kills an old process under load. What its sessions were told
// is durable is there, and the owner and other remnants go on.
func TestRemnantKilled(t *testing.T) {
	h := newHouse(t)
	owner := start(t, h.config())
	r := h.other(roleRemnant)
	last := map[string]int64{}
	read := func() {
		session, n, _ := strings.Cut(r.line(t), " ")
		v, err := strconv.ParseInt(n, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		last[session] = v
	}
	for range 200 {
		read()
	}
	_ = r.cmd.Process.Kill()
	for { // what it had said already
		if _, err := r.out.Peek(1); err != nil {
			break
		}
		read()
	}
	r.kill()
	next := h.other(roleRemnant)
	next.line(t)
	next.kill()
	if err := owner.Emit(t.Context(), event("own", 1), true); err != nil {
		t.Error(err)
	}
	shut(t, owner)
	seen := map[string]int64{}
	for _, l := range h.spooled() {
		if l.N == 1 && seen[l.SID] > 0 {
			break // the second remnant's
		}
		if l.SID != "own" && l.N != seen[l.SID]+1 {
			t.Fatalf("session %s: event %d after %d", l.SID, l.N, seen[l.SID])
		}
		seen[l.SID] = l.N
	}
	for session, n := range last {
		if seen[session] < n {
			t.Errorf("session %s: %d was durable, the spool ends at %d", session, n, seen[session])
		}
	}
}

// TestStranger: another user of the machine gets no word, wherever the socket is.
func TestStranger(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: becomes another user on one thread")
	}
	dir, err := os.MkdirTemp("", "sallyport-remnant")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	h := &house{t: t, dir: dir}
	s := start(t, h.config())
	defer shut(t, s)
	socket := filepath.Join(dir, "s")
	for { // listening begins, and then nobody else may connect
		if info, err := os.Stat(socket); err == nil && info.Mode().Perm() == 0o600 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	for _, path := range []string{dir, socket} { // as if the modes had been opened by hand
		if err := os.Chmod(path, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	answer := make(chan error, 1)
	go func() { // its thread ends with it
		runtime.LockOSThread()
		const nobody = 65534
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, nobody, nobody, nobody); errno != 0 {
			answer <- nil
			return
		}
		conn, err := net.Dial("unix", socket)
		if err == nil {
			_, err = io.ReadFull(conn, make([]byte, 1))
			conn.Close()
		}
		answer <- err
	}()
	if err := <-answer; err == nil {
		t.Error("a stranger was served")
	}
	if len(s.Remnants()) > 0 {
		t.Error("a stranger is a remnant")
	}
}
