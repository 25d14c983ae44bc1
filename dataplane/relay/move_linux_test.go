package relay

import "testing"

// TestSharedEnds: the end of a relay whose descriptors another process has too is
// told at once.
func TestSharedEnds(t *testing.T) {
	eachKind(t, 1, func(t *testing.T, loops []Loop) {
		start := func() *run {
			r := startRelay(t, loops[0], 0)
			on(t, r.loop, func() {
				r.relay.Share()
				a, b := r.relay.Descriptors()
				for _, fd := range []int{dup(t, a), dup(t, b)} {
					t.Cleanup(func() { Close(fd) })
				}
			})
			return r
		}
		r := start()
		r.left.CloseWrite()
		wantEOF(t, r.right)
		r.right.CloseWrite()
		wantEOF(t, r.left)
		r.wantEnd(t, EndedClosed)

		r = start()
		resetPeer(t, r.left)
		wantReset(t, r.right)
		r.wantEnd(t, EndedReset)

		r = start()
		r.loop.Post(r.relay.Abort)
		wantReset(t, r.left)
		wantReset(t, r.right)
		r.wantEnd(t, EndedAborted)
	})
}
