package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/client"
)

// TestTokenThatOthersRead: a join token that every user of the machine could read
// was taken without a word.
func TestTokenThatOthersRead(t *testing.T) {
	for mode, warned := range map[os.FileMode]string{0o600: "", 0o400: "", 0o640: "0640", 0o604: "0604", 0o644: "0644"} {
		dir := t.TempDir()
		file := filepath.Join(dir, "token")
		if err := errors.Join(os.WriteFile(file, []byte("secret\n"), 0o600), os.Chmod(file, mode)); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		n := &node{log: slog.New(slog.NewTextHandler(&out, nil))}
		gone, cancel := context.WithCancel(t.Context())
		cancel() // nobody is there to join
		hc := client.HostConfig{Dir: filepath.Join(dir, "agent"), Kind: sallyport.KindAgent, Name: "host", Addresses: func() []string { return []string{"127.0.0.1:1"} }}
		if _, err := n.join(gone, hc, joinConfig{TokenFile: file, CAPin: "sha256:" + strings.Repeat("0", 64)}); err == nil {
			t.Fatal("joined nobody")
		}
		got := out.String()
		if n := strings.Count(got, "chmod 600"); warned == "" && n != 0 || warned != "" && (n != 1 || !strings.Contains(got, file) || !strings.Contains(got, warned)) {
			t.Errorf("mode %04o: %s", mode, got)
		}
		if strings.Contains(got, "secret") {
			t.Errorf("the log holds the token: %s", got)
		}
	}
}
