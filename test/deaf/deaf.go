// Package deaf plays connections whose far end takes no more, and still talks.
package deaf

import (
	"net"
	"sync"
	"sync/atomic"
	"syscall"
)

// Conn is one. What is written to it fails once Deafen was called; what is read
// from it does not.
type Conn struct {
	net.Conn
	deaf  atomic.Bool
	once  sync.Once
	noted chan struct{}
}

// New makes a connection that hears for now.
func New(c net.Conn) *Conn { return &Conn{Conn: c, noted: make(chan struct{})} }

// Deafen makes what is written from now on fail.
func (c *Conn) Deafen() { c.deaf.Store(true) }

// Noted is closed when something that was written has failed.
func (c *Conn) Noted() <-chan struct{} { return c.noted }

func (c *Conn) Write(p []byte) (int, error) {
	if c.deaf.Load() {
		c.once.Do(func() { close(c.noted) })
		return 0, syscall.EPIPE
	}
	return c.Conn.Write(p)
}
