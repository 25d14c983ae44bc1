package kube

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/sallyport/sallyport"
)

// maxKubeconfig bounds the file: it is the operator's, and may hold many clusters.
const maxKubeconfig = 1 << 20

// kubeconfig is the part of the file that is read (clientcmd/api/v1, Config).
type kubeconfig struct {
	CurrentContext string `yaml:"current-context"`
	Clusters       []struct {
		Name    string        `yaml:"name"`
		Cluster configCluster `yaml:"cluster"`
	} `yaml:"clusters"`
	Users []struct {
		Name string     `yaml:"name"`
		User configUser `yaml:"user"`
	} `yaml:"users"`
	Contexts []struct {
		Name    string `yaml:"name"`
		Context struct {
			Cluster string `yaml:"cluster"`
			User    string `yaml:"user"`
		} `yaml:"context"`
	} `yaml:"contexts"`
}

type configCluster struct {
	Server     string `yaml:"server"`
	CA         string `yaml:"certificate-authority"`
	CAData     string `yaml:"certificate-authority-data"`
	ServerName string `yaml:"tls-server-name"`
	Insecure   bool   `yaml:"insecure-skip-tls-verify"`
	ProxyURL   string `yaml:"proxy-url"`
}

type configUser struct {
	Cert      string `yaml:"client-certificate"`
	CertData  string `yaml:"client-certificate-data"`
	Key       string `yaml:"client-key"`
	KeyData   string `yaml:"client-key-data"`
	Token     string `yaml:"token"`
	TokenFile string `yaml:"tokenFile"`
	Username  string `yaml:"username"`
	As        string `yaml:"as"`
	Exec      any    `yaml:"exec"`
	Provider  any    `yaml:"auth-provider"`
}

// Target is an API server and how the agent is known there. Its methods may be
// called concurrently.
type Target struct {
	base    *url.URL
	plain   *http.Transport // requests: HTTP/2 where the server has it, kept warm
	streams *http.Transport // upgrades: HTTP/1.1, one connection each
	bearer  *bearer         // nil: a client certificate only
}

// FromKubeconfig reads a context of a kubeconfig file; "" is its current one.
func FromKubeconfig(path, context string) (*Target, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, unusable("%w", err)
	}
	if info.Size() > maxKubeconfig {
		return nil, unusable("%s has %d bytes; %d are the most", path, info.Size(), maxKubeconfig)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, unusable("%w", err)
	}
	var file kubeconfig
	if err := yaml.Unmarshal(data, &file); err != nil {
		// The parser's words could quote a key.
		return nil, unusable("%s is not a kubeconfig file", path)
	}
	cluster, user, err := file.choose(context)
	if err != nil {
		return nil, unusable("%s: %w", path, err)
	}
	t, err := newTarget(cluster, user, filepath.Dir(path))
	if err != nil {
		return nil, unusable("%s: %w", path, err)
	}
	return t, nil
}

// serviceAccount is where Kubernetes puts a pod's own credentials.
const serviceAccount = "/var/run/secrets/kubernetes.io/serviceaccount"

// InCluster is the API server of the cluster in which this agent is a pod.
func InCluster() (*Target, error) {
	return inCluster(os.Getenv("KUBERNETES_SERVICE_HOST"), os.Getenv("KUBERNETES_SERVICE_PORT"), serviceAccount)
}

func inCluster(host, port, dir string) (*Target, error) {
	if host == "" || port == "" {
		return nil, unusable("KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set: this agent is not in a pod")
	}
	t, err := newTarget(configCluster{Server: "https://" + net.JoinHostPort(host, port), CA: "ca.crt"}, configUser{TokenFile: "token"}, dir)
	if err != nil {
		return nil, unusable("the pod's service account: %w", err)
	}
	return t, nil
}

func unusable(format string, args ...any) error {
	err := fmt.Errorf(format, args...)
	return &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: err.Error(), Cause: err,
		Hint: "a client certificate, a token or a tokenFile, and the server's CA are needed"}
}

func (k *kubeconfig) choose(context string) (c configCluster, u configUser, err error) {
	if context == "" {
		context = k.CurrentContext
	}
	for _, ctx := range k.Contexts {
		if ctx.Name != context {
			continue
		}
		foundCluster, foundUser := false, false
		for _, e := range k.Clusters {
			if e.Name == ctx.Context.Cluster {
				c, foundCluster = e.Cluster, true
				break
			}
		}
		for _, e := range k.Users {
			if e.Name == ctx.Context.User {
				u, foundUser = e.User, true
				break
			}
		}
		if !foundCluster || !foundUser {
			return c, u, fmt.Errorf("context %q names a cluster or a user that is not there", context)
		}
		return c, u, nil
	}
	return c, u, fmt.Errorf("there is no context %q", context)
}

func newTarget(c configCluster, u configUser, dir string) (*Target, error) {
	base, err := url.Parse(c.Server)
	if err != nil || base.Scheme != "https" || base.Host == "" || base.RawQuery != "" || base.User != nil {
		return nil, fmt.Errorf("the server must be an https:// URL")
	}
	switch {
	case c.ProxyURL != "":
		return nil, fmt.Errorf("proxy-url is not served by this version")
	case u.Exec != nil || u.Provider != nil:
		return nil, fmt.Errorf("credentials by a program (exec, auth-provider) are not served by this version; use a service account's token")
	case u.Username != "":
		return nil, fmt.Errorf("passwords are not served by API servers any more")
	case u.As != "":
		return nil, fmt.Errorf("the user impersonates another: name that one's own credentials")
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: c.ServerName, InsecureSkipVerify: c.Insecure}
	ca, err := either(c.CAData, c.CA, dir)
	if err != nil {
		return nil, fmt.Errorf("certificate-authority: %w", err)
	}
	if ca != nil {
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(ca) {
			return nil, fmt.Errorf("certificate-authority holds no certificate")
		}
	}
	t := &Target{base: base}
	known, err := t.credentials(u, dir, conf)
	if err != nil {
		return nil, err
	}
	if !known {
		return nil, fmt.Errorf("the user has neither a certificate nor a token")
	}
	t.transports(conf)
	return t, nil
}

// credentials puts what the user has into the configuration.
func (t *Target) credentials(u configUser, dir string, conf *tls.Config) (found bool, err error) {
	cert, err := either(u.CertData, u.Cert, dir)
	if err != nil {
		return false, fmt.Errorf("client-certificate: %w", err)
	}
	key, err := either(u.KeyData, u.Key, dir)
	if err != nil {
		return false, fmt.Errorf("client-key: %w", err)
	}
	if cert != nil {
		pair, err := tls.X509KeyPair(cert, key)
		if err != nil {
			return false, fmt.Errorf("client-certificate and client-key do not belong together")
		}
		conf.Certificates = []tls.Certificate{pair}
	}
	switch {
	case u.TokenFile != "":
		t.bearer = &bearer{path: beside(u.TokenFile, dir)}
		if _, err := t.bearer.get(); err != nil {
			return false, fmt.Errorf("tokenFile: %w", err)
		}
	case u.Token != "":
		t.bearer = &bearer{token: u.Token}
	}
	return cert != nil || t.bearer != nil, nil
}

// Bounds of a conversation with an API server.
const (
	connectTimeout = 10 * time.Second
	answerTimeout  = 90 * time.Second // API servers give up at 60 s
	idleUpstream   = 90 * time.Second
	idleKept       = 64 // connections, where the server has no HTTP/2
	pingAfter      = 15 * time.Second
	pingWait       = 10 * time.Second
	maxAnswerHead  = 64 << 10
)

func (t *Target) transports(conf *tls.Config) {
	dialer := &net.Dialer{Timeout: connectTimeout, KeepAlive: 30 * time.Second}
	both, one := new(http.Protocols), new(http.Protocols)
	both.SetHTTP1(true)
	both.SetHTTP2(true)
	one.SetHTTP1(true)
	t.plain = &http.Transport{
		DialContext: dialer.DialContext, TLSClientConfig: conf.Clone(), TLSHandshakeTimeout: connectTimeout, Protocols: both,
		MaxIdleConns: idleKept, MaxIdleConnsPerHost: idleKept, IdleConnTimeout: idleUpstream, ResponseHeaderTimeout: answerTimeout,
		DisableCompression: true, MaxResponseHeaderBytes: maxAnswerHead,
		HTTP2: &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingWait},
	}
	t.streams = &http.Transport{
		DialContext: dialer.DialContext, TLSClientConfig: conf.Clone(), TLSHandshakeTimeout: connectTimeout, Protocols: one,
		DisableKeepAlives: true, ResponseHeaderTimeout: answerTimeout, DisableCompression: true, MaxResponseHeaderBytes: maxAnswerHead,
		WriteBufferSize: copyBuffer, ReadBufferSize: copyBuffer,
	}
}

// Close lets idle connections go. Requests under way end as they would.
func (t *Target) Close() {
	t.plain.CloseIdleConnections()
	t.streams.CloseIdleConnections()
}

// Address is the server as operators and users may see it.
func (t *Target) Address() string { return t.base.Host }

// either returns what is in the file itself, or in the file that it names.
func either(data, path, dir string) ([]byte, error) {
	if data != "" {
		b, err := base64.StdEncoding.DecodeString(strings.TrimSpace(data))
		if err != nil {
			return nil, fmt.Errorf("it is not base64")
		}
		return b, nil
	}
	if path == "" {
		return nil, nil
	}
	return readSmall(beside(path, dir))
}

func beside(path, dir string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(dir, path)
}

func readSmall(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Size() > maxKubeconfig {
		return nil, fmt.Errorf("%s is too large", path)
	}
	return os.ReadFile(path)
}

// tokenLife is how long a token is used before its file is read again: those of
// service accounts are replaced within the hour.
const tokenLife = time.Minute

// bearer is a token, or the file that holds the newest.
type bearer struct {
	path string

	mu    sync.Mutex
	token string
	read  time.Time
}

func (b *bearer) get() (string, error) {
	if b.path == "" {
		return b.token, nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.token != "" && time.Since(b.read) < tokenLife {
		return b.token, nil
	}
	data, err := readSmall(b.path)
	token := strings.TrimSpace(string(data))
	switch {
	case err == nil && token != "":
		b.token, b.read = token, time.Now()
	case b.token == "" && err == nil:
		return "", fmt.Errorf("%s is empty", b.path)
	case b.token == "":
		return "", err
	}
	return b.token, nil // the old one may still do
}
