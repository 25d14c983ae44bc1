package flow

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// connect opens connections, a number at a time, each until the server's first
// byte. One thread does all of it with epoll: a goroutine and a net.Conn for
// each would cost more than the relay.
func (r *runner) connect(ctx context.Context) (Result, error) {
	to, err := netip.ParseAddrPort(r.To.One)
	if err != nil {
		return Result{}, err
	}
	if r.Sources > 0 && !to.Addr().Is4() {
		return Result{}, errors.New("sources are addresses of IPv4")
	}
	preface, err := r.preface(r.server(OneName).name)
	if err != nil {
		return Result{}, err
	}
	set, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return Result{}, fmt.Errorf("epoll: %w", err)
	}
	o := &opener{runner: r, set: set, preface: preface, family: family(to.Addr()), to: sockaddr(to), open: map[int32]*opening{}}
	defer o.close()
	return o.run(ctx)
}

// alertRecord is what a record with a refusal begins with (RFC 8446, section 5.1).
const alertRecord = 21

// opener is the state of the one thread.
type opener struct {
	*runner
	set     int
	preface []byte
	family  int
	to      unix.Sockaddr
	open    map[int32]*opening // by descriptor
	took    []time.Duration
	failed  int
}

func family(a netip.Addr) int {
	if a.Unmap().Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if ip := a.Addr().Unmap(); ip.Is4() {
		return &unix.SockaddrInet4{Addr: ip.As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}

type opening struct {
	fd    int
	slot  int
	began time.Time
	said  bool
}

func (o *opener) run(ctx context.Context) (Result, error) {
	for i := range o.Conns {
		if err := o.start(i); err != nil {
			return Result{}, err
		}
	}
	if err := o.until(ctx, time.Now().Add(o.Warm)); err != nil {
		return Result{}, err
	}
	o.took, o.failed = o.took[:0], 0
	w, err := o.begin(0)
	if err != nil {
		return Result{}, err
	}
	for wait := time.Duration(0); len(o.took) == 0 && wait < o.most; wait += o.Window {
		if err := o.until(ctx, time.Now().Add(o.Window)); err != nil {
			return Result{}, err
		}
	}
	res, err := o.end(w, float64(len(o.took)))
	if len(o.took) == 0 {
		err = errors.Join(err, fmt.Errorf("no connection got through, %d were cut", o.failed))
	}
	res.Latencies, res.Failed = latencies(o.took), o.failed
	return res, err
}

func (o *opener) until(ctx context.Context, end time.Time) error {
	const wait = 10 // milliseconds
	events := make([]unix.EpollEvent, 256)
	for ctx.Err() == nil && time.Now().Before(end) {
		n, err := unix.EpollWait(o.set, events, wait)
		if err != nil && err != unix.EINTR {
			return fmt.Errorf("epoll: %w", err)
		}
		for _, e := range events[:max(n, 0)] {
			if c := o.open[e.Fd]; c != nil {
				if err := o.step(c, e.Events); err != nil {
					return err
				}
			}
		}
	}
	return ctx.Err()
}

// start begins a connection. Its port is chosen when it connects, so that each
// source has all ports for itself (IP_BIND_ADDRESS_NO_PORT of ip(7)).
func (o *opener) start(slot int) error {
	fd, err := unix.Socket(o.family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	if o.Sources > 0 {
		from := &unix.SockaddrInet4{Addr: [4]byte(o.sourceIP(slot).To4())}
		err = errors.Join(unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1), unix.Bind(fd, from))
	}
	c := &opening{fd: fd, slot: slot, began: time.Now()}
	if err == nil {
		if err = unix.Connect(fd, o.to); err == unix.EINPROGRESS {
			err = nil
		}
	}
	if err == nil {
		err = unix.EpollCtl(o.set, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Fd: int32(fd), Events: unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLET&0xffffffff})
	}
	if err != nil {
		unix.Close(fd)
		return fmt.Errorf("connection from %d: %w", slot, err)
	}
	o.open[int32(fd)] = c
	return nil
}

// step goes on with one connection: preface out, a byte in, and again.
func (o *opener) step(c *opening, events uint32) error {
	if !c.said && events&unix.EPOLLOUT != 0 {
		c.said = true
		_, _ = unix.Write(c.fd, o.preface) // what fails here fails below
	}
	if events&(unix.EPOLLIN|unix.EPOLLHUP|unix.EPOLLERR|unix.EPOLLRDHUP) == 0 {
		return nil
	}
	var b [1]byte
	n, err := unix.Read(c.fd, b[:])
	if err == unix.EAGAIN {
		return nil
	}
	if n == 1 && err == nil && b[0] != alertRecord {
		o.took = append(o.took, time.Since(c.began))
	} else {
		o.failed++ // refused, reset, closed, or told by an alert
	}
	o.drop(c)
	return o.start(c.slot)
}

func (o *opener) drop(c *opening) {
	delete(o.open, int32(c.fd))
	unix.Close(c.fd)
}

func (o *opener) close() {
	for _, c := range o.open {
		o.drop(c)
	}
	unix.Close(o.set)
}
