package ssh

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/google/uuid"
	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/session"
	"github.com/sallyport/sallyport/dataplane/sshauth"
)

const (
	proto = "ssh"
	// maxCommand is how much of a command goes to the audit log; an event must
	// stay a line.
	maxCommand  = 16 << 10 // bytes
	denyTimeout = 5 * time.Second
	timeFormat  = "2006-01-02T15:04:05.000Z07:00"
)

// hostname is what people know a node by, in listings and in the audit log: the
// machine's own name unless the configuration says another.
func hostname(r *sallyport.Resource) string { return cmp.Or(r.Hostname, r.Name) }

// use is what this server asks of the gate for a login.
func (s *Server) use(c *session.Candidate, login string) session.Use {
	common := func(name, code string) sallyport.Event {
		return sallyport.Event{Name: name, Code: code, ServerID: s.HostID, Login: login, Fields: map[string]any{
			"server_hostname": hostname(&c.Resource), "proto": proto,
		}}
	}
	start := common("session.start", "T2000I")
	start.Fields["participants"] = []string{c.Identity.Name}
	start.Fields["session_recording"] = "off"
	return session.Use{
		Login: login, Action: sallyport.ActionConnect,
		Start: start, Denied: common("auth", "T3007W"), End: common("session.end", "T2004I"),
	}
}

// deny writes a refused authentication, durably, once per reason.
func (h *handshake) deny(login string, p *sallyport.Problem) {
	if !h.line(login, &refusal{problem: p}) {
		return
	}
	s, outer, failed := h.server, h.candidate.Identity, false
	why := []any{"connection", h.candidate.ConnectionID, "user", outer.Name, "login", sshauth.Printable(login, maxLogin), "reason", p.Fact}
	if p.Cause != nil {
		why = append(why, "cause", p.Cause)
	}
	s.log().Info("ssh: authentication refused", why...)
	if s.Events == nil {
		return
	}
	event := sallyport.Event{
		Name: "auth", Code: "T3007W", UID: uuid.NewString(), Time: time.Now().UTC(),
		Cluster: s.Cluster, ServerID: s.HostID, Login: sshauth.Printable(login, maxLogin),
		Addr: h.candidate.ClientAddr.String(), Success: &failed,
		Fields: map[string]any{"error": sshauth.Printable(p.Fact, sshauth.MaxText), "server_hostname": hostname(&h.candidate.Resource), "proto": proto,
			"namespace": "default", "server_version": h.candidate.Resource.Version},
	}
	if local := h.candidate.LocalAddr; local.IsValid() {
		event.Fields["addr.local"] = local.String()
	}
	// The person is the one of the outer certificate: it is proved.
	if outer.Kind == sallyport.KindUser {
		event.User, event.UserKind = outer.Name, "human"
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(h.ctx), denyTimeout)
	defer cancel()
	if err := s.Events.Emit(ctx, event, true); err != nil {
		s.log().Error("ssh: refused authentication is not in the audit log", "connection", h.candidate.ConnectionID, "error", err)
	}
}

// line says whether the refusal is new on this connection.
func (h *handshake) line(login string, r *refusal) bool {
	key := login + "\x00" + r.problem.Fact
	if h.lines[key] {
		return false
	}
	if h.lines == nil {
		h.lines = make(map[string]bool)
	}
	h.lines[key] = true
	return true
}

// refused writes that something was asked for which is not served, at most so
// often that a client cannot fill the log with it.
func (c *connection) refused(r rule, details map[string]any) {
	if r.event.Name == "" || !c.refusals.take(time.Now()) {
		return
	}
	no := false
	event := r.event
	event.Success = &no
	event.Login, event.ServerID = c.session.Principal, c.server.HostID
	event.Fields = map[string]any{"error": r.fact, "type": r.name, "proto": proto, "server_hostname": hostname(&c.session.Resource)}
	for name, value := range details {
		event.Fields[name] = value
	}
	c.session.Emit(event)
}

// executed writes what a command came to.
func (ch *channel) executed(state *os.ProcessState, failure error) {
	fields := commandFields(ch.command)
	fields["proto"], fields["server_hostname"], fields["interactive"] = proto, hostname(&ch.conn.session.Resource), ch.tty != nil
	code, fault := outcome(state, failure)
	fields["exitCode"] = strconv.Itoa(code)
	event := sallyport.Event{Name: "exec", Code: "T3002I"}
	if ch.copying != nil {
		event = ch.copying.event()
		maps.Copy(fields, event.Fields)
	}
	event.Fields, event.Login, event.ServerID = fields, ch.conn.account.name, ch.conn.server.HostID
	if fault != "" {
		event.Code = strings.TrimSuffix(event.Code, "I") + "E"
		fields["exitError"] = fault
	}
	success := fault == ""
	event.Success = &success
	ch.conn.session.Emit(event)
}

// commandFields is a command as an event has it. Where the text is not all of it,
// its size and its hash say which command it was.
func commandFields(command string) map[string]any {
	text := sshauth.Printable(command, maxCommand)
	fields := map[string]any{"command": text}
	if text != command {
		sum := sha256.Sum256([]byte(command))
		fields["command_size"], fields["command_sha256"] = int64(len(command)), hex.EncodeToString(sum[:])
	}
	if len(command) > maxCommand {
		fields["command_truncated"] = true
	}
	return fields
}

// outcome is an exit code as a shell gives it, and the fault in words.
func outcome(state *os.ProcessState, failure error) (code int, fault string) {
	if failure != nil {
		return -1, sshauth.Printable(failure.Error(), sshauth.MaxText)
	}
	if ws, ok := state.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return 128 + int(ws.Signal()), state.String()
	}
	if state.ExitCode() != 0 {
		return state.ExitCode(), state.String()
	}
	return 0, ""
}

// resized writes a new size of the terminal.
func (ch *channel) resized(size string) {
	if !ch.conn.resizes.take(time.Now()) {
		return
	}
	ch.conn.session.Emit(sallyport.Event{Name: "resize", Code: "T2002I", Login: ch.conn.account.name,
		ServerID: ch.conn.server.HostID, Fields: map[string]any{"size": size, "proto": proto}})
}

// end emits the session's end.
func (c *connection) end() {
	c.session.End(map[string]any{
		"participants": []string{c.session.Identity.Name}, "interactive": c.interactive.Load(),
		"session_start":   c.session.Started.UTC().Format(timeFormat),
		"session_stop":    time.Now().UTC().Format(timeFormat),
		"server_hostname": hostname(&c.session.Resource),
		"proto":           proto, "session_recording": "off", "enhanced_recording": false,
	})
}

// allowance bounds how often a client can make us write an event: a burst, then
// one per second.
type allowance struct {
	mu    sync.Mutex
	spent int
	last  time.Time
}

const burst = 20

func (a *allowance) take(now time.Time) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if back := int(now.Sub(a.last) / time.Second); back > 0 {
		a.spent = max(0, a.spent-back)
		a.last = now
	}
	if a.spent >= burst {
		return false
	}
	a.spent++
	return true
}
