package ssh

import (
	"bufio"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

// rawClient speaks the SSH transport (RFC 4253, curve25519-sha256 and
// aes128-gcm@openssh.com) and sends whatever a test wants, in whatever order:
// no library lets one do that.
type rawClient struct {
	net.Conn
	t       testing.TB
	r       *bufio.Reader
	out, in *gcm // nil before NEWKEYS
	version string
	banner  string
	session []byte // session identifier
}

// gcm is one direction (RFC 5647 as OpenSSH has it).
type gcm struct {
	aead  cipher.AEAD
	nonce []byte
}

func (g *gcm) next() []byte {
	n := append([]byte(nil), g.nonce...)
	binary.BigEndian.PutUint64(g.nonce[4:], binary.BigEndian.Uint64(g.nonce[4:])+1)
	return n
}

// Message numbers (RFC 4250 section 4.1.2).
const (
	msgDisconnect      = 1
	msgServiceRequest  = 5
	msgServiceAccept   = 6
	msgKexInit         = 20
	msgNewKeys         = 21
	msgECDHInit        = 30
	msgAuthRequest     = 50
	msgAuthFailure     = 51
	msgAuthSuccess     = 52
	msgAuthBanner      = 53
	msgAuthPKOK        = 60
	msgGlobalRequest   = 80
	msgRequestSuccess  = 81
	msgRequestFailure  = 82
	msgChannelOpen     = 90
	msgChannelConfirm  = 91
	msgChannelRefused  = 92
	msgChannelData     = 94
	msgChannelExtended = 95
	msgChannelEnd      = 96
	msgChannelRequest  = 98
	msgChannelClose    = 97
	msgChannelSuccess  = 99
	msgChannelFailure  = 100
)

func str(parts ...string) []byte {
	var b []byte
	for _, p := range parts {
		b = binary.BigEndian.AppendUint32(b, uint32(len(p)))
		b = append(b, p...)
	}
	return b
}

func join(parts ...[]byte) []byte {
	var b []byte
	for _, p := range parts {
		b = append(b, p...)
	}
	return b
}

// rawGreet sends a version.
func (h *host) rawGreet() *rawClient {
	h.t.Helper()
	conn, err := net.Dial("tcp", h.addr)
	if err != nil {
		h.t.Fatal(err)
	}
	c := &rawClient{Conn: conn, t: h.t, r: bufio.NewReader(conn)}
	h.t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(deadline)); err != nil {
		h.t.Fatal(err)
	}
	fmt.Fprint(conn, "SSH-2.0-raw\r\n")
	return c
}

// rawConnect exchanges versions.
func (h *host) rawConnect() *rawClient {
	h.t.Helper()
	c := h.rawGreet()
	line, err := c.r.ReadString('\n')
	if err != nil {
		h.t.Fatal(err)
	}
	c.version = strings.TrimRight(line, "\r\n")
	return c
}

// rawKeys agrees on keys.
func (h *host) rawKeys() *rawClient {
	h.t.Helper()
	c := h.rawConnect()
	none := str("none")
	gcmName := str("aes128-gcm@openssh.com")
	macs := str("hmac-sha2-256-etm@openssh.com")
	ours := join([]byte{msgKexInit}, make([]byte, 16), str("curve25519-sha256"), str("ssh-ed25519-cert-v01@openssh.com"),
		gcmName, gcmName, macs, macs, none, none, str(""), str(""), make([]byte, 5))
	c.send(ours)
	theirs := c.expect(msgKexInit)
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		h.t.Fatal(err)
	}
	public := string(key.PublicKey().Bytes())
	c.send(join([]byte{msgECDHInit}, str(public)))
	var reply struct{ HostKey, Public, Signature string }
	if err := ssh.Unmarshal(c.expect(31)[1:], &reply); err != nil {
		h.t.Fatal(err)
	}
	peer, err := ecdh.X25519().NewPublicKey([]byte(reply.Public))
	if err != nil {
		h.t.Fatal(err)
	}
	secret, err := key.ECDH(peer)
	if err != nil {
		h.t.Fatal(err)
	}
	k := mpint(secret)
	sum := sha256.Sum256(join(str("SSH-2.0-raw", c.version, string(ours), string(theirs), reply.HostKey, public, reply.Public), k))
	c.session = sum[:]
	c.expect(msgNewKeys)
	c.send([]byte{msgNewKeys})
	derive := func(letter byte, n int) []byte {
		d := sha256.Sum256(join(k, c.session, []byte{letter}, c.session))
		return d[:n]
	}
	c.out, c.in = newGCM(derive('C', 16), derive('A', 12)), newGCM(derive('D', 16), derive('B', 12))
	return c
}

func mpint(b []byte) []byte {
	for len(b) > 0 && b[0] == 0 {
		b = b[1:]
	}
	if len(b) > 0 && b[0]&0x80 != 0 {
		b = append([]byte{0}, b...)
	}
	return str(string(b))
}

func newGCM(key, nonce []byte) *gcm {
	block, _ := aes.NewCipher(key)
	aead, _ := cipher.NewGCM(block)
	return &gcm{aead: aead, nonce: nonce}
}

// rawService has the user authentication service, and nobody's rights.
func (h *host) rawService() *rawClient {
	h.t.Helper()
	c := h.rawKeys()
	c.send(join([]byte{msgServiceRequest}, str("ssh-userauth")))
	c.expect(msgServiceAccept)
	return c
}

// rawLogin is authenticated as alice.
func (h *host) rawLogin() *rawClient {
	h.t.Helper()
	c := h.rawService()
	c.sign(h.login, h.signer(nil))
	c.expect(msgAuthSuccess)
	return c
}

// ask offers a key without a proof.
func (c *rawClient) ask(login string, key ssh.PublicKey) {
	c.send(join([]byte{msgAuthRequest}, str(login, "ssh-connection", "publickey"), []byte{0}, str(key.Type(), string(key.Marshal()))))
}

// sign proves a key.
func (c *rawClient) sign(login string, signer ssh.Signer) {
	c.signWith(login, signer.PublicKey(), signer)
}

// signWith claims one key and signs with another.
func (c *rawClient) signWith(login string, key ssh.PublicKey, signer ssh.Signer) {
	request := join([]byte{msgAuthRequest}, str(login, "ssh-connection", "publickey"), []byte{1}, str(key.Type(), string(key.Marshal())))
	sig, err := signer.Sign(rand.Reader, join(str(string(c.session)), request))
	if err != nil {
		c.t.Fatal(err)
	}
	c.send(join(request, str(string(ssh.Marshal(sig)))))
}

func (c *rawClient) send(payload []byte) {
	c.t.Helper()
	if err := c.trySend(payload); err != nil {
		c.t.Fatal(err)
	}
}

func (c *rawClient) trySend(payload []byte) error {
	block, covered := 8, 5 // the length counts where it is encrypted
	if c.out != nil {
		block, covered = 16, 1
	}
	pad := block - (len(payload)+covered)%block
	if pad < 4 {
		pad += block
	}
	body := join([]byte{byte(pad)}, payload, make([]byte, pad))
	length := binary.BigEndian.AppendUint32(nil, uint32(len(body)))
	if c.out != nil {
		body = c.out.aead.Seal(nil, c.out.next(), body, length)
	}
	_, err := c.Write(join(length, body))
	return err
}

// read gives the next packet, or the end.
func (c *rawClient) read() ([]byte, error) {
	length := make([]byte, 4)
	if _, err := io.ReadFull(c.r, length); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint32(length))
	if n > 1<<18 {
		return nil, errors.New("packet too large")
	}
	if c.in != nil {
		n += c.in.aead.Overhead()
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(c.r, body); err != nil {
		return nil, err
	}
	if c.in != nil {
		var err error
		if body, err = c.in.aead.Open(nil, c.in.next(), body, length); err != nil {
			return nil, err
		}
	}
	return body[1 : len(body)-int(body[0])], nil
}

// expect reads up to a message of one number, which is the next but for
// banners.
func (c *rawClient) expect(number byte) []byte {
	c.t.Helper()
	for {
		p, err := c.read()
		if err != nil {
			c.t.Fatalf("want message %d: %v", number, err)
		}
		if p[0] == msgAuthBanner && number != msgAuthBanner {
			c.banner += string(p)
			continue
		}
		if p[0] != number {
			c.t.Fatalf("got message %d, want %d", p[0], number)
		}
		return p
	}
}

func channelOpen(kind string, id uint32) []byte {
	b := join([]byte{msgChannelOpen}, str(kind))
	b = binary.BigEndian.AppendUint32(b, id)
	b = binary.BigEndian.AppendUint32(b, 1<<20)
	return binary.BigEndian.AppendUint32(b, 1<<15)
}

func channelRequest(id uint32, name string, reply bool, rest []byte) []byte {
	want := byte(0)
	if reply {
		want = 1
	}
	b := binary.BigEndian.AppendUint32([]byte{msgChannelRequest}, id)
	return join(b, str(name), []byte{want}, rest)
}

func globalRequest(name string, rest []byte) []byte {
	return join([]byte{msgGlobalRequest}, str(name), []byte{1}, rest)
}

// TestA10_ProxyHeader: what comes before a client's version is not passed over, but
// ends the connection: all that the node has said is its own version.
func TestA10_ProxyHeader(t *testing.T) {
	h := newHost(t, nil)
	conn, err := net.Dial("tcp", h.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(deadline)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, "PROXY TCP4 192.0.2.1 192.0.2.2 1 22\r\nSSH-2.0-x\r\n"); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(conn) // its end may be a reset: there are bytes that nobody has read
	if _, more, _ := strings.Cut(string(b), "\n"); more != "" || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%q, %v", b, err)
	}
}
