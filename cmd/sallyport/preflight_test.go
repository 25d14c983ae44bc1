package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/test/executable"
)

// TestPreflight: what a program on disk can say and do, and what a person is
// told of it.
func TestPreflight(t *testing.T) {
	const (
		version = `'{"version":"v9","go":"go1","handover":{"oldest":%d,"newest":%d}}'`
		good    = `echo '{"data_dir":"/d","roles":["gateway"]}'`
	)
	answers := func(oldest, newest int, check string) string {
		return "case $1 in version) echo " + fmt.Sprintf(version, oldest, newest) + ";; start) " + check + ";; esac\n"
	}
	once := func(oldest, newest int) string {
		return "case $1 in start) echo '{\"data_dir\":\"/d\",\"roles\":[\"gateway\"],\"program\":'" + fmt.Sprintf(version, oldest, newest) + "'}';; *) exit 9;; esac\n"
	}
	tests := []struct{ name, script, fact, hint string }{
		{"good", answers(1, 1, good), "", ""},
		{"says all at once", once(1, 1), "", ""},
		{"says at once that it is too new", once(2, 3), "generations 2 to 3, and this process (version v1) has 1 to 1", "between the two"},
		{"too new and refuses", answers(2, 3, "echo 'ERROR: bad' >&2; exit 1"), "generations 2 to 3", "between the two"},
		{"fails and says who it is", "echo '{\"data_dir\":\"/d\",\"program\":'" + fmt.Sprintf(version, 1, 1) + "'}'; exit 1\n", "does not answer", "restart the service"},
		{"newer", answers(1, 5, good), "", ""},
		{"no program", "", "cannot be run: no such file or directory", "install(1)"},
		{"crashes", "kill -SEGV $$\n", "does not answer", "put the new program there"},
		{"says something else", "echo hello\n", "does not answer", "restart the service"},
		{"too old", "echo 'ERROR: unknown flag' >&2; exit 1\n", "does not answer", "too old"},
		{"too new", answers(2, 3, good), "generations 2 to 3, and this process (version v1) has 1 to 1", "between the two"},
		{"none", answers(0, 0, good), "generations 0 to 0", "restart"},
		{"refuses", answers(1, 1, `echo "ERROR: c.yaml:3:1: unknown field" >&2; echo "hint: docs/config.md" >&2; exit 1`),
			"the new program refuses the configuration: c.yaml:3:1: unknown field", "docs/config.md"},
		{"refuses without a word", answers(1, 1, "exit 3"), "the new program refuses the configuration: exit status 3", "--check says the same"},
		{"checks and says nothing", answers(1, 1, "true"), "says nothing that can be read", "put the new program"},
		{"talks for ever", answers(1, 1, "while :; do echo x; echo 'ERROR: y' >&2; test $((n=n+1)) -lt 30000 || exit 1; done"),
			"the new program refuses the configuration: y", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "p")
			if tt.script != "" {
				if err := executable.Write(path, []byte("#!/bin/sh\n"+tt.script), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			c := &candidate{path: path, config: "/c.yaml", own: versionReport{Version: "v1", Handover: generations{1, 1}}}
			v, check, err := c.preflight(t.Context())
			if tt.fact == "" {
				if err != nil || v.Version != "v9" || check.DataDir != "/d" || check.agree("/d", []string{"gateway"}) != nil {
					t.Errorf("%+v, %+v, %v", v, check, err)
				}
				return
			}
			var p *sallyport.Problem
			if !errors.As(err, &p) || !strings.Contains(p.Fact, tt.fact) || !strings.Contains(p.Hint, tt.hint) {
				t.Errorf("%v (%+v)", err, p)
			}
			if p != nil && len(p.Fact) > 2*maxSaid {
				t.Errorf("%d bytes", len(p.Fact))
			}
		})
	}
}

// TestPreflightDirectory: of a directory that was gone people were told that the
// program is not there.
func TestPreflightDirectory(t *testing.T) {
	path, dir := filepath.Join(t.TempDir(), "p"), filepath.Join(t.TempDir(), "gone")
	if err := executable.Write(path, []byte("#!/bin/sh\nexit 0\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	c := &candidate{path: path, dir: dir, config: "/c.yaml", own: ownVersion()}
	_, _, err := c.preflight(t.Context())
	var p *sallyport.Problem
	if !errors.As(err, &p) || !strings.Contains(p.Fact, dir) || !strings.Contains(p.Fact, "is gone") || !strings.Contains(p.Hint, "mkdir -p "+dir) {
		t.Errorf("%v (%+v)", err, p)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.preflight(t.Context()); err == nil || !strings.Contains(err.Error(), "does not answer") {
		t.Errorf("with the directory: %v", err)
	}
}

// TestPreflightDoesNotWait: a program that hangs is ended, with what it started: of a
// wrapper script that was itself alone.
func TestPreflightDoesNotWait(t *testing.T) {
	for name, script := range map[string]string{
		"a program": `exec >"$0.pipe"; echo up; exec sleep 600`,
		"a wrapper": `sh -c 'echo up; sleep 600' >"$0.pipe" 2>/dev/null & wait`,
	} {
		path := filepath.Join(t.TempDir(), "p")
		if err := executable.Write(path, []byte("#!/bin/sh\n"+script+"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Mkfifo(path+".pipe", 0o600); err != nil {
			t.Fatal(err)
		}
		pipe, err := os.OpenFile(path+".pipe", os.O_RDONLY|syscall.O_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer pipe.Close()
		c := &candidate{path: path, config: "/c.yaml", own: ownVersion()}
		ctx, cancel := context.WithCancel(t.Context())
		asked := make(chan error, 1)
		go func() { _, _, err := c.preflight(ctx); asked <- err }()
		await(t, "the program runs", func() bool { n, _ := pipe.Read(make([]byte, 8)); return n > 0 })
		cancel()
		if err := <-asked; !errors.Is(err, sallyport.ErrUnavailable) {
			t.Errorf("%s: %v", name, err)
		}
		// The end comes when nobody has it open to write any more.
		if err := pipe.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		if _, err := pipe.Read(make([]byte, 8)); err != io.EOF {
			t.Errorf("%s: what it started runs on: %v", name, err)
		}
	}
}

// TestCheckSaysWhoItIs: an upgrade need not start the program a second time to
// ask.
func TestCheckSaysWhoItIs(t *testing.T) {
	file := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(file, []byte("version: 1\ndata_dir: /d\nroles: [gateway]\ngateway: {listen: [\":443\"], routes: [{names: [a.example.com], to: [\"127.0.0.1:1\"]}]}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := (&program{ctx: t.Context(), stdout: &out}).run([]string{"start", "--config=" + file, "--check", "--format=json"}); err != nil {
		t.Fatal(err)
	}
	if v := (&said{stdout: out.Bytes()}).program(); v == nil || *v != ownVersion() {
		t.Errorf("%+v of %s", v, out.Bytes())
	}
}

// TestCheckReadsFiles: the check once found a configuration good whose certificates
// and CAs no start could read.
func TestCheckReadsFiles(t *testing.T) {
	file := filepath.Join(t.TempDir(), "c.yaml")
	const certificates = "gateway: {certificates: [{cert: gone.pem, key: gone.key}]}"
	const agent = "agent: {gateways: [\"gw.test:443\"], join: {token_file: gone.token, ca_pin: \"sha256:0000000000000000000000000000000000000000000000000000000000000000\"}, "
	for _, tt := range []struct {
		roles, section, want string
	}{
		{"[auth, gateway]", certificates, "gateway.certificates[0]: open "},
		{"[auth]", certificates, ""}, // sections of other roles are left alone
		{"[auth]", "auth: {etcd: {endpoints: [\"https://10.0.0.1:2379\"], tls: {ca: gone.pem}}}", "auth.etcd.tls: open "},
		{"[agent]", agent + "databases: [{name: a, protocol: postgres, address: \"10.0.0.1:5432\", tls: {ca: gone.pem}}]}", "agent.databases a: open "},
		{"[agent]", agent + "databases: [{name: a, protocol: postgres, address: \"10.0.0.1:5432\", tls: {ca: c.yaml}}]}", "agent.databases a: " + file + ": no certificate"},
		{"[agent]", agent + "apps: [{name: a, uri: \"https://10.0.0.1\", tls: {ca: gone.pem}}]}", "agent.apps a: open "},
		{"[agent]", agent + "kubernetes: [{name: a, kubeconfig: gone.yaml}]}", "agent.kubernetes a: "},
		{"[agent]", agent + "tcp: [{name: a, address: \"10.0.0.1:1\"}]}", ""}, // the host may have joined
	} {
		text := "version: 1\ncluster: gw.test\ndata_dir: /d\nroles: " + tt.roles + "\n" + tt.section + "\n"
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		err := (&program{ctx: t.Context(), stdout: &out}).run([]string{"start", "--config=" + file, "--check"})
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.HasPrefix(err.Error(), tt.want)) {
			t.Errorf("roles %s, %s: %v, printed %q; want %q", tt.roles, tt.section, err, out.Bytes(), tt.want)
		}
	}
}

func TestAgree(t *testing.T) {
	for _, tt := range []struct {
		dir   string
		roles []string
		want  string
	}{
		{"/d", []string{"agent", "gateway"}, ""},
		{"/d", []string{"gateway", "agent"}, ""},
		{"/e", []string{"gateway", "agent"}, "data_dir has changed"},
		{"/d", []string{"gateway"}, "roles has changed"},
		{"/d", []string{"gateway", "agent", "auth"}, "roles has changed"},
	} {
		err := (&checkReport{DataDir: tt.dir, Roles: tt.roles}).agree("/d", []string{"gateway", "agent"})
		if (err == nil) != (tt.want == "") || err != nil && !strings.HasPrefix(err.Error(), tt.want) {
			t.Errorf("%v: %v", tt, err)
		}
	}
}

func TestQuietEnvironment(t *testing.T) {
	env := []string{"A=b", "NOTIFY_SOCKET=/run/x", handoverVariable + "=yes", "NOTIFY_SOCKETS=1"}
	if got := quietEnvironment(env); strings.Join(got, " ") != "A=b NOTIFY_SOCKETS=1" || env[1] == "" {
		t.Errorf("%q, %q", got, env)
	}
}

// TestPreflightEnvironment: the collector of a process that only answers is told
// to wait, unless somebody has told it something else.
func TestPreflightEnvironment(t *testing.T) {
	path := filepath.Join(t.TempDir(), "p")
	if err := executable.Write(path, []byte("#!/bin/sh\necho \"$GOGC $A $NOTIFY_SOCKET.\"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		env  []string
		want string
	}{
		{[]string{"A=b", "NOTIFY_SOCKET=/run/x"}, "400 b .\n"},
		{[]string{"GOGC=50", "A=b"}, "50 b .\n"},
	} {
		c := &candidate{path: path, env: preflightEnvironment(tt.env)}
		if out, err := c.ask(t.Context()); err != nil || string(out.stdout) != tt.want {
			t.Errorf("%q: %+v, %v, want %q", tt.env, out, err, tt.want)
		}
	}
}
