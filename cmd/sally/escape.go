package main

import (
	"bytes"
	"io"
)

// escapes reads what a person types and obeys the escape sequences of ssh(1):
// "~." ends the connection, "~?" tells of them, "~~" is one tilde. They count
// only at the beginning of a line.
type escapes struct {
	r          io.Reader
	help       io.Writer
	disconnect func()

	inLine bool // something stands before on this line
	tilde  bool // a tilde is held back
	ready  bytes.Buffer
	err    error
}

const escapeHelp = "~?\r\nSupported escape sequences:\r\n  ~.  disconnect\r\n  ~?  this text\r\n  ~~  send the tilde by typing it twice\r\n(Escapes are recognized only at the beginning of a line.)\r\n"

// Read returns what is meant for the other side.
func (e *escapes) Read(p []byte) (int, error) {
	buf := make([]byte, len(p))
	for len(p) > 0 && e.ready.Len() == 0 && e.err == nil {
		n, err := e.r.Read(buf)
		for _, b := range buf[:n] {
			if !e.take(b) {
				err = io.EOF
				e.disconnect()
				break
			}
		}
		if err != nil && e.tilde {
			e.ready.WriteByte('~')
			e.tilde = false
		}
		e.err = err
	}
	if e.ready.Len() > 0 {
		return e.ready.Read(p)
	}
	return 0, e.err
}

// take looks at one byte; false ends the connection.
func (e *escapes) take(b byte) bool {
	held := e.tilde
	e.tilde = false
	switch {
	case held && b == '.':
		return false
	case held && b == '?':
		io.WriteString(e.help, escapeHelp)
		return true
	case held && b == '~':
		e.ready.WriteByte('~')
		e.inLine = true
		return true
	case held:
		e.ready.WriteByte('~')
		e.inLine = true
	case b == '~' && !e.inLine:
		e.tilde = true
		return true
	}
	e.ready.WriteByte(b)
	e.inLine = b != '\r' && b != '\n'
	return true
}
