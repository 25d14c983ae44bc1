package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// login is how servers that run a login shell are started: for both sides of a
// comparison with the same shell, and with a home in which nothing is to be
// read. What people have in a .bashrc takes longer than a session.
type login struct {
	passwd  string // the file that stands for /etc/passwd; "" where the system's must do
	unshare string
}

const (
	loginName   = "login shell"
	loginWanted = "/bin/sh, empty home"
)

// bareLogin makes what is needed in dir. Only root may give a process a file
// system of its own; nothing that others see is changed.
func bareLogin(ctx context.Context, dir, user string) (login, Setting) {
	s := Setting{Name: loginName, Was: "the system's own", Wanted: loginWanted}
	l, err := makeLogin(ctx, dir, user)
	if err != nil {
		s.Error = err.Error()
		return login{}, s
	}
	s.Was = s.Wanted
	return l, s
}

func makeLogin(ctx context.Context, dir, user string) (l login, err error) {
	if os.Geteuid() != 0 {
		return l, fmt.Errorf("not root")
	}
	if l.unshare, err = exec.LookPath("unshare"); err != nil {
		return l, err
	}
	text, err := os.ReadFile("/etc/passwd")
	if err != nil {
		return l, err
	}
	home := dir + "/empty"
	changed, ok := replaceLogin(string(text), user, home)
	if !ok {
		return l, fmt.Errorf("user %s is not in /etc/passwd", user)
	}
	if err := os.Mkdir(home, 0o700); err != nil {
		return l, err
	}
	l.passwd = dir + "/passwd"
	if err := os.WriteFile(l.passwd, []byte(changed), 0o644); err != nil {
		return l, err
	}
	_, err = output(l.wrap(exec.CommandContext(ctx, "true")))
	return l, err
}

// replaceLogin gives a user another home and /bin/sh (passwd(5)).
func replaceLogin(text, user, home string) (changed string, ok bool) {
	var b strings.Builder
	for line := range strings.Lines(text) {
		f := strings.Split(strings.TrimSuffix(line, "\n"), ":")
		if len(f) == 7 && f[0] == user {
			f[5], f[6], ok = home, "/bin/sh", true
			line = strings.Join(f, ":") + "\n"
		}
		b.WriteString(line)
	}
	return b.String(), ok
}

// wrap runs a command, in the end with the same process id, where the file
// stands for /etc/passwd.
func (l login) wrap(cmd *exec.Cmd) *exec.Cmd {
	if l.passwd == "" {
		return cmd
	}
	const script = `mount --bind "$1" /etc/passwd && shift && exec "$@"`
	args := append([]string{"-m", "--", "sh", "-c", script, "sh", l.passwd, cmd.Path}, cmd.Args[1:]...)
	out := exec.Command(l.unshare, args...)
	out.Env, out.Dir = cmd.Env, cmd.Dir
	return out
}
