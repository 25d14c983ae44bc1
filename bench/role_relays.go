package main

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"github.com/sallyport/sallyport/alpn"
	"github.com/sallyport/sallyport/bench/flow"
)

// copyProxy is what one writes in Go on an afternoon: read the hello, dial, and
// io.Copy both ways, which splices between TCP connections.
func copyProxy(ctx context.Context, listen string, routes []flow.Route) error {
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	to := map[string]string{}
	for _, r := range routes {
		to[r.Name] = r.Address
	}
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	for {
		conn, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			time.Sleep(10 * time.Millisecond)
			continue
		}
		go copyOne(conn.(*net.TCPConn), to) // ends with its connection, at the latest with the process
	}
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
	var back sync.WaitGroup
	back.Go(func() { copyHalf(client, server) })
	copyHalf(server, client)
	back.Wait()
}

func copyHalf(to, from *net.TCPConn) {
	_, _ = io.Copy(to, from) // how it ended shows at the other end
	to.CloseWrite()
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
