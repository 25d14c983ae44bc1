package main

import (
	"fmt"

	"golang.org/x/crypto/ssh"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/cmd/internal/fail"
)

// subsystems opens sessions whose Start starts a subsystem. The SSH library carries
// bytes, and tells how it ended, for commands and shells alone; a subsystem's request
// is a command's by another name (RFC 4254, section 6.5).
type subsystems struct{ ssh.Conn }

// OpenChannel is what a session is made of.
func (c subsystems) OpenChannel(name string, data []byte) (ssh.Channel, <-chan *ssh.Request, error) {
	ch, requests, err := c.Conn.OpenChannel(name, data)
	return subsystem{ch}, requests, err
}

type subsystem struct{ ssh.Channel }

func (s subsystem) SendRequest(name string, wantReply bool, payload []byte) (bool, error) {
	if name != "exec" {
		return s.Channel.SendRequest(name, wantReply, payload)
	}
	ok, err := s.Channel.SendRequest("subsystem", wantReply, payload)
	if err == nil && !ok {
		var asked struct{ Name string }
		_ = ssh.Unmarshal(payload, &asked) // the library's own
		err = problem(sallyport.ErrNotFound, fmt.Sprintf("the node serves no subsystem %q to you", fail.Clean(asked.Name)), "sftp is one, where your roles allow it")
	}
	return ok, err
}
