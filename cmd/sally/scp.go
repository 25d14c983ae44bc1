package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/cmd/internal/fail"
)

type scpCmd struct {
	Recursive bool `name:"recursive" short:"r" help:"Copy directories, with all that is in them."`
	Preserve  bool `name:"preserve" short:"p" help:"Keep times and modes."`
	Quiet     bool `name:"quiet" short:"q" help:"Show no progress."`
	NoResume  bool `name:"no-resume" env:"TELEPORT_NO_RESUME" help:"Do not go on when a connection breaks."`
	Port      int  `name:"port" short:"P" hidden:""`

	scpAccepted

	Files []string `arg:"" name:"file" help:"Files here, or on a node as [user@]node:path; the last one is where to."`
}

// scpAccepted are flags of scp(1) that change nothing here, or are obeyed by name.
type scpAccepted struct {
	SFTP       bool     `name:"sftp" short:"s" hidden:""`
	Original   bool     `name:"original" short:"O" hidden:""` // the protocol of old; every node has sftp
	Through    bool     `name:"through" short:"3" hidden:""`
	Batch      bool     `name:"batch" short:"B" hidden:""`    // nothing is asked anyway
	Unchecked  bool     `name:"no-check" short:"T" hidden:""` // names are checked all the same
	IPv4       bool     `name:"ipv4" short:"4" hidden:""`
	IPv6       bool     `name:"ipv6" short:"6" hidden:""`
	Compress   bool     `name:"compress" short:"C" hidden:""`
	Verbose    bool     `name:"verbose" short:"v" hidden:""`                // obeyed as --debug
	ConfigFile string   `name:"config-file" short:"F" sep:"none" hidden:""` // only none
	Options    []string `name:"option" short:"o" sep:"none" hidden:""`      // User is obeyed
}

// obey reads those that mean something.
func (c *scpCmd) obey(p *program) error {
	if err := checkConfigFile(c.ConfigFile); err != nil {
		return err
	}
	for _, o := range c.Options {
		done, err := checkOption(o)
		if err != nil {
			return err
		}
		switch k, _, _ := option(o); {
		case done:
		case k == "loglevel", k == "user", k == "requesttty", k == "escapechar", k == "stdinnull", k == "sessiontype",
			k == "forwardagent", k == "localforward", k == "remoteforward", k == "dynamicforward", k == "clearallforwardings": // of sessions; scp(1) makes none of them
		default:
			return unknownOption(o)
		}
	}
	p.sshUser(c.Options)
	p.Debug = p.Debug || c.Verbose
	return nil
}

// remotePath is a file on a node.
type remotePath struct {
	host string // with the login, if one was named
	path string
}

// parseRemote reads [user@]node:path, where the node may stand in brackets, and
// scp://[user@]node[:port][/path]. A colon behind a slash is part of a name, as with scp(1).
func parseRemote(arg string) (r remotePath, ok bool) {
	if host, file, ok := uri("scp", arg); ok {
		return remotePath{host: host, path: file}, true
	}
	login, rest := "", arg
	if at := strings.Index(arg, "@["); at >= 0 && !strings.ContainsAny(arg[:at], "/:") {
		login, rest = arg[:at+1], arg[at+1:]
	}
	if inner, found := strings.CutPrefix(rest, "["); found {
		if host, file, closed := strings.Cut(inner, "]:"); closed && host != "" && !strings.ContainsAny(host, "/[]") {
			return remotePath{host: login + host, path: file}, true
		}
	}
	host, file, found := strings.Cut(arg, ":")
	if !found || host == "" || strings.Contains(host, "/") {
		return remotePath{}, false
	}
	return remotePath{host: host, path: file}, true
}

// inHome is a path on a node as sftp knows it: it starts in the login's home, and
// "~" is no more than a name there, which scp(1) has expanded.
func inHome(file string) (string, error) {
	first, rest, below := strings.Cut(file, "/")
	switch {
	case !strings.HasPrefix(file, "~"):
		return file, nil
	case first != "~":
		return "", problem(errInvalid, fmt.Sprintf("%s: this version knows no homes of other users", file), "name the whole path, or a file of that name as ./"+file)
	case !below:
		return ".", nil
	}
	return or(strings.TrimLeft(rest, "/"), "."), nil
}

// copying is what scp was asked for.
type copying struct {
	host string   // with the login, if one was named
	up   bool     // to the node
	from []string // not empty
	to   string
}

// asked reads the arguments.
func (c *scpCmd) asked() (a copying, err error) {
	if len(c.Files) < 2 {
		return a, problem(errInvalid, "a source and a target are needed", "sally scp FILE NODE:PATH")
	}
	sources, target := c.Files[:len(c.Files)-1], c.Files[len(c.Files)-1]
	to, up := parseRemote(target)
	a = copying{host: to.host, up: up, to: target}
	if up {
		if a.to, err = inHome(or(to.path, ".")); err != nil {
			return a, err
		}
	}
	for _, s := range sources {
		r, remote := parseRemote(s)
		switch {
		case remote == up:
			return a, problem(errInvalid, "files are copied between this machine and one node", "sally scp FILE NODE:PATH, or sally scp NODE:PATH FILE")
		case remote && a.host != "" && a.host != r.host:
			return a, problem(errInvalid, "this version copies from one node at a time", "copy from each node by a command of its own")
		case remote:
			a.host = r.host
			if s, err = inHome(or(r.path, ".")); err != nil {
				return a, err
			}
		}
		a.from = append(a.from, s)
	}
	return a, nil
}

// Run copies all sources to the target.
func (c *scpCmd) Run(p *program) error {
	if err := c.obey(p); err != nil {
		return err
	}
	a, err := c.asked()
	if err != nil {
		return err
	}
	t := &transfer{scpCmd: c, program: p, host: a.host}
	defer t.close()
	err = t.connect(p.ctx)
	if err == nil {
		err = t.copy(a)
	}
	return ended(p.ctx, err)
}

// ended is why a run ended: what its context's end broke is not why.
func ended(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// copy copies all sources to the target. What is left out of several, or of a
// directory, has been told by then.
func (t *transfer) copy(a copying) (err error) {
	if a.up {
		err = t.upload(a.from, a.to)
	} else {
		err = t.download(a.from, a.to)
	}
	switch {
	case err != nil || t.left == 0:
		return err
	case t.left == 1:
		return problem(errInvalid, "one file or directory was not copied", "the lines above say why")
	}
	return problem(errInvalid, fmt.Sprintf("%d files and directories were not copied", t.left), "the lines above say why")
}

// transfer is one run of scp: the connection, which may be replaced.
type transfer struct {
	*scpCmd
	program *program
	host    string

	ssh      *ssh.Client
	files    *sftp.Client
	requests *requests   // of files
	release  func() bool // from here on the program's end does not close ssh

	left int // files and directories, among others, that were not copied
}

const (
	blockSize   = 4 << 20 // bytes that one request of ours moves; the library cuts them in packets
	blocks      = 4       // at once
	packetsEach = 64      // at once, of one block: 2 MiB on their way

	resumeFor   = 2 * time.Minute // without a byte moved
	resumePause = 2 * time.Second
)

func (t *transfer) connect(ctx context.Context) error {
	cred, err := t.program.loadValid()
	if err != nil {
		return err
	}
	login, node, err := t.program.destination(cred, t.host)
	if err != nil {
		return err
	}
	if t.ssh, err = t.program.reach(cred, login, node, t.Quiet); err != nil {
		return err
	}
	t.files, err = t.open()
	return err
}

// open starts sftp. What the node says on standard error is why it does not.
func (t *transfer) open() (*sftp.Client, error) {
	sc := t.ssh
	t.release = context.AfterFunc(t.program.ctx, func() { sc.Close() }) // who waits for an answer learns of it so
	s, err := t.ssh.NewSession()
	if err != nil {
		return nil, fmt.Errorf("session: %w", err)
	}
	in, err := s.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := s.StdoutPipe()
	if err != nil {
		return nil, err
	}
	errs, err := s.StderrPipe() // the session copies it for a command alone, not for a subsystem
	if err != nil {
		return nil, err
	}
	if err := s.RequestSubsystem("sftp"); err != nil {
		return nil, problem(errInvalid, "the node does not serve sftp", "")
	}
	said := listen(errs)
	t.requests = &requests{WriteCloser: in}
	files, err := sftp.NewClientPipe(out, t.requests, sftp.UseConcurrentWrites(true), sftp.MaxConcurrentRequestsPerFile(packetsEach))
	if err != nil {
		s.Close()
		return nil, sshRefusal("sftp to "+t.host, err, said.all(t.program.ctx))
	}
	go keepalive(t.ssh, t.program.ctx.Done())
	return files, nil
}

// errDistrust is a node that would have files written where nobody asked for them.
var errDistrust = errors.New("the node is not to be trusted")

// leaveOne is leave for one of so many sources: of a single one the error says it all.
func (t *transfer) leaveOne(of int, err error) error {
	if of == 1 {
		return err
	}
	return t.leave(err)
}

// leave tells of a source, or an entry of a directory, that was not copied, and why; the
// others are copied, as with scp(1). What it returns ends the run: without a connection, by the
// person's will, and at a node that is up to something, there are no others.
func (t *transfer) leave(err error) error {
	if err == nil || t.files == nil || broken(err) || t.program.ctx.Err() != nil || errors.Is(err, errDistrust) {
		return err
	}
	t.left++
	fmt.Fprintf(t.program.stderr, "not copied: %s\n", fail.Clean(err.Error()))
	return nil
}

func (t *transfer) close() {
	if t.release != nil {
		t.release()
	}
	if t.files != nil {
		t.files.Close()
	}
	if t.ssh != nil {
		t.ssh.Close()
	}
	t.files, t.ssh = nil, nil
}

// upload copies files to the node.
func (t *transfer) upload(from []string, to string) error {
	info, err := t.files.Stat(to)
	into := err == nil && info.IsDir()
	if len(from) > 1 && !into {
		return problem(errInvalid, fmt.Sprintf("%s is not a directory on the node", to), "")
	}
	for _, file := range from {
		target := to
		if into {
			target = path.Join(to, filepath.Base(file))
		}
		if err := t.leaveOne(len(from), t.put(file, target)); err != nil {
			return err
		}
	}
	return nil
}

// put copies a file, or with -r a directory.
func (t *transfer) put(from, to string) error {
	info, err := os.Stat(from)
	if err != nil {
		return problem(errInvalid, err.Error(), "")
	}
	switch {
	case info.IsDir() && !t.Recursive:
		return problem(errInvalid, fmt.Sprintf("%s is a directory", from), "sally scp -r copies directories")
	case !info.IsDir() && !info.Mode().IsRegular():
		return problem(errInvalid, fmt.Sprintf("%s is not a file", from), "")
	case !info.IsDir():
		return t.putFile(from, to, info)
	}
	narrow, err := t.mkdir(to, kept(info))
	if err != nil {
		return err
	}
	list, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, entry := range list {
		if err := t.leave(t.put(filepath.Join(from, entry.Name()), path.Join(to, entry.Name()))); err != nil {
			return err
		}
	}
	if err := narrow(); err != nil {
		return err
	}
	return t.keepRemote(to, info)
}

// kept are the bits of a mode that are copied: never setuid.
func kept(info fs.FileInfo) fs.FileMode {
	if info.IsDir() {
		return info.Mode() & (fs.ModePerm | fs.ModeSticky)
	}
	return info.Mode().Perm()
}

// filling is what the owner of a directory needs to put something into it.
const filling fs.FileMode = 0o300

// mkdir makes a directory on the node unless it is there, with a mode less what the
// node's umask takes. It can be filled until narrow is called.
func (t *transfer) mkdir(to string, mode fs.FileMode) (narrow func() error, err error) {
	err = t.requests.making(to, mode|filling, func() error { return t.files.Mkdir(to) })
	there, serr := t.files.Stat(to)
	if err != nil {
		if serr != nil || !there.IsDir() {
			return nil, remoteProblem(to, err)
		}
		return func() error { return nil }, nil
	}
	if serr != nil {
		return nil, remoteProblem(to, serr)
	}
	restrict := func(mode fs.FileMode) error {
		now := within(there.Mode(), mode)
		if now == there.Mode() {
			return nil
		}
		if err := t.files.Chmod(to, now); err != nil {
			return remoteProblem(to, err)
		}
		return nil
	}
	// There are servers that do not look at the mode; ours is one.
	return func() error { return restrict(mode) }, restrict(mode | filling)
}

// within is a directory's mode without the permissions that another does not have,
// and with its sticky bit.
func within(now, mode fs.FileMode) fs.FileMode {
	return now&^(fs.ModePerm&^mode) | mode&fs.ModeSticky
}

func (t *transfer) putFile(from, to string, info fs.FileInfo) error {
	f, err := os.Open(from)
	if err != nil {
		return problem(errInvalid, err.Error(), "")
	}
	defer f.Close()
	far, err := t.create(to, kept(info))
	if err != nil {
		return remoteProblem(to, err)
	}
	if t.Preserve { // before anything is in it
		if err := far.Chmod(kept(info)); err != nil {
			return errors.Join(remoteProblem(to, err), far.Close())
		}
	}
	m := &move{transfer: t, name: filepath.Base(from), size: info.Size(), from: f, to: far, far: far}
	m.reopen = func() (*sftp.File, error) { return t.files.OpenFile(to, os.O_WRONLY) }
	m.attach = func(far *sftp.File) { m.to = far }
	if err := m.run(); err != nil {
		return err
	}
	return t.keepRemote(to, info)
}

// create opens a file on the node to be written, and empties it. As with scp(1) a new
// one has the mode, less what the node's umask takes, and another keeps its own.
func (t *transfer) create(to string, mode fs.FileMode) (far *sftp.File, err error) {
	err = t.requests.making(to, mode, func() (err error) {
		far, err = t.files.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC)
		return err
	})
	return far, err
}

func (t *transfer) keepRemote(to string, info fs.FileInfo) error {
	if !t.Preserve {
		return nil
	}
	if err := t.files.Chmod(to, kept(info)); err != nil {
		return remoteProblem(to, err)
	}
	if err := t.files.Chtimes(to, info.ModTime(), info.ModTime()); err != nil {
		return remoteProblem(to, err)
	}
	return nil
}

// download copies files from the node.
func (t *transfer) download(from []string, to string) error {
	var all []string
	for _, pattern := range from {
		found, err := t.glob(pattern)
		if err := t.leaveOne(len(from), err); err != nil {
			return err
		}
		all = append(all, found...)
	}
	several := max(len(from), len(all))
	info, err := os.Stat(to)
	into := err == nil && info.IsDir()
	if several > 1 && !into {
		return problem(errInvalid, fmt.Sprintf("%s is not a directory", to), "")
	}
	for _, file := range all {
		if err := t.leaveOne(several, t.getTop(file, to, into)); err != nil {
			return err
		}
	}
	return nil
}

// getTop copies one source to the target, or into it.
func (t *transfer) getTop(file, to string, into bool) error {
	if !into {
		return t.get(file, to)
	}
	name := path.Base(file)
	if !safeName(name) {
		return problem(errInvalid, fmt.Sprintf("%q has no name to copy it to", file), "name the target")
	}
	return t.get(file, filepath.Join(to, name))
}

// glob finds what a pattern means on the node. A file of that very name is meant
// first.
func (t *transfer) glob(pattern string) ([]string, error) {
	if _, err := t.files.Stat(pattern); err == nil || !strings.ContainsAny(pattern, "*?[") {
		return []string{pattern}, nil
	}
	found, err := t.files.Glob(pattern)
	if err != nil {
		return nil, remoteProblem(pattern, err)
	}
	if len(found) == 0 {
		return nil, problem(errInvalid, fmt.Sprintf("%s: no such file on the node", pattern), "")
	}
	return found, nil
}

// safeName: what a node calls a file in a directory must be a name in it, and
// nothing else (CVE-2019-6111 and its like). A backslash separates nothing here, and
// systemd has it in the names of units.
func safeName(name string) bool {
	return name != "" && name != "." && name != ".." && !strings.ContainsAny(name, "/\x00") && filepath.IsLocal(name)
}

// get copies a file, or with -r a directory.
func (t *transfer) get(from, to string) error {
	info, err := t.files.Stat(from)
	if err != nil {
		return remoteProblem(from, err)
	}
	switch {
	case info.IsDir() && !t.Recursive:
		return problem(errInvalid, fmt.Sprintf("%s is a directory", from), "sally scp -r copies directories")
	case !info.IsDir() && !info.Mode().IsRegular():
		return problem(errInvalid, fmt.Sprintf("%s is not a file", from), "")
	case !info.IsDir():
		return t.getFile(from, to, info)
	}
	mode := kept(info) &^ foreign
	err = os.Mkdir(to, mode|filling)
	made := err == nil
	if !made {
		if there, serr := os.Stat(to); serr != nil || !there.IsDir() {
			return problem(errInvalid, err.Error(), "")
		}
	}
	list, err := t.files.ReadDir(from)
	if err != nil {
		return remoteProblem(from, err)
	}
	for _, entry := range list {
		if !safeName(entry.Name()) {
			return &sallyport.Problem{Kind: errInvalid, Fact: fmt.Sprintf("the node calls a file %q, which is no name", entry.Name()), Hint: "do not trust this node", Cause: errDistrust}
		}
		if err := t.leave(t.get(path.Join(from, entry.Name()), filepath.Join(to, entry.Name()))); err != nil {
			return err
		}
	}
	if made {
		if err := narrowLocal(to, mode); err != nil {
			return err
		}
	}
	return t.keepLocal(to, info)
}

// foreign are permissions that a node cannot give: who else may write here.
const foreign fs.FileMode = 0o022

// narrowLocal takes from a directory what it was only filled by.
func narrowLocal(dir string, mode fs.FileMode) error {
	if mode&filling == filling {
		return nil
	}
	there, err := os.Stat(dir)
	if err != nil {
		return err
	}
	return os.Chmod(dir, within(there.Mode(), mode))
}

// emptied is for what is a file: /dev/null has no length.
func emptied(f *os.File) error {
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return err
	}
	return f.Truncate(0)
}

func (t *transfer) getFile(from, to string, info fs.FileInfo) error {
	far, err := t.files.Open(from)
	if err != nil {
		return remoteProblem(from, err)
	}
	// As with scp(1) the owner may write to it, so that it can be copied again.
	f, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE, kept(info)&^foreign|0o200)
	if err != nil {
		return errors.Join(problem(errInvalid, err.Error(), ""), far.Close())
	}
	if t.Preserve { // before anything is in it
		if err := f.Chmod(kept(info)); err != nil {
			return errors.Join(problem(errInvalid, err.Error(), ""), f.Close(), far.Close())
		}
	}
	if err := emptied(f); err != nil {
		return errors.Join(problem(errInvalid, err.Error(), ""), f.Close(), far.Close())
	}
	m := &move{transfer: t, name: path.Base(from), size: info.Size(), from: far, to: f, far: far}
	m.reopen = func() (*sftp.File, error) {
		now, err := t.files.Stat(from)
		if err != nil {
			return nil, err
		}
		if now.Size() != info.Size() || !now.ModTime().Equal(info.ModTime()) {
			return nil, problem(errInvalid, fmt.Sprintf("%s has changed on the node while it was copied", from), "copy it again")
		}
		return t.files.Open(from)
	}
	m.attach = func(far *sftp.File) { m.from = far }
	if err := errors.Join(m.run(), f.Close()); err != nil {
		return err
	}
	return t.keepLocal(to, info)
}

func (t *transfer) keepLocal(to string, info fs.FileInfo) error {
	if !t.Preserve {
		return nil
	}
	if err := os.Chmod(to, kept(info)); err != nil {
		return err
	}
	return os.Chtimes(to, info.ModTime(), info.ModTime())
}

// moveProblem is for what may have failed at either end: a full disk of this machine
// is not the node's.
func moveProblem(file string, err error) error {
	if local, ok := errors.AsType[*fs.PathError](err); ok {
		return problem(errInvalid, local.Error(), "")
	}
	return remoteProblem(file, err)
}

func remoteProblem(file string, err error) error {
	if broken(err) {
		return err
	}
	return problem(errInvalid, fmt.Sprintf("%s: %s on the node", file, fail.Clean(strings.TrimPrefix(err.Error(), "sftp: "))), "")
}

// broken says that the connection is gone, and not that the node has said no.
func broken(err error) bool {
	var status *sftp.StatusError
	if errors.As(err, &status) || errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return false
	}
	return errors.Is(err, sftp.ErrSSHFxConnectionLost) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.ErrClosedPipe) ||
		errors.Is(err, os.ErrClosed)
}
