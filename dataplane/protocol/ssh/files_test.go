package ssh

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/test/executable"
	"github.com/sallyport/sallyport/tools/peers"
)

// addCopier adds a login that this system knows too, because programs which copy
// ask for their own name: nobody as root, otherwise who we are.
func (h *host) addCopier() {
	h.t.Helper()
	uid, gid := os.Getuid(), os.Getgid()
	if uid == 0 {
		uid, gid = 65534, 65534
		if err := os.Chown(h.home, uid, gid); err != nil {
			h.t.Fatal(err)
		}
	}
	f, err := os.OpenFile(filepath.Join(h.server.etc, "passwd"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		h.t.Fatal(err)
	}
	defer f.Close()
	fmt.Fprintf(f, "copier:x:%d:%d::%s:/bin/sh\n", uid, gid, h.home)
	h.login = "copier"
}

func newCopyHost(t *testing.T, change func(*host)) *stock {
	t.Helper()
	for _, name := range []string{"scp", "sftp"} {
		if _, err := exec.LookPath(name); err != nil {
			peers.Missing(t, name)
		}
	}
	return newStock(t, func(h *host) {
		h.addCopier()
		if change != nil {
			change(h)
		}
	})
}

// ownFiles has the host serve files by this program.
func ownFiles(h *host) {
	h.t.Helper()
	b, err := os.ReadFile(os.Args[0])
	if err != nil {
		h.t.Fatal(err)
	}
	program := filepath.Join(h.home, "server") // where the login may run it
	if err := executable.Write(program, b, 0o755); err != nil {
		h.t.Fatal(err)
	}
	h.server.places, h.server.FileServer = []string{}, program+" serve-files"
}

// sftpCodes are the codes of the sftp events so far, each with its path's name.
func (s *stock) sftpCodes() (list []string) {
	for _, e := range s.gate.named("sftp") {
		path, _ := e.Fields["path"].(string)
		list = append(list, e.Code+" "+filepath.Base(path))
	}
	return list
}

// TestOpenSSHCopies: scp by both of its protocols, and sftp, with the system's
// server and with ours.
func TestOpenSSHCopies(t *testing.T) {
	for _, server := range []struct {
		name   string
		change func(*host)
	}{{"system", nil}, {"own", ownFiles}} {
		t.Run(server.name, func(t *testing.T) { testCopies(t, newCopyHost(t, server.change)) })
	}
}

func testCopies(t *testing.T, s *stock) {
	data := randomBytes(t, 3<<20)
	s.write("file", string(data))
	for _, mode := range []string{"-O", "-s", "-p"} {
		there, back := filepath.Join(s.home, "there"+mode), filepath.Join(s.dir, "back"+mode)
		if out, err := s.command("scp", mode, filepath.Join(s.dir, "file"), "web1:"+there).CombinedOutput(); err != nil {
			t.Fatalf("scp %s: %v: %s", mode, err, out)
		}
		if out, err := s.command("scp", mode, "web1:there"+mode, back).CombinedOutput(); err != nil {
			t.Fatalf("scp %s: %v: %s", mode, err, out)
		}
		if got, err := os.ReadFile(back); err != nil || !bytes.Equal(got, data) {
			t.Errorf("scp %s: %d bytes came back, %v", mode, len(got), err)
		}
	}
	eventually(t, "the events of scp", func() bool { return len(s.gate.named("scp")) == 2 })
	up, down := s.gate.named("scp")[0], s.gate.named("scp")[1]
	if up.Code != "T3005I" || up.Fields["path"] != filepath.Join(s.home, "there-O") || up.Fields["action"] != "upload" || down.Code != "T3004I" {
		t.Errorf("events %+v, %+v", up, down)
	}
	before := len(s.sftpCodes())
	script := fmt.Sprintf("put %s one\nmkdir dir\nrename one dir/two\nchmod 600 dir/two\nln dir/two hard\nsymlink hard soft\nls -l\nget hard %s\nrm hard\nrm soft\n-rm nothing\nrm dir/two\nrmdir dir\n",
		filepath.Join(s.dir, "file"), filepath.Join(s.dir, "got"))
	cmd := s.command("sftp", "-b", "-", "web1")
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("sftp: %v: %s", err, out)
	}
	if got, err := os.ReadFile(filepath.Join(s.dir, "got")); err != nil || !bytes.Equal(got, data) {
		t.Errorf("sftp: %d bytes came back, %v", len(got), err)
	}
	eventually(t, "the summary", func() bool { return len(s.gate.named("sftp_summary")) == 5 })
	codes := s.sftpCodes()[before:]
	for _, want := range []string{"TS001I one", "TS002I one", "TS012I dir", "TS016I one", "TS007I two", "TS019I two", "TS018I soft", "TS009I ", "TS001I hard", "TS011I hard",
		"TS011I soft", "TS011E nothing", "TS011I two", "TS013I dir"} {
		if !slices.ContainsFunc(codes, func(c string) bool { return strings.HasPrefix(c, want) }) {
			t.Errorf("no event %q in %q", want, codes)
		}
	}
	e := s.gate.named("sftp_summary")[4]
	if e.Fields["bytes_written"] != int64(len(data)) || e.Fields["bytes_read"] != int64(len(data)) || e.Login != "copier" {
		t.Errorf("summary %+v", e)
	}
}

// TestA88_FilesWithTheLoginsRights: traversal, links, odd names and mode bits reach
// no further than the login itself, because the server half is the login.
func TestA88_FilesWithTheLoginsRights(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to be somebody else")
	}
	for _, server := range []struct {
		name   string
		change func(*host)
	}{{"system", nil}, {"own", ownFiles}} {
		t.Run(server.name, func(t *testing.T) {
			s := newCopyHost(t, server.change)
			secret := filepath.Join(filepath.Dir(s.home), "secret")
			if err := os.WriteFile(secret, []byte("root's"), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(secret, filepath.Join(s.home, "link")); err != nil {
				t.Fatal(err)
			}
			s.write("evil", "evil")
			for _, args := range [][]string{
				{"web1:" + secret, "got"}, {"web1:../secret", "got"}, {"web1:link", "got"}, {"-O", "web1:../secret", "got"},
				{"evil", "web1:" + secret}, {"evil", "web1:link"}, {"-O", "evil", "web1:link"}, {"evil", "web1:../new"},
			} {
				cmd := s.command("scp", args...)
				cmd.Dir = s.dir
				if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "ermission denied") {
					t.Errorf("scp %q: %v: %s", args, err, out)
				}
			}
			cmd := s.command("sftp", "-b", "-", "web1")
			cmd.Stdin = strings.NewReader("-ln ../secret hard\n-chmod 4755 ../secret\n-chown 0 link\n-rm ../secret\n-rename ../secret mine\nput evil suid\nchmod 4755 suid\n")
			cmd.Dir = s.dir
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Errorf("sftp: %v: %s", err, out)
			}
			if b, err := os.ReadFile(secret); err != nil || string(b) != "root's" {
				t.Errorf("%q, %v", b, err)
			}
			if info, err := os.Stat(secret); err != nil || info.Mode() != 0o600 {
				t.Errorf("%v, %v", info, err)
			}
			uid, _ := owner(t, filepath.Join(s.home, "suid"))
			if uid != 65534 {
				t.Errorf("what the client wrote is owned by %d", uid)
			}
		})
	}
}

func owner(t *testing.T, path string) (uid int, mode os.FileMode) {
	t.Helper()
	out, err := exec.Command("stat", "-c", "%u", path).Output()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscan(string(out), &uid); err != nil {
		t.Fatal(err)
	}
	return uid, 0
}

// TestCopiesByRole: ssh_file_copy: false refuses all ways that name themselves,
// with the reason, and leaves shells alone.
func TestCopiesByRole(t *testing.T) {
	s := newCopyHost(t, func(h *host) {
		h.gate.allow = func(a sallyport.Action) *sallyport.Problem {
			if a == sallyport.ActionFileCopy {
				return sallyport.Denied("a role forbids file copy", "")
			}
			return nil
		}
	})
	s.write("file", "x")
	for _, args := range [][]string{{"scp"}, {"scp", "-O"}} {
		out, err := s.command(args[0], append(args[1:], filepath.Join(s.dir, "file"), "web1:there")...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), "a role forbids file copy") {
			t.Errorf("%q: %v: %s", args, err, out)
		}
	}
	cmd := s.command("sftp", "-b", "-", "web1")
	cmd.Stdin = strings.NewReader("ls\n")
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "a role forbids file copy") {
		t.Errorf("sftp: %v: %s", err, out)
	}
	if got := s.run(nil, "web1", "exec /usr/lib/openssh/sftp-server </dev/null; echo on"); got.status != 0 {
		t.Errorf("a shell's own: %+v", got)
	}
	if got := s.run(nil, "web1", "/usr/lib/openssh/sftp-server"); got.status != 1 {
		t.Errorf("sftp-server by exec: %+v", got)
	}
	if _, err := os.Stat(filepath.Join(s.home, "there")); err == nil {
		t.Error("the file is there")
	}
	if sftp, scp := s.gate.named("sftp"), s.gate.named("scp"); len(sftp) != 3 || len(scp) != 1 || sftp[0].Code != "TS020E" || scp[0].Code != "T3010E" || *scp[0].Success {
		t.Errorf("events %+v, %+v", sftp, scp)
	}
}

// TestServerCopies: OpenSSH's sftp, whose cp has the server copy, does not find that
// it may.
func TestServerCopies(t *testing.T) {
	s := newCopyHost(t, nil)
	s.write("file", "four")
	cmd := s.command("sftp", "-b", "-", "web1")
	cmd.Stdin = strings.NewReader("put " + filepath.Join(s.dir, "file") + " one\n-cp one two\nls\n")
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "does not support copy-data") {
		t.Errorf("sftp: %v: %s", err, out)
	}
	if _, err := os.Stat(filepath.Join(s.home, "two")); err == nil {
		t.Error("the server has copied")
	}
}

// TestFileServerByExec: a command that begins with a file server's name is one of
// the client's, whatever comes behind the name, and is recorded as that.
func TestFileServerByExec(t *testing.T) {
	s := newCopyHost(t, nil)
	const command = "/usr/lib/openssh/sftp-server </dev/null; echo more >&2"
	if got := s.run(nil, "web1", command); !strings.Contains(got.err, "more") {
		t.Errorf("%+v", got)
	}
	cmd := s.command("sftp", "-b", "-", "web1")
	cmd.Stdin = strings.NewReader("ls\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("sftp: %v: %s", err, out)
	}
	if e := s.gate.named("exec"); len(e) != 1 || e[0].Fields["command"] != command {
		t.Errorf("%+v", e)
	}
	if e := s.gate.named("sftp_summary"); len(e) != 2 {
		t.Errorf("%+v", e)
	}
}

// TestRsync and TestGit: what people run over ssh.
func TestRsync(t *testing.T) {
	if _, err := exec.LookPath("rsync"); err != nil {
		peers.Missing(t, "rsync")
	}
	s := newCopyHost(t, nil)
	tree := filepath.Join(s.dir, "tree", "a", "b")
	if err := os.MkdirAll(tree, 0o755); err != nil {
		t.Fatal(err)
	}
	data := randomBytes(t, 1<<20)
	for i := range 20 {
		if err := os.WriteFile(filepath.Join(tree, fmt.Sprint(i)), data[i:], 0o644); err != nil {
			t.Fatal(err)
		}
	}
	shell := "ssh -F " + filepath.Join(s.dir, "config")
	for _, args := range [][]string{{filepath.Join(s.dir, "tree") + "/", "web1:copy/"}, {"web1:copy/", filepath.Join(s.dir, "back") + "/"}} {
		cmd := exec.Command("rsync", append([]string{"-rltz", "--no-owner", "-e", shell}, args...)...)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("rsync %q: %v: %s", args, err, out)
		}
	}
	if out, err := exec.Command("diff", "-r", filepath.Join(s.dir, "tree"), filepath.Join(s.dir, "back")).CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

func TestGit(t *testing.T) {
	if _, err := exec.LookPath("git"); err != nil {
		peers.Missing(t, "git")
	}
	s := newCopyHost(t, nil)
	git := func(dir string, args ...string) {
		t.Helper()
		cmd := exec.Command("git", args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GIT_SSH_COMMAND=ssh -F "+filepath.Join(s.dir, "config"), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null",
			"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@example.com", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@example.com")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("git %q: %v: %s", args, err, out)
		}
	}
	if got := s.run(nil, "web1", "git init -q --bare -b main repo.git"); got.status != 0 {
		t.Fatalf("%+v", got)
	}
	work := filepath.Join(s.dir, "work")
	git(s.dir, "init", "-q", "-b", "main", work)
	s.write("work/file", string(randomBytes(t, 2<<20)))
	git(work, "add", "file")
	git(work, "commit", "-q", "-m", "one")
	git(work, "push", "-q", "web1:repo.git", "main")
	git(s.dir, "clone", "-q", "web1:repo.git", "cloned")
	if out, err := exec.Command("cmp", filepath.Join(work, "file"), filepath.Join(s.dir, "cloned", "file")).CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

// TestSFTPFlood: who asks for more than can be written down is not served.
func TestSFTPFlood(t *testing.T) {
	h := newHost(t, func(h *host) {
		h.server.places, h.server.FileServer = []string{}, "cat >/dev/null; sleep 60" // a server that never answers
	})
	s := h.session()
	in, err := s.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	errs, err := s.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.RequestSubsystem("sftp"); err != nil {
		t.Fatal(err)
	}
	var flood []byte
	for id := range uint32(maxPending + 1) {
		flood = append(flood, sftpPacket(fxpRemove, id, str("/tmp/x"))...)
	}
	go func() { _, _ = in.Write(flood) }()
	waitFor(t, "the end", func() {
		if b, _ := io.ReadAll(errs); !strings.Contains(string(b), badFiles) {
			t.Errorf("stderr %q", b)
		}
	})
}
