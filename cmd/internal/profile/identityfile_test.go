package profile

import (
	"bytes"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport/sallyport"
)

// block is a PEM block with a word for its bytes.
func block(kind, word string) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: []byte(word)}))
}

const (
	sshCertLine = "ecdsa-sha2-nistp256-cert-v01@openssh.com AAAA alice\n"
	knownLine   = "@cert-authority gw.test,gw.test,*.gw.test ssh-ed25519 AAAA type=host\n"
)

func TestIdentityFileParts(t *testing.T) {
	key, cert, ca1, ca2 := block("PRIVATE KEY", "key"), block("CERTIFICATE", "cert"), block("CERTIFICATE", "one"), block("CERTIFICATE", "two")
	whole := key + sshCertLine + cert + knownLine + ca1 + ca2
	for _, tt := range []struct{ name, text, fault string }{
		{"ours", whole, ""},
		{"unknown lines", "# a comment\n" + key + "\n\nx y\n" + sshCertLine + cert + knownLine + "later: words\n" + ca1 + ca2, ""},
		{"another order", knownLine + sshCertLine + key + cert + ca1 + ca2, ""},
		{"CRLF", strings.ReplaceAll(whole, "\n", "\r\n"), ""},
		{"empty", "", "no key"},
		{"key alone", key, "no TLS certificate"},
		{"without CA", key + sshCertLine + cert, "no CA"},
		{"a damaged block", key + "-----BEGIN CERTIFICATE-----\nAAAA\n", "damaged"},
	} {
		i, err := parseIdentity([]byte(tt.text))
		if tt.fault != "" {
			if err == nil || !strings.Contains(err.Error(), tt.fault) {
				t.Errorf("%s: %v", tt.name, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		if got := string(i.Encode()); got != whole {
			t.Errorf("%s: became\n%s", tt.name, got)
		}
	}
}

func TestReadIdentityFile(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	bare := block("PRIVATE KEY", "key") + block("CERTIFICATE", "cert") + block("CERTIFICATE", "ca")
	beside := write("beside", bare)
	write("beside-cert.pub", sshCertLine)
	if i, err := ReadIdentityFile(beside); err != nil || string(i.SSHCert) != sshCertLine {
		t.Errorf("certificate beside: %+v, %v", i, err)
	}
	for path, want := range map[string]string{
		write("bare", bare): "no SSH certificate",
		write("large", strings.Repeat("x", maxIdentityFile+1)): "too large",
		filepath.Join(dir, "none"):                             "no such file",
		write("text", "hello\n"):                               "no key",
	} {
		_, err := ReadIdentityFile(path)
		var p *sallyport.Problem
		if !errors.As(err, &p) || !strings.Contains(p.Fact, want) || p.Hint == "" {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
	i := &IdentityFile{Key: []byte(block("PRIVATE KEY", "x")), TLSCert: []byte(block("CERTIFICATE", "x")), CAs: []byte(block("CERTIFICATE", "x")), SSHCert: []byte(sshCertLine)}
	if _, err := i.Credentials("f", "gw.test:443"); !errors.Is(err, sallyport.ErrInvalid) {
		t.Errorf("rubbish in PEM: %v", err)
	}
	if _, err := i.Signer("f"); !errors.Is(err, sallyport.ErrInvalid) {
		t.Errorf("rubbish for a key: %v", err)
	}
}

// TestReadIdentityPipe: a pipe is read as a file is, and nobody waits for ever for one
// that nobody writes to.
func TestReadIdentityPipe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	var p *sallyport.Problem
	if _, err := ReadIdentityFile(path); !errors.As(err, &p) || !strings.Contains(p.Fact, "no key") {
		t.Errorf("without a writer: %v", err)
	}
	w, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	_, err = readBounded(path, time.Millisecond)
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a silent writer: %v", err)
	}
	if err = unreadableIdentity(path, err); !strings.Contains(err.Error(), "does not come to an end") {
		t.Errorf("a silent writer: %v", err)
	}
	whole := &IdentityFile{Key: []byte(block("PRIVATE KEY", "x")), TLSCert: []byte(block("CERTIFICATE", "x")), CAs: []byte(block("CERTIFICATE", "x")), SSHCert: []byte(sshCertLine)}
	if _, err := w.Write(whole.Encode()); err != nil {
		t.Fatal(err)
	}
	r, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // what is written stays for as long as one has it open
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	w.Close()
	if i, err := ReadIdentityFile(path); err != nil || string(i.SSHCert) != sshCertLine {
		t.Errorf("by a pipe: %+v, %v", i, err)
	}
}

// FuzzIdentityFile: what is read once is read the same again.
func FuzzIdentityFile(f *testing.F) {
	f.Add([]byte(block("PRIVATE KEY", "key") + sshCertLine + block("CERTIFICATE", "cert") + knownLine + block("CERTIFICATE", "ca")))
	f.Add([]byte("-----BEGIN X-----\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		i, err := parseIdentity(b)
		if err != nil {
			return
		}
		once := i.Encode()
		again, err := parseIdentity(once)
		if err != nil {
			t.Fatalf("%v in\n%s", err, once)
		}
		if !bytes.Equal(again.Encode(), once) {
			t.Fatalf("became\n%s\nthen\n%s", once, again.Encode())
		}
	})
}
