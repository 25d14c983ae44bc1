package postgres_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/sallyport/sallyport/tools/peers"
	"github.com/sallyport/sallyport/tools/peers/postgres"
)

func TestStart(t *testing.T) {
	s, err := postgres.Start("", postgres.Options{SQL: []string{"CREATE ROLE alice LOGIN;", "CREATE DATABASE orders OWNER alice;"}})
	if errors.Is(err, postgres.ErrMissing) {
		peers.Missing(t, "postgres")
	}
	if err != nil {
		t.Fatal(err)
	}
	defer s.Stop()
	conn, err := pgx.Connect(context.Background(), "postgres://alice@"+s.Addr+"/orders?sslmode=disable")
	if err != nil {
		t.Fatal(err)
	}
	conn.Close(context.Background())
	s.Stop()
	select {
	case <-s.Done():
	default:
		t.Error("still running")
	}
	if _, err := os.Stat(s.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is still there: %v", s.Dir, err)
	}
}

// TestStartFails: a server that cannot start says why and leaves nothing.
func TestStartFails(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	if os.Getuid() == 0 { // the server is another user and must get there
		for _, d := range []string{dir, filepath.Dir(dir)} {
			if err := os.Chmod(d, 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	_, err := postgres.Start("", postgres.Options{Settings: []string{"no_such_setting = 1"}})
	if errors.Is(err, postgres.ErrMissing) {
		peers.Missing(t, "postgres")
	}
	if err == nil || !strings.Contains(err.Error(), "no_such_setting") {
		t.Fatalf("it does not say why: %v", err)
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("left %v", left)
	}
}
