package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/remnant"
	"github.com/sallyport/sallyport/dataplane/handover"
	handoverv1 "github.com/sallyport/sallyport/wire/sallyport/handover/v1"
)

// An agent in an upgrade. What its sessions are made of is in this process's
// memory and stays; what there can be only one of moves: the audit spool, the
// host's directory, and the right to dial gateways.
//
//	old process                                 new process
//	Freeze: dials nothing, writes no state,
//	        spool closed; events wait
//	        ──── where the spool ends ────────▶ Complete: spool open, state read again
//	Leave:  events go to the new process;       Start, run: dials, serves, ships
//	        ends with its last session
//
// Until the gateways have the new process's tunnels, streams that come by the old
// ones are served here.

const (
	agentPart     = "agent"
	remnantSocket = "remnants.sock"

	recordAgentSpool = 1

	// thawTime is how long a dead process's lock may take to be free.
	thawTime = 10 * time.Second
)

// agentGiver is the agent in the old process.
type agentGiver struct{ *agentRole }

func (r *agentRole) giver() handover.Giver { return agentGiver{r} }

func (g agentGiver) Name() string { return agentPart }

// Copy has nothing to do: the spool is on disk.
func (g agentGiver) Copy(context.Context, handover.Writer) error { return nil }

func (g agentGiver) Freeze(ctx context.Context, w handover.Writer) error {
	g.gate.Hold()
	if err := g.host.Hold(); err != nil {
		return err
	}
	mark, err := g.spool.Yield()
	if err != nil {
		return err
	}
	body, err := proto.Marshal(&handoverv1.AgentSpool{Id: mark.ID, Sequence: mark.Sequence, Acknowledged: mark.Acknowledged})
	if err != nil {
		return err
	}
	return w.Send(ctx, handover.Record{Part: agentPart, Kind: recordAgentSpool, Body: body})
}

func (g agentGiver) Thaw() error {
	ctx, cancel := context.WithTimeout(context.Background(), thawTime)
	defer cancel()
	err := g.spool.Return(ctx)
	if herr := g.host.Release(); herr != nil {
		g.log.Error("state of the agent is not on disk", "error", herr) // it is in force, and written again when it changes
	}
	g.gate.Resume()
	return err
}

func (g agentGiver) Leave() {
	g.gate.Leave()
	g.host.Leave()
	g.spool.Follow()
}

// agentTaker is the agent in the new process.
type agentTaker struct {
	*agentRole
	mark *remnant.Mark
}

func (r *agentRole) taker() handover.Taker { return &agentTaker{agentRole: r} }

func (t *agentTaker) Name() string { return agentPart }

func (t *agentTaker) Take(rec handover.Record) error {
	if rec.Kind != recordAgentSpool || len(rec.FDs) > 0 {
		return fmt.Errorf("agent: record of kind %d with %d descriptors", rec.Kind, len(rec.FDs))
	}
	var m handoverv1.AgentSpool
	if err := proto.Unmarshal(rec.Body, &m); err != nil {
		return fmt.Errorf("agent: %w", err)
	}
	t.mark = &remnant.Mark{ID: m.GetId(), Sequence: m.GetSequence(), Acknowledged: m.GetAcknowledged()}
	return nil
}

// Complete opens what the old process has closed. Without a record the old
// process had no agent.
func (t *agentTaker) Complete(ctx context.Context) error {
	if err := t.host.Take(); err != nil {
		return err
	}
	if err := t.own(ctx); err != nil {
		return err
	}
	if t.mark == nil {
		return nil
	}
	return t.spool.Check(*t.mark)
}

// Start lets the host write; the rest begins with run.
func (t *agentTaker) Start() {
	if err := t.host.Release(); err != nil {
		t.log.Error("state of the agent is not on disk", "error", err)
	}
}

// sessions are those of this process.
func (r *agentRole) sessions() remnant.Sessions {
	kinds, users := r.agent.Door.SessionsBy()
	return remnant.Sessions{Kinds: kinds, Users: users}
}

// holds counts what keeps this process from ending: sessions by kind of resource,
// or that streams may still come, and events be on their way.
func (r *agentRole) holds() map[string]int {
	select {
	case <-r.over:
		return nil
	default:
	}
	kinds, _ := r.agent.Door.SessionsBy()
	out := map[string]int{}
	for kind, n := range kinds {
		out[kind+" sessions"] = int(n)
	}
	if len(out) == 0 {
		out["agent"] = 1
	}
	return out
}

// drain says goodbye to the gateways: no more streams come, and those that run go
// on, those of old processes as well.
func (r *agentRole) drain() {
	r.drained.Store(true)
	r.gate.Drain()
}

// left counts what a drain waits for: sessions by kind of resource, here and in old
// processes, and clients that are about to have one.
func (r *agentRole) left() map[string]int {
	out := map[string]int{}
	kinds, _ := r.agent.Door.SessionsBy()
	sessions := 0
	for kind, n := range kinds {
		out[kind+" sessions"] += int(n)
		sessions += int(n)
	}
	if n := r.agent.Streams() - sessions; n > 0 {
		out["clients without a session"] = n
	}
	for _, old := range r.spool.Remnants() {
		for kind, n := range old.Kinds {
			out[kind+" sessions"] += int(n)
		}
	}
	maps.DeleteFunc(out, func(_ string, n int) bool { return n <= 0 })
	return out
}

// goodbyeTime is how long sessions may take to end and their ends to be written.
const goodbyeTime = 5 * time.Second

// awaitEnd waits until run has returned.
func (r *agentRole) awaitEnd(ctx context.Context) {
	timer := time.NewTimer(goodbyeTime)
	defer timer.Stop()
	select {
	case <-r.over:
	case <-timer.C:
	case <-ctx.Done():
	}
}

// goodbye ends all sessions, each in its protocol's words, and then run. It is
// for the end of the time that an old process has.
func (r *agentRole) goodbye() {
	select {
	case r.ends <- &sallyport.Problem{Kind: sallyport.ErrUnavailable, Hint: "connect again",
		Fact: "sallyport was upgraded here, and the time for sessions from before is over"}:
	default: // said before
	}
}

func (r *agentRole) endAll(ctx context.Context, end context.CancelCauseFunc) error {
	select {
	case why := <-r.ends:
		end(why)
	case <-ctx.Done():
	}
	return nil
}

// cancel carries out a PostgreSQL cancel request whose sender is not known. A
// process id belongs to one session here or in an earlier process, and the
// secret key says which.
func (r *agentRole) cancel(_ context.Context, processID uint32, secretKey []byte) {
	c := remnant.Cancel{ProcessID: processID, SecretKey: secretKey}
	if r.cancelHere(c) {
		r.spool.Cancel(c)
	}
}

// cancelElsewhere carries out a request inside of TLS for a session that its
// database's server does not have.
func (r *agentRole) cancelElsewhere(holder sallyport.Identity, processID, secretKey uint32) {
	r.spool.Cancel(remnant.Cancel{
		ProcessID: processID, SecretKey: binary.BigEndian.AppendUint32(nil, secretKey),
		Holder: &remnant.Holder{Kind: holder.Kind, Cluster: holder.Cluster, Name: holder.Name},
	})
}

// cancelFromOwner carries out what the new process passes on.
func (r *agentRole) cancelFromOwner(c remnant.Cancel) { r.cancelHere(c) }

// cancelHere asks each database. It reports false for a key that is none of ours.
func (r *agentRole) cancelHere(c remnant.Cancel) bool {
	if len(c.SecretKey) != 4 {
		return false
	}
	key := binary.BigEndian.Uint32(c.SecretKey)
	all := r.databases.Load()
	for _, s := range all.servers {
		cancelAt(s, c, key)
	}
	for _, s := range all.retired {
		cancelAt(s, c, key)
	}
	return true
}

// canceller is postgres.Server.
type canceller interface {
	Cancel(pid, key uint32)
	CancelFor(holder sallyport.Identity, pid, key uint32)
}

func cancelAt(server databaseServer, c remnant.Cancel, key uint32) {
	s, ok := server.(canceller)
	if !ok {
		return
	}
	if c.Holder == nil {
		s.Cancel(c.ProcessID, key)
		return
	}
	s.CancelFor(sallyport.Identity{Kind: c.Holder.Kind, Cluster: c.Holder.Cluster, Name: c.Holder.Name}, c.ProcessID, key)
}
