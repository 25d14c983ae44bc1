package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/identity"
)

// Protocol ids of auth's two doors (DESIGN: names and protocols).
const (
	ProtocolAuth = "sallyport-auth/1"
	ProtocolJoin = "sallyport-join/1"
)

const (
	dialTimeout = 5 * time.Second

	// handshakeTimeout is how long a connection that was made may wait for
	// auth: while it changes from one process to the next it accepts nothing.
	handshakeTimeout = 10 * time.Second

	// nextAfter is how long an address may be silent before the next one is tried beside it.
	nextAfter = 2 * time.Second

	// A connection that died without a word is noticed within their sum.
	pingAfter   = 5 * time.Second
	pingTimeout = 3 * time.Second
)

// Dialer reaches auth: straight to its socket, or through any gateway, which
// passes the connection on by ALPN without ending its TLS.
type Dialer struct {
	// Addresses are tried in order: "host:port", or "unix:" and a path.
	Addresses func() []string

	// Cluster and Roots say who auth must be: a host certificate for
	// spiffe://<cluster>/auth/…. With Pins instead of Roots the chain that is
	// shown must hold a CA whose key has one of the pins.
	Cluster string
	Roots   func() *x509.CertPool
	Pins    []string

	// Certificate is shown to auth; nil for joining.
	Certificate func() (*tls.Certificate, error)

	// Connect makes the connection under TLS to an address that is host:port, for
	// example through an HTTP proxy; nil: net.Dialer.
	Connect func(ctx context.Context, network, addr string) (net.Conn, error)

	// Inside makes it where something on the way ends TLS, which own denies of a
	// chain that leads to the cluster's CAs; nil: such a way is none.
	Inside func(ctx context.Context, addr string, own func(chain []*x509.Certificate) bool) (net.Conn, error)

	mu    sync.Mutex
	last  string // the address that worked last
	ended bool   // inside what Inside makes
	shut  shut
}

// shut keeps a host that is refused, with all that it wants of auth, from dialing in vain.
type shut struct {
	until time.Time
	pause time.Duration // of the last time
	err   error
}

// How long nothing is dialed at most after a refusal. It is less than refusedMost, so that
// both together are no longer; and more where it is another cluster that has answered.
const (
	shutMost    = 10 * time.Second
	foreignMost = 5 * time.Minute
)

// Dial opens one TLS 1.3 connection to auth with the given protocol id. Addresses that
// are silent keep the next ones waiting for nextAfter each.
func (d *Dialer) Dial(ctx context.Context, protocol string) (*tls.Conn, error) {
	addrs := d.inOrder()
	if len(addrs) == 0 {
		return nil, &sallyport.Problem{Kind: sallyport.ErrUnavailable, Fact: "no address of auth is known"}
	}
	if err := d.closed(); err != nil {
		return nil, err
	}
	got := d.race(ctx, addrs, protocol)
	if got.err != nil {
		d.close(got.err)
		return nil, got.err
	}
	d.remember(got)
	return got.conn, nil
}

// closed is why nothing is dialed now, or nil.
func (d *Dialer) closed() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if time.Now().Before(d.shut.until) {
		return d.shut.err
	}
	return nil
}

// close makes the next dials wait if this one has been refused, longer each time.
func (d *Dialer) close(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	most := shutMost
	switch {
	case !refused(err):
		d.shut = shut{}
		return
	case isForeign(err):
		most = foreignMost
	}
	pause := min(max(2*d.shut.pause, retryFirst), most)
	d.shut = shut{time.Now().Add(jitter(pause)), pause, err}
}

// reached is what came of one address.
type reached struct {
	addr   string
	conn   *tls.Conn
	inside bool // what Inside makes
	err    error
}

// race dials addresses, each when those before it have failed or have had their time,
// until one answers. What the others come to is closed.
func (d *Dialer) race(ctx context.Context, addrs []string, protocol string) reached {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	pause := nextAfter
	if end, ok := ctx.Deadline(); ok { // the last has a part of the time, too
		pause = min(pause, time.Until(end)/time.Duration(len(addrs)+1))
	}
	results := make(chan reached, len(addrs))
	errs := make([]error, 0, len(addrs))
	for begun := 0; len(errs) < len(addrs); {
		var next <-chan time.Time
		if begun < len(addrs) {
			addr := addrs[begun]
			go func() { results <- d.dialAgain(ctx, addr, protocol) }()
			begun++
			next = time.After(pause)
		}
		select {
		case <-next:
		case r := <-results:
			if r.err == nil {
				go closeLate(results, begun-len(errs)-1)
				return r
			}
			errs = append(errs, r.err)
		}
	}
	return reached{err: errors.Join(errs...)}
}

// closeLate closes what n more attempts come to.
func closeLate(results <-chan reached, n int) {
	for range n {
		if r := <-results; r.err == nil {
			r.conn.Close()
		}
	}
}

// dialAgain dials an address, and a second time where that may help.
func (d *Dialer) dialAgain(ctx context.Context, addr, protocol string) reached {
	r := d.dial(ctx, addr, protocol)
	if hungUp(r.err) {
		// A process that ends its service closes what is half made; the
		// next one, or the word that there is none, is behind the same address.
		r = d.dial(ctx, addr, protocol)
	}
	return r
}

// Ended says that the last connection was made by Inside.
func (d *Dialer) Ended() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.ended
}

func (d *Dialer) inOrder() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	addrs := d.Addresses()
	out := make([]string, 0, len(addrs))
	for _, a := range addrs {
		if a == d.last {
			out = append(out, a)
		}
	}
	for _, a := range addrs {
		if a != d.last {
			out = append(out, a)
		}
	}
	return out
}

func (d *Dialer) remember(r reached) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.last, d.ended, d.shut = r.addr, r.inside, shut{}
}

// hungUp says that the other end closed the connection in the middle of the
// handshake, without an alert.
func hungUp(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

func (d *Dialer) dial(ctx context.Context, addr, protocol string) reached {
	cfg, err := d.config(protocol)
	if err != nil {
		return reached{err: err}
	}
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		conn, err := handshake(ctx, addr, cfg, func(ctx context.Context) (net.Conn, error) { return (&net.Dialer{}).DialContext(ctx, "unix", path) })
		return reached{addr: addr, conn: conn, err: err}
	}
	connect := d.Connect
	if connect == nil {
		connect = (&net.Dialer{}).DialContext
	}
	straight := func(ctx context.Context) (net.Conn, error) { return connect(ctx, "tcp", addr) }
	if d.Inside == nil {
		conn, err := handshake(ctx, addr, cfg, straight)
		return reached{addr: addr, conn: conn, err: err}
	}
	return d.byEither(ctx, addr, cfg, straight, func(ctx context.Context) (net.Conn, error) { return d.Inside(ctx, addr, d.own) })
}

func (d *Dialer) config(protocol string) (*tls.Config, error) {
	cfg := &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             []string{protocol},
		SessionTicketsDisabled: true,
		// The name in the certificate is a SPIFFE id, not a host name, and
		// joining knows only a pin: VerifyConnection does the whole check.
		InsecureSkipVerify: true,
		VerifyConnection:   d.verify,
	}
	if d.Cluster != "" {
		cfg.ServerName = d.Cluster
	}
	if d.Certificate != nil {
		cert, err := d.Certificate()
		if err != nil {
			return nil, err
		}
		cfg.Certificates = []tls.Certificate{*cert}
	}
	return cfg, nil
}

// byEither goes straight, and where the handshake fails inside, which is tried first
// when it got through the last time. What is said inside is the gateway's word, and
// the answer; that there is no way inside says no more than that it is not needed.
func (d *Dialer) byEither(ctx context.Context, addr string, cfg *tls.Config, straight, inside func(context.Context) (net.Conn, error)) reached {
	d.mu.Lock()
	known := d.ended && d.last == addr
	d.mu.Unlock()
	if known {
		if conn, err := handshake(ctx, addr, cfg, inside); !errors.Is(err, errNoWay) || ctx.Err() != nil {
			return reached{addr, conn, true, err}
		}
	}
	conn, err := handshake(ctx, addr, cfg, straight)
	if err == nil || known || ctx.Err() != nil || errors.Is(err, errNoWay) || unanswered(err) {
		return reached{addr, conn, false, err}
	}
	conn, ierr := handshake(ctx, addr, cfg, inside)
	if errors.Is(ierr, errNoWay) {
		return reached{err: err}
	}
	return reached{addr, conn, true, ierr}
}

// errNoWay marks a connection that was not made, so that there was no handshake.
var errNoWay = errors.New("no connection")

func handshake(ctx context.Context, addr string, cfg *tls.Config, connect func(context.Context) (net.Conn, error)) (*tls.Conn, error) {
	raw, err := within(ctx, dialTimeout, connect)
	if err != nil {
		return nil, &sallyport.Problem{Kind: sallyport.ErrUnavailable, Fact: "auth by way of " + addr + " cannot be reached", Cause: errors.Join(errNoWay, err)}
	}
	conn := tls.Client(raw, cfg)
	_, err = within(ctx, handshakeTimeout, func(ctx context.Context) (struct{}, error) { return struct{}{}, conn.HandshakeContext(ctx) })
	if err != nil {
		raw.Close()
		return nil, handshakeProblem(addr, err)
	}
	return conn, nil
}

// within bounds one step.
func within[T any](ctx context.Context, d time.Duration, step func(ctx context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	return step(ctx)
}

// roots are the CAs to check a chain by.
func (d *Dialer) roots(chain []*x509.Certificate) (*x509.CertPool, error) {
	if len(d.Pins) > 0 {
		return identity.PinnedRoots(chain, d.Pins)
	}
	if d.Roots != nil {
		if roots := d.Roots(); roots != nil {
			return roots, nil
		}
	}
	return nil, errors.New("neither a CA nor a pin to check auth by")
}

// own says whether a chain leads to the cluster's CAs.
func (d *Dialer) own(chain []*x509.Certificate) bool {
	roots, err := d.roots(chain)
	return err == nil && identity.LeadsTo(roots, chain, time.Now())
}

func (d *Dialer) verify(cs tls.ConnectionState) error {
	roots, err := d.roots(cs.PeerCertificates)
	if err != nil {
		return err
	}
	_, err = identity.VerifyPeer(cs.PeerCertificates, identity.Want{
		Roots:   roots,
		Cluster: d.Cluster,
		Kinds:   []sallyport.IdentityKind{sallyport.KindAuth},
		Usage:   x509.ExtKeyUsageServerAuth,
		Now:     time.Now(),
	})
	return err
}

// handshakeProblem tells a gateway that cannot reach auth, which answers with
// the alert internal_error (RFC 8446, section 6.2), from other failures.
func handshakeProblem(addr string, err error) error {
	p := &sallyport.Problem{Kind: sallyport.ErrUnavailable, Fact: fmt.Sprintf("handshake with auth by way of %s: %v", addr, err), Cause: err}
	if unanswered(err) {
		p.Fact, p.Hint = "the control plane behind gateway "+addr+" does not answer", waitForAuth
	}
	return p
}

// unanswered says that a gateway has given that alert: it has been reached, and
// auth has not.
func unanswered(err error) bool { return strings.Contains(errorText(err), "tls: internal error") }

// errorText is that of an error's cause, if it has one.
func errorText(err error) string {
	if p := new(sallyport.Problem); errors.As(err, &p) && p.Cause != nil {
		return p.Cause.Error()
	}
	return err.Error()
}

// waitForAuth is what people are told while auth is away.
const waitForAuth = "sessions go on and new ones start; listings and logins wait for it"
