package supervise

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"testing"
	"time"
)

// patience is how long the processes may take before the test says that they hang.
const patience = 2 * time.Minute

// becoming says which of the processes of TestBecome this is.
const becoming = "SALLYPORT_TEST_BECOMING"

// TestMain is the other processes of TestBecome, too.
func TestMain(m *testing.M) {
	switch os.Getenv(becoming) {
	case "main":
		beMain()
	case "before":
		beBefore()
	case "after":
		beAfter()
	default:
		os.Exit(m.Run())
	}
}

// beMain is the main process, which says what it hears and ends by SIGTERM, or
// with its supervisor.
func beMain() {
	l, err := Inherited(3)
	if err != nil {
		panic(err)
	}
	go func() {
		_ = l.Wait()
		os.Exit(8)
	}()
	heard := make(chan os.Signal, 16)
	signal.Notify(heard, Forwarded()...)
	fmt.Println("main listens")
	for s := range heard {
		fmt.Println("main hears", s)
		if s == syscall.SIGTERM {
			os.Exit(7)
		}
	}
}

// beBefore becomes beAfter, while SIGUSR2 has been heard and not been passed on.
func beBefore() {
	k, l, err := Pair()
	if err != nil {
		panic(err)
	}
	fd, err := l.Dup()
	if err != nil {
		panic(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), becoming+"=main")
	cmd.Stdout, cmd.ExtraFiles = os.Stdout, []*os.File{os.NewFile(uintptr(fd), "line")}
	if err := cmd.Start(); err != nil {
		panic(err)
	}
	pid := cmd.Process.Pid
	if err := cmd.Process.Release(); err != nil {
		panic(err)
	}
	told() // the main process listens
	k.Main(1, pid)
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, Forwarded()...)
	signals <- syscall.SIGUSR2
	if err := os.Setenv(becoming, "after"); err != nil {
		panic(err)
	}
	panic(k.Become(os.Args[0], []string{os.Args[0]}, os.Environ(), signals))
}

// told waits for the test's word, and ends without it: nothing outlives the test.
func told() {
	if n, _ := os.Stdin.Read(make([]byte, 1)); n == 0 {
		os.Exit(8)
	}
}

// beAfter listens when it is told.
func beAfter() {
	f := flag.NewFlagSet("", flag.PanicOnError)
	line, main, generation := f.Int("line", 0, ""), f.Int("main", 0, ""), f.Uint64("generation", 0, "")
	_ = f.Parse(os.Args[1:])
	fmt.Println("another program")
	told()
	d, stop := Listen()
	defer stop()
	fmt.Println("which listens")
	k, err := Resume(*line, State{Generation: *generation, Main: *main})
	if err != nil {
		panic(err)
	}
	code, _ := k.Run(context.Background(), d)
	os.Exit(code)
}

// TestBecome: a signal that has been heard before the other program is there is
// passed on; until that listens, SIGUSR2 waits and SIGHUP does no harm.
func TestBecome(t *testing.T) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), becoming+"=before")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	late := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() }) // the main process ends with it
	t.Cleanup(func() {
		late.Stop()
		in.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	lines := bufio.NewReader(out)
	says := func(want ...string) {
		t.Helper()
		for missing := len(want); missing > 0; missing-- { // two processes write
			line, err := lines.ReadString('\n')
			at := -1
			for i, w := range want {
				if line == w+"\n" {
					at = i
				}
			}
			if at < 0 || err != nil {
				in.Close()
				t.Fatalf("%q, %v; want one of %q", line, err, want)
			}
			want[at] = ""
		}
	}
	send := func(s syscall.Signal) {
		t.Helper()
		if err := cmd.Process.Signal(s); err != nil {
			t.Fatal(err)
		}
	}
	goOn := func() {
		t.Helper()
		if _, err := io.WriteString(in, "\n"); err != nil {
			t.Fatal(err)
		}
	}
	says("main listens")
	goOn()
	says("another program", "main hears user defined signal 2")
	send(syscall.SIGHUP)
	send(syscall.SIGUSR2)
	goOn()
	says("which listens", "main hears user defined signal 2")
	send(syscall.SIGHUP)
	says("main hears hangup")
	send(syscall.SIGTERM)
	says("main hears terminated")
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 7 {
		t.Errorf("exit code %d", code)
	}
}
