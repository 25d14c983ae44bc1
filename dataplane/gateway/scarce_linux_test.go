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
				null, err := os.Open(os.DevNull)
				check(t, err)
				defer null.Close()
				for {
					fd, err := unix.FcntlInt(null.Fd(), unix.F_DUPFD_CLOEXEC, 0)
					check(t, err)
					if fd >= sparing {
						relay.Close(fd)
						break
					}
					fill = append(fill, fd)
				}
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
