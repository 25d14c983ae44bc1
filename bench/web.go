package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/alpn"
)

// web is what Kubernetes and applications are measured in: a cluster, and the
// servers behind its agent, which this process is.
type web struct {
	*world
	api, app *webServer
	nginx    *nginxProxy // nil: there is none
}

// Resources behind the agent.
const (
	kubeResource = "prod"
	appResource  = "shop"
)

// openWebWorld starts the servers and the cluster.
func openWebWorld(ctx context.Context, dir, bin string) (*web, error) {
	w := &web{world: &world{dir: dir, bin: bin, login: person}}
	err := w.begin(ctx, w.startAuth, w.startGateway, w.signServers, w.startWebServers, w.startNginx, w.configureAgent, w.startAgent, w.logIn, w.awaitWeb)
	if err != nil {
		w.closeServers() // begin has ended the rest
		return nil, err
	}
	return w, nil
}

func (w *web) close() {
	w.world.close()
	w.closeServers()
}

func (w *web) closeServers() {
	w.nginx.stop()
	w.api.close()
	w.app.close()
}

// startWebServers starts an API server and an application, and writes how the
// agent reaches them.
func (w *web) startWebServers(context.Context) (err error) {
	if w.api, err = startWebServer(w.databases, tls.RequireAndVerifyClientCert, http.HandlerFunc(serveAPI)); err != nil {
		return err
	}
	if w.app, err = startApp(w.databases); err != nil {
		return err
	}
	config := fmt.Sprintf(`apiVersion: v1
kind: Config
current-context: bench
contexts: [{name: bench, context: {cluster: bench, user: agent}}]
clusters: [{name: bench, cluster: {server: "https://%s", certificate-authority: %q}}]
users: [{name: agent, user: {client-certificate: %q, client-key: %q}}]
`, w.api.addr(), w.databases.serverCA, w.databases.clientCert, w.databases.clientKey)
	if err := w.write("kubeconfig", config); err != nil {
		return err
	}
	w.more = fmt.Sprintf("  kubernetes: [{name: %s, kubeconfig: %q}]\n  apps: [{name: %s, uri: \"https://%s\", tls: {ca: %q}}]\n",
		kubeResource, w.path("kubeconfig"), appResource, w.app.addr(), w.databases.serverCA)
	return nil
}

// awaitWeb returns when both answer through the agent.
func (w *web) awaitWeb(ctx context.Context) error {
	for _, v := range []visit{w.kubeThrough(), w.appThrough()} {
		err := w.agent.await(ctx, func(ctx context.Context) error {
			c, err := v.client()
			if err != nil {
				return err
			}
			defer c.CloseIdleConnections()
			return v.get(ctx, c)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// visit is a way to a web server.
type visit struct {
	addr      string // where to connect
	host      string // what is asked for, in TLS and HTTP
	path      string
	size      int // of the answer's body
	protocol  string
	cas       string // files
	cert, key string
}

func (w *web) kubeThrough() visit {
	return w.throughTo(sallyport.KindKube, kubeResource, visit{path: podPath, size: len(pod), protocol: alpn.HTTP2})
}

func (w *web) kubeDirect() visit {
	return w.directTo(w.api.addr(), visit{path: podPath, size: len(pod), protocol: alpn.HTTP2})
}

func (w *web) appThrough() visit {
	return w.throughTo(sallyport.KindApp, appResource, visit{path: "/", size: pageSize, protocol: alpn.HTTP11})
}

func (w *web) throughTo(kind sallyport.Kind, name string, v visit) visit {
	v.addr, v.host = w.proxy, alpn.ServerName(string(kind), name, cluster)
	v.cas, v.cert, v.key = w.clusterCAs(), w.profile(person+".crt"), w.profile(person+".key")
	return v
}

func (w *web) directTo(addr string, v visit) visit {
	v.addr, v.host = addr, "localhost"
	v.cas, v.cert, v.key = w.databases.serverCA, w.databases.clientCert, w.databases.clientKey
	return v
}

func (v visit) tls() (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(v.cert, v.key)
	if err != nil {
		return nil, err
	}
	cas, err := os.ReadFile(v.cas)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(cas) {
		return nil, errors.New("no certificate in " + v.cas)
	}
	return &tls.Config{ServerName: v.host, RootCAs: roots, Certificates: []tls.Certificate{cert}, NextProtos: []string{v.protocol}}, nil
}

// client keeps its connections, as many as there are workers or, of HTTP/2, one.
func (v visit) client() (*http.Client, error) {
	config, err := v.tls()
	if err != nil {
		return nil, err
	}
	return v.clientOf(config), nil
}

func (v visit) clientOf(config *tls.Config) *http.Client {
	t := &http.Transport{
		TLSClientConfig:     config.Clone(), // the transport adds to it
		MaxIdleConnsPerHost: 64, DisableCompression: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", v.addr)
		},
		Protocols: new(http.Protocols),
	}
	t.Protocols.SetHTTP2(v.protocol == alpn.HTTP2)
	t.Protocols.SetHTTP1(v.protocol == alpn.HTTP11)
	return &http.Client{Transport: t, Timeout: runWait}
}

// get asks for the page and reads all of it.
func (v visit) get(ctx context.Context, c *http.Client) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+v.host+v.path, nil)
	if err != nil {
		return err
	}
	res, err := c.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	n, err := io.Copy(io.Discard, res.Body)
	if err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK || n != int64(v.size) {
		return fmt.Errorf("%s with %d bytes of %d", res.Status, n, v.size)
	}
	return nil
}

// kept asks n times over connections that are kept; a first request of each
// worker opens them, and does not count.
func (v visit) kept(n, workers int, count counting) side {
	return func(ctx context.Context) (Sample, error) {
		c, err := v.client()
		if err != nil {
			return nil, err
		}
		defer c.CloseIdleConnections()
		ask := func(ctx context.Context) error { return v.get(ctx, c) }
		if err := spread(ctx, workers, workers, ask); err != nil {
			return nil, err
		}
		return count(timed("rate", func(ctx context.Context) (float64, error) { return float64(n), spread(ctx, n, workers, ask) }))(ctx)
	}
}

// fresh asks n times, each time over a connection of its own.
func (v visit) fresh(n, workers int) side {
	return timed("rate", func(ctx context.Context) (float64, error) {
		config, err := v.tls()
		if err != nil {
			return 0, err
		}
		return float64(n), spread(ctx, n, workers, func(ctx context.Context) error {
			c := v.clientOf(config)
			defer c.CloseIdleConnections()
			return v.get(ctx, c)
		})
	})
}

// webServer is a server of this process.
type webServer struct {
	listener net.Listener
	server   *http.Server
	done     chan struct{}
}

// startWebServer serves HTTPS with the certificate that the cluster has signed
// for servers, by the protocols given, or all.
func startWebServer(c credentials, clients tls.ClientAuthType, h http.Handler, protocols ...string) (*webServer, error) {
	cert, err := tls.X509KeyPair(c.cert, c.key)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(c.clientCAs) {
		return nil, errors.New("no certificate of a client CA")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &webServer{listener: l, done: make(chan struct{}), server: &http.Server{
		Handler: h, ReadHeaderTimeout: upWait, TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}, ClientCAs: pool, ClientAuth: clients},
	}}
	if len(protocols) > 0 {
		s.server.Protocols = new(http.Protocols)
		s.server.Protocols.SetHTTP1(slices.Contains(protocols, alpn.HTTP11))
		s.server.Protocols.SetHTTP2(slices.Contains(protocols, alpn.HTTP2))
	}
	go func() {
		defer close(s.done)
		_ = s.server.ServeTLS(l, "", "") // until close
	}()
	return s, nil
}

// startApp starts the application. It speaks HTTP/1.1 alone, as nginx does with
// those behind it: else the agent would choose HTTP/2, which costs both more.
func startApp(c credentials) (*webServer, error) {
	return startWebServer(c, tls.NoClientCert, http.HandlerFunc(servePage), alpn.HTTP11)
}

func (s *webServer) addr() string { return s.listener.Addr().String() }

func (s *webServer) close() {
	if s == nil {
		return
	}
	s.server.Close()
	<-s.done
}

// pageSize is the application's answer.
const pageSize = 4 << 10

func servePage(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.Itoa(pageSize))
	w.Write(page[:])
}

var page [pageSize]byte // nothing writes to it

func openWeb(ctx context.Context, r *rig) (opened, error) {
	w, err := openWebWorld(ctx, r.dir, r.bin)
	if err != nil {
		return opened{}, err
	}
	return opened{measures: append(w.kubeMeasures(r.sizes), w.appMeasures(r.sizes)...), peers: foreignPrograms(ctx, "nginx"), close: w.close}, nil
}

// stallWait is for a stream's bytes.
const stallWait = time.Minute
