package main

import (
	"context"
	"net"
	"time"

	"github.com/sallyport/sallyport/alpn"
	"github.com/sallyport/sallyport/bench/flow"
)

// copyProxy is what one writes in Go on an afternoon: read the hello, dial, and
// io.Copy both ways, which splices between TCP connections.
func copyProxy(ctx context.Context, listen string, routes []flow.Route) error {
	to := map[string]string{}
	for _, r := range routes {
		to[r.Name] = r.Address
	}
	return listenUntil(ctx, listen, func(conn net.Conn) { copyOne(conn.(*net.TCPConn), to) })
}

func copyOne(client *net.TCPConn, to map[string]string) {
	defer client.Close()
	client.SetReadDeadline(time.Now().Add(upWait))
	first, name, err := readHello(client)
	if err != nil || to[name] == "" {
		return
	}
	client.SetReadDeadline(time.Time{}) // as such a proxy does
	c, err := net.Dial("tcp", to[name])
	if err != nil {
		return
	}
	server := c.(*net.TCPConn)
	defer server.Close()
	if _, err := server.Write(first); err != nil {
		return
	}
	join(client, server)
}

// readHello reads until the hello is whole.
func readHello(conn net.Conn) (first []byte, name string, err error) {
	var hello alpn.Hello
	room := make([]byte, 0, 4<<10)
	for {
		if len(room) == cap(room) {
			room = append(room, 0)[:len(room)]
		}
		n, err := conn.Read(room[len(room):cap(room)])
		if err != nil {
			return nil, "", err
		}
		room = room[:len(room)+n]
		need, err := hello.Parse(room)
		if err != nil {
			return nil, "", err
		}
		if need == 0 {
			return room, string(hello.ServerName()), nil
		}
	}
}
