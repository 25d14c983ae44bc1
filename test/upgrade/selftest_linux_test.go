package upgrade

import (
	"encoding/json"
	"errors"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sallyport/sallyport/test/executable"
)

// TestF9_Selftest: the self-test that users run says what it saw, and its exit code
// says whether that was good.
func TestF9_Selftest(t *testing.T) {
	run := func(more ...string) (map[string]any, string, int) {
		t.Helper()
		args := append([]string{"selftest", "upgrade", "--connections=200", "--busy=20", "--rate=50", "--upgrades=2", "--json"}, more...)
		cmd := exec.CommandContext(t.Context(), program(t, "sallyport"), args...)
		var errs strings.Builder
		cmd.Stderr = &errs
		out, err := cmd.Output()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		var r map[string]any
		if len(out) > 0 {
			if err := json.Unmarshal(out, &r); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
		}
		return r, errs.String(), cmd.ProcessState.ExitCode()
	}
	r, said, code := run()
	if code != 0 || r["kept"] != 200.0 || r["lost"] != 0.0 || r["corrupted"] != 0.0 || r["refused"] != 0.0 || r["upgrades"] != 2.0 {
		t.Fatalf("exit %d: %v\n%s", code, r, said)
	}
	for _, field := range []string{"stall_p50_ms", "stall_p99_ms", "stall_max_ms", "bytes_verified", "relays_per_second", "old_exit_ms", "memory_peak"} {
		if v, _ := r[field].(float64); v <= 0 {
			t.Errorf("%s: %v", field, r[field])
		}
	}
	t.Logf("%v\n%s", r, said)

	// To another program and back; and to one that is none.
	if r, said, code := run("--program=" + program(t, "sallyport")); code != 0 || r["upgrades"] != 2.0 {
		t.Errorf("to another program: exit %d: %v\n%s", code, r, said)
	}
	bad := filepath.Join(shortDir(t), "bad")
	if err := executable.Write(bad, []byte("#!/bin/sh\nexit 1\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	r, said, code = run("--program=" + bad)
	if problem, _ := r["problem"].(string); code != 1 || r["kept"] != 200.0 || r["upgrades"] != 0.0 || !strings.Contains(problem, "upgrade 1") {
		t.Errorf("to a program that is none: exit %d: %v\n%s", code, r, said)
	}
}
