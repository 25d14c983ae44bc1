package main

import (
	"os"
	"os/exec"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/sallyport/sallyport/cmd/sallyport/crowd"
)

// TestUpgradeSample: what was seen becomes the right quantities, and each of
// them is in the measure.
func TestUpgradeSample(t *testing.T) {
	seen := &upgradesSeen{longest: 80 * time.Millisecond, left: 2, gone: 10 * time.Second, took: 4 * time.Second, before: 100, peak: 250, after: 150}
	for i := range 100 {
		seen.gaps = append(seen.gaps, time.Duration(100-i)*time.Millisecond)
	}
	got := seen.sample(crowd.Report{Kept: 150, Lost: 40, Corrupted: 10, Refused: 3, Served: 400, Fresh: crowd.Times{P99: 7 * time.Millisecond}}, crowd.Config{Kept: 200})
	want := Sample{"kept": 75, "lost": 50, "refused": 3, "served": 100, "stall99": 100, "stall": 80, "connect99": 7, "left": 2, "gone": 10, "memory": 2.5, "after": 1.5}
	for key, v := range want {
		if got[key] != v {
			t.Errorf("%s: %v, want %v", key, got[key], v)
		}
	}
	w := &upgradeWorld{}
	for _, m := range w.measures(sizesFor(options{quick: true})) {
		for _, q := range m.Quantities {
			if _, there := want[q.Key]; !there {
				t.Errorf("%s: nothing measures %s", m.Name, q.Key)
			}
		}
	}
}

// TestOfSession: a program's processes are found by their session, children too.
func TestOfSession(t *testing.T) {
	if _, err := os.Stat("/proc/self/stat"); err != nil {
		t.Skip("there is no /proc here")
	}
	cmd := exec.Command("sh", "-c", "sleep 600 & echo $!; wait")
	apart(cmd)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	u := &upgradable{session: cmd.Process.Pid, stays: cmd.Process.Pid}
	b := make([]byte, 32)
	n, err := out.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	child, err := strconv.Atoi(string(b[:n-1]))
	if err != nil {
		t.Fatal(err)
	}
	all, err := u.pids()
	if slices.Sort(all); err != nil || !slices.Equal(all, []int{cmd.Process.Pid, child}) {
		t.Errorf("%v, %v; want %d and %d", all, err, cmd.Process.Pid, child)
	}
	if serving, err := u.serving(); err != nil || !slices.Equal(serving, []int{child}) {
		t.Errorf("serving: %v, %v", serving, err)
	}
	if err := u.stop(); err != nil {
		t.Error(err)
	}
	_ = cmd.Wait()
	if left, err := u.pids(); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// TestWaitForOld: a process that stays is given up on; one that has gone is not
// waited for.
func TestWaitForOld(t *testing.T) {
	s := &upgradesSeen{}
	if err := s.waitForOld(t.Context(), []int{1 << 30}, time.Now(), oldProcessFor); err != nil || s.left != 0 {
		t.Errorf("%d left, %v", s.left, err)
	}
	if err := s.waitForOld(t.Context(), []int{os.Getpid()}, time.Now().Add(-2*oldProcessFor), oldProcessFor); err != nil || s.left != 1 {
		t.Errorf("%d left, %v", s.left, err)
	}
}
