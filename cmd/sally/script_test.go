package main

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/sallyport/sallyport/cmd/internal/profile"
	"github.com/sallyport/sallyport/identity"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"sally": main, "tsh": main, "ssh": main, "scp": main})
}

// TestScripts runs testdata/script: the commands that need nobody else, as
// processes, by the names that people start them by.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		Setup: func(e *testscript.Env) error {
			home := filepath.Join(e.WorkDir, "home")
			e.Setenv("HOME", home)
			e.Setenv("TZ", "UTC")
			e.Setenv("SALLY_HOME", filepath.Join(home, ".sally"))
			return os.MkdirAll(home, 0o700)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"login":     scriptLogin,
			"modes":     scriptModes,
			"perm":      scriptPerm,
			"httpproxy": scriptHTTPProxy,
			"origin":    scriptOrigin,
		},
	})
}

// scriptLogin: login USER PROXY CLUSTER HOURS [DATABASE…] makes a profile whose
// certificate ends after so many hours, and logs in to databases.
func scriptLogin(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 4 {
		ts.Fatalf("usage: login USER PROXY CLUSTER HOURS [DATABASE...]")
	}
	hours, err := strconv.Atoi(args[3])
	ts.Check(err)
	until := time.Now().Add(time.Duration(hours) * time.Hour)
	w := who{args[0], args[1], args[2], until.Add(-12 * time.Hour), until}
	p := &program{globals: globals{AddKeysToAgent: "no"}, ctx: context.Background(), stdout: io.Discard, stderr: ts.Stderr(), home: profile.Dir(ts.Getenv("SALLY_HOME"))}
	f, err := p.login(w)
	ts.Check(err)
	for _, name := range args[4:] {
		for _, suffix := range []string{".crt", ".key"} {
			ts.Check(profile.WriteFile(databaseFile(p.home, f, name, suffix), []byte("x")))
		}
	}
}

// scriptModes: modes DIR: every file 0600, every directory 0700.
func scriptModes(ts *testscript.TestScript, neg bool, args []string) {
	bad := ""
	err := filepath.WalkDir(ts.MkAbs(args[0]), func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err == nil && info.Mode().Perm() != map[bool]fs.FileMode{true: 0o700, false: 0o600}[e.IsDir()] {
			bad = fmt.Sprintf("%s has mode %v", path, info.Mode())
		}
		return err
	})
	ts.Check(err)
	if (bad != "") != neg {
		ts.Fatalf("modes: %s", bad)
	}
}

// scriptPerm: perm MODE FILE: the file has this mode.
func scriptPerm(ts *testscript.TestScript, neg bool, args []string) {
	info, err := os.Stat(ts.MkAbs(args[1]))
	ts.Check(err)
	if got := fmt.Sprintf("%04o", info.Mode().Perm()); (got == args[0]) == neg {
		ts.Fatalf("%s has mode %s", args[1], got)
	}
}

// scriptHTTPProxy: httpproxy starts an HTTP proxy that refuses every CONNECT
// with 403, and makes HTTPS_PROXY name it.
func scriptHTTPProxy(ts *testscript.TestScript, neg bool, args []string) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusForbidden)
	}))
	ts.Defer(s.Close)
	ts.Setenv("HTTPS_PROXY", s.URL)
}

// scriptOrigin: origin own|public starts a web origin that has a certificate of an
// authority in SSL_CERT_FILE, and shows the cluster's own to who asks by
// alpn.Pinned1 when the word is own. It sets ORIGIN to its address and PIN to the
// pin of the host CA that it answers; each password that comes is a line of the
// file passwords.
func scriptOrigin(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: origin own|public")
	}
	o, err := newOrigin(ts.MkAbs("passwords"), args[0] == "own")
	ts.Check(err)
	ts.Defer(o.server.Close)
	ts.Check(os.WriteFile(ts.MkAbs("public.pem"), o.public.pem(), 0o600))
	ts.Setenv("SSL_CERT_FILE", ts.MkAbs("public.pem"))
	ts.Setenv("ORIGIN", o.server.Listener.Addr().String())
	ts.Setenv("PIN", identity.Pin(o.host.cert))
}
