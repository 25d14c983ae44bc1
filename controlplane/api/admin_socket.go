package api

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/sallyport/sallyport"
)

// adminGrace is what requests get that are under way when the admin socket is
// closed.
const adminGrace = time.Second

// ServeAdmin serves the admin socket, a Unix socket with mode 0600, until ctx
// is done. Root and the owner of this process are let in, and audited by uid;
// who else got the socket opened is nobody to the table.
func ServeAdmin(ctx context.Context, ln net.Listener, handler http.Handler) error {
	srv := &http.Server{
		Handler: handler, ReadHeaderTimeout: headerTimeout, ReadTimeout: bodyTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeader,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			uid, err := adminUID(c)
			if err != nil {
				return ctx
			}
			return WithCaller(ctx, Caller{Identity: sallyport.Identity{Kind: sallyport.KindLocalAdmin, Name: uid}})
		},
	}
	closed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(closed)
		grace, cancel := context.WithTimeout(context.Background(), adminGrace)
		defer cancel()
		if srv.Shutdown(grace) != nil {
			srv.Close()
		}
	})
	err := srv.Serve(ln)
	if stop() {
		return err
	}
	<-closed
	return nil
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
