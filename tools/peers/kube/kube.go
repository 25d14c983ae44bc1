// Package kube starts a Kubernetes API server with an etcd of its own, roles
// and a token file, and kwok, which stands in for kubelets: pods run there, and
// exec, attach, logs and port-forward reach programs of this machine.
package kube

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"go.etcd.io/etcd/server/v3/embed"

	"github.com/sallyport/sallyport/tools/peers/port"
)

// release are the versions that tools/peers/kubernetes builds.
const release = "kubernetes-v1.36.1-kwok-v0.8.0"

// Find returns the directory of kube-apiserver, kubectl and kwok.
func Find() (string, error) {
	cache := os.Getenv("XDG_CACHE_HOME")
	if cache == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", err
		}
		cache = filepath.Join(home, ".cache")
	}
	dir := filepath.Join(cache, "sallyport-peers", release)
	for _, p := range []string{"kube-apiserver", "kubectl", "kwok"} {
		if _, err := os.Stat(filepath.Join(dir, p)); err != nil {
			return "", fmt.Errorf("%s is not built: tools/peers/kubernetes builds it: %w", p, err)
		}
	}
	return dir, nil
}

// Build is Find that builds the programs by tools/peers/kubernetes, whose path it
// is given, or waits for who builds them already.
func Build(ctx context.Context, script string) (string, error) {
	if out, err := exec.CommandContext(ctx, script).CombinedOutput(); err != nil {
		return "", fmt.Errorf("%s: %w\n%s", script, err, out[max(0, len(out)-logEnd):])
	}
	return Find()
}

// logEnd is how many bytes of what a program has said an error tells.
const logEnd = 4000

// Cluster is a running API server with one node.
type Cluster struct {
	Dir  string // with the files below
	Bin  string // kube-apiserver, kubectl, kwok
	Addr string

	// Admin is a kubeconfig of a member of system:masters, Agent one of a user who
	// may impersonate and nothing else.
	Admin, Agent string

	procs []*proc
	etcd  *embed.Etcd
}

type proc struct {
	cmd  *exec.Cmd
	done chan struct{}
}

// startWait is for all of it, on a machine that has much else to do; one answer may
// take askWait.
const (
	startWait = 5 * time.Minute
	askWait   = 30 * time.Second
)

// Start brings a cluster up in dir, which must be empty; files are applied to
// kwok's configuration and manifests to the API server.
func Start(ctx context.Context, dir, kwok, manifests string) (_ *Cluster, err error) {
	c := &Cluster{Dir: dir, Admin: filepath.Join(dir, "admin.kubeconfig"), Agent: filepath.Join(dir, "agent.kubeconfig")}
	if c.Bin, err = Find(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			c.Stop()
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, startWait)
	defer cancel()
	for _, step := range []func(context.Context) error{
		c.keys, c.startEtcd, c.startServer,
		func(ctx context.Context) error { return c.startKwok(ctx, kwok) },
		func(ctx context.Context) error { return c.apply(ctx, manifests) },
	} {
		if err = step(ctx); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// Stop ends everything.
func (c *Cluster) Stop() {
	for i := len(c.procs) - 1; i >= 0; i-- {
		p := c.procs[i]
		p.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-p.done:
		case <-time.After(5 * time.Second):
			p.cmd.Process.Kill()
			<-p.done
		}
	}
	c.procs = nil
	if c.etcd != nil {
		c.etcd.Close()
	}
}

func (c *Cluster) path(name string) string { return filepath.Join(c.Dir, name) }

// keys makes a CA, certificates and tokens.
func (c *Cluster) keys(context.Context) error {
	ca, caKey, err := newCert(nil, nil, "ca")
	if err != nil {
		return err
	}
	files := map[string][]byte{"ca.crt": pemOf("CERTIFICATE", ca.Raw)}
	for _, name := range []string{"server", "kubelet", "accounts"} {
		cert, key, err := newCert(ca, caKey, name)
		if err != nil {
			return err
		}
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return err
		}
		files[name+".crt"], files[name+".key"] = pemOf("CERTIFICATE", cert.Raw), pemOf("PRIVATE KEY", der)
	}
	admin, agent := rand.Text(), rand.Text()
	files["tokens.csv"] = fmt.Appendf(nil, "%s,admin,admin,system:masters\n%s,sallyport-agent,agent,\n", admin, agent)
	if c.Addr, err = port.Reserve(); err != nil {
		return err
	}
	config := func(token string) []byte {
		return fmt.Appendf(nil, "apiVersion: v1\nkind: Config\ncurrent-context: c\n"+
			"clusters: [{name: c, cluster: {server: \"https://%s\", certificate-authority: %q}}]\n"+
			"users: [{name: u, user: {token: %q}}]\ncontexts: [{name: c, context: {cluster: c, user: u}}]\n", c.Addr, c.path("ca.crt"), token)
	}
	files["admin.kubeconfig"], files["agent.kubeconfig"] = config(admin), config(agent)
	for name, data := range files {
		if err := os.WriteFile(c.path(name), data, 0o600); err != nil {
			return err
		}
	}
	return nil
}

func pemOf(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func newCert(ca *x509.Certificate, caKey *ecdsa.PrivateKey, name string) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	t := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv4(10, 0, 0, 1)},
	}
	if ca == nil {
		ca, caKey, t.IsCA, t.KeyUsage, t.ExtKeyUsage = t, key, true, x509.KeyUsageCertSign, nil
	}
	der, err := x509.CreateCertificate(rand.Reader, t, ca, key.Public(), caKey)
	if err != nil {
		return nil, nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return cert, key, err
}

// startEtcd runs an etcd in this process, on a Unix socket; nothing is synced.
func (c *Cluster) startEtcd(ctx context.Context) error {
	cfg := embed.NewConfig()
	cfg.Dir = c.path("etcd")
	cfg.LogLevel = "error"
	cfg.UnsafeNoFsync = true
	client, peer := url.URL{Scheme: "unix", Path: c.path("e.sock")}, url.URL{Scheme: "unix", Path: c.path("p.sock")}
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	var err error
	if c.etcd, err = embed.StartEtcd(cfg); err != nil {
		return err
	}
	select {
	case <-c.etcd.Server.ReadyNotify():
		return nil
	case <-ctx.Done():
		return errors.New("etcd is not ready")
	}
}

func (c *Cluster) start(name string, args ...string) error {
	log, err := os.Create(c.path(name + ".log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(c.Bin, name), args...)
	cmd.Stdout, cmd.Stderr, cmd.Dir = log, log, c.Dir
	cmd.Env = append(os.Environ(), "HOME="+c.Dir, "KUBECONFIG=")
	p := &proc{cmd: cmd, done: make(chan struct{})}
	// The system ends a process with the thread that started it, not with the
	// program: the thread stays.
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		cmd.SysProcAttr = tied()
		err := cmd.Start()
		started <- err
		if err == nil {
			cmd.Wait()
			close(p.done)
		}
	}()
	if err := <-started; err != nil {
		return err
	}
	c.procs = append(c.procs, p)
	return nil
}

func (c *Cluster) startServer(ctx context.Context) error {
	_, port, _ := net.SplitHostPort(c.Addr)
	err := c.start("kube-apiserver",
		"--etcd-servers=unix://"+c.path("e.sock"), "--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", "--secure-port="+port,
		"--tls-cert-file="+c.path("server.crt"), "--tls-private-key-file="+c.path("server.key"),
		"--token-auth-file="+c.path("tokens.csv"), "--authorization-mode=RBAC", "--disable-admission-plugins=ServiceAccount",
		"--service-account-issuer=https://localhost", "--service-account-key-file="+c.path("accounts.crt"),
		"--service-account-signing-key-file="+c.path("accounts.key"), "--service-cluster-ip-range=10.0.0.0/24",
		"--kubelet-certificate-authority="+c.path("ca.crt"), "--kubelet-client-certificate="+c.path("kubelet.crt"),
		"--kubelet-client-key="+c.path("kubelet.key"), "--kubelet-preferred-address-types=InternalIP", "--endpoint-reconciler-type=none")
	if err != nil {
		return err
	}
	return c.await(ctx, "https://"+c.Addr+"/readyz", c.procs[0])
}

// startKwok runs kwok with a configuration of documents beside its own.
func (c *Cluster) startKwok(ctx context.Context, documents string) error {
	addr, err := port.Reserve()
	if err != nil {
		return err
	}
	_, number, _ := net.SplitHostPort(addr)
	if err := os.WriteFile(c.path("kwok.yaml"), []byte(documents), 0o600); err != nil {
		return err
	}
	err = c.start("kwok", "--kubeconfig="+c.Admin, "--config="+c.path("kwok.yaml"), "--manage-all-nodes=true",
		"--node-ip=127.0.0.1", "--node-port="+number, "--server-address="+addr,
		"--tls-cert-file="+c.path("server.crt"), "--tls-private-key-file="+c.path("server.key"))
	if err != nil {
		return err
	}
	return c.await(ctx, "https://"+addr+"/healthz", c.procs[1])
}

// await polls until a server says that it is there.
func (c *Cluster) await(ctx context.Context, target string, p *proc) error {
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}} // is it there: no more is asked
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: askWait}
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err == nil {
			io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready:\n%s", p.cmd.Path, c.log(p))
		case <-p.done:
			return fmt.Errorf("%s ended:\n%s", p.cmd.Path, c.log(p))
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// log is the end of what a process has said.
func (c *Cluster) log(p *proc) []byte {
	b, err := os.ReadFile(c.path(filepath.Base(p.cmd.Path) + ".log"))
	if err != nil {
		return []byte(err.Error())
	}
	return b[max(0, len(b)-logEnd):]
}

// Kubectl runs kubectl as the administrator.
func (c *Cluster) Kubectl(ctx context.Context, input string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(c.Bin, "kubectl"), append([]string{"--kubeconfig=" + c.Admin}, args...)...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.Dir = bytes.NewBufferString(input), &out, &errs, c.Dir
	cmd.Env = append(os.Environ(), "HOME="+c.Dir)
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("kubectl %v: %w\n%s", args, err, &errs)
	}
	return out.Bytes(), nil
}

func (c *Cluster) apply(ctx context.Context, manifests string) error {
	_, err := c.Kubectl(ctx, manifests, "apply", "-f", "-")
	return err
}
