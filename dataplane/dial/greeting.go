package dial

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/sallyport/sallyport"
)

// The greeting of sallyport-tcp/1 (package protocol/tcp says its form).
const (
	greetOpen    = 0
	greetRefused = 1
	maxText      = 1024
)

var errGreeting = errors.New("the agent's greeting is malformed")

// greeted reads the agent's greeting: nil when the stream is open.
func greeted(ctx context.Context, conn net.Conn) error {
	stop := context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Unix(1, 0)) })
	err := readGreeting(conn)
	if !stop() && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// readGreeting takes exactly the greeting: what follows is the target's.
func readGreeting(r io.Reader) error {
	var first [1]byte
	if _, err := io.ReadFull(r, first[:]); err != nil {
		return err
	}
	switch first[0] {
	case greetOpen:
		return nil
	case greetRefused:
	default:
		return errGreeting
	}
	fact, err := readText(r)
	if err != nil {
		return err
	}
	hint, err := readText(r)
	if err != nil {
		return err
	}
	if fact == "" {
		return errGreeting
	}
	return sallyport.Denied(fact, hint)
}

// readText reads a string for a person's terminal.
func readText(r io.Reader) (string, error) {
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return "", err
	}
	n := binary.BigEndian.Uint16(size[:])
	if n > maxText {
		return "", errGreeting
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return "", err
	}
	if !utf8.Valid(b) || strings.ContainsFunc(string(b), unicode.IsControl) {
		return "", errGreeting
	}
	return string(b), nil
}
