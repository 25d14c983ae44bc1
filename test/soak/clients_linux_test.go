package soak

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"syscall"
	"time"
)

const (
	// clientPatience is how long anything may take in which the gateway has a
	// part. It is far above what a busy machine needs: only what hangs meets it.
	clientPatience = 60 * time.Second

	stallPatience = 300 * time.Millisecond
)

// client is one use of the gateway, from connect to close. An error is a fault
// of the gateway.
type client struct {
	name   string
	weight int // of a hundred or so
	use    func(g *load) error
}

// clients are what people and their machines do.
func clients() []client {
	return []client{
		{"ping", 30, func(g *load) error { return g.ping("echo", 1+rand.IntN(30)) }},
		{"bulk", 12, func(g *load) error { return g.bulk("echo", 1+rand.IntN(4<<20)) }},
		{"short stream", 20, func(g *load) error { return g.bulk("echo", 1+rand.IntN(20<<10)) }},
		{"slow server", 2, func(g *load) error { return g.bulk("slow", 1+rand.IntN(32<<10)) }},
		{"server that comes and goes", 10, (*load).flapping},
		{"hello in pieces", 5, (*load).pieces},
		{"abort", 8, (*load).abort},
		{"server resets", 8, (*load).serverResets},
		{"server takes nothing", 2, (*load).serverStalls},
		{"server is down", 5, (*load).serverDown},
		{"unknown name", 5, (*load).unknown},
		{"garbage", 4, (*load).garbage},
		{"half a hello", 6, (*load).halfHello},
		{"nothing", 4, (*load).nothing},
	}
}

// hello is a ClientHello as crypto/tls writes it.
func hello(name string) []byte {
	var out recorder
	_ = tls.Client(&out, &tls.Config{ServerName: name + ".soak.test", MinVersion: tls.VersionTLS13}).Handshake()
	return out.Bytes()[:5+int(out.Bytes()[3])<<8+int(out.Bytes()[4])]
}

// recorder is a connection that keeps what is written and then ends.
type recorder struct {
	net.Conn
	bytes.Buffer
}

func (r *recorder) Read([]byte) (int, error)         { return 0, io.EOF }
func (r *recorder) Write(b []byte) (int, error)      { return r.Buffer.Write(b) }
func (r *recorder) Close() error                     { return nil }
func (r *recorder) SetDeadline(time.Time) error      { return nil }
func (r *recorder) SetWriteDeadline(time.Time) error { return nil }

func (g *load) dial() (*net.TCPConn, error) {
	// Everybody comes from somewhere else: what one does is not held against
	// the others.
	from := net.IPv4(127, byte(1+rand.IntN(250)), byte(rand.IntN(256)), byte(1+rand.IntN(254)))
	d := net.Dialer{Timeout: clientPatience, LocalAddr: &net.TCPAddr{IP: from}}
	c, err := d.Dial("tcp", g.gateway)
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	return c.(*net.TCPConn), c.SetDeadline(time.Now().Add(clientPatience))
}

// open connects and says the hello of a name.
func (g *load) open(name string) (*net.TCPConn, error) {
	c, err := g.dial()
	if err != nil {
		return nil, err
	}
	if _, err := c.Write(g.hellos[name]); err != nil {
		c.Close()
		return nil, fmt.Errorf("hello: %w", err)
	}
	return c, nil
}

func (g *load) ping(name string, times int) error {
	c, err := g.open(name)
	if err != nil {
		return err
	}
	defer c.Close()
	return pings(c, times)
}

// flapping waits for the server's answer to its hello, as TLS does. Until then a
// server that has gone costs nothing: there is another.
func (g *load) flapping() error {
	c, err := g.open("flap")
	if err != nil {
		return err
	}
	defer c.Close()
	var first [1]byte
	if _, err := io.ReadFull(c, first[:]); err != nil || first[0] != greeting {
		return fmt.Errorf("greeting %v: %w", first, err)
	}
	return pings(c, 2)
}

// pings sends messages and wants each back.
func pings(c net.Conn, times int) error {
	b := make([]byte, 1+rand.IntN(4096))
	back := make([]byte, len(b))
	for i := range times {
		fill(b, rand.Uint64())
		if _, err := c.Write(b); err != nil {
			return fmt.Errorf("message %d: %w", i, err)
		}
		if _, err := io.ReadFull(c, back); err != nil {
			return fmt.Errorf("answer %d, to %v: %w", i, c.LocalAddr(), err)
		}
		if !bytes.Equal(b, back) {
			return fmt.Errorf("answer %d is not the message", i)
		}
	}
	return nil
}

// fill writes numbers that tell where they stand.
func fill(b []byte, seed uint64) {
	r := rand.NewPCG(seed, uint64(len(b)))
	for len(b) >= 8 {
		v := r.Uint64()
		for i := range 8 {
			b[i] = byte(v >> (8 * i))
		}
		b = b[8:]
	}
	for i := range b {
		b[i] = byte(r.Uint64())
	}
}

// bulk streams size bytes, ends its half, and wants all of them and the end.
func (g *load) bulk(name string, size int) error {
	c, err := g.open(name)
	if err != nil {
		return err
	}
	defer c.Close()
	sent := make([]byte, size)
	fill(sent, rand.Uint64())
	wrote := make(chan error, 1)
	go func() {
		_, err := c.Write(sent)
		wrote <- errors.Join(err, c.CloseWrite())
	}()
	back, err := io.ReadAll(io.LimitReader(c, int64(size)+1))
	if werr := <-wrote; werr != nil || err != nil {
		return fmt.Errorf("after %d of %d bytes: %w", len(back), size, errors.Join(werr, err))
	}
	if !bytes.Equal(sent, back) {
		return fmt.Errorf("%d bytes back of %d, or others", len(back), size)
	}
	g.verified.Add(int64(size))
	return nil
}

// pieces sends its hello in many small pieces.
func (g *load) pieces() error {
	c, err := g.dial()
	if err != nil {
		return err
	}
	defer c.Close()
	for h := g.hellos["echo"]; len(h) > 0; {
		n := min(len(h), 1+rand.IntN(200))
		if _, err := c.Write(h[:n]); err != nil {
			return fmt.Errorf("hello: %w", err)
		}
		h = h[n:]
	}
	return pings(c, 2)
}

// abort resets in the middle of a transfer.
func (g *load) abort() error {
	c, err := g.open("echo")
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetLinger(0); err != nil {
		return err
	}
	if err := c.SetWriteDeadline(time.Now().Add(stallPatience)); err != nil {
		return err
	}
	_, _ = c.Write(make([]byte, rand.IntN(1<<20))) // nobody reads: it may well block
	return nil
}

// serverResets wants the server's reset: an end would make half an answer look
// whole. The system tells of it once, to whoever asks first: that may be who writes.
func (g *load) serverResets() error {
	c, err := g.open("reset")
	if err != nil {
		return err
	}
	defer c.Close()
	wrote := make(chan error, 1)
	go func() {
		_, err := c.Write(make([]byte, 128<<10))
		wrote <- err
	}()
	_, err = io.Copy(io.Discard, onlyReader{c})
	c.Close()
	if err = errors.Join(err, <-wrote); !errors.Is(err, syscall.ECONNRESET) {
		return fmt.Errorf("a server's reset arrived as %v", err)
	}
	return nil
}

func (g *load) serverStalls() error {
	c, err := g.open("stall")
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetWriteDeadline(time.Now().Add(stallPatience)); err != nil {
		return err
	}
	_, _ = c.Write(make([]byte, 32<<20)) // ends with the deadline
	return c.SetLinger(0)
}

// serverDown wants an answer, whichever, and soon.
func (g *load) serverDown() error { return g.refused(g.hellos["down"]) }

func (g *load) unknown() error { return g.refused(g.hellos["nobody"]) }

// refused sends b and wants the connection to be over.
func (g *load) refused(b []byte) error {
	c, err := g.dial()
	if err != nil {
		return err
	}
	defer c.Close()
	_, _ = c.Write(b)
	if _, err := io.Copy(io.Discard, onlyReader{c}); errors.Is(err, syscall.ETIMEDOUT) || isTimeout(err) {
		return fmt.Errorf("refused, but not closed: %w", err)
	}
	return nil
}

func isTimeout(err error) bool {
	var t net.Error
	return errors.As(err, &t) && t.Timeout()
}

func (g *load) garbage() error {
	b := make([]byte, 1+rand.IntN(8192))
	fill(b, rand.Uint64())
	b[0] |= 0x80 // nothing that begins like this is known
	return g.refused(b)
}

// halfHello goes away in the middle, one way or another.
func (g *load) halfHello() error {
	c, err := g.dial()
	if err != nil {
		return err
	}
	defer c.Close()
	h := g.hellos["echo"]
	_, _ = c.Write(h[:1+rand.IntN(len(h)-1)])
	switch rand.IntN(3) {
	case 0:
		return c.SetLinger(0)
	case 1:
		_ = c.CloseWrite()
		_, _ = io.Copy(io.Discard, onlyReader{c})
	}
	return nil
}

func (g *load) nothing() error {
	c, err := g.dial()
	if err != nil {
		return err
	}
	defer c.Close()
	if rand.IntN(2) == 0 {
		return c.SetLinger(0)
	}
	return nil
}
