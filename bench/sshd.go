package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/crypto/ssh"
)

// sshServer is OpenSSH's server, on a port of its own.
type sshServer struct {
	process *process
	addr    string
	known   string // file: its host key
	host    ssh.PublicKey
	keyFile string // the client's
	key     ssh.Signer
}

// startSSHD starts the real server where there is one.
func (w *world) startSSHD(ctx context.Context) error {
	path, err := lookPeer("sshd")
	if err == nil {
		_, err = lookPeer("ssh")
	}
	if name, err := nameMissing(err); name != "" || err != nil {
		w.sshMissing = missingPeer{name}
		return err
	}
	s := &sshServer{known: w.path("sshd_known_hosts"), keyFile: w.path("direct_key")}
	if s.addr, err = freeAddress(); err != nil {
		return err
	}
	if err := w.sshKeys(s); err != nil {
		return err
	}
	if os.Geteuid() == 0 {
		if err := os.MkdirAll("/run/sshd", 0o755); err != nil { // where a root sshd locks its children in
			return err
		}
	}
	s.process, err = startProcess(w.dir, "sshd", w.bare.wrap(exec.Command(path, "-D", "-e", "-f", w.path("sshd_config"))))
	if err != nil {
		return err
	}
	w.sshd = s
	return s.process.await(ctx, listens(s.addr))
}

// sshKeys writes the keys of server and client, both Ed25519 as Sallyport's
// are, and the server's configuration: no bound of it is in a benchmark's way.
func (w *world) sshKeys(s *sshServer) error {
	host, err := newSSHKey(w.path("sshd_host_key"))
	if err != nil {
		return err
	}
	if s.key, err = newSSHKey(s.keyFile); err != nil {
		return err
	}
	s.host = host.PublicKey()
	hostname, port, err := net.SplitHostPort(s.addr)
	if err != nil {
		return err
	}
	line := bytes.TrimSpace(ssh.MarshalAuthorizedKey(s.host))
	if err := w.write(filepath.Base(s.known), fmt.Sprintf("[%s]:%s %s\n", hostname, port, line)); err != nil {
		return err
	}
	if err := w.write("authorized_keys", string(ssh.MarshalAuthorizedKey(s.key.PublicKey()))); err != nil {
		return err
	}
	return w.write("sshd_config", fmt.Sprintf(`Port %s
ListenAddress 127.0.0.1
HostKey %s
AuthorizedKeysFile %s
PidFile none
StrictModes no
UsePAM no
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
MaxStartups 1000
MaxSessions 1000
PrintMotd no
PrintLastLog no
LogLevel ERROR
Subsystem sftp %s
`, port, w.path("sshd_host_key"), w.path("authorized_keys"), fileServer()))
}

// fileServer is what Debian's configuration has for sftp, or OpenSSH's own.
func fileServer() string {
	const debian = "/usr/lib/openssh/sftp-server"
	if _, err := os.Stat(debian); err != nil {
		return "internal-sftp"
	}
	return debian
}

func newSSHKey(file string) (ssh.Signer, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	block, err := ssh.MarshalPrivateKey(key, "")
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
		return nil, err
	}
	return ssh.NewSignerFromKey(key)
}

func (s *sshServer) close() {
	if s != nil {
		s.process.stop()
	}
}
