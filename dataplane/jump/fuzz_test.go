package jump

import (
	"io"
	"net"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

// FuzzDestination: what is taken for a node is one label of a host name, spelled
// as the client spelled it, alone or below the cluster. The oracle is an
// expression over the payload's host.
func FuzzDestination(f *testing.F) {
	for _, host := range []string{"web1", "web1." + cluster, "web1.node." + cluster, "WEB1", "10.0.0.1", "::1", "a..b", cluster, "node." + cluster, "web1.", "-a", "a-", "\u212A", "x\x00", "127", "127." + cluster} {
		for _, port := range []uint32{0, 22, 3022, 80, 1 << 31} {
			f.Add([]byte(ssh.Marshal(directTCP{Host: host, Port: port, OriginHost: "127.0.0.1", OriginPort: 65535})))
		}
	}
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	name := regexp.MustCompile(`^(?i:([a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)(?:(?:\.node)?\.gw\.example\.com)?)$`)
	f.Fuzz(func(t *testing.T, payload []byte) {
		to, ok := parse(payload, cluster)
		var r directTCP
		if err := ssh.Unmarshal(payload, &r); ok && err != nil {
			t.Fatalf("%q is none", payload)
		}
		if !ok {
			if to.node != "" {
				t.Fatalf("no destination leads to %q", to.node)
			}
			return
		}
		want := ""
		// Bytes, not runes: in Go (?i:k) matches the Kelvin sign too.
		if m := name.FindStringSubmatch(r.Host); m != nil && isASCII(r.Host) && (r.Port == 0 || r.Port == 22 || r.Port == 3022) {
			want = strings.ToLower(m[1])
		}
		if to.node != want {
			t.Fatalf("%q port %d leads to %q, not %q", r.Host, r.Port, to.node, want)
		}
		if strings.ContainsAny(to.text, "\x00\x1b\r\n") || len(to.text) > 3*maxHost+20 {
			t.Fatalf("%q is not for a log", to.text)
		}
	})
}

func isASCII(s string) bool { return !strings.ContainsFunc(s, func(r rune) bool { return r > 0x7f }) }

// FuzzStranger: whatever bytes a stranger sends, he stays one, nothing is
// reached, and the server lets go.
func FuzzStranger(f *testing.F) {
	g := newGate(f, func(g *gate) { g.server.HandshakeTimeout, g.server.LoginGrace = time.Second, time.Second })
	f.Add([]byte("SSH-2.0-x\r\n"))
	f.Add([]byte("SSH-1.99-x\r\n\x00\x00\x00\x0c\x0a\x14"))
	f.Add([]byte("SSH-2.0-" + strings.Repeat("x", 300) + "\r\n"))
	f.Add([]byte("SSH-2.0-x\r\n\xff\xff\xff\xff\x00"))
	f.Add(append([]byte("SSH-2.0-x\r\n\x00\x00\x00\x14\x06\x32"), make([]byte, 32)...)) // userauth before keys
	f.Fuzz(func(t *testing.T, said []byte) {
		client, server := net.Pipe()
		var proven atomic.Int64
		done := make(chan error, 1)
		go func() { done <- g.server.Serve(t.Context(), provenConn{server, &proven}) }()
		go func() {
			_, _ = client.Write(said)
			client.Close()
		}()
		go func() { _, _ = io.Copy(io.Discard, client) }()
		select {
		case err := <-done:
			if err == nil || proven.Load() != 0 || g.server.Open() != 0 {
				t.Fatalf("a stranger is in: %v", err)
			}
		case <-time.After(deadline):
			t.Fatal("the server does not let go")
		}
	})
}
