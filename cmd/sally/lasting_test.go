package main

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/alpn"
	"github.com/sallyport/sallyport/cmd/internal/profile"
	"github.com/sallyport/sallyport/dataplane/dial"
)

// farEnd is what a gateway leads to: it says when the certificate of a client ends.
type farEnd struct {
	addr string
	ca   []byte // PEM
}

func newFarEnd(t *testing.T, name string) farEnd {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	own := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, own, own, key.Public(), key)
	must(t, err)
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{protocolDB}, ClientAuth: tls.RequireAnyClientCert,
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}})
	must(t, err)
	served := make(chan struct{})
	go func() {
		defer close(served)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if tc := c.(*tls.Conn); tc.Handshake() == nil {
				fmt.Fprint(tc, tc.ConnectionState().PeerCertificates[0].NotAfter.Unix())
			}
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-served })
	return farEnd{l.Addr().String(), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
}

// shown connects and reads until when the login that was shown is good.
func shown(dial func(context.Context) (net.Conn, error)) (string, error) {
	conn, err := dial(context.Background())
	if err != nil {
		return "", err
	}
	defer conn.Close()
	b, err := io.ReadAll(conn)
	return string(b), err
}

// TestLasting: local proxies kept the login of their start for as long as they ran,
// through its end and past the next one.
func TestLasting(t *testing.T) {
	t.Setenv("HTTPS_PROXY", "")
	t.Setenv("https_proxy", "")
	far := newFarEnd(t, alpn.ServerName(string(sallyport.KindDatabase), "orders", "gw.test"))
	ends := func(in time.Duration) who {
		w := alice()
		w.proxy, w.from, w.until = far.addr, w.from.Add(-time.Hour), time.Now().Add(in).Truncate(time.Second)
		return w
	}
	const long = 5 * time.Hour
	for _, tt := range []struct {
		name         string
		first, later time.Duration // until the end of the logins
		now          bool          // the later one is in use at once
	}{
		{"ended", -time.Minute, long, true},
		{"about to end", renewBefore / 2, long, true},
		{"good", 2 * time.Hour, long, false},
		{"the later one ends before", renewBefore / 2, renewBefore / 4, false},
	} {
		for from, login := range map[string]func(*program, who) error{
			"a profile": func(p *program, w who) error {
				f, err := p.login(w)
				if err != nil {
					return err
				}
				return profile.WriteFile(p.home.CAsPath(f), far.ca)
			},
			"an identity file": func(p *program, w who) error {
				k, err := newSharedKey()
				if err != nil {
					return err
				}
				m, err := w.answer(k)
				if err != nil {
					return err
				}
				ca, _ := pem.Decode(far.ca)
				m.Authorities[0].Certificates = [][]byte{ca.Bytes}
				p.Identity, p.ProxyAddr = filepath.Join(string(p.home), "id"), far.addr
				return outputs{Out: p.Identity, Format: "file"}.write(p.profileOf(w), k, m)
			},
		} {
			t.Run(tt.name+" in "+from, func(t *testing.T) {
				p, first, later := newProgram(t), ends(tt.first), ends(tt.later)
				must(t, login(p, first))
				must(t, p.useIdentity("proxy db"))
				f, err := p.selected()
				must(t, err)
				c, err := p.credentials(f)
				must(t, err)
				to := p.lasting(&credentials{Credentials: c}).to(sallyport.KindDatabase, "orders", protocolDB)
				got, err := shown(to)
				var told *sallyport.Problem
				switch ended := tt.first < 0; {
				case !ended && got != fmt.Sprint(first.until.Unix()):
					t.Fatalf("before: %q, %v", got, err)
				case ended && (!errors.Is(err, sallyport.ErrUnauthorized) || !errors.As(err, &told) || !strings.HasPrefix(told.Hint, "sally login --proxy="+far.addr)):
					t.Fatalf("before: %q, %v", got, err)
				}
				bob := later
				bob.user = "bob"
				must(t, login(p, bob))
				if from == "a profile" { // in alice's place, as no login writes it
					for _, suffix := range []string{".key", ".crt"} {
						b, err := os.ReadFile(p.home.KeyPath(p.profileOf(bob), suffix))
						must(t, err)
						must(t, profile.WriteFile(p.home.KeyPath(f, suffix), b))
					}
				}
				if got, err := shown(to); got == fmt.Sprint(later.until.Unix()) {
					t.Fatalf("goes on as somebody else: %q, %v", got, err)
				}
				must(t, login(p, later))
				want := first.until
				if tt.now {
					want = later.until
				}
				if got, err := shown(to); got != fmt.Sprint(want.Unix()) {
					t.Errorf("after: %q, %v; want %d", got, err, want.Unix())
				}
			})
		}
	}
}

// TestFailures: connections that a local proxy could not make failed in silence.
func TestFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told strings.Builder
		f := &failures{to: &told}
		fails := func(ctx context.Context, err error) {
			t.Helper()
			if _, got := f.of(func(context.Context) (net.Conn, error) { return nil, err })(ctx); !errors.Is(got, err) {
				t.Errorf("%v", got)
			}
		}
		says := func(want string) {
			t.Helper()
			if told.String() != want {
				t.Errorf("%q, not %q", told.String(), want)
			}
			told.Reset()
		}
		ctx, cancel := context.WithCancel(t.Context())
		over := problem(sallyport.ErrUnauthorized, "your certificate ended", "sally login")
		fails(ctx, over)
		says("ERROR: a connection failed: your certificate ended\nhint: sally login\n")
		for range 40 {
			fails(ctx, over)
		}
		says("")
		time.Sleep(tellEvery)
		fails(ctx, errors.New("no answer\x1b"))
		says("ERROR: 41 connections failed, the last one: no answer\uFFFD\n")
		time.Sleep(tellEvery)
		fails(ctx, context.Canceled) // the client has gone
		cancel()
		fails(ctx, over) // the proxy ends
		says("")
		fails(t.Context(), over)
		says("ERROR: a connection failed: your certificate ended\nhint: sally login\n")
		a, b := net.Pipe()
		defer b.Close()
		conn, err := f.of(func(context.Context) (net.Conn, error) { return a, nil })(t.Context())
		if conn != a || err != nil {
			t.Errorf("%v, %v", conn, err)
		}
		a.Close()
		says("")
	})
}

// TestServeTells: who runs a local proxy for TCP learns why clients are let go, which
// are told nothing.
func TestServeTells(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	r, w := io.Pipe()
	p := newProgram(t)
	ctx, cancel := context.WithCancel(t.Context())
	p.ctx, p.stderr = ctx, w
	served := make(chan error, 1)
	go func() {
		served <- p.serve(&dial.LocalProxy{Listener: l, Dial: func(context.Context) (net.Conn, error) {
			return nil, problem(sallyport.ErrUnauthorized, "your certificate ended", "sally login")
		}})
	}()
	if client, err := net.Dial("tcp", l.Addr().String()); err == nil { // else it was let go before it knew that it was there
		defer client.Close()
	}
	line, err := bufio.NewReader(r).ReadString('\n')
	if err != nil || line != "ERROR: a connection failed: your certificate ended\n" {
		t.Errorf("%q, %v", line, err)
	}
	r.Close() // what follows is for nobody
	cancel()
	must(t, <-served)
}
