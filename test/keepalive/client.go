// Package keepalive is an HTTP client whose requests go one after another on one
// connection, as net/http's do not: it gives a connection up that is not ready at
// once for the next request, which on a busy machine it may not be.
package keepalive

import (
	"bufio"
	"net"
	"net/http"
)

// New makes a client of conn, which is its caller's to close. A response's body must
// be read to its end before the next request.
func New(conn net.Conn) *http.Client {
	return &http.Client{Transport: &transport{conn: conn, in: bufio.NewReader(conn)}}
}

type transport struct {
	conn net.Conn
	in   *bufio.Reader
}

// RoundTrip implements http.RoundTripper. One goroutine calls it.
func (t *transport) RoundTrip(q *http.Request) (*http.Response, error) {
	if err := q.Write(t.conn); err != nil {
		return nil, err
	}
	return http.ReadResponse(t.in, q)
}
