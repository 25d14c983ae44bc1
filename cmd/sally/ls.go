package main

import (
	"fmt"
	"runtime"
	"slices"
	"strings"

	"connectrpc.com/connect"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/cmd/internal/fail"
	"github.com/sallyport/sallyport/cmd/internal/output"
	"github.com/sallyport/sallyport/cmd/internal/shell"
	"github.com/sallyport/sallyport/cmd/internal/table"
	"github.com/sallyport/sallyport/controlplane/client"
	"github.com/sallyport/sallyport/controlplane/rbac"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
)

// tunnelMark stands where tsh shows that a node is reached by its tunnel.
const tunnelMark = "⟵ Tunnel"

// filter is how listings are narrowed.
type filter struct {
	Labels []string `arg:"" optional:"" help:"Labels to match: key=value,key2=value2."`
	Search []string `name:"search" placeholder:"WORDS" help:"Words that name, labels or description must all hold."`

	Query string `name:"query" placeholder:"PREDICATE" help:"A condition, for example labels[\"env\"] == \"prod\" && hasPrefix(name, \"web-\")."`

	All bool `name:"all" short:"R" hidden:"" negatable:""` // there is one cluster
}

type lsCmd struct {
	filter
	Format  string `name:"format" short:"f" enum:"text,json,yaml,names" default:"text" placeholder:"FORMAT" help:"text, json, yaml or names."`
	Verbose bool   `name:"verbose" short:"v" help:"Show ids, and labels uncut."`
}

// nodeJSON is a node as tsh prints it.
type nodeJSON struct {
	Kind     string       `json:"kind"`
	Version  string       `json:"version"`
	Metadata metadataJSON `json:"metadata"`
	Spec     nodeSpecJSON `json:"spec"`
}

type metadataJSON struct {
	Name        string            `json:"name"`
	Description string            `json:"description,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
}

type nodeSpecJSON struct {
	Addr      string `json:"addr"`
	Hostname  string `json:"hostname"`
	UseTunnel bool   `json:"use_tunnel"`
	Version   string `json:"version,omitempty"`
}

// Run lists nodes.
func (c *lsCmd) Run(p *program) error {
	list, err := p.listed(sallyport.KindNode, c.filter)
	if err != nil {
		return err
	}
	switch c.Format {
	case "names":
		for _, r := range list {
			fmt.Fprintln(p.stdout, r.GetResource().GetName())
		}
		return nil
	case "json", "yaml":
		return output.Write(p.stdout, c.Format, nodesJSON(list))
	}
	header := []string{"Node Name", "Address", "Labels"}
	if c.Verbose {
		header = []string{"Node Name", "Node ID", "Address", "Labels"}
	}
	var rows [][]string
	for _, a := range list {
		r := a.GetResource()
		row := []string{r.GetName(), tunnelMark, labels(r.GetLabels(), c.Verbose)}
		if c.Verbose {
			row = slices.Insert(row, 1, r.GetId())
		}
		rows = append(rows, row)
	}
	return p.table(c.Verbose, header, rows)
}

func nodesJSON(list []*sallyportv1.AccessibleResource) []nodeJSON {
	out := []nodeJSON{}
	for _, a := range list {
		r := a.GetResource()
		out = append(out, nodeJSON{
			Kind: "node", Version: "v2",
			Metadata: metadataJSON{Name: r.GetId(), Labels: r.GetLabels()},
			Spec:     nodeSpecJSON{Addr: r.GetAddress(), Hostname: r.GetName(), UseTunnel: true, Version: r.GetVersion()},
		})
	}
	return out
}

// listed asks for a kind, narrows, and keeps what is online.
func (p *program) listed(kind sallyport.Kind, f filter) ([]*sallyportv1.AccessibleResource, error) {
	want, err := parseLabels(f.Labels)
	if err != nil {
		return nil, err
	}
	among := func(*sallyportv1.Resource) bool { return true }
	if f.Query != "" {
		query, err := rbac.ParseFilter(f.Query)
		if err != nil {
			return nil, err
		}
		among = func(r *sallyportv1.Resource) bool { return query.Match(client.ResourceFromWire(r)) }
	}
	c, err := p.loadValid()
	if err != nil {
		return nil, err
	}
	list, err := c.list(p.ctx, kind, "")
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(list, func(a *sallyportv1.AccessibleResource) bool {
		return !a.GetOnline() || !matches(a.GetResource(), want, f.Search) || !among(a.GetResource())
	}), nil
}

func parseLabels(args []string) (map[string]string, error) {
	out := map[string]string{}
	for _, arg := range args {
		for part := range strings.SplitSeq(arg, ",") {
			k, v, ok := strings.Cut(part, "=")
			if !ok || k == "" {
				return nil, problem(errInvalid, fmt.Sprintf("%q is not key=value", part), "sally ls env=prod,team=web")
			}
			out[k] = v
		}
	}
	return out, nil
}

func matches(r *sallyportv1.Resource, want map[string]string, search []string) bool {
	for k, v := range want {
		if got, ok := r.GetLabels()[k]; !ok || got != v {
			return false
		}
	}
	hay := strings.ToLower(strings.Join([]string{r.GetName(), r.GetHostname(), r.GetDescription(), r.GetAddress(), labels(r.GetLabels(), true)}, " "))
	for _, words := range search {
		for word := range strings.FieldsFuncSeq(words, func(c rune) bool { return c == ',' || c == ' ' }) {
			if !strings.Contains(hay, strings.ToLower(word)) {
				return false
			}
		}
	}
	return true
}

// labels prints a map in order of key; internal ones only when all are wanted.
func labels(m map[string]string, all bool) string {
	var out []string
	for k, v := range m {
		if !all && (strings.HasPrefix(k, "teleport.internal/") || strings.HasPrefix(k, "teleport.hidden/")) {
			continue
		}
		out = append(out, k+"="+v)
	}
	slices.Sort(out)
	return fail.Clean(strings.Join(out, ","))
}

func (p *program) table(uncut bool, header []string, rows [][]string) error {
	width := p.width()
	if uncut {
		width = 0
	}
	return table.Write(p.stdout, width, header, rows)
}

type clustersCmd struct {
	Format  string `name:"format" short:"f" enum:"text,json,yaml" default:"text" placeholder:"FORMAT" help:"text, json or yaml."`
	Quiet   bool   `name:"quiet" short:"q" help:"Without the header."`
	Verbose bool   `name:"verbose" short:"v" hidden:""`
}

type clusterJSON struct {
	Name     string            `json:"cluster_name"`
	Status   string            `json:"status"`
	Type     string            `json:"cluster_type"`
	Labels   map[string]string `json:"labels"`
	Selected bool              `json:"selected"`
}

// Run lists the clusters that the gateway knows.
func (c *clustersCmd) Run(p *program) error {
	cred, err := p.loadValid()
	if err != nil {
		return err
	}
	api, hc := cred.api()
	defer hc.CloseIdleConnections()
	resp, err := api.ListClusters(p.ctx, connect.NewRequest(&sallyportv1.ListClustersRequest{}))
	if err != nil {
		return unreachable(cred.Profile.WebProxyAddr, err)
	}
	list := []clusterJSON{}
	var rows [][]string
	for _, m := range resp.Msg.GetClusters() {
		selected := m.GetName() == cred.Profile.Cluster
		list = append(list, clusterJSON{Name: m.GetName(), Labels: map[string]string{}, Status: m.GetStatus(), Type: m.GetType(), Selected: selected})
		rows = append(rows, []string{m.GetName(), m.GetStatus(), m.GetType(), "", map[bool]string{true: "*"}[selected]})
	}
	switch {
	case c.Format != "text":
		return output.Write(p.stdout, c.Format, list)
	case c.Quiet:
		for _, r := range rows {
			fmt.Fprintln(p.stdout, r[0], r[1], r[2])
		}
		return nil
	}
	return p.table(false, []string{"Cluster Name", "Status", "Cluster Type", "Labels", "Selected"}, rows)
}

type tcpCmd struct {
	Ls tcpLsCmd `cmd:"" help:"List TCP services that you may reach."`
}

type tcpLsCmd struct {
	filter
	Verbose bool   `name:"verbose" short:"v" help:"Show the address, and labels uncut."`
	Format  string `name:"format" short:"f" enum:"text,json,yaml" default:"text" placeholder:"FORMAT" help:"text, json or yaml."`
}

type tcpJSON struct {
	Kind     string       `json:"kind"`
	Version  string       `json:"version"`
	Metadata metadataJSON `json:"metadata"`
	Spec     struct {
		URI string `json:"uri"`
	} `json:"spec"`
}

// Run lists TCP services.
func (c *tcpLsCmd) Run(p *program) error {
	list, err := p.listed(sallyport.KindTCP, c.filter)
	if err != nil {
		return err
	}
	out := []tcpJSON{}
	var rows [][]string
	for _, a := range list {
		r := a.GetResource()
		j := tcpJSON{Kind: "app", Version: "v3", Metadata: metadataJSON{Name: r.GetName(), Description: r.GetDescription(), Labels: r.GetLabels()}}
		j.Spec.URI = "tcp://" + r.GetAddress()
		out = append(out, j)
		row := []string{r.GetName(), r.GetDescription(), labels(r.GetLabels(), c.Verbose)}
		if c.Verbose {
			row = slices.Insert(row, 2, r.GetAddress())
		}
		rows = append(rows, row)
	}
	if c.Format != "text" {
		return output.Write(p.stdout, c.Format, out)
	}
	header := []string{"Name", "Description", "Labels"}
	if c.Verbose {
		header = []string{"Name", "Description", "Address", "Labels"}
	}
	return p.table(c.Verbose, header, rows)
}

type envCmd struct {
	Format string `name:"format" short:"f" enum:"text,json,yaml" default:"text" placeholder:"FORMAT" help:"text, json or yaml."`
	Unset  bool   `name:"unset" help:"Print commands that unset the variables."`
}

// Run prints what a shell may evaluate.
func (c *envCmd) Run(p *program) error {
	names := []string{"SALLY_PROXY", "SALLY_CLUSTER", "TELEPORT_PROXY", "TELEPORT_CLUSTER"}
	if c.Unset {
		for _, n := range names {
			fmt.Fprintln(p.stdout, "unset "+n)
		}
		return nil
	}
	f, err := p.selected()
	if err != nil {
		return err
	}
	values := map[string]string{"SALLY_PROXY": f.WebProxyAddr, "SALLY_CLUSTER": f.Cluster, "TELEPORT_PROXY": f.WebProxyAddr, "TELEPORT_CLUSTER": f.Cluster}
	if c.Format != "text" {
		return output.Write(p.stdout, c.Format, values)
	}
	for _, n := range names {
		fmt.Fprintf(p.stdout, "export %s=%s\n", n, shell.Word(values[n]))
	}
	return nil
}

type versionCmd struct {
	Format string `name:"format" short:"f" enum:"text,json,yaml" default:"text" placeholder:"FORMAT" help:"text, json or yaml."`
	Client bool   `name:"client" negatable:"" help:"Do not ask the gateway."`
}

type versionJSON struct {
	Version            string `json:"version"`
	Gitref             string `json:"gitref"`
	Runtime            string `json:"runtime"`
	ProxyVersion       string `json:"proxyVersion,omitempty"`
	ProxyPublicAddress string `json:"proxyPublicAddress,omitempty"`
}

// Run prints versions; a gateway that does not answer is left out.
func (c *versionCmd) Run(p *program) error {
	v := versionJSON{Version: version, Gitref: version, Runtime: runtime.Version()}
	if f, err := p.selected(); err == nil && !c.Client {
		if w, err := p.dialWeb(f); err == nil {
			if ping, err := w.api.Ping(p.ctx, connect.NewRequest(&sallyportv1.PingRequest{})); err == nil {
				v.ProxyVersion, v.ProxyPublicAddress = ping.Msg.GetServerVersion(), f.WebProxyAddr
			}
		}
	}
	if c.Format != "text" {
		return output.Write(p.stdout, c.Format, v)
	}
	_, err := fmt.Fprintf(p.stdout, "Sallyport %s git:%s %s\n", v.Version, v.Gitref, v.Runtime)
	if v.ProxyVersion != "" && err == nil {
		_, err = fmt.Fprintf(p.stdout, "Proxy version: %s\nProxy: %s\n", v.ProxyVersion, v.ProxyPublicAddress)
	}
	return err
}
