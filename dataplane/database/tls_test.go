package database

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/sallyport/sallyport/dataplane/database/dbtest"
)

// TestSystemRootsAreNotUsed runs in a process of its own whose system trusts
// our database CA: a pool that is missing must not mean the system's.
func TestSystemRootsAreNotUsed(t *testing.T) {
	const child = "SALLYPORT_TEST_SYSTEM_ROOTS"
	if os.Getenv(child) == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^TestSystemRootsAreNotUsed$", "-test.count=1")
		dir := t.TempDir()
		cmd.Env = append(os.Environ(), child+"=1", "SSL_CERT_FILE="+filepath.Join(dir, "ca"), "SSL_CERT_DIR="+dir)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	if err := os.WriteFile(os.Getenv("SSL_CERT_FILE"), dbtest.DBCA.PEM, 0o600); err != nil {
		t.Fatal(err)
	}
	leaf := must(x509.ParseCertificate(dbtest.DBCA.Pair("server", "db.internal").Certificate[0]))
	if _, err := leaf.Verify(x509.VerifyOptions{DNSName: "db.internal"}); err != nil {
		t.Skipf("this system's trust cannot be set: %v", err)
	}
	if _, err := verify([]*x509.Certificate{leaf}, x509.VerifyOptions{DNSName: "db.internal"}, []*x509.CertPool{nil, nil}); err == nil {
		t.Error("the system's roots were used")
	}
}

// TestLastWords: a server's refusal of a certificate is heard by a client that was
// writing when the connection was closed.
func TestLastWords(t *testing.T) {
	l := must(net.Listen("tcp", "127.0.0.1:0"))
	defer l.Close()
	certificate := dbtest.DBCA.Pair("server", "db.internal")
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		raw, err := l.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		defer raw.Close()
		if err := tls.Server(raw, &tls.Config{Certificates: []tls.Certificate{certificate}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: x509.NewCertPool()}).Handshake(); err == nil {
			t.Error("a certificate of nobody's was taken")
		}
	}()
	client := dbtest.UserCA.Pair("alice")
	raw := must(net.Dial("tcp", l.Addr().String()))
	defer raw.Close()
	conn := Client(raw, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{client}})
	if err := conn.Handshake(); err != nil {
		t.Fatal(err)
	}
	<-closed
	var failed error
	for failed == nil {
		_, failed = conn.Write([]byte("a"))
	}
	if _, ok := RemoteAlert(LastWords(conn, failed)); !ok {
		t.Errorf("after %v: %v", failed, LastWords(conn, failed))
	}
	if got := Unreachable(failed); got != "closed the connection before the session began" {
		t.Errorf("%v is told as %q", failed, got)
	}
}
