package ssh

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/sshauth"
	"golang.org/x/crypto/ssh"
)

const (
	forwardDial = 15 * time.Second // to reach what a client forwards to

	// forwardLinger is how long the far end may take the last bytes of a
	// client that has closed its channel.
	forwardLinger = 10 * time.Second

	// maxDenials of the gate on one connection; after them forwards are refused
	// unasked, because each is a line that must reach the disk.
	maxDenials = 20

	maxHost = 255 // bytes of a host name (RFC 1035 section 2.3.4)
	maxPort = 1<<16 - 1
)

// destination is where a client wants a connection forwarded to.
type destination struct {
	network string // tcp or unix
	address string
}

// openDirectTCP is -L, -D and -W of ssh (RFC 4254 section 7.2).
func (c *connection) openDirectTCP(offer ssh.NewChannel) {
	var r directTCP
	if ssh.Unmarshal(offer.ExtraData(), &r) != nil || !validHost(r.Host) || r.Port == 0 || r.Port > maxPort {
		_ = offer.Reject(ssh.ConnectionFailed, "the address is malformed")
		return
	}
	c.openDirect(offer, destination{network: "tcp", address: net.JoinHostPort(r.Host, strconv.Itoa(int(r.Port)))})
}

// openDirectUnix is -L to a Unix socket (OpenSSH PROTOCOL section 2.4).
func (c *connection) openDirectUnix(offer ssh.NewChannel) {
	var r directUnix
	if ssh.Unmarshal(offer.ExtraData(), &r) != nil || !validSocket(r.Path) {
		_ = offer.Reject(ssh.ConnectionFailed, "the path is malformed")
		return
	}
	c.openDirect(offer, destination{network: "unix", address: c.account.inHome(r.Path)})
}

// validHost: what a resolver may be asked. Zones name interfaces of this host.
func validHost(host string) bool {
	return host != "" && len(host) <= maxHost && !strings.ContainsFunc(host, func(r rune) bool {
		return r <= ' ' || r >= 0x7f || r == '/' || r == '[' || r == ']'
	})
}

func (c *connection) openDirect(offer ssh.NewChannel, to destination) {
	if p := c.mayForward(sallyport.ActionForwardLocal, to.address); p != nil {
		_ = offer.Reject(ssh.Prohibited, sshauth.Printable(p.Fact, sshauth.MaxText))
		return
	}
	if p := c.takeForward(to.address); p != nil {
		_ = offer.Reject(ssh.ResourceShortage, p.Fact)
		return
	}
	c.running.Go(func() {
		defer c.giveForward()
		c.direct(offer, to)
	})
}

// direct reaches the destination with the login's rights, and carries bytes.
func (c *connection) direct(offer ssh.NewChannel, to destination) {
	far, err := c.dial(to)
	if err != nil {
		// An error means that the connection is gone.
		_ = offer.Reject(ssh.ConnectionFailed, sshauth.Printable(dialFact(err), sshauth.MaxText))
		c.refused(portRule(dialFact(err)), map[string]any{"addr": to.address})
		return
	}
	near, requests, err := offer.Accept()
	if err != nil { // the connection is gone
		far.Close()
		return
	}
	c.carry(near, requests, far, passage{mode: "local", addr: to.address})
}

func (c *connection) dial(to destination) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(c.life, forwardDial)
	defer cancel()
	if to.network == "unix" {
		return c.account.dialUnix(to.address)
	}
	d := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) error { return c.account.ownSocket(raw) }}
	return d.DialContext(ctx, to.network, to.address)
}

// dialFact is why a destination cannot be reached, without the addresses that
// a resolver of ours found.
func dialFact(err error) string {
	var dns *net.DNSError
	var sys syscall.Errno
	switch {
	case errors.As(err, &dns):
		return "the name is not known"
	case errors.Is(err, context.DeadlineExceeded):
		return "no answer in time"
	case errors.As(err, &sys):
		return sys.Error()
	}
	return "the destination cannot be reached"
}

// mayForward asks the certificate and the gate whether the person may forward
// in this direction, now.
func (c *connection) mayForward(a sallyport.Action, addr string) *sallyport.Problem {
	p := c.forwardProblem(a)
	if p != nil {
		c.refused(portRule(p.Fact), map[string]any{"addr": sshauth.Printable(addr, maxHost)})
	}
	return p
}

func (c *connection) forwardProblem(a sallyport.Action) *sallyport.Problem {
	switch {
	case c.life.Err() != nil:
		return sallyport.Denied("the session has ended", "")
	case !c.permit.forward:
		return sallyport.Denied("the certificate does not permit port forwarding", sshauth.HintLogin)
	}
	return c.ask(a)
}

// ask is allow for what a client may ask for as often as it likes.
func (c *connection) ask(a sallyport.Action) *sallyport.Problem {
	if c.denials.Load() >= maxDenials {
		return sallyport.Denied("too much was refused on this connection", "connect again")
	}
	p := c.allow(a)
	if p != nil {
		c.denials.Add(1)
	}
	return p
}

// takeForward counts a forwarded connection as open until both of its ends are
// closed: each may hold a window of unread bytes.
func (c *connection) takeForward(addr string) *sallyport.Problem {
	s := c.server
	if s.forwarding.Add(1) <= int64(s.maxForwardsInAll()) {
		if c.forwarding.Add(1) <= int64(s.maxForwards()) {
			return nil
		}
		c.forwarding.Add(-1)
	}
	s.forwarding.Add(-1)
	p := &sallyport.Problem{Kind: sallyport.ErrExhausted, Fact: "too many forwarded connections"}
	c.refused(portRule(p.Fact), map[string]any{"addr": sshauth.Printable(addr, maxHost)})
	return p
}

func (c *connection) giveForward() {
	c.forwarding.Add(-1)
	c.server.forwarding.Add(-1)
}

// passage is a forwarded connection as the audit log has it.
type passage struct {
	mode string // local, remote or agent
	addr string
}

// carry moves bytes both ways until both directions have ended, one has
// failed, or the connection ends. It closes both, and returns when the client
// has closed the channel too. A client that sends what has no meaning here,
// extended data or anything behind its end, is cut off.
func (c *connection) carry(near ssh.Channel, requests <-chan *ssh.Request, far net.Conn, p passage) {
	c.forwarded(p, "T3003I", nil)
	if c.session.Context.Err() != nil { // nothing passes that is not written down
		abort(far)
	}
	cut := context.AfterFunc(c.life, func() { abort(far) })
	defer cut()
	var sent, received int64
	var moving, closing sync.WaitGroup
	up, closed := make(chan struct{}), make(chan struct{})
	moving.Go(func() {
		defer close(up)
		var err error
		if sent, err = c.move(far, near); err != nil || c.life.Err() != nil || closeWrite(far) != nil {
			far.Close()
		}
	})
	moving.Go(func() {
		var err error
		if received, err = c.move(near, far); err != nil {
			near.Close()
			return
		}
		// An error means that the channel is closed already.
		_ = near.CloseWrite()
	})
	closing.Go(func() {
		ssh.DiscardRequests(requests) // until the client has closed the channel
		close(closed)
		// The far end gets what is on its way to it, if it takes it.
		_ = far.SetWriteDeadline(time.Now().Add(forwardLinger))
		<-up
		far.Close()
	})
	closing.Go(func() { c.silent(near.Stderr(), closed) })
	closing.Go(func() {
		<-up
		sshauth.Forget(near) // what was on its way when the far end went
		c.silent(near, closed)
	})
	moving.Wait()
	near.Close()
	far.Close()
	closing.Wait()
	c.forwarded(p, "T3003S", map[string]any{"bytes_sent": sent, "bytes_received": received})
}

// silent cuts the client off when something comes on a stream on which nothing
// may, before the channel is closed.
func (c *connection) silent(r io.Reader, closed <-chan struct{}) {
	if !sshauth.Spoke(r, closed) {
		return
	}
	if c.session.Cancel != nil {
		c.session.Cancel(sallyport.Denied("the client sent data where none may be", ""))
	}
	c.ssh.Close()
}

// abort closes such that the other side sees a stream that broke off.
func abort(conn net.Conn) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // an error means that it is closed
	}
	conn.Close()
}

// move copies until the end of src.
func (c *connection) move(dst io.Writer, src io.Reader) (moved int64, err error) {
	buf := make([]byte, chunk)
	for {
		n, err := src.Read(buf)
		if n > 0 {
			c.touch()
			if _, werr := dst.Write(buf[:n]); werr != nil {
				return moved, werr
			}
			moved += int64(n)
		}
		if errors.Is(err, io.EOF) {
			return moved, nil
		}
		if err != nil {
			return moved, err
		}
	}
}

func closeWrite(conn net.Conn) error {
	half, ok := conn.(interface{ CloseWrite() error })
	if !ok {
		return fmt.Errorf("%T cannot be half closed", conn)
	}
	return half.CloseWrite()
}

// forwarded writes that a forwarded connection began or ended.
func (c *connection) forwarded(p passage, code string, details map[string]any) {
	yes := true
	fields := map[string]any{"addr": sshauth.Printable(p.addr, sshauth.MaxText), "mode": p.mode, "proto": proto, "server_hostname": hostname(&c.session.Resource)}
	for name, value := range details {
		fields[name] = value
	}
	c.session.Emit(sallyport.Event{Name: "port", Code: code, Success: &yes, Login: c.session.Principal, ServerID: c.server.HostID, Fields: fields})
}

func portRule(fact string) rule {
	return rule{name: "port", fact: fact, event: sallyport.Event{Name: "port", Code: "T3003E"}}
}
