package mysql

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"

	proto "github.com/go-mysql-org/go-mysql/mysql"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/database"
)

// backend is our connection to the real server.
type backend struct {
	conn   *tls.Conn
	thread uint32 // the server's name for it
}

// reach dials the server and reads its greeting, and not a byte more: what
// someone puts behind it before TLS would have to be a TLS record.
func (s *Server) reach(ctx context.Context) (net.Conn, greeting, error) {
	raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", s.Target.Address)
	if err != nil {
		return nil, greeting{}, err
	}
	stop := context.AfterFunc(ctx, func() { raw.SetDeadline(database.Past()) })
	payload, seq, err := readPacket(raw, greetingMax)
	var g greeting
	if err == nil && seq != 0 {
		err = outOfOrder(seq, 0)
	}
	if err == nil {
		g, err = parseGreeting(payload)
	}
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		raw.Close()
		return nil, greeting{}, err
	}
	s.ahead.learn(g)
	return raw, g, nil
}

// connect logs in to the server with the certificate of the user, and returns
// the server's OK.
func (l *live) connect(ctx context.Context) (db *backend, ok []byte, err error) {
	dialing, cancel := context.WithTimeout(ctx, l.bounds.Connect)
	defer cancel()
	db, ok, err = l.dial(dialing)
	if err != nil && ctx.Err() != nil {
		return nil, nil, ended(context.Cause(ctx))
	}
	return db, ok, err
}

// dial is connect without the session's end.
func (l *live) dial(ctx context.Context) (*backend, []byte, error) {
	s, name := l.server, l.sess.Resource.Name
	cert, err := s.Certificate(ctx, name, l.first.user)
	if err != nil {
		return nil, nil, fmt.Errorf("database %s: no certificate for its user: %w", name, err)
	}
	want := database.Want{Target: s.Target, Certificate: cert}
	if s.Roots != nil {
		want.Cluster = s.Roots()
	}
	var server greeting
	conn, err := s.memory.Connect(want, func(config *tls.Config) (conn *tls.Conn, err error) {
		conn, server, err = l.secure(ctx, config)
		return conn, err
	})
	if err != nil {
		return nil, nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(database.Past()) })
	ok, err := l.login(conn, &server)
	if !stop() && err == nil {
		err = unreachable(name, ctx.Err())
	}
	if err != nil {
		database.HangUp(conn)
		return nil, nil, err
	}
	s.ahead.loggedIn()
	return &backend{conn: conn, thread: server.thread}, ok, nil
}

// secure agrees on TLS with the server that greeted the client, or anew.
func (l *live) secure(ctx context.Context, config *tls.Config) (*tls.Conn, greeting, error) {
	name := l.sess.Resource.Name
	raw, g := l.met.claim(), l.met.greeting
	if raw == nil {
		var err error
		if raw, g, err = l.server.reach(ctx); err != nil {
			return nil, g, unreachable(name, err)
		}
	}
	stop := context.AfterFunc(ctx, func() { raw.Close() })
	conn := database.Client(raw, config)
	err := l.requestTLS(raw, &g)
	if err == nil {
		err = handshake(ctx, conn, name)
	}
	if !stop() {
		err = unreachable(name, ctx.Err())
	}
	if err != nil {
		raw.Close()
		return nil, g, err
	}
	return conn, g, nil
}

// requestTLS asks a server for TLS (page "SSLRequest"). There is no way without.
func (l *live) requestTLS(raw net.Conn, g *greeting) error {
	name := l.sess.Resource.Name
	if g.caps&proto.CLIENT_SSL == 0 {
		return refuse(faultNotReached(), sallyport.ErrUnavailable, fmt.Sprintf("database %s: the server does not offer TLS", name),
			"set ssl_cert, ssl_key and ssl_ca in the server's configuration")
	}
	if missing := l.first.caps & layout &^ g.caps; missing != 0 {
		return refuse(faultNotReached(), sallyport.ErrUnavailable, fmt.Sprintf("database %s: the server is another than the one that greeted", name), "connect again")
	}
	if _, err := raw.Write(appendPacket(nil, 1, l.first.head(l.first.towards(g.caps)))); err != nil {
		return unreachable(name, err)
	}
	return nil
}

func handshake(ctx context.Context, conn *tls.Conn, name string) error {
	err := conn.HandshakeContext(ctx)
	if err == nil {
		return nil
	}
	if wrong, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return refuse(faultNotReached(), sallyport.ErrUnavailable,
			fmt.Sprintf("database %s: the server's certificate is not trusted", name),
			"have it issued by the cluster's database CA for the name that the agent dials, or give the agent its CA").because(wrong)
	}
	return unreachable(name, err)
}

// unreachable says why a server could not be reached, without its address.
func unreachable(name string, err error) *refusal {
	return refuse(faultNotReached(), sallyport.ErrUnavailable, fmt.Sprintf("database %s %s", name, database.Unreachable(err)),
		"ask whether the database server is up and trusts the cluster's database CA; its log says").because(err)
}

// login sends the user and the database, and returns the server's OK. Whatever
// the server wants to be told but a certificate is a refusal.
func (l *live) login(conn *tls.Conn, server *greeting) ([]byte, error) {
	if _, err := conn.Write(appendPacket(nil, 2, l.first.login(server))); err != nil {
		return nil, l.rejected(database.LastWords(conn, err))
	}
	for next := byte(3); ; next += 2 {
		payload, seq, err := readPacket(conn, responseMax)
		if err != nil {
			return nil, l.rejected(err)
		}
		if seq != next {
			return nil, unreachable(l.sess.Resource.Name, outOfOrder(seq, next))
		}
		switch payload[0] {
		case proto.OK_HEADER:
			return payload, nil
		case proto.ERR_HEADER:
			return nil, l.refusedBy(payload)
		case proto.EOF_HEADER: // AuthSwitchRequest, at most one
			if next > 3 || !emptyAnswers(payload[1:]) {
				return nil, l.wantsPassword()
			}
			if _, err := conn.Write(appendPacket(nil, next+1, nil)); err != nil {
				return nil, l.rejected(err)
			}
		default: // AuthMoreData: a plugin that is not content with nothing
			return nil, l.wantsPassword()
		}
	}
}

// emptyAnswers says that a plugin takes an empty answer for an empty password.
func emptyAnswers(request []byte) bool {
	name, _, _ := strings.Cut(string(request), "\x00")
	return name == proto.AUTH_NATIVE_PASSWORD || name == proto.AUTH_CACHING_SHA2_PASSWORD
}

func (l *live) wantsPassword() *refusal {
	return refuse(faultDenied(), sallyport.ErrDenied,
		fmt.Sprintf("database %s: the server asks for a password, and the agent logs in with a certificate only", l.sess.Resource.Name), l.account())
}

// account is the hint that names what the server's administrator needs to say.
func (l *live) account() string {
	return fmt.Sprintf("the server needs ALTER USER %s REQUIRE SUBJECT %s for an account without a password, and in ssl_ca the database CA of %s",
		quote(l.first.user), quote("/CN="+oneline(l.first.user)), l.server.Cluster)
}

// quote writes a string of SQL.
func quote(s string) string { return "'" + strings.NewReplacer(`\`, `\\`, "'", "\\'").Replace(s) + "'" }

// oneline writes a common name as servers compare it (X509_NAME_oneline(3)).
func oneline(s string) string {
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' {
			fmt.Fprintf(&b, `\x%02X`, c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

// Errors of a login that tell what is between the agent and the server, such as
// the agent's address.
const (
	errAccessDenied     = 1045
	errHostBlocked      = 1129
	errHostNotAllowed   = 1130
	errAccessNoPassword = 1698
)

// refusedBy passes the server's own error on, unless it tells the agent's address.
func (l *live) refusedBy(payload []byte) error {
	code, state, text, err := parseErr(payload)
	if err != nil {
		return unreachable(l.sess.Resource.Name, err)
	}
	cause := fmt.Errorf("error %d (%s): %s", code, state, text)
	name := l.sess.Resource.Name
	switch code {
	case errAccessDenied, errAccessNoPassword:
		return refuse(faultDenied(), sallyport.ErrDenied,
			fmt.Sprintf("database %s: the server does not accept user %q with the agent's certificate", name, l.first.user), l.account()).because(cause)
	case errHostBlocked, errHostNotAllowed:
		return refuse(fault{code, "HY000"}, sallyport.ErrUnavailable,
			fmt.Sprintf("database %s: the server lets nobody in from where the agent is", name), "its administrator may need FLUSH HOSTS, or an account for the agent's host").because(cause)
	}
	r := refuse(fault{code, state}, sallyport.ErrDenied, "the database server refused the login: "+text, "").because(cause)
	r.wire = payload
	return r
}

// rejected explains the loss of the connection during the login. With TLS 1.3
// a server says only then that it does not like our certificate.
func (l *live) rejected(err error) error {
	name := l.sess.Resource.Name
	if op, ok := database.RemoteAlert(err); ok {
		return refuse(faultDenied(), sallyport.ErrDenied,
			fmt.Sprintf("database %s: the server rejected the agent's certificate: %s", name, op.Err.Error()),
			"the server's ssl_ca needs the cluster's database CA").because(err)
	}
	return unreachable(name, err)
}
