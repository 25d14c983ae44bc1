package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/cmd/internal/notify"
)

const (
	// preflightWithin is what all questions to the new program may take together.
	preflightWithin = 10 * time.Second

	// preflightOutput is for what a program has written that has ended, on a busy
	// machine; it matters when a process that it leaves behind holds on to the pipe.
	preflightOutput = 5 * time.Second

	// preflightGC keeps the collector from running in a process that ends when it has
	// said a few words: a fifth of what it costs, and on a core of its own, which is
	// another one that connections wait for. The heap is bounded still, at 16 MiB or
	// five times what is in use; who has set GOGC for the service has it here too.
	preflightGC = "GOGC=400"

	// maxSaid is what a program may say when it is asked.
	maxSaid = 64 << 10
)

// checkReport is what start --check says for programs: what a hand-over cannot
// change, and who says it.
type checkReport struct {
	DataDir string         `json:"data_dir"`
	Roles   []string       `json:"roles"`
	Program *versionReport `json:"program"` // nil: an older program, which says it when asked for its version
}

// candidate is the program on disk, that may take over.
type candidate struct {
	path, dir string
	config    string
	env       []string
	own       versionReport
}

// preflight asks the program who it is and what it thinks of the configuration,
// in a process of its own: each start takes the cores from the connections for
// some 20 ms. One that does not say both at once is asked again, since who it is
// matters more than what it complains about. Nothing has been touched when it
// refuses.
func (c *candidate) preflight(ctx context.Context) (*versionReport, *checkReport, error) {
	ctx, cancel := context.WithTimeout(ctx, preflightWithin)
	defer cancel()
	out, err := c.ask(ctx, "start", "--config="+c.config, "--check", "--format=json")
	if err != nil {
		return nil, nil, err
	}
	v := out.program()
	if v == nil {
		if v, err = c.version(ctx); err != nil {
			return nil, nil, err
		}
	}
	if err := c.fits(v); err != nil {
		return nil, nil, err
	}
	check, err := c.checked(out)
	return v, check, err
}

// program is who has checked the configuration; nil when that was not said.
func (s *said) program() *versionReport {
	var r checkReport
	if s.code != 0 || json.Unmarshal(s.stdout, &r) != nil || r.Program == nil || r.Program.Version == "" {
		return nil
	}
	return r.Program
}

func (c *candidate) version(ctx context.Context) (*versionReport, error) {
	out, err := c.ask(ctx, "version", "--format=json")
	if err != nil {
		return nil, err
	}
	var v versionReport
	if out.code != 0 || json.Unmarshal(out.stdout, &v) != nil || v.Version == "" {
		return nil, &sallyport.Problem{Kind: sallyport.ErrInvalid, Cause: out.cause(),
			Fact: fmt.Sprintf("%s is no sallyport that can take over: it does not answer \"version --format=json\"", c.path),
			Hint: "put the new program there; to go back to one that is too old for an upgrade, restart the service"}
	}
	return &v, nil
}

// fits refuses a program with which this one has no generation of records in common.
func (c *candidate) fits(v *versionReport) error {
	mine, its := c.own.Handover, v.Handover
	if its.Newest < mine.Oldest || mine.Newest < its.Oldest || its.Newest == 0 {
		return &sallyport.Problem{Kind: sallyport.ErrConflict,
			Fact: fmt.Sprintf("version %s takes over records of the generations %d to %d, and this process (version %s) has %d to %d",
				v.Version, its.Oldest, its.Newest, c.own.Version, mine.Oldest, mine.Newest),
			Hint: "upgrade by way of a version between the two, or restart the service"}
	}
	return nil
}

// checked is what came of the check.
func (c *candidate) checked(out *said) (*checkReport, error) {
	if out.code != 0 {
		fact, hint := out.complaint()
		return nil, &sallyport.Problem{Kind: sallyport.ErrInvalid, Cause: out.cause(),
			Fact: "the new program refuses the configuration: " + fact,
			Hint: orText(hint, c.path+" start --config="+c.config+" --check says the same")}
	}
	var r checkReport
	if err := json.Unmarshal(out.stdout, &r); err != nil || r.DataDir == "" {
		return nil, &sallyport.Problem{Kind: sallyport.ErrInvalid, Cause: err,
			Fact: c.path + " start --check says nothing that can be read", Hint: "put the new program there"}
	}
	return &r, nil
}

// said is what came of a question.
type said struct {
	stdout, stderr []byte
	code           int
}

// ask runs the program. An error means that it gave no answer.
func (c *candidate) ask(ctx context.Context, args ...string) (*said, error) {
	cmd := exec.CommandContext(ctx, c.path, args...)
	cmd.Dir, cmd.Env = c.dir, c.env
	cmd.WaitDelay = preflightOutput
	// A wrapper's own processes go with it: a group of their own.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	stdout, stderr := &bounded{most: maxSaid}, &bounded{most: maxSaid}
	cmd.Stdout, cmd.Stderr = stdout, stderr
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return nil, &sallyport.Problem{Kind: sallyport.ErrUnavailable, Cause: errors.Join(ctx.Err(), err),
			Fact: fmt.Sprintf("%s %s gave no answer within %v", c.path, args[0], preflightWithin), Hint: "run it by hand: " + c.path + " " + strings.Join(args, " ")}
	case errors.As(err, &exit):
		return &said{stdout.b, stderr.b, max(exit.ExitCode(), 1)}, nil
	case err != nil && isGone(c.dir):
		// The system's error is then of the program, which may well be there.
		return nil, &sallyport.Problem{Kind: sallyport.ErrInvalid, Cause: err,
			Fact: fmt.Sprintf("the directory %s, in which this process was started and a new one would be, is gone", c.dir),
			Hint: "make it again: mkdir -p " + c.dir + "; or restart the service"}
	case err != nil:
		return nil, &sallyport.Problem{Kind: sallyport.ErrInvalid, Cause: err,
			Fact: fmt.Sprintf("%s cannot be run: %s", c.path, reason(err)), Hint: "put the new program there, with mode 755, by a rename: install(1) does"}
	}
	return &said{stdout: stdout.b, stderr: stderr.b}, nil
}

// isGone says that there is no such directory any more. Of one that is not named
// nothing is known.
func isGone(dir string) bool {
	_, err := os.Stat(dir)
	return dir != "" && errors.Is(err, fs.ErrNotExist)
}

// complaint is what the program told a person.
func (s *said) complaint() (fact, hint string) {
	text := strings.TrimSpace(string(bytes.ToValidUTF8(s.stderr, []byte("\uFFFD"))))
	text, hint, _ = strings.Cut(text, "\nhint: ")
	if _, after, found := strings.Cut(text, "ERROR: "); found {
		text = after
	}
	return orText(text, fmt.Sprintf("exit status %d", s.code)), hint
}

func (s *said) cause() error {
	if len(s.stderr) == 0 {
		return nil
	}
	fact, _ := s.complaint()
	return errors.New(fact)
}

// bounded keeps the beginning of what is written and takes the rest.
type bounded struct {
	b    []byte
	most int
}

// Write meets io.Writer.
func (w *bounded) Write(b []byte) (int, error) {
	w.b = append(w.b, b[:min(len(b), w.most-len(w.b))]...)
	return len(b), nil
}

// quietEnvironment is the environment for a process that must not speak for the
// service.
func quietEnvironment(env []string) []string {
	return slices.DeleteFunc(slices.Clone(env), func(kv string) bool {
		return strings.HasPrefix(kv, notify.Variable+"=") || strings.HasPrefix(kv, handoverVariable+"=")
	})
}

// preflightEnvironment is that of a process which only answers. Of two values of
// one variable the last counts.
func preflightEnvironment(env []string) []string {
	return append([]string{preflightGC}, quietEnvironment(env)...)
}

// handoverVariable tells a process that it is to take over (tableflip).
const handoverVariable = "TABLEFLIP_HAS_PARENT_7DIU3"

// agree refuses what only a restart can change.
func (r *checkReport) agree(dataDir string, roles []string) error {
	var field string
	switch same := slices.Equal(slices.Sorted(slices.Values(r.Roles)), slices.Sorted(slices.Values(roles))); {
	case r.DataDir != dataDir:
		field = "data_dir"
	case !same:
		field = "roles"
	default:
		return nil
	}
	return &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: field + " has changed in the configuration, which an upgrade cannot take over",
		Hint: "change it back, or restart the service"}
}
