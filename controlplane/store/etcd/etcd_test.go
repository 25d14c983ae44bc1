package etcd

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/store"
	"github.com/sallyport/sallyport/controlplane/store/storetest"
)

func openEmbedded(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := OpenEmbedded(t.Context(), EmbeddedConfig{Dir: dir, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestEmbedded(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store { return openEmbedded(t, t.TempDir()) })
}

func TestCluster(t *testing.T) {
	dir := t.TempDir()
	server := openEmbedded(t, dir)
	n := 0
	storetest.Run(t, func(t *testing.T) store.Store {
		n++
		s, err := OpenCluster(t.Context(), ClusterConfig{
			Endpoints: []string{"unix://" + filepath.Join(dir, clientSock)},
			Prefix:    fmt.Sprintf("suite/%d", n),
		})
		if err != nil {
			t.Fatalf("open: %v", err)
		}
		// Revisions count the whole cluster's changes; the suite only compares.
		return s
	})
	// A46: nothing was written outside of the prefixes.
	if items, _, err := server.List(t.Context(), ""); err != nil || len(items) != 0 {
		t.Errorf("%d items outside, %v", len(items), err)
	}
}

func TestClusterUnreachable(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err := OpenCluster(ctx, ClusterConfig{Endpoints: []string{"unix://" + filepath.Join(t.TempDir(), "none")}})
	if !errors.Is(err, sallyport.ErrUnavailable) {
		t.Errorf("nobody there: %v", err)
	}
	if _, err := OpenCluster(ctx, ClusterConfig{}); !errors.Is(err, sallyport.ErrInvalid) {
		t.Errorf("no endpoints: %v", err)
	}
}

// TestEmbeddedStartsFast: no start waits for what is not work. On a machine that
// others use work takes longer, so a start may take as long as twenty pieces of work
// take beside it; when it has the machine for itself that is less than the limit.
func TestEmbeddedStartsFast(t *testing.T) {
	const limit, pieces, starts = 1500 * time.Millisecond, 20, 10
	dir := t.TempDir()
	var took, may time.Duration
	for i := range starts {
		before := pieceOfWork(t)
		began := time.Now()
		s := openEmbedded(t, dir)
		took = time.Since(began)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		may = max(limit, pieces*max(before, pieceOfWork(t)))
		t.Logf("ready after %v; it may be %v", took.Round(time.Millisecond), may.Round(time.Millisecond))
		if i > 0 && took <= may { // a new directory, and it again
			return
		}
	}
	t.Errorf("ready after %v at last, want %v", took, may)
}

// pieceOfWork is how long it takes now to read, reckon and write a little.
func pieceOfWork(t *testing.T) time.Duration {
	t.Helper()
	began := time.Now()
	file := filepath.Join(t.TempDir(), "work")
	data := make([]byte, 256<<10)
	for range 3 {
		sum := sha256.Sum256(data)
		f, err := os.Create(file)
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.Write(sum[:])
		if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	return time.Since(began)
}

func TestEmbeddedModes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	openEmbedded(t, dir)
	info, err := os.Stat(dir)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("directory: %v, %v", info.Mode(), err)
	}
	for _, name := range []string{clientSock, peerSock, "lock"} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
}

// TestEmbeddedLongPath: a Unix socket's path has at most 107 bytes, a data
// directory's many more.
func TestEmbeddedLongPath(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("needs /proc")
	}
	dir := filepath.Join(t.TempDir(), strings.Repeat("long/", 40), "store")
	s := openEmbedded(t, dir)
	if _, err := s.Apply(t.Context(), store.Op{Key: "a"}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, clientSock)); err != nil {
		t.Error(err)
	}
}

// TestEmbeddedMoved opens a directory under another name than it was made.
func TestEmbeddedMoved(t *testing.T) {
	root := t.TempDir()
	s := openEmbedded(t, filepath.Join(root, "a"))
	if _, err := s.Apply(t.Context(), store.Op{Key: "k", Value: []byte("v")}); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if err := os.Rename(filepath.Join(root, "a"), filepath.Join(root, "b")); err != nil {
		t.Fatal(err)
	}
	s = openEmbedded(t, filepath.Join(root, "b"))
	if it, err := s.Get(t.Context(), "k"); err != nil || string(it.Value) != "v" {
		t.Errorf("%q, %v", it.Value, err)
	}
}

func TestEmbeddedSecondOwner(t *testing.T) {
	dir := t.TempDir()
	openEmbedded(t, dir)
	_, err := OpenEmbedded(t.Context(), EmbeddedConfig{Dir: dir})
	var p *sallyport.Problem
	if !errors.As(err, &p) || p.Kind != sallyport.ErrUnavailable {
		t.Fatalf("second owner: %v", err)
	}
	if want := fmt.Sprintf("in use by process %d", os.Getpid()); !strings.Contains(p.Fact, want) || p.Hint == "" {
		t.Errorf("fact %q, hint %q", p.Fact, p.Hint)
	}
}

// TestEmbeddedDamaged: files that etcd cannot read are an error, not the end of the process.
func TestEmbeddedDamaged(t *testing.T) {
	dir := t.TempDir()
	s := openEmbedded(t, dir)
	for i := range 20 {
		if _, err := s.Apply(t.Context(), store.Op{Key: fmt.Sprint("k", i), Value: make([]byte, 1000)}); err != nil {
			t.Fatal(err)
		}
	}
	s.Close()
	wals, err := filepath.Glob(filepath.Join(dir, "etcd/member/wal/*.wal"))
	if err != nil || len(wals) == 0 {
		t.Fatal(wals, err)
	}
	f, err := os.OpenFile(wals[0], os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("garbage garbage"), 2000); err != nil {
		t.Fatal(err)
	}
	f.Close()
	_, err = OpenEmbedded(t.Context(), EmbeddedConfig{Dir: dir})
	var p *sallyport.Problem
	if !errors.As(err, &p) || p.Kind != sallyport.ErrUnavailable || !strings.Contains(fmt.Sprint(p.Cause), "the log is damaged") {
		t.Fatalf("damaged files: %v (%+v)", err, p)
	}
	// The lock was given back.
	if l, err := lockDir(dir); err != nil {
		t.Error(err)
	} else {
		l.Close()
	}
}

const childDir = "SALLYPORT_TEST_STORE"

// TestKilled kills a process amid its writes and finds each write that it
// had acknowledged.
func TestKilled(t *testing.T) {
	if dir := os.Getenv(childDir); dir != "" {
		childWrites(dir)
	}
	dir := t.TempDir()
	acked := 0
	for round := range 3 {
		acked = killedRound(t, dir, round, acked)
	}
}

func killedRound(t *testing.T, dir string, round, acked int) int {
	cmd := exec.Command(os.Args[0], "-test.run=^TestKilled$")
	cmd.Env = append(os.Environ(), childDir+"="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	sc := bufio.NewScanner(out)
	target := acked + 40 + 7*round
	for sc.Scan() {
		if _, err := fmt.Sscanf(sc.Text(), "acked %d", &acked); err == nil && acked >= target {
			break
		}
	}
	if acked == target {
		_, err := OpenEmbedded(t.Context(), EmbeddedConfig{Dir: dir})
		if want := fmt.Sprintf("process %d", cmd.Process.Pid); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("beside the child: %v, want %q", err, want)
		}
	}
	cmd.Process.Kill()
	for sc.Scan() { // what it had acknowledged before it died
		fmt.Sscanf(sc.Text(), "acked %d", &acked)
	}
	cmd.Wait()
	if acked < target {
		t.Fatalf("child ended after %d writes", acked)
	}
	s := openEmbedded(t, dir)
	for i := 1; i <= acked; i++ {
		it, err := s.Get(t.Context(), fmt.Sprintf("k/%d", i))
		if err != nil || string(it.Value) != fmt.Sprint(i) {
			t.Errorf("round %d: write %d of %d: %q, %v", round, i, acked, it.Value, err)
		}
	}
	items, _, err := s.List(t.Context(), "k")
	if err != nil || len(items) < acked || len(items) > acked+1 {
		t.Errorf("round %d: %d items, %d acknowledged, %v", round, len(items), acked, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return len(items)
}

// childWrites is the process that is killed.
func childWrites(dir string) {
	ctx := context.Background()
	s, err := OpenEmbedded(ctx, EmbeddedConfig{Dir: dir})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	items, _, err := s.List(ctx, "k")
	for i := len(items) + 1; err == nil; i++ {
		_, err = s.Apply(ctx, store.Op{Key: fmt.Sprintf("k/%d", i), Value: fmt.Append(nil, i)})
		if err == nil {
			fmt.Printf("acked %d\n", i)
		}
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// TestLog: etcd is quiet at the level of operators, and its errors arrive.
func TestLog(t *testing.T) {
	var b strings.Builder
	log := slog.New(slog.NewTextHandler(&b, &slog.HandlerOptions{Level: slog.LevelInfo}))
	s, err := OpenEmbedded(t.Context(), EmbeddedConfig{Dir: t.TempDir(), Log: log})
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	if b.Len() > 0 {
		t.Errorf("a good start and stop says:\n%s", b.String())
	}
	early := errors.New("cannot detect storage schema version: missing term information")
	newBridge(log).zap().Error("failed to update storage version", zap.Error(early)) // on a busy machine a good start says so
	if b.Len() > 0 {
		t.Errorf("what etcd tries again is told:\n%s", b.String())
	}
	newBridge(log).zap().Error("failed to update storage version", zap.Error(io.EOF))
	if !strings.Contains(b.String(), "failed to update") {
		t.Error("another error of the same kind is not told")
	}
	newBridge(log).zap().Sugar().Errorw("it broke", "why", io.EOF)
	if got := b.String(); !strings.Contains(got, "it broke") || !strings.Contains(got, "why=EOF") || !strings.Contains(got, "part=etcd") {
		t.Errorf("error in our log: %q", got)
	}
}
