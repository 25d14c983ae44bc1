package main

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/crypto/ssh"

	"github.com/sallyport/sallyport/alpn"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
	"github.com/sallyport/sallyport/wire/sallyport/v1/sallyportv1connect"
)

// webOrigin is a cluster's web origin, with a public certificate.
type webOrigin struct {
	sallyportv1connect.UnimplementedPublicServiceHandler
	server    *httptest.Server
	public    testCA // of the certificate that everybody is shown
	host      testCA // the cluster's
	passwords string // file of those that came
}

// newOrigin starts it; own says that it shows the cluster's own certificate to
// who asks for it.
func newOrigin(passwords string, own bool) (*webOrigin, error) {
	o := &webOrigin{passwords: passwords}
	var err error
	if o.public, err = newTestCA("public"); err != nil {
		return nil, err
	}
	if o.host, err = newTestCA("host"); err != nil {
		return nil, err
	}
	forAll, err := o.public.leaf()
	if err != nil {
		return nil, err
	}
	forPinned, err := o.host.leaf()
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.Handle(sallyportv1connect.NewPublicServiceHandler(o))
	o.server = httptest.NewUnstartedServer(mux)
	o.server.EnableHTTP2, o.server.Config.ErrorLog = true, log.New(io.Discard, "", 0) // refused handshakes are what it is for
	o.server.TLS = &tls.Config{GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		shown := forAll
		if own && slices.Contains(h.SupportedProtos, alpn.Pinned1) {
			shown = forPinned
		}
		return &tls.Config{Certificates: []tls.Certificate{shown}, NextProtos: []string{alpn.HTTP2, alpn.HTTP11}}, nil
	}}
	o.server.StartTLS()
	return o, nil
}

// Ping says what a program asks before a login.
func (o *webOrigin) Ping(context.Context, *connect.Request[sallyportv1.PingRequest]) (*connect.Response[sallyportv1.PingResponse], error) {
	return connect.NewResponse(&sallyportv1.PingResponse{Cluster: "gw.test", SecondFactor: "off"}), nil
}

// Login writes the password down and lets everybody in.
func (o *webOrigin) Login(_ context.Context, req *connect.Request[sallyportv1.LoginRequest]) (*connect.Response[sallyportv1.LoginResponse], error) {
	file, err := os.OpenFile(o.passwords, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if _, err := fmt.Fprintln(file, req.Msg.GetPassword()); err != nil {
		return nil, err
	}
	k, err := publicHalves(req.Msg)
	if err != nil {
		return nil, err
	}
	w := alice()
	w.user = req.Msg.GetUser()
	m, err := w.answer(k)
	if err != nil {
		return nil, err
	}
	m.Authorities[0].Certificates = [][]byte{o.host.cert.Raw}
	return connect.NewResponse(m), nil
}

// publicHalves is a key pair that can sign nothing.
func publicHalves(m *sallyportv1.LoginRequest) (keyPair, error) {
	der, err := x509.ParsePKIXPublicKey(m.GetTlsPublicKey())
	if err != nil {
		return keyPair{}, err
	}
	line, _, _, _, err := ssh.ParseAuthorizedKey(m.GetSshPublicKey())
	if err != nil {
		return keyPair{}, err
	}
	return keyPair{ssh: publicHalf{line.(ssh.CryptoPublicKey).CryptoPublicKey()}, tls: &ecdsa.PrivateKey{PublicKey: *der.(*ecdsa.PublicKey)}}, nil
}

type publicHalf struct{ key crypto.PublicKey }

func (p publicHalf) Public() crypto.PublicKey { return p.key }

func (publicHalf) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, x509.ErrUnsupportedAlgorithm
}

// testCA signs for 127.0.0.1.
type testCA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newTestCA(name string) (testCA, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return testCA{}, err
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return testCA{}, err
	}
	cert, err := x509.ParseCertificate(der)
	return testCA{cert, key}, err
}

func (ca testCA) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw})
}

// leaf is a server's certificate with its chain.
func (ca testCA) leaf() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: ca.cert.NotBefore, NotAfter: ca.cert.NotAfter,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, ca.cert, key.Public(), ca.key)
	return tls.Certificate{Certificate: [][]byte{der, ca.cert.Raw}, PrivateKey: key}, err
}
