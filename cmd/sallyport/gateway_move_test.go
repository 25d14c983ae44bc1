package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
)

//lint:file-ignore SA1019 a connection of HTTP/2 of its own, whose state can be asked for

// TestWorking: a drain waits for requests, and not for connections that are kept for
// the next one.
func TestWorking(t *testing.T) {
	cert := selfSigned(t, time.Hour, "gw.example.com")
	for _, protocol := range []string{"http/1.1", "h2"} {
		t.Run(protocol, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				life, end := context.WithCancel(t.Context())
				answer := make(chan struct{})
				w := newWebServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { <-answer }), slog.New(slog.DiscardHandler))
				ran := make(chan error, 1)
				go func() { ran <- w.run(life) }()
				counts := func(when string, open, working int) {
					t.Helper()
					if synctest.Wait(); int(w.open.Load()) != open || w.working() != working {
						t.Errorf("%s: %d connections are open, and %d work", when, w.open.Load(), w.working())
					}
				}
				client := &http.Client{}
				dial := func(context.Context, string, string) (net.Conn, error) {
					near, far := net.Pipe()
					server := tls.Server(far, &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{protocol}})
					go func() {
						if server.Handshake() == nil {
							w.serve(life, server)
						}
					}()
					client := tls.Client(near, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{protocol}})
					return client, client.Handshake()
				}
				if protocol == "h2" {
					client.Transport = &http2.Transport{DialTLSContext: func(ctx context.Context, network, addr string, _ *tls.Config) (net.Conn, error) {
						return dial(ctx, network, addr)
					}}
				} else {
					client.Transport = &http.Transport{DialTLSContext: dial}
				}
				for range 2 {
					asked := make(chan error, 1)
					go func() {
						resp, err := client.Get("https://gw.example.com/")
						if err == nil {
							err = resp.Body.Close()
						}
						asked <- err
					}()
					counts("a request is under way", 1, 1)
					answer <- struct{}{}
					if err := <-asked; err != nil {
						t.Fatal(err)
					}
					counts("it has been answered", 1, 0)
				}
				client.CloseIdleConnections()
				counts("it has gone", 0, 0)
				end()
				if err := <-ran; err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// TestDismiss: web clients go to the next process without a request being lost:
// those of HTTP/1 when they were answered, also when they ask or come only after the
// change, and those of HTTP/2 because they are told.
func TestDismiss(t *testing.T) {
	cert := selfSigned(t, time.Hour, "gw.example.com")
	synctest.Test(t, func(t *testing.T) {
		life, end := context.WithCancel(t.Context())
		w := newWebServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "answer") }), slog.New(slog.DiscardHandler))
		ran := make(chan error, 1)
		go func() { ran <- w.run(life) }()
		come := func(protocol string) *tls.Conn {
			near, far := net.Pipe()
			server := tls.Server(far, &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{protocol}})
			go func() {
				if server.Handshake() == nil {
					w.serve(life, server)
				}
			}()
			client := tls.Client(near, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{protocol}})
			if err := client.Handshake(); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			return client
		}
		ask := func(c *tls.Conn) *http.Response {
			t.Helper()
			go io.WriteString(c, "GET / HTTP/1.1\r\nHost: gw.example.com\r\n\r\n")
			resp, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				t.Fatal(err)
			}
			if b, err := io.ReadAll(resp.Body); err != nil || string(b) != "answer" {
				t.Errorf("%q, %v", b, err)
			}
			return resp
		}
		told := func(c *tls.Conn) bool {
			cc, err := (&http2.Transport{}).NewClientConn(c)
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(2 * dismissEvery)
			synctest.Wait()
			return cc.State().Closing || cc.State().Closed
		}

		early, idle, two := come("http/1.1"), come("http/1.1"), come("h2")
		if ask(idle).Close {
			t.Error("a connection is not kept")
		}
		synctest.Wait() // until the server is done with it, too: else it waits for a lock, which is no waiting here
		go w.dismiss(life)
		synctest.Wait()
		if n, err := idle.Read(make([]byte, 1)); err == nil {
			t.Errorf("an idle connection brings %d bytes", n)
		}
		late := come("http/1.1")
		for name, c := range map[string]*tls.Conn{"early": early, "late": late} {
			if !ask(c).Close {
				t.Errorf("%s: the connection is kept", name)
			}
			if _, err := c.Read(make([]byte, 1)); err == nil {
				t.Errorf("%s: open after its answer", name)
			}
		}
		for name, c := range map[string]*tls.Conn{"early": two, "late": come("h2")} {
			if !told(c) {
				t.Errorf("%s of HTTP/2: not told to go", name)
			}
		}
		time.Sleep(time.Minute)
		if n := w.open.Load(); n != 0 {
			t.Errorf("%d connections are open", n)
		}
		end()
		if err := <-ran; err != nil {
			t.Error(err)
		}
	})
}
