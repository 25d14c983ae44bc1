package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/cmd/internal/output"
	"github.com/sallyport/sallyport/controlplane/client"
)

const statusTimeout = 5 * time.Second

// nodeStatus is what a running process says of itself on its admin socket.
type nodeStatus struct {
	Version    string         `json:"version"`
	PID        int            `json:"pid"`
	Since      time.Time      `json:"since"`
	Roles      []string       `json:"roles"`
	Cluster    string         `json:"cluster"`
	Goroutines int            `json:"goroutines"`
	Health     string         `json:"health"`           // "ok", or why nobody should be sent here
	Reload     *reloadReport  `json:"reload,omitempty"` // the last one
	Auth       *authStatus    `json:"auth,omitempty"`
	Gateway    *gatewayStatus `json:"gateway,omitempty"`
	Agent      *agentStatus   `json:"agent,omitempty"`

	Upgrades []upgradeReport `json:"upgrades"` // the last ones of this data directory, oldest first
	Remnants []remnantReport `json:"remnants"` // old processes that still have work, and canaries that kept some
	Canary   *canaryStatus   `json:"canary,omitempty"`
}

type authStatus struct {
	Store *storeStatus `json:"store,omitempty"` // nil of an etcd cluster, and while the store is closed
}

// storeStatus is etcd.Space for programs.
type storeStatus struct {
	Bytes   int64 `json:"bytes"`
	InUse   int64 `json:"in_use_bytes"`
	Quota   int64 `json:"quota_bytes"`
	Reserve int64 `json:"reserve_bytes"`
}

type gatewayStatus struct {
	Contact  *time.Time    `json:"last_contact_with_auth,omitempty"` // nil with static routes alone
	Stale    string        `json:"snapshot_refused,omitempty"`       // why auth's newest is not taken
	Listen   []string      `json:"listen"`
	Relays   int           `json:"relays"`
	Waiting  int           `json:"waiting"`
	HalfOpen int           `json:"half_open"`
	Routes   []routeStatus `json:"routes"` // that have had connections
	Servers  int           `json:"servers"`
	Down     []downServer  `json:"servers_down"` // as far as clients have found out

	LeasesWaiting int `json:"leases_waiting"`

	BytesIn  uint64            `json:"bytes_in"`
	BytesOut uint64            `json:"bytes_out"`
	Outcomes map[string]uint64 `json:"outcomes"`
	Tunnel   map[string]uint64 `json:"tunnel_outcomes"`
	Tunnels  []tunnelStatus    `json:"tunnels"`
}

// routeStatus is gateway.RouteSnapshot for programs.
type routeStatus struct {
	Name     string            `json:"name"`
	Relays   int               `json:"relays"`
	BytesIn  uint64            `json:"bytes_in"`
	BytesOut uint64            `json:"bytes_out"`
	Results  map[string]uint64 `json:"results"`
}

// downServer is gateway.DownServer for programs.
type downServer struct {
	Address    string     `json:"address"`
	Failed     *time.Time `json:"last_failed,omitempty"` // nil: what it was asked went well
	Unresolved bool       `json:"unresolved"`
}

func (d downServer) line() string {
	var why []string
	if d.Unresolved {
		why = append(why, "its name is not resolved")
	}
	if d.Failed != nil {
		why = append(why, "the last connection failed, at "+d.Failed.Local().Format(time.DateTime))
	}
	return d.Address + ": " + strings.Join(why, "; ")
}

type tunnelStatus struct {
	Agent     string    `json:"agent"`
	Version   string    `json:"version"`
	Since     time.Time `json:"since"`
	Resources int       `json:"resources"`
	Streams   int       `json:"streams"`
	Parked    int       `json:"parked"`
	Pending   int       `json:"pending"`
	Target    int       `json:"target"`
	RTTMicros int64     `json:"rtt_us"`
}

type agentStatus struct {
	Sessions  int               `json:"sessions"`
	Streams   int               `json:"streams"`
	Refused   map[string]uint64 `json:"refused"`
	Snapshot  uint64            `json:"snapshot_revision"`
	Contact   time.Time         `json:"last_contact_with_auth"`
	Stale     string            `json:"snapshot_refused,omitempty"` // why auth's newest is not taken
	Spool     spoolStatus       `json:"audit_spool"`
	Resources []string          `json:"resources"`
}

type spoolStatus struct {
	Sequence     uint64 `json:"sequence"`
	Acknowledged uint64 `json:"acknowledged"`
	Bytes        int64  `json:"bytes"`
	MaxBytes     int64  `json:"max_bytes"`
	Refusing     bool   `json:"refusing"`
	Problem      string `json:"problem,omitempty"`
}

func (n *node) status() nodeStatus {
	s := nodeStatus{Version: version, PID: os.Getpid(), Since: n.since, Roles: n.cfg.Roles, Cluster: n.cluster(), Goroutines: runtime.NumGoroutine()}
	_, s.Health = n.health()
	s.Reload = n.reloads.last.Load()
	if c := n.canary.Load(); c != nil {
		s.Canary = c.status()
	}
	if a := n.shownAuth.Load(); a != nil {
		s.Auth = a.status()
	}
	if g := n.shownGateway.Load(); g != nil {
		s.Gateway = g.status()
	}
	if a := n.shownAgent.Load(); a != nil {
		s.Agent = a.status()
	}
	return s
}

func (a *auth) status() *authStatus {
	s := &authStatus{}
	if store := a.shownStore.Load(); store != nil {
		if space, ok := store.Space(); ok {
			shown := storeStatus{Bytes: space.Size, InUse: space.InUse, Quota: space.Quota, Reserve: space.Reserve}
			s.Store = &shown
		}
	}
	return s
}

func (r *gatewayRole) status() *gatewayStatus {
	g := r.gateway.Snapshot()
	s := &gatewayStatus{Relays: g.Relays, Waiting: g.Waiting, BytesIn: g.BytesIn, BytesOut: g.BytesOut, Outcomes: g.Outcomes, Routes: []routeStatus{}, Tunnels: []tunnelStatus{}, Servers: g.Servers, Down: []downServer{}}
	for _, route := range g.Routes {
		s.Routes = append(s.Routes, routeStatus(route))
	}
	for _, at := range g.Down {
		d := downServer{Address: at.Address, Unresolved: at.Unresolved}
		if !at.Failed.IsZero() {
			d.Failed = &at.Failed
		}
		s.Down = append(s.Down, d)
	}
	for _, a := range r.gateway.Addrs() {
		s.Listen = append(s.Listen, a.String())
	}
	if r.hub == nil {
		return s
	}
	contact, stale := heard(r.host.Keeper())
	s.Contact, s.Stale = &contact, stale
	h := r.hub.Status()
	s.HalfOpen, s.LeasesWaiting, s.Tunnel = h.HalfOpen, h.Waiting, h.Counters
	for _, t := range h.Tunnels {
		s.Tunnels = append(s.Tunnels, tunnelStatus{Agent: t.AgentID, Version: t.Version, Since: t.Since, Resources: t.Resources, Streams: t.Streams, Parked: t.Parked, Pending: t.Pending, Target: t.Target, RTTMicros: t.RoundTrip.Microseconds()})
	}
	return s
}

// heard is when auth was last heard, and why what it says now is not taken: fact
// and next step.
func heard(k *client.Keeper) (contact time.Time, stale string) {
	if t, _ := k.Trust(); t != nil {
		contact = t.IssuedAt
	}
	err := k.Refusal()
	if err == nil {
		return contact, ""
	}
	var p *sallyport.Problem
	if errors.As(err, &p) && p.Hint != "" {
		return contact, p.Fact + "; " + p.Hint
	}
	return contact, err.Error()
}

func (r *agentRole) status() *agentStatus {
	spool := r.spool.Status()
	s := &agentStatus{
		Sessions: r.agent.Door.Sessions(), Streams: r.agent.Streams(), Refused: r.agent.Door.Refused(), Snapshot: r.host.Keeper().Revision(),
		Spool: spoolStatus{spool.Sequence, spool.Acknowledged, spool.Bytes, spool.MaxBytes, spool.Refusing, spool.Problem},
	}
	s.Contact, s.Stale = heard(r.host.Keeper())
	for _, res := range r.host.Resources() {
		s.Resources = append(s.Resources, string(res.Kind)+"/"+res.Name)
	}
	return s
}

// serveStatus adds the process's own state to what the admin socket serves.
func (n *node) serveStatus(api http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		s := n.status()
		s.Upgrades, s.Remnants = append([]upgradeReport{}, readHistory(n.cfg.DataDir)...), append([]remnantReport{}, n.remnants()...)
		s.Remnants = s.Remnants[:min(len(s.Remnants), remnantsMost)]
		json.NewEncoder(w).Encode(s)
	})
	mux.Handle("GET /metrics", metricsHandler(n))
	mux.HandleFunc("GET /healthz", n.serveHealth)
	mux.HandleFunc("POST /reload", n.serveReload)
	mux.HandleFunc("POST /upgrade", n.serveUpgrade)
	mux.HandleFunc("POST /drain", n.serveDrain)
	if api != nil {
		mux.Handle("/", api)
	}
	return mux
}

type statusCmd struct {
	Config  string `name:"config" short:"c" env:"SALLY_CONFIG_FILE,TELEPORT_CONFIG_FILE" default:"/etc/sallyport.yaml" help:"Configuration of the running sallyport; says where its data directory is."`
	DataDir string `name:"data-dir" env:"SALLY_DATA_DIR" help:"Data directory of the running sallyport, instead of --config."`
	Format  string `name:"format" short:"f" enum:"text,json,yaml" default:"text" help:"text, json or yaml."`
}

// Run asks the process on its admin socket.
func (c *statusCmd) Run(p *program) error {
	dir, err := dataDir(c.Config, c.DataDir)
	if err != nil {
		return err
	}
	var s nodeStatus
	if err := askAdmin(p.ctx, dir, question{method: http.MethodGet, path: "/status", within: statusTimeout}, &s); err != nil {
		return err
	}
	if c.Format == "text" {
		return s.print(p.stdout)
	}
	return output.Write(p.stdout, c.Format, &s)
}

// routesShown is how many routes fit before a person.
const routesShown = 20

func (s *nodeStatus) print(w io.Writer) error {
	row := func(name string, format string, args ...any) {
		fmt.Fprintf(w, "%-18s%s\n", name, fmt.Sprintf(format, args...))
	}
	row("Version", "%s, process %d, up since %s", s.Version, s.PID, s.Since.Local().Format(time.DateTime))
	row("Roles", "%s", strings.Join(s.Roles, ", "))
	row("Cluster", "%s", orText(s.Cluster, "none"))
	if s.Health != "ok" {
		row("Health", "RED: %s", s.Health)
	}
	if s.Canary != nil {
		s.Canary.print(row)
	}
	s.printUpgrades(row)
	if r := s.Reload; r != nil {
		switch {
		case r.Problem != "":
			row("Reload", "REFUSED at %s: %s", r.Time.Local().Format(time.DateTime), r.Problem)
		case len(r.NeedsRestart) > 0:
			row("Reload", "%s; not in effect yet: %s", r.Time.Local().Format(time.DateTime), r.waiting())
		default:
			row("Reload", "%s", r.Time.Local().Format(time.DateTime))
		}
	}
	if a := s.Auth; a != nil && a.Store != nil {
		row("Auth", "store %d MiB, %d in use, of %d", a.Store.Bytes>>20, a.Store.InUse>>20, a.Store.Quota>>20)
	}
	if g := s.Gateway; g != nil {
		row("Gateway", "listens on %s; %s, %d waiting, %d half-open", strings.Join(g.Listen, ", "), counted(g.Relays, "relay"), g.Waiting, g.HalfOpen)
		if g.Contact != nil {
			row("  auth", "%s", contactLine(*g.Contact, g.Stale))
		}
		for i, r := range g.Routes {
			if i == routesShown {
				row("  routes", "%d more; --format=json has all", len(g.Routes)-i)
				break
			}
			row("  route", "%s: %s, %d relayed, %d unreachable, %d refused", r.Name, counted(r.Relays, "relay"), r.Results["relayed"], r.Results["unreachable"], r.Results["refused"])
		}
		for i, d := range g.Down {
			if i == routesShown {
				row("  servers", "%d more DOWN; --format=json has all", len(g.Down)-i)
				break
			}
			row("  server", "DOWN: %s", d.line())
		}
		for _, t := range g.Tunnels {
			row("  tunnel", "agent %s: %s, %s, %d parked, round trip %d us", t.Agent, counted(t.Resources, "resource"), counted(t.Streams, "stream"), t.Parked, t.RTTMicros)
		}
	}
	if a := s.Agent; a != nil {
		row("Agent", "%s; serves %s", counted(a.Sessions, "session"), strings.Join(a.Resources, ", "))
		row("  auth", "%s", contactLine(a.Contact, a.Stale))
		row("  audit spool", "%d events wait for auth, %d of %d MiB%s", a.Spool.Sequence-a.Spool.Acknowledged, a.Spool.Bytes>>20, a.Spool.MaxBytes>>20, map[bool]string{true: "; REFUSING SESSIONS: " + a.Spool.Problem}[a.Spool.Refusing])
	}
	return nil
}

func contactLine(contact time.Time, stale string) string {
	line := "no contact yet"
	if !contact.IsZero() {
		line = "last contact " + contact.Local().Format(time.DateTime)
	}
	if stale != "" {
		line += "; REFUSED: " + stale
	}
	return line
}

// upgradesShown is how many past upgrades fit before a person.
const upgradesShown = 5

func (s *nodeStatus) printUpgrades(row func(name, format string, args ...any)) {
	for i := range s.Upgrades {
		u := &s.Upgrades[len(s.Upgrades)-1-i]
		if i == upgradesShown {
			row("  upgrades", "%d more; --format=json has the last %d", len(s.Upgrades)-i, historyMost)
			break
		}
		row("Upgrade", "%s", u.line())
	}
	now := time.Now()
	for _, r := range s.Remnants {
		if r.Canary {
			row("Canary left", "%d, version %s, on its own for %s, has %s, at most until %s", r.PID, r.Version, age(now.Sub(r.Since)),
				orText(strings.Join(countsOf(r.Holds), ", "), "connections"), r.Until.Local().Format(time.DateTime))
			continue
		}
		row("Old process", "%d, version %s, handed over %s ago, has %s, at most until %s", r.PID, r.Version, age(now.Sub(r.Since)),
			orText(strings.Join(countsOf(r.Holds), ", "), "connections that end now"), r.Until.Local().Format(time.DateTime))
	}
}
