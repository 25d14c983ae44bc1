package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/cmd/internal/output"
	"github.com/sallyport/sallyport/cmd/internal/supervise"
	"github.com/sallyport/sallyport/cmd/internal/usage"
	"github.com/sallyport/sallyport/controlplane/api"
	"github.com/sallyport/sallyport/dataplane/handover"
	handoverv1 "github.com/sallyport/sallyport/wire/sallyport/handover/v1"
)

const (
	// readyWithin is what a new process has from its start until it is ready.
	readyWithin = 10 * time.Second

	// standWithin is how long connections may stand still before the upgrade is
	// given up: some thousand times what it takes on a machine that is not overloaded.
	standWithin = 3 * time.Second

	// upgradeAnswer is how long sallyport upgrade waits: for one that runs, and its own.
	upgradeAnswer = 2*(preflightWithin+readyWithin) + 20*time.Second
)

// upgrader replaces this process by another one.
type upgrader struct {
	program string // what is started; "" when this process cannot be replaced
	refuse  error  // then this says why
	dir     string // where it was started

	// give starts the new process and gives it the stages (handover.Upgrade).
	give func(context.Context, []handover.Stage) (handover.Report, error)

	turn    turn // had while an upgrade runs, or a reload; guards ctx, ended and heir
	ctx     context.Context
	ended   bool           // there will be no more: the process ends, or is a remnant
	heir    int            // the process that has the work, if handed
	handed  chan struct{}  // closed when the work is another process's
	caller  sync.WaitGroup // who is still to be answered
	standIn atomic.Bool    // handed over, and signals are meant for the new process
}

func newUpgrader() upgrader {
	return upgrader{refuse: errNoUpgrade, handed: make(chan struct{})}
}

// offer lets a process be replaced, which has a file and a program to read.
func (u *upgrader) offer(flip *handover.Upgrader, saving *thrift) {
	u.program = flip.Path
	u.give = func(ctx context.Context, stages []handover.Stage) (handover.Report, error) {
		defer saving.end()
		return flip.Upgrade(ctx, stages)
	}
	u.dir, _ = os.Getwd() // without one the preflight runs where this process is
}

// begin lets upgrades begin; the end of ctx ends one that runs.
func (u *upgrader) begin(ctx context.Context) {
	u.turn.await()
	defer u.turn.end()
	u.ctx = ctx
}

// isHanded says that this process is a remnant.
func (u *upgrader) isHanded() bool {
	select {
	case <-u.handed:
		return true
	default:
		return false
	}
}

// isEnding says that the process has been told to end. Called with the turn.
func (u *upgrader) isEnding() bool { return u.ctx != nil && u.ctx.Err() != nil }

// end lets no more upgrade begin, and returns when none runs.
func (u *upgrader) end() {
	u.turn.await()
	defer u.turn.end()
	u.ended = true
}

// upgradeCall is what was asked for.
type upgradeCall struct {
	by        string
	checkOnly bool

	canary *canaryStatus // what was tried before; nil without
	mark   *programMark  // and what with: the upgrade is to the same
}

// upgrade hands everything over to the program on disk, or changes nothing. Why
// it did not is in the report, in the log, and returned.
func (n *node) upgrade(by string, checkOnly bool) (*upgradeReport, error) {
	return n.upgradeTo(upgradeCall{by: by, checkOnly: checkOnly})
}

func (n *node) upgradeTo(call upgradeCall) (*upgradeReport, error) {
	u := &n.upgrades
	if !u.turn.take(false) {
		err := busy("sallyport status tells what came of it")
		n.log.Error("upgrade refused; everything goes on as it was", "by", call.by, "reason", err)
		return &upgradeReport{Time: time.Now(), By: call.by, Outcome: upgradeRefused, Problem: err.Fact, Hint: err.Hint}, err
	}
	defer u.turn.end()
	r := &upgradeReport{Time: time.Now(), By: call.by, Outcome: upgradeRefused, FromVersion: version, FromPID: os.Getpid(), Canary: call.canary}
	err := n.upgradeLocked(r, call)
	if err != nil && u.isEnding() && !u.isHanded() {
		err = &sallyport.Problem{Kind: sallyport.ErrUnavailable, Cause: err, Fact: "no upgrade: this process was told to end", Hint: "the program on disk serves when the service is started again"}
		r.Problem, r.Hint = problemText(err)
		n.log.Warn("upgrade "+r.Outcome+"; this process ends", "by", call.by)
	} else if err != nil {
		r.Problem, r.Hint = problemText(err)
		n.log.Error("upgrade "+r.Outcome+"; everything goes on as it was", "by", call.by, "reason", err)
	} else if !call.checkOnly {
		n.log.Info("upgraded", "by", call.by, "to", r.ToVersion, "pid", r.ToPID, "relays", r.Relays, "stall_ms", r.StallMS, "took_ms", r.TookMS)
	}
	if !call.checkOnly && !(u.ended && err != nil) {
		n.remember(*r)
	}
	return r, err
}

// busy refuses what cannot be done while an upgrade has upgrader.turn.
func busy(hint string) *sallyport.Problem {
	return &sallyport.Problem{Kind: sallyport.ErrConflict, Fact: "an upgrade is under way", Hint: hint}
}

// problemText is what a person reads of an error.
func problemText(err error) (fact, hint string) {
	var p *sallyport.Problem
	if errors.As(err, &p) {
		hint = p.Hint
	}
	return err.Error(), hint
}

// upgradeLocked is the whole upgrade.
func (n *node) upgradeLocked(r *upgradeReport, call upgradeCall) error {
	if err := n.mayUpgrade(); err != nil {
		return err
	}
	v, err := n.probe()
	if v != nil {
		r.ToVersion = v.Version
	}
	if err == nil && call.mark != nil {
		err = n.unchanged(*call.mark)
	}
	if err != nil || call.checkOnly {
		r.Outcome = map[bool]string{true: upgradePossible, false: upgradeRefused}[err == nil]
		return err
	}
	r.Outcome = upgradeUndone
	relays := n.relays()
	given, err := n.handOver()
	r.take(given)
	if err != nil {
		return err
	}
	r.Outcome, r.Relays, r.Remnant = upgradeDone, relays, n.holding()
	return nil
}

// probe asks the program on disk whether it can take over.
func (n *node) probe() (*versionReport, error) {
	u := &n.upgrades
	c := &candidate{path: u.program, dir: u.dir, config: n.reloads.file, env: preflightEnvironment(os.Environ()), own: ownVersion()}
	v, check, err := c.preflight(u.ctx)
	if err == nil {
		err = check.agree(n.cfg.DataDir, n.cfg.Roles)
	}
	return v, err
}

// unchanged refuses what is not what the canary was.
func (n *node) unchanged(tried programMark) error {
	now, err := markOf(n.upgrades.program, n.reloads.file)
	if err == nil && now.same(tried) {
		return nil
	}
	return &sallyport.Problem{Kind: sallyport.ErrConflict, Cause: err, Fact: "the program or the configuration on disk is not the one that the canary was",
		Hint: "sallyport upgrade --canary again, or sallyport upgrade without it"}
}

// mayUpgrade says why not, in the order in which it matters to a person.
func (n *node) mayUpgrade() error {
	u := &n.upgrades
	switch {
	case u.isHanded():
		return &sallyport.Problem{Kind: sallyport.ErrConflict, Fact: "this process has handed over already", Hint: "ask the one that serves: sallyport status names it"}
	case u.program == "":
		return u.refuse
	case u.ended || u.ctx == nil || !n.reloads.up.Load():
		return &sallyport.Problem{Kind: sallyport.ErrUnavailable, Fact: "this process is still starting, or ends", Hint: "try again in a moment"}
	case n.demo != nil && n.demo.unready() != "":
		return &sallyport.Problem{Kind: sallyport.ErrUnavailable, Fact: "this demo is still installing " + n.demo.unready(), Hint: "try again in a moment"}
	case n.canary.Load() != nil:
		return errCanary(n.canary.Load())
	case n.drains.on.Load():
		return &sallyport.Problem{Kind: sallyport.ErrConflict, Fact: "this process is being drained", Hint: "restart the service: nobody is sent to it any more"}
	}
	return nil
}

// handOver is the hand-over, with what who started the service is told of it.
func (n *node) handOver() (handover.Report, error) {
	u, k := &n.upgrades, &n.keeping
	undo := func() {}
	if k.how == handoverv1.Keeping_KEEPING_SUPERVISOR && (k.line == nil || k.keeper != nil) {
		var err error
		if undo, err = supervise.Adopt(); err != nil {
			return handover.Report{}, err
		}
	}
	next, err := k.successor()
	if err == nil {
		n.next = next
		err = k.manager.Reloading()
	}
	var given handover.Report
	if err == nil {
		given, err = u.give(u.ctx, n.stages())
	}
	if err != nil {
		undo()
		n.tell(k.manager.Ready())
		return given, err
	}
	n.handed(given.PID)
	return given, nil
}

// handed makes this process a remnant. Nothing here can fail any more.
func (n *node) handed(pid int) {
	u, k := &n.upgrades, &n.keeping
	u.ended, u.heir = true, pid
	u.standIn.Store(k.keeper != nil)
	n.tell(k.announce(pid))
	if k.keeper != nil {
		n.stand = newStandIn(k.keeper)
	}
	if n.asked != nil && n.asked.Err() != nil {
		// Whoever wants the service to end has asked this process, which was the main
		// one when he looked.
		n.tell(syscall.Kill(pid, syscall.SIGTERM))
	}
	if k.line != nil {
		n.tell(errors.Join(supervise.Quiet(), k.line.Close()))
	}
	n.tell(k.leash.drop())
	if n.gateway != nil {
		n.gateway.left()
	}
	close(u.handed)
}

// tell logs what somebody could not be told.
func (n *node) tell(err error) {
	if err != nil {
		n.log.Warn("who started the service could not be told", "error", err)
	}
}

// stages are the parts that move, those that take long first: connections stand
// still from the last stage on.
func (n *node) stages() []handover.Stage {
	all := []handover.Stage{{Givers: []handover.Giver{&processGiver{node: n, next: n.next}}, Within: readyWithin}}
	if n.demo != nil {
		all[0].Givers = append(all[0].Givers, n.demo.giver())
	}
	if n.gateway != nil {
		all[0].Givers = append(all[0].Givers, n.gateway.early()...)
	}
	if n.auth != nil {
		all = append(all, handover.Stage{Givers: []handover.Giver{&authGiver{n.auth}}, Within: authWithin})
	}
	if n.agent != nil {
		all = append(all, handover.Stage{Givers: []handover.Giver{n.agent.giver()}, Within: readyWithin})
	}
	if n.gateway != nil {
		all = append(all, handover.Stage{Givers: n.gateway.late(), Within: standWithin})
	}
	return all
}

// relays is how many there are, for the report.
func (n *node) relays() int {
	if g := n.shownGateway.Load(); g != nil {
		return g.gateway.Snapshot().Relays
	}
	return 0
}

// take copies the hand-over's figures.
func (r *upgradeReport) take(g handover.Report) {
	r.ToPID, r.Records, r.Sockets = g.PID, int(g.Records), int(g.Descriptors)
	r.ToVersion = orText(g.To, r.ToVersion)
	r.CopyMS, r.StallMS = milliseconds(g.Copy), milliseconds(g.Stall)
	end := time.Now()
	if g.Committed {
		end = g.CommittedAt
		r.Committed = &end
	}
	r.TookMS = milliseconds(end.Sub(r.Time))
	if g.Failed != "" {
		r.Step = string(g.Failed)
	}
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// upgradeOn upgrades at each signal.
func (n *node) upgradeOn(ctx context.Context, signals <-chan os.Signal) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-signals:
			if !n.upgrades.standIn.Load() {
				_, _ = n.upgrade("SIGUSR2", false) // the log has it
			}
		}
	}
}

// serveUpgrade upgrades for the admin socket's caller, and answers from this
// process, whatever came of it.
func (n *node) serveUpgrade(w http.ResponseWriter, r *http.Request) {
	uid, ok := api.LocalAdmin(r.Context())
	if !ok {
		http.Error(w, "only root and the owner of the process may upgrade it", http.StatusForbidden)
		return
	}
	n.upgrades.caller.Add(1)
	defer n.upgrades.caller.Done()
	report, done, err := n.serveCanary(r, "local-admin:"+uid)
	if !done {
		report, err = n.upgrade("local-admin:"+uid, r.URL.Query().Get("check") != "")
	}
	answerWhole(w, err, report)
}

// answerWhole sends an answer that is complete when it returns: the process may
// end after it.
func answerWhole(w http.ResponseWriter, problem error, answer any) {
	b, err := json.Marshal(answer)
	if err != nil {
		http.Error(w, "no answer", http.StatusInternalServerError)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(b)))
	h.Set("Connection", "close")
	if problem != nil {
		w.WriteHeader(http.StatusUnprocessableEntity)
	}
	c := http.NewResponseController(w)
	_ = c.SetWriteDeadline(time.Now().Add(statusTimeout))
	if _, err := w.Write(b); err == nil {
		_ = c.Flush() // who has gone away reads the log
	}
}

type upgradeCmd struct {
	Config    string `name:"config" short:"c" env:"SALLY_CONFIG_FILE,TELEPORT_CONFIG_FILE" default:"/etc/sallyport.yaml" help:"Configuration of the running sallyport; says where its data directory is."`
	DataDir   string `name:"data-dir" env:"SALLY_DATA_DIR" help:"Data directory of the running sallyport, instead of --config."`
	CheckOnly bool   `name:"check-only" help:"Only ask the program on disk, and change nothing."`

	Canary *string        `name:"canary" placeholder:"SHARE" help:"First give a process of the program on disk this share of new connections, such as 5% (with the sign), and compare the two; at most 50%."`
	Watch  *time.Duration `name:"watch" placeholder:"10m" help:"How long a canary is compared before all connections follow, or its own come back; 10m without, and at least 1s."`
	Force  bool           `name:"force" help:"Go on also when there was too little traffic to tell; never when the canary is worse."`
	Finish bool           `name:"finish" help:"End a canary now: all connections follow."`
	Back   bool           `name:"back" help:"End a canary now: its connections come back."`

	Format string `name:"format" short:"f" enum:"text,json,yaml" default:"text" help:"text, json or yaml."`
}

// Help shows examples.
func (*upgradeCmd) Help() string {
	return usage.Examples("sallyport upgrade", "sallyport upgrade --check-only          # would it be taken?",
		"sallyport upgrade --canary 5% --watch 10m   # 5% of new connections first; then all, or back",
		"sallyport upgrade --back                # end that now",
		"sallyport upgrade --format=json         # with the figures")
}

// Run asks the process on its admin socket. It starts the program, with the
// arguments that it was started with itself.
func (c *upgradeCmd) Run(p *program) error {
	dir, err := dataDir(c.Config, c.DataDir)
	if err != nil {
		return err
	}
	report, err := c.ask(p, dir)
	if err != nil {
		return err
	}
	if c.Format != "text" {
		if err := output.Write(p.stdout, c.Format, report); err != nil {
			return err
		}
	}
	if report.Problem != "" {
		return &sallyport.Problem{Kind: sallyport.ErrUnavailable, Fact: report.Problem, Hint: orText(report.Hint, "nothing was changed: the process goes on")}
	}
	if c.Format == "text" {
		return report.print(p.stdout)
	}
	return nil
}

// ask asks the process, and waits for what comes of it.
func (c *upgradeCmd) ask(p *program, dir string) (*upgradeReport, error) {
	path, err := c.canaryPath()
	if err != nil {
		return nil, err
	}
	if path != "" {
		return c.canaryRun(p, dir, path)
	}
	path = "/upgrade"
	if c.CheckOnly {
		path += "?check=1"
	}
	var report upgradeReport
	err = askAdmin(p.ctx, dir, question{method: http.MethodPost, path: path, within: upgradeAnswer}, &report)
	return &report, err
}

func (r *upgradeReport) print(w io.Writer) error {
	var b strings.Builder
	if s := r.Canary; s != nil {
		old, new := s.shares()
		fmt.Fprintf(&b, "Canary:      %s\nOld process: %s\n", new, old)
	}
	switch r.Outcome {
	case upgradePossible:
		fmt.Fprintf(&b, "Version %s can take over from version %s. Nothing was changed.\n", r.ToVersion, r.FromVersion)
	case upgradeBack:
		fmt.Fprintf(&b, "The canary has gone back: process %d serves everything.\n", r.FromPID)
	default:
		fmt.Fprintf(&b, "Upgraded from version %s (process %d) to version %s (process %d) in %.0f ms.\n", r.FromVersion, r.FromPID, r.ToVersion, r.ToPID, r.TookMS)
		fmt.Fprintf(&b, "%s went on, and stood still for %.1f ms. %d records with %d descriptors moved.\n", counted(r.Relays, "relay"), r.StallMS, r.Records, r.Sockets)
	}
	if len(r.Remnant) > 0 {
		fmt.Fprintf(&b, "The old process stays for %s; sallyport status shows it.\n", strings.Join(r.Remnant, ", "))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// line is the record in one line.
func (r *upgradeReport) line() string {
	switch when := r.Time.Local().Format(time.DateTime); r.Outcome {
	case upgradeDone:
		return fmt.Sprintf("%s: %s to %s, %s, stood still for %.1f ms%s", when, r.FromVersion, r.ToVersion, counted(r.Relays, "relay"), r.StallMS, map[bool]string{true: "; after a canary"}[r.Canary != nil])
	case upgradeBack:
		return fmt.Sprintf("%s: %s to %s: the canary went BACK: %s", when, r.FromVersion, r.ToVersion, orText(firstLine(r.Problem), "by "+r.By))
	default:
		return fmt.Sprintf("%s: %s to %s %s: %s", when, r.FromVersion, orText(r.ToVersion, "?"), strings.ToUpper(r.Outcome), firstLine(r.Problem))
	}
}

func firstLine(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	return s
}

// holding says what cannot move, for people: "3 sessions".
func (n *node) holding() []string {
	return countsOf(n.holds())
}

func countsOf(held map[string]int) (out []string) {
	for _, what := range sortedKeys(held) {
		if what == "agent" {
			out = append(out, "streams that may still come")
			continue
		}
		out = append(out, fmt.Sprintf("%d %s", held[what], nounOf(held[what], what)))
	}
	return out
}

// nounOf is a name for many things, or of one: its first word that ends in s.
func nounOf(n int, many string) string {
	if n != 1 {
		return many
	}
	words := strings.Fields(many)
	for i, w := range words {
		if one, plural := strings.CutSuffix(w, "s"); plural {
			words[i] = one
			break
		}
	}
	return strings.Join(words, " ")
}
