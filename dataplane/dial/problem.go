package dial

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/alpn"
)

var errNoProtocol = errors.New("no application protocol")

// Alerts by the names that crypto/tls gives them: their type is not exported.
const (
	alertUnrecognizedName = "tls: unrecognized name"
	alertNoProtocol       = "tls: no application protocol"
)

// alertOf is the TLS alert that the other side sent, or "".
func alertOf(err error) string {
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "remote error" {
		return op.Err.Error()
	}
	var alert tls.AlertError
	if errors.As(err, &alert) {
		return alert.Error()
	}
	return ""
}

// resourceProblem says what a failed connection to a resource means. Unknown
// names and names without an agent are the same alert, on purpose: who may know
// more asks the API.
func resourceProblem(err error, name, protocol string) error {
	var p *sallyport.Problem
	switch {
	case errors.As(err, &p):
		return p
	case alertOf(err) == alertUnrecognizedName:
		return &sallyport.Problem{Kind: sallyport.ErrNotFound, Cause: err, Hint: "sally ls",
			Fact: "resource " + name + ": unknown or no live agent"}
	case alertOf(err) == alertNoProtocol || errors.Is(err, errNoProtocol):
		return &sallyport.Problem{Kind: sallyport.ErrInvalid, Cause: err, Hint: "sally ls shows what it is",
			Fact: "resource " + name + ": does not speak " + protocol}
	}
	return commonProblem(err, "resource "+name)
}

// serviceProblem is the same for the cluster's own services.
func serviceProblem(err error, proxy string) error {
	var p *sallyport.Problem
	switch {
	case errors.As(err, &p):
		return p
	case alertOf(err) == alertUnrecognizedName:
		return &sallyport.Problem{Kind: sallyport.ErrNotFound, Cause: err, Hint: "check the cluster's name",
			Fact: "gateway " + proxy + ": does not serve this cluster, or auth is away"}
	case alertOf(err) == alertNoProtocol || errors.Is(err, errNoProtocol):
		return &sallyport.Problem{Kind: sallyport.ErrUnavailable, Cause: err, Hint: "check the address; is something else before it?",
			Fact: "gateway " + proxy + ": does not speak our protocol"}
	}
	return commonProblem(err, "gateway "+proxy)
}

func commonProblem(err error, what string) error {
	switch {
	case errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded):
		return &sallyport.Problem{Kind: sallyport.ErrUnavailable, Cause: err, Fact: what + ": no answer in time", Hint: "try again"}
	case errors.Is(err, context.Canceled):
		return &sallyport.Problem{Kind: sallyport.ErrUnavailable, Cause: err, Fact: what + ": interrupted"}
	case errors.Is(err, errUntrusted):
		return &sallyport.Problem{Kind: sallyport.ErrUnauthorized, Cause: err, Hint: "check the address; log in again with: sally login",
			Fact: what + ": " + strings.Join(strings.Split(err.Error(), "\n"), ": ")}
	case alertOf(err) != "":
		return &sallyport.Problem{Kind: sallyport.ErrUnauthorized, Cause: err, Hint: "log in with: sally login",
			Fact: what + ": your certificate was refused"}
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		return &sallyport.Problem{Kind: sallyport.ErrUnavailable, Cause: err, Fact: what + ": closed the connection", Hint: "try again"}
	}
	return &sallyport.Problem{Kind: sallyport.ErrUnavailable, Cause: err, Fact: what + ": " + err.Error()}
}

func unreachable(what string, err error) *sallyport.Problem {
	return &sallyport.Problem{Kind: sallyport.ErrUnavailable, Cause: err, Fact: what + " cannot be reached: " + reason(err),
		Hint: "check the address and the network"}
}

// reason is the innermost word of a network error.
func reason(err error) string {
	var dns *net.DNSError
	var sys *os.SyscallError
	switch {
	case errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded):
		return "no answer in time"
	case errors.As(err, &dns):
		return "no such host"
	case errors.As(err, &sys):
		return sys.Err.Error()
	}
	return err.Error()
}

func quote(s string) string {
	if alpn.ValidLabel(s) {
		return s
	}
	return strconv.Quote(s[:min(len(s), 100)])
}

// stream is a connection to an agent or a service. It says what crypto/tls
// leaves unsaid at reads: in TLS 1.3 a client learns only there that its
// certificate was refused (RFC 8446, section 4.4.4), and an end of TCP without
// close_notify was made by somebody on the way (section 6.1): that is no end.
type stream struct {
	*tls.Conn
	under *wire
}

func (s *stream) Read(p []byte) (int, error) {
	n, err := s.Conn.Read(p)
	switch {
	case err == nil:
	case err == io.EOF && s.under.ended.Load():
		err = io.ErrUnexpectedEOF
	case alertOf(err) != "":
		err = &sallyport.Problem{Kind: sallyport.ErrUnauthorized, Cause: err, Hint: "log in with: sally login",
			Fact: "your certificate was refused"}
	}
	return n, err
}

// wire is what the TLS runs on. It remembers that TCP has ended.
type wire struct {
	net.Conn
	ended atomic.Bool
}

func (w *wire) Read(p []byte) (int, error) {
	n, err := w.Conn.Read(p)
	if err == io.EOF {
		w.ended.Store(true)
	}
	return n, err
}
