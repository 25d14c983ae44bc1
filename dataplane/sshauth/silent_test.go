package sshauth

import (
	"io"
	"strings"
	"testing"
)

// late is a stream that has more behind its end.
type late struct{ ends int }

func (l *late) Read(b []byte) (int, error) {
	if l.ends--; l.ends >= 0 {
		return 0, io.EOF
	}
	return copy(b, "x"), nil
}

// broken is a stream whose bytes come with errors.
type broken struct{ left int }

func (b *broken) Read(p []byte) (int, error) {
	if b.left--; b.left < 0 {
		return 0, io.EOF
	}
	return copy(p, "x"), io.ErrClosedPipe
}

func TestForget(t *testing.T) {
	b := &broken{left: 2}
	if Forget(b); b.left >= 0 {
		t.Errorf("%d bytes are left", b.left)
	}
}

func TestSpoke(t *testing.T) {
	closed := make(chan struct{})
	if !Spoke(strings.NewReader("x"), closed) {
		t.Error("a byte is not seen")
	}
	if !Spoke(&late{ends: 2}, closed) {
		t.Error("a byte behind the end is not seen")
	}
	close(closed)
	if Spoke(strings.NewReader(""), closed) {
		t.Error("a byte in silence")
	}
}
