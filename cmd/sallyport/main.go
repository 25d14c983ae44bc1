// Command sallyport is what servers run: any of the roles auth, gateway, agent.
package main

import (
	"cmp"
	"context"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"syscall"
	"time"

	"github.com/alecthomas/kong"
	"github.com/lmittmann/tint"
	"github.com/mattn/go-isatty"

	"github.com/sallyport/sallyport/cmd/internal/fail"
	"github.com/sallyport/sallyport/cmd/internal/logsink"
	"github.com/sallyport/sallyport/cmd/internal/usage"
	"github.com/sallyport/sallyport/dataplane/handover"
	"github.com/sallyport/sallyport/dataplane/timerslack"
)

// version is set when the program is built.
var version = "unknown"

// cli is the whole grammar.
type cli struct {
	Start      startCmd      `cmd:"" help:"Run the roles that the configuration names."`
	Demo       demoCmd       `cmd:"" help:"Run everything in one process, with resources to try."`
	Configure  configureCmd  `cmd:"" help:"Write a commented configuration."`
	Reload     reloadCmd     `cmd:"" help:"Make a running sallyport on this machine read its configuration again."`
	Status     statusCmd     `cmd:"" help:"Show what a running sallyport on this machine does."`
	Upgrade    upgradeCmd    `cmd:"" help:"Let the program on disk take over from the one that runs."`
	Drain      drainCmd      `cmd:"" help:"Send new work elsewhere, and wait for what runs."`
	Selftest   selftestCmd   `cmd:"" help:"Try on this machine what the program promises."`
	Completion completionCmd `cmd:"" help:"Print a shell completion script."`
	Version    versionCmd    `cmd:"" help:"Print the version."`
	FileServe  sftpServerCmd `cmd:"" name:"sftp-server" hidden:"" help:"Serve sftp on standard input and output, for agents on hosts without OpenSSH's sftp-server."`
	Canary     canaryCmd     `cmd:"" hidden:"" help:"Serve a share of the connections of a running sallyport, for sallyport upgrade --canary."`
	DemoChild  demoChildCmd  `cmd:"" name:"demo-child" hidden:"" help:"Keep a server of the demo's, as long as the demo lives."`
	Supervise  superviseCmd  `cmd:"" hidden:"" help:"Keep the process id of a sallyport that was upgraded."`
}

// program is what a command works with.
type program struct {
	ctx    context.Context
	stdout io.Writer
	stderr *os.File
	log    *logsink.Sink // nil until needed

	saving thrift // of memory, while an upgrade runs
}

// spareProcessors of the runtime's are without a loop. When none is idle the
// runtime takes a loop's away each time that it blocks, and to get it back
// costs more than the wait.
const spareProcessors = 1

// loopCount is one per core that may be used.
func loopCount() int { return max(runtime.GOMAXPROCS(0)-spareProcessors, 1) }

func main() {
	if lives(os.Args) {
		_ = timerslack.Widen() // without it all is as it was, and somewhat slower
	}
	if serves(os.Args) {
		outliveReader()
	}
	runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + spareProcessors)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	p := &program{ctx: ctx, stdout: os.Stdout, stderr: os.Stderr}
	if handover.Inherits() {
		p.saving.beginYoung() // now: to read the command line may be what makes it collect
	}
	code := fail.Report(p.sink(), p.run(os.Args[1:]))
	stop()
	p.sink().Close(lastLines)
	os.Exit(code)
}

// lastLines is how long the end waits for who reads the log.
const lastLines = time.Second

// sink is where the log goes.
func (p *program) sink() *logsink.Sink {
	if p.log == nil {
		p.log = logsink.New(cmp.Or(p.stderr, os.Stderr))
	}
	return p.log
}

// lives says that a command serves until somebody ends it.
func lives(args []string) bool { return len(args) > 1 && (args[1] == "start" || args[1] == "demo") }

// serves says that others depend on the process of a command.
func serves(args []string) bool {
	return lives(args) || len(args) > 1 && slices.Contains([]string{"supervise", "canary", "demo-child"}, args[1])
}

// outliveReader lets a process go on without whoever reads its log: a line that
// nobody takes would end it, by SIGPIPE. The signal is caught and not ignored, since
// what is ignored stays so in the programs that are started.
func outliveReader() { signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE) }

func (p *program) run(args []string) error {
	ctx, err := parse(args, p.stdout, p.stderr)
	if err != nil {
		return err
	}
	return ctx.Run(p)
}

// parse understands a command line.
func parse(args []string, stdout, stderr io.Writer) (*kong.Context, error) {
	exited := -1
	k, err := kong.New(&cli{},
		kong.Name("sallyport"),
		kong.Description("One guarded port for SSH, databases, Kubernetes and web."),
		usage.Help(),
		kong.Exit(func(code int) { exited = code }),
		kong.Writers(stdout, stderr),
	)
	if err != nil {
		return nil, err
	}
	ctx, err := k.Parse(usage.Complete(args, "version"))
	if exited >= 0 {
		return nil, fail.Exit{Code: exited}
	}
	return ctx, usage.Explain(err, nil)
}

// logger writes text for people, JSON for machines.
func logger(w *logsink.Sink, c logConfig) *slog.Logger { return leveled(w, c, levelOf(c)) }

func levelOf(c logConfig) slog.Level {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.Level)); err != nil {
		level = slog.LevelInfo
	}
	return level
}

// leveled is a logger whose level may change.
func leveled(w *logsink.Sink, c logConfig, level slog.Leveler) *slog.Logger {
	var log *slog.Logger
	if c.Format == "json" {
		log = slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level}))
	} else {
		log = slog.New(tint.NewTextHandler(w, &tint.Options{Level: level, TimeFormat: "15:04:05.000", NoColor: !isatty.IsTerminal(w.File().Fd()) || os.Getenv("NO_COLOR") != ""}))
	}
	w.Resumed = func(lost uint64) {
		log.Warn("nobody read the log for a while, and lines of it are lost", "lines", lost)
	}
	return log
}
