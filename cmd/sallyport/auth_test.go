package main

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"
)

// A store that could not be opened, on a full disk for example, ended the program
// with a panic instead of the reason.
func TestStoreThatCannotBeOpened(t *testing.T) {
	cfg := authOnly(t)
	dir := filepath.Join(cfg.DataDir, "auth")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "etcd"), []byte("a file where a directory belongs"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openAuth(t.Context(), cfg, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("a store that is a file was opened")
	}
}
