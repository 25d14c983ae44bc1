package timerslack

import (
	"encoding/json"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"testing"
	"time"
)

// seen is what a program finds.
type seen struct {
	PID     int
	Args    []string
	Slack   time.Duration
	Begun   bool          // the variable is there
	Child   time.Duration // of a program that it starts
	Foreign time.Duration // of one that is somebody else's
}

const roleVariable = "TIMERSLACK_TEST_ROLE"

// TestMain is the programs, too.
func TestMain(m *testing.M) {
	switch os.Getenv(roleVariable) {
	case "":
		os.Exit(m.Run())
	case "child":
		tell(seen{Slack: slack()})
	case "widened":
		if err := Widen(); err != nil {
			panic(err)
		}
		s := seen{PID: os.Getpid(), Args: os.Args, Slack: slack()}
		_, s.Begun = os.LookupEnv(begun)
		s.Child = run("child", nil).Slack
		s.Foreign = run("child", Usual).Slack
		tell(s)
	}
}

func tell(s seen) {
	if err := json.NewEncoder(os.Stdout).Encode(s); err != nil {
		panic(err)
	}
}

// run starts this program on a thread that first does something.
func run(role string, first func() error) (s seen) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and the thread ends
		if first != nil {
			if err := first(); err != nil {
				panic(err)
			}
		}
		cmd := exec.Command(os.Args[0], "an argument")
		cmd.Env = append(os.Environ(), roleVariable+"="+role)
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		if err != nil {
			panic(err)
		}
		if err := json.Unmarshal(out, &s); err != nil {
			panic(err)
		}
		if s.PID != 0 && s.PID != cmd.Process.Pid {
			panic("another process")
		}
	}()
	<-done
	return s
}

func TestWiden(t *testing.T) {
	s := run("widened", func() error { return set(usual) })
	if s.Slack != wide || s.Child != wide || s.Foreign != usual {
		t.Errorf("%v, and what it starts %v and %v; want %v, %v and %v", s.Slack, s.Child, s.Foreign, wide, wide, usual)
	}
	if s.Begun || !slices.Equal(s.Args, []string{os.Args[0], "an argument"}) || s.PID == 0 {
		t.Errorf("process %d was started anew with %q; the variable is there: %v", s.PID, s.Args, s.Begun)
	}
}

// TestWidenChosen: the slack that somebody has chosen stays.
func TestWidenChosen(t *testing.T) {
	const chosen = 70 * time.Microsecond
	s := run("widened", func() error { return set(chosen) })
	if s.Slack != chosen || s.Child != chosen || s.Foreign != chosen {
		t.Errorf("%v, and what it starts %v and %v; want %v", s.Slack, s.Child, s.Foreign, chosen)
	}
}

// TestWidenRefused: where the slack does not stay, the program is not started anew
// for ever.
func TestWidenRefused(t *testing.T) {
	t.Setenv(begun, "1")
	if s := run("widened", func() error { return set(usual) }); s.Slack != usual || s.Begun {
		t.Errorf("%v; the variable is there: %v", s.Slack, s.Begun)
	}
}
