package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"sync"
	"syscall"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/sallyport/sallyport/cmd/internal/logsink"
	"github.com/sallyport/sallyport/dataplane/gateway"
	"github.com/sallyport/sallyport/dataplane/handover"
	"github.com/sallyport/sallyport/dataplane/handover/failpoint"
	"github.com/sallyport/sallyport/dataplane/relay"
	handoverv1 "github.com/sallyport/sallyport/wire/sallyport/handover/v1"
)

const (
	// canaryFD is where the canary finds its end of the talk: behind the three
	// standard descriptors.
	canaryFD = 3

	canaryReports = 250 * time.Millisecond
	canaryRoutes  = 200 // in one report

	// canaryLeaves is what the old process has to end the canary with the
	// service, after a signal that both have got.
	canaryLeaves = 5 * time.Second
)

// canaryCmd is the new program as a canary: a gateway without a port, that an old
// process gives connections and takes them back from.
type canaryCmd struct {
	Config string `name:"config" required:"" help:"Configuration file."`
}

// Run ends when the old process says so, or, when that has died, with the last
// connection.
func (c *canaryCmd) Run(p *program) error {
	signal.Ignore(syscall.SIGHUP, syscall.SIGUSR2) // meant for the process that has started it
	talk, err := handover.OpenTalk(canaryFD)
	if err != nil {
		return fmt.Errorf("only a running sallyport starts a canary: %w", err)
	}
	defer talk.Close()
	g := &guest{talk: talk, lines: p.sink(), log: slog.Default()}
	if err := g.open(c.Config); err != nil {
		fact, hint := problemText(err)
		_ = g.say(handoverv1.CanaryKind_CANARY_KIND_FAILED, &handoverv1.CanaryFailed{Reason: fact, Hint: hint})
		g.close()
		return err
	}
	defer g.close()
	return g.run(p.ctx)
}

// guest is the canary's process.
type guest struct {
	talk    *handover.Talk
	lines   *logsink.Sink
	log     *slog.Logger
	cfg     *config
	loops   []relay.Loop
	gateway *gateway.Gateway
	leases  *gateway.Borrower // nil without tunnels
	place   *remnantFile      // its record, whose lock tells that it lives; nil until it has been given it

	reporting sync.Mutex       // guards told, and keeps reports in their order
	told      gateway.Snapshot // in the last report
}

func (g *guest) say(kind handoverv1.CanaryKind, m proto.Message) error {
	r, err := canaryRecord(kind, m)
	if err != nil {
		return err
	}
	return g.talk.Send(context.Background(), r)
}

// canaryRecord has no descriptors.
func canaryRecord(kind handoverv1.CanaryKind, m proto.Message) (r handover.Record, err error) {
	r.Part, r.Kind = gateway.GuestPart, uint32(kind)
	if m != nil {
		r.Body, err = proto.Marshal(m)
	}
	return r, err
}

// open reads the configuration and starts a gateway from it.
func (g *guest) open(file string) (err error) {
	if g.cfg, err = loadConfig(file); err != nil {
		return err
	}
	g.log = logger(g.lines, g.cfg.Log).With("canary", os.Getpid())
	r, err := g.talk.Receive()
	if err != nil {
		return fmt.Errorf("the old process: %w", err)
	}
	g.keep(r.FDs)
	start := &handoverv1.CanaryStart{}
	if r.Kind != uint32(handoverv1.CanaryKind_CANARY_KIND_START) {
		return fmt.Errorf("the old process begins with a record of kind %d", r.Kind)
	}
	if err := proto.Unmarshal(r.Body, start); err != nil {
		return err
	}
	if err := failpoint.Hit("canary.new.start"); err != nil {
		return err
	}
	set, err := g.cfg.settings()
	if err != nil {
		return err
	}
	if g.loops, err = startLoops(g.cfg, g.log); err != nil {
		return err
	}
	config := gateway.Config{
		Cluster: start.GetCluster(), Loops: g.loops, Log: g.log,
		Static: set.Static, Silent: set.Silent, TrustedProxies: set.TrustedProxies, Idle: set.Idle, Bounds: set.Bounds,
	}
	if start.GetTunnels() {
		g.leases = gateway.NewBorrower(g.talk)
		config.Tunnels = g.leases
	}
	if g.gateway, err = gateway.StartGuest(config); err != nil {
		return err
	}
	g.told = g.gateway.Snapshot()
	if err := failpoint.Hit("canary.new.ready"); err != nil {
		return err
	}
	return g.say(handoverv1.CanaryKind_CANARY_KIND_READY, &handoverv1.CanaryReady{Version: version})
}

// keep takes over the file of its record, which came with the first word.
func (g *guest) keep(fds []int) {
	if len(fds) != 1 {
		closeFDs(fds) // of a version that keeps no record of canaries
		return
	}
	g.place = &remnantFile{os.NewFile(uintptr(fds[0]), "record")}
}

// close ends everything but its record, which ends with the process.
func (g *guest) close() {
	if g.gateway != nil {
		g.gateway.Close()
	}
	for _, l := range g.loops {
		l.Close()
	}
	runtime.KeepAlive(g.place)
}

// run serves until the old process ends the talk.
func (g *guest) run(asked context.Context) error {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	reported := make(chan struct{})
	go func() {
		defer close(reported)
		g.reportOn(ctx)
	}()
	// A signal to the whole service is the old process's to act on; one to this
	// process alone ends it too.
	defer context.AfterFunc(asked, func() {
		time.AfterFunc(canaryLeaves, g.talk.Close)
	})()
	err := g.obey()
	stop()
	<-reported
	if errors.Is(err, errCanaryEnds) || asked.Err() != nil {
		return nil
	}
	g.log.Error("this canary is on its own; what it has goes on", "reason", err)
	return g.serveOut(asked)
}

// errCanaryEnds: the old process has said so.
var errCanaryEnds = errors.New("told to end")

// obey does what the old process says.
func (g *guest) obey() error {
	for {
		r, err := g.talk.Receive()
		if err != nil {
			return err
		}
		switch handoverv1.CanaryKind(r.Kind) {
		case handoverv1.CanaryKind_CANARY_KIND_CONNECTION:
			if err := g.gateway.TakeConnection(r); err != nil {
				g.log.Error("a connection could not be taken", "error", err)
			}
			continue
		case handoverv1.CanaryKind_CANARY_KIND_LEASED, handoverv1.CanaryKind_CANARY_KIND_LEASE_FAILED:
			g.answer(r)
			continue
		}
		closeFDs(r.FDs)
		switch handoverv1.CanaryKind(r.Kind) {
		case handoverv1.CanaryKind_CANARY_KIND_RETURN:
			if err := g.giveBack(r.Body); err != nil {
				return err
			}
		case handoverv1.CanaryKind_CANARY_KIND_END:
			if err := failpoint.Hit("canary.new.end"); err != nil {
				return err
			}
			return errCanaryEnds
		}
	}
}

// answer passes on what came of a question for a lease.
func (g *guest) answer(r handover.Record) {
	if g.leases == nil {
		closeFDs(r.FDs)
		return
	}
	if err := g.leases.Answer(r); err != nil {
		g.log.Error("a lease could not be taken", "error", err)
	}
}

// giveBack sends what the old process has room for.
func (g *guest) giveBack(body []byte) error {
	m := &handoverv1.CanaryReturn{}
	if err := errors.Join(proto.Unmarshal(body, m), failpoint.Hit("canary.new.return")); err != nil {
		return err
	}
	given, left := g.gateway.GiveBack(int(m.GetMost()), func(r handover.Record) bool {
		sent, err := g.talk.TrySend(r)
		return sent && err == nil
	})
	if left == 0 { // nothing that was counted is to be missing
		if err := g.sayReport(context.Background()); err != nil {
			return err
		}
	}
	if err := failpoint.Hit("canary.new.returned"); err != nil {
		return err
	}
	return g.say(handoverv1.CanaryKind_CANARY_KIND_RETURNED, &handoverv1.CanaryReturned{Given: uint32(given), Left: uint32(left)})
}

// reportOn says every so often what has come of the connections.
func (g *guest) reportOn(ctx context.Context) {
	tick := time.NewTicker(canaryReports)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if failpoint.Hit("canary.new.report") != nil {
			continue
		}
		if g.leases != nil {
			g.leases.Flush()
		}
		if g.sayReport(ctx) != nil {
			return // the old process is gone, or this one ends
		}
	}
}

func (g *guest) sayReport(ctx context.Context) error {
	g.reporting.Lock()
	defer g.reporting.Unlock()
	for _, m := range g.reportLocked() {
		r, err := canaryRecord(handoverv1.CanaryKind_CANARY_KIND_REPORT, m)
		if err == nil {
			err = g.talk.Send(ctx, r)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// reportLocked is what has come since the last one, in as many pieces as it
// takes.
func (g *guest) reportLocked() (out []*handoverv1.CanaryReport) {
	now, t := g.gateway.Snapshot(), g.gateway.Tally()
	d := now.Since(g.told)
	g.told = now
	m := &handoverv1.CanaryReport{Outcomes: d.Outcomes, BytesIn: d.BytesIn, BytesOut: d.BytesOut}
	for {
		m.Relays, m.Waiting, m.Results, m.FirstByte = uint64(d.Relays), uint64(d.Waiting), t.Results, t.FirstByte
		some := d.Routes[:min(canaryRoutes, len(d.Routes))]
		for _, r := range some {
			m.Routes = append(m.Routes, &handoverv1.CanaryRoute{Name: r.Name, BytesIn: r.BytesIn, BytesOut: r.BytesOut, Results: r.Results, Relays: int64(r.Relays)})
		}
		out = append(out, m)
		if d.Routes = d.Routes[len(some):]; len(d.Routes) == 0 {
			return out
		}
		m = &handoverv1.CanaryReport{}
	}
}

// serveOut stays for the connections that are left when the old process has
// died, or asks for none any more: until they end, for upgrade.drain at most, or
// until a signal.
func (g *guest) serveOut(asked context.Context) error {
	since := time.Now()
	report := remnantReport{PID: os.Getpid(), Version: version, Since: since, Until: since.Add(g.cfg.Upgrade.drain()), Canary: true}
	hold := func() int {
		s := g.gateway.Snapshot()
		report.Holds = map[string]int{"relays": s.Relays}
		return s.Relays + s.Waiting
	}
	if hold() == 0 {
		return nil
	}
	var err error
	if g.place == nil {
		g.place, err = openRemnant(g.cfg.DataDir, report)
	} else {
		err = g.place.say(report)
	}
	if err != nil {
		g.log.Warn("sallyport status does not show what this canary has", "error", err)
	}
	limit := time.NewTimer(time.Until(report.Until))
	defer limit.Stop()
	tick := time.NewTicker(stayTick)
	defer tick.Stop()
	for said := since; hold() > 0; {
		select {
		case <-tick.C:
		case <-limit.C:
			g.log.Warn("the time for what was left has passed", "relays", report.Holds["relays"])
			return nil
		case <-asked.Done():
			return nil
		}
		if g.place != nil && time.Since(said) > remnantRefresh {
			said = time.Now()
			_ = g.place.say(report) // it was said once that this fails
		}
	}
	return nil
}
