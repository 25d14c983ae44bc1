package jump

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/sshauth"
	"github.com/sallyport/sallyport/identity"
)

// handshake is one connection before it is anybody's. All of it runs on the
// goroutine of Serve.
type handshake struct {
	server  *Server
	ctx     context.Context
	conn    net.Conn
	client  netip.AddrPort
	started time.Time

	place *place // by the last proof; given back when it did not win
	told  map[string]bool
}

// placeKey marks the place in the permissions of the authentication that
// succeeded.
type placeKey struct{}

// refusal is why an attempt to authenticate is refused.
type refusal struct {
	problem *sallyport.Problem
	user    string // who has proved to be that; "" for a stranger
	quiet   bool   // an ordinary step of a client that tries its keys in turn
}

func (r *refusal) Error() string { return r.problem.Fact }

// Unwrap lets errors.Is find the kind.
func (r *refusal) Unwrap() error { return r.problem }

// run shakes hands and returns the connection with its place.
func (h *handshake) run() (*accepted, error) {
	host, err := h.server.HostSigner()
	if err != nil {
		return nil, fmt.Errorf("host key: %w", err)
	}
	config := sshauth.Config(host, h.server.Version)
	config.MaxAuthTries = h.server.maxAuthTries()
	config.PublicKeyCallback = h.offered
	config.VerifiedPublicKeyCallback = h.proven
	config.AuthLogCallback = h.tried
	config.PreAuthConnCallback = h.exchanged
	h.started = time.Now()
	// No byte is waited for longer than this; lifted in Serve, after proof.
	if err := h.conn.SetDeadline(h.started.Add(h.server.handshakeTimeout())); err != nil {
		return nil, err
	}
	conn, channels, requests, err := ssh.NewServerConn(sshauth.FromClient(h.conn), config)
	if err != nil {
		h.release()
		return nil, err
	}
	a := &accepted{conn: conn, channels: channels, requests: requests}
	won, ok := conn.Permissions.ExtraData[placeKey{}].(*place)
	if !ok || won != h.place {
		h.release()
		a.discard()
		return nil, errors.New("authenticated without a place")
	}
	a.place = won
	return a, nil
}

// exchanged is called when keys are agreed: the person now has the login grace,
// counted from the start.
func (h *handshake) exchanged(ssh.ServerPreAuthConn) {
	// An error means that the connection is gone, which the next read says.
	_ = h.conn.SetDeadline(h.started.Add(h.server.loginGrace()))
}

// accepted is a connection that has authenticated.
type accepted struct {
	conn     *ssh.ServerConn
	channels <-chan ssh.NewChannel
	requests <-chan *ssh.Request
	place    *place
}

// discard closes a connection that will not be served. The SSH library's
// goroutine ends only when both of its channels are read to their end.
func (a *accepted) discard() {
	a.conn.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		ssh.DiscardRequests(a.requests)
	}()
	for range a.channels {
	}
	<-done
}

// offered answers whether a key is worth a proof: whether it is in a certificate
// that a user CA has signed. It has no effect, and what is wrong with a
// certificate of ours is told to who has its key only: a client may offer what
// it does not have (threat A40, CVE-2024-45337).
func (h *handshake) offered(_ ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
	check, r := h.check()
	if r != nil {
		return nil, told(r)
	}
	if p := check.Ours(key); p != nil {
		_, isCert := key.(*ssh.Certificate)
		return nil, told(&refusal{problem: p, quiet: !isCert})
	}
	return &ssh.Permissions{}, nil
}

// proven is called after the client has signed with the key. Everything is
// checked again, where it is used.
func (h *handshake) proven(_ ssh.ConnMetadata, key ssh.PublicKey, _ *ssh.Permissions, _ string) (*ssh.Permissions, error) {
	p, r := h.admit(key)
	if r != nil {
		return nil, told(r)
	}
	return &ssh.Permissions{ExtraData: map[any]any{placeKey{}: p}}, nil
}

// check is the question about certificates. The login that a client names means
// nothing here: nobody gets one.
func (h *handshake) check() (sshauth.Check, *refusal) {
	cas, err := h.server.UserCAs()
	if err != nil {
		return sshauth.Check{}, &refusal{problem: problemOf(err, "this gateway does not know the cluster's user CAs")}
	}
	return sshauth.Check{Cluster: h.server.Cluster, CAs: cas, AnyLogin: true, Addr: h.client.Addr(), Now: time.Now()}, nil
}

// admit turns a proven certificate into a place, or says why not.
func (h *handshake) admit(key ssh.PublicKey) (*place, *refusal) {
	check, r := h.check()
	if r != nil {
		return nil, r
	}
	if p := check.Ours(key); p != nil {
		return nil, &refusal{problem: p}
	}
	cert, _ := key.(*ssh.Certificate) // Ours has seen that it is one
	id, err := identity.FromSSH(cert)
	if _, p := check.Run(key); p != nil {
		return nil, &refusal{problem: p, user: nameOf(id, cert)}
	}
	if err != nil {
		return nil, &refusal{user: nameOf(id, cert), problem: &sallyport.Problem{Kind: sallyport.ErrDenied,
			Fact: "the certificate is not one of this cluster's", Hint: sshauth.HintLogin, Cause: err}}
	}
	if p := h.server.checkUsage(id); p != nil {
		return nil, &refusal{problem: p, user: id.Name}
	}
	if p := h.server.Admit(id, h.client); p != nil {
		return nil, &refusal{problem: p, user: id.Name}
	}
	h.release()
	won, p := h.server.enter(id)
	if p != nil {
		return nil, &refusal{problem: p, user: id.Name}
	}
	h.place = won
	return won, nil
}

// nameOf is who a user CA has signed for: it puts the user's name into the key id
// too, which is there in a certificate that names nobody otherwise.
func nameOf(id sallyport.Identity, cert *ssh.Certificate) string {
	if id.Name != "" {
		return id.Name
	}
	return cmp.Or(sshauth.Printable(cert.KeyId, maxLogin), "unknown")
}

// checkUsage keeps certificates away that are made for a browser's requests.
func (s *Server) checkUsage(id sallyport.Identity) *sallyport.Problem {
	switch {
	case id.Cluster != s.Cluster:
		return sallyport.Denied("the certificate is of another cluster than "+s.Cluster, sshauth.HintLogin)
	case id.Usage != "":
		return sallyport.Denied("the certificate is not for SSH on this connection", sshauth.HintLogin)
	}
	return nil
}

// release gives back a place that was taken and not won.
func (h *handshake) release() {
	if h.place != nil {
		h.place.leave()
		h.place = nil
	}
}

// tried hears of every attempt. What somebody is refused who has proved who he
// is gets one line in the audit log, however often the client repeats it; a
// stranger is counted by the gateway, as one whose TLS handshake fails.
func (h *handshake) tried(meta ssh.ConnMetadata, method string, err error) {
	var r *refusal
	if err == nil || method != "publickey" || !errors.As(err, &r) {
		return
	}
	if r.user == "" {
		h.server.log().Debug("jump: key refused", "peer", h.client, "reason", r.problem.Fact)
		return
	}
	if h.told[r.problem.Fact] {
		return
	}
	if h.told == nil {
		h.told = make(map[string]bool)
	}
	h.told[r.problem.Fact] = true
	h.server.deny(h.ctx, h.client, meta.User(), r)
}

// told wraps a refusal so that its reason goes out in the banner (RFC 4252
// section 5.4).
func told(r *refusal) error {
	if r.quiet {
		return r
	}
	return &ssh.BannerError{Err: r, Message: sshauth.Message(r.problem)}
}

func isNetwork(err error) bool {
	var n net.Error
	return errors.As(err, &n) || errors.Is(err, net.ErrClosed) || errors.Is(err, io.EOF)
}

// problemOf is the problem within err, or one with the fact given.
func problemOf(err error, fact string) *sallyport.Problem {
	var p *sallyport.Problem
	if errors.As(err, &p) {
		return p
	}
	return &sallyport.Problem{Kind: sallyport.ErrUnavailable, Fact: fact, Cause: err}
}
