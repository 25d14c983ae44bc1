package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/alpn"
	"github.com/sallyport/sallyport/tools/peers/redis"
)

// redisDatabase is the resource's name.
const redisDatabase = "cache"

// startRedis starts Redis where there is one. Its users need no password.
func (w *world) startRedis(context.Context) (err error) {
	w.redis, err = redis.Start(redis.Options{
		Cert: w.databases.cert, Key: w.databases.key, ClientCA: w.databases.clientCAs,
		ACL: []string{"user default off", "user " + person + " on nopass ~* &* +@all"},
	})
	if errors.Is(err, redis.ErrMissing) {
		return nil
	}
	return err
}

func (w *world) redisEngine() engine {
	e := engine{name: "redis", title: "Redis", client: "a client of RESP"}
	if w.redis == nil {
		e.missing = "redis-server"
		return e
	}
	e.through, e.straight = w.redisThrough, w.redisStraight
	return e
}

func (w *world) redisThrough(ctx context.Context) (databaseClient, error) {
	d, err := w.dialer()
	if err != nil {
		return nil, err
	}
	conn, err := d.DialResource(ctx, sallyport.KindDatabase, redisDatabase, alpn.DB1)
	if err != nil {
		return nil, err
	}
	return openRedis(conn)
}

func (w *world) redisStraight(ctx context.Context) (databaseClient, error) {
	cert, err := tls.LoadX509KeyPair(w.databases.clientCert, w.databases.clientKey)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(w.databases.cas) {
		return nil, errors.New("no certificate of the database CA")
	}
	d := tls.Dialer{Config: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{cert}}}
	conn, err := d.DialContext(ctx, "tcp", w.redis.Addr)
	if err != nil {
		return nil, err
	}
	return openRedis(conn)
}

// redisClient speaks as much of RESP as it measures: arrays of bulk strings
// there, one answer back.
type redisClient struct {
	conn net.Conn
	in   *bufio.Reader
	out  *bufio.Writer
}

// openRedis owns conn.
func openRedis(conn net.Conn) (databaseClient, error) {
	c := &redisClient{conn, bufio.NewReaderSize(conn, 64<<10), bufio.NewWriterSize(conn, 64<<10)}
	if _, err := c.do("AUTH", person, "none"); err != nil {
		conn.Close()
		return nil, err
	}
	return c, nil
}

// do returns how long the answer is.
func (c *redisClient) do(words ...string) (int, error) {
	if err := c.conn.SetDeadline(time.Now().Add(runWait)); err != nil {
		return 0, err
	}
	fmt.Fprintf(c.out, "*%d\r\n", len(words))
	for _, w := range words {
		fmt.Fprintf(c.out, "$%d\r\n", len(w))
		c.out.WriteString(w)
		c.out.WriteString("\r\n")
	}
	if err := c.out.Flush(); err != nil {
		return 0, err
	}
	line, err := c.in.ReadSlice('\n')
	if err != nil {
		return 0, err
	}
	switch text := string(line[1 : len(line)-1]); line[0] {
	case '+':
		return len(text), nil
	case '$':
		n, err := strconv.Atoi(text[:len(text)-1])
		if err != nil || n < 0 || n > megabyte {
			return 0, fmt.Errorf("a string of %q bytes", text)
		}
		_, err = io.CopyN(io.Discard, c.in, int64(n)+2)
		return n, err
	}
	return 0, fmt.Errorf("%s: %q", words[0], line)
}

func (c *redisClient) ping(context.Context) error {
	_, err := c.do("PING")
	return err
}

func (c *redisClient) fetch(ctx context.Context, mb int) error {
	if err := c.store(ctx, 1); err != nil {
		return err
	}
	for range mb {
		n, err := c.do("GET", "value")
		if err != nil {
			return err
		}
		if n != megabyte {
			return fmt.Errorf("%d bytes of %d", n, megabyte)
		}
	}
	return nil
}

func (c *redisClient) store(_ context.Context, mb int) error {
	value := string(make([]byte, megabyte))
	for range mb {
		if _, err := c.do("SET", "value", value); err != nil {
			return err
		}
	}
	return nil
}

func (c *redisClient) close() { c.conn.Close() }
