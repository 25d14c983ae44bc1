package ssh

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/session"
	"github.com/sallyport/sallyport/dataplane/sshauth"
	"github.com/sallyport/sallyport/identity"
	"golang.org/x/crypto/ssh"
)

// grant is what a client has won by a proven certificate.
type grant struct {
	session *session.Session
	account account
	permit  permit
}

// Extensions of certificates (PROTOCOL.certkeys).
const (
	extensionPTY     = "permit-pty"
	extensionForward = "permit-port-forwarding"
	extensionAgent   = "permit-agent-forwarding"
)

// permit is what the certificate's extensions allow, beside the roles.
type permit struct{ pty, forward, agent bool }

func permitOf(cert *ssh.Certificate) permit {
	has := func(name string) bool { _, ok := cert.Extensions[name]; return ok }
	return permit{pty: has(extensionPTY), forward: has(extensionForward), agent: has(extensionAgent)}
}

// grantKey marks the grant in the permissions of the authentication that
// succeeded.
type grantKey struct{}

// handshake is one connection before it is anybody's. All of it runs on the
// goroutine of Serve.
type handshake struct {
	server    *Server
	ctx       context.Context
	candidate *session.Candidate
	conn      net.Conn
	started   time.Time

	opened *session.Session // by the last proof; ended when it did not win
	lines  map[string]bool  // refusals in the audit log, so that none is there twice
	plain  *refusal         // the last refusal that is logged only if nothing wins
}

// refusal is why an attempt to authenticate is refused.
type refusal struct {
	problem *sallyport.Problem
	audited bool // by the gate
	quiet   bool // an ordinary step of a client that tries its keys in turn
}

func (r *refusal) Error() string { return r.problem.Fact }

// Unwrap lets errors.Is find the kind.
func (r *refusal) Unwrap() error { return r.problem }

// run shakes hands and returns the connection with its grant.
func (h *handshake) run() (*accepted, error) {
	config, err := h.config()
	if err != nil {
		return nil, err
	}
	h.started = time.Now()
	// No byte is waited for longer than this; lifted in Serve, after proof.
	if err := h.conn.SetDeadline(h.started.Add(h.server.handshakeTimeout())); err != nil {
		return nil, err
	}
	conn, channels, requests, err := ssh.NewServerConn(sshauth.FromClient(h.conn), config)
	if err != nil {
		h.lost(err)
		return nil, err
	}
	won, ok := conn.Permissions.ExtraData[grantKey{}].(*grant)
	a := &accepted{conn: conn, channels: channels, requests: requests, grant: won}
	if !ok {
		a.discard()
		return nil, errors.New("authenticated without a grant")
	}
	return a, nil
}

// accepted is a connection that has authenticated.
type accepted struct {
	conn     *ssh.ServerConn
	channels <-chan ssh.NewChannel
	requests <-chan *ssh.Request
	grant    *grant
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

// config is what all of our servers speak, and how this one lets people in.
func (h *handshake) config() (*ssh.ServerConfig, error) {
	signer, err := h.server.HostSigner()
	if err != nil {
		return nil, fmt.Errorf("host key: %w", err)
	}
	config := sshauth.Config(signer, h.server.Version)
	config.MaxAuthTries = h.server.maxAuthTries()
	config.PublicKeyCallback = h.offered
	config.VerifiedPublicKeyCallback = h.proven
	config.AuthLogCallback = h.tried
	config.PreAuthConnCallback = h.exchanged
	return config, nil
}

// exchanged is called when keys are agreed: the person now has the login grace,
// counted from the start.
func (h *handshake) exchanged(ssh.ServerPreAuthConn) {
	// An error means that the connection is gone, which the next read says.
	_ = h.conn.SetDeadline(h.started.Add(h.server.loginGrace()))
}

// offered answers whether a key is worth a proof. It has no effect: a client
// may offer what it does not have (threat A40, CVE-2024-45337).
func (h *handshake) offered(meta ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
	if _, err := h.check(meta.User(), key); err != nil {
		return nil, told(err)
	}
	return &ssh.Permissions{}, nil
}

// proven is called after the client has signed with the key. Everything is
// checked again, where it is used.
func (h *handshake) proven(meta ssh.ConnMetadata, key ssh.PublicKey, _ *ssh.Permissions, _ string) (*ssh.Permissions, error) {
	cert, refused := h.check(meta.User(), key)
	if refused != nil {
		return nil, told(refused)
	}
	won, refused := h.admit(meta.User(), cert)
	if refused != nil {
		return nil, told(refused)
	}
	return &ssh.Permissions{ExtraData: map[any]any{grantKey{}: won}}, nil
}

func (h *handshake) check(login string, key ssh.PublicKey) (*ssh.Certificate, *refusal) {
	if p := h.candidate.Refusal; p != nil {
		return nil, &refusal{problem: p, audited: true}
	}
	cas, err := h.server.UserCAs()
	if err != nil {
		return nil, &refusal{problem: problemOf(err, "this host does not know the cluster's user CAs")}
	}
	q := sshauth.Check{
		Cluster: h.server.Cluster, CAs: cas, Login: login,
		Addr: h.candidate.ClientAddr.Addr(), Now: time.Now(),
	}
	cert, problem := q.Run(key)
	if problem != nil {
		_, isCert := key.(*ssh.Certificate)
		return nil, &refusal{problem: problem, quiet: !isCert}
	}
	return cert, nil
}

// admit turns a proven certificate into a session, or says why not.
func (h *handshake) admit(login string, cert *ssh.Certificate) (*grant, *refusal) {
	id, err := identity.FromSSH(cert)
	if err != nil {
		return nil, &refusal{problem: &sallyport.Problem{Kind: sallyport.ErrDenied,
			Fact: "the certificate is not one of this cluster's", Hint: sshauth.HintLogin, Cause: err}}
	}
	if p := h.samePerson(id); p != nil {
		return nil, &refusal{problem: p}
	}
	if p := h.candidate.Gate.Admit(id, h.candidate.ClientAddr); p != nil {
		return nil, &refusal{problem: p}
	}
	acc, p := h.server.accounts().find(h.ctx, login)
	if p != nil {
		return nil, &refusal{problem: p}
	}
	s, p := h.open(id, login)
	if p != nil {
		return nil, &refusal{problem: p, audited: true}
	}
	return &grant{session: s, account: acc, permit: permitOf(cert)}, nil
}

// samePerson holds the inner certificate against the outer one. A gateway may
// carry anybody's SSH (jump host, browser); an agent or auth nobody's.
func (h *handshake) samePerson(id sallyport.Identity) *sallyport.Problem {
	outer := h.candidate.Identity
	if id.Cluster != h.server.Cluster || outer.Cluster != h.server.Cluster {
		return sallyport.Denied(fmt.Sprintf("the certificate is of another cluster than %s", h.server.Cluster), sshauth.HintLogin)
	}
	switch {
	case outer.Kind == sallyport.KindUser && outer.Name == id.Name && outer.Usage == "" && id.Usage == "":
		return nil
	case outer.Kind == sallyport.KindUser && outer.Name != id.Name:
		return sallyport.Denied("the SSH certificate and the TLS certificate name different users", sshauth.HintLogin)
	case outer.Kind == sallyport.KindGateway && h.boundTo(id, outer):
		return nil
	}
	return sallyport.Denied("the certificate is not for SSH on this connection", sshauth.HintLogin)
}

// boundTo: a browser's certificate is good only in the hands of its gateway.
func (h *handshake) boundTo(id, gateway sallyport.Identity) bool {
	if id.Usage == "" {
		return true
	}
	return id.Usage == sallyport.UsageWeb && id.BoundTo == identity.URI(sallyport.KindGateway, gateway.Cluster, gateway.Name).String()
}

// open asks the gate, as the person of the SSH certificate.
func (h *handshake) open(id sallyport.Identity, login string) (*session.Session, *sallyport.Problem) {
	h.release()
	c := *h.candidate
	c.Identity = id
	s, err := c.Open(h.ctx, h.server.use(&c, login))
	if err != nil {
		return nil, problemOf(err, "the session cannot be opened")
	}
	h.opened = s
	return s, nil
}

// release ends a session that was opened and not won.
func (h *handshake) release() {
	if h.opened != nil {
		h.opened.End(nil)
		h.opened = nil
	}
}

// tried hears of every attempt: what is refused gets one line in the audit
// log, however often the client repeats it. The number of attempts is bounded.
func (h *handshake) tried(meta ssh.ConnMetadata, method string, err error) {
	if err == nil || method != "publickey" {
		return
	}
	var r *refusal
	if !errors.As(err, &r) {
		// The SSH library could not read the key, or does not know its
		// algorithm; many clients try one key by several.
		r = &refusal{quiet: len(h.lines) > 0, problem: &sallyport.Problem{Kind: sallyport.ErrDenied,
			Fact: "the key or certificate is not acceptable", Hint: sshauth.HintLogin, Cause: err}}
	}
	switch {
	case r.audited:
		h.line(meta.User(), r) // remembered, not written twice
	case r.quiet:
		h.plain = r
	default:
		h.deny(meta.User(), r.problem)
	}
}

// lost ends what a failed handshake leaves behind.
func (h *handshake) lost(err error) {
	h.release()
	var auth *ssh.ServerAuthError
	switch {
	case len(h.lines) > 0:
	case h.plain != nil:
		h.deny("", h.plain.problem)
	case !errors.As(err, &auth) && !isNetwork(err):
		// Among others: a certificate offered by somebody without its key.
		h.deny("", &sallyport.Problem{Kind: sallyport.ErrDenied, Fact: "the SSH handshake failed", Cause: err})
	}
}

func isNetwork(err error) bool {
	var n net.Error
	return errors.As(err, &n) || errors.Is(err, net.ErrClosed) || errors.Is(err, io.EOF)
}

// told wraps a refusal so that its reason goes out in the banner (RFC 4252
// section 5.4).
func told(r *refusal) error {
	if r.quiet {
		return r
	}
	return &ssh.BannerError{Err: r, Message: sshauth.Message(r.problem)}
}

// problemOf is the problem within err, or one with the fact given.
func problemOf(err error, fact string) *sallyport.Problem {
	var p *sallyport.Problem
	if errors.As(err, &p) {
		return p
	}
	return &sallyport.Problem{Kind: sallyport.ErrUnavailable, Fact: fact, Cause: err}
}
