package ssh

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/sshauth"
)

// account is one login of this host, ready to run programs.
type account struct {
	name        string
	uid, gid    uint32
	groups      []uint32 // supplementary, with gid
	home, shell string
}

// accounts finds logins. The zero value reads /etc and asks who we are.
//
// Static binaries have no libc to ask, so the files are read here. Where
// nsswitch.conf(5) names other sources (LDAP, SSSD), getent(1) is asked, which
// has a libc.
type accounts struct {
	etc string // "": /etc
	uid func() int
}

const (
	maxDatabase = 64 << 20 // bytes of passwd, group or shadow that are read
	maxLine     = 1 << 20  // bytes; a group with all members of a large company
	maxGroups   = 4096
	maxLogin    = 255
	askTimeout  = 3 * time.Second
	// noID is what chown(2) and setresuid(2) take for "leave it".
	noID = 1<<32 - 1
)

// find returns the account of a login, or why it cannot be used, for a person
// who has proved that the certificate names this login.
func (a accounts) find(ctx context.Context, login string) (account, *sallyport.Problem) {
	if !validLogin(login) {
		return account{}, sallyport.Denied(fmt.Sprintf("login %q is not a login name", sshauth.Printable(login, maxLogin)), "")
	}
	acc, err := a.entry(ctx, login)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return account{}, sallyport.Denied(fmt.Sprintf("login %q does not exist on this host", login), "ask for a login that the host has")
	case err != nil:
		return account{}, &sallyport.Problem{Kind: sallyport.ErrUnavailable,
			Fact: fmt.Sprintf("login %q cannot be looked up on this host", login), Cause: err}
	}
	if p := a.usable(acc); p != nil {
		return account{}, p
	}
	if acc.groups, err = a.groups(ctx, acc); err != nil {
		return account{}, &sallyport.Problem{Kind: sallyport.ErrUnavailable,
			Fact: fmt.Sprintf("the groups of login %q cannot be looked up on this host", login), Cause: err}
	}
	return acc, nil
}

func validLogin(s string) bool {
	return s != "" && len(s) <= maxLogin && s != "." && s != ".." && !strings.ContainsAny(s[:1], "-+~") &&
		!strings.ContainsFunc(s, func(c rune) bool { return c <= ' ' || c == 0x7f || c == ':' || c == '/' || c == ',' })
}

// privileged says whether this process can become other logins.
func (a accounts) privileged() bool {
	return a.ownUID() == 0
}

func (a accounts) ownUID() int {
	if a.uid != nil {
		return a.uid()
	}
	return os.Geteuid()
}

func (a accounts) usable(acc account) *sallyport.Problem {
	if own := a.ownUID(); own != 0 && uint32(own) != acc.uid {
		return sallyport.Denied(fmt.Sprintf("login %q: this agent does not run as root and offers only its own user", acc.name),
			"ask an administrator to run the agent as root, or use the agent's own login")
	}
	switch filepath.Base(acc.shell) {
	case "nologin", "false":
		return sallyport.Denied(fmt.Sprintf("login %q has no shell on this host", acc.name), "")
	}
	if info, err := os.Stat(acc.shell); err != nil || !info.Mode().IsRegular() || info.Mode().Perm()&0o111 == 0 {
		return sallyport.Denied(fmt.Sprintf("login %q: its shell %q cannot be run on this host", acc.name, acc.shell), "")
	}
	if a.expired(acc.name) {
		return sallyport.Denied(fmt.Sprintf("login %q: the account has expired on this host", acc.name), "")
	}
	if text, closed := a.closed(); closed && acc.uid != 0 {
		return sallyport.Denied(fmt.Sprintf("logins are closed on this host: %s", text), "")
	}
	return nil
}

// entry reads passwd(5).
func (a accounts) entry(ctx context.Context, login string) (account, error) {
	var found []string
	err := a.scan("passwd", func(fields []string) bool {
		if len(fields) == 7 && fields[0] == login {
			found = fields
		}
		return found == nil
	})
	if err == nil && found == nil && a.elsewhere("passwd") {
		found, err = ask(ctx, "passwd", login)
	}
	if err != nil {
		return account{}, err
	}
	return parseEntry(found, login)
}

func parseEntry(fields []string, login string) (account, error) {
	if len(fields) != 7 || fields[0] != login {
		return account{}, fs.ErrNotExist
	}
	uid, err := parseID(fields[2])
	if err != nil {
		return account{}, err
	}
	gid, err := parseID(fields[3])
	if err != nil {
		return account{}, err
	}
	acc := account{name: login, uid: uid, gid: gid, home: fields[5], shell: fields[6]}
	if acc.shell == "" {
		acc.shell = "/bin/sh" // passwd(5)
	}
	if acc.home == "" {
		acc.home = "/"
	}
	return acc, nil
}

func parseID(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || n == noID {
		return 0, fmt.Errorf("id %q: not a number of an account", s)
	}
	return uint32(n), nil
}

// groups reads group(5): the groups that name the login, with its own.
func (a accounts) groups(ctx context.Context, acc account) ([]uint32, error) {
	list := []uint32{acc.gid}
	add := func(text string) {
		gid, err := parseID(text)
		if err == nil && len(list) < maxGroups && !slices.Contains(list, gid) {
			list = append(list, gid)
		}
	}
	err := a.scan("group", func(fields []string) bool {
		if len(fields) == 4 && slices.Contains(strings.Split(fields[3], ","), acc.name) {
			add(fields[2])
		}
		return true
	})
	if err != nil || !a.elsewhere("group") {
		return list, err
	}
	// initgroups prints "login gid gid …", files and all other sources.
	fields, err := ask(ctx, "initgroups", acc.name)
	if errors.Is(err, fs.ErrNotExist) {
		return list, nil
	}
	if err != nil {
		return nil, err // a missing group may be one that a deny rule names
	}
	for i, text := range strings.Fields(strings.Join(fields, ":")) {
		if i > 0 {
			add(text)
		}
	}
	return list, nil
}

// expired reads the eighth field of shadow(5): days since 1970 after which the
// account is closed. Who cannot read shadow is not root, and runs programs
// only as itself.
func (a accounts) expired(login string) bool {
	expired := false
	_ = a.scan("shadow", func(fields []string) bool {
		if len(fields) != 9 || fields[0] != login {
			return true
		}
		if last, err := strconv.ParseInt(fields[7], 10, 64); err == nil && last >= 0 {
			expired = time.Now().Unix()/(24*60*60) > last
		}
		return false
	})
	return expired
}

// closed reads nologin(5).
func (a accounts) closed() (text string, closed bool) {
	f, err := os.Open(a.file("nologin"))
	if err != nil {
		return "", false
	}
	defer f.Close()
	head, _ := io.ReadAll(io.LimitReader(f, 512))
	if text = sshauth.Printable(strings.TrimSpace(string(head)), 512); text == "" {
		text = "no reason given"
	}
	return text, true
}

func (a accounts) file(name string) string {
	if a.etc == "" {
		return "/etc/" + name
	}
	return filepath.Join(a.etc, name)
}

// scan calls line with the fields of each line until it says false.
func (a accounts) scan(name string, line func(fields []string) bool) error {
	f, err := os.Open(a.file(name))
	if err != nil {
		return err
	}
	defer f.Close()
	return scanFields(io.LimitReader(f, maxDatabase), line)
}

func scanFields(r io.Reader, line func(fields []string) bool) error {
	s := bufio.NewScanner(r)
	s.Buffer(make([]byte, 0, 4<<10), maxLine)
	for s.Scan() {
		if text := s.Text(); text != "" && text[0] != '#' && !line(strings.Split(text, ":")) {
			return nil
		}
	}
	return s.Err()
}

// elsewhere says whether nsswitch.conf(5) names sources of a database that are
// not files.
func (a accounts) elsewhere(database string) bool {
	found := false
	_ = a.scan("nsswitch.conf", func(fields []string) bool {
		if strings.TrimSpace(fields[0]) != database || len(fields) != 2 {
			return true
		}
		found = slices.ContainsFunc(strings.Fields(fields[1]), func(source string) bool {
			return source != "files" && source != "compat" && source != "systemd" && source[0] != '['
		})
		return false
	})
	return found
}

const getent = "/usr/bin/getent"

// ask runs getent(1), which asks what the host's libc would.
func ask(ctx context.Context, database, key string) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, getent, "--", database, key)
	cmd.Env = []string{"PATH=" + pathRoot}
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	var exit *exec.ExitError
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.As(err, &exit) && exit.ExitCode() == 2: // getent(1): no such key
		return nil, fs.ErrNotExist
	case err != nil:
		return nil, err
	}
	first, _, _ := strings.Cut(string(out), "\n")
	return strings.Split(first, ":"), nil
}
