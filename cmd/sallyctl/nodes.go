package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/sallyport/sallyport/cmd/internal/fail"
	"github.com/sallyport/sallyport/cmd/internal/output"
	"github.com/sallyport/sallyport/cmd/internal/table"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
)

type nodesCmd struct {
	Ls nodesLsCmd `cmd:"" default:"1" help:"List agents that are connected, or all hosts that have joined."`
	Rm nodesRmCmd `cmd:"" help:"Remove agents and gateways from the cluster for good."`
}

type nodesLsCmd struct {
	format
	All bool `name:"all" short:"a" help:"All hosts that have joined: also agents that are away, and gateways."`
}

type agentJSON struct {
	ID        string     `json:"id"`
	Kind      string     `json:"kind,omitempty"`     // agent or gateway; an older auth does not tell
	Hostname  string     `json:"hostname,omitempty"` // as it joined; an older auth does not tell
	Online    *bool      `json:"online,omitempty"`   // with --all
	Joined    *time.Time `json:"joined,omitempty"`   // with --all
	Version   string     `json:"version"`
	Gateways  []string   `json:"gateways"`
	Resources uint32     `json:"resources"`
}

// Run lists hosts.
func (c *nodesLsCmd) Run(p *program) error {
	api, err := p.admin()
	if err != nil {
		return err
	}
	m, err := call(p, api.ListAgents, &sallyportv1.ListAgentsRequest{All: c.All})
	if err != nil {
		return err
	}
	if c.Format != "text" {
		out := []agentJSON{}
		for _, a := range m.GetAgents() {
			out = append(out, c.json(a))
		}
		return output.Write(p.stdout, c.Format, out)
	}
	var rows [][]string
	for _, a := range m.GetAgents() {
		id, name, resources := a.GetId(), fail.Clean(a.GetHostName()), fmt.Sprint(a.GetResources())
		if c.All {
			rows = append(rows, []string{id, a.GetKind(), name, map[bool]string{true: "yes", false: "no"}[a.GetOnline()], dateOf(a.GetJoined()), resources})
			continue
		}
		rows = append(rows, []string{id, name, fail.Clean(a.GetVersion()), strings.Join(a.GetGateways(), ","), resources})
	}
	if c.All {
		return table.Write(p.stdout, 0, []string{"Host ID", "Kind", "Host Name", "Online", "Joined", "Resources"}, rows)
	}
	return table.Write(p.stdout, 0, []string{"Agent ID", "Host Name", "Version", "Gateways", "Resources"}, rows)
}

func (c *nodesLsCmd) json(a *sallyportv1.AgentStatus) agentJSON {
	out := agentJSON{ID: a.GetId(), Kind: a.GetKind(), Hostname: a.GetHostName(), Version: a.GetVersion(), Gateways: a.GetGateways(), Resources: a.GetResources()}
	if c.All {
		online, joined := a.GetOnline(), a.GetJoined().AsTime()
		out.Online, out.Joined = &online, &joined
	}
	return out
}

func dateOf(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	return t.AsTime().Local().Format(time.DateOnly)
}

type nodesRmCmd struct {
	IDs   []string `arg:"" name:"id" help:"Ids, as nodes ls --all shows them."`
	Force bool     `name:"force" short:"f" help:"Remove hosts that are online too: their tunnels and sessions end."`
}

// Run removes hosts, and says what has become free.
func (c *nodesRmCmd) Run(p *program) error {
	api, err := p.admin()
	if err != nil {
		return err
	}
	for _, id := range c.IDs {
		m, err := call(p, api.RemoveHost, &sallyportv1.RemoveHostRequest{Id: id, Force: c.Force})
		if err != nil {
			return err
		}
		fmt.Fprintf(p.stdout, "%s %s (%s) has been removed. Its certificates are good for nothing any more; to come back it joins with a new token and an empty data directory.\n",
			kindOf(m), id, fail.Clean(m.GetHostName()))
		if names := m.GetNames(); len(names) > 0 {
			fmt.Fprintf(p.stdout, "Free names: %s\n", strings.Join(names, ", "))
		}
	}
	return nil
}

func kindOf(m *sallyportv1.RemoveHostResponse) string {
	if m.GetKind() == "" {
		return "host" // its record went in an earlier call that was cut short
	}
	return m.GetKind()
}

// isHost takes tctl's word for a host too, and what it is called here.
func isHost(kind string) bool {
	return slices.Contains([]string{"node", "nodes", "agent", "agents", "gateway", "gateways", "proxy"}, strings.ToLower(kind))
}
