package ssh

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// startAs starts a command as who we are.
func startAs(t testing.TB, from *parent, command string) *process {
	t.Helper()
	me := account{name: "me", uid: uint32(os.Getuid()), gid: uint32(os.Getgid()), home: "/", shell: "/bin/sh"}
	p, _, err := startProcess(launch{account: me, command: command, grace: time.Second, parent: from})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestThreadsEnd: programs live on when the thread that a start was asked on
// ends; the parent's death signal is about threads.
func TestThreadsEnd(t *testing.T) {
	var from parent
	var p *process
	tid := 0
	onThreadThatEnds(func() {
		tid = unix.Gettid()
		p = startAs(t, &from, "exec sleep 300")
	})
	defer p.hangUp()
	for end := time.Now().Add(deadline); !errors.Is(unix.Tgkill(os.Getpid(), tid, 0), unix.ESRCH); {
		if time.Now().After(end) {
			t.Fatal("the thread did not end")
		}
		runtime.Gosched()
	}
	// The signal was sent before the thread was gone; the kernel delivers it
	// before the program could answer this one.
	if err := p.signal(syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	<-p.exited
	p.hangUp()
	if ws := p.state.Sys().(syscall.WaitStatus); !ws.Signaled() || ws.Signal() != syscall.SIGUSR1 {
		t.Errorf("the program ended by %v", p.state)
	}
}

// onThreadThatEnds returns when f has run; its thread ends then.
func onThreadThatEnds(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() { // the first thread lives as long as the process
			onThreadThatEnds(f)
			runtime.UnlockOSThread()
			return
		}
		f() // never unlocked: the thread ends with us
	}()
	<-done
}

// TestParentThread: the thread goes with the last child, and comes back.
func TestParentThread(t *testing.T) {
	var from parent
	for range 3 {
		a, b := startAs(t, &from, "exec sleep 300"), startAs(t, &from, "exec sleep 300")
		a.hangUp()
		if from.births == nil {
			t.Error("the thread ended before its last child")
		}
		b.hangUp()
		if from.births != nil || from.living != 0 {
			t.Errorf("after the last child: %+v", &from)
		}
	}
	bad := launch{account: account{name: "me", uid: uint32(os.Getuid()), home: "/", shell: "/nowhere"}, parent: &from}
	if _, _, err := startProcess(bad); err == nil || from.living != 0 {
		t.Errorf("a shell that is not there: %v, %d living", err, from.living)
	}
}

// agentEnv makes a run of this test's binary an agent with one program: the
// value is the program. It prints the program's number and output.
const agentEnv = "SALLYPORT_TEST_AGENT"

func TestAgentProcess(t *testing.T) {
	command := os.Getenv(agentEnv)
	if command == "" {
		t.Skip("runs in a process of its own, for other tests")
	}
	var from parent
	p := startAs(t, &from, command)
	fmt.Println("program", p.os.Pid)
	io.Copy(os.Stdout, p.stdout)
	<-p.exited
	p.hangUp()
}

// agentProcess runs a program under an agent that is started by a shell's words.
func agentProcess(t *testing.T, words, command string) (agent *exec.Cmd, program int, out *bufio.Reader) {
	t.Helper()
	agent = exec.Command("/bin/sh", "-c", words+` exec "$0" -test.run='^TestAgentProcess$'`, os.Args[0])
	agent.Env = append(os.Environ(), agentEnv+"="+command)
	stdout, err := agent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	agent.Stderr = &said
	if err := agent.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { agent.Process.Kill(); agent.Wait() })
	out = bufio.NewReader(stdout)
	line, err := out.ReadString('\n')
	if _, serr := fmt.Sscanf(line, "program %d", &program); serr != nil {
		t.Fatalf("%q, %v, %s", line, err, &said)
	}
	return agent, program, out
}

// TestF1_KilledAgent: a command without a terminal outlived an agent that was
// killed, with nobody to audit or end it.
func TestF1_KilledAgent(t *testing.T) {
	agent, program, _ := agentProcess(t, "", "exec sleep 300")
	fd, err := unix.PidfdOpen(program, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := agent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(poll, int(deadline.Milliseconds()))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if n != 1 {
			syscall.Kill(program, syscall.SIGKILL)
			t.Fatalf("the program lives on: %v", err)
		}
		return
	}
}

// TestIgnoredSignals: sessions of an agent that was started by nohup, or by a
// script with &, ignored Ctrl-C and the end of their line.
func TestIgnoredSignals(t *testing.T) {
	_, _, out := agentProcess(t, "trap '' HUP INT QUIT PIPE TERM USR1;", "exec grep SigIgn: /proc/self/status")
	line, err := out.ReadString('\n')
	mask, merr := strconv.ParseUint(strings.TrimSpace(strings.TrimPrefix(line, "SigIgn:")), 16, 64)
	if err != nil || merr != nil {
		t.Fatalf("%q: %v, %v", line, err, merr)
	}
	for _, s := range signals {
		if mask&(1<<(s.number-1)) != 0 {
			t.Errorf("SIG%s is ignored", s.name)
		}
	}
}
