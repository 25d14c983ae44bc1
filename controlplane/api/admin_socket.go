package api

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/sallyport/sallyport"
)

// adminGrace is what requests get that are under way when the admin socket is
// closed.
const adminGrace = time.Second

// ServeAdmin serves the admin socket, a Unix socket with mode 0600, until ctx
// is done; what has been accepted by then is answered. Root and the owner of this
// process are let in, and audited by uid; who else got the socket opened is nobody
// to the table.
func ServeAdmin(ctx context.Context, ln net.Listener, handler http.Handler) error {
	open := &openConns{none: make(chan struct{})}
	srv := &http.Server{
		Handler: handler, ReadHeaderTimeout: headerTimeout, ReadTimeout: bodyTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeader,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			uid, err := adminUID(c)
			if err != nil {
				return ctx
			}
			return WithCaller(ctx, Caller{Identity: sallyport.Identity{Kind: sallyport.KindLocalAdmin, Name: uid}})
		},
		ConnState: open.note,
	}
	stop := context.AfterFunc(ctx, func() { ln.Close() })
	err := srv.Serve(ln) // has noted what it has accepted
	if stop() {
		return err
	}
	// Not Shutdown: from its beginning a request that has just been read is
	// dropped without a word, and its client cannot know that it was not served.
	srv.SetKeepAlivesEnabled(false)
	grace := time.NewTimer(adminGrace)
	defer grace.Stop()
	select {
	case <-open.last():
	case <-grace.C:
	}
	srv.Close()
	return nil
}

// openConns counts the connections of a server.
type openConns struct {
	mu      sync.Mutex
	n       int
	waiting bool          // no more begin
	none    chan struct{} // closed when none is left, of those that waiting has found
}

// note meets http.Server.ConnState.
func (o *openConns) note(_ net.Conn, s http.ConnState) {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch s {
	case http.StateNew:
		o.n++
	case http.StateClosed, http.StateHijacked:
		o.n--
		o.lookLocked()
	}
}

// last is closed when all connections have ended. No more begin.
func (o *openConns) last() <-chan struct{} {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.waiting = true
	o.lookLocked()
	return o.none
}

func (o *openConns) lookLocked() {
	if o.waiting && o.n == 0 {
		o.waiting = false
		close(o.none)
	}
}

func adminUID(c net.Conn) (string, error) {
	uc, ok := c.(*net.UnixConn)
	if !ok {
		return "", errors.New("not a Unix socket")
	}
	uid, err := peerUID(uc)
	if err != nil {
		return "", err
	}
	return adminName(uid, os.Geteuid())
}

// adminName lets root and the owner in.
func adminName(uid uint32, owner int) (string, error) {
	if uid != 0 && int(uid) != owner {
		return "", fmt.Errorf("uid %d is neither root nor the owner", uid)
	}
	return strconv.FormatUint(uint64(uid), 10), nil
}
