package client

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"sync"
	"time"

	"connectrpc.com/connect"

	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
	"github.com/sallyport/sallyport/wire/sallyport/v1/sallyportv1connect"
)

// presenceEvery keeps the gateway's lease at auth alive between changes.
const presenceEvery = 2 * time.Second

// Presence tells auth which agents have a tunnel to this gateway: the full set
// once, then changes.
type Presence struct {
	API     sallyportv1connect.HostServiceClient
	Gateway string // the gateway's UUID
	Address string // host:port that clients and agents reach it by
	Log     *slog.Logger

	mu      sync.Mutex
	agents  map[string]*sallyportv1.Presence
	pending map[string]bool // agent ids that changed since the last report
	wake    chan struct{}
}

// Up says that an agent's tunnel is here. Auth knows the assignment that the
// agent showed: it is not sent back.
func (p *Presence) Up(agentID, version string, _ []byte) {
	p.change(agentID, &sallyportv1.Presence{AgentId: agentID, Version: version})
}

// Down says that an agent's last tunnel is gone.
func (p *Presence) Down(agentID string) { p.change(agentID, nil) }

func (p *Presence) change(agentID string, now *sallyportv1.Presence) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.initLocked()
	if now == nil {
		delete(p.agents, agentID)
	} else {
		p.agents[agentID] = now
	}
	p.pending[agentID] = true
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func (p *Presence) initLocked() {
	if p.agents == nil {
		p.agents, p.pending, p.wake = map[string]*sallyportv1.Presence{}, map[string]bool{}, make(chan struct{}, 1)
	}
}

// Run reports until ctx is done.
func (p *Presence) Run(ctx context.Context) error {
	p.mu.Lock()
	p.initLocked()
	wake := p.wake
	p.mu.Unlock()
	r := reporter{p: p, epoch: rand.Text(), full: true}
	return retrying(ctx, p.Log, "report presence", func(ctx context.Context, progress func()) error {
		r.full = true // what auth heard of the last report is not known
		tick := time.NewTicker(presenceEvery)
		defer tick.Stop()
		for {
			if err := r.report(ctx); err != nil {
				return err
			}
			progress()
			if r.full {
				continue
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-wake:
			case <-tick.C:
			}
		}
	})
}

// reporter is one run's place in the row of reports.
type reporter struct {
	p        *Presence
	epoch    string
	sequence uint64
	full     bool
}

func (r *reporter) report(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	r.sequence++
	req := &sallyportv1.ReportPresenceRequest{GatewayId: r.p.Gateway, Epoch: r.epoch, Sequence: r.sequence, Full: r.full, Address: r.p.Address}
	r.p.fill(req)
	resp, err := r.p.API.ReportPresence(ctx, connect.NewRequest(req))
	if err != nil {
		return problem(err)
	}
	if r.full && resp.Msg.GetNeedFull() {
		return errors.New("auth asks for the full set after it was sent")
	}
	r.full = resp.Msg.GetNeedFull()
	return nil
}

func (p *Presence) fill(req *sallyportv1.ReportPresenceRequest) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if req.GetFull() {
		for _, a := range p.agents {
			req.Up = append(req.Up, a)
		}
	} else {
		for id := range p.pending {
			if a := p.agents[id]; a != nil {
				req.Up = append(req.Up, a)
			} else {
				req.Down = append(req.Down, id)
			}
		}
	}
	clear(p.pending)
	select {
	case <-p.wake: // what it woke for is in this report
	default:
	}
}
