package tunnel

import (
	"errors"
	"net/netip"

	"github.com/sallyport/sallyport/dataplane/relay"
)

// Park takes over a data connection whose hello has been read, and keeps it for
// a client. hello is the HelloSize bytes that were consumed from fd; nothing
// behind them may have been. Park runs on l's thread and owns fd from the call
// on, also when it returns an error: then fd has been closed.
func (h *Hub) Park(l relay.Loop, fd int, hello []byte, from netip.AddrPort) error {
	t, d, err := h.admitData(hello, from)
	if err != nil {
		closeFD(fd)
		return err
	}
	t.carrier.Store(carriedTCP)
	keepAlive(fd)
	return h.settleIn(l, &entry{tunnel: t, fd: fd, counter: d.Counter}, d.Answer)
}

// settleIn parks a data connection whose hello is good, and says so first when
// it was asked to. It owns the descriptor.
func (h *Hub) settleIn(l relay.Loop, e *entry, answer bool) error {
	if answer && !writeAll(e.fd, AppendAnswer(nil, Binding{e.tunnel.id, e.counter}, e.tunnel.keys.gateway)) {
		closeFD(e.fd)
		h.counters.add("parked_reset")
		return ErrUnanswered
	}
	h.counters.add("parked")
	return h.shelve(l, e)
}

// admitData checks a data hello: whose it is, by its MAC, and that it is new.
func (h *Hub) admitData(hello []byte, from netip.AddrPort) (t *tunnel, d DataHello, err error) {
	defer func() {
		if err != nil {
			h.counters.add(parkReason(err))
			h.cfg.Log.Debug("data connection refused", "from", from, "err", err)
		}
	}()
	if d, err = ParseDataHello(hello); err != nil {
		return nil, d, err
	}
	if t = h.tunnel(d.Tunnel); t == nil {
		return nil, d, ErrUnknownTunnel
	}
	if err = VerifyDataHello(hello, t.keys.agent); err != nil {
		return nil, d, err
	}
	return t, d, t.pool.accept(d.Counter)
}

// shelve watches a connection on l, makes it available, and serves whoever
// waits. It owns the descriptor.
func (h *Hub) shelve(l relay.Loop, e *entry) error {
	t := e.tunnel
	w := &watcher{hub: h, entry: e}
	generation, ok := t.pool.park(e, l)
	if !ok {
		e.close()
		return ErrUnknownTunnel
	}
	// The entry may be claimed by another loop from here on. Its loop is this
	// one, so what the claim posts runs after this function.
	w.generation = generation
	if err := l.Watch(e.fd, w); err != nil {
		if t.pool.lose(e, generation) {
			e.close()
			return err
		}
		return nil // claimed meanwhile: Unwatch does no harm, and the peek tells
	}
	h.feed(t)
	return nil
}

// watcher receives the events of one parked connection. Whatever an agent says
// there, and the end of it, closes it.
type watcher struct {
	hub        *Hub
	entry      *entry
	generation uint64
}

// Ready runs on the thread of the loop that watches the connection.
func (w *watcher) Ready(relay.Readiness) {
	e := w.entry
	why := peek(e.fd)
	if why == "" || !e.tunnel.pool.lose(e, w.generation) {
		return // nothing there, or claimed: whoever has it looks for himself
	}
	w.hub.counters.add(why)
	e.loop.Unwatch(e.fd)
	e.close()
	e.tunnel.askForMore()
}

// discard closes entries that were taken out of their pool, each on the loop
// that watches it.
func discard(entries []*entry) {
	for _, e := range entries {
		e.unwatched(e.close)
	}
}

// unwatched takes an entry that its caller has claimed out of the epoll set of
// its loop, and then calls f, on that loop's thread. When the loop has been
// closed nothing watches any more, and f is called here.
func (e *entry) unwatched(f func()) {
	l := e.loop
	posted := l.Post(func() {
		l.Unwatch(e.fd)
		f()
	})
	if !posted {
		f()
	}
}

func parkReason(err error) string {
	switch {
	case errors.Is(err, ErrUnknownTunnel):
		return "park_unknown_tunnel"
	case errors.Is(err, ErrForged):
		return "park_forged"
	case errors.Is(err, ErrReplayed):
		return "park_replayed"
	case errors.Is(err, ErrPoolFull):
		return "park_pool_full"
	}
	return "park_malformed"
}
