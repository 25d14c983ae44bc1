package etcd

import (
	"context"
	"crypto/tls"
	"log/slog"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/sallyport/sallyport"
)

// ClusterConfig says where an external etcd cluster is.
type ClusterConfig struct {
	Endpoints []string    // URLs: https://…, http://…, unix:///…
	TLS       *tls.Config // for https; with our client certificate
	Prefix    string      // default "sallyport/"
	Log       *slog.Logger
}

const (
	dialTimeout = 5 * time.Second
	// A member that vanished is noticed after these two; etcd's servers refuse
	// pings more often than every 5 s.
	keepAliveTime    = 10 * time.Second
	keepAliveTimeout = 3 * time.Second
)

// OpenCluster opens an external cluster, and asks it once, so that a wrong
// address or certificate is told at the start.
func OpenCluster(ctx context.Context, cfg ClusterConfig) (*Store, error) {
	if len(cfg.Endpoints) == 0 {
		return nil, invalid("etcd cluster without endpoints")
	}
	if err := checkPrefix(cfg.Prefix); err != nil {
		return nil, err
	}
	client, err := clientv3.New(clientv3.Config{
		Endpoints:            cfg.Endpoints,
		TLS:                  cfg.TLS,
		DialTimeout:          dialTimeout,
		DialKeepAliveTime:    keepAliveTime,
		DialKeepAliveTimeout: keepAliveTimeout,
		PermitWithoutStream:  true,
		Logger:               newBridge(cfg.Log).zap(),
	})
	if err != nil {
		return nil, &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: "the etcd cluster's configuration cannot be used", Cause: err}
	}
	done := make(chan struct{})
	s := &Store{client: client, prefix: prefixOf(cfg.Prefix), done: done}
	s.stop = sync.OnceValue(func() error {
		close(done)
		return client.Close()
	})
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	if _, err := s.Revision(ctx); err != nil {
		s.Close()
		return nil, &sallyport.Problem{Kind: sallyport.ErrUnavailable, Fact: "the etcd cluster does not answer",
			Hint: "check auth.etcd: endpoints and tls", Cause: err}
	}
	return s, nil
}

func prefixOf(p string) string {
	if p == "" {
		return defaultPrefix
	}
	return strings.TrimSuffix(p, "/") + "/"
}
