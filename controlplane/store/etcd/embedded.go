package etcd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.uber.org/zap"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/durable"
)

// EmbeddedConfig says where the embedded server keeps its files.
type EmbeddedConfig struct {
	Dir    string // of its own, for example data_dir/store; made when absent
	Prefix string // default "sallyport/"
	Quota  int64  // bytes of the database, but for the reserve (space); default 2 GiB
	Log    *slog.Logger
}

const (
	// A single member elects itself after at most one election timeout, so
	// this bounds the start; several members live on one local network.
	tickMS     = 50
	electionMS = 300

	// History is for watchers that reconnect; they can always list again.
	compactionEvery = "15m"

	// startTimeout bounds the replay of a long log.
	startTimeout = time.Minute

	memberName = "sallyport"
	clientSock = "client.sock"
	peerSock   = "peer.sock"
)

// OpenEmbedded starts etcd in this process and returns when it is ready. Every
// acknowledged change has been fsynced.
func OpenEmbedded(ctx context.Context, cfg EmbeddedConfig) (*Store, error) {
	dir, err := prepareDir(cfg.Dir)
	if err != nil {
		return nil, err
	}
	lock, err := lockDir(dir)
	if err != nil {
		return nil, err
	}
	socks, err := openSocketDir(dir)
	if err != nil {
		lock.Close()
		return nil, err
	}
	release := func() {
		socks.Close()
		lock.Close()
	}
	log := newBridge(cfg.Log)
	if err := keepNext(dir); err != nil {
		release()
		if errors.Is(err, syscall.ENOSPC) {
			err = &sallyport.Problem{Kind: sallyport.ErrUnavailable, Fact: "the store in " + dir + " cannot be opened: its disk is full",
				Hint: fmt.Sprintf("make room for %d MiB on it", logFile>>20), Cause: err}
		}
		return nil, err
	}
	server, err := start(serverConfig(cfg, dir, socks.path), log.zap())
	if err != nil {
		release()
		return nil, &sallyport.Problem{Kind: sallyport.ErrUnavailable, Fact: "the store in " + dir + " cannot be opened",
			Hint: "the log says why; restore a backup if its files are damaged", Cause: err}
	}
	if err := awaitReady(ctx, server); err != nil {
		server.Close()
		release()
		return nil, err
	}
	for _, name := range []string{clientSock, peerSock} { // the directory is closed to others already
		if err := os.Chmod(filepath.Join(dir, name), 0o600); err != nil {
			server.Close()
			release()
			return nil, err
		}
	}
	return embedded(cfg, server, log, func() {
		if err := keepNext(dir); err != nil {
			log.log.Warn("no room is kept for opening the store again", "error", err)
		}
		release()
	}), nil
}

// embedded puts the client beside the running server.
func embedded(cfg EmbeddedConfig, server *embed.Etcd, log *bridge, release func()) *Store {
	done := make(chan struct{})
	s := &Store{client: v3client.New(server.Server), prefix: prefixOf(cfg.Prefix), done: done}
	// The client of an embedded server cannot ask for it: etcd's own service has
	// no notifier then, and panics.
	s.space.quota, s.space.defragment, s.space.log = quotaOf(cfg), server.Server.Defragment, cfg.Log
	if s.space.log == nil {
		s.space.log = slog.New(slog.DiscardHandler)
	}
	s.space.backend = server.Server.Backend()
	s.disk.file, s.disk.log = filepath.Join(server.Config().Dir, "member", "snap", "db"), s.space.log
	s.disk.size, s.disk.commit = s.space.backend.Size, s.space.commit
	s.disk.ends, s.disk.index, s.disk.allocate, s.disk.free = log.ends.Load, server.Server.AppliedIndex, allocateBlocks, freeBytes
	s.disk.renewed()
	s.disk.logged = logFile // the first change takes room beyond the log's end
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		watchServer(cfg.Log, server)
	}()
	go func() {
		<-server.Server.StopNotify()
		close(done)
	}()
	s.stop = sync.OnceValue(func() error {
		log.quiet.Store(true)
		s.space.close()
		err := s.client.Close()
		server.Close()
		<-drained
		<-done
		release()
		if errors.Is(err, context.Canceled) {
			return nil // how a client without connections ends
		}
		return err
	})
	return s
}

// watchServer tells of listeners that failed, until the server is closed.
func watchServer(log *slog.Logger, server *embed.Etcd) {
	for err := range server.Err() {
		if log != nil {
			log.Warn("the embedded store lost a listener", "error", err)
		}
	}
}

func prepareDir(dir string) (string, error) {
	if dir == "" {
		return "", invalid("embedded store without a directory")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if err := durable.MkdirAll(dir); err != nil {
		return "", err
	}
	return dir, os.Chmod(dir, 0o700)
}

func serverConfig(cfg EmbeddedConfig, dir, sockets string) *embed.Config {
	c := embed.NewConfig()
	c.Name = memberName
	c.Dir = filepath.Join(dir, "etcd")
	c.TickMs, c.ElectionMs = tickMS, electionMS
	c.QuotaBackendBytes = mostOf(quotaOf(cfg))
	c.SnapshotCount = snapEvery
	c.AutoCompactionMode = embed.CompactorModePeriodic
	c.AutoCompactionRetention = compactionEvery
	c.EnableGRPCGateway = false

	// For Unix sockets etcd takes the whole path from the host part.
	c.ListenClientUrls = []url.URL{{Scheme: "unix", Host: sockets + "/" + clientSock}}
	c.ListenPeerUrls = []url.URL{{Scheme: "unix", Host: sockets + "/" + peerSock}}
	// What is advertised becomes part of the stored membership: fixed names,
	// so that a directory can be moved.
	c.AdvertiseClientUrls = []url.URL{{Scheme: "unix", Host: clientSock}}
	c.AdvertisePeerUrls = []url.URL{{Scheme: "unix", Host: peerSock}}
	c.InitialCluster = c.InitialClusterFromName(c.Name)
	c.InitialClusterToken = "sallyport"
	return c
}

// start checks the files and starts the server. It turns the panics by which
// etcd reports damage into errors; what etcd had opened by then stays open, so
// the process should end soon.
func start(c *embed.Config, log *zap.Logger) (server *embed.Etcd, err error) {
	defer func() {
		if p := recover(); p != nil {
			server, err = nil, fmt.Errorf("etcd: %v", p)
		}
	}()
	if err := checkFiles(log, c.Dir); err != nil {
		return nil, err
	}
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(log)
	return embed.StartEtcd(c)
}

func quotaOf(cfg EmbeddedConfig) int64 {
	if cfg.Quota == 0 {
		return defaultQuota
	}
	return cfg.Quota
}

func awaitReady(ctx context.Context, server *embed.Etcd) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	select {
	case <-server.Server.ReadyNotify():
		return nil
	case err := <-server.Err():
		return &sallyport.Problem{Kind: sallyport.ErrUnavailable, Fact: "the embedded store did not start", Cause: err}
	case <-server.Server.StopNotify():
		return &sallyport.Problem{Kind: sallyport.ErrUnavailable, Fact: "the embedded store stopped while starting"}
	case <-ctx.Done():
		return &sallyport.Problem{Kind: sallyport.ErrUnavailable, Fact: "the embedded store was not ready in time", Cause: ctx.Err()}
	}
}
