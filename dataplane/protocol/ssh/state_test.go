package ssh

import (
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

// probe is a message of each number that would do something if it were taken.
func probe(h *host, number byte) []byte {
	marker := filepath.Join(h.home, "marker")
	switch number {
	case msgGlobalRequest:
		return globalRequest("keepalive@openssh.com", nil)
	case msgChannelOpen:
		return channelOpen("session", 0)
	case msgChannelRequest:
		return channelRequest(0, "exec", true, str("touch "+marker))
	case msgChannelData:
		return join([]byte{msgChannelData}, make([]byte, 4), str("touch "+marker+"\n"))
	case msgAuthRequest:
		return join([]byte{msgAuthRequest}, str(h.login, "ssh-connection", "none"))
	case msgServiceRequest:
		return join([]byte{msgServiceRequest}, str("ssh-connection"))
	}
	return join([]byte{number}, make([]byte, 16))
}

// TestA83_MessagesBeforeAuthentication: in no state before
// SSH_MSG_USERAUTH_SUCCESS does any message number open anything. Messages of
// the connection protocol (RFC 4254) end the connection.
func TestA83_MessagesBeforeAuthentication(t *testing.T) {
	h := newHost(t, nil)
	states := map[string]func() *rawClient{
		"before keys":    h.rawConnect,
		"before service": h.rawKeys,
		"before proof":   h.rawService,
		"after refusal": func() *rawClient {
			c := h.rawService()
			c.sign("root", h.signer(nil))
			c.expect(msgAuthFailure)
			return c
		},
		"after offer": func() *rawClient {
			c := h.rawService()
			c.ask(h.login, h.signer(nil).PublicKey())
			c.expect(msgAuthPKOK)
			return c
		},
	}
	for name, reach := range states {
		t.Run(name, func(t *testing.T) {
			for number := range 256 {
				c := reach()
				c.send(probe(h, byte(number)))
				if number >= 80 { // of the connection protocol, or nobody's
					if got := c.untilEnd(); got != "" {
						t.Errorf("message %d: got %s", number, got)
					}
				} else {
					// What may be ignored here may not let a channel through.
					_ = c.trySend(probe(h, msgChannelOpen))
					_ = c.trySend(probe(h, msgChannelRequest))
					c.Conn.(*net.TCPConn).CloseWrite()
					if got := c.untilEnd(); got != "" {
						t.Errorf("message %d: got %s", number, got)
					}
				}
				c.Close()
			}
		})
	}
	if h.gate.opens != 0 || len(h.gate.named("session.start")) != 0 {
		t.Errorf("%d sessions were opened", h.gate.opens)
	}
	if _, err := os.Stat(filepath.Join(h.home, "marker")); err == nil {
		t.Error("a command ran")
	}
}

// untilEnd reads to the end of the connection and names what must not come.
func (c *rawClient) untilEnd() string {
	for {
		p, err := c.read()
		if err, ok := err.(net.Error); ok && err.Timeout() {
			return "no end"
		}
		if err != nil {
			return ""
		}
		switch p[0] {
		case msgAuthSuccess, msgRequestSuccess, msgChannelConfirm, msgChannelData, msgChannelSuccess:
			return fmt.Sprintf("message %d", p[0])
		}
	}
}

// TestA83_MessagesAfterAuthentication: no message number in a session's life
// breaks the server for others.
func TestA83_MessagesAfterAuthentication(t *testing.T) {
	h := newHost(t, nil)
	for number := range 256 {
		c := h.rawLogin()
		_ = c.trySend(join([]byte{byte(number)}, make([]byte, 16)))
		_ = c.trySend(join([]byte{byte(number)}))
		c.Conn.(*net.TCPConn).CloseWrite()
		if got := c.untilEnd(); got == "no end" {
			t.Errorf("message %d: the connection hangs", number)
		}
		c.Close()
	}
	if got := h.run("echo on"); got.out != "on\n" {
		t.Errorf("the server is broken: %+v", got)
	}
}

// TestA83_RequestsBehindAStart: a session runs one program (RFC 4254, section
// 6.5), and what it runs in is settled before it starts.
func TestA83_RequestsBehindAStart(t *testing.T) {
	h := newHost(t, nil)
	marker := filepath.Join(h.home, "marker")
	starts := map[string][]byte{
		"shell": channelRequest(0, "shell", true, nil),
		"exec":  channelRequest(0, "exec", true, str("cat")),
	}
	for name, start := range starts {
		t.Run(name, func(t *testing.T) {
			c := h.rawLogin()
			defer c.Close()
			c.send(channelOpen("session", 0))
			c.expect(msgChannelConfirm)
			c.send(start)
			c.expect(msgChannelSuccess)
			for _, again := range [][]byte{
				channelRequest(0, "exec", true, str("touch "+marker)),
				channelRequest(0, "shell", true, nil),
				channelRequest(0, "subsystem", true, str("sftp")),
				channelRequest(0, "subsystem", true, str("none")),
				channelRequest(0, "env", true, str("LANG", "C")),
				channelRequest(0, "pty-req", true, join(str("xterm"), make([]byte, 16), str(""))),
				channelRequest(0, "auth-agent-req@openssh.com", true, nil),
			} {
				if err := c.trySend(again); err != nil {
					return
				}
				switch c.answer() {
				case msgChannelSuccess:
					t.Errorf("granted: %q", again)
				case msgChannelClose:
					return
				}
			}
		})
	}
	if _, err := os.Stat(marker); err == nil {
		t.Error("a second command ran")
	}
	if n := len(h.gate.named("session.command")); n > len(starts) {
		t.Errorf("%d commands", n)
	}
}

// answer reads up to the answer to a channel request, or the channel's end.
func (c *rawClient) answer() byte {
	for {
		p, err := c.read()
		if err != nil {
			return msgChannelClose
		}
		switch p[0] {
		case msgChannelSuccess, msgChannelFailure, msgChannelClose:
			return p[0]
		}
	}
}

// TestA82_UnsolicitedReplies: answers to questions nobody asked are dropped
// (CVE-2026-39830).
func TestA82_UnsolicitedReplies(t *testing.T) {
	h := newHost(t, nil)
	c := h.rawLogin()
	c.send(channelOpen("session", 3))
	c.expect(msgChannelConfirm)
	for range 2000 {
		c.send([]byte{msgRequestSuccess})
		c.send([]byte{msgRequestFailure})
		c.send([]byte{msgChannelSuccess, 0, 0, 0, 0})
		c.send([]byte{msgChannelFailure, 0, 0, 0, 0})
	}
	c.send(channelRequest(0, "exec", true, str("exit 5")))
	c.expect(msgChannelSuccess)
	status := c.expect(msgChannelRequest)
	if !strings.Contains(string(status), "exit-status") || status[len(status)-1] != 5 {
		t.Errorf("got %q", status)
	}
}

// TestA82_RejectedChannels: refusing channels leaves nothing behind
// (CVE-2026-39827).
func TestA82_RejectedChannels(t *testing.T) {
	h := newHost(t, nil)
	c := h.rawLogin()
	const rounds, each = 6, 10_000
	open := channelOpen("x11", 0)
	began := time.Now()
	reject := func() {
		var reader sync.WaitGroup
		reader.Go(func() {
			for range each {
				if p, err := c.read(); err != nil || p[0] != msgChannelRefused {
					t.Errorf("got %v, %v", p, err)
					return
				}
			}
		})
		for range each {
			if err := c.trySend(open); err != nil {
				t.Error(err)
				break
			}
		}
		reader.Wait()
	}
	reject()
	before := heap()
	for range rounds {
		if t.Failed() {
			return
		}
		if err := c.SetDeadline(time.Now().Add(deadline)); err != nil {
			t.Fatal(err)
		}
		reject()
	}
	if after := heap(); after > before+(1<<20) {
		t.Errorf("%d KiB more after %d refused channels", (after-before)>>10, rounds*each)
	}
	most := burst + int(time.Since(began)/time.Second) + 1 // see allowance
	if n := len(h.gate.named("x11-forward")); n == 0 || n > most {
		t.Errorf("%d events about %d refused channels, want at most %d", n, rounds*each, most)
	}
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// TestSlowReader: what a program left in its terminal, or its pipe, reaches a
// client that reads only after the program has ended. What was left in a terminal was
// lost when the agent stood still for drainIdle before it read it.
func TestSlowReader(t *testing.T) {
	const size = 8_000                                              // a terminal holds little more
	for _, drain := range []time.Duration{-1, 0, time.Nanosecond} { // -1: a pipe
		tty := drain >= 0
		h := newHost(t, func(h *host) { h.server.drain = max(drain, 0) })
		c := h.rawLogin()
		open := channelOpen("session", 0)
		binary.BigEndian.PutUint32(open[len(open)-8:], 16) // the window
		c.send(open)
		c.expect(msgChannelConfirm)
		if tty {
			c.send(channelRequest(0, "pty-req", true, join(str("xterm"), make([]byte, 16), str("\x46\x00\x00\x00\x00\x00")))) // OPOST off
			c.expect(msgChannelSuccess)
		}
		c.send(channelRequest(0, "exec", true, str("head -c 8000 /dev/zero")))
		c.expect(msgChannelSuccess)
		eventually(t, "the program to end", func() bool { return len(h.gate.named("exec")) == 1 })
		c.send([]byte{93, 0, 0, 0, 0, 0, 1, 0, 0}) // SSH_MSG_CHANNEL_WINDOW_ADJUST
		got := 0
		for got < size {
			got += len(c.expect(msgChannelData)) - 9
		}
		if got != size || !strings.Contains(string(c.expect(msgChannelRequest)), "exit-status") {
			t.Errorf("tty %v, drain %v: %d bytes", tty, drain, got)
		}
		c.Close()
	}
}

// TestUnclosedChannels: a client that never confirms a close keeps its slot, so
// it cannot pile up channels.
func TestUnclosedChannels(t *testing.T) {
	h := newHost(t, func(h *host) { h.server.MaxChannels = 2 })
	c := h.rawLogin()
	for id := range uint32(2) {
		c.send(channelOpen("session", id))
		c.expect(msgChannelConfirm)
		c.send(channelRequest(id, "exec", true, str("true")))
		c.expect(msgChannelSuccess)
		c.expect(msgChannelRequest) // exit-status
		c.expect(96)                // EOF
		c.expect(97)                // CLOSE, to which this client says nothing
	}
	c.send(channelOpen("session", 2))
	c.expect(msgChannelRefused)
	c.send(binary.BigEndian.AppendUint32([]byte{97}, 0))
	eventually(t, "the slot to be free", func() bool {
		c.send(channelOpen("session", 2))
		p, err := c.read()
		return err == nil && p[0] == msgChannelConfirm
	})
}

// TestDataWithoutMeaning: a client that sends extended data, or goes on behind its
// end, loses its connection, whatever its channel does: the SSH library kept all of
// it, at fifty times its size.
func TestDataWithoutMeaning(t *testing.T) {
	h := newHost(t, func(h *host) { h.server.places = []string{} })
	data := join([]byte{msgChannelData, 0, 0, 0, 0}, str("x"))
	extended := join([]byte{msgChannelExtended, 0, 0, 0, 0, 0, 0, 0, 1}, str("x"))
	ways := map[string]struct{ first, then []byte }{
		"extended": {data, extended}, "behind the end": {[]byte{msgChannelEnd, 0, 0, 0, 0}, data},
	}
	requests := map[string][]byte{
		"runs":      channelRequest(0, "exec", true, str("sleep 61")),
		"has ended": channelRequest(0, "exec", true, str("true")),
		"refused":   channelRequest(0, "subsystem", true, str("sftp")),
	}
	for way, packets := range ways {
		for name, request := range requests {
			c := h.rawLogin()
			c.send(channelOpen("session", 0))
			c.expect(msgChannelConfirm)
			c.send(request)
			c.expect(msgChannelSuccess)
			c.send(packets.first)
			if err := c.untilCut(packets.then); err != nil {
				t.Errorf("%s, program %s: %v", way, name, err)
			}
			c.Close()
			waitFor(t, "Serve to return", func() { <-h.errs })
		}
	}
	cut := h.gate.named("client.disconnect")
	for _, e := range cut {
		if e.Fields["reason"] != "the client sent data where none may be" {
			t.Errorf("%+v", e)
		}
	}
	if len(cut) != len(ways)*len(requests) {
		t.Errorf("%d connections were cut", len(cut))
	}
}

// untilCut sends a packet again and again until the connection ends: the first may
// come before what makes it wrong is seen.
func (c *rawClient) untilCut(packet []byte) error {
	var sender sync.WaitGroup
	defer sender.Wait()
	ended := make(chan struct{})
	defer close(ended)
	sender.Go(func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for c.trySend(packet) == nil {
			select {
			case <-tick.C:
			case <-ended:
				return
			}
		}
	})
	for {
		_, err := c.read()
		if err, ok := err.(net.Error); ok && err.Timeout() {
			return err
		}
		if err != nil {
			return nil
		}
	}
}

// TestInputOfNobody: what a program does not read that has closed its standard
// input is forgotten, however much it is, and harms nobody.
func TestInputOfNobody(t *testing.T) {
	h := newHost(t, nil)
	c := h.dial()
	s, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	in, err := s.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := s.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start("exec <&-; echo; exec sleep 61"); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the program", func() { _, _ = out.Read(make([]byte, 1)) })
	waitFor(t, "five windows to be taken", func() {
		if _, err := in.Write(make([]byte, 5*2<<20)); err != nil {
			t.Error(err)
		}
	})
	in.Close()
	s.Close()
	next, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	if got := runOn(t, next, "echo on"); got.out != "on\n" {
		t.Errorf("the connection is gone: %+v", got)
	}
}

// TestSilentClient: deadlines hold before the person is proven.
func TestSilentClient(t *testing.T) {
	for name, c := range map[string]struct {
		handshake, grace time.Duration
		reach            func(*host) *rawClient
		least            time.Duration
	}{
		"no keys":  {50 * time.Millisecond, time.Hour, (*host).rawGreet, 0},
		"no proof": {5 * time.Second, 6 * time.Second, (*host).rawService, 6 * time.Second}, // the keys are there in time
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t, func(h *host) { h.server.HandshakeTimeout, h.server.LoginGrace = c.handshake, c.grace })
			started := time.Now()
			raw := c.reach(h)
			if got := raw.untilEnd(); got != "" {
				t.Error(got)
			}
			if took := time.Since(started); took < c.least {
				t.Errorf("ended after %v", took)
			}
			raw.Close()
		})
	}
}
