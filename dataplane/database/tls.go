package database

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/sallyport/sallyport/dataplane/swift"
)

// Target is where the database is.
type Target struct {
	Address string // host:port
	TLS     TLSMode

	// ServerName is the name that the server's certificate must have. "": the
	// host of Address.
	ServerName string

	// Roots are accepted as issuers beside the cluster's own. nil: none. The
	// system's roots are never used.
	Roots *x509.CertPool
}

// TLSMode says how far the database's certificate is checked. There is no mode
// without TLS.
type TLSMode string

const (
	VerifyFull TLSMode = "verify-full" // the issuer and the name; "" means this
	VerifyCA   TLSMode = "verify-ca"   // the issuer
	Insecure   TLSMode = "insecure"    // nothing
)

// Memory is what is remembered of one server between sessions: the certificate
// that was checked last, and the groups that it takes. The zero value is ready;
// its methods may be called concurrently.
type Memory struct {
	checked checked
	groups  groups
}

// Want is one connection to be made.
type Want struct {
	Target      Target
	Cluster     *x509.CertPool // the cluster's database CAs; nil: only Target.Roots count
	Certificate *tls.Certificate
}

// Connect calls secure, which makes a connection and agrees on TLS as config
// says. It is called a second time, for a new connection, when the server takes
// other groups than it did before.
func (m *Memory) Connect(w Want, secure func(config *tls.Config) (*tls.Conn, error)) (*tls.Conn, error) {
	config, err := m.config(w)
	if err != nil {
		return nil, err
	}
	config.CurvePreferences = m.groups.offer()
	conn, err := secure(config)
	if _, alert := RemoteAlert(err); alert && config.CurvePreferences != nil {
		// The server may take other groups by now.
		m.groups.forget()
		config = config.Clone()
		config.CurvePreferences = nil
		conn, err = secure(config)
	}
	if err != nil {
		return nil, err
	}
	if config.CurvePreferences == nil {
		m.groups.learn(conn.ConnectionState().CurveID)
	}
	return conn, nil
}

// Client is tls.Client, for a connection to a database server.
func Client(raw net.Conn, config *tls.Config) *tls.Conn { return tls.Client(swift.Conn(raw), config) }

// config is the TLS client towards the server.
func (m *Memory) config(w Want) (*tls.Config, error) {
	host, _, err := net.SplitHostPort(w.Target.Address)
	if err != nil {
		return nil, fmt.Errorf("database address: %w", err)
	}
	if w.Target.ServerName != "" {
		host = w.Target.ServerName
	}
	check, err := m.checker(w, host)
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion:   tls.VersionTLS12,
		ServerName:   host,
		Certificates: []tls.Certificate{*w.Certificate},

		// The check is VerifyConnection, for all modes: the library's own can
		// neither leave out the name nor know two pools.
		InsecureSkipVerify: true,
		VerifyConnection:   check,

		// Bulk is usual: full records from the start.
		DynamicRecordSizingDisabled: true,
	}, nil
}

// checker returns what checks a server's certificate.
func (m *Memory) checker(w Want, host string) (func(tls.ConnectionState) error, error) {
	switch w.Target.TLS {
	case Insecure:
		return nil, nil
	case VerifyCA:
		host = ""
	case VerifyFull, "":
	default:
		return nil, fmt.Errorf("unknown TLS mode %q", w.Target.TLS)
	}
	pools := []*x509.CertPool{w.Cluster, w.Target.Roots}
	return func(cs tls.ConnectionState) error { return m.trusts(cs.PeerCertificates, host, pools) }, nil
}

// trusts checks a server's chain, unless it was checked and nothing has changed.
func (m *Memory) trusts(chain []*x509.Certificate, host string, pools []*x509.CertPool) error {
	if len(chain) == 0 {
		return errors.New("the server has no certificate")
	}
	now := time.Now()
	if m.checked.holds(chain[0], host, pools, now) {
		return nil
	}
	path, err := verify(chain, x509.VerifyOptions{DNSName: host, CurrentTime: now}, pools)
	if err != nil {
		return err
	}
	m.checked.keep(path, host, pools)
	return nil
}

// verify checks a chain against the first of the pools that has its issuer, and
// returns it with that issuer. A pool that is nil is skipped: to the library it
// would mean the system's.
func verify(chain []*x509.Certificate, o x509.VerifyOptions, pools []*x509.CertPool) ([]*x509.Certificate, error) {
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	err := error(x509.UnknownAuthorityError{Cert: chain[0]})
	for _, pool := range pools {
		if pool == nil {
			continue
		}
		o.Roots, o.Intermediates = pool, between
		paths, failed := chain[0].Verify(o)
		if failed == nil {
			return paths[0], nil
		}
		err = failed
	}
	return nil, &tls.CertificateVerificationError{UnverifiedCertificates: chain, Err: err}
}

// RemoteAlert finds the alert with which a peer ended TLS; close_notify is none.
func RemoteAlert(err error) (*net.OpError, bool) {
	op, ok := errors.AsType[*net.OpError](err)
	return op, ok && op.Op == "remote error"
}

// LastWords returns what a server said before a write to it failed: the alert
// with which it closed, otherwise the write's own error. With TLS 1.3 a server
// refuses a client's certificate when the client already writes; its reset fails
// the write, and the alert still waits to be read.
func LastWords(conn *tls.Conn, failed error) error {
	conn.SetReadDeadline(time.Now().Add(time.Second))
	_, err := conn.Read(make([]byte, 1))
	if _, ok := RemoteAlert(err); ok {
		return err
	}
	return failed
}

// Unreachable says why a server could not be reached, without its address:
// what follows the database's name.
func Unreachable(err error) string {
	var dns *net.DNSError
	var timeout net.Error
	switch {
	case errors.As(err, &dns):
		return "is not reachable: its host name is not known"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "is not reachable: connection refused"
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return "is not reachable: no answer in time"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return "closed the connection before the session began"
	}
	return "is not reachable"
}
