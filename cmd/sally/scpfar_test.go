package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/tools/peers"
)

// farHost is a node as scp meets it: sftp over SSH, by OpenSSH's server or by the
// library's, which is that of nodes without one.
type farHost struct {
	serve func(io.Reader, io.WriteCloser)

	asks func(*ssh.Request, ssh.Channel) bool // answers requests in sessions, or leaves them to reachFar; may be nil

	refuse  func(stderr io.Writer) // instead of serve
	chatter int                    // bytes on standard error, before all else

	stop  context.CancelFunc // ends the transfer's program
	mu    sync.Mutex
	asked bytes.Buffer // the requests; guarded by mu
}

func (h *farHost) Write(b []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.asked.Write(b)
}

// kinds are the types of all requests so far.
func (h *farHost) kinds() (list []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for b := h.asked.Bytes(); len(b) > 4; b = b[4+binary.BigEndian.Uint32(b):] {
		list = append(list, b[4])
	}
	return list
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

func systemServer(in io.Reader, out io.WriteCloser) {
	cmd := exec.Command("/usr/lib/openssh/sftp-server")
	cmd.Stdin, cmd.Stdout = in, out
	_ = cmd.Run()
}

// reachFar is a transfer with a host of this test.
func reachFar(t *testing.T, h *farHost) *transfer {
	t.Helper()
	tr, err := tryFar(t, h)
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

// tryFar is reachFar of a host that may refuse.
func tryFar(t *testing.T, h *farHost) (*transfer, error) {
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
			begun := make(chan struct{})
			go func() {
				begin := sync.OnceFunc(func() { close(begun) })
				defer begin()
				for q := range requests {
					if h.asks != nil && h.asks(q, ch) {
						begin()
						continue
					}
					_ = q.Reply(q.Type == "subsystem" || q.Type == "exec", nil)
					begin()
				}
			}()
			served.Go(func() {
				defer ch.Close()
				<-begun
				if h.refuse != nil {
					h.refuse(ch.Stderr())
					return
				}
				if _, err := ch.Stderr().Write(make([]byte, h.chatter)); err != nil {
					return
				}
				h.serve(io.TeeReader(ch, h), ch)
			})
		}
	})
	ctx, cancel := context.WithCancel(context.Background())
	h.stop = cancel
	tr := &transfer{scpCmd: &scpCmd{Quiet: true, NoResume: true}, program: &program{ctx: ctx, stderr: io.Discard}}
	tr.ssh, err = ssh.Dial("tcp", l.Addr().String(), &ssh.ClientConfig{HostKeyCallback: ssh.FixedHostKey(signer.PublicKey()), Timeout: time.Minute})
	if err == nil {
		tr.files, err = tr.open()
	}
	t.Cleanup(func() { cancel(); tr.close(); l.Close(); served.Wait() })
	return tr, err
}

// TestFarReason: what the node said on standard error about why it serves no sftp
// was lost; the error was "ssh to root@web as : unexpected EOF".
func TestFarReason(t *testing.T) {
	const fact, hint = "access to node web denied: a role forbids file copy", "ask for another role"
	for name, end := range map[string]func(io.Writer){
		"it says why": func(w io.Writer) { fmt.Fprintf(w, "ERROR: %s\r\nhint: %s\r\n", fact, hint) },
		"not a word":  func(io.Writer) {},
	} {
		_, err := tryFar(t, &farHost{refuse: end})
		var p *sallyport.Problem
		if !errors.As(err, &p) {
			t.Fatalf("%s: %v", name, err)
		}
		if said := name == "it says why"; said != (p.Fact == fact && p.Hint == hint && errors.Is(p, sallyport.ErrDenied)) || said == errors.Is(p, sallyport.ErrUnavailable) {
			t.Errorf("%s: %#v", name, p)
		}
	}
}

// TestFarChatter: standard error that nobody read took the room of the answers.
func TestFarChatter(t *testing.T) {
	tr := reachFar(t, &farHost{serve: ownServer, chatter: 4 << 20})
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a"), bytes.Repeat([]byte("x"), 3<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := tr.download([]string{filepath.Join(dir, "a")}, filepath.Join(dir, "b")); err != nil {
		t.Fatal(err)
	}
}

// TestCopiedModes: what is copied is never open to more people than its source,
// not for a moment, and what was there keeps its mode.
func TestCopiedModes(t *testing.T) {
	if _, err := os.Stat("/usr/lib/openssh/sftp-server"); err != nil {
		peers.Missing(t, "sftp-server")
	}
	defer syscall.Umask(syscall.Umask(0o002)) // that of people who share a group
	for _, own := range []bool{false, true} {
		for _, up := range []bool{true, false} {
			for _, preserve := range []bool{false, true} {
				t.Run(fmt.Sprintf("own %v, up %v, preserve %v", own, up, preserve), func(t *testing.T) {
					testCopiedModes(t, own, up, preserve)
				})
			}
		}
	}
}

func testCopiedModes(t *testing.T, own, up, preserve bool) {
	h := &farHost{serve: systemServer}
	if own {
		h.serve = ownServer
	}
	tr := reachFar(t, h)
	tr.Recursive, tr.Preserve = true, preserve
	from, to := filepath.Join(t.TempDir(), "tree"), filepath.Join(t.TempDir(), "tree")
	const sticky = fs.ModeSticky | 0o777
	lay := func(root, name string, mode fs.FileMode) {
		t.Helper()
		path := filepath.Join(root, name)
		var err error
		if name[len(name)-1] == '/' {
			err = os.MkdirAll(path, 0o700)
		} else {
			err = os.WriteFile(path, []byte(name), 0o600)
		}
		if err := errors.Join(err, os.Chmod(path, mode)); err != nil {
			t.Fatal(err)
		}
	}
	list := []struct {
		name               string
		mode               fs.FileMode
		before             fs.FileMode // of what is there already; 0 for nothing
		up, down, preserve fs.FileMode // what it comes to
	}{
		{name: "/", mode: 0o700, up: 0o700, down: 0o700, preserve: 0o700},
		{name: "secret", mode: 0o600, up: 0o600, down: 0o600, preserve: 0o600},
		{name: "program", mode: 0o755, up: 0o755, down: 0o755, preserve: 0o755},
		{name: "group's", mode: 0o660, up: 0o660, down: 0o640, preserve: 0o660},
		{name: "all's", mode: 0o666, up: 0o664, down: 0o644, preserve: 0o666},
		{name: "read only", mode: 0o400, up: 0o400, down: 0o600, preserve: 0o400},
		{name: "narrow", mode: 0o755, before: 0o600, up: 0o600, down: 0o600, preserve: 0o755},
		{name: "wide", mode: 0o600, before: 0o644, up: 0o644, down: 0o644, preserve: 0o600},
		{name: "closed/", mode: 0o700, up: 0o700, down: 0o700, preserve: 0o700},
		{name: "open/", mode: 0o755, up: 0o755, down: 0o755, preserve: 0o755},
		{name: "tmp/", mode: sticky, up: fs.ModeSticky | 0o775, down: fs.ModeSticky | 0o755, preserve: sticky},
		{name: "finished/", mode: 0o500, up: 0o500, down: 0o500, preserve: 0o500},
		{name: "there/", mode: 0o755, before: 0o700, up: 0o700, down: 0o700, preserve: 0o755},
	}
	for _, e := range list {
		if e.before != 0 {
			if err := os.MkdirAll(to, 0o700); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, e := range list {
		lay(from, e.name, e.mode)
		if e.before != 0 {
			lay(to, e.name, e.before)
		}
	}
	var err error
	if up {
		err = tr.put(from, to)
	} else {
		err = tr.get(from, to)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		want := e.down
		if up {
			want = e.up
		}
		if preserve {
			want = e.preserve
		}
		info, err := os.Stat(filepath.Join(to, e.name))
		if err != nil {
			t.Fatal(err)
		}
		if own && up && !preserve && info.IsDir() {
			want &^= 0o022 // which it takes from all that it makes
		}
		if got := info.Mode() &^ fs.ModeDir; got != want {
			t.Errorf("%s: %v, want %v", e.name, got, want)
		}
		if b, err := os.ReadFile(filepath.Join(to, e.name)); !info.IsDir() && (err != nil || string(b) != e.name) {
			t.Errorf("%s: %q, %v", e.name, b, err)
		}
	}
	if up && !own {
		h.checkMoments(t, preserve)
	}
}

// checkMoments: modes are not put right afterwards, but for a directory into which
// its owner may not write, and with -p before anything is in a file.
func (h *farHost) checkMoments(t *testing.T, preserve bool) {
	const write, setstat, fsetstat = 6, 9, 10
	attributes, early := 0, false
	for _, kind := range h.kinds() {
		switch kind {
		case sftpOpen:
			early = false
		case fsetstat:
			early = true
		case write:
			if early != preserve {
				t.Errorf("the mode is set before a file is written: %v, want %v", early, preserve)
			}
		case setstat:
			attributes++
		}
	}
	if !preserve && attributes != 1 {
		t.Errorf("the mode is set %d times afterwards", attributes)
	}
}

// TestRestIsCopied: what cannot be copied of a directory kept all that came after it
// from being copied.
func TestRestIsCopied(t *testing.T) {
	for _, up := range []bool{true, false} {
		tr := reachFar(t, &farHost{serve: ownServer})
		tr.Recursive = true
		var said bytes.Buffer
		tr.program.stderr = &said
		from, to := filepath.Join(t.TempDir(), "tree"), filepath.Join(t.TempDir(), "tree")
		if err := errors.Join(
			os.MkdirAll(filepath.Join(from, "b", "empty"), 0o700),
			os.WriteFile(filepath.Join(from, "a"), []byte("a"), 0o600),
			os.Symlink("nowhere", filepath.Join(from, "b", "dangling")),
			os.WriteFile(filepath.Join(from, "b", "z"), []byte("z"), 0o600),
			syscall.Mkfifo(filepath.Join(from, "pipe"), 0o600),
			os.WriteFile(filepath.Join(from, "z"), []byte("z"), 0o600),
		); err != nil {
			t.Fatal(err)
		}
		err := tr.copy(copying{up: up, from: []string{from}, to: to})
		if !errors.Is(err, errInvalid) || tr.left != 2 {
			t.Errorf("up %v: %v, %d left", up, err, tr.left)
		}
		if lines := strings.Split(said.String(), "\n"); len(lines) != 3 || !strings.Contains(lines[0], "dangling") || !strings.Contains(lines[1], "pipe is not a file") {
			t.Errorf("up %v: said %q", up, said.String())
		}
		for _, name := range []string{"a", "b/z", "z"} {
			if b, err := os.ReadFile(filepath.Join(to, name)); err != nil || string(b) != filepath.Base(name) {
				t.Errorf("up %v: %s: %q, %v", up, name, b, err)
			}
		}
		if !exists(filepath.Join(to, "b", "empty")) {
			t.Errorf("up %v: a directory is missing", up)
		}
	}
}

// TestOtherSources: the first source that could not be copied kept all after it from
// being copied.
func TestOtherSources(t *testing.T) {
	for _, up := range []bool{true, false} {
		t.Run(fmt.Sprintf("up %v", up), func(t *testing.T) {
			tr := reachFar(t, &farHost{serve: ownServer})
			var said bytes.Buffer
			tr.program.stderr = &said
			from, to := t.TempDir(), t.TempDir()
			at := func(name string) string { return filepath.Join(from, name) }
			must(t, errors.Join(os.WriteFile(at("a"), []byte("a"), 0o600), os.Mkdir(at("dir"), 0o700), os.WriteFile(at("z"), []byte("z"), 0o600)))
			err := tr.copy(copying{up: up, from: []string{at("missing"), at("missing?"), at("a"), at("dir"), at("z")}, to: to})
			if !errors.Is(err, errInvalid) || tr.left != 3 {
				t.Errorf("%v, %d left", err, tr.left)
			}
			for _, name := range []string{"missing: ", "missing?", "dir is a directory"} {
				if !strings.Contains(said.String(), name) {
					t.Errorf("said %q", said.String())
				}
			}
			for _, name := range []string{"a", "z"} {
				if b, err := os.ReadFile(filepath.Join(to, name)); err != nil || string(b) != name {
					t.Errorf("%s: %q, %v", name, b, err)
				}
			}
			// Alone, it is the whole answer; and several need a directory, also when one is left.
			said.Reset()
			tr.left = 0
			for _, tt := range []struct {
				from []string
				to   string
				want string
			}{{[]string{at("missing")}, to, "missing"}, {[]string{at("missing?"), at("a")}, filepath.Join(to, "new"), "is not a directory"}} {
				if err := tr.copy(copying{up: up, from: tt.from, to: tt.to}); err == nil || !strings.Contains(err.Error(), tt.want) || exists(filepath.Join(to, "new")) {
					t.Errorf("%q: %v", tt.from, err)
				}
			}
			if up && said.Len() > 0 {
				t.Errorf("said %q", said.String())
			}
		})
	}
}

// TestOwnDisk: a full disk of this machine was said to be the node's.
func TestOwnDisk(t *testing.T) {
	tr := reachFar(t, &farHost{serve: ownServer})
	from := filepath.Join(t.TempDir(), "a")
	must(t, os.WriteFile(from, []byte("a"), 0o600))
	err := tr.copy(copying{from: []string{from}, to: "/dev/full"})
	if !errors.Is(err, errInvalid) || !strings.Contains(err.Error(), "/dev/full: no space left") || strings.Contains(err.Error(), "node") {
		t.Error(err)
	}
}

// liar is a node that names a file in a directory, two below what is copied, so that it
// would be written elsewhere.
type liar struct{}

func (liar) Filelist(r *sftp.Request) (sftp.ListerAt, error) {
	switch {
	case r.Method == "Stat":
		return listed{fakeDir(path.Base(r.Filepath))}, nil
	case path.Base(r.Filepath) == "below":
		return listed{fakeDir("evil/.."), fakeDir("more")}, nil // the library takes what is behind the slash
	}
	return listed{fakeDir("below"), fakeDir("zzz")}, nil
}

type fakeDir string

func (d fakeDir) Name() string       { return string(d) }
func (d fakeDir) Size() int64        { return 0 }
func (d fakeDir) Mode() fs.FileMode  { return fs.ModeDir | 0o700 }
func (d fakeDir) ModTime() time.Time { return time.Time{} }
func (d fakeDir) IsDir() bool        { return true }
func (d fakeDir) Sys() any           { return nil }

type listed []fs.FileInfo

func (l listed) ListAt(to []fs.FileInfo, at int64) (int, error) {
	n := copy(to, l[min(int(at), len(l)):])
	if n < len(to) {
		return n, io.EOF
	}
	return n, nil
}

// TestA88_LiarEndsIt: a node that gives a path for a name is asked for nothing more.
func TestA88_LiarEndsIt(t *testing.T) {
	tr := reachFar(t, &farHost{serve: func(in io.Reader, out io.WriteCloser) {
		server := sftp.NewRequestServer(struct {
			io.Reader
			io.WriteCloser
		}{in, out}, sftp.Handlers{FileList: liar{}})
		_ = server.Serve()
	}})
	tr.Recursive = true
	to := filepath.Join(t.TempDir(), "to")
	err := tr.copy(copying{from: []string{"/top"}, to: to})
	if !errors.Is(err, errDistrust) || tr.left != 0 {
		t.Errorf("%v, %d left", err, tr.left)
	}
	if exists(filepath.Join(to, "zzz")) || exists(filepath.Join(to, "below", "more")) {
		t.Error("it was asked for more")
	}
}

// silence is a node that hears a request, and does not answer.
type silence struct {
	io.Reader
	heard func()
}

func (s silence) Read(b []byte) (int, error) {
	n, err := s.Reader.Read(b[:1])
	if n > 0 {
		s.heard()
		_, err = io.Copy(io.Discard, s.Reader)
	}
	return 0, errors.Join(err, io.EOF)
}

// TestInterruptedWait: who ends scp while it waits for an answer that does not come
// waited on.
func TestInterruptedWait(t *testing.T) {
	const hello = 9 // bytes of SSH_FXP_INIT
	h := &farHost{}
	h.serve = func(in io.Reader, out io.WriteCloser) {
		ownServer(io.MultiReader(io.LimitReader(in, hello), silence{in, h.stop}), out)
	}
	tr := reachFar(t, h)
	err := tr.copy(copying{from: []string{"a"}, to: t.TempDir()})
	if err == nil || tr.program.ctx.Err() == nil {
		t.Errorf("%v, before it was ended", err)
	}
	if ended(tr.program.ctx, err) != tr.program.ctx.Err() {
		t.Errorf("%v is told", err)
	}
}

// TestPreservedMode: with -p a file that was there is as narrow as its source before
// anything is in it. That of a process's memory has nothing at its beginning but a fault.
func TestPreservedMode(t *testing.T) {
	const source = "/proc/self/mem"
	info, err := os.Stat(source)
	if err != nil {
		t.Skip("no /proc")
	}
	tr := reachFar(t, &farHost{serve: ownServer})
	tr.Preserve = true
	to := filepath.Join(t.TempDir(), "there")
	if err := errors.Join(os.WriteFile(to, nil, 0o600), os.Chmod(to, 0o644)); err != nil {
		t.Fatal(err)
	}
	if err := tr.get(source, to); err == nil {
		t.Fatal("it could be read")
	}
	if now, err := os.Stat(to); err != nil || now.Mode() != info.Mode() {
		t.Errorf("%v, %v, want %v", now.Mode(), err, info.Mode())
	}
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
