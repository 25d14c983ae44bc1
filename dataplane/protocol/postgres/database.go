package postgres

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/database"
)

// backend is our connection to the real server.
type backend struct {
	conn *tls.Conn
	r    *bufio.Reader // reads conn; what is behind ReadyForQuery may be in it
}

// reach connects, the first time that it is called; later calls wait for that. It
// is called while the session's start is being written down: nothing but TLS
// passes until that is done.
func (l *live) reach(ctx context.Context) {
	l.once.Do(func() { l.db, l.failed = l.connect(ctx) })
}

// leave is for a session that was refused.
func (l *live) leave() {
	if l.db != nil {
		database.HangUp(l.db.conn)
	}
}

// connect dials the server, agrees on TLS with the certificate of the user,
// and is done when the server may be spoken to.
func (l *live) connect(ctx context.Context) (*backend, error) {
	dialing, cancel := context.WithTimeout(ctx, l.bounds.Connect)
	defer cancel()
	conn, err := l.dial(dialing)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ended(context.Cause(ctx))
		}
		return nil, err
	}
	return &backend{conn: conn, r: bufio.NewReaderSize(conn, 4<<10)}, nil
}

// dial is the part of connect that a cancel request needs too.
func (l *live) dial(ctx context.Context) (*tls.Conn, error) {
	s, name := l.server, l.name
	cert, err := s.Certificate(ctx, name, l.first.user)
	if err != nil {
		return nil, fmt.Errorf("database %s: no certificate for its user: %w", name, err)
	}
	want := database.Want{Target: s.Target, Certificate: cert}
	if s.Roots != nil {
		want.Cluster = s.Roots()
	}
	return s.memory.Connect(want, func(config *tls.Config) (*tls.Conn, error) { return s.secure(ctx, config, name) })
}

// secure makes a connection and agrees on TLS.
func (s *Server) secure(ctx context.Context, config *tls.Config, name string) (*tls.Conn, error) {
	raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", s.Target.Address)
	if err != nil {
		return nil, unreachable(name, err)
	}
	stop := context.AfterFunc(ctx, func() { raw.Close() })
	conn := database.Client(raw, config)
	err = requestTLS(raw, name)
	if err == nil {
		err = handshake(ctx, conn, name)
	}
	if !stop() {
		err = unreachable(name, ctx.Err())
	}
	if err != nil {
		raw.Close()
		return nil, err
	}
	return conn, nil
}

// requestTLS asks a server for TLS ("SSL Session Encryption"). It reads one
// byte only: what someone puts behind it before TLS would have to be a TLS
// record (CVE-2021-23222).
func requestTLS(raw net.Conn, name string) error {
	request := binary.BigEndian.AppendUint32([]byte{0, 0, 0, 8}, sslCode)
	if _, err := raw.Write(request); err != nil {
		return unreachable(name, err)
	}
	var answer [1]byte
	if _, err := io.ReadFull(raw, answer[:]); err != nil {
		return unreachable(name, err)
	}
	if answer[0] != 'S' {
		return refuse(stateUnableToConnect, sallyport.ErrUnavailable,
			fmt.Sprintf("database %s: the server does not offer TLS", name), `set "ssl = on" in the server's postgresql.conf`)
	}
	return nil
}

func handshake(ctx context.Context, conn *tls.Conn, name string) error {
	err := conn.HandshakeContext(ctx)
	if err == nil {
		return nil
	}
	if wrong, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return refuse(stateUnableToConnect, sallyport.ErrUnavailable,
			fmt.Sprintf("database %s: the server's certificate is not trusted", name),
			"have it issued by the cluster's database CA for the name that the agent dials, or give the agent its CA").because(wrong)
	}
	return unreachable(name, err)
}

// unreachable says why a server could not be reached, without its address.
func unreachable(name string, err error) *refusal {
	return refuse(stateUnableToConnect, sallyport.ErrUnavailable, fmt.Sprintf("database %s %s", name, database.Unreachable(err)),
		"ask whether the database server is up and trusts the cluster's database CA; its log says").because(err)
}

// greetingMax bounds what a server may send before ReadyForQuery.
const greetingMax = 64 << 10

// login logs in and gives the client what the server said to that.
func (l *live) login(ctx context.Context, db *backend) error {
	if ctx.Err() != nil { // while the start was being written down
		return ended(context.Cause(ctx))
	}
	until := time.Now().Add(l.bounds.Connect)
	db.conn.SetDeadline(until)
	l.client.SetWriteDeadline(until)
	stop := context.AfterFunc(ctx, func() { db.conn.SetDeadline(database.Past()) })
	hello, err := l.greet(db)
	if !stop() {
		return ended(context.Cause(ctx))
	}
	if err != nil {
		return err
	}
	if _, err := l.client.Write(hello); err != nil {
		return database.LostClient(err)
	}
	db.conn.SetDeadline(time.Time{}) // logged in: a query may take as long as it likes
	l.client.SetWriteDeadline(time.Time{})
	return nil
}

// greet sends the StartupMessage and returns what the client is to be sent: the
// server's messages up to ReadyForQuery, with a BackendKeyData of our own.
func (l *live) greet(db *backend) ([]byte, error) {
	name := l.name
	if _, err := db.conn.Write(l.first.append(nil)); err != nil {
		return nil, rejected(name, database.LastWords(db.conn, err))
	}
	hello, err := l.negotiate()
	if err != nil {
		return nil, err
	}
	for budget := greetingMax; ; {
		message, err := readMessage(db.r, budget)
		if err != nil {
			return nil, rejected(name, err)
		}
		budget -= len(message)
		switch body := message[headerSize:]; message[0] {
		case msgAuthentication:
			if err := l.authenticated(body); err != nil {
				return nil, err
			}
		case msgErrorResponse:
			return nil, l.refusedBy(message)
		case msgBackendKeyData:
			if message, err = l.rename(body); err != nil {
				return nil, err
			}
		case msgReadyForQuery:
			return append(hello, message...), nil
		case msgParameterStatus, msgNotice:
		default:
			return nil, unreachable(name, fmt.Errorf("message of type %q during the login", message[0]))
		}
		hello = append(hello, message...)
	}
}

// negotiate answers a client that wants a newer minor version of the protocol
// or options of it (SendNegotiateProtocolVersion): the server speaks 3.0 and
// knows no option.
func (l *live) negotiate() ([]byte, error) {
	if l.first.minor == 0 && len(l.first.unknown) == 0 {
		return nil, nil
	}
	// The server sends the whole version, not its minor half, and clients
	// expect that.
	m := pgproto3.NegotiateProtocolVersion{NewestMinorProtocol: protocol30, UnrecognizedOptions: l.first.unknown}
	return m.Encode(nil)
}

// readMessage reads one whole message of at most limit bytes.
func readMessage(r io.Reader, limit int) ([]byte, error) {
	var head [headerSize]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	length := binary.BigEndian.Uint32(head[1:])
	if length < 4 || int64(length)+1 > int64(limit) {
		return nil, fmt.Errorf("message of type %q with the length %d during the login", head[0], length)
	}
	message := make([]byte, 1+int(length))
	copy(message, head[:])
	_, err := io.ReadFull(r, message[headerSize:])
	return message, err
}

// authenticated accepts AuthenticationOk and explains everything else.
func (l *live) authenticated(body []byte) error {
	if len(body) >= 4 && binary.BigEndian.Uint32(body) == pgproto3.AuthTypeOk {
		return nil
	}
	return refuse(stateNotAuthorized, sallyport.ErrDenied,
		fmt.Sprintf("database %s: the server asks for a password, and the agent logs in with a certificate only", l.name),
		l.rule())
}

// rule is the hint that names the line that the server's administrator needs.
func (l *live) rule() string {
	return fmt.Sprintf(`the server's pg_hba.conf needs a line "hostssl %s %s <address of the agent> cert", before others that match, and its ssl_ca_file the database CA of %s`,
		hbaWord(l.first.database), hbaWord(l.first.user), l.server.Cluster)
}

// hbaWord writes a name as pg_hba.conf wants it.
func hbaWord(name string) string {
	for _, c := range []byte(name) {
		if c != '_' && (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') {
			return `"` + name + `"`
		}
	}
	return name
}

// refusedBy passes the server's own error on, unless it tells what is between
// the agent and the server: the lack of a line in pg_hba.conf names the agent's
// address.
func (l *live) refusedBy(message []byte) error {
	var e pgproto3.ErrorResponse
	if err := e.Decode(message[headerSize:]); err != nil {
		return unreachable(l.name, err)
	}
	cause := fmt.Errorf("%s %s: %s", e.Severity, e.Code, e.Message)
	if e.Routine == "ClientAuthentication" {
		return refuse(stateNotAuthorized, sallyport.ErrDenied,
			fmt.Sprintf("database %s: the server does not accept user %q for database %q with the agent's certificate", l.name, l.first.user, l.first.database),
			l.rule()).because(cause)
	}
	r := refuse(e.Code, sallyport.ErrDenied, "the database server refused the login: "+e.Message, e.Hint).because(cause)
	r.wire = message
	return r
}

// rejected explains the loss of the connection during the login. With TLS 1.3
// a server says only then that it does not like our certificate.
func rejected(name string, err error) error {
	if op, ok := database.RemoteAlert(err); ok {
		return refuse(stateNotAuthorized, sallyport.ErrDenied,
			fmt.Sprintf("database %s: the server rejected the agent's certificate: %s", name, op.Err.Error()),
			"the server's ssl_ca_file needs the cluster's database CA").because(err)
	}
	r := unreachable(name, err)
	r.state = stateConnectionLost
	return r
}
