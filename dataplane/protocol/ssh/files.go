package ssh

import (
	"fmt"
	"os"
	"path"
	"strings"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/sshauth"
	"golang.org/x/crypto/ssh"
)

const (
	noCopy   = "copying files is refused"
	badFiles = "the client does not speak sftp"
)

// fileServers are where systems have OpenSSH's sftp-server.
var fileServers = [...]string{
	"/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server", "/usr/libexec/sftp-server",
	"/usr/lib/ssh/sftp-server", "/usr/lib/sftp-server", "/usr/local/libexec/sftp-server",
}

// fileServer is the shell command that serves sftp here; "" for none.
func (s *Server) fileServer() string {
	places := fileServers[:]
	if s.places != nil {
		places = s.places
	}
	for _, name := range places {
		if info, err := os.Stat(name); err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o111 != 0 {
			return name
		}
	}
	return s.FileServer
}

// askSubsystem serves sftp: a program that runs as the login, started by its
// shell as sshd does, so that a shell which forbids it is obeyed. Of others it
// says that there is none: clients show what comes on stderr of a subsystem
// that ends, but nothing of one that is refused.
func (ch *channel) askSubsystem(payload []byte) bool {
	var r signalRequest // one string, the name
	if ch.started || ch.tty != nil || ssh.Unmarshal(payload, &r) != nil {
		return false
	}
	command := ""
	if r.Name == "sftp" {
		command = ch.conn.server.fileServer()
	}
	if command == "" {
		ch.started = true
		ch.declineSubsystem(sshauth.Printable(r.Name, 64))
		return true
	}
	ch.files, ch.subsystem = newFileLog(ch), true
	return ch.start(command)
}

func (ch *channel) declineSubsystem(name string) {
	fact := fmt.Sprintf("this version does not serve the subsystem %q", name)
	hint := ""
	if name == "sftp" {
		fact, hint = "this host has no sftp-server", `use "scp -O" to copy files`
	}
	row := rule{name: "subsystem", fact: fact, event: sallyport.Event{Name: "subsystem", Code: "T3001E"}}
	ch.conn.refused(row, map[string]any{"name": name})
	ch.begin = func() { ch.decline(sallyport.Denied(fact, hint)) }
}

// decline ends a channel whose program is not started: granted, so that the
// reason is shown.
func (ch *channel) decline(p *sallyport.Problem) {
	ch.say(sshauth.Message(p))
	ch.close("exit-status", ssh.Marshal(exitStatus{Status: 1}))
}

// mayCopy asks the gate about what is known to copy files. It looks at how a
// command is named, as clients name it; who may run any command can copy by any.
func (ch *channel) mayCopy(command string) bool {
	use, isCopy := parseSCP(command)
	if isCopy {
		ch.copying = &use
	} else if ch.files == nil && ch.tty == nil && isFileServer(command) {
		ch.files = newFileLog(ch)
	}
	if ch.files == nil && ch.copying == nil {
		return true
	}
	p := ch.conn.ask(sallyport.ActionFileCopy)
	if p == nil {
		return true
	}
	row := rule{name: "sftp", fact: sshauth.Printable(p.Fact, sshauth.MaxText), event: sallyport.Event{Name: "sftp", Code: "TS020E"}}
	if isCopy {
		row.name, row.event = "scp", sallyport.Event{Name: "scp", Code: "T3010E"}
	}
	ch.conn.refused(row, commandFields(command))
	ch.begin = func() { ch.decline(p) }
	return false
}

// isFileServer says whether a command is sftp-server by name.
func isFileServer(command string) bool {
	words := strings.Fields(command)
	return len(words) > 0 && path.Base(words[0]) == "sftp-server"
}

// scpUse is the far half of scp, as its client starts it.
type scpUse struct {
	upload bool // -t: to here; otherwise -f, from here
	path   string
}

// parseSCP reads "scp [-rpdvq…] -t|-f [--] path".
func parseSCP(command string) (use scpUse, ok bool) {
	words := strings.Fields(command)
	if len(words) == 0 || path.Base(words[0]) != "scp" {
		return scpUse{}, false
	}
	words = words[1:]
	for len(words) > 0 && len(words[0]) > 1 && words[0][0] == '-' {
		flags := words[0]
		words = words[1:]
		if flags == "--" {
			break
		}
		if strings.ContainsRune(flags, 't') {
			use.upload, ok = true, true
		} else if strings.ContainsRune(flags, 'f') {
			use.upload, ok = false, true
		}
	}
	use.path = strings.Join(words, " ")
	return use, ok
}

// event is that of a copy by scp's own protocol.
func (u scpUse) event() sallyport.Event {
	if u.upload {
		return sallyport.Event{Name: "scp", Code: "T3005I", Fields: map[string]any{"action": "upload", "path": sshauth.Printable(u.path, maxCommand)}}
	}
	return sallyport.Event{Name: "scp", Code: "T3004I", Fields: map[string]any{"action": "download", "path": sshauth.Printable(u.path, maxCommand)}}
}
