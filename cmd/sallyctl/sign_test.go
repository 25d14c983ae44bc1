package main

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
)

// SignDatabaseServer signs nothing: it answers where certificates belong.
func (*admins) SignDatabaseServer(context.Context, *connect.Request[sallyportv1.SignDatabaseServerRequest]) (*connect.Response[sallyportv1.SignDatabaseServerResponse], error) {
	return connect.NewResponse(&sallyportv1.SignDatabaseServerResponse{Certificate: []byte("leaf"), ClientAuthorities: [][]byte{[]byte("ca")}, Expires: timestamppb.Now()}), nil
}

// TestSignFiles: a key went into a file that others may read, when there was one
// of its name, and through what held that file open.
func TestSignFiles(t *testing.T) {
	dir, out := serveAdmins(t, &admins{}), filepath.Join(t.TempDir(), "server")
	const old = "what was there"
	held := map[string]*os.File{}
	for _, suffix := range []string{".key", ".crt", ".cas"} {
		if err := os.WriteFile(out+suffix, []byte(old), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(out+suffix, 0o644); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(out + suffix)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		held[suffix] = f
	}
	p := &program{ctx: t.Context(), stdin: strings.NewReader(""), stdout: io.Discard, stderr: io.Discard}
	if err := p.run([]string{"--data-dir=" + dir, "auth", "sign", "--format=db", "--host=db1", "--out=" + out}); err != nil {
		t.Fatal(err)
	}
	for suffix, f := range held {
		info, err := os.Stat(out + suffix)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %04o", suffix, info.Mode().Perm())
		}
		now, err := os.ReadFile(out + suffix)
		if err != nil || !strings.HasPrefix(string(now), "-----BEGIN ") {
			t.Errorf("%s: %q, %v", suffix, now, err)
		}
		if was, err := io.ReadAll(f); err != nil || string(was) != old {
			t.Errorf("who held %s open reads %q, %v", suffix, was, err)
		}
	}

	// What cannot be written leaves no new key beside old certificates.
	if err := os.Remove(out + ".key"); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(out + ".crt"); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(out+".crt", "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := p.run([]string{"--data-dir=" + dir, "auth", "sign", "--format=db", "--host=db1", "--out=" + out}); err == nil {
		t.Error("a directory was replaced")
	}
	if _, err := os.Lstat(out + ".key"); err == nil {
		t.Error("there is a key without its certificate")
	}
}
