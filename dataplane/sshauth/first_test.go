package sshauth

import (
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/iotest"
)

// told is a connection from which text comes.
type told struct {
	net.Conn
	io.Reader
}

func (c told) Read(b []byte) (int, error) { return c.Reader.Read(b) }

// TestA10_FirstBytes: a client's first bytes are SSH's, however they are cut.
func TestA10_FirstBytes(t *testing.T) {
	for text, good := range map[string]bool{
		"SSH-2.0-x\r\n": true, "SSH-": true, "": true, "SS": true, "SSH-SSH-": true,
		"PROXY TCP4 192.0.2.1 192.0.2.2 1 22\r\nSSH-2.0-x\r\n": false, "\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0cSSH-": false,
		"GET / HTTP/1.1\r\n\r\n": false, "\r\nSSH-2.0-x\r\n": false, " SSH-2.0-x\r\n": false, "ssh-2.0-x\r\n": false, "SSH2.0-x\r\n": false, "S": true, "X": false, "SSX": false,
	} {
		for how, r := range map[string]io.Reader{
			"whole": strings.NewReader(text), "bytes": iotest.OneByteReader(strings.NewReader(text)), "with the end": iotest.DataErrReader(strings.NewReader(text)),
		} {
			b, err := io.ReadAll(FromClient(told{Reader: r}))
			if good && (string(b) != text || err != nil) || !good && !errors.Is(err, errNotSSH) || !good && strings.Contains(string(b), "SSH-") {
				t.Errorf("%q, %s: %q, %v", text, how, b, err)
			}
		}
	}
}
