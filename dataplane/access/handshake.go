package access

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/alpn"
	"github.com/sallyport/sallyport/dataplane/swift"
)

// hello is what a client asked for, as this agent understands it.
type hello struct {
	resource    sallyport.Resource
	certificate *tls.Certificate
}

// handshake ends the client's TLS. The connection has no deadline afterwards.
func (v *visit) handshake(ctx context.Context) (*whole, error) {
	d := v.door
	if d.waiting.Add(1) > int64(d.MaxWaiting) {
		d.waiting.Add(-1)
		return nil, &stranger{refusedBusy, fmt.Errorf("%d handshakes under way", d.MaxWaiting)}
	}
	defer d.waiting.Add(-1)
	makeRoom()
	// This deadline covers the handshake alone; it is lifted below, when the
	// client has proved who it is.
	if err := v.raw.SetDeadline(time.Now().Add(d.HandshakeTimeout)); err != nil {
		return nil, err
	}
	g := &gated{Conn: swift.Conn(v.raw), slots: d.slots}
	tc := tls.Server(g, v.config(g))
	err := g.run(func() error { return tc.HandshakeContext(ctx) })
	if err != nil {
		return nil, asStranger(ctx, err)
	}
	return &whole{tc, g}, v.raw.SetDeadline(time.Time{})
}

func asStranger(ctx context.Context, err error) error {
	var s *stranger
	switch {
	case errors.As(err, &s):
		return s
	case ctx.Err() != nil:
		return &stranger{refusedShutdown, err}
	case errors.Is(err, os.ErrDeadlineExceeded):
		return &stranger{refusedTimeout, err}
	}
	return &stranger{refusedHandshake, err}
}

// config is for one connection: what it finds out goes to the visit.
func (v *visit) config(g *gated) *tls.Config {
	base := &tls.Config{
		MinVersion: tls.VersionTLS13,
		// A ticket would let a client in again without its certificate being
		// looked at (nginx CVE-2025-23419).
		SessionTicketsDisabled: true,
		// An answer of a database goes in full records from the start: small
		// ones cost a system call per segment, and serve pages of the web only.
		DynamicRecordSizingDisabled: true,
		// The chain is checked in VerifyConnection, where an expired
		// certificate of ours can be told from a foreign one.
		ClientAuth: tls.RequireAnyClientCert,
		VerifyConnection: func(cs tls.ConnectionState) error {
			verdict, err := v.door.identify(cs.PeerCertificates, v.hello.resource, v.open)
			if err != nil {
				return &stranger{refusedCertificate, err}
			}
			v.verdict = verdict
			return nil
		},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return v.hello.certificate, nil
		},
	}
	base.GetConfigForClient = func(chi *tls.ClientHelloInfo) (*tls.Config, error) {
		protocols, s := v.read(chi)
		if s != nil {
			g.alert(alertFor(s))
			return nil, s
		}
		cfg := base.Clone()
		cfg.GetConfigForClient = nil
		cfg.NextProtos = protocols
		return cfg, nil
	}
	return base
}

// read decides about a ClientHello: what it names must be what the frame names
// and what this agent serves.
func (v *visit) read(chi *tls.ClientHelloInfo) (protocols []string, s *stranger) {
	name, ok := alpn.NormalName(chi.ServerName)
	if !ok {
		return nil, &stranger{refusedName, errors.New("hello without a server name")}
	}
	kind, label, ok := alpn.ParseName(name, v.door.Cluster)
	if !ok || sallyport.Kind(kind) != v.open.Kind || label != strings.ToLower(v.open.Name) {
		return nil, &stranger{refusedName, fmt.Errorf("hello names %q, the frame %s of kind %s", name, v.open.Name, v.open.Kind)}
	}
	resource, ok := v.door.Resources(v.open.Kind, label)
	if !ok {
		return nil, &stranger{refusedName, fmt.Errorf("%q is not served here", name)}
	}
	cert, err := v.door.Credentials.ServerCertificate(name)
	if err != nil {
		return nil, &stranger{refusedName, err}
	}
	protocols, ok = offer(resource.Kind, chi.SupportedProtos)
	if !ok {
		return nil, &stranger{refusedALPN, fmt.Errorf("%q with protocols %q", name, chi.SupportedProtos)}
	}
	v.hello = hello{resource: resource, certificate: cert}
	return protocols, nil
}

func alertFor(s *stranger) alpn.Alert {
	if s.reason == refusedALPN {
		return alpn.NoApplicationProtocol
	}
	return alpn.UnrecognizedName
}

// offer says what a server of this kind may negotiate with a client (DESIGN,
// names and protocols). Without a protocol id only those kinds go on whose
// bytes cannot be taken for another's: programs that know no ALPN.
func offer(kind sallyport.Kind, client []string) (protocols []string, ok bool) {
	var may []string
	silent := false // may the client name none?
	switch kind {
	case sallyport.KindNode:
		may = []string{alpn.SSH1}
	case sallyport.KindDatabase:
		may, silent = []string{alpn.DB1, alpn.PostgreSQL}, true
	case sallyport.KindKube: // kubectl names none for exec, attach and port-forward
		may, silent = []string{alpn.HTTP2, alpn.HTTP11}, true
	case sallyport.KindApp:
		may = []string{alpn.HTTP2, alpn.HTTP11}
	case sallyport.KindTCP:
		may, silent = raw(alpn.TCP1, client), true
	case sallyport.KindDesktop:
		may, silent = raw(alpn.Desktop1, client), true
	}
	if len(client) == 0 {
		return nil, silent
	}
	for _, p := range client {
		for _, m := range may {
			if p == m {
				return may, true
			}
		}
	}
	return nil, false
}

// raw is for resources whose protocol we do not know: our own id, or else the
// client's, since it may speak any. Not a web browser's ids: a page must not
// make a browser send its bytes to something that is not the web (ALPACA). Nor
// another of ours, which asks for a service that is not here.
func raw(own string, client []string) []string {
	may := []string{own}
	for _, p := range client {
		if !strings.HasPrefix(p, "sallyport-") && !strings.HasPrefix(p, "http/") && p != "h2" && p != "h2c" && p != "h3" && p != alpn.ACMETLS1 {
			may = append(may, p)
		}
	}
	return may
}

// gated is a connection during its handshake. A slot is held while the
// handshake computes and given back while it waits for the client, so that
// strangers who say nothing hold up nobody, and any number of them compute only
// as many handshakes at a time as there are slots. Used by one goroutine.
type gated struct {
	net.Conn
	slots chan struct{}
	held  bool        // is a handshake under way, and so a slot to give back?
	mute  bool        // an alert went out; nothing may follow it
	ended atomic.Bool // the end of the TCP stream was read
}

// run computes f within a slot.
func (g *gated) run(f func() error) error {
	g.slots <- struct{}{}
	g.held = true
	defer func() {
		g.held = false
		<-g.slots
	}()
	return f()
}

func (g *gated) Read(p []byte) (int, error) {
	if g.held {
		<-g.slots
		defer func() { g.slots <- struct{}{} }()
	}
	n, err := g.Conn.Read(p)
	if err == io.EOF {
		g.ended.Store(true)
	}
	return n, err
}

func (g *gated) Write(p []byte) (int, error) {
	if g.mute {
		return 0, net.ErrClosed
	}
	if g.held {
		<-g.slots
		defer func() { g.slots <- struct{}{} }()
	}
	return g.Conn.Write(p)
}

// whole is the stream of a client that always ends it with close_notify: ours.
// An end without one was made by somebody on the way (RFC 8446, section 6.1),
// which crypto/tls lets pass between two records because of foreign clients.
type whole struct {
	*tls.Conn
	under *gated
}

func (w *whole) Read(p []byte) (int, error) {
	n, err := w.Conn.Read(p)
	if err == io.EOF && w.under.ended.Load() {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// alert sends a fatal alert that crypto/tls has no name for. It goes in clear:
// no keys exist before the ServerHello (RFC 8446, section 6).
func (g *gated) alert(a alpn.Alert) {
	record := a.Record()
	g.Write(record[:])
	g.mute = true
}
