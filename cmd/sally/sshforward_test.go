package main

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/crypto/ssh"
)

func TestParseForward(t *testing.T) {
	for spec, want := range map[string]forward{
		"8080:localhost:80":           {bind: "localhost:8080", to: "localhost:80"},
		"127.0.0.1:8080:db:5432":      {bind: "127.0.0.1:8080", to: "db:5432"},
		"*:8080:db:5432":              {bind: ":8080", to: "db:5432"},
		":8080:db:5432":               {bind: ":8080", to: "db:5432"},
		"[::1]:8080:[2001:db8::1]:80": {bind: "[::1]:8080", to: "[2001:db8::1]:80"},
		"0:db:80":                     {bind: "localhost:0", to: "db:80"},
		"8080:/run/s":                 {bind: "localhost:8080", to: "/run/s"},
		"/tmp/s:db:80":                {bind: "/tmp/s", to: "db:80"},
		"/tmp/s:/run/s":               {bind: "/tmp/s", to: "/run/s"},
	} {
		if got, ok := parseForward(spec); !ok || got != want {
			t.Errorf("%q: %+v, %v, want %+v", spec, got, ok, want)
		}
	}
	for _, spec := range []string{"", "80", "a", "1:a", "1:a:0", "1:a:65536", "99999:a:1", "[::1:1:a:2", "1:[::1]x:2", "a:b:c:d", "1::2", "1:2:3:4:5", "/s", "1:a:b"} {
		if got, ok := parseForward(spec); ok {
			t.Errorf("%q: %+v", spec, got)
		}
	}
}

// TestForwardAt: what is said of -R is what is known: the library made 0.0.0.0 of
// localhost, where the node listens on its loopback.
func TestForwardAt(t *testing.T) {
	tcp, unix := &net.TCPAddr{IP: net.IPv4zero, Port: 8080}, &net.UnixAddr{Name: "/run/s", Net: "unix"}
	for want, got := range map[string]string{
		"0.0.0.0:8080":          forward{}.at(tcp),
		"port 8080 of the node": forward{remote: true}.at(tcp),
		"/run/s":                forward{}.at(unix),
		"/run/s of the node":    forward{remote: true}.at(unix),
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// TestForwardSocket: a forwarded socket was everybody's whom the umask let in, who
// went to the node as the one who had made it.
func TestForwardSocket(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0))
	path := filepath.Join(t.TempDir(), "s")
	l, err := forward{bind: path}.listen(t.Context(), nil)
	must(t, err)
	defer l.Close()
	info, err := os.Stat(path)
	must(t, err)
	if info.Mode().Perm() != 0o600 {
		t.Error(info.Mode())
	}
	if now := syscall.Umask(0); now != 0 {
		t.Errorf("umask %#o is left", now)
	}
}

// TestForwardTold: which port a node had chosen for 0 was not said beside a session.
func TestForwardTold(t *testing.T) {
	for _, c := range []struct {
		cmd  sshCmd
		bind string
		want bool
	}{
		{sshCmd{}, "localhost:0", true},
		{sshCmd{}, "[::1]:0", true},
		{sshCmd{}, "localhost:8080", false},
		{sshCmd{sshForwards: sshForwards{NoExec: true}}, "localhost:8080", true},
		{sshCmd{sshForwards: sshForwards{NoExec: true}}, "/run/s", true},
		{sshCmd{sshForwards: sshForwards{NoExec: true}, Quiet: true}, "localhost:0", false},
		{sshCmd{Quiet: true}, "localhost:0", false},
	} {
		if got := c.cmd.tells(forward{bind: c.bind, remote: true}); got != c.want {
			t.Errorf("%q, %+v: %v", c.bind, c.cmd, got)
		}
	}
}

// TestForwardFailure: a connection that the other side refused was closed without a word.
func TestForwardFailure(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	closed := l.Addr().String()
	must(t, l.Close())
	here, program := net.Pipe()
	defer program.Close()
	said := ""
	forward{remote: true, to: closed}.carry(t.Context(), nil, here, func(to string, err error) { said = to + ": " + openFailure(err) })
	if !strings.HasPrefix(said, closed+": ") || !strings.Contains(said, "refused") {
		t.Errorf("%q", said)
	}
	for want, err := range map[string]error{
		"open failed: connect failed: Connection refused":             &ssh.OpenChannelError{Reason: ssh.ConnectionFailed, Message: "Connection refused"},
		"open failed: administratively prohibited: your roles do not": &ssh.OpenChannelError{Reason: ssh.Prohibited, Message: "your roles do not"},
		"open failed: reason 77: x":                                   &ssh.OpenChannelError{Reason: 77, Message: "x"},
	} {
		if got := openFailure(err); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
