package main

import (
	"context"
	"errors"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport"
)

// TestAskNoAnswer: of a process that took its time it was said that none was there.
func TestAskNoAnswer(t *testing.T) {
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, adminSocket))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() // who connects waits at it
	err = askAdmin(t.Context(), dir, question{method: http.MethodGet, path: "/status", within: time.Millisecond}, new(nodeStatus))
	var p *sallyport.Problem
	if !errors.As(err, &p) || !strings.Contains(p.Fact, "has not answered within 1ms") || p.Hint == "" {
		t.Errorf("%v", err)
	}
}

// TestAskInterrupted: of a process that works on what was asked it was said that none
// was there.
func TestAskInterrupted(t *testing.T) {
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, adminSocket))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, interrupt := context.WithCancel(t.Context())
	go func() {
		defer interrupt()
		if c, err := l.Accept(); err == nil {
			t.Cleanup(func() { c.Close() })
		}
	}()
	err = askAdmin(ctx, dir, question{method: http.MethodPost, path: "/drain", within: time.Hour}, new(nodeStatus))
	var p *sallyport.Problem
	if !errors.As(err, &p) || !strings.Contains(p.Fact, "interrupted before") || !strings.Contains(p.Fact, "may still be done") || p.Hint == "" {
		t.Errorf("%v", err)
	}
}
