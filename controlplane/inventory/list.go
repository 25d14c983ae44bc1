package inventory

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/sallyport/sallyport"
)

// Entry is a resource and whether it can be reached now.
type Entry struct {
	sallyport.Resource
	Online bool
}

// Agent is an agent as administrators see it.
type Agent struct {
	Host
	Version   string   // what it said to the gateway that saw it; "" when offline
	Gateways  []string // ids of the gateways that it is connected to
	Resources int
}

// Gateway is a gateway that reports now.
type Gateway struct {
	ID      string
	Address string // host:port
}

// List returns all resources of a kind, of all kinds with "", in the order of
// kind and name. A name that a group serves is listed once, as one of its
// agents that are online has announced it.
func (inv *Inventory) List(ctx context.Context, kind sallyport.Kind) ([]Entry, error) {
	items, _, err := inv.store.List(ctx, "resources")
	if err != nil {
		return nil, err
	}
	up, err := inv.present(ctx)
	if err != nil {
		return nil, err
	}
	var out []Entry
	index := make(map[string]int)
	for _, it := range items {
		r, err := decodeResource(it)
		if err != nil {
			return nil, err
		}
		if kind != "" && r.Kind != kind {
			continue
		}
		e := Entry{Resource: r, Online: len(up[r.AgentID]) > 0}
		i, listed := index[keyOf(r)]
		switch {
		case !listed:
			index[keyOf(r)] = len(out)
			out = append(out, e)
		case e.Online && !out[i].Online:
			out[i] = e
		}
	}
	slices.SortFunc(out, func(a, b Entry) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name))
	})
	return out, nil
}

// Find returns one resource by its name, a node also by its UUID. The error is
// of kind sallyport.ErrNotFound when there is none.
func (inv *Inventory) Find(ctx context.Context, kind sallyport.Kind, name string) (Entry, error) {
	if !knownKind(kind) {
		return Entry{}, noResource()
	}
	agents := []string{name}
	if kind != sallyport.KindNode || !validID(name) {
		if nameFault(name) != "" {
			return Entry{}, noResource()
		}
		o, _, err := inv.owners(ctx, kind, name)
		if err != nil {
			return Entry{}, err
		}
		agents = o.Agents
	}
	var found *Entry
	for _, agent := range agents {
		e, err := inv.findOf(ctx, agent, kind, name)
		if errors.Is(err, sallyport.ErrNotFound) {
			continue
		}
		if err != nil {
			return Entry{}, err
		}
		if found == nil || e.Online && !found.Online {
			found = &e
		}
	}
	if found == nil {
		return Entry{}, noResource()
	}
	return *found, nil
}

func (inv *Inventory) findOf(ctx context.Context, agent string, kind sallyport.Kind, name string) (Entry, error) {
	r, err := inv.Serves(ctx, agent, kind, name)
	if err != nil {
		return Entry{}, err
	}
	items, _, err := inv.store.List(ctx, "presence/"+agent)
	return Entry{Resource: r, Online: len(items) > 0}, err
}

// Online says that an agent that serves the name is connected to some gateway.
func (inv *Inventory) Online(ctx context.Context, kind sallyport.Kind, name string) (bool, error) {
	e, err := inv.Find(ctx, kind, name)
	if errors.Is(err, sallyport.ErrNotFound) {
		return false, nil
	}
	return e.Online, err
}

// Serves returns the resource as it is assigned to this agent; a node also by
// its UUID. The error is of kind sallyport.ErrNotFound when it is not.
func (inv *Inventory) Serves(ctx context.Context, agent string, kind sallyport.Kind, name string) (sallyport.Resource, error) {
	if !validID(agent) || !knownKind(kind) {
		return sallyport.Resource{}, noResource()
	}
	if kind == sallyport.KindNode && name == agent {
		items, _, err := inv.store.List(ctx, "resources/"+agent+"/"+string(kind))
		if err != nil {
			return sallyport.Resource{}, err
		}
		if len(items) == 0 {
			return sallyport.Resource{}, noResource()
		}
		return decodeResource(items[0])
	}
	if nameFault(name) != "" {
		return sallyport.Resource{}, noResource()
	}
	it, err := inv.store.Get(ctx, resourceKey(agent, kind, name))
	if errors.Is(err, sallyport.ErrNotFound) {
		return sallyport.Resource{}, noResource()
	}
	if err != nil {
		return sallyport.Resource{}, err
	}
	return decodeResource(it)
}

// Agents returns all agents in the order of their ids.
func (inv *Inventory) Agents(ctx context.Context) ([]Agent, error) {
	hosts, err := inv.Hosts(ctx)
	if err != nil {
		return nil, err
	}
	up, err := inv.present(ctx)
	if err != nil {
		return nil, err
	}
	items, _, err := inv.store.List(ctx, "resources")
	if err != nil {
		return nil, err
	}
	count := make(map[string]int)
	for _, it := range items {
		count[segment(it.Key, 1)]++
	}
	var out []Agent
	for _, h := range hosts {
		if h.Kind != sallyport.KindAgent {
			continue
		}
		a := Agent{Host: h, Resources: count[h.ID]}
		for _, p := range up[h.ID] {
			a.Gateways = append(a.Gateways, p.gateway)
			a.Version = p.version
		}
		out = append(out, a)
	}
	return out, nil
}

// Gateways returns the gateways that report now, in the order of their ids.
func (inv *Inventory) Gateways(ctx context.Context) ([]Gateway, error) {
	items, _, err := inv.store.List(ctx, "gateways")
	if err != nil {
		return nil, err
	}
	var out []Gateway
	for _, it := range items {
		var rec gatewayRecord
		if err := json.Unmarshal(it.Value, &rec); err != nil {
			return nil, fmt.Errorf("%s: %w", it.Key, err)
		}
		out = append(out, Gateway{ID: segment(it.Key, 1), Address: rec.Address})
	}
	return out, nil
}

// connection is one agent at one gateway.
type connection struct{ gateway, version string }

// present is who is connected where, by agent.
func (inv *Inventory) present(ctx context.Context) (map[string][]connection, error) {
	items, _, err := inv.store.List(ctx, "presence")
	if err != nil {
		return nil, err
	}
	out := make(map[string][]connection)
	for _, it := range items {
		var rec presenceRecord
		if err := json.Unmarshal(it.Value, &rec); err != nil {
			return nil, fmt.Errorf("%s: %w", it.Key, err)
		}
		agent := segment(it.Key, 1)
		out[agent] = append(out[agent], connection{gateway: segment(it.Key, 2), version: rec.Version})
	}
	return out, nil
}

// segment is one part of a key.
func segment(key string, n int) string { return strings.Split(key, "/")[n] }

func noResource() error {
	return &sallyport.Problem{Kind: sallyport.ErrNotFound, Fact: "no such resource"}
}
