package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"
)

// farHost is a node as scp meets it: sftp over SSH.
type farHost struct {
	serve func(io.Reader, io.WriteCloser)
}

func ownServer(in io.Reader, out io.WriteCloser) {
	server, err := sftp.NewServer(struct {
		io.Reader
		io.WriteCloser
	}{in, out})
	if err == nil {
		_ = server.Serve()
	}
}

// reachFar is a transfer with a host of this test.
func reachFar(t *testing.T, h *farHost) *transfer {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var served sync.WaitGroup
	served.Go(func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		config := &ssh.ServerConfig{NoClientAuth: true}
		config.AddHostKey(signer)
		_, channels, requests, err := ssh.NewServerConn(conn, config)
		if err != nil {
			t.Error(err)
			return
		}
		go ssh.DiscardRequests(requests)
		for offer := range channels {
			ch, requests, err := offer.Accept()
			if err != nil {
				return
			}
			go func() {
				for q := range requests {
					_ = q.Reply(q.Type == "subsystem", nil)
				}
			}()
			served.Go(func() {
				defer ch.Close()
				h.serve(ch, ch)
			})
		}
	})
	ctx, cancel := context.WithCancel(context.Background())
	tr := &transfer{scpCmd: &scpCmd{Quiet: true, NoResume: true}, program: &program{ctx: ctx}}
	tr.ssh, err = ssh.Dial("tcp", l.Addr().String(), &ssh.ClientConfig{HostKeyCallback: ssh.FixedHostKey(signer.PublicKey()), Timeout: time.Minute})
	if err == nil {
		tr.files, err = tr.open()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cancel(); tr.close(); l.Close(); served.Wait() })
	return tr
}

// TestBrokenIsNoEnd: a connection that breaks is not the end of a file. The SSH
// library says io.EOF of it to who would write, which was taken for the node's word.
func TestBrokenIsNoEnd(t *testing.T) {
	for _, size := range []int64{0, 1000, 10 << 20} { // of 0 the end decides
		silent := make(chan struct{})
		tr := reachFar(t, &farHost{serve: func(in io.Reader, out io.WriteCloser) {
			ownServer(in, out)
			<-silent // the node does not hear of it
		}})
		source := filepath.Join(t.TempDir(), "source")
		if err := errors.Join(os.WriteFile(source, nil, 0o600), os.Truncate(source, 10<<20)); err != nil {
			t.Fatal(err)
		}
		far, err := tr.files.Open(source)
		if err != nil {
			t.Fatal(err)
		}
		to, err := os.Create(filepath.Join(t.TempDir(), "to"))
		if err != nil {
			t.Fatal(err)
		}
		defer to.Close()
		if err := tr.requests.Close(); err != nil {
			t.Fatal(err)
		}
		m := &move{transfer: tr, name: "source", size: size, from: far, to: to, far: far, open: map[int64]bool{}, end: -1}
		if err := m.carry(); !broken(err) || errors.Is(err, io.EOF) || m.end >= 0 {
			t.Errorf("size %d: %v, the end is at %d", size, err, m.end)
		}
		if _, err := tr.files.ReadDir(filepath.Dir(source)); !broken(err) {
			t.Errorf("a directory: %v", err)
		}
		close(silent)
	}
	if broken(io.EOF) {
		t.Error("SSH_FX_EOF is taken for a broken connection")
	}
}

// brief gives less than it is asked for, and says io.EOF each time, as the sftp
// library does when a server is brief.
type brief struct{ of []byte }

func (b brief) ReadAt(p []byte, at int64) (int, error) {
	n := copy(p[:min(len(p), 1000)], b.of[min(at, int64(len(b.of))):])
	return n, io.EOF
}

// TestShortRead: an answer that is shorter than what was asked for is not the end of
// a file either.
func TestShortRead(t *testing.T) {
	source := make([]byte, 10_500)
	if _, err := rand.Read(source); err != nil {
		t.Fatal(err)
	}
	for size, end := range map[int64]int64{10_500: 10_500, 20_000: 10_500} {
		to, err := os.Create(filepath.Join(t.TempDir(), "to"))
		if err != nil {
			t.Fatal(err)
		}
		defer to.Close()
		tr := &transfer{scpCmd: &scpCmd{}, program: &program{ctx: t.Context()}}
		m := &move{transfer: tr, size: size, from: brief{source}, to: to, open: map[int64]bool{}, end: -1}
		if err := m.carry(); err != nil || m.end != end {
			t.Errorf("size %d: %v, the end is at %d", size, err, m.end)
		}
		if got, err := os.ReadFile(to.Name()); err != nil || !bytes.Equal(got, source) {
			t.Errorf("size %d: %d bytes, %v", size, len(got), err)
		}
	}
}
