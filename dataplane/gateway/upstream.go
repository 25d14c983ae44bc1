//go:build unix

package gateway

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/sallyport/sallyport/dataplane/preamble"
	"github.com/sallyport/sallyport/dataplane/relay"
)

// Upstream is an address that connections are passed on to.
type Upstream struct {
	Address string // "host:port" or "unix:/path"
	Proxy   bool   // tell the client's address by PROXY protocol version 2
}

// upstream is a set of addresses that are taken in turn. Names are resolved in
// the background: a loop does not wait for DNS.
type upstream struct {
	servers []*server
	proxy   bool
	turns   atomic.Uint32
}

// server is one configured address and what it stands for now.
type server struct {
	path  string // of a Unix socket
	host  string // a name; "" for a literal
	port  uint16
	addrs atomic.Pointer[[]netip.AddrPort]
}

// target is one place to connect to.
type target struct {
	path string
	addr netip.AddrPort
}

func (t target) connect() (fd int, err error) {
	if t.path != "" {
		return relay.ConnectUnix(t.path)
	}
	return relay.Connect(t.addr)
}

func newUpstream(addresses []string, proxy bool) (*upstream, error) {
	if len(addresses) == 0 {
		return nil, fmt.Errorf("no upstream address")
	}
	u := &upstream{proxy: proxy}
	for _, a := range addresses {
		s, err := newServer(a)
		if err != nil {
			return nil, err
		}
		u.servers = append(u.servers, s)
	}
	return u, nil
}

func newServer(address string) (*server, error) {
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		return &server{path: path}, nil
	}
	if strings.HasPrefix(address, "/") {
		return &server{path: address}, nil
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("upstream %q: %w", address, err)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || host == "" {
		return nil, fmt.Errorf("upstream %q: not host:port", address)
	}
	s := &server{host: host, port: uint16(n)}
	if ip, err := netip.ParseAddr(host); err == nil {
		s.host = ""
		s.addrs.Store(&[]netip.AddrPort{netip.AddrPortFrom(ip, s.port)})
	}
	return s, nil
}

// pick gives the address for an attempt: the first is the turn's, further ones
// are what follows it. others says that there is more than one.
func (u *upstream) pick(turn uint32, attempt int) (t target, others, ok bool) {
	var all []target
	for _, s := range u.servers {
		all = s.targets(all)
	}
	if len(all) == 0 {
		return t, false, false
	}
	return all[(int(turn)+attempt)%len(all)], len(all) > 1, true
}

func (s *server) targets(all []target) []target {
	if s.path != "" {
		return append(all, target{path: s.path})
	}
	if addrs := s.addrs.Load(); addrs != nil {
		for _, a := range *addrs {
			all = append(all, target{addr: a})
		}
	}
	return all
}

// head is what an upstream gets before the client's bytes.
func (u *upstream) head(c *conn) []byte {
	if !u.proxy {
		return nil
	}
	local := c.local
	if !local.IsValid() {
		local = relay.LocalAddr(c.fd)
	}
	return preamble.AppendProxyV2(nil, c.peer, local)
}

const (
	resolveEvery = 30 * time.Second
	resolveWait  = 5 * time.Second
	resolveSoon  = time.Second // after a name that could not be resolved
)

// resolve keeps the addresses of names up to date until the gateway closes. A
// name that cannot be resolved keeps the addresses it had.
func (g *Gateway) resolve() {
	all := g.static
	if g.auth != nil {
		all = append([]*upstream{g.auth}, all...)
	}
	for {
		wait, names := resolveEvery, false
		for _, u := range all {
			for _, s := range u.servers {
				if s.host == "" {
					continue
				}
				names = true
				if err := s.resolve(g.ctx); err != nil {
					g.log.Warn("upstream not resolved", "host", s.host, "err", err)
					wait = resolveSoon
				}
			}
		}
		if !names {
			return
		}
		select {
		case <-g.ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

func (s *server) resolve(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, resolveWait)
	defer cancel()
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", s.host)
	if err != nil {
		return err
	}
	addrs := make([]netip.AddrPort, len(ips))
	for i, ip := range ips {
		addrs[i] = netip.AddrPortFrom(ip.Unmap(), s.port)
	}
	s.addrs.Store(&addrs)
	return nil
}
