package main

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
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/sallyport/sallyport/dataplane/dial"
)

// credentials are what the database servers and their direct clients show each
// other, as PEM.
type credentials struct {
	cert, key []byte // of the servers, from the cluster's database CA
	cas       []byte // the cluster's database CA, which agents' certificates are from
	clientCAs []byte // and that of who comes straight

	clientCert, clientKey string // files
	serverCA              string // file
}

// databaseCredentials reads what sallyctl signed, and makes a CA with one
// client for those who come straight: the cluster gives such certificates to
// agents only.
func databaseCredentials(dir, signed string) (c credentials, err error) {
	for suffix, into := range map[string]*[]byte{".crt": &c.cert, ".key": &c.key, ".cas": &c.cas} {
		if *into, err = os.ReadFile(signed + suffix); err != nil {
			return c, err
		}
	}
	ca, cert, key, err := directClient()
	if err != nil {
		return c, err
	}
	c.clientCAs = append(slices.Clone(c.cas), ca...)
	c.clientCert, c.clientKey, c.serverCA = filepath.Join(dir, "direct.crt"), filepath.Join(dir, "direct.key"), signed+".cas"
	if err := os.WriteFile(c.clientCert, cert, 0o600); err != nil {
		return c, err
	}
	return c, os.WriteFile(c.clientKey, key, 0o600)
}

// directClient makes a CA and a certificate of it with the person's name, of
// the same kind as the cluster's.
func directClient() (ca, cert, key []byte, err error) {
	root, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, nil, err
	}
	leaf, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, nil, err
	}
	above := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "direct clients"}, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	below := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: person}, NotBefore: above.NotBefore, NotAfter: above.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	rootDER, err := x509.CreateCertificate(rand.Reader, above, above, root.Public(), root)
	if err != nil {
		return nil, nil, nil, err
	}
	leafDER, err := x509.CreateCertificate(rand.Reader, below, above, leaf.Public(), root)
	if err != nil {
		return nil, nil, nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(leaf)
	if err != nil {
		return nil, nil, nil, err
	}
	block := func(kind string, b []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}) }
	return block("CERTIFICATE", rootDER), block("CERTIFICATE", leafDER), block("PRIVATE KEY", der), nil
}

// claim fills in the page of a new account.
func (w *world) claim(ctx context.Context, link, password string) error {
	ctx, cancel := context.WithTimeout(ctx, runWait)
	defer cancel()
	// The pin has been checked by nobody yet: the link comes from auth on this
	// machine, and the address is our own gateway's.
	c := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true}}
	defer c.CloseIdleConnections()
	form := url.Values{"password": {password}, "again": {password}, "code": {""}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, link, bytes.NewReader([]byte(form.Encode())))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	page, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", resp.Status, page)
	}
	return nil
}

// profile is where a login of the person's keeps its files (docs of sally: the
// layout is tsh's).
func (w *world) profile(parts ...string) string {
	host, _, _ := net.SplitHostPort(w.proxy)
	return filepath.Join(append([]string{w.path("home"), "keys", host}, parts...)...)
}

func (w *world) clusterCAs() string { return w.profile("cas", cluster+".pem") }

// dialer is the client's half of Sallyport in this process.
func (w *world) dialer() (*dial.Dialer, error) {
	cert, err := tls.LoadX509KeyPair(w.profile(person+".crt"), w.profile(person+".key"))
	if err != nil {
		return nil, err
	}
	cas, err := os.ReadFile(w.clusterCAs())
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(cas) {
		return nil, fmt.Errorf("%s: no certificate in it", w.clusterCAs())
	}
	return &dial.Dialer{Proxy: w.proxy, Cluster: cluster, Roots: roots, Certificate: func() (*tls.Certificate, error) { return &cert, nil }}, nil
}

// signer is the person's SSH key with its certificate.
func (w *world) signer() (ssh.Signer, error) {
	key, err := os.ReadFile(w.profile(person))
	if err != nil {
		return nil, err
	}
	signer, err := ssh.ParsePrivateKey(key)
	if err != nil {
		return nil, err
	}
	line, err := os.ReadFile(w.profile(person+"-ssh", cluster+"-cert.pub"))
	if err != nil {
		return nil, err
	}
	pub, _, _, _, err := ssh.ParseAuthorizedKey(line)
	if err != nil {
		return nil, err
	}
	cert, ok := pub.(*ssh.Certificate)
	if !ok {
		return nil, fmt.Errorf("the login brought no SSH certificate")
	}
	return ssh.NewCertSigner(cert, signer)
}

// hostAuthority checks host certificates by the cluster's line in known_hosts.
func (w *world) hostAuthority() (ssh.HostKeyCallback, error) {
	data, err := os.ReadFile(filepath.Join(w.path("home"), "known_hosts"))
	if err != nil {
		return nil, err
	}
	var authorities [][]byte
	for len(data) > 0 {
		marker, _, key, _, rest, err := ssh.ParseKnownHosts(data)
		if err != nil {
			break
		}
		if data = rest; marker == "cert-authority" {
			authorities = append(authorities, key.Marshal())
		}
	}
	checker := &ssh.CertChecker{IsHostAuthority: func(auth ssh.PublicKey, _ string) bool {
		return slices.ContainsFunc(authorities, func(a []byte) bool { return bytes.Equal(a, auth.Marshal()) })
	}}
	return func(_ string, addr net.Addr, key ssh.PublicKey) error {
		return checker.CheckHostKey(w.node+":0", addr, key)
	}, nil
}
