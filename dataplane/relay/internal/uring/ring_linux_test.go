package uring

import (
	"errors"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// newRing is on the test's thread until its end.
func newRing(t testing.TB, calls int) *Ring {
	t.Helper()
	runtime.LockOSThread()
	t.Cleanup(runtime.UnlockOSThread)
	r, err := New(calls)
	if err != nil {
		t.Skip("this kernel gives no ring:", err)
	}
	t.Cleanup(r.Free)
	return r
}

func spare(t testing.TB) int {
	t.Helper()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

func open(fd int) bool {
	_, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	return err == nil
}

// Each call is made, whatever becomes of the others, and is over when Make
// returns.
func TestMake(t *testing.T) {
	r := newRing(t, 8)
	never := spare(t)
	unix.Close(never)
	a, b := spare(t), spare(t)
	for _, fd := range []int{a, never, b} {
		if !r.Close(fd) {
			t.Fatal("no room")
		}
	}
	if !open(a) || !open(b) {
		t.Error("closed before it was asked for")
	}
	got, err := r.Make()
	if want := []syscall.Errno{0, unix.EBADF, 0}; err != nil || !slices.Equal(got, want) {
		t.Errorf("came to %v, %v; want %v", got, err, want)
	}
	if open(a) || open(b) {
		t.Error("still open")
	}
	if got, err := r.Make(); len(got) != 0 || err != nil {
		t.Errorf("nothing came to %v, %v", got, err)
	}
}

// What peers are told by a close they are told, in the order of the calls.
func TestMakeTellsPeers(t *testing.T) {
	r := newRing(t, 4)
	near, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(near[1])
	r.Close(near[0])
	if _, err := r.Make(); err != nil {
		t.Fatal(err)
	}
	if n, err := unix.Read(near[1], make([]byte, 1)); n != 0 || err != nil {
		t.Errorf("the peer reads %d, %v; want the end", n, err)
	}
}

// The queue goes round many times, in batches of all sizes, and is never fuller
// than it is.
func TestRounds(t *testing.T) {
	const most, never = 16, 1 << 30
	r := newRing(t, most)
	numbers := rand.New(rand.NewPCG(1, 2))
	var fds []int
	var want []syscall.Errno
	for round := range 500 {
		fds, want = fds[:0], want[:0]
		for range numbers.IntN(most + 1) {
			fd, errno := never, unix.EBADF
			if numbers.IntN(3) > 0 {
				fd, errno = spare(t), 0
			}
			fds, want = append(fds, fd), append(want, errno)
			if !r.Close(fd) {
				t.Fatalf("round %d: no room for call %d", round, len(fds))
			}
		}
		if len(fds) == most && r.Close(0) {
			t.Fatal("room for more than there is room for")
		}
		got, err := r.Make()
		if err != nil || !slices.Equal(got, want) {
			t.Fatalf("round %d: %v, %v; want %v", round, got, err, want)
		}
		if slices.ContainsFunc(fds, open) {
			t.Fatalf("round %d: one is open", round)
		}
	}
}

// A ring that the kernel takes nothing from says so, makes nothing, and forgets.
func TestMakeFails(t *testing.T) {
	r := newRing(t, 4)
	ring, fd := r.fd, spare(t)
	defer unix.Close(fd)
	r.fd = -1
	r.Close(fd)
	got, err := r.Make()
	r.fd = ring
	if len(got) != 0 || !errors.Is(err, unix.EBADF) || !open(fd) {
		t.Errorf("%v, %v, open: %v; want nothing made", got, err, open(fd))
	}
	next := spare(t)
	r.Close(next)
	if got, err := r.Make(); !slices.Equal(got, []syscall.Errno{0}) || err != nil || !open(fd) || open(next) {
		t.Errorf("later: %v, %v, open: %v, %v; want the first forgotten", got, err, open(fd), open(next))
	}
}

// TestRefused: a filter of system calls, as containers have it, is an error and
// no more.
func TestRefused(t *testing.T) {
	type answer struct{ filter, err error }
	answers := make(chan answer)
	go func() {
		runtime.LockOSThread() // and never unlocked: the filter ends with the thread
		a := answer{filter: forbidRings()}
		if a.filter == nil {
			var r *Ring
			if r, a.err = New(4); r != nil {
				r.Free()
			}
		}
		answers <- a
	}()
	a := <-answers
	if a.filter != nil {
		t.Skip("no filter of system calls to be had:", a.filter)
	}
	if !errors.Is(a.err, os.ErrPermission) {
		t.Errorf("%v, want that it is not permitted", a.err)
	}
}

// forbidRings makes io_uring_setup fail with EPERM on this thread (seccomp(2)).
func forbidRings() error {
	const returnErrno, returnAllow = 0x00050000, 0x7fff0000
	program := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS}, // the call's number
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: unix.SYS_IO_URING_SETUP},
		{Code: unix.BPF_RET | unix.BPF_K, K: returnErrno | uint32(unix.EPERM)},
		{Code: unix.BPF_RET | unix.BPF_K, K: returnAllow},
	}
	f := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&f)), 0, 0)
	runtime.KeepAlive(program)
	return err
}

func TestAllocations(t *testing.T) {
	r := newRing(t, 8)
	of := spare(t)
	defer unix.Close(of)
	step := func() {
		for range 8 {
			fd, _, _ := unix.RawSyscall(unix.SYS_FCNTL, uintptr(of), unix.F_DUPFD_CLOEXEC, 0)
			r.Close(int(fd))
		}
		if got, err := r.Make(); len(got) != 8 || err != nil {
			t.Fatal(len(got), err)
		}
	}
	if n := testing.AllocsPerRun(100, step); n != 0 {
		t.Errorf("%v allocations a batch", n)
	}
}
