package jump

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/sshauth"
)

const (
	// linger is how long the node may take the last bytes of a client that has
	// closed its channel.
	linger = 10 * time.Second

	// patience is how long the node may take one piece of what a client sends. A
	// node's SSH always reads; what it does not take waits in memory here.
	patience = 2 * time.Minute

	// chunk is what is copied at once: the SSH library's largest packet.
	chunk = 32 << 10
)

// carry moves bytes both ways until both directions have ended, one has
// failed, or the connection ends. It closes both, and returns when the client
// has closed the channel too. A client that sends what has no meaning here,
// extended data or anything behind its end, is cut off.
func (c *connection) carry(near ssh.Channel, requests <-chan *ssh.Request, stream net.Conn, to destination) {
	far := &node{Conn: stream}
	c.carried(to, "T3003I", nil)
	cut := context.AfterFunc(c.life, func() { far.Close() })
	defer cut()
	var sent, received int64
	var moving, closing sync.WaitGroup
	up, closed := make(chan struct{}), make(chan struct{})
	moving.Go(func() {
		defer close(up)
		var err error
		if sent, err = move(far, near); err != nil || c.life.Err() != nil || closeWrite(stream) != nil {
			far.Close()
		}
	})
	moving.Go(func() {
		var err error
		if received, err = move(near, far); err != nil {
			near.Close()
			return
		}
		// An error means that the channel is closed already.
		_ = near.CloseWrite()
	})
	closing.Go(func() {
		ssh.DiscardRequests(requests) // until the client has closed the channel
		close(closed)
		// The node gets what is on its way to it, if it takes it.
		far.hurry()
		<-up
		far.Close()
	})
	closing.Go(func() { c.silent(near.Stderr(), closed) })
	closing.Go(func() {
		<-up
		sshauth.Forget(near) // what was on its way when the node went
		c.silent(near, closed)
	})
	moving.Wait()
	near.Close()
	far.Close()
	closing.Wait()
	c.carried(to, "T3003S", map[string]any{"bytes_sent": sent, "bytes_received": received})
}

// silent cuts the client off when something comes on a stream on which nothing
// may, before the channel is closed.
func (c *connection) silent(r io.Reader, closed <-chan struct{}) {
	if sshauth.Spoke(r, closed) {
		c.cut(sallyport.Denied("the client sent data where none may be", ""))
	}
}

// node is the stream to a node, which must take what is written in time.
type node struct {
	net.Conn
	mu   sync.Mutex
	last bool // the deadline stands; guarded by mu
}

func (n *node) Write(b []byte) (int, error) {
	if err := n.extend(); err != nil {
		return 0, err
	}
	return n.Conn.Write(b)
}

func (n *node) extend() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.last {
		return nil
	}
	return n.SetWriteDeadline(time.Now().Add(patience))
}

// hurry leaves little time for all that is still to be written.
func (n *node) hurry() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.last = true
	_ = n.SetWriteDeadline(time.Now().Add(linger)) // an error means that it is closed
}

// move copies until the end of src.
func move(dst io.Writer, src io.Reader) (moved int64, err error) {
	buf := make([]byte, chunk)
	for {
		n, err := src.Read(buf)
		if n > 0 {
			if _, werr := dst.Write(buf[:n]); werr != nil {
				return moved, werr
			}
			moved += int64(n)
		}
		if errors.Is(err, io.EOF) {
			return moved, nil
		}
		if err != nil {
			return moved, err
		}
	}
}

func closeWrite(conn net.Conn) error {
	half, ok := conn.(interface{ CloseWrite() error })
	if !ok {
		return fmt.Errorf("%T cannot be half closed", conn)
	}
	return half.CloseWrite()
}
