package api

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/audit"
	"github.com/sallyport/sallyport/controlplane/ca"
	"github.com/sallyport/sallyport/controlplane/inventory"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
)

// removalMargin is what a certificate may end later than HostTTL after a removal:
// clocks of two auth processes, and a renewal that was under way.
const removalMargin = time.Hour

// ListAgents lists agents that have a tunnel, or all hosts.
func (s adminService) ListAgents(ctx context.Context, req *connect.Request[sallyportv1.ListAgentsRequest]) (*connect.Response[sallyportv1.ListAgentsResponse], error) {
	may, err := s.among(ctx, req.Spec().Procedure, kindAgent, "list")
	if err != nil {
		return nil, err
	}
	agents, err := s.cfg.Inventory.Agents(ctx)
	if err != nil {
		return nil, err
	}
	resp := &sallyportv1.ListAgentsResponse{}
	for _, a := range agents {
		if len(a.Gateways) == 0 && !req.Msg.GetAll() || !may(a.ID) {
			continue
		}
		m := statusOf(a.Host, len(a.Gateways) > 0)
		m.Version, m.Gateways, m.Resources = a.Version, a.Gateways, uint32(a.Resources)
		resp.Agents = append(resp.Agents, m)
	}
	if req.Msg.GetAll() {
		gateways, err := s.gateways(ctx)
		if err != nil {
			return nil, err
		}
		for _, g := range gateways {
			if may(g.GetId()) {
				resp.Agents = append(resp.Agents, g)
			}
		}
	}
	return connect.NewResponse(resp), nil
}

func statusOf(h inventory.Host, online bool) *sallyportv1.AgentStatus {
	return &sallyportv1.AgentStatus{Id: h.ID, HostName: h.Name, Kind: string(h.Kind), Online: online, Joined: timestamppb.New(h.Joined)}
}

// gateways are all that have joined.
func (s *Server) gateways(ctx context.Context) ([]*sallyportv1.AgentStatus, error) {
	hosts, err := s.cfg.Inventory.Hosts(ctx)
	if err != nil {
		return nil, err
	}
	up, err := s.cfg.Inventory.Gateways(ctx)
	if err != nil {
		return nil, err
	}
	var out []*sallyportv1.AgentStatus
	for _, h := range hosts {
		if h.Kind == sallyport.KindGateway {
			out = append(out, statusOf(h, slices.ContainsFunc(up, func(g inventory.Gateway) bool { return g.ID == h.ID })))
		}
	}
	return out, nil
}

// RemoveHost takes an agent or a gateway out of the cluster for good: its
// certificates stand no more, gateways end its tunnel and agents theirs to it, and
// its names are free. A host that is there is removed only by force: to stop one
// for a time is for a lock, and who removes one that is gone may have mistaken it.
func (s adminService) RemoveHost(ctx context.Context, req *connect.Request[sallyportv1.RemoveHostRequest]) (*connect.Response[sallyportv1.RemoveHostResponse], error) {
	id := req.Msg.GetId()
	if err := s.allow(ctx, req.Spec().Procedure, kindAgent, "delete", id); err != nil {
		return nil, err
	}
	h, err := s.cfg.Inventory.Host(ctx, id)
	switch {
	case errors.Is(err, sallyport.ErrNotFound):
		h.ID = id // perhaps a removal that was cut short
	case err != nil:
		return nil, err
	}
	online, err := s.online(ctx, h)
	if err != nil {
		return nil, err
	}
	if online && !req.Msg.GetForce() {
		return nil, &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: fmt.Sprintf("%s %s (%s) is online: its removal ends its tunnels and sessions, and it cannot come back by itself", h.Kind, h.ID, h.Name),
			Hint: "sallyctl nodes rm --force " + h.ID + "; or lock it for a time: a lock with the target server_id"}
	}
	if err := s.known(ctx, h); err != nil {
		return nil, err
	}
	resp := &sallyportv1.RemoveHostResponse{Kind: string(h.Kind), HostName: h.Name}
	e := sallyport.Event{Name: audit.InstanceRemove, Code: audit.InstanceRemoveCode,
		Fields: map[string]any{"name": id, "role": string(h.Kind), "node_name": h.Name, "online": online}}
	err = s.change(ctx, e, func() error {
		resp.Names, err = s.cfg.Inventory.Remove(ctx, id, s.cfg.Now().Add(ca.HostTTL+removalMargin))
		return err
	})
	if err != nil {
		return nil, err
	}
	s.cfg.Log.Info("host removed", "kind", h.Kind, "id", id, "host", h.Name, "names", len(resp.Names))
	return connect.NewResponse(resp), s.inForce(ctx)
}

// known refuses ids that nothing is known of, and those of hosts of which nothing
// is left to remove, before anything is recorded.
func (s *Server) known(ctx context.Context, h inventory.Host) error {
	if h.Kind != "" {
		return nil
	}
	removed, held, err := s.cfg.Inventory.Remains(ctx, h.ID)
	switch {
	case err != nil || held:
		return err
	case removed:
		return &sallyport.Problem{Kind: sallyport.ErrNotFound, Fact: fmt.Sprintf("the host with the id %q has been removed already", trim(h.ID))}
	}
	return &sallyport.Problem{Kind: sallyport.ErrNotFound, Fact: fmt.Sprintf("no host with the id %q has joined", trim(h.ID)), Hint: "sallyctl nodes ls --all"}
}

// online says whether an agent has a tunnel, or a gateway reports.
func (s *Server) online(ctx context.Context, h inventory.Host) (bool, error) {
	if h.Kind == sallyport.KindGateway {
		up, err := s.cfg.Inventory.Gateways(ctx)
		return slices.ContainsFunc(up, func(g inventory.Gateway) bool { return g.ID == h.ID }), err
	}
	agents, err := s.cfg.Inventory.Agents(ctx)
	return slices.ContainsFunc(agents, func(a inventory.Agent) bool { return a.ID == h.ID && len(a.Gateways) > 0 }), err
}
