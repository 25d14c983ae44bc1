//go:build unix

package gateway

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"

	"github.com/sallyport/sallyport/dataplane/relay"
	handoverv1 "github.com/sallyport/sallyport/wire/sallyport/handover/v1"
)

// takeListeners: each socket is one loop's. Those of addresses that are no more
// wait for the start, to be emptied and closed.
func (h *Heir) takeListeners(m *handoverv1.GatewayListeners, in *incoming) error {
	if len(in.fds) != len(m.Listener) {
		return errRecord
	}
	w := h.lane(m.Lane)
	return h.on(w, func() error {
		for _, l := range m.Listener {
			if !relay.Listening(in.fds[0]) {
				return errRecord
			}
			place := h.place(l, in.fds[0])
			taken := &listener{lane: w, fd: in.next(), address: l.Address, place: place}
			h.listeners++
			if place < 0 {
				h.old = append(h.old, taken)
				continue
			}
			taken.address = h.gateway.cfg.Listen[place]
			w.listeners = append(w.listeners, taken)
			if err := w.loop.Watch(taken.fd, taken); err != nil {
				return err
			}
		}
		return nil
	})
}

// place finds the address in this process's list: by what its text means, and
// where the port was left to the system by the text.
func (h *Heir) place(l *handoverv1.GatewayListener, fd int) int {
	if at, ok := h.places[l.Place]; ok {
		return at
	}
	bound := relay.LocalAddr(fd)
	match := func(same func(i int) bool) int {
		for i := range h.listen {
			if !h.gateway.addrs[i].IsValid() && same(i) {
				return i
			}
		}
		return -1
	}
	at := match(func(i int) bool { return means(h.listen[i], bound) })
	if at < 0 {
		at = match(func(i int) bool { return h.gateway.cfg.Listen[i] == l.Address })
	}
	h.places[l.Place] = at
	if at >= 0 {
		h.gateway.addrs[at] = bound
	}
	return at
}

func means(address string, bound netip.AddrPort) bool {
	host, port, err := net.SplitHostPort(address)
	if err != nil || port != strconv.Itoa(int(bound.Port())) {
		return false
	}
	if host == "" {
		return bound.Addr().IsUnspecified()
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap() == bound.Addr().Unmap()
}

// literal is an address without a name: when it is asked for connections stand still,
// and whoever answers for names may be slow. One that means nothing stays as it is.
func literal(address string) string {
	host, port, err := net.SplitHostPort(address)
	if err != nil || host == "" {
		return address
	}
	ip, err := net.ResolveIPAddr("ip", host)
	if err != nil {
		return address
	}
	return net.JoinHostPort(ip.String(), port)
}

// bind opens what no socket has come for: addresses that are new, and those of
// loops that the other process does not have. They get connections after the
// commit only: until then there is a way back.
func (h *Heir) bind() error {
	for place, address := range h.listen {
		given := h.gateway.cfg.Listen[place]
		if a := h.gateway.addrs[place]; a.IsValid() {
			address = at(address, a.Port())
		} else if !h.sharesPort(address) {
			if err := unused(address); err != nil {
				return err
			}
		}
		for _, w := range h.gateway.lanes {
			if w.listens(place) {
				continue
			}
			l, err := w.bindAt(address)
			if err != nil {
				return err
			}
			l.place, l.address = place, given
			h.fresh = append(h.fresh, l)
			if !h.gateway.addrs[place].IsValid() {
				h.gateway.addrs[place] = relay.LocalAddr(l.fd)
				address = at(address, h.gateway.addrs[place].Port())
			}
		}
	}
	return nil
}

// sharesPort says that a socket with the address's port has come: it is no other
// program that has the port.
func (h *Heir) sharesPort(address string) bool {
	_, port, _ := net.SplitHostPort(address)
	came := func(l *listener) bool { return strconv.Itoa(int(relay.LocalAddr(l.fd).Port())) == port }
	for _, w := range h.gateway.lanes {
		if slices.ContainsFunc(w.listeners, came) {
			return true
		}
	}
	return slices.ContainsFunc(h.old, came)
}

// listens says that a socket of the address has come for the lane.
func (w *lane) listens(place int) bool {
	for _, l := range w.listeners {
		if l.place == place {
			return true
		}
	}
	return false
}

func (w *lane) bindAt(address string) (*listener, error) {
	fd, err := relay.Bind(address)
	if err != nil {
		return nil, err
	}
	if err := relay.Tune(fd, tuning()); err != nil {
		relay.Close(fd)
		return nil, fmt.Errorf("listen %s: %w", address, err)
	}
	return &listener{lane: w, fd: fd}, nil
}

// begin makes a bound socket listen. Where that fails the other loops' sockets
// have to do: there is no way back any more.
func (l *listener) begin() {
	err := relay.BeginListen(l.fd)
	if err == nil {
		err = l.lane.loop.Watch(l.fd, l)
	}
	if err != nil {
		l.lane.log.Error("address is not listened at on one loop", "address", l.address, "err", err)
		relay.Close(l.fd)
		return
	}
	l.lane.listeners = append(l.lane.listeners, l)
}

// retire accepts what is queued at a socket whose address is no more, and ends
// it: also for the old process, which may still have it.
func (l *listener) retire() {
	for range drainMost {
		if !l.one() {
			break
		}
	}
	l.lane.loop.Disarm(l)
	_ = relay.EndListen(l.fd)
	relay.Close(l.fd)
	l.fd = -1
}
