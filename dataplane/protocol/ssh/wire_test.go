package ssh

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/dataplane/sshauth"
	"github.com/sallyport/sallyport/identity"
	"golang.org/x/crypto/ssh"
)

func TestParseModes(t *testing.T) {
	for _, c := range []struct {
		name, in string
		want     []mode
	}{
		{"empty", "", nil},
		{"end", "\x00", nil},
		{"one", "\x35\x00\x00\x00\x01\x00", []mode{{53, 1}}},
		{"after the end", "\x35\x00\x00\x00\x01\x00\x35\x00\x00\x00\x00", []mode{{53, 1}}},
		{"without an end", "\x35\x00\x00\x00\x01", []mode{{53, 1}}},
		{"cut off", "\x35\x00\x00\x00\x01\x36\x00", []mode{{53, 1}}},
		{"undefined opcode", "\xa0\x00\x00\x00\x01\x35\x00\x00\x00\x01", nil},
	} {
		if got := parseModes(c.in); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v", c.name, got)
		}
	}
	if n := len(parseModes(strings.Repeat("\x35\x00\x00\x00\x01", 10*maxModes))); n != maxModes {
		t.Errorf("%d modes", n)
	}
}

func FuzzRequests(f *testing.F) {
	f.Add([]byte(ssh.Marshal(ptyRequest{Term: "xterm", Columns: 80, Rows: 24, Modes: "\x35\x00\x00\x00\x01\x00"})))
	f.Add(str("LANG", "C"))
	f.Add(str("TERM"))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, payload []byte) {
		if r, ok := parsePTY(payload); ok {
			if !validTerm(r.Term) {
				t.Errorf("terminal %q", r.Term)
			}
			for _, m := range parseModes(r.Modes) {
				if m.op == opEnd || m.op >= 160 {
					t.Errorf("mode %d", m.op)
				}
			}
		}
		var e envRequest
		if ssh.Unmarshal(payload, &e) == nil && envAllowed(e.Name, e.Value) {
			if strings.ContainsAny(e.Name, "=\x00\n") || strings.ContainsRune(e.Value, 0) || strings.HasPrefix(e.Name, "LD_") {
				t.Errorf("%q=%q", e.Name, e.Value)
			}
		}
		for _, c := range sshauth.Printable(string(payload), 64) {
			if c < ' ' || c == 0x7f {
				t.Errorf("control character in %q", payload)
			}
		}
	})
}

// FuzzCertificate: no bytes in place of a certificate are taken for one that the
// CA has signed, and none break the check.
func FuzzCertificate(f *testing.F) {
	h := &host{t: f, userCA: newKey(f), login: "tester"}
	good := h.certificate(newKey(f).PublicKey(), nil)
	f.Add(good.Marshal())
	f.Add(h.certificate(newKey(f).PublicKey(), func(c *ssh.Certificate) {
		c.CriticalOptions = map[string]string{"source-address": "127.0.0.1"}
	}).Marshal())
	q := sshauth.Check{Cluster: cluster, CAs: [][]byte{h.userCA.PublicKey().Marshal()}, Login: h.login, Now: time.Now()}
	f.Fuzz(func(t *testing.T, blob []byte) {
		key, err := ssh.ParsePublicKey(blob)
		if err != nil {
			return
		}
		cert, p := q.Run(key)
		ours := q.Ours(key) == nil
		if p == nil && !ours {
			t.Error("good, and not ours")
		}
		if c, _ := key.(*ssh.Certificate); ours {
			if id, err := identity.FromSSH(c); err == nil && id.Name != "alice" {
				t.Errorf("a forged identity: %+v", id)
			}
		}
		if p != nil {
			if p.Fact == "" {
				t.Error("a refusal without a reason")
			}
			return
		}
		if !slices.Contains(cert.ValidPrincipals, h.login) || cert.CertType != ssh.UserCert {
			t.Errorf("accepted %+v", cert)
		}
		if id, err := identity.FromSSH(cert); err == nil && id.Name != "alice" {
			t.Errorf("a forged identity: %+v", id)
		}
	})
}
