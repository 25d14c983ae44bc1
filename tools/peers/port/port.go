// Package port reserves a TCP port for a server that another process will start.
//
// Who asks the kernel for any port and lets go of it may find it in use a moment
// later: it is a free port like any other, for whoever connects or listens next.
// A port on which a connection has just ended (TIME_WAIT, RFC 9293 section 3.6.1)
// is given to nobody who asks for any, and can be had by who asks for this one with
// SO_REUSEADDR, as servers do: ip(7), socket(7).
package port

import (
	"errors"
	"net"
)

// Reserve returns an address of the loopback that stays free for about a minute.
func Reserve() (address string, err error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	client, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		return "", err
	}
	server, err := l.Accept()
	if err != nil {
		return "", errors.Join(err, client.Close())
	}
	// The side that closes first is the one that keeps the port in TIME_WAIT.
	return l.Addr().String(), errors.Join(server.Close(), ended(client), client.Close())
}

// ended waits for the other side's end: closed before it, ours would keep it.
func ended(c net.Conn) error {
	_, err := c.Read(make([]byte, 1))
	if err == nil {
		return errors.New("a stranger's byte")
	}
	return nil
}
