package dial

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/preamble"
)

const (
	// DefaultMaxConnections is how many local connections a proxy carries.
	DefaultMaxConnections = 512

	// preambleTimeout bounds PostgreSQL's first packets, and TLS handshakes.
	preambleTimeout = 30 * time.Second

	// lingerTime is how long a local program may take to read why it is let go.
	lingerTime = 5 * time.Second

	acceptPause = 100 * time.Millisecond
)

// LocalProxy gives local programs a port on the loopback, or a Unix socket, that
// leads to a resource. Over a socket a stream that broke looks like one that ended.
type LocalProxy struct {
	// Listener accepts local programs; see Listen. Serve closes it.
	Listener net.Listener

	// Dial connects to the resource, once for each local connection.
	Dial func(ctx context.Context) (net.Conn, error)

	// Postgres says that local programs speak PostgreSQL in clear: their
	// requests for encryption are answered "no" here, since the way onwards
	// is TLS already, and failures are told as PostgreSQL errors. Without it
	// bytes pass as they are; so does a program's own TLS.
	Postgres bool

	// TLS is ended for local programs before anything is dialed: it says who may
	// use the port. nil: whoever reaches it.
	TLS *tls.Config

	// MySQL says that local programs speak MySQL in clear. Bytes pass as they
	// are, since the far end speaks first; failures are told as MySQL errors.
	MySQL bool

	// Redis says that local programs speak Redis in clear. Bytes pass as they are;
	// failures are told as Redis errors.
	Redis bool

	// Kube says that local programs speak HTTP/1.1 to a Kubernetes API. Bytes pass as
	// they are; failures are told as its Status objects, in answer to the first request.
	Kube bool

	MaxConnections int          // 0: DefaultMaxConnections
	Log            *slog.Logger // nil: none

	linger time.Duration // for tests; 0: lingerTime
}

// Listen opens a port on the loopback: "127.0.0.1:5432", "127.0.0.1:0", or
// "[::1]:0". Other addresses are refused: whoever reaches the port is let
// through with the user's own rights.
func Listen(address string) (net.Listener, error) {
	addr, err := netip.ParseAddrPort(address)
	if err != nil || !addr.Addr().IsLoopback() {
		return nil, &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: fmt.Sprintf("%q is not a port on the loopback", address),
			Hint: "for example 127.0.0.1:5432; port 0 takes a free one"}
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, &sallyport.Problem{Kind: sallyport.ErrUnavailable, Cause: err, Hint: "choose another port, or 0 for a free one",
			Fact: "port " + address + " cannot be opened: " + reason(err)}
	}
	return l, nil
}

// Serve carries connections until ctx is done, and returns nil when all of them
// are closed.
func (p *LocalProxy) Serve(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { p.Listener.Close() })
	defer stop()
	defer p.Listener.Close()
	most := p.MaxConnections
	if most <= 0 {
		most = DefaultMaxConnections
	}
	slots := make(chan struct{}, most)
	var tasks sync.WaitGroup
	defer tasks.Wait()
	for {
		// A slot first: what cannot be served waits in the kernel's queue.
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		conn, err := p.Listener.Accept()
		if err != nil {
			<-slots
			if ctx.Err() != nil {
				return nil
			}
			if !again(ctx, err) {
				return err
			}
			continue
		}
		tasks.Go(func() {
			defer func() { <-slots }()
			p.log(p.serve(ctx, conn))
		})
	}
}

// again waits a moment after an error that passes (no descriptors left).
func again(ctx context.Context, err error) bool {
	if errors.Is(err, net.ErrClosed) {
		return false
	}
	timer := time.NewTimer(acceptPause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func (p *LocalProxy) log(err error) {
	if err != nil && p.Log != nil {
		p.Log.Warn("connection ended", "error", err)
	}
}

// serve carries one local connection.
func (p *LocalProxy) serve(ctx context.Context, local net.Conn) error {
	defer local.Close()
	stop := context.AfterFunc(ctx, func() { abort(local) })
	defer stop()
	if p.TLS != nil {
		inner, err := p.handshake(ctx, local)
		if err != nil {
			return err
		}
		local = inner
	}
	var first []byte
	if p.Postgres {
		packet, err := startPostgres(local)
		if err != nil {
			if odd, ok := errors.AsType[*oddStart](err); ok {
				p.part(local, preamble.Refused08P01(odd.fact, odd.hint))
			}
			return err
		}
		first = packet
	}
	remote, err := p.Dial(ctx)
	if err != nil {
		p.tell(local, err)
		return err
	}
	if _, err := remote.Write(first); err != nil {
		remote.Close()
		p.tell(local, err)
		return err
	}
	if err := join(ctx, local, remote); err != nil && ctx.Err() == nil {
		return err
	}
	return nil
}

// handshake ends a local program's TLS.
func (p *LocalProxy) handshake(ctx context.Context, local net.Conn) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, preambleTimeout)
	defer cancel()
	tc := tls.Server(local, p.TLS)
	return tc, tc.HandshakeContext(ctx)
}

// tell says in the local program's own protocol why there is no connection.
func (p *LocalProxy) tell(local net.Conn, err error) {
	var refused func(fact, hint string) []byte
	switch {
	case p.Kube:
		p.tellKube(local, err)
		return
	case p.Postgres:
		refused = preamble.Refused28000
	case p.MySQL:
		refused = preamble.Refused1045
	case p.Redis:
		refused = preamble.RefusedRedis
	default:
		abort(local)
		return
	}
	fact, hint := "the database cannot be reached", ""
	var problem *sallyport.Problem
	if errors.As(err, &problem) {
		fact, hint = problem.Fact, problem.Hint
	}
	p.part(local, refused(fact, hint))
}

// part ends a local program's connection with its last message.
func (p *LocalProxy) part(local net.Conn, last []byte) {
	local.SetDeadline(time.Now().Add(preambleTimeout))
	if _, err := local.Write(last); err == nil && closeWrite(local) == nil {
		// Until the program closes: what it has said meanwhile, or says now, would
		// have it told of a broken connection and not why. It is for nobody.
		local.SetDeadline(time.Now().Add(cmp.Or(p.linger, lingerTime)))
		io.Copy(io.Discard, local)
	}
}

// oddStart is a local program that begins otherwise than PostgreSQL's clients do, and is told so.
type oddStart struct{ fact, hint string }

func (o *oddStart) Error() string { return "local program: " + o.fact }

// startPostgres answers requests for encryption with "no", at most one each,
// and returns the packet that follows: a StartupMessage or a CancelRequest.
func startPostgres(local net.Conn) ([]byte, error) {
	if err := local.SetDeadline(time.Now().Add(preambleTimeout)); err != nil {
		return nil, err
	}
	var asked [2]bool
	for {
		packet, kind, err := readPostgres(local)
		if err != nil {
			return nil, err
		}
		var which int
		switch kind {
		case preamble.PostgresSSL:
			which = 0
		case preamble.PostgresGSSENC:
			which = 1
		default:
			return packet, local.SetDeadline(time.Time{})
		}
		if asked[which] {
			return nil, &oddStart{fact: "asked for encryption twice"}
		}
		asked[which] = true
		if _, err := local.Write([]byte{preamble.PostgresNo}); err != nil {
			return nil, err
		}
	}
}

// readPostgres reads exactly one first packet.
func readPostgres(r io.Reader) ([]byte, preamble.PostgresKind, error) {
	packet := make([]byte, 8, 64)
	if _, err := io.ReadFull(r, packet); err != nil {
		return nil, 0, err
	}
	if packet[0] == 0x16 { // a TLS record: libpq with sslnegotiation=direct
		return nil, 0, errors.New("local program: speaks TLS to a port that is in clear; use sslmode=disable")
	}
	for {
		p, need, err := preamble.ParsePostgres(packet)
		if err != nil {
			return nil, 0, &oddStart{"no start-up message of PostgreSQL's protocol 3.0 or later: " + err.Error(), "PostgreSQL 7.4 and later speak it"}
		}
		if need == 0 {
			return packet, p.Kind, nil
		}
		// The parser has checked the size; it bounds what is read here.
		have := len(packet)
		packet = append(packet, make([]byte, need-have)...)
		if _, err := io.ReadFull(r, packet[have:]); err != nil {
			return nil, 0, err
		}
	}
}
