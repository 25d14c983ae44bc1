package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/gateway"
)

// reloadWait bounds what a reload waits for: looking up the names of new upstreams.
const reloadWait = 10 * time.Second

// reloadReport is what a reload came to.
type reloadReport struct {
	Time         time.Time     `json:"time"`
	Routes       *routeChanges `json:"routes,omitempty"` // without the role gateway nil
	Certificates int           `json:"certificates"`     // that are others than before
	Changed      []string      `json:"changed"`          // fields that took effect
	NeedsRestart []string      `json:"needs_restart"`    // fields that did not, and will after an upgrade or a restart
	Problem      string        `json:"problem,omitempty"`
	Hint         string        `json:"hint,omitempty"`
}

// routeChanges is gateway.Difference for programs.
type routeChanges struct {
	Added   int `json:"added"`
	Changed int `json:"changed"`
	Removed int `json:"removed"`
	Kept    int `json:"kept"`
}

// reloader keeps what a reload starts from.
type reloader struct {
	file  string // "" without one: nothing can be reloaded
	level *slog.LevelVar

	up   atomic.Bool // the roles are open
	last atomic.Pointer[reloadReport]

	now  atomic.Pointer[config] // what is in effect; nil for what the process started with
	read *reading               // the file, the last time that it was good; of who has upgrader.turn
}

// reload reads the file again and applies what has changed, all of it or none.
// Why it was refused is in the report, in the log, and returned. While an upgrade
// runs it is refused, at once: the new process may have read the file before, and
// what is applied here would end with this one.
func (n *node) reload(ctx context.Context, by string) (*reloadReport, error) {
	free := n.upgrades.turn.take(true)
	if free {
		defer n.upgrades.turn.end()
	}
	return n.reloadAs(ctx, by, free)
}

// reloadOnceFree reloads when no upgrade is under way, for who gets no answer that
// he could act on, and in the process that serves then: it is told by the same
// signal.
func (n *node) reloadOnceFree(ctx context.Context, by string) {
	before := !n.upgrades.isHanded()
	n.upgrades.turn.await()
	defer n.upgrades.turn.end()
	switch {
	case !n.upgrades.isHanded():
		_, _ = n.reloadAs(ctx, by, true) // the log has it
	case before:
		n.tell(syscall.Kill(n.upgrades.heir, syscall.SIGHUP))
	case !n.upgrades.standIn.Load(): // which has passed it on
		_, _ = n.reloadAs(ctx, by, true) // refused; the log has it
	}
}

// reloadAs is a reload. free is false when the turn is an upgrade's.
func (n *node) reloadAs(ctx context.Context, by string, free bool) (*reloadReport, error) {
	r := &n.reloads
	ctx, cancel := context.WithTimeout(ctx, reloadWait)
	defer cancel()
	report := &reloadReport{Time: time.Now(), Changed: []string{}, NeedsRestart: []string{}}
	var err error
	if free {
		if u := n.upgrades.ctx; u != nil { // whose end waits for the turn
			defer context.AfterFunc(u, cancel)()
		}
		err = n.reloadLocked(ctx, report)
	} else {
		err = busy("try again when it has ended: sallyport status tells")
	}
	if err != nil {
		report.Problem, report.Hint = problemText(err)
		n.log.Error("reload refused; everything stays as it was", "by", by, "reason", err)
	} else {
		n.log.Info("reloaded", "by", by, "changed", strings.Join(report.Changed, ","), "certificates", report.Certificates,
			"took", time.Since(report.Time).Round(time.Millisecond))
		if len(report.NeedsRestart) > 0 {
			n.log.Warn("changes that a reload does not take have no effect yet", "fields", report.waiting())
		}
	}
	r.last.Store(report)
	return report, err
}

// reloadLocked prepares all that can fail, and then applies it.
func (n *node) reloadLocked(ctx context.Context, report *reloadReport) error {
	r := &n.reloads
	if r.file == "" || n.demo != nil {
		return &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: "this process has no configuration file to read again"}
	}
	if n.upgrades.isHanded() {
		return errHandedAway()
	}
	if !r.up.Load() {
		return &sallyport.Problem{Kind: sallyport.ErrUnavailable, Fact: "this process is still starting", Hint: "it reads the configuration as it was when it began; reload it when it is up"}
	}
	n.tell(n.keeping.manager.Reloading())
	defer func() { n.tell(n.keeping.manager.Ready()) }() // refused or not: it serves
	if c := n.canary.Load(); c != nil {
		return errCanary(c)
	}
	next, read, err := loadConfigAgain(r.file, n.cluster(), r.read)
	if err != nil {
		return err
	}
	r.read = read
	old := r.now.Load()
	if old == nil {
		old = n.cfg
	}
	effective := *n.cfg
	effective.takeOver(next)
	for _, path := range differences(old, &effective) {
		if n.cfg.concerns(path) {
			report.Changed = append(report.Changed, path)
		}
	}
	for _, path := range differences(&effective, next) {
		if n.cfg.concerns(path) {
			report.NeedsRestart = append(report.NeedsRestart, path)
		}
	}
	apply, err := n.prepareReload(&effective, report)
	if err != nil {
		return err
	}
	if g := n.shownGateway.Load(); g != nil {
		d, err := g.reload(ctx, &effective)
		if err != nil {
			return err
		}
		changes := routeChanges(d)
		report.Routes = &changes
	}
	apply()
	r.now.Store(&effective)
	return nil
}

// prepareReload does what can fail for files and databases; apply cannot.
func (n *node) prepareReload(c *config, report *reloadReport) (apply func(), err error) {
	var steps []func()
	if g := n.shownGateway.Load(); g != nil && g.host != nil {
		certs, err := loadCertificates(c.Gateway.Certificates)
		if err == nil {
			err = current(c.Gateway.Certificates, certs, time.Now())
		}
		if err != nil {
			return nil, err
		}
		report.Certificates = otherCertificates(*g.certs.Load(), certs)
		steps = append(steps, func() { g.certs.Store(&certs) })
	}
	if a := n.shownAgent.Load(); a != nil {
		step, err := a.prepareReload(c)
		if err != nil {
			return nil, err
		}
		steps = append(steps, step)
	}
	if n.reloads.level != nil {
		steps = append(steps, func() { n.reloads.level.Set(levelOf(c.Log)) })
	}
	return func() {
		for _, step := range steps {
			step()
		}
	}, nil
}

// takeOver takes from next what a running process can take.
func (c *config) takeOver(next *config) {
	g, from := &c.Gateway, &next.Gateway
	g.ProxyProtocol, g.Certificates, g.Routes, g.Upstreams = from.ProxyProtocol, from.Certificates, from.Routes, from.Upstreams
	g.Silent = from.Silent
	l, limits := &g.Limits, &from.Limits
	l.Handshake, l.Connect, l.Idle = limits.Handshake, limits.Connect, limits.Idle
	l.WaitingPerSource, l.Waiting, l.RatePerSource, l.LargeHellos = limits.WaitingPerSource, limits.Waiting, limits.RatePerSource, limits.LargeHellos
	l.WebPerSource, l.Web = limits.WebPerSource, limits.Web
	a := &next.Agent
	c.Agent.Group, c.Agent.SSH, c.Agent.Databases, c.Agent.TCP = a.Group, a.SSH, a.Databases, a.TCP
	c.Agent.Kubernetes = a.Kubernetes
	c.Agent.Apps = a.Apps
	c.Log.Level = next.Log.Level
	c.Upgrade = next.Upgrade
}

// concerns says that a field is read by what this process runs.
func (c *config) concerns(path string) bool {
	section, _, _ := strings.Cut(path, ".")
	switch section {
	case roleAuth, roleGateway, roleAgent:
		return c.has(section)
	}
	return true
}

// differences are the fields whose values differ, by their paths; of lists and
// mappings the whole.
func differences(a, b *config) []string {
	return appendDifferences(nil, reflect.ValueOf(a).Elem(), reflect.ValueOf(b).Elem(), "")
}

func appendDifferences(out []string, a, b reflect.Value, path string) []string {
	if a.Kind() != reflect.Struct {
		if !reflect.DeepEqual(a.Interface(), b.Interface()) && (a.Kind() != reflect.Slice && a.Kind() != reflect.Map || a.Len() > 0 || b.Len() > 0) {
			out = append(out, path)
		}
		return out
	}
	for i := range a.NumField() {
		out = appendDifferences(out, a.Field(i), b.Field(i), below(path, a.Type().Field(i).Tag.Get("yaml")))
	}
	return out
}

// cluster is the cluster's name as far as this process knows it.
func (n *node) cluster() string {
	if g := n.shownGateway.Load(); g != nil && g.host != nil {
		return g.host.Cluster()
	}
	if a := n.shownAgent.Load(); a != nil {
		return a.host.Cluster()
	}
	return n.cfg.Cluster
}

// reloadOn reloads at each signal. Signals that come meanwhile are one.
func (n *node) reloadOn(ctx context.Context, signals <-chan os.Signal) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-signals:
			n.reloadOnceFree(ctx, "SIGHUP")
		}
	}
}

// reload gives the gateway its new settings.
func (r *gatewayRole) reload(ctx context.Context, c *config) (gateway.Difference, error) {
	s, err := c.settings()
	if err != nil {
		return gateway.Difference{}, err
	}
	return r.gateway.Reload(ctx, s)
}

// loadCertificates reads the certificates of the web origin.
func loadCertificates(files []certificateConfig) ([]tls.Certificate, error) {
	var out []tls.Certificate
	for i, c := range files {
		cert, err := tls.LoadX509KeyPair(c.Cert, c.Key)
		if err != nil {
			return nil, &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: fmt.Sprintf("gateway.certificates[%d]: %v", i, err),
				Hint: "cert holds the chain and key its key, both PEM", Cause: err}
		}
		if cert.Leaf == nil {
			if cert.Leaf, err = x509.ParseCertificate(cert.Certificate[0]); err != nil {
				return nil, err
			}
		}
		out = append(out, cert)
	}
	return out, nil
}

// current refuses certificates that clients would refuse.
func current(files []certificateConfig, certs []tls.Certificate, now time.Time) error {
	for i := range certs {
		leaf := certs[i].Leaf
		if now.After(leaf.NotAfter) || now.Before(leaf.NotBefore) {
			return &sallyport.Problem{Kind: sallyport.ErrInvalid, Hint: "put the renewed one there and reload again",
				Fact: fmt.Sprintf("gateway.certificates[%d]: %s is good from %s to %s, which is not now", i, files[i].Cert,
					leaf.NotBefore.UTC().Format(time.RFC3339), leaf.NotAfter.UTC().Format(time.RFC3339))}
		}
	}
	return nil
}

func otherCertificates(old, now []tls.Certificate) (n int) {
	for i := range now {
		same := func(c tls.Certificate) bool { return bytes.Equal(c.Certificate[0], now[i].Certificate[0]) }
		if !slices.ContainsFunc(old, same) {
			n++
		}
	}
	return n + max(0, len(old)-len(now))
}

// databases are the servers of this moment, and those that sessions may still use.
type databases struct {
	configured map[string]databaseConfig
	servers    map[string]databaseServer
	retired    []databaseServer
}

// retiredMost databases are still asked to cancel a statement after their
// configuration has changed.
const retiredMost = 64

// change makes what c says; what has not changed stays the same server.
func (d *databases) change(c []databaseConfig, open func(databaseConfig) (databaseServer, error)) (*databases, error) {
	next := &databases{configured: map[string]databaseConfig{}, servers: map[string]databaseServer{}}
	for _, db := range c {
		if was, there := d.configured[db.Name]; there && was.Address == db.Address && was.TLS == db.TLS && was.Protocol == db.Protocol {
			next.servers[db.Name] = d.servers[db.Name]
		} else {
			s, err := open(db)
			if err != nil {
				return nil, err
			}
			next.servers[db.Name] = s
		}
		next.configured[db.Name] = db
	}
	next.retired = slices.Clone(d.retired)
	for name, s := range d.servers {
		if next.servers[name] != s {
			next.retired = append(next.retired, s)
		}
	}
	next.retired = next.retired[max(0, len(next.retired)-retiredMost):]
	return next, nil
}

// prepareReload makes new databases; the step that it returns cannot fail.
func (r *agentRole) prepareReload(c *config) (step func(), err error) {
	next, err := r.databases.Load().change(c.Agent.Databases, r.openDatabase)
	if err != nil {
		return nil, err
	}
	served, err := r.clusters.Load().change(c.Agent.Kubernetes, r.openCluster)
	if err != nil {
		return nil, err
	}
	web, err := r.apps.Load().change(c.Agent.Apps, r.openApp)
	if err != nil {
		return nil, err
	}
	resources := c.resources()
	if err := r.agent.Check(resources); err != nil {
		return nil, err
	}
	return func() {
		r.databases.Store(next)
		r.clusters.Swap(served).release(served)
		r.anywhere.Store(c.Agent.SSH.ListenAnywhere)
		r.apps.Swap(&web).release(web)
		if err := r.agent.SetResources(resources); err != nil {
			r.log.Error("resources of a reload", "error", err) // checked above
		}
		r.host.SetResources(resources)
	}, nil
}
