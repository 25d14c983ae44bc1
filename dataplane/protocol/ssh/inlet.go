package ssh

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/sshauth"
	"golang.org/x/crypto/ssh"
)

// inlet is a socket here whose connections a client has forwarded to itself.
//
//	request ─▶ open (listens) ─accept─▶ channel to the client, each counted
//	              └─ cancel, or the end of the connection ─▶ closed, removed
type inlet struct {
	conn    *connection
	name    string // of the request, to cancel it by
	channel string // type of the channels
	mode    string // for the audit log
	action  sallyport.Action
	payload func(net.Conn) []byte // of a channel's open message

	sockets []net.Listener
	remove  func() // what is left in the file system; nil for nothing
	once    sync.Once
	closed  chan struct{} // when nothing listens and nothing is left
}

// forwardTCP is -R of ssh (RFC 4254 section 7.1).
func (c *connection) forwardTCP(payload []byte) (bool, []byte) {
	var r listenTCP
	if ssh.Unmarshal(payload, &r) != nil || len(r.Host) > maxHost || r.Port > maxPort {
		return false, nil
	}
	in := &inlet{channel: "forwarded-tcpip", mode: "remote", action: sallyport.ActionForwardRemote}
	addr := net.JoinHostPort(r.Host, strconv.Itoa(int(r.Port)))
	if !c.mayListen(in.action, addr) {
		return false, nil
	}
	sockets, port, err := c.listenTCP(r.Host, int(r.Port))
	if err != nil {
		c.cannotListen(addr, err)
		return false, nil
	}
	in.sockets, in.name = sockets, tcpName(r.Host, port)
	in.payload = func(conn net.Conn) []byte {
		from := addrPort(conn.RemoteAddr())
		return ssh.Marshal(directTCP{Host: r.Host, Port: uint32(port), OriginHost: from.Addr().Unmap().String(), OriginPort: uint32(from.Port())})
	}
	if !c.open(in) {
		return false, nil
	}
	if r.Port != 0 {
		return true, nil
	}
	return true, ssh.Marshal(listeningTCP{Port: uint32(port)})
}

func (c *connection) cancelTCP(payload []byte) (bool, []byte) {
	var r listenTCP
	return ssh.Unmarshal(payload, &r) == nil && c.cancelInlet(tcpName(r.Host, int(r.Port))), nil
}

// forwardUnix is -R of a Unix socket (OpenSSH PROTOCOL section 2.4).
func (c *connection) forwardUnix(payload []byte) (bool, []byte) {
	var r listenUnix
	if ssh.Unmarshal(payload, &r) != nil || !validSocket(r.Path) {
		return false, nil
	}
	path := c.account.inHome(r.Path)
	in := &inlet{name: unixName(r.Path), channel: "forwarded-streamlocal@openssh.com", mode: "remote", action: sallyport.ActionForwardRemote}
	in.payload = func(net.Conn) []byte { return ssh.Marshal(forwardedUnix{Path: r.Path}) }
	if !c.mayListen(in.action, path) {
		return false, nil
	}
	l, err := c.account.listenUnix(path)
	if err != nil {
		c.cannotListen(path, err)
		return false, nil
	}
	in.sockets = []net.Listener{l}
	in.remove = func() { _ = c.account.asLogin(func() error { return os.Remove(path) }) } // it may be gone already
	return c.open(in), nil
}

func (c *connection) cancelUnix(payload []byte) (bool, []byte) {
	var r listenUnix
	return ssh.Unmarshal(payload, &r) == nil && c.cancelInlet(unixName(r.Path)), nil
}

func tcpName(host string, port int) string {
	return "tcp " + net.JoinHostPort(host, strconv.Itoa(port))
}
func unixName(path string) string { return "unix " + path }

// mayListen asks, and tells the person why not: a global request has no words
// in its refusal.
func (c *connection) mayListen(a sallyport.Action, addr string) bool {
	p := c.mayForward(a, addr)
	if p == nil && c.listening() >= c.server.maxListeners() {
		p = &sallyport.Problem{Kind: sallyport.ErrExhausted, Fact: fmt.Sprintf("this host listens for %d forwards of a connection at most", c.server.maxListeners())}
		c.refused(portRule(p.Fact), map[string]any{"addr": sshauth.Printable(addr, maxHost)})
	}
	if p != nil {
		c.notice(p.Fact)
	}
	return p == nil
}

func (c *connection) cannotListen(addr string, err error) {
	fact := fmt.Sprintf("cannot listen on %s: %s", sshauth.Printable(addr, maxHost), dialFact(err))
	c.notice(fact)
	c.refused(portRule(fact), map[string]any{"addr": sshauth.Printable(addr, maxHost)})
}

func (c *connection) listening() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.inlets)
}

// listenTCP opens the sockets for a bind address, as the login: low ports are
// root's.
func (c *connection) listenTCP(host string, port int) (sockets []net.Listener, bound int, err error) {
	addrs, err := c.bindAddresses(host)
	if err != nil {
		return nil, 0, err
	}
	err = c.account.asLogin(func() error {
		for i, addr := range addrs {
			l, err := net.Listen("tcp", net.JoinHostPort(addr, strconv.Itoa(port)))
			if err != nil && i > 0 {
				break // a host without IPv6
			}
			if err != nil {
				return err
			}
			sockets, port = append(sockets, l), int(addrPort(l.Addr()).Port())
		}
		return nil
	})
	return sockets, port, err
}

var errBindAddress = errors.New("not an address")

// bindAddresses: without ListenAnywhere only this host reaches a forward,
// whatever the client asks for, as sshd with "GatewayPorts no".
func (c *connection) bindAddresses(host string) ([]string, error) {
	addr, err := netip.ParseAddr(host)
	switch {
	case err == nil && addr.IsLoopback() && addr.Zone() == "":
		return []string{addr.String()}, nil
	case host == "localhost":
		return []string{"127.0.0.1", "::1"}, nil
	case c.server.ListenAnywhere == nil || !c.server.ListenAnywhere():
		if host != "" {
			c.notice("this host listens for forwards on its loopback only")
		}
		return []string{"127.0.0.1", "::1"}, nil
	case host == "" || host == "*":
		return []string{""}, nil
	case err == nil && addr.Zone() == "":
		return []string{addr.String()}, nil
	}
	return nil, errBindAddress
}

// open takes the sockets over and serves them until the end of the connection.
func (c *connection) open(in *inlet) bool {
	in.conn, in.closed = c, make(chan struct{})
	c.mu.Lock()
	_, taken := c.inlets[in.name]
	full := len(c.inlets) >= c.server.maxListeners()
	if !taken && !full {
		c.inlets[in.name] = in
	}
	c.mu.Unlock()
	if taken || full {
		in.shut()
		in.tidy()
		return false
	}
	stop := context.AfterFunc(c.life, in.shut)
	var accepting sync.WaitGroup
	for _, socket := range in.sockets {
		accepting.Go(func() { in.accept(socket) })
	}
	c.running.Go(func() {
		accepting.Wait()
		stop()
		in.tidy()
		c.mu.Lock()
		delete(c.inlets, in.name)
		c.mu.Unlock()
		close(in.closed)
	})
	c.forwarded(passage{mode: in.mode, addr: strings.TrimPrefix(strings.TrimPrefix(in.name, "tcp "), "unix ")}, "T3003I", map[string]any{"listen": true})
	return true
}

func (c *connection) cancelInlet(name string) bool {
	c.mu.Lock()
	in := c.inlets[name]
	c.mu.Unlock()
	if in == nil {
		return false
	}
	in.shut()
	<-in.closed // the port is free when the client is told so
	return true
}

// shut stops listening.
func (in *inlet) shut() {
	in.once.Do(func() {
		for _, socket := range in.sockets {
			socket.Close()
		}
	})
}

func (in *inlet) tidy() {
	if in.remove != nil {
		in.remove()
	}
}

// acceptPause is how long a socket rests that cannot accept: most likely there
// is no descriptor left.
const acceptPause = 100 * time.Millisecond

func (in *inlet) accept(socket net.Listener) {
	for {
		conn, err := socket.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			select {
			case <-time.After(acceptPause):
			case <-in.conn.life.Done():
			}
		case in.mayEnter(conn):
			in.conn.running.Go(func() {
				defer in.conn.giveForward()
				in.bring(conn)
			})
		default:
			conn.Close()
		}
	}
}

// mayEnter takes a place for a connection that has come.
func (in *inlet) mayEnter(conn net.Conn) bool {
	if in.action == sallyport.ActionForwardAgent && !in.conn.account.isUser(conn) {
		return false
	}
	addr := in.name
	return in.conn.entryProblem(in.action, addr) == nil && in.conn.takeForward(addr) == nil
}

// entryProblem asks again for each connection: roles change while connections
// live (threat A05).
func (c *connection) entryProblem(a sallyport.Action, addr string) *sallyport.Problem {
	if a == sallyport.ActionForwardAgent {
		return c.agentProblem()
	}
	return c.mayForward(a, addr)
}

// bring opens a channel to the client for a connection, and carries its bytes.
func (in *inlet) bring(conn net.Conn) {
	stop := context.AfterFunc(in.conn.life, func() { abort(conn) })
	defer stop()
	near, requests, err := in.conn.ssh.OpenChannel(in.channel, in.payload(conn))
	if err != nil { // the client does not want it, or is gone
		abort(conn)
		return
	}
	in.conn.carry(near, requests, conn, passage{mode: in.mode, addr: in.name})
}
