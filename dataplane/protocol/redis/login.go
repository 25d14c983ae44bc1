package redis

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/database"
)

// inlet reads a client's commands until its session's relay does.
type inlet struct {
	conn  net.Conn
	split *splitter
}

// read returns the client's next command, which must lie in the buffer.
func (in *inlet) read() (*command, error) {
	for {
		c, err := in.split.next()
		if c != nil || err != nil {
			return c, err
		}
		if in.split.stuck() {
			return nil, refuse(codeNoAuth, sallyport.ErrExhausted, fmt.Sprintf("a first command of more than %d bytes", bufferSize), "AUTH NAME PASSWORD comes first")
		}
		n, err := in.conn.Read(in.split.space())
		in.split.add(n)
		if err != nil && n == 0 {
			return nil, database.LostClient(err)
		}
	}
}

// first reads up to the command that says as whom the client comes: AUTH, or
// HELLO with AUTH; any other means the server's default user, and is left to be
// read again.
func (in *inlet) first(bounds Bounds) (*credentials, error) {
	in.conn.SetDeadline(time.Now().Add(bounds.Startup))
	c, err := in.read()
	var w credentials
	if err == nil {
		w, err = wanted(c)
	}
	if err == nil && !w.named {
		in.split.unread(c)
		w.user = defaultUser
	}
	if err == nil {
		err = checkUser(w.user)
	}
	if err != nil {
		if r, ok := errors.AsType[*refusal](err); ok {
			database.Dismiss(in.conn, r.reply(), bounds.Farewell)
			return nil, r
		}
		return nil, fmt.Errorf("the client sent no command: %w", err)
	}
	in.conn.SetDeadline(time.Time{}) // the door has proved who it is; roles decide from here
	return &w, nil
}

// wanted reads whom a command names, if it does.
func wanted(c *command) (credentials, error) {
	switch {
	case is(c.args[0], "auth"):
		return authOf(c)
	case is(c.args[0], "hello"):
		return helloOf(c)
	case isHTTP(c.args[0]):
		return credentials{}, notHTTP()
	}
	return credentials{}, nil
}

// tries is how many passwords a client may offer.
const tries = 5

// login has the server accept the user, and returns what the server is to be
// told first in the client's name. A password is asked of the client when the
// server wants one: then it may try again, as long as it names the same user.
func (l *live) login(ctx context.Context, db *backend, w *credentials) ([]byte, error) {
	if ctx.Err() != nil { // a lock that came while the start was written down
		return nil, ended(context.Cause(ctx))
	}
	stop := context.AfterFunc(ctx, func() { l.client.SetReadDeadline(database.Past()) })
	defer stop()
	l.client.SetDeadline(time.Now().Add(l.bounds.Login))
	left := tries
	for {
		err := l.prove(ctx, db, w)
		if err == nil {
			break
		}
		bad, ok := errors.AsType[*refusal](err)
		if left--; !ok || bad.code != codeWrongPass || left == 0 {
			return nil, l.orEnded(ctx, err)
		}
		if _, err := l.client.Write(bad.reply()); err != nil {
			return nil, l.orEnded(ctx, database.LostClient(err))
		}
		if w, err = l.again(); err != nil {
			return nil, l.orEnded(ctx, err)
		}
	}
	if w.named && w.hello == nil {
		if _, err := l.client.Write([]byte("+OK\r\n")); err != nil {
			return nil, l.orEnded(ctx, database.LostClient(err))
		}
	}
	if !stop() {
		return nil, ended(context.Cause(ctx))
	}
	l.client.SetDeadline(time.Time{})
	if !w.named { // its first command is still to be read
		return nil, nil
	}
	return w.hello, nil
}

// orEnded is the session's end, if that is why something failed.
func (l *live) orEnded(ctx context.Context, err error) error {
	if ctx.Err() == nil {
		return err
	}
	l.client.SetDeadline(time.Time{})
	return ended(context.Cause(ctx))
}

// again reads up to the next AUTH or HELLO of the session's user.
func (l *live) again() (*credentials, error) {
	for range 100 {
		c, err := l.in.read()
		if err != nil {
			return nil, err
		}
		w, err := wanted(c)
		switch {
		case err != nil:
			return nil, err
		case w.named && w.user == l.user:
			return &w, nil
		case w.named:
			return nil, anotherUser()
		}
		why := refuse(codeNoAuth, sallyport.ErrDenied, "Authentication required.", "")
		if _, err := l.client.Write(why.reply()); err != nil {
			return nil, database.LostClient(err)
		}
	}
	return nil, refuse(codeNoAuth, sallyport.ErrExhausted, "too many commands before the login", "")
}

func anotherUser() *refusal {
	return refuse(codeNoPerm, sallyport.ErrDenied, "another database user in the same session is not served", "connect again as that user")
}
