package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/cmd/internal/output"
	"github.com/sallyport/sallyport/cmd/internal/usage"
	"github.com/sallyport/sallyport/controlplane/api"
)

const (
	maxDrain  = 24 * time.Hour
	maxNotice = 10 * time.Minute

	// Agents come back to this address after drainBack, spread over drainSpread:
	// by then a balancer sends them elsewhere, or the process is another one.
	drainBack   = time.Second
	drainSpread = 2 * time.Second

	drainLook = 100 * time.Millisecond
)

// drains is what a drain has begun. There is no way back.
type drains struct {
	on   atomic.Bool // the health endpoint is red
	sent atomic.Bool // agents were told, and the port is closed
}

// drainReport is what is left of the process's work.
type drainReport struct {
	Ended    bool           `json:"ended"` // nothing is left
	TookMS   float64        `json:"took_ms"`
	Relays   int            `json:"relays"`   // of the gateway, but for those to auth
	Waiting  int            `json:"waiting"`  // clients of the gateway
	Ends     map[string]int `json:"ends"`     // connections that end at the gateway and are at work, by what they are
	Sessions map[string]int `json:"sessions"` // of the agent, by what they are
	Canaries int            `json:"canaries"` // connections that did not come back from canaries
	Problem  string         `json:"problem,omitempty"`
	Hint     string         `json:"hint,omitempty"`
}

// drain tells everybody who sends work to this process to send it elsewhere, and
// waits until what is there has ended: balancers by the health endpoint, for the
// time of the notice; then the gateway's agents, and its port closes; and the
// gateways of the agent. A second call only waits.
func (n *node) drain(ctx context.Context, notice time.Duration) (*drainReport, error) {
	began := time.Now()
	r := &drainReport{}
	err := n.beginDrain(ctx, notice)
	if err == nil {
		err = n.drained(ctx, r)
	}
	r.TookMS = milliseconds(time.Since(began))
	return r, err
}

func (n *node) beginDrain(ctx context.Context, notice time.Duration) error {
	g, a := n.shownGateway.Load(), n.shownAgent.Load()
	switch {
	case g == nil && a == nil:
		return &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: "this process has no gateway and no agent that could be drained", Hint: "auth needs no drain: stop it"}
	case n.upgrades.isHanded():
		return errHandedAway()
	}
	n.endCanary(ctx, "drain")
	if !n.upgrades.turn.take(true) { // what moves is not to be closed
		return busy("try again when it has ended")
	}
	if n.upgrades.isHanded() { // a canary has become an upgrade after all
		n.upgrades.turn.end()
		return errHandedAway()
	}
	first := !n.drains.on.Swap(true)
	n.upgrades.turn.end()
	if first {
		n.log.Info("draining: the health endpoint is red", "notice", notice)
		n.tell(n.keeping.manager.Status("draining"))
	}
	if n.drains.sent.Load() {
		return nil
	}
	if g == nil {
		notice = 0 // nobody looks at an agent's health to send it work
	}
	select {
	case <-time.After(notice):
	case <-ctx.Done():
		if errors.Is(ctx.Err(), context.Canceled) {
			return nil // who asked has gone away, and may ask again
		}
	}
	if n.drains.sent.Swap(true) {
		return nil
	}
	if g != nil {
		n.log.Info("draining: agents are told, and the port closes")
		g.sendAway(drainBack, drainSpread)
	}
	if a != nil {
		n.log.Info("draining: gateways are told that this agent leaves")
		a.drain()
	}
	return nil
}

// errHandedAway refuses what is for the process that serves.
func errHandedAway() error {
	return &sallyport.Problem{Kind: sallyport.ErrConflict, Fact: "this process has handed over", Hint: "ask the one that serves: sallyport status names it"}
}

// sendAway tells agents to come back later, and accepts nobody any more. What
// runs goes on.
func (r *gatewayRole) sendAway(after, spread time.Duration) {
	if r.hub != nil {
		r.hub.Drain(after, spread)
	}
	r.shutPort()
}

// shutPort accepts nobody any more. What runs goes on.
func (r *gatewayRole) shutPort() {
	over, cancel := context.WithCancel(context.Background())
	cancel()
	_ = r.gateway.Drain(over) // closes the port, and does not wait
}

// drained waits until nothing is left, or ctx is done.
func (n *node) drained(ctx context.Context, r *drainReport) error {
	tick := time.NewTicker(drainLook)
	defer tick.Stop()
	for {
		if r.Ended = n.drains.sent.Load() && !n.leftIn(r); r.Ended {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return &sallyport.Problem{Kind: sallyport.ErrUnavailable, Fact: r.rest() + " left",
				Hint: "stop the process to end them, or drain again to wait longer"}
		}
	}
}

// leftIn notes what is left, and whether that is anything.
func (n *node) leftIn(r *drainReport) bool {
	if g := n.shownGateway.Load(); g != nil {
		s := g.gateway.Snapshot()
		// A host reaches auth as long as there is a way, and finds another then.
		r.Relays, r.Waiting = max(0, s.Relays-s.ToAuth), s.Waiting
		r.Ends = g.working()
	}
	r.Sessions = map[string]int{}
	if a := n.shownAgent.Load(); a != nil {
		r.Sessions = a.left()
	}
	r.Canaries = keptBy(n.leftCanaries())
	return r.Relays+r.Waiting+len(r.Ends)+len(r.Sessions)+r.Canaries > 0
}

// rest is what is left, for a person: "2 relays and 1 node session are".
func (r *drainReport) rest() string {
	var all []string
	total := 0
	add := func(n int, what string) {
		if n > 0 {
			all, total = append(all, fmt.Sprintf("%d %s", n, nounOf(n, what))), total+n
		}
	}
	add(r.Relays, "relays")
	add(r.Waiting, "waiting connections")
	add(r.Canaries, "connections of canaries")
	for _, some := range []map[string]int{r.Ends, r.Sessions} {
		for _, what := range slices.Sorted(maps.Keys(some)) {
			add(some[what], what)
		}
	}
	switch len(all) {
	case 0:
		return "nothing that can be counted is"
	case 1:
		return all[0] + map[bool]string{true: " is", false: " are"}[total == 1]
	}
	return strings.Join(all[:len(all)-1], ", ") + " and " + all[len(all)-1] + " are"
}

// serveDrain drains for the admin socket's caller. Who goes away ends the wait,
// not the drain.
func (n *node) serveDrain(w http.ResponseWriter, r *http.Request) {
	uid, ok := api.LocalAdmin(r.Context())
	if !ok {
		http.Error(w, "only root and the owner of the process may drain it", http.StatusForbidden)
		return
	}
	timeout, terr := time.ParseDuration(r.URL.Query().Get("timeout"))
	notice, nerr := time.ParseDuration(r.URL.Query().Get("notice"))
	if terr != nil || nerr != nil || timeout < 0 || timeout > maxDrain || notice < 0 || notice > maxNotice {
		http.Error(w, "timeout and notice: not durations within the bounds", http.StatusBadRequest)
		return
	}
	// The answer may take longer than requests may otherwise.
	if err := http.NewResponseController(w).SetReadDeadline(time.Time{}); err != nil {
		http.Error(w, "this connection cannot wait", http.StatusInternalServerError)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), timeout)
	defer cancel()
	n.log.Info("drain", "by", "local-admin:"+uid, "timeout", timeout)
	report, err := n.drain(ctx, min(notice, timeout))
	if err != nil {
		report.Problem, report.Hint = problemText(err)
	}
	answerWhole(w, err, report)
}

type drainCmd struct {
	Config  string        `name:"config" short:"c" env:"SALLY_CONFIG_FILE,TELEPORT_CONFIG_FILE" default:"/etc/sallyport.yaml" help:"Configuration of the running sallyport; says where its data directory is."`
	DataDir string        `name:"data-dir" env:"SALLY_DATA_DIR" help:"Data directory of the running sallyport, instead of --config."`
	Timeout time.Duration `name:"timeout" default:"5m" help:"How long to wait for what runs."`
	Notice  time.Duration `name:"notice" default:"5s" help:"How long balancers get to see that the health endpoint is red, before agents are sent away and the port closes; part of --timeout."`
	Format  string        `name:"format" short:"f" enum:"text,json,yaml" default:"text" help:"text, json or yaml."`
}

// Help shows examples.
func (*drainCmd) Help() string {
	return usage.Examples("sallyport drain --timeout=10m", "sallyport drain --timeout=1m --notice=20s    # then stop the service")
}

// Run asks the process on its admin socket, and waits. The exit code is 0 when
// nothing is left.
func (c *drainCmd) Run(p *program) error {
	if c.Timeout < 0 || c.Timeout > maxDrain || c.Notice < 0 || c.Notice > maxNotice {
		return &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: fmt.Sprintf("--timeout is at most %v and --notice at most %v", maxDrain, maxNotice)}
	}
	dir, err := dataDir(c.Config, c.DataDir)
	if err != nil {
		return err
	}
	var report drainReport
	q := question{method: http.MethodPost, path: fmt.Sprintf("/drain?timeout=%v&notice=%v", c.Timeout, c.Notice), within: c.Timeout + upgradeAnswer}
	if err := askAdmin(p.ctx, dir, q, &report); err != nil {
		return err
	}
	if c.Format != "text" {
		if err := output.Write(p.stdout, c.Format, &report); err != nil {
			return err
		}
	}
	if report.Problem != "" {
		return &sallyport.Problem{Kind: sallyport.ErrUnavailable, Fact: report.Problem, Hint: report.Hint}
	}
	if c.Format == "text" {
		_, err = fmt.Fprintf(p.stdout, "Drained in %.1f s: nothing is left.\n", report.TookMS/1000)
	}
	return err
}

// health is whether new work should be sent here, and why not.
func (n *node) health() (good bool, reason string) {
	switch {
	case n.upgrades.isHanded():
		return false, "handed over"
	case n.drains.on.Load():
		return false, "draining"
	case n.stopping.Load():
		return false, "stopping"
	case !n.reloads.up.Load():
		return false, "starting"
	}
	return true, "ok"
}

// serveHealth answers balancers: 200 or 503, and the reason.
func (n *node) serveHealth(w http.ResponseWriter, _ *http.Request) {
	good, reason := n.health()
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	if !good {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_, _ = io.WriteString(w, strings.TrimSpace(reason)+"\n")
}
