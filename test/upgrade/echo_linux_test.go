package upgrade

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"io"
	"math/big"
	"net"
	"sync"
	"testing"
	"time"
)

const echoName = "echo.example.com"

// echo is a TLS server behind the gateway, and its clients. What a client says
// comes back; TLS notices each byte that is not in its place.
type echo struct {
	t       testing.TB
	server  net.Listener
	gateway string
	stop    chan struct{}
	work    sync.WaitGroup

	mu   sync.Mutex
	kept []*guest
	said uint64
}

// guest is a client that stays.
type guest struct {
	conn *tls.Conn

	mu     sync.Mutex // one talk at a time
	failed error
}

func startEcho(t testing.TB) *echo {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{echoName}, NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp4", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{cert}, PrivateKey: key}}})
	if err != nil {
		t.Fatal(err)
	}
	e := &echo{t: t, server: l, stop: make(chan struct{})}
	e.work.Go(e.serve)
	t.Cleanup(func() {
		close(e.stop)
		l.Close()
		e.forget()
		e.work.Wait()
	})
	return e
}

func (e *echo) serve() {
	for {
		c, err := e.server.Accept()
		if err != nil {
			return
		}
		e.work.Go(func() {
			defer c.Close()
			_, _ = io.Copy(c, c) // ends with the client
		})
	}
}

func (e *echo) dial() (*tls.Conn, error) {
	d := tls.Dialer{NetDialer: &net.Dialer{Timeout: runWait}, Config: &tls.Config{ServerName: echoName, InsecureSkipVerify: true}}
	c, err := d.Dial("tcp4", e.gateway)
	if err != nil {
		return nil, err
	}
	return c.(*tls.Conn), nil
}

// talk sends a word and wants it back.
func (e *echo) talk(c *tls.Conn) error {
	e.mu.Lock()
	e.said++
	word := binary.BigEndian.AppendUint64(make([]byte, 24<<10), e.said)
	e.mu.Unlock()
	back := make([]byte, len(word))
	if err := c.SetDeadline(time.Now().Add(runWait)); err != nil {
		return err
	}
	wrote := make(chan error, 1)
	go func() {
		_, err := c.Write(word)
		wrote <- err
	}()
	_, err := io.ReadFull(c, back)
	if err != nil {
		c.Close()
	}
	if err := errors.Join(err, <-wrote); err != nil {
		return err
	}
	if string(back) != string(word) {
		return errors.New("another word came back")
	}
	return nil
}

// visit is a connection that comes, says a word, and goes.
func (e *echo) visit() error {
	c, err := e.dial()
	if err != nil {
		return err
	}
	defer c.Close()
	return e.talk(c)
}

// visits come until the test ends; what becomes of them is somebody else's to say.
func (e *echo) visits() {
	for range 8 {
		e.work.Go(func() {
			tick := time.NewTicker(40 * time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case <-e.stop:
					return
				case <-tick.C:
					_ = e.visit()
				}
			}
		})
	}
}

// stay opens connections that are kept.
func (e *echo) stay(n int) {
	e.t.Helper()
	for range n {
		c, err := e.dial()
		if err == nil {
			err = e.talk(c)
		}
		if err != nil {
			e.t.Fatal(err)
		}
		g := &guest{conn: c}
		e.mu.Lock()
		e.kept = append(e.kept, g)
		e.mu.Unlock()
		e.work.Go(func() { e.chat(g) })
	}
}

// ask is talk on a connection that is kept.
func (e *echo) ask(g *guest) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.failed == nil {
		g.failed = e.talk(g.conn)
	}
	return g.failed
}

// chat keeps the connection busy.
func (e *echo) chat(g *guest) {
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for e.ask(g) == nil {
		select {
		case <-e.stop:
			return
		case <-tick.C:
		}
	}
}

// alive is how many of them still answer.
func (e *echo) alive() (n int) {
	e.mu.Lock()
	kept := e.kept
	e.mu.Unlock()
	for _, g := range kept {
		if e.ask(g) == nil {
			n++
		}
	}
	return n
}

// sound wants all of them to answer.
func (e *echo) sound() {
	e.t.Helper()
	e.mu.Lock()
	kept := len(e.kept)
	e.mu.Unlock()
	if n := e.alive(); n != kept {
		e.t.Errorf("of %d connections that were kept %d live", kept, n)
	}
}

// forget closes them, and says how many lived.
func (e *echo) forget() int {
	n := e.alive()
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, g := range e.kept {
		g.conn.Close()
	}
	e.kept = nil
	return n
}
