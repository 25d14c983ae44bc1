package inventory

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/store"
)

const (
	maxReported = 100_000 // agents of one report
	maxEpoch    = 64
)

// Report is what a gateway says about the agents connected to it.
type Report struct {
	Gateway  string // its id, from its certificate
	Epoch    string // random per start of the gateway
	Sequence uint64 // from 1, one more each report
	Full     bool   // Up is the whole set
	Up       []Up
	Down     []string // agent ids
	Address  string   // host:port where agents and clients reach this gateway
}

// Up is a connected agent.
type Up struct {
	AgentID string
	Version string
}

// report is what this process knows of a gateway's reports. One call at a time
// works on it.
type report struct {
	mu       sync.Mutex
	epoch    string
	sequence uint64
	address  string
	lease    store.LeaseID // 0: nothing was reported here yet
	renewed  time.Time
}

// gatewayRecord and presenceRecord are how presence stands in the store.
type gatewayRecord struct {
	Address string `json:"address,omitempty"`
}

type presenceRecord struct {
	Version string `json:"version,omitempty"`
}

func gatewayKey(id string) string { return "gateways/" + id }

func presenceKey(agent, gateway string) string { return "presence/" + agent + "/" + gateway }

// Report takes a gateway's report. needFull asks for the full set next; the
// report was not applied then. The same report again is no harm.
func (inv *Inventory) Report(ctx context.Context, r Report) (needFull bool, err error) {
	if err := checkReport(r); err != nil {
		return false, err
	}
	rec, _, err := inv.getHost(ctx, r.Gateway)
	if err != nil {
		return false, err
	}
	if rec.Kind != sallyport.KindGateway {
		return false, sallyport.Denied("only gateways report presence", "")
	}
	state := inv.reportOf(r.Gateway)
	state.mu.Lock()
	defer state.mu.Unlock()
	if r.Full {
		return false, inv.takeFull(ctx, state, r)
	}
	if state.lease == 0 || state.epoch != r.Epoch || r.Sequence != state.sequence && r.Sequence != state.sequence+1 {
		return true, nil
	}
	if r.Sequence == state.sequence {
		return false, nil // its answer was lost
	}
	return inv.takeChanges(ctx, state, r)
}

func (inv *Inventory) reportOf(gateway string) *report {
	inv.mu.Lock()
	defer inv.mu.Unlock()
	state, ok := inv.reported[gateway]
	if !ok {
		state = &report{}
		inv.reported[gateway] = state
	}
	return state
}

// takeFull puts the whole set under a new lease. What the gateway had reported
// and is not in the set goes; what is in both never seems to be away.
func (inv *Inventory) takeFull(ctx context.Context, state *report, r Report) error {
	state.lease = 0
	items, _, err := inv.store.List(ctx, "presence")
	if err != nil {
		return err
	}
	lease, err := inv.store.Grant(ctx, inv.ttl)
	if err != nil {
		return err
	}
	now := time.Now() // of the lease: the store counts real time
	up := make(map[string]bool, len(r.Up))
	for _, u := range r.Up {
		up[presenceKey(u.AgentID, r.Gateway)] = true
	}
	for _, it := range items {
		if strings.HasSuffix(it.Key, "/"+r.Gateway) && !up[it.Key] {
			r.Down = append(r.Down, strings.Split(it.Key, "/")[1])
		}
	}
	if err := inv.apply(ctx, lease, r, true); err != nil {
		return err
	}
	state.epoch, state.sequence, state.address, state.lease, state.renewed = r.Epoch, r.Sequence, r.Address, lease, now
	return nil
}

func (inv *Inventory) takeChanges(ctx context.Context, state *report, r Report) (needFull bool, err error) {
	if now := time.Now(); now.Sub(state.renewed) > inv.ttl/4 {
		if err := inv.store.KeepAlive(ctx, state.lease); err != nil {
			return inv.lost(state, err)
		}
		state.renewed = now
	}
	if r.Up, err = inv.news(ctx, state.lease, r); err == nil {
		err = inv.apply(ctx, state.lease, r, r.Address != state.address)
	}
	if err != nil {
		return inv.lost(state, err)
	}
	state.sequence, state.address = r.Sequence, r.Address
	return false, nil
}

// news is what of a report's agents is not in the store already: an agent that shows
// the same again, or has been away for a moment, costs a read and no write. Of many
// that come at once most are news, and all are written.
func (inv *Inventory) news(ctx context.Context, lease store.LeaseID, r Report) ([]Up, error) {
	if len(r.Up) > store.MaxOps {
		return r.Up, nil
	}
	var out []Up
	for _, u := range r.Up {
		it, err := inv.store.Get(ctx, presenceKey(u.AgentID, r.Gateway))
		if err != nil && !errors.Is(err, sallyport.ErrNotFound) {
			return nil, err
		}
		value, mErr := json.Marshal(presenceRecord{Version: u.Version})
		if mErr != nil {
			return nil, mErr
		}
		if err != nil || it.Lease != lease || !bytes.Equal(it.Value, value) || slices.Contains(r.Down, u.AgentID) {
			out = append(out, u)
		}
	}
	return out, nil
}

// lost makes the gateway say everything again when its lease has ended.
func (inv *Inventory) lost(state *report, err error) (needFull bool, _ error) {
	state.lease = 0
	if errors.Is(err, sallyport.ErrNotFound) {
		return true, nil
	}
	return false, err
}

// apply writes a report's set or changes, as many steps at a time as go.
func (inv *Inventory) apply(ctx context.Context, lease store.LeaseID, r Report, gateway bool) error {
	var ops []store.Op
	if gateway {
		value, err := json.Marshal(gatewayRecord{Address: r.Address})
		if err != nil {
			return err
		}
		ops = append(ops, store.Op{Key: gatewayKey(r.Gateway), Value: value, Expect: store.Any, Lease: lease})
	}
	index := make(map[string]int) // the last word on an agent counts
	add := func(op store.Op) {
		if i, ok := index[op.Key]; ok {
			ops[i] = op
			return
		}
		index[op.Key] = len(ops)
		ops = append(ops, op)
	}
	for _, id := range r.Down {
		add(store.Op{Key: presenceKey(id, r.Gateway), Delete: true, Expect: store.Any})
	}
	for _, u := range r.Up {
		value, err := json.Marshal(presenceRecord{Version: u.Version})
		if err != nil {
			return err
		}
		add(store.Op{Key: presenceKey(u.AgentID, r.Gateway), Value: value, Expect: store.Any, Lease: lease})
	}
	for len(ops) > 0 {
		n := min(len(ops), store.MaxOps)
		if _, err := inv.store.Apply(ctx, ops[:n]...); err != nil {
			return err
		}
		ops = ops[n:]
	}
	return nil
}

func checkReport(r Report) error {
	if len(r.Up)+len(r.Down) > maxReported {
		return invalid(fmt.Sprintf("report of more than %d agents", maxReported))
	}
	if r.Epoch == "" || !text(r.Epoch, maxEpoch) || r.Sequence == 0 {
		return invalid("report without an epoch or a number")
	}
	if _, _, err := net.SplitHostPort(r.Address); r.Address != "" && (err != nil || !text(r.Address, maxHostName+6)) {
		return invalid("a gateway's address is not host:port")
	}
	for _, u := range r.Up {
		if !validID(u.AgentID) || !text(u.Version, maxVersion) {
			return invalid("report of an agent whose id is not a UUID, or with a long version")
		}
	}
	for _, id := range r.Down {
		if !validID(id) {
			return invalid("report of an agent whose id is not a UUID")
		}
	}
	return nil
}
