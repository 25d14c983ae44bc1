package redis

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/database"
)

// backend is our connection to the real server.
type backend struct{ *tls.Conn }

// reach connects, the first time that it is called; later calls wait for that. It
// is called while the session's start is being written down: nothing but TLS
// passes until that is done.
func (l *live) reach(ctx context.Context) {
	l.once.Do(func() { l.db, l.failed = l.connect(ctx) })
}

// leave is for a session that was refused.
func (l *live) leave() {
	if l.db != nil {
		database.HangUp(l.db)
	}
}

// connect reaches the server, with the certificate of the user. There is no way
// without TLS.
func (l *live) connect(ctx context.Context) (*backend, error) {
	dialing, cancel := context.WithTimeout(ctx, l.bounds.Connect)
	defer cancel()
	db, err := l.dial(dialing)
	if err != nil && ctx.Err() != nil {
		return nil, ended(context.Cause(ctx))
	}
	return db, err
}

// dial is connect without the session's end.
func (l *live) dial(ctx context.Context) (*backend, error) {
	s, name := l.server, l.name
	cert, err := s.Certificate(ctx, name, l.user)
	if err != nil {
		return nil, fmt.Errorf("database %s: no certificate for its user: %w", name, err)
	}
	want := database.Want{Target: s.Target, Certificate: cert}
	if s.Roots != nil {
		want.Cluster = s.Roots()
	}
	conn, err := s.memory.Connect(want, func(config *tls.Config) (*tls.Conn, error) { return l.secure(ctx, config) })
	if err != nil {
		return nil, err
	}
	return &backend{conn}, nil
}

func (l *live) secure(ctx context.Context, config *tls.Config) (*tls.Conn, error) {
	name := l.name
	raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", l.server.Target.Address)
	if err != nil {
		return nil, unreachable(name, err)
	}
	conn := database.Client(raw, config)
	if err := handshake(ctx, conn, name); err != nil {
		raw.Close()
		return nil, err
	}
	return conn, nil
}

func handshake(ctx context.Context, conn *tls.Conn, name string) error {
	err := conn.HandshakeContext(ctx)
	if err == nil {
		return nil
	}
	if wrong, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return refuse(codeError, sallyport.ErrUnavailable,
			fmt.Sprintf("database %s: the server's certificate is not trusted", name),
			"have it issued by the cluster's database CA for the name that the agent dials, or give the agent its CA").because(wrong)
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return refuse(codeError, sallyport.ErrUnavailable, fmt.Sprintf("database %s: the server does not speak TLS on this port", name),
			"set tls-port, tls-cert-file, tls-key-file and tls-ca-cert-file in the server's configuration").because(err)
	}
	return unreachable(name, err)
}

// unreachable says why a server could not be reached, without its address.
func unreachable(name string, err error) *refusal {
	if op, ok := database.RemoteAlert(err); ok {
		return refuse(codeNoPerm, sallyport.ErrDenied,
			fmt.Sprintf("database %s: the server rejected the agent's certificate: %s", name, op.Err.Error()),
			"the server's tls-ca-cert-file needs the cluster's database CA").because(err)
	}
	return refuse(codeError, sallyport.ErrUnavailable, fmt.Sprintf("database %s %s", name, database.Unreachable(err)),
		"ask whether the database server is up and trusts the cluster's database CA; its log says").because(err)
}

// prove makes the connection that of the session's user, and of nobody else:
//
//   - a server that takes the user from the certificate (tls-auth-clients-user
//     CN, Redis 8.6 and Valkey 9) has done so: ACL WHOAMI says;
//   - else AUTH with what the client gave, which is good for a user with that
//     password, and for one without (nopass);
//   - a client that has named no user is who the server takes it for without a
//     word, its default user, who may still have to give a password.
func (l *live) prove(ctx context.Context, db *backend, w *credentials) error {
	ctx, cancel := context.WithTimeout(ctx, l.bounds.Connect)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { db.SetDeadline(database.Past()) })
	err := l.exchange(db, w)
	if !stop() {
		return unreachable(l.name, ctx.Err())
	}
	return err
}

func (l *live) exchange(db *backend, w *credentials) error {
	who, err := l.ask(db, []byte("ACL"), []byte("WHOAMI"))
	if err != nil {
		return err
	}
	if who.is(l.user) {
		l.proved = true
		return nil
	}
	if !w.named {
		return l.asDefault(who)
	}
	auth := [][]byte{[]byte("AUTH"), []byte(l.user), []byte(w.password)}
	if l.user == defaultUser {
		auth = [][]byte{auth[0], auth[2]} // also before Redis 6
	}
	said, err := l.ask(db, auth...)
	if err != nil {
		return err
	}
	if said.kind == '+' && said.text == "OK" {
		return nil
	}
	return refuse(codeWrongPass, sallyport.ErrDenied,
		fmt.Sprintf("database %s: the server does not accept user %q with the agent's certificate and this password", l.name, l.user),
		l.account()).because(errors.New(said.text))
}

// asDefault checks that the server does not take us for anybody but its default
// user: not yet logged in is as good, nothing can be done so.
func (l *live) asDefault(who reply) error {
	for _, text := range []string{"NOAUTH ", "ERR ", "NOPERM this user has no permissions"} { // the last two: before ACLs, and before errors had names
		if who.kind == '-' && strings.HasPrefix(who.text, text) {
			return nil
		}
	}
	return refuse(codeNoPerm, sallyport.ErrDenied,
		fmt.Sprintf("database %s: the server takes the agent for another user than %q", l.name, defaultUser), "").because(errors.New(who.text))
}

// account is the hint that names what the server's administrator needs to say.
func (l *live) account() string {
	return fmt.Sprintf("the server needs an ACL user %s: with tls-auth-clients-user CN, or nopass, or the password that the client gives", l.user)
}

// reply is a server's answer of one line or one text.
type reply struct {
	kind byte
	text string
}

// is says that an answer to ACL WHOAMI means a user: by name, or because the
// error about the missing right has it.
func (r reply) is(user string) bool { return r.kind == '$' && r.text == user || r.denies(user) }

func (r reply) denies(user string) bool {
	return r.kind == '-' && strings.HasPrefix(r.text, "NOPERM User "+user+" has no permissions to run the 'acl")
}

// answerMax is how long an answer to a login may be.
const answerMax = 4 << 10

// ask sends one command and reads its answer.
func (l *live) ask(db *backend, args ...[]byte) (reply, error) {
	name := l.name
	if _, err := db.Write(appendCommand(nil, args...)); err != nil {
		return reply{}, unreachable(name, database.LastWords(db.Conn, err))
	}
	buf := make([]byte, 0, 512)
	for {
		r, size, err := answerOf(buf)
		if err == nil && size > 0 && size < len(buf) {
			err = errors.New("more than was asked for")
		}
		if err != nil {
			return reply{}, unreachable(name, err)
		}
		if size > 0 {
			return r, nil
		}
		if len(buf) == cap(buf) {
			if cap(buf) >= answerMax {
				return reply{}, unreachable(name, errors.New("a long answer to the login"))
			}
			buf = append(make([]byte, 0, 2*cap(buf)), buf...)
		}
		n, err := db.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		if n == 0 && err != nil {
			return reply{}, unreachable(name, err)
		}
	}
}

// answerOf reads an answer, and how many bytes it has; 0 when it is not whole.
func answerOf(b []byte) (reply, int, error) {
	end := bytes.Index(b, []byte("\r\n"))
	if end < 0 {
		return reply{}, 0, nil
	}
	switch b[0] {
	case '+', '-':
		return reply{b[0], string(b[1:end])}, end + 2, nil
	case '$':
		n, ok := integer(b[1 : end+1])
		if !ok || n < 0 || n > answerMax {
			return reply{}, 0, errors.New("an answer that is none")
		}
		size := end + 2 + int(n) + 2
		if len(b) < size {
			return reply{}, 0, nil
		}
		return reply{'$', string(b[end+2 : size-2])}, size, nil
	}
	return reply{}, 0, errors.New("an answer that is none")
}
