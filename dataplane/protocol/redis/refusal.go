package redis

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/sallyport/sallyport"
)

// Codes of errors, by which clients tell them apart: the first word of the text.
const (
	codeError     = "ERR"
	codeNoAuth    = "NOAUTH"    // who has named no user
	codeNoPerm    = "NOPERM"    // what may not be
	codeWrongPass = "WRONGPASS" // what the server does not take
)

// refusal is why a command or a client is refused: what it is told, as a Redis
// error. Its Error is the fact.
type refusal struct {
	*sallyport.Problem
	code string
}

// Unwrap lets errors.As find the Problem, and errors.Is its kind and cause.
func (r *refusal) Unwrap() error { return r.Problem }

// refuse makes a refusal with a fact and a hint.
func refuse(code string, kind error, fact, hint string) *refusal {
	return &refusal{Problem: &sallyport.Problem{Kind: kind, Fact: fact, Hint: hint}, code: code}
}

// because adds the cause, which is for the log only.
func (r *refusal) because(cause error) *refusal {
	r.Cause = cause
	return r
}

// malformedf says as servers do what is wrong with the protocol.
func malformedf(format string, args ...any) *refusal {
	return refuse(codeError, sallyport.ErrInvalid, "Protocol error: "+fmt.Sprintf(format, args...), "")
}

func tooLong(name []byte) *refusal {
	return refuse(codeError, sallyport.ErrExhausted, fmt.Sprintf("%q with more than %d bytes is not served", name, bufferSize), "")
}

// refusalOf turns any error into what may be told: a Problem's fact, and of
// anything else only that it happened.
func refusalOf(err error, code string) *refusal {
	if r, ok := errors.AsType[*refusal](err); ok {
		return r
	}
	if p, ok := errors.AsType[*sallyport.Problem](err); ok {
		return &refusal{Problem: p, code: code}
	}
	return refuse(codeError, sallyport.ErrUnavailable, "the session cannot be served", "ask your administrator to look at the agent's log").because(err)
}

// ended is the refusal of a session that must end now.
func ended(ctx context.Context) *refusal {
	cause := context.Cause(ctx)
	if p, ok := errors.AsType[*sallyport.Problem](cause); ok {
		return &refusal{Problem: p, code: codeNoPerm}
	}
	return refuse(codeError, sallyport.ErrUnavailable, "the session was ended by the agent", "connect again").because(cause)
}

// lineMax is how long an error may be.
const lineMax = 1024

// reply is the error that says it. There is one text, so the hint stands behind
// the fact.
func (r *refusal) reply() []byte {
	text := r.code + " " + r.Fact
	if r.Hint != "" {
		text += " (" + r.Hint + ")"
	}
	text = strings.Map(func(c rune) rune {
		if unicode.IsControl(c) {
			return ' '
		}
		return c
	}, text)
	for len(text) > lineMax {
		_, n := utf8.DecodeLastRuneInString(text)
		text = text[:len(text)-n]
	}
	return []byte("-" + text + "\r\n")
}

// dismiss tells a client why, and says goodbye, within the time given. It reads
// what the client still sends, because a close with bytes unread would be a
// reset, and the reset would overtake the error.
func dismiss(conn net.Conn, r *refusal, farewell time.Duration) {
	until := time.Now().Add(farewell)
	hard := time.AfterFunc(farewell, func() { hangUp(conn) })
	defer hard.Stop()
	conn.SetWriteDeadline(until)
	if _, err := conn.Write(r.reply()); err != nil {
		return
	}
	part(conn, until)
}

// part ends our half of a connection in order and gives the other side until
// the given time to end its own.
func part(conn net.Conn, until time.Time) {
	closeWrite(conn)
	conn.SetReadDeadline(until)
	io.Copy(io.Discard, io.LimitReader(conn, 1<<20))
}

// closeWrite ends the sending half: with a close_notify when it is TLS, and
// with a FIN below.
func closeWrite(conn net.Conn) {
	if w, ok := conn.(interface{ CloseWrite() error }); ok {
		w.CloseWrite()
	}
	if t, ok := conn.(interface{ NetConn() net.Conn }); ok {
		closeWrite(t.NetConn())
	}
}

// hangUp closes a connection at once. Closing TLS in order may wait for a peer
// that does not read; closing what is below does not.
func hangUp(conn net.Conn) {
	if t, ok := conn.(interface{ NetConn() net.Conn }); ok {
		t.NetConn().Close()
		return
	}
	conn.Close()
}

// past is a deadline that is over.
func past() time.Time { return time.Unix(1, 0) }
