package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"

	driver "github.com/go-mysql-org/go-mysql/client"
	"github.com/go-mysql-org/go-mysql/mysql"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/alpn"
	"github.com/sallyport/sallyport/tools/peers/mariadb"
)

// mariaDatabase is the resource's name.
const mariaDatabase = "maria"

// startMariaDB starts MariaDB where there is one. Its user is known by a
// certificate, the agent's or a direct client's.
func (w *world) startMariaDB(context.Context) (err error) {
	w.mariadb, err = mariadb.Start(mariadb.Options{
		Cert: w.databases.cert, Key: w.databases.key, ClientCA: w.databases.clientCAs,
		SQL: []string{"CREATE USER " + person + " REQUIRE SUBJECT '/CN=" + person + "'", "CREATE DATABASE " + databaseName, "GRANT ALL ON " + databaseName + ".* TO " + person},
	})
	if errors.Is(err, mariadb.ErrMissing) {
		return nil
	}
	return err
}

func (w *world) mariaEngine() engine {
	e := engine{name: "mysql", title: "MariaDB", client: "go-mysql"}
	if w.mariadb == nil {
		e.missing = "mariadbd"
		return e
	}
	e.through, e.straight = w.mariaThrough, w.mariaStraight
	return e
}

// mariaThrough is the way of sally proxy db without its local port: the client
// speaks in clear inside the TLS that the agent ends.
func (w *world) mariaThrough(ctx context.Context) (databaseClient, error) {
	d, err := w.dialer()
	if err != nil {
		return nil, err
	}
	return openMaria(ctx, w.proxy, func(ctx context.Context, _, _ string) (net.Conn, error) {
		return d.DialResource(ctx, sallyport.KindDatabase, mariaDatabase, alpn.DB1)
	})
}

func (w *world) mariaStraight(ctx context.Context) (databaseClient, error) {
	cert, err := tls.LoadX509KeyPair(w.databases.clientCert, w.databases.clientKey)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(w.databases.cas) {
		return nil, errors.New("no certificate of the database CA")
	}
	config := &tls.Config{ServerName: "127.0.0.1", RootCAs: roots, Certificates: []tls.Certificate{cert}}
	return openMaria(ctx, w.mariadb.Addr, (&net.Dialer{}).DialContext, func(c *driver.Conn) error {
		c.SetTLSConfig(config)
		return nil
	})
}

func openMaria(ctx context.Context, addr string, dial driver.Dialer, o ...driver.Option) (databaseClient, error) {
	ctx, cancel := context.WithTimeout(ctx, runWait)
	defer cancel()
	o = append(o, func(c *driver.Conn) error {
		c.ReadTimeout, c.WriteTimeout = runWait, runWait // of each read and write
		return nil
	})
	conn, err := driver.ConnectWithDialer(ctx, "tcp", addr, person, "", databaseName, dial, o...)
	if err != nil {
		return nil, err
	}
	return mariaClient{conn}, nil
}

type mariaClient struct{ conn *driver.Conn }

func (c mariaClient) ping(context.Context) error {
	r, err := c.conn.Execute("SELECT 1")
	if err == nil {
		r.Close()
	}
	return err
}

func (c mariaClient) fetch(_ context.Context, mb int) error {
	want, got := mb*1000, 0
	var r mysql.Result
	err := c.conn.ExecuteSelectStreaming(fmt.Sprintf("SELECT REPEAT('x', 1000) FROM seq_1_to_%d", want), &r, func(row []mysql.FieldValue) error {
		got += len(row)
		return nil
	}, nil)
	if err != nil {
		return err
	}
	return exactly(got, want)
}

func (c mariaClient) store(_ context.Context, mb int) error {
	s, err := c.conn.Prepare("SELECT LENGTH(?)")
	if err != nil {
		return err
	}
	defer s.Close()
	value := make([]byte, megabyte)
	for range mb {
		r, err := s.Execute(value)
		if err != nil {
			return err
		}
		n, err := r.GetInt(0, 0)
		r.Close()
		if err != nil {
			return err
		}
		if n != megabyte {
			return fmt.Errorf("the server got %d bytes of %d", n, megabyte)
		}
	}
	return nil
}

func (c mariaClient) close() { _ = c.conn.Quit() }
