package main

import (
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
