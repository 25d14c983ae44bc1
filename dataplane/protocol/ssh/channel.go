package ssh

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/sshauth"
	"golang.org/x/crypto/ssh"
)

const (
	// chunk is the largest packet of data (RFC 4254 section 5.2; the SSH
	// library sends no larger ones).
	chunk = 32 << 10

	// After the exit of its program, a terminal is read until it was silent
	// for drainIdle: the kernel hands over what was written a moment later,
	// and a job in the background may hold the terminal open. drainMax is
	// more than a terminal buffers.
	drainIdle = 100 * time.Millisecond
	drainMax  = 1 << 20

	maxArg = 128<<10 - 1 // bytes of one argument (execve(2): MAX_ARG_STRLEN)
)

// channel is one session channel: at most one terminal, one program.
type channel struct {
	conn      *connection
	ssh       ssh.Channel
	out       stream
	errs      stream
	env       environ
	tty       *terminal
	command   string // "" for a shell
	program   *process
	subsystem bool          // the command is ours, not the client's
	files     *fileLog      // looks at what passes; nil unless it is sftp
	copying   *scpUse       // nil unless the command is scp's far half
	started   bool          // shell or exec was granted or tried: RFC 4254 section 6.5
	running   bool          // notices can be shown; guarded by conn.mu
	begin     func()        // what follows the answer to a request; may be nil
	taken     bool          // the client's bytes are read
	ended     atomic.Bool   // the client has been told how it ended
	closed    chan struct{} // closed when the client has closed the channel, or is gone
	pumps     sync.WaitGroup
}

// stream serialises writers: the SSH library allows one at a time.
type stream struct {
	mu sync.Mutex
	w  io.Writer
}

func (s *stream) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.w.Write(b)
}

func (ch *channel) attach(c ssh.Channel) {
	ch.conn.mu.Lock() // against tell
	defer ch.conn.mu.Unlock()
	ch.ssh, ch.out.w, ch.errs.w = c, c, c.Stderr()
}

// say writes a text for the person beside the program's own output.
func (ch *channel) say(text string) {
	ch.conn.mu.Lock()
	attached := ch.ssh != nil
	ch.conn.mu.Unlock()
	if attached {
		// An error means that nobody is there to read.
		_, _ = ch.errs.Write([]byte(text))
	}
}

func (ch *channel) warn(fact string) { ch.say("WARNING: " + fact + "\r\n") }

// serve answers the client's requests until it closes the channel or is gone,
// and then leaves nothing behind.
func (ch *channel) serve(requests <-chan *ssh.Request) {
	ch.closed = make(chan struct{})
	ch.pumps.Go(func() { ch.conn.silent(ch.ssh.Stderr(), ch.closed) })
	for q := range requests {
		ok := ch.answer(q)
		// An error means that the connection is gone, which ends the loop.
		_ = q.Reply(ok, nil)
		// Output comes after the answer: some clients insist.
		if begin := ch.begin; begin != nil {
			ch.begin = nil
			begin()
		}
		// Before, the bytes wait for the program.
		if ch.started && !ch.taken {
			ch.taken = true
			ch.pumps.Go(ch.takeInput)
		}
	}
	close(ch.closed)
	if ch.program != nil {
		ch.program.hangUp()
	}
	ch.pumps.Wait()
	ch.tty.close()
}

func (ch *channel) answer(q *ssh.Request) bool {
	r := requestRuleOf(q.Type)
	if r.serve != nil {
		return r.serve(ch, q.Payload)
	}
	if r.fact != "" {
		ch.say(sshauth.Message(sallyport.Denied(r.fact, "")))
		ch.conn.refused(r.rule, nil)
	}
	return false
}

func (ch *channel) keptAlive([]byte) bool { return true }

// endOfWrite says that the client reads no more output (OpenSSH PROTOCOL
// section 2.1). The program learns it when the channel closes.
func (ch *channel) endOfWrite([]byte) bool { return true }

func (ch *channel) setEnv(payload []byte) bool {
	var r envRequest
	return !ch.started && ssh.Unmarshal(payload, &r) == nil && ch.env.set(r.Name, r.Value)
}

func (ch *channel) askTerminal(payload []byte) bool {
	r, ok := parsePTY(payload)
	if !ok || ch.started || ch.tty != nil {
		return false
	}
	if !ch.conn.permit.pty {
		ch.say(sshauth.Message(sallyport.Denied("the certificate does not permit a terminal", "")))
		return false
	}
	tty, err := openTerminal(r, ch.conn.account)
	if err != nil {
		ch.conn.server.log().Error("ssh: no terminal", "session", ch.conn.session.ID, "error", err)
		ch.say(sshauth.Message(sallyport.Denied("this host has no terminal to give", "")))
		return false
	}
	ch.tty = tty
	return true
}

func (ch *channel) resize(payload []byte) bool {
	var r windowChange
	if ssh.Unmarshal(payload, &r) != nil || ch.tty == nil {
		return false
	}
	changed, err := ch.tty.resize(r)
	if err != nil {
		return false
	}
	if changed && ch.program != nil {
		ch.resized(fmt.Sprintf("%d:%d", dimension(r.Columns), dimension(r.Rows)))
	}
	return true
}

func (ch *channel) signal(payload []byte) bool {
	var r signalRequest
	if ssh.Unmarshal(payload, &r) != nil || ch.program == nil {
		return false
	}
	sig, ok := signalNamed(r.Name)
	return ok && ch.program.signal(sig) == nil
}

// sendBreak is RFC 4335. A pseudo terminal has no line to break; what the
// terminal driver makes of it is what sshd gives too.
func (ch *channel) sendBreak([]byte) bool {
	return ch.tty != nil && ch.tty.sendBreak() == nil
}

func (ch *channel) startShell(payload []byte) bool {
	return len(payload) == 0 && ch.start("")
}

func (ch *channel) startCommand(payload []byte) bool {
	var r execRequest
	if ssh.Unmarshal(payload, &r) != nil || r.Command == "" || strings.ContainsRune(r.Command, 0) {
		return false
	}
	if len(r.Command) > maxArg {
		ch.say(sshauth.Message(sallyport.Denied("the command is longer than this host can run", "")))
		return false
	}
	return ch.start(r.Command)
}

// start runs a command, or the login's shell when there is none.
func (ch *channel) start(command string) bool {
	if ch.started {
		return false
	}
	ch.started, ch.command = true, command
	if !ch.mayCopy(command) {
		return true
	}
	if ch.tty != nil {
		ch.conn.interactive.Store(true)
	}
	for _, fact := range ch.conn.takeNotices(ch) {
		ch.warn(fact)
	}
	p, warning, err := startProcess(ch.launch())
	if warning != "" {
		ch.say(sshauth.Printable(warning, sshauth.MaxText) + "\r\n")
	}
	if err != nil {
		ch.conn.server.log().Error("ssh: program not started", "session", ch.conn.session.ID, "login", ch.conn.account.name, "error", err)
		ch.say(sshauth.Message(sallyport.Denied(fmt.Sprintf("the shell %q cannot be started on this host", ch.conn.account.shell), "")))
		ch.executed(nil, err)
		return false
	}
	ch.program = p
	ch.begin = ch.run
	return true
}

func (ch *channel) launch() launch {
	return launch{
		account: ch.conn.account, command: ch.command, env: ch.environment(),
		tty: ch.tty, grace: ch.conn.server.killGrace(), switchUser: accounts{}.privileged(), parent: &ch.conn.server.parent,
	}
}

// run starts the goroutines that join the channel and its program. serve
// waits for them.
func (ch *channel) run() {
	var outputs sync.WaitGroup
	p := ch.program
	if ch.tty != nil {
		outputs.Go(ch.pumpTerminal)
	} else {
		outputs.Go(func() { ch.pump(&ch.out, p.stdout) })
		outputs.Go(func() { ch.pump(&ch.errs, p.stderr) })
	}
	ch.pumps.Go(func() { ch.finish(&outputs) })
}

// takeInput reads what the client sends until the channel is closed: for the
// program, and then for nobody, as sshd does. A client that sends anything behind
// its end is cut off.
func (ch *channel) takeInput() {
	if ch.program != nil {
		ch.pumpInput()
	}
	sshauth.Forget(ch.ssh)
	ch.conn.silent(ch.ssh, ch.closed)
}

// pumpInput carries the client's bytes to the program. The end of them closes
// its standard input; a terminal has no such end, as with sshd.
func (ch *channel) pumpInput() {
	in := ch.program.stdin
	buf := make([]byte, chunk)
	for {
		n, err := ch.ssh.Read(buf)
		if n > 0 {
			ch.conn.touch()
			if ch.files.request(buf[:n]) != nil {
				ch.say(sshauth.Message(sallyport.Denied(badFiles, "")))
				ch.program.hangUp()
				break
			}
			if _, werr := in.Write(buf[:n]); werr != nil {
				ch.endOfInput()
				break
			}
		}
		if err != nil {
			break
		}
	}
	if ch.tty == nil {
		in.Close()
	}
}

// endOfInput asks an OpenSSH client to send no more (PROTOCOL section 2.1).
func (ch *channel) endOfInput() {
	if strings.Contains(string(ch.conn.ssh.ClientVersion()), "OpenSSH") {
		// An error means that the channel is closed, which says the same.
		_, _ = ch.ssh.SendRequest("eow@openssh.com", false, nil)
	}
}

// pump carries a pipe of the program to the client until its end.
func (ch *channel) pump(to *stream, from *os.File) {
	defer from.Close()
	buf := make([]byte, chunk)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			ch.conn.touch()
			out := buf[:n]
			if to == &ch.out {
				var bad error
				if out, bad = ch.files.pass(out); bad != nil {
					return
				}
			}
			if _, werr := to.Write(out); werr != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// pumpTerminal carries the terminal to the client: until its end while the
// program runs, and for what is left of it afterwards.
func (ch *channel) pumpTerminal() {
	tty, buf, drained, drain := ch.tty.master, make([]byte, chunk), 0, ch.conn.server.drainTime()
	for {
		exited := ch.program.isDone()
		if exited {
			// An error means that the terminal is closed, which Read says.
			_ = tty.SetReadDeadline(time.Now().Add(drain))
		}
		n, err := tty.Read(buf)
		if exited && errors.Is(err, os.ErrDeadlineExceeded) {
			// Perhaps before it has looked: on a busy machine the time is over soon.
			n, err = ch.tty.readWaiting(buf)
		}
		if n > 0 {
			ch.conn.touch()
			if _, werr := ch.out.Write(buf[:n]); werr != nil {
				return
			}
		}
		if exited {
			drained += n
		}
		switch {
		case drained > drainMax:
			return
		case errors.Is(err, os.ErrDeadlineExceeded) && !exited: // woken by finish
		case err != nil: // EIO: nobody has the terminal open
			return
		}
	}
}

// finish tells the client how the program ended, once all of its output is on
// its way, and closes our side of the channel.
func (ch *channel) finish(outputs *sync.WaitGroup) {
	<-ch.program.done
	if ch.tty != nil {
		// Wakes pumpTerminal, which then reads what is left.
		_ = ch.tty.master.SetReadDeadline(time.Now().Add(ch.conn.server.drainTime()))
	}
	if ch.command != "" && !ch.subsystem {
		ch.executed(ch.program.state, nil)
	}
	outputs.Wait()
	ch.files.end(ch.program.state)
	ch.close(exitMessage(ch.program.state))
}

// dismiss ends the channel while its program runs: as one that was terminated,
// which it is about to be (RFC 4254 section 6.10).
func (ch *channel) dismiss(fact string) {
	ch.close("exit-signal", ssh.Marshal(exitSignal{Name: "TERM", Message: sshauth.Printable(fact, sshauth.MaxText)}))
}

// close says how it ended and closes our side of the channel. The first to say
// it counts.
func (ch *channel) close(name string, payload []byte) {
	if ch.ended.Swap(true) {
		return
	}
	// Errors mean that the channel is closed: nobody waits for the rest.
	_, _ = ch.ssh.SendRequest(name, false, payload)
	ch.out.mu.Lock() // the SSH library wants no writer beside CloseWrite
	defer ch.out.mu.Unlock()
	ch.errs.mu.Lock()
	defer ch.errs.mu.Unlock()
	_ = ch.ssh.CloseWrite()
	_ = ch.ssh.Close()
}
