package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/sallyport/sallyport/dataplane/dial"
)

// TestConnectThroughHTTPProxy: what the API client is given goes by CONNECT.
func TestConnectThroughHTTPProxy(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	asked := make(chan string, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(time.Minute))
		req, err := http.ReadRequest(bufio.NewReader(c))
		if err != nil {
			return
		}
		asked <- req.Method + " " + req.Host
		fmt.Fprint(c, "HTTP/1.1 200 OK\r\n\r\n")
		io.CopyN(c, c, 5)
	}()
	t.Cleanup(func() { l.Close(); <-done })
	t.Setenv("HTTPS_PROXY", "http://"+l.Addr().String())
	t.Setenv("NO_PROXY", "")
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	conn, err := dial.ByEnvironment(ctx, "tcp", "gw.test:443")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got := <-asked; got != "CONNECT gw.test:443" {
		t.Errorf("asked for %q", got)
	}
	io.WriteString(conn, "hello")
	if b, err := io.ReadAll(conn); string(b) != "hello" {
		t.Errorf("%q %v", b, err)
	}
}
