package sshauth

import (
	"strings"

	"github.com/sallyport/sallyport"
	"golang.org/x/crypto/ssh"
)

// Config has what is modern on both sides since 2018: AEAD or encrypt-then-MAC,
// no SHA-1, no compression (the library has none). Strict key exchange
// (Terrapin, CVE-2023-48795) is on whenever the client knows it. Who lets
// nobody in by it adds the callbacks.
func Config(host ssh.Signer, version string) *ssh.ServerConfig {
	config := &ssh.ServerConfig{
		Config: ssh.Config{
			KeyExchanges: []string{
				ssh.KeyExchangeMLKEM768X25519, ssh.KeyExchangeCurve25519, "curve25519-sha256@libssh.org",
				ssh.KeyExchangeECDHP256, ssh.KeyExchangeECDHP384,
			},
			Ciphers: []string{
				ssh.CipherAES128GCM, ssh.CipherAES256GCM, ssh.CipherChaCha20Poly1305,
				ssh.CipherAES256CTR, ssh.CipherAES128CTR,
			},
			MACs: []string{ssh.HMACSHA256ETM, ssh.HMACSHA512ETM},
		},
		PublicKeyAuthAlgorithms: KeyAlgorithms(),
		ServerVersion:           identification(version),
	}
	config.AddHostKey(host)
	return config
}

const maxVersion = 64 // bytes of a program's version on the wire

// identification is the identification string: no space, no "-", at most 255
// bytes (RFC 4253 section 4.2).
func identification(version string) string {
	if version == "" {
		return "SSH-2.0-Sallyport"
	}
	return "SSH-2.0-Sallyport_" + strings.Map(func(c rune) rune {
		if c <= ' ' || c >= 0x7f || c == '-' {
			return '_'
		}
		return c
	}, version[:min(len(version), maxVersion)])
}

// MaxText is how many bytes of a fact or a hint go on the wire.
const MaxText = 1 << 10

const maxLogin = 255 // bytes of a login in a message

// Message is a problem as a person reads it on a terminal.
func Message(p *sallyport.Problem) string {
	text := "ERROR: " + Printable(p.Fact, MaxText) + "\r\n"
	if p.Hint != "" {
		text += "hint: " + Printable(p.Hint, MaxText) + "\r\n"
	}
	return text
}

// Printable makes a text safe to show on a terminal and in a log: one line, no
// control characters, at most limit bytes.
func Printable(s string, limit int) string {
	s = strings.ToValidUTF8(s[:min(len(s), limit)], "?")
	return strings.Map(func(c rune) rune {
		if c < ' ' || c >= 0x7f && c < 0xa0 {
			return '?'
		}
		return c
	}, s)
}
