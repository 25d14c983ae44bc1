package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/alpn"
	"github.com/sallyport/sallyport/cmd/internal/profile"
	"github.com/sallyport/sallyport/cmd/internal/shell"
	"github.com/sallyport/sallyport/dataplane/dial"
)

type proxyKubeCmd struct {
	listener
	Namespace string `name:"kube-namespace" short:"n" placeholder:"NAME" help:"Namespace to use without -n."`
	Name      string `arg:"" help:"Name of the Kubernetes cluster, as sally kube ls shows it."`
}

// Run listens, and writes a kubeconfig of its own that leads here. The way here
// is TLS with a client certificate, both of this run only: a web page can make a
// browser connect to a port of this machine, but it has no such certificate.
func (c *proxyKubeCmd) Run(p *program) error {
	if !alpn.ValidLabel(c.Name) {
		return problem(errInvalid, fmt.Sprintf("%q cannot be a Kubernetes cluster's name here", c.Name), "sally kube ls")
	}
	cred, _, err := p.reachable(sallyport.KindKube, c.Name)
	if err != nil {
		return err
	}
	f := cred.Profile
	keys, err := newLocalKeys(kubeServerName(f, c.Name))
	if err != nil {
		return err
	}
	l, err := c.open()
	if err != nil {
		return err
	}
	defer l.Close()
	// Each proxy has a file of its own: another one for the same cluster may run.
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		return err
	}
	path := filepath.Join(p.home.KeyDir(f), f.User+"-kube", f.Cluster, c.Name+"-"+port+"-kubeconfig")
	k, err := parseKubeconfig("")
	if err != nil {
		return err
	}
	k.put(kubeEntry{
		kube: c.Name, name: kubeContextName(f, c.Name), context: kubeContextName(f, c.Name), namespace: c.Namespace,
		server: "https://" + l.Addr().String(), serverName: kubeServerName(f, c.Name), cas: keys.certPEM, cert: keys.certPEM, key: keys.keyPEM,
	})
	k.set("current-context", kubeContextName(f, c.Name))
	text, err := k.text()
	if err != nil {
		return err
	}
	if err := profile.WriteFile(path, text); err != nil {
		return err
	}
	written, err := os.Lstat(path)
	if err != nil {
		return err
	}
	defer func() { // one that got this port meanwhile has put its own there
		if now, err := os.Lstat(path); err == nil && os.SameFile(written, now) {
			os.Remove(path)
		}
	}()
	fmt.Fprintf(p.stdout, "Preparing the following Kubernetes cluster for local use: %s on %s.\n\nUse:\n  export KUBECONFIG=%s\n", c.Name, l.Addr(), shell.Word(path))
	return p.serve(&dial.LocalProxy{Listener: l, TLS: keys.config(), Kube: true, Dial: p.lasting(cred).to(sallyport.KindKube, c.Name, alpn.HTTP11)})
}

// localKeys are one key and one certificate that signs itself, for both ends. They
// are good for as long as the port is there: the login behind it may be followed by
// another, and without one nothing is reached.
type localKeys struct {
	pair            tls.Certificate
	leaf            *x509.Certificate
	certPEM, keyPEM []byte
}

func newLocalKeys(name string) (*localKeys, error) {
	noEnd := time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC) // RFC 5280, section 4.1.2.5
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "sally proxy kube"}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: noEnd, BasicConstraintsValid: true, IsCA: true,
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return &localKeys{
		pair: tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, leaf: leaf,
		certPEM: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		keyPEM:  pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}),
	}, nil
}

// config is the local end: who comes must hold the very same key.
func (k *localKeys) config() *tls.Config {
	pool := x509.NewCertPool()
	pool.AddCert(k.leaf)
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{k.pair}, NextProtos: []string{alpn.HTTP11},
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool,
	}
}
