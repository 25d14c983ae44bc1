package handover_test

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sallyport/sallyport/dataplane/handover"
	"github.com/sallyport/sallyport/tools/peers"
)

const failpoints = "SALLYPORT_FAILPOINTS"

// TestFailpoints stops either process at each of its steps. The processes are
// this test, built so that they can be stopped.
func TestFailpoints(t *testing.T) {
	program := filepath.Join(t.TempDir(), "toy")
	if _, err := exec.LookPath("go"); err != nil {
		peers.Missing(t, "go (which builds the program with failpoints)")
	}
	if out, err := exec.Command("go", "test", "-c", "-tags", "failpoints", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("go test -c: %v\n%s", err, out)
	}
	t.Run("new", func(t *testing.T) { newStops(t, program) })
	t.Run("old", func(t *testing.T) { oldStops(t, program) })
	t.Run("late", func(t *testing.T) { bothLate(t, program) })
}

// newStops: until it has said that it is ready, a new process may do what it
// likes.
func newStops(t *testing.T, program string) {
	y, slow := startToy(t, program, toyTime+"=30s"), startToy(t, program, toyTime+"=400ms")
	tr, slowTr := run(y.addr, 2), run(slow.addr, 2)
	before := y.ask(y.pid, order{Do: "tidy"}).FDs
	for _, point := range []string{"inherited", "hello", "prepared", "record", "record#3", "begin", "complete", "ready"} {
		for _, what := range []string{"kill", "error", "hang", "panic", "exit"} {
			if point != "record" && (what == "panic" || what == "exit") {
				continue // like kill
			}
			y, tr := y, tr
			if what == "hang" {
				y, tr = slow, slowTr
			}
			a := y.upgrade(map[string]string{failpoints: "handover.new." + point + "=" + what})
			if a.Report.Committed || a.Err == "" {
				t.Fatalf("%s=%s: it was committed", point, what)
			}
			if what == "error" && point != "inherited" && point != "ready" && !strings.Contains(a.Err, "failpoint handover.new.") {
				t.Errorf("%s=%s: %s", point, what, a.Err)
			}
			if y.isOurs(y.newest()) && y.newest() != y.pid {
				t.Errorf("%s=%s: the new process is still there", point, what)
			}
			if !tr.more() {
				t.Fatalf("%s=%s: nothing comes back", point, what)
			}
		}
	}
	after := 0
	for range 100 { // finalizers run when they like
		if after = y.ask(y.pid, order{Do: "tidy"}).FDs; after <= before+4 { // a short connection more or less
			break
		}
	}
	if after > before+4 {
		t.Errorf("%d descriptors before all this, %d after", before, after)
	}
	if a := y.upgrade(nil); !a.Report.Committed {
		t.Errorf("the next upgrade: %s %+v", a.Err, a.Report)
	}
	if !tr.more() {
		t.Error("nothing comes back")
	}
	tr.end(t)
	slowTr.end(t)
}

// oldStops: where the old process fails it goes on by itself; where it dies
// after the new one has everything, that one serves.
func oldStops(t *testing.T, program string) {
	for _, s := range handover.Steps() {
		y := startToy(t, program, failpoints+"=handover.old."+string(s)+"#1=error")
		tr := run(y.addr, 2)
		for n := range 2 {
			// Where there is no way back any more an error changes nothing.
			want := n == 1 || s == handover.StepLeave
			if a := y.upgrade(nil); a.Report.Committed != want || !want && !strings.Contains(a.Err, "failpoint handover.old."+string(s)) {
				t.Errorf("%s: upgrade %d: committed %v, %s", s, n, a.Report.Committed, a.Err)
			}
			if !tr.more() {
				t.Fatalf("%s: upgrade %d: nothing comes back", s, n)
			}
		}
		tr.end(t)
	}
	for _, s := range []handover.Step{handover.StepReady, handover.StepCommit, handover.StepLeave} {
		y := startToy(t, program, failpoints+"=handover.old."+string(s)+"=kill")
		tr := run(y.addr, 2)
		if !tr.more() {
			t.Fatal("nothing comes back")
		}
		var a answer
		old := y.pid
		if err := y.try(old, order{Do: "upgrade"}, &a); err == nil {
			t.Fatalf("%s: it lives", s)
		}
		y.gone(old)
		y.pid = y.newest()
		y.all = append(y.all, y.pid)
		if !tr.more() {
			t.Errorf("%s: nothing comes back", s)
		}
		tr.end(t)
	}
}

// bothLate: time alone breaks nothing.
func bothLate(t *testing.T, program string) {
	var all []string
	for _, s := range handover.Steps() {
		all = append(all, "handover.old."+string(s)+"=sleep:20ms")
	}
	for _, point := range []string{"inherited", "hello", "prepared", "record", "begin", "complete", "ready", "decided", "committed", "started"} {
		all = append(all, "handover.new."+point+"=sleep:20ms")
	}
	y := startToy(t, program, toyTime+"=60s", failpoints+"="+strings.Join(all, ";"))
	tr := run(y.addr, 2)
	for range 3 {
		if a := y.upgrade(nil); !a.Report.Committed {
			t.Errorf("%s %+v", a.Err, a.Report)
		}
		if !tr.more() {
			t.Error("nothing comes back")
			break
		}
	}
	tr.end(t)
}
