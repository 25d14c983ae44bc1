package inventory

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/sallyport/sallyport"
)

func online(t testing.TB, inv *Inventory, name string) bool {
	t.Helper()
	ok, err := inv.Online(t.Context(), sallyport.KindDatabase, name)
	if err != nil {
		t.Fatal(err)
	}
	return ok
}

func TestPresence(t *testing.T) {
	inv := open(t)
	ctx := t.Context()
	gw := join(t, inv, sallyport.KindGateway, Allow{})
	a, b := agent(t, inv), agent(t, inv)
	announce(t, inv, a, db("x"))
	announce(t, inv, b, db("y"))
	report := func(r Report) bool {
		t.Helper()
		r.Gateway, r.Address = gw, "gw:443"
		need, err := inv.Report(ctx, r)
		if err != nil {
			t.Fatal(err)
		}
		return need
	}
	state := func(want string) {
		t.Helper()
		if got := fmt.Sprint(online(t, inv, "x"), online(t, inv, "y")); got != want {
			t.Errorf("online: %s, want %s", got, want)
		}
	}
	for i, c := range []struct {
		r    Report
		need bool
		want string
	}{
		{Report{Epoch: "1", Sequence: 1, Up: []Up{{a, "v1"}}}, true, "false false"}, // changes first
		{Report{Epoch: "1", Sequence: 2, Full: true, Up: []Up{{a, "v1"}}}, false, "true false"},
		{Report{Epoch: "1", Sequence: 3, Up: []Up{{b, "v2"}}}, false, "true true"},
		{Report{Epoch: "1", Sequence: 3, Up: []Up{{b, "v2"}}}, false, "true true"}, // its answer was lost
		{Report{Epoch: "1", Sequence: 5, Down: []string{a}}, true, "true true"},    // one was lost
		{Report{Epoch: "2", Sequence: 4, Down: []string{a}}, true, "true true"},    // another start
		{Report{Epoch: "1", Sequence: 2, Down: []string{a}}, true, "true true"},    // an old one
		{Report{Epoch: "1", Sequence: 4, Down: []string{a}}, false, "false true"},
		{Report{Epoch: "1", Sequence: 5}, false, "false true"},
		{Report{Epoch: "1", Sequence: 6, Down: []string{a}, Up: []Up{{a, "v3"}}}, false, "true true"}, // the last word counts
		{Report{Epoch: "2", Sequence: 1, Full: true, Up: []Up{{b, "v2"}}}, false, "false true"},
		{Report{Epoch: "1", Sequence: 7, Up: []Up{{a, "v1"}}}, true, "false true"}, // the earlier start, late
	} {
		if got := report(c.r); got != c.need {
			t.Errorf("report %d: need full %v", i, got)
		}
		state(c.want)
	}
	if gws, err := inv.Gateways(ctx); err != nil || len(gws) != 1 || gws[0] != (Gateway{ID: gw, Address: "gw:443"}) {
		t.Errorf("%+v, %v", gws, err)
	}
	agents, err := inv.Agents(ctx)
	if err != nil || len(agents) != 2 {
		t.Fatal(agents, err)
	}
	for _, g := range agents {
		if g.ID == b && (len(g.Gateways) != 1 || g.Gateways[0] != gw || g.Version != "v2" || g.Resources != 1) || g.ID == a && len(g.Gateways) != 0 {
			t.Errorf("%+v", g)
		}
	}
	list, err := inv.List(ctx, sallyport.KindDatabase)
	if err != nil || len(list) != 2 || list[0].Name != "x" || list[0].Online || !list[1].Online {
		t.Errorf("%+v, %v", list, err)
	}
	if list, err := inv.List(ctx, sallyport.KindNode); err != nil || len(list) != 0 {
		t.Errorf("%+v, %v", list, err)
	}
	// Another auth process has seen no report of this gateway.
	other := New(Config{Store: inv.store})
	if need, err := other.Report(ctx, Report{Gateway: gw, Epoch: "2", Sequence: 2}); err != nil || !need {
		t.Errorf("another process: need full %v, %v", need, err)
	}
	state("false true")
}

// TestA06_Presence: only a gateway says who is connected, and only to itself.
func TestA06_Presence(t *testing.T) {
	inv := open(t)
	ctx := t.Context()
	gw, other := join(t, inv, sallyport.KindGateway, Allow{}), join(t, inv, sallyport.KindGateway, Allow{})
	a := agent(t, inv)
	announce(t, inv, a, db("x"))
	if _, err := inv.Report(ctx, Report{Gateway: a, Epoch: "1", Sequence: 1, Full: true}); !errors.Is(err, sallyport.ErrDenied) {
		t.Errorf("an agent reports: %v", err)
	}
	if _, err := inv.Report(ctx, Report{Gateway: uuid.NewString(), Epoch: "1", Sequence: 1, Full: true}); !errors.Is(err, sallyport.ErrNotFound) {
		t.Errorf("an unknown host reports: %v", err)
	}
	full := Report{Gateway: gw, Epoch: "1", Sequence: 1, Full: true, Up: []Up{{AgentID: a}}}
	if _, err := inv.Report(ctx, full); err != nil {
		t.Fatal(err)
	}
	for _, r := range []Report{
		{Gateway: other, Epoch: "1", Sequence: 1, Full: true},
		{Gateway: other, Epoch: "1", Sequence: 2, Down: []string{a}},
	} {
		if _, err := inv.Report(ctx, r); err != nil {
			t.Fatal(err)
		}
		if !online(t, inv, "x") {
			t.Error("one gateway took an agent from another")
		}
	}
	for name, change := range map[string]func(r *Report){
		"no epoch":      func(r *Report) { r.Epoch = "" },
		"long epoch":    func(r *Report) { r.Epoch = strings.Repeat("x", 65) },
		"no number":     func(r *Report) { r.Sequence = 0 },
		"agent's id":    func(r *Report) { r.Up = []Up{{AgentID: "../" + a}} },
		"agent's id 2":  func(r *Report) { r.Down = []string{a + "/" + gw} },
		"long version":  func(r *Report) { r.Up[0].Version = strings.Repeat("x", 65) },
		"address":       func(r *Report) { r.Address = "gw" },
		"address, ESC":  func(r *Report) { r.Address = "\x1b:1" },
		"A27 very many": func(r *Report) { r.Up = make([]Up, maxReported+1) },
	} {
		r := full
		r.Up = []Up{{AgentID: a}}
		change(&r)
		if _, err := inv.Report(ctx, r); !errors.Is(err, sallyport.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestPresenceEnds: what a gateway reported goes when it is silent; when it
// speaks again it is asked for everything.
func TestPresenceEnds(t *testing.T) {
	inv := open(t)
	inv.ttl = 5 * time.Second // time for a busy machine to use the lease
	ctx := t.Context()
	gw, a := join(t, inv, sallyport.KindGateway, Allow{}), agent(t, inv)
	announce(t, inv, a, db("x"))
	rev, err := inv.store.Revision(ctx)
	if err != nil {
		t.Fatal(err)
	}
	watching, cancel := context.WithCancel(ctx)
	defer cancel()
	changes := inv.store.Watch(watching, "presence", rev)
	if _, err := inv.Report(ctx, Report{Gateway: gw, Epoch: "1", Sequence: 1, Full: true, Up: []Up{{AgentID: a}}}); err != nil {
		t.Fatal(err)
	}
	deadline := after(t)
	for gone := false; !gone; {
		select {
		case cs := <-changes:
			for _, c := range cs {
				gone = gone || c.Deleted
			}
		case <-deadline:
			t.Fatal("presence did not end")
		}
	}
	if online(t, inv, "x") {
		t.Error("online after its gateway went")
	}
	if gws, err := inv.Gateways(ctx); err != nil || len(gws) != 0 {
		t.Errorf("%v, %v", gws, err)
	}
	for seq, want := range map[uint64]bool{2: true} {
		if need, err := inv.Report(ctx, Report{Gateway: gw, Epoch: "1", Sequence: seq, Up: []Up{{AgentID: a}}}); err != nil || need != want {
			t.Errorf("after silence: need full %v, %v", need, err)
		}
	}
}

// TestPresenceKept: changes keep the lease, and a new full set never lets an
// agent that is in both seem to be away.
func TestPresenceKept(t *testing.T) {
	inv := open(t)
	inv.ttl = 5 * time.Second // time for a busy machine to keep the lease
	ctx := t.Context()
	gw, a, gone := join(t, inv, sallyport.KindGateway, Allow{}), agent(t, inv), agent(t, inv)
	announce(t, inv, a, db("x"))
	report := func(r Report) {
		t.Helper()
		r.Gateway = gw
		if need, err := inv.Report(ctx, r); err != nil || need {
			t.Fatalf("need full %v, %v", need, err)
		}
	}
	report(Report{Epoch: "1", Sequence: 1, Full: true, Up: []Up{{AgentID: a}, {AgentID: gone}}})
	rev, err := inv.store.Revision(ctx)
	if err != nil {
		t.Fatal(err)
	}
	changes := inv.store.Watch(ctx, "presence/"+a, rev)
	// Another lease of the same length, made now, ends after the first would have.
	lease, err := inv.store.Grant(ctx, inv.ttl+time.Second)
	if err != nil {
		t.Fatal(err)
	}
	seq := uint64(1)
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	deadline := after(t)
	for inv.leaseLeft(t, lease) {
		select {
		case <-tick.C:
			seq++
			report(Report{Epoch: "1", Sequence: seq})
		case cs := <-changes:
			t.Fatalf("changed: %+v", cs)
		case <-deadline:
			t.Fatal("the other lease did not end")
		}
	}
	report(Report{Epoch: "2", Sequence: 1, Full: true, Up: []Up{{AgentID: a}}})
	for {
		select {
		case cs := <-changes:
			for _, c := range cs {
				if c.Deleted {
					t.Error("away for a moment")
				}
			}
			if e, err := inv.Agents(ctx); err != nil || len(e) != 2 {
				t.Error(err)
			}
			return
		case <-deadline:
			t.Fatal("the full set was not written")
		}
	}
}

// leaseLeft says that a lease still lives, by a key of its own.
func (inv *Inventory) leaseLeft(t testing.TB, lease storeLease) bool {
	t.Helper()
	_, err := inv.store.Apply(t.Context(), leaseProbe(lease))
	return err == nil
}

// TestPresenceMany: a large set needs several transactions.
func TestPresenceMany(t *testing.T) {
	inv := open(t)
	ctx := t.Context()
	gw := join(t, inv, sallyport.KindGateway, Allow{})
	var up []Up
	for range 300 {
		up = append(up, Up{AgentID: uuid.NewString()})
	}
	for epoch, set := range map[string][]Up{"1": up, "2": up[:10]} {
		if _, err := inv.Report(ctx, Report{Gateway: gw, Epoch: epoch, Sequence: 1, Full: true, Up: set}); err != nil {
			t.Fatal(err)
		}
		if got, err := inv.present(ctx); err != nil || len(got) != len(set) {
			t.Errorf("%d of %d, %v", len(got), len(set), err)
		}
	}
}

// TestPresenceOnceWritten: an agent that went on showing its gateway the same went
// on writing auth's store.
func TestPresenceOnceWritten(t *testing.T) {
	inv := open(t)
	ctx := t.Context()
	gw, a := join(t, inv, sallyport.KindGateway, Allow{}), agent(t, inv)
	announce(t, inv, a, db("x"))
	sequence := uint64(0)
	writes := func(r Report) bool {
		t.Helper()
		before, err := inv.store.Revision(ctx)
		if err != nil {
			t.Fatal(err)
		}
		sequence++
		r.Gateway, r.Epoch, r.Sequence = gw, "1", sequence
		if need, err := inv.Report(ctx, r); need || err != nil {
			t.Fatal(need, err)
		}
		after, err := inv.store.Revision(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return after != before
	}
	writes(Report{Full: true})
	for i, c := range []struct {
		r    Report
		want bool
	}{
		{Report{Up: []Up{{a, "v1"}}}, true},
		{Report{Up: []Up{{a, "v1"}}}, false},
		{Report{Up: []Up{{a, "v2"}}}, true},
		{Report{Full: true, Up: []Up{{a, "v2"}}}, true}, // another lease
		{Report{Up: []Up{{a, "v2"}}}, false},
		{Report{Down: []string{a}, Up: []Up{{a, "v2"}}}, true},
	} {
		if got := writes(c.r); got != c.want {
			t.Errorf("report %d writes: %v", i, got)
		}
		if !online(t, inv, "x") {
			t.Errorf("report %d: not there", i)
		}
	}
	if !writes(Report{Down: []string{a}}) || online(t, inv, "x") || !writes(Report{Up: []Up{{a, "v2"}}}) || !online(t, inv, "x") {
		t.Error("gone and back")
	}
}
