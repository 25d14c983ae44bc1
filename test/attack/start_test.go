package attack

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// run runs sallyport to its end, which must come by itself.
func (d *demo) run(t testing.TB, dir string, args ...string) (said string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), callWait)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(d.dir, "sallyport"), args...)
	cmd.Dir = dir
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	out, _ := cmd.CombinedOutput()
	if ctx.Err() != nil {
		t.Errorf("sallyport %s runs:\n%s", strings.Join(args, " "), out)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// TestI8_Start: whatever is in the way of a start is said as an error. It was a
// nil pointer in the clean-up that ended the program.
func TestI8_Start(t *testing.T) {
	d := target(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	static := "gateway: {listen: [%q], routes: [{match: {sni: [a.example]}, upstream: x}], upstreams: {x: {servers: ['127.0.0.1:1']}}}"
	rows := []struct{ name, config, file, want string }{
		{"the gateway's port is taken", "roles: [gateway]\n" + fmt.Sprintf(static, taken.Addr()), "", "address already in use"},
		{"auth's port is taken", fmt.Sprintf("cluster: gw.test\nroles: [auth]\nauth: {listen: [%q]}", taken.Addr()), "", "address already in use"},
		{"the data directory is in use", "cluster: gw.test\nroles: [auth]\ndata_dir: " + d.data, "", "is in use by another sallyport"},
		{"the data directory is a file", "cluster: gw.test\nroles: [auth]\ndata_dir: conf.yaml", "", "not a directory"},
		{"not joined and no token", "roles: [agent]\nagent: {gateways: ['127.0.0.1:1'], join: {ca_pin: 'sha256:" + strings.Repeat("0", 64) + "'}, ssh: {enabled: true}}", "", "not joined"},
		{"no such token file", "roles: [agent]\nagent: {gateways: ['127.0.0.1:1'], join: {token_file: nowhere, ca_pin: 'sha256:" + strings.Repeat("0", 64) + "'}, ssh: {enabled: true}}", "", "nowhere"},
		{"a key file that is none", "cluster: gw.test\nroles: [auth]", "data/auth/kek", "kek"},
		{"a host file that is none", "roles: [agent]\nagent: {gateways: ['127.0.0.1:1'], join: {ca_pin: 'sha256:" + strings.Repeat("0", 64) + "'}, ssh: {enabled: true}}", "data/agent/host.json", "host.json"},
	}
	for _, row := range rows {
		dir, err := os.MkdirTemp(d.dir, "s")
		if err != nil {
			t.Fatal(err)
		}
		config := "version: 1\n" + row.config + "\n"
		if !strings.Contains(config, "data_dir") {
			config += "data_dir: data\n"
		}
		if err := os.WriteFile(filepath.Join(dir, "conf.yaml"), []byte(config), 0o600); err != nil {
			t.Fatal(err)
		}
		if row.file != "" {
			if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(row.file)), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, row.file), []byte("garbage"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		said, code := d.run(t, dir, "start", "-c", "conf.yaml")
		if code != 1 || !strings.Contains(said, "ERROR: ") || !strings.Contains(said, row.want) || strings.Contains(said, "goroutine ") {
			t.Errorf("%s: exit %d, want 1 and %q:\n%.800s", row.name, code, row.want, said)
		}
	}
}
