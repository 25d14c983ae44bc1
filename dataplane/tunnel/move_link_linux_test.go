package tunnel

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/sallyport/sallyport/dataplane/handover"
	"github.com/sallyport/sallyport/dataplane/handover/handovertest"
	"github.com/sallyport/sallyport/dataplane/relay"
)

// standstill is the house's part of a hand-over: what the gateway's is otherwise.
type standstill struct {
	house  *house
	next   *process
	held   []*relay.Held
	again  []*client
	locked bool
}

func (s *standstill) Name() string                                { return "gateway" }
func (s *standstill) Copy(context.Context, handover.Writer) error { return nil }
func (s *standstill) Take(handover.Record) error                  { return nil }
func (s *standstill) Complete(context.Context) error              { return nil }
func (s *standstill) Start()                                      {}

func (s *standstill) Freeze(context.Context, handover.Writer) error {
	s.house.moving.Lock()
	s.locked = true
	for _, l := range s.house.now.loops {
		s.held = append(s.held, relay.Hold(l))
	}
	return nil
}

func (s *standstill) Thaw() error {
	s.release()
	if s.locked {
		s.house.moving.Unlock()
	}
	return nil
}

func (s *standstill) Leave() {
	s.again = s.house.moveClients(s.next, s.held)
	s.release()
}

func (s *standstill) release() {
	for _, l := range s.held {
		l.Release()
	}
}

// parts are both sides of a hand-over to a process that has nothing yet.
func (h *house) parts() (s *standstill, g []handover.Giver, k []handover.Taker) {
	next := h.process()
	s = &standstill{house: h, next: next}
	return s, []handover.Giver{s, h.now.hub.Giver()}, []handover.Taker{s, next.hub.Taker(next.ctx)}
}

// moveByLink is move over the real transport.
func (h *house) moveByLink(t testing.TB) {
	t.Helper()
	s, g, k := h.parts()
	handovertest.Move(t, g, k)
	h.follow(t, s.next, s.again)
	h.moving.Unlock()
}

// abortByLink fails before a step.
func (h *house) abortByLink(t testing.TB, at handover.Step) {
	t.Helper()
	s, g, k := h.parts()
	handovertest.Abort(t, at, g, k)
	s.next.end()
}

// TestMovesByLink is TestMoves over the real transport, with a way back before
// each step.
func TestMovesByLink(t *testing.T) {
	onHouse(t, 4, crowd, func(t *testing.T, h *house) {
		startAgent(t, h.ca, []string{h.control.Addr().String()}, func(c *AgentConfig) { c.Log = nil })
		h.come(t)
		var storm sync.WaitGroup
		var over atomic.Bool
		defer storm.Wait()
		defer over.Store(true)
		for range 4 {
			storm.Go(func() {
				for !over.Load() {
					h.visit(t, "words of a client")
				}
			})
		}
		for _, at := range []handover.Step{handover.StepHello, handover.StepCopy, handover.StepFreeze, handover.StepComplete, handover.StepReady, handover.StepCommit} {
			h.abortByLink(t, at)
			h.moveByLink(t)
		}
		over.Store(true)
		storm.Wait()
		eventually(t, "the agent is at the last process", func() bool { return h.live() == 1 })
	})
}
