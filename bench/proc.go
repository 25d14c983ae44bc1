package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// cpuTime is the user and system time that a process has used, of all its
// threads, those that have ended too: utime+stime of /proc/PID/stat, but in
// nanoseconds. The clock id of another process is made as in
// clock_getcpuclockid(3) (CPUCLOCK_SCHED of include/linux/posix-timers.h).
func cpuTime(pid int) (time.Duration, error) {
	const sched = 2
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|sched), &ts); err != nil {
		return 0, fmt.Errorf("cpu clock of process %d: %w", pid, err)
	}
	return time.Duration(ts.Nano()), nil
}

// memory of a process, in bytes (smaps_rollup of proc_pid_smaps(5)). PSS shares
// pages among those who map them.
type memory struct{ RSS, PSS float64 }

func memoryOf(pid int) (memory, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return memory{}, err
	}
	return parseRollup(b)
}

func parseRollup(b []byte) (memory, error) {
	var m memory
	for line := range bytes.Lines(b) {
		f := bytes.Fields(line)
		if len(f) != 3 || string(f[2]) != "kB" {
			continue
		}
		kb, err := strconv.ParseFloat(string(f[1]), 64)
		if err != nil {
			return m, err
		}
		switch string(f[0]) {
		case "Rss:":
			m.RSS = kb * 1024
		case "Pss:":
			m.PSS = kb * 1024
		}
	}
	if m.RSS == 0 || m.PSS == 0 {
		return m, fmt.Errorf("no Rss and Pss in smaps_rollup")
	}
	return m, nil
}

// stat is what is needed of /proc/PID/stat.
type stat struct {
	pid, parent int
	session     int
	state       byte // 'Z': it has ended, and nobody has taken notice
	comm        string
	ticks       uint64 // utime+stime
	reaped      uint64 // cutime+cstime: of children that have ended and been waited for
}

// parseStat knows that a name may hold blanks and parentheses (proc_pid_stat(5)).
func parseStat(b []byte) (stat, error) {
	open, end := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if open < 1 || end < open {
		return stat{}, fmt.Errorf("no name in %q", b)
	}
	pid, err := strconv.Atoi(string(bytes.TrimSpace(b[:open])))
	if err != nil {
		return stat{}, err
	}
	f := bytes.Fields(b[end+1:])
	const state, ppid, session, utime, stime, cutime, cstime = 0, 1, 3, 11, 12, 13, 14 // three less than proc_pid_stat(5) has: it counts from 1, and two are before f
	if len(f) <= cstime {
		return stat{}, fmt.Errorf("%d fields in stat", len(f))
	}
	s := stat{pid: pid, comm: string(b[open+1 : end]), state: f[state][0]}
	if s.parent, err = strconv.Atoi(string(f[ppid])); err != nil {
		return s, err
	}
	if s.session, err = strconv.Atoi(string(f[session])); err != nil {
		return s, err
	}
	for i, into := range map[int]*uint64{utime: &s.ticks, stime: &s.ticks, cutime: &s.reaped, cstime: &s.reaped} {
		n, err := strconv.ParseUint(string(f[i]), 10, 64)
		if err != nil {
			return s, err
		}
		*into += n
	}
	return s, nil
}

// descendants are all processes below one, itself not among them.
func descendants(root int) ([]stat, error) {
	paths, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	children := map[int][]stat{}
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // ended meanwhile
		}
		s, err := parseStat(b)
		if err != nil {
			return nil, err
		}
		children[s.parent] = append(children[s.parent], s)
	}
	var out []stat
	for next := []int{root}; len(next) > 0; next = next[1:] {
		for _, s := range children[next[0]] {
			out = append(out, s)
			next = append(next, s.pid)
		}
	}
	return out, nil
}

// loadAverage is the run queue's mean length of the last minute.
func loadAverage() float64 {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return 0
	}
	f := strings.Fields(string(b))
	if len(f) == 0 {
		return 0
	}
	v, _ := strconv.ParseFloat(f[0], 64)
	return v
}

// machineTimes are the machine's busy and whole CPU time in ticks.
func machineTimes() (busy, whole float64) { return coreTimes("cpu") }

// coreTimes are those of one line of /proc/stat: "cpu" is all of them.
func coreTimes(name string) (busy, whole float64) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, 0
	}
	return parseTimes(b, name)
}

// parseTimes adds up a line of /proc/stat (proc_stat(5)). Guests are within user.
func parseTimes(b []byte, name string) (busy, whole float64) {
	for line := range bytes.Lines(b) {
		f := strings.Fields(string(line))
		if len(f) == 0 || f[0] != name {
			continue
		}
		for i, field := range f {
			if i == 0 || i > 8 { // user nice system idle iowait irq softirq steal
				continue
			}
			v, _ := strconv.ParseFloat(field, 64)
			whole += v
			if i != 4 && i != 5 {
				busy += v
			}
		}
	}
	return busy, whole
}

// hz is USER_HZ, the unit of /proc's ticks on all that Go runs on.
const hz = 100

// ownTimes is the CPU time in seconds of this process and of all below it,
// those that have ended too.
func ownTimes() float64 {
	var sum float64
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var u unix.Rusage
		if unix.Getrusage(who, &u) == nil {
			sum += time.Duration(u.Utime.Nano() + u.Stime.Nano()).Seconds()
		}
	}
	below, _ := descendants(os.Getpid())
	for _, s := range below {
		sum += float64(s.ticks+s.reaped) / hz
	}
	return sum
}

// watchOthers returns a function that says which share of the machine's CPU
// time has gone to processes other than this run's since.
func watchOthers() func() float64 {
	busy0, whole0 := machineTimes()
	own0 := ownTimes()
	return func() float64 {
		busy, whole := machineTimes()
		if whole <= whole0 {
			return 0
		}
		return max(0, (busy-busy0-(ownTimes()-own0)*hz)/(whole-whole0))
	}
}

// machine says where this runs.
func machine() Machine {
	m := Machine{OS: runtime.GOOS, Arch: runtime.GOARCH, CPUs: runtime.NumCPU(), Go: runtime.Version()}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	m.CPU = firstField("/proc/cpuinfo", "model name")
	kb, _, _ := strings.Cut(firstField("/proc/meminfo", "MemTotal"), " ")
	m.MemoryKB, _ = strconv.ParseUint(kb, 10, 64)
	return m
}

// firstField is the value of the first line "name : value" of a file.
func firstField(path, name string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if k, v, ok := strings.Cut(lines.Text(), ":"); ok && strings.TrimSpace(k) == name {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// commit is what the working tree stands on, and whether it differs.
func commit(ctx context.Context) (id string, dirty bool) {
	out, err := exec.CommandContext(ctx, "git", "rev-parse", "--short=12", "HEAD").Output()
	if err != nil {
		return "unknown", true
	}
	changed, err := exec.CommandContext(ctx, "git", "status", "--porcelain", "--", "*.go", "go.mod", "go.sum").Output()
	return strings.TrimSpace(string(out)), err != nil || len(bytes.TrimSpace(changed)) > 0
}
