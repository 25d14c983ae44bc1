package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sallyport/sallyport/cmd/internal/shell"
)

// TestCurlCert: curl takes what follows a colon in --cert for a password, so no
// certificate of a gateway with an IPv6 address was found. Both ways to
// run the command are tried by a shell.
func TestCurlCert(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "::1")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	a := &application{name: "web", host: "web.app.gw.test", port: "443", ca: filepath.Join(dir, "ca"), cert: filepath.Join(dir, "web.crt"), key: filepath.Join(dir, "web.key"), connect: "127.0.0.1:1"}
	for name, script := range map[string]string{
		"copied":      a.curl(shell.Word),
		"substituted": `$(cat <<'end'` + "\n" + a.curl(substituted) + "\nend\n)",
	} {
		seen := filepath.Join(t.TempDir(), "seen")
		cmd := exec.Command("sh", "-c", `curl() { printf '%s\n' "$@" >"$SEEN"; }; `+script)
		cmd.Env = append(os.Environ(), "SEEN="+seen)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", name, err, out)
		}
		words, err := os.ReadFile(seen)
		if err != nil {
			t.Fatal(err)
		}
		if want := strings.ReplaceAll(a.cert, ":", `\:`); !strings.Contains(string(words), "--cert\n"+want+"\n") {
			t.Errorf("%s: curl is given\n%s", name, words)
		}
	}
	spaced := &application{cert: "/home/a b/::1/web.crt"}
	if got := spaced.curl(substituted); !strings.Contains(got, `'/home/a b/\:\:1/web.crt'`) {
		t.Errorf("with a space: %s", got)
	}
	if got := curlCert(`/a\b`); got != `/a\\b` {
		t.Errorf("a backslash: %s", got)
	}
}
