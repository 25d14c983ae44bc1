package ssh

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/identity"
	"github.com/sallyport/sallyport/tools/peers"
	reserve "github.com/sallyport/sallyport/tools/peers/port"
	"golang.org/x/crypto/ssh"
)

// A84 and A01: certificates made by hand and by ssh-keygen, shown to this server
// and to a real sshd that trusts the same CA. This server is never the more
// permissive one.

// certCase is one certificate. Exactly one of fields, change and keygen makes
// it.
type certCase struct {
	name string
	want bool

	fields func(*certFields)
	change func(*ssh.Certificate)
	keygen []string // options of ssh-keygen -s
	key    func(*testing.T) ssh.Signer
	ca     func(*differential) ssh.Signer
}

// certFields is a certificate on the wire (PROTOCOL.certkeys), field by field:
// what no library writes.
type certFields struct {
	name       string
	nonce      []byte
	public     []byte // the key's own fields
	serial     uint64
	kind       uint32
	keyID      string
	principals []byte
	after      uint64
	before     uint64
	options    []byte
	extensions []byte
	reserved   []byte
	signer     []byte
	signature  func(signed []byte) []byte
	tail       []byte
}

func (f *certFields) marshal() []byte {
	b := join(str(f.name, string(f.nonce)), f.public)
	b = binary.BigEndian.AppendUint64(b, f.serial)
	b = binary.BigEndian.AppendUint32(b, f.kind)
	b = join(b, str(f.keyID, string(f.principals)))
	b = binary.BigEndian.AppendUint64(b, f.after)
	b = binary.BigEndian.AppendUint64(b, f.before)
	b = join(b, str(string(f.options), string(f.extensions), string(f.reserved), string(f.signer)))
	return join(b, str(string(f.signature(b))), f.tail)
}

// blobKey is a public key of which only the wire form matters.
type blobKey struct {
	kind string
	blob []byte
}

func (k blobKey) Type() string                        { return k.kind }
func (k blobKey) Marshal() []byte                     { return k.blob }
func (k blobKey) Verify([]byte, *ssh.Signature) error { return fmt.Errorf("not here") }

// blobSigner shows a certificate and signs with its key.
type blobSigner struct {
	ssh.Signer
	public ssh.PublicKey
}

func (s blobSigner) PublicKey() ssh.PublicKey { return s.public }

func option(name string, value ...string) []byte {
	var data []byte
	if len(value) > 0 {
		data = str(value[0])
	}
	return str(name, string(data))
}

// differential is the two servers.
type differential struct {
	t       *testing.T
	host    *host
	sshd    string // address; "" without one
	keygen  string
	caFile  string
	id      string // the identity extension
	foreign ssh.Signer
}

func newDifferential(t *testing.T) *differential {
	t.Helper()
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	d := &differential{t: t, foreign: newKey(t), id: identityOf(t, "alice", cluster)}
	d.host = newHost(t, func(h *host) { h.login = me.Username; h.addSelf(me) })
	if d.keygen, err = exec.LookPath("ssh-keygen"); err != nil {
		peers.Missing(t, "ssh-keygen")
	}
	d.startSSHD()
	return d
}

// addSelf offers the test's own login in the host's accounts.
func (h *host) addSelf(me *user.User) {
	f, err := os.OpenFile(filepath.Join(h.server.etc, "passwd"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		h.t.Fatal(err)
	}
	defer f.Close()
	if me.Uid != "0" {
		fmt.Fprintf(f, "%s:x:%s:%s::%s:/bin/sh\n", me.Username, me.Uid, me.Gid, me.HomeDir)
	}
}

// startSSHD runs a real sshd with TrustedUserCAKeys on a loopback port.
func (d *differential) startSSHD() {
	t := d.t
	path := "/usr/sbin/sshd"
	if _, err := os.Stat(path); err != nil {
		peers.Missing(t, "sshd")
	}
	dir := t.TempDir()
	if os.Getuid() == 0 {
		if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
			peers.Missing(t, "sshd (which wants /run/sshd)")
		}
	}
	run(t, d.keygen, "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(dir, "hostkey"))
	d.caFile = filepath.Join(dir, "ca")
	writePrivate(t, d.caFile, d.host.userCA)
	var err error
	if d.sshd, err = reserve.Reserve(); err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(dir, "sshd_config")
	text := fmt.Sprintf("ListenAddress 127.0.0.1\nPort %s\nHostKey %s/hostkey\nTrustedUserCAKeys %s.pub\nAuthorizedKeysFile none\n"+
		"PasswordAuthentication no\nKbdInteractiveAuthentication no\nUsePAM no\nStrictModes no\nPidFile none\nPermitRootLogin yes\nMaxAuthTries 20\nLogLevel VERBOSE\n",
		port(d.sshd), dir, d.caFile)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	cmd := exec.Command(path, "-D", "-e", "-f", config)
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Log(log.String())
		}
	})
	eventually(t, "sshd to listen", func() bool {
		c, err := net.Dial("tcp", d.sshd)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
}

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// letIn says whether a server lets the signer in.
func (d *differential) letIn(addr, login string, signer ssh.Signer) bool {
	c, err := ssh.Dial("tcp", addr, &ssh.ClientConfig{
		User: login, Auth: []ssh.AuthMethod{ssh.PublicKeys(signer)}, Timeout: deadline, HostKeyCallback: ssh.InsecureIgnoreHostKey(),
	})
	if err != nil {
		return false
	}
	c.Close()
	return true
}

// make makes the case's certificate, and returns who shows it.
func (d *differential) make(t *testing.T, c certCase) ssh.Signer {
	t.Helper()
	key := newKey(t)
	if c.key != nil {
		key = c.key(t)
	}
	ca := d.host.userCA
	if c.ca != nil {
		ca = c.ca(d)
	}
	switch {
	case c.keygen != nil:
		return d.byKeygen(t, c, key)
	case c.fields != nil:
		f := d.goodFields(key, ca)
		c.fields(f)
		return blobSigner{Signer: key, public: blobKey{kind: f.name, blob: f.marshal()}}
	}
	cert := &ssh.Certificate{
		Key: key.PublicKey(), Serial: 7, CertType: ssh.UserCert, KeyId: "alice", ValidPrincipals: []string{d.host.login},
		ValidAfter: uint64(time.Now().Add(-time.Minute).Unix()), ValidBefore: uint64(time.Now().Add(time.Hour).Unix()),
		Permissions: ssh.Permissions{Extensions: map[string]string{"permit-pty": "", identity.SSHExtensionName: d.id}},
	}
	if c.change != nil {
		c.change(cert)
	}
	if err := cert.SignCert(rand.Reader, ca); err != nil {
		t.Fatal(err)
	}
	s, err := ssh.NewCertSigner(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (d *differential) goodFields(key, ca ssh.Signer) *certFields {
	blob := key.PublicKey().Marshal()
	f := &certFields{
		name: key.PublicKey().Type() + "-cert-v01@openssh.com", nonce: make([]byte, 32),
		public: blob[4+len(key.PublicKey().Type()):], serial: 1, kind: ssh.UserCert, keyID: "alice",
		principals: str(d.host.login), after: uint64(time.Now().Add(-time.Minute).Unix()), before: uint64(time.Now().Add(time.Hour).Unix()),
		extensions: join(option(identity.SSHExtensionName, d.id), option("permit-pty")), signer: ca.PublicKey().Marshal(),
	}
	f.signature = signWith(ca)
	return f
}

func signWith(ca ssh.Signer) func([]byte) []byte {
	return func(signed []byte) []byte {
		sig, err := ca.Sign(rand.Reader, signed)
		if err != nil {
			return nil
		}
		return ssh.Marshal(sig)
	}
}

func (d *differential) byKeygen(t *testing.T, c certCase, key ssh.Signer) ssh.Signer {
	t.Helper()
	file := filepath.Join(t.TempDir(), "key.pub")
	if err := os.WriteFile(file, ssh.MarshalAuthorizedKey(key.PublicKey()), 0o600); err != nil {
		t.Fatal(err)
	}
	args := append([]string{"-q", "-s", d.caFile, "-I", "alice", "-O", "extension:" + identity.SSHExtensionName + "=" + d.id}, c.keygen...)
	run(t, d.keygen, append(args, file)...)
	text, err := os.ReadFile(strings.TrimSuffix(file, ".pub") + "-cert.pub")
	if err != nil {
		t.Fatal(err)
	}
	public, _, _, _, err := ssh.ParseAuthorizedKey(text)
	if err != nil {
		// What the library will not read is shown as it is.
		fields := strings.Fields(string(text))
		return blobSigner{Signer: key, public: blobKey{kind: fields[0], blob: decode64(t, fields[1])}}
	}
	return blobSigner{Signer: key, public: public}
}

func rsaKey(bits int) func(*testing.T) ssh.Signer {
	return func(t *testing.T) ssh.Signer {
		t.Setenv("GODEBUG", "rsa1024min=0")
		k, err := rsa.GenerateKey(rand.Reader, bits)
		if err != nil {
			t.Fatal(err)
		}
		s, err := ssh.NewSignerFromKey(k)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
}

func ecdsaKey(curve elliptic.Curve) func(*testing.T) ssh.Signer {
	return func(t *testing.T) ssh.Signer {
		k, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		s, err := ssh.NewSignerFromKey(k)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
}

func certCases(login string) []certCase {
	now := uint64(time.Now().Unix())
	const soon = 60 * 60 // seconds: all cases are tried before, also on a busy machine
	other := func(d *differential) ssh.Signer { return d.foreign }
	options := func(kv ...string) func(*ssh.Certificate) {
		return func(c *ssh.Certificate) {
			c.CriticalOptions = map[string]string{}
			for i := 0; i < len(kv); i += 2 {
				c.CriticalOptions[kv[i]] = kv[i+1]
			}
		}
	}
	principals := func(list ...string) func(*ssh.Certificate) {
		return func(c *ssh.Certificate) { c.ValidPrincipals = list }
	}
	times := func(after, before uint64) func(*ssh.Certificate) {
		return func(c *ssh.Certificate) { c.ValidAfter, c.ValidBefore = after, before }
	}
	return []certCase{
		{name: "good", want: true, change: func(*ssh.Certificate) {}},
		{name: "good by hand", want: true, fields: func(*certFields) {}},
		{name: "good by ssh-keygen", want: true, keygen: []string{"-n", login, "-V", "-1m:+1h"}},
		{name: "serial 0", want: true, change: func(c *ssh.Certificate) { c.Serial = 0 }},
		{name: "largest serial", want: true, change: func(c *ssh.Certificate) { c.Serial = 1<<64 - 1 }},
		{name: "ECDSA P-256 key", want: true, key: ecdsaKey(elliptic.P256())},
		{name: "ECDSA P-384 key", want: true, key: ecdsaKey(elliptic.P384())},
		{name: "ECDSA P-521 key", want: true, key: ecdsaKey(elliptic.P521())},
		{name: "RSA 3072 key", want: true, key: rsaKey(3072)},
		{name: "RSA 1024 key", key: rsaKey(1024)},

		// Principals.
		{name: "one of two principals", want: true, change: principals("someone", login)},
		{name: "no principals", change: principals()},
		{name: "no principals by ssh-keygen", keygen: []string{"-V", "-1m:+1h"}},
		{name: "empty principal", change: principals("")},
		{name: "empty principal and login", change: principals("", login)},
		{name: "other principal", change: principals("someone")},
		{name: "wildcard", change: principals("*")},
		{name: "wildcard and login", change: principals("*", login)},
		{name: "question mark", change: principals(strings.Repeat("?", len(login)))},
		{name: "comma list", change: principals(login + ",someone")},
		{name: "space after", change: principals(login + " ")},
		{name: "space before", change: principals(" " + login)},
		{name: "NUL after", change: principals(login + "\x00")},
		{name: "NUL and more", change: principals(login + "\x00someone")},
		{name: "newline", change: principals(login + "\n")},
		{name: "other case", change: principals(strings.ToUpper(login))},
		{name: "prefix", change: principals(login[:len(login)-1])},
		{name: "longer", change: principals(login + "x")},
		{name: "negated", change: principals("!someone")},
		{name: "principals cut off", fields: func(f *certFields) { f.principals = f.principals[:len(f.principals)-1] }},
		{name: "300 principals", change: func(c *ssh.Certificate) {
			c.ValidPrincipals = nil
			for i := range 299 {
				c.ValidPrincipals = append(c.ValidPrincipals, "p"+strconv.Itoa(i))
			}
			c.ValidPrincipals = append(c.ValidPrincipals, login)
		}},

		// Time.
		{name: "expired", change: times(now-100, now-1)},
		{name: "expires now", change: times(now-100, now)},
		{name: "not yet valid", change: times(now+soon, now+2*soon)},
		{name: "before after", change: times(now+soon, now-100)},
		{name: "zero to zero", change: times(0, 0)},
		{name: "from the beginning", want: true, change: times(0, now+soon)},
		{name: "forever", change: times(0, ssh.CertTimeInfinity)},
		{name: "forever by ssh-keygen", keygen: []string{"-n", login, "-V", "always:forever"}},
		{name: "almost forever", change: times(0, ssh.CertTimeInfinity-1)},
		{name: "sign bit in after", change: times(1<<63, now+soon)},
		{name: "sign bit in before", change: times(0, 1<<63)},
		{name: "expired by ssh-keygen", keygen: []string{"-n", login, "-V", "-2h:-1h"}},

		// Type.
		{name: "host certificate", change: func(c *ssh.Certificate) { c.CertType = ssh.HostCert }},
		{name: "host certificate by ssh-keygen", keygen: []string{"-h", "-n", login, "-V", "-1m:+1h"}},
		{name: "type 0", change: func(c *ssh.Certificate) { c.CertType = 0 }},
		{name: "type 3", change: func(c *ssh.Certificate) { c.CertType = 3 }},

		// Critical options.
		{name: "unknown critical option", change: options("no-such-option", "")},
		{name: "unknown critical option by ssh-keygen", keygen: []string{"-n", login, "-V", "-1m:+1h", "-O", "critical:no-such-option=x"}},
		{name: "critical option of our own extension's name", change: options(identity.SSHExtensionName, "x")},
		{name: "permit-pty as critical option", change: options("permit-pty", "")},
		{name: "force-command", change: options("force-command", "true")},
		{name: "force-command by ssh-keygen", keygen: []string{"-n", login, "-V", "-1m:+1h", "-O", "force-command=true"}},
		{name: "empty force-command", change: options("force-command", "")},
		{name: "verify-required", change: options("verify-required", "")},
		{name: "verify-required by ssh-keygen", keygen: []string{"-n", login, "-V", "-1m:+1h", "-O", "verify-required"}},
		{name: "source-address here", want: true, change: options("source-address", "127.0.0.1")},
		{name: "source-address here by ssh-keygen", want: true, keygen: []string{"-n", login, "-V", "-1m:+1h", "-O", "source-address=127.0.0.1/32"}},
		{name: "source-address elsewhere", change: options("source-address", "192.0.2.1/32")},
		{name: "empty source-address", change: options("source-address", "")},
		{name: "source-address with host bits", change: options("source-address", "127.0.0.1/8")},
		{name: "source-address with rubbish", change: options("source-address", "127.0.0.1,rubbish")},
		{name: "source-address with space", change: options("source-address", "127.0.0.1 ")},
		{name: "source-address wildcard", change: options("source-address", "*")},
		{name: "duplicate option", fields: func(f *certFields) {
			f.options = join(option("source-address", "192.0.2.1"), option("source-address", "127.0.0.1"))
		}},
		{name: "duplicate option, other order", fields: func(f *certFields) {
			f.options = join(option("source-address", "127.0.0.1"), option("source-address", "192.0.2.1"))
		}},
		{name: "options out of order", fields: func(f *certFields) {
			f.options = join(option("source-address", "127.0.0.1"), option("force-command", "true"))
		}},
		{name: "option without inner length", fields: func(f *certFields) { f.options = str("source-address", "127.0.0.1") }},
		{name: "option with trailing bytes", fields: func(f *certFields) {
			f.options = str("source-address", string(str("127.0.0.1"))+"x")
		}},
		{name: "options cut off", fields: func(f *certFields) { f.options = []byte{0, 0, 0, 9, 'x'} }},

		// Extensions.
		{name: "unknown extension", want: true, change: func(c *ssh.Certificate) { c.Extensions["what@example.com"] = "x" }},
		{name: "no-touch-required", want: true, change: func(c *ssh.Certificate) { c.Extensions["no-touch-required"] = "" }},
		{name: "no identity", change: func(c *ssh.Certificate) { delete(c.Extensions, identity.SSHExtensionName) }},
		{name: "identity of another name", change: func(c *ssh.Certificate) { c.KeyId = "root" }},
		{name: "empty key id", change: func(c *ssh.Certificate) { c.KeyId = "" }},
		{name: "identity twice", fields: func(f *certFields) { f.extensions = join(f.extensions[:len(f.extensions)/2*2], f.extensions) }},

		// Who signed.
		{name: "foreign CA", ca: other},
		{name: "A01 host CA", ca: func(d *differential) ssh.Signer { return d.host.hostCA }},
		{name: "signed by itself", fields: func(f *certFields) {}, ca: func(d *differential) ssh.Signer { return newKey(d.t) }},
		{name: "A01 claims the CA, signed by another", fields: func(f *certFields) {}, ca: func(d *differential) ssh.Signer {
			return blobSigner{Signer: d.foreign, public: d.host.userCA.PublicKey()}
		}},
		{name: "signature of other bytes", fields: func(f *certFields) {
			sign := f.signature
			f.signature = func(b []byte) []byte { return sign(append(b, 0)) }
		}},
		{name: "empty signature", fields: func(f *certFields) { f.signature = func([]byte) []byte { return nil } }},
		{name: "empty signature key", fields: func(f *certFields) { f.signer = nil }},
		{name: "changed after signing", fields: func(f *certFields) {
			sign := f.signature
			f.signature = func(b []byte) []byte {
				sig := sign(bytes.Replace(b, f.principals, str(strings.Repeat("z", len(login))), 1))
				return sig
			}
		}},
		{name: "trailing bytes", fields: func(f *certFields) { f.tail = []byte("x") }},
		{name: "reserved bytes", fields: func(f *certFields) { f.reserved = []byte("x") }, want: true},
		{name: "empty nonce", fields: func(f *certFields) { f.nonce = nil }, want: true},
		{name: "A01 one level", fields: func(f *certFields) { f.nest(1) }},
		{name: "A01 two levels", fields: func(f *certFields) { f.nest(2) }},
		{name: "A01 three levels", fields: func(f *certFields) { f.nest(3) }},
	}
}

// nest puts a certificate signed by the real CA in place of the signing key: a
// leaf that passes itself off as a CA (CVE-2025-49825).
func (f *certFields) nest(levels int) {
	for range levels {
		inner := *f
		f.signer = inner.marshal()
	}
}

func TestA84_CertificateSemantics(t *testing.T) {
	d := newDifferential(t)
	for _, c := range certCases(d.host.login) {
		t.Run(c.name, func(t *testing.T) {
			signer := d.make(t, c)
			login := d.host.login
			events := len(d.host.gate.named("auth"))
			got := d.letIn(d.host.addr, login, signer)
			waitFor(t, "Serve to return", func() { <-d.host.errs })
			if got != c.want {
				t.Errorf("let in: %v, want %v; events %+v", got, c.want, d.host.gate.named("auth")[events:])
			}
			if lines := len(d.host.gate.named("auth")) - events; !got && lines != 1 {
				t.Errorf("%d lines in the audit log: %+v", lines, d.host.gate.named("auth")[events:])
			}
			if theirs := d.letIn(d.sshd, login, signer); got && !theirs {
				t.Error("sshd refuses what this server accepts")
			} else if got != theirs {
				t.Logf("stricter than sshd")
			}
		})
	}
}

// TestA84_SHA1: a CA's signature with SHA-1 is none, in sshd and here.
func TestA84_SHA1(t *testing.T) {
	ca, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	h := newHost(t, nil)
	if h.userCA, err = ssh.NewSignerFromKey(ca); err != nil {
		t.Fatal(err)
	}
	c, err := h.dialAs(h.login, h.signer(nil)) // by SHA-512
	if err != nil {
		t.Fatalf("%v, banner %q", err, c.banner)
	}
	c.Close()
	waitFor(t, "Serve to return", func() { <-h.errs })
	h.userCA = sha1Signer{h.userCA, ca}
	refusedAs(t, h, h.login, "the certificate is signed by ssh-rsa", h.signer(nil))
}

type sha1Signer struct {
	ssh.Signer
	key *rsa.PrivateKey
}

func (s sha1Signer) Sign(r io.Reader, data []byte) (*ssh.Signature, error) {
	sum := sha1.Sum(data)
	sig, err := rsa.SignPKCS1v15(r, s.key, crypto.SHA1, sum[:])
	return &ssh.Signature{Format: "ssh-rsa", Blob: sig}, err
}
