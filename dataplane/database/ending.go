package database

import (
	"fmt"
	"io"
	"net"
	"time"
)

// Lost is the end of a session by one of its two sides.
type Lost struct {
	server bool
	err    error
}

// LostClient is the end by the client: err is what reading or writing gave.
func LostClient(err error) *Lost { return &Lost{err: err} }

// LostServer is the end by the database.
func LostServer(err error) *Lost { return &Lost{server: true, err: err} }

// ByServer says that it was the database, and not the client.
func (l *Lost) ByServer() bool { return l.server }

// InOrder says that the side has ended its half, and is not broken.
func (l *Lost) InOrder() bool { return l.err == io.EOF }

func (l *Lost) Error() string {
	who := "the client"
	if l.server {
		who = "the database"
	}
	return fmt.Sprintf("%s: %v", who, l.err)
}

// Unwrap is what reading or writing gave.
func (l *Lost) Unwrap() error { return l.err }

// goodbyeBytes bound what is read of a client that is sent away.
const goodbyeBytes = 1 << 20

// Dismiss tells a client why by a message, unless there is nothing to tell, and says
// goodbye, within the time given.
// It reads what the client still sends, because a close with bytes unread would be
// a reset, and the reset would overtake the message.
func Dismiss(conn net.Conn, message []byte, farewell time.Duration) {
	until := time.Now().Add(farewell)
	hard := time.AfterFunc(farewell, func() { HangUp(conn) })
	defer hard.Stop()
	conn.SetWriteDeadline(until)
	if len(message) > 0 {
		if _, err := conn.Write(message); err != nil {
			return
		}
	}
	Part(conn, until)
}

// Part ends our half of a connection in order and gives the other side until the
// given time to end its own.
func Part(conn net.Conn, until time.Time) {
	CloseWrite(conn)
	conn.SetReadDeadline(until)
	io.Copy(io.Discard, io.LimitReader(conn, goodbyeBytes))
}

// CloseWrite ends the sending half: with a close_notify when it is TLS, and with a
// FIN below.
func CloseWrite(conn net.Conn) {
	if w, ok := conn.(interface{ CloseWrite() error }); ok {
		w.CloseWrite()
	}
	if t, ok := conn.(interface{ NetConn() net.Conn }); ok {
		CloseWrite(t.NetConn())
	}
}

// HangUp closes a connection at once. Closing TLS in order may wait for a peer that
// does not read; closing what is below does not.
func HangUp(conn net.Conn) {
	if t, ok := conn.(interface{ NetConn() net.Conn }); ok {
		t.NetConn().Close()
		return
	}
	conn.Close()
}

// Past is a deadline that is over.
func Past() time.Time { return time.Unix(1, 0) }
