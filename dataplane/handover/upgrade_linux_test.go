package handover_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sallyport/sallyport/dataplane/handover"
)

func self(t testing.TB) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// TestGenerationsInARow: a remnant, also the first one, is never in the way.
func TestGenerationsInARow(t *testing.T) {
	y := startToy(t, self(t))
	first := y.pid
	tr := runPaced(y.addr, 8, 0)
	was := y.ask(first, order{Do: "look"}).Leaking // by whoever runs the tests
	fds := 0
	for n := range 4 {
		if !tr.more() {
			t.Errorf("generation %d: nothing comes back", n)
			break
		}
		old := y.pid
		a := y.upgrade(nil)
		if a.Err != "" || !a.Report.Committed || a.Report.From != fmt.Sprint(old) || a.Report.To != fmt.Sprint(y.pid) || old == y.pid {
			t.Fatalf("generation %d: %s %+v", n, a.Err, a.Report)
		}
		t.Logf("stall %v, copy %v, total %v", a.Report.Stall, a.Report.Copy, a.Report.Total)
		now := y.ask(y.pid, order{Do: "look"})
		if len(now.Env) > 0 || !slices.Equal(now.Leaking, was) || !slices.Equal(now.Early, was) {
			t.Errorf("generation %d leaks %v %v, at its start %v", n, now.Env, now.Leaking, now.Early)
		}
		if n == 0 {
			fds = now.FDs
		} else if now.FDs > fds+4 { // a short connection more or less
			t.Errorf("generation %d has %d descriptors, the first had %d", n, now.FDs, fds)
		}
		if a := y.ask(old, order{Do: "upgrade"}); a.Report.Committed || !strings.Contains(a.Err, "handed over") {
			t.Errorf("a remnant upgrades: %s %+v", a.Err, a.Report)
		}
	}
	if a := y.ask(first, order{Do: "look"}); a.FDs == 0 {
		t.Error("the first process is not there any more")
	}
	tr.end(t)
}

// TestNewProcessFails: whatever a new process does before the commit, it is
// gone, the old one serves on, and the next upgrade works.
func TestNewProcessFails(t *testing.T) {
	y := startToy(t, self(t), toyTime+"=30s")
	slow := startToy(t, self(t), toyTime+"=400ms") // for those that hang
	slower := startToy(t, self(t), toyTime+"=10s") // when the machine takes as long to start a program
	trs := []*traffic{run(y.addr, 4), run(slow.addr, 4), run(slower.addr, 4)}
	const late = "the new process was not ready within"
	hangsAt := map[string]handover.Step{
		"start=hang": handover.StepHello, "hello=hang": handover.StepHello, "prepare=hang": handover.StepPrepare,
		"take=hang": handover.StepComplete, "complete=hang": handover.StepComplete,
	}
	for _, c := range []struct{ fault, want string }{
		{"start=exit", "exited"},
		{"start=kill", "killed"},
		{"start=hang", late},
		{"hello=exit", "exited"},
		{"hello=hang", late},
		{"generation", "7 to 9"},
		{"prepare=exit", "the new process has ended"},
		{"prepare=hang", late},
		{"prepare=close", "the new process has ended"},
		{"prepare=garbage", "cannot be read"},
		{"prepare=descriptors", "speaks of 0 descriptors came with 253"},
		{"refuse", "line 7 is wrong"},
		{"take=kill", "the new process has ended"},
		{"take=hang", late},
		{"take=close", "the new process has ended"},
		{"take=garbage", "cannot be read"},
		{"complete=error", "no room on the disk"},
		{"complete=exit", "the new process has ended"},
		{"complete=hang", late},
		{"complete=garbage", "cannot be read"},
	} {
		t.Run(c.fault, func(t *testing.T) {
			y, tr := y, trs[0]
			at, hangs := hangsAt[c.fault], c.want == late
			if hangs {
				y, tr = slow, trs[1]
			}
			pid := y.pid
			a := y.upgrade(map[string]string{toyFault: c.fault})
			if hangs && (y.newest() == pid || a.Report.Failed != at) {
				y, tr = slower, trs[2]
				pid = y.pid
				a = y.upgrade(map[string]string{toyFault: c.fault})
			}
			if a.Report.Committed || !strings.Contains(a.Err, c.want) {
				t.Errorf("committed %v, %q, want %q", a.Report.Committed, a.Err, c.want)
			}
			if hangs && a.Report.Failed != at {
				t.Errorf("failed at %q, hangs at %q", a.Report.Failed, at)
			}
			if a.Report.Failed == "" || a.Report.Reason == "" || a.Report.Total == 0 {
				t.Errorf("report: %+v", a.Report)
			}
			if y.pid != pid || y.newest() == pid {
				t.Errorf("process %d serves, %d was started", y.pid, y.newest())
			}
			if y.isOurs(y.newest()) {
				t.Errorf("process %d is still there", y.newest())
			}
			if !tr.more() {
				t.Error("nothing comes back")
			}
		})
	}
	for i, y := range []*toy{y, slow, slower} {
		if i == 0 {
			if a := y.upgrade(nil); !a.Report.Committed {
				t.Errorf("the next upgrade: %s %+v", a.Err, a.Report)
			}
		}
		if !trs[i].more() {
			t.Error("nothing comes back")
		}
		trs[i].end(t)
	}
}

// TestOldProcessDies: before all is complete the new process goes, too; after
// that it serves, and no byte is missing.
func TestOldProcessDies(t *testing.T) {
	for _, s := range handover.Steps() {
		if s == handover.StepLeave {
			continue // its hook is not called: see the failpoints
		}
		t.Run(string(s), func(t *testing.T) {
			y := startToy(t, self(t), toyOld+"="+string(s))
			tr := run(y.addr, 4)
			if !tr.more() {
				t.Fatal("nothing comes back")
			}
			old := y.pid
			var a answer
			if err := y.try(old, order{Do: "upgrade", Env: map[string]string{toyOld: ""}}, &a); err == nil {
				t.Fatalf("it lives: %+v", a)
			}
			y.gone(old)
			if s != handover.StepReady && s != handover.StepCommit {
				y.gone(y.newest())
				if tr.finish() == nil {
					t.Error("the clients have not noticed")
				}
				return
			}
			y.pid = y.newest()
			y.all = append(y.all, y.pid)
			if !tr.more() {
				t.Error("nothing comes back")
			}
			if a := y.upgrade(nil); !a.Report.Committed {
				t.Errorf("the next upgrade: %s %+v", a.Err, a.Report)
			}
			tr.end(t)
			// The new process warned that the old one had not heard its last word.
			if said := y.said(); strings.Contains(said, "level=WARN") {
				t.Errorf("the processes said:\n%s", said)
			}
		})
	}
}

// TestProgramReplaced: an upgrade starts what has the program's name now, also
// when the file that runs has been deleted, or a link leads elsewhere.
func TestProgramReplaced(t *testing.T) {
	dir := t.TempDir()
	install := func(name string) {
		t.Helper()
		if err := exec.Command("cp", self(t), filepath.Join(dir, "new")).Run(); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(dir, "new"), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	point := func(at string) {
		t.Helper()
		if err := os.Symlink(at, filepath.Join(dir, "link")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(dir, "link"), filepath.Join(dir, "current")); err != nil {
			t.Fatal(err)
		}
	}
	runs := func(y *toy, want string) {
		t.Helper()
		if a := y.upgrade(nil); !a.Report.Committed {
			t.Fatalf("upgrade: %s %+v", a.Err, a.Report)
		}
		if got, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", y.pid)); got != filepath.Join(dir, want) {
			t.Errorf("%s runs, want %s", got, want)
		}
	}
	install("a")
	y := startToy(t, filepath.Join(dir, "a"))
	install("a") // the running one is deleted by it
	runs(y, "a")
	install("a")
	runs(y, "a")

	install("b")
	point("a")
	y = startToy(t, filepath.Join(dir, "current"))
	point("b")
	runs(y, "b")
	point("a")
	runs(y, "a")
}

// TestOneAtATime refuses a second upgrade during the first.
func TestOneAtATime(t *testing.T) {
	y := startToy(t, self(t))
	if a := y.ask(y.pid, order{Do: "twice"}); !strings.Contains(a.Err, "an upgrade is under way") || !a.Report.Committed {
		t.Errorf("%s %+v", a.Err, a.Report)
	}
}

// TestVariableOfAnother: a variable that somebody else's tableflip has left
// does not make a process believe that it is an heir.
func TestVariableOfAnother(t *testing.T) {
	y := startToy(t, self(t), "TABLEFLIP_HAS_PARENT_7DIU3=yes")
	if a := y.ask(y.pid, order{Do: "look"}); len(a.Env) > 0 || a.Port == 0 {
		t.Errorf("%+v", a)
	}
	if err := hello(y.addr); err != nil {
		t.Error(err)
	}
	if a := y.upgrade(nil); !a.Report.Committed {
		t.Errorf("%s %+v", a.Err, a.Report)
	}
}
