package gateway

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/dataplane/relay"
)

// fewDescriptors bounds this process's descriptors to so many until the test ends.
func fewDescriptors(t *testing.T, most uint64) {
	t.Helper()
	var was unix.Rlimit
	check(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &was))
	check(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: most, Max: was.Max}))
	t.Cleanup(func() { check(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &was)) })
}

// useUp takes all descriptors below one.
func useUp(t *testing.T, below int) (fds []int) {
	for {
		fd, err := unix.Open(os.DevNull, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		check(t, err)
		if fd >= below {
			relay.Close(fd)
			return fds
		}
		fds = append(fds, fd)
	}
}

// TestSpareDescriptors: on a loop that closes in batches a client who came while
// closes were put off was accepted on one of the last descriptors, and kept it.
func TestSpareDescriptors(t *testing.T) {
	for name, kind := range loopKinds() {
		t.Run(name, func(t *testing.T) {
			fewDescriptors(t, uint64(descriptors())+512)
			sparing := relay.Sparing()
			r := newRig(t, newLoops(t, kind, 1), nil)
			w := r.lanes[0]
			const clients = 3
			for range clients {
				r.dial()
			}
			r.waiting(clients)
			var fill []int
			t.Cleanup(func() {
				for _, fd := range fill {
					relay.Close(fd)
				}
			})
			came, queued, ended := make(chan struct{}), make(chan struct{}), make(chan struct{})
			go func() {
				defer close(queued)
				<-came
				r.dial() // while the loop does something else
			}()
			if !w.loop.Post(func() {
				defer close(ended)
				close(came)
				<-queued
				fill = useUp(t, sparing)
				for c := range w.conns { // one that is there ends, as any does
					c.abandon(outcomeClosed)
					break
				}
				if !w.listeners[0].one() {
					t.Error("nobody was accepted where a descriptor was free")
				}
				for c := range w.conns {
					if c.fd >= sparing {
						t.Errorf("a client has descriptor %d: from %d on they are for other things", c.fd, sparing)
					}
				}
			}) {
				t.Fatal("the loop is closed")
			}
			<-ended
			r.waiting(clients)
		})
	}
}

// TestPauseWithoutDescriptors: a gateway without descriptors resets one of those who
// wait and then nobody until its pause is over; after a second time as many as it has
// descriptors in reserve for, and not all. What it has spent it takes back as soon as
// it can.
func TestPauseWithoutDescriptors(t *testing.T) {
	for name, kind := range loopKinds() {
		t.Run(name, func(t *testing.T) {
			fewDescriptors(t, uint64(descriptors())+512)
			sparing := relay.Sparing()
			r := newRig(t, newLoops(t, kind, 1), nil)
			w := r.lanes[0]
			const clients = 4 * reserved
			held, begin, ended := make(chan struct{}), make(chan struct{}), make(chan struct{})
			if !w.loop.Post(func() {
				defer close(ended)
				close(held)
				<-begin // all are queued
				fill := useUp(t, sparing)
				l := w.listeners[0]
				shed := func() int { return int(w.counts.outcomes[outcomeShed].Load()) }
				l.accept()
				if shed() != 1 || !l.paused {
					t.Errorf("%d of %d were reset, want 1; paused is %v", shed(), clients, l.paused)
				}
				l.accept()
				l.Ready(relay.Readable)
				if shed() != 1 {
					t.Errorf("%d were reset within the pause", shed()-1)
				}
				l.Due(w.loop.Now())
				if n := shed() - 1; n < reserved || n > reserved+1 {
					t.Errorf("%d of %d were reset after the pause, want %d or one more", n, clients, reserved)
				}
				if len(w.conns) != 0 {
					t.Errorf("%d were taken", len(w.conns))
				}
				if len(w.reserve.files) == 0 {
					t.Error("what those who were reset have had is not in reserve again")
				}
				w.reserve.close()
				for _, fd := range fill {
					relay.Close(fd)
				}
				l.Due(w.loop.Now())
				if n := len(w.reserve.files); n != reserved {
					t.Errorf("there are %d descriptors in reserve again, want %d", n, reserved)
				}
			}) {
				t.Fatal("the loop is closed")
			}
			<-held
			for range clients {
				r.dial()
			}
			close(begin)
			<-ended
			r.waiting(clients - int(r.count(outcomeShed)))
		})
	}
}
