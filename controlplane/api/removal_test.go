package api

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/audit"
	"github.com/sallyport/sallyport/controlplane/store"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
	"github.com/sallyport/sallyport/wire/sallyport/v1/sallyportv1connect"
)

// hostOf is a host as administrators see it, nil when there is none.
func (w *world) hostOf(t *testing.T, id string) *sallyportv1.AgentStatus {
	t.Helper()
	resp, err := w.localAdmin(t).ListAgents(t.Context(), connect.NewRequest(&sallyportv1.ListAgentsRequest{All: true}))
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range resp.Msg.GetAgents() {
		if a.GetId() == id {
			return a
		}
	}
	return nil
}

func (w *world) remove(t *testing.T, id string, force bool) (*sallyportv1.RemoveHostResponse, error) {
	t.Helper()
	resp, err := w.localAdmin(t).RemoveHost(t.Context(), connect.NewRequest(&sallyportv1.RemoveHostRequest{Id: id, Force: force}))
	if err != nil {
		return nil, err
	}
	return resp.Msg, nil
}

// TestRemoveHost: a host could only be locked, and kept its names for ever.
func TestRemoveHost(t *testing.T) {
	w := the()
	agentID, agent := w.hostNamed(t, sallyport.KindAgent, "web-1")
	gatewayID, gateway := w.host(t, sallyport.KindGateway)
	name := "removal-" + uuid.NewString()[:8]
	announce := func(id string) string {
		t.Helper()
		a, err := w.inventory.Announce(t.Context(), id, []sallyport.Resource{{Kind: sallyport.KindDatabase, Name: name, Protocol: "postgres"}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if len(a.Refusals) > 0 {
			return a.Refusals[0].Reason
		}
		return ""
	}
	if why := announce(agentID); why != "" {
		t.Fatal(why)
	}
	report := &sallyportv1.ReportPresenceRequest{GatewayId: gatewayID, Epoch: "e", Sequence: 1, Full: true, Address: "gw.test:443", Up: []*sallyportv1.Presence{{AgentId: agentID, Version: "v1"}}}
	if _, err := w.asHost(t, gateway).ReportPresence(t.Context(), connect.NewRequest(report)); err != nil {
		t.Fatal(err)
	}
	if a, g := w.hostOf(t, agentID), w.hostOf(t, gatewayID); a.GetKind() != "agent" || !a.GetOnline() || a.GetHostName() != "web-1" || !a.GetJoined().IsValid() || g.GetKind() != "gateway" || !g.GetOnline() {
		t.Errorf("listed as %v and %v", a, g)
	}

	// Who is there is not removed by mistake, and nothing is recorded of the try.
	for _, id := range []string{agentID, gatewayID} {
		_, err := w.remove(t, id, false)
		codeIs(t, "online", err, connect.CodeInvalidArgument)
		if err == nil || !strings.Contains(err.Error(), "is online") {
			t.Errorf("%v", err)
		}
		if w.hostOf(t, id) == nil {
			t.Fatal("removed all the same")
		}
	}
	for _, id := range []string{"", "x", uuid.NewString()} {
		_, err := w.remove(t, id, true)
		codeIs(t, "unknown", err, connect.CodeNotFound)
	}

	stream, err := w.asHost(t, agent).WatchSnapshot(t.Context(), connect.NewRequest(&sallyportv1.WatchSnapshotRequest{}))
	if err != nil || !stream.Receive() {
		t.Fatalf("no stream: %v", err)
	}
	var left []store.Op
	for _, key := range []string{"names/db/" + name, "resources/" + agentID + "/db/" + name} {
		it, err := w.store.Get(t.Context(), key)
		if err != nil {
			t.Fatal(err)
		}
		left = append(left, store.Op{Key: key, Value: it.Value})
	}
	got, err := w.remove(t, agentID, true)
	if err != nil || got.GetKind() != "agent" || got.GetHostName() != "web-1" || !slices.Equal(got.GetNames(), []string{"db/" + name}) {
		t.Errorf("%v, %v", got, err)
	}
	// The agent is told, once, so that it ends its sessions; and then nothing more.
	var last sallyportv1.Snapshot
	for stream.Receive() {
		if err := proto.Unmarshal(stream.Msg().GetPayload(), &last); err != nil {
			t.Fatal(err)
		}
	}
	codeIs(t, "stream", stream.Err(), connect.CodePermissionDenied)
	stream.Close()
	if !slices.Contains(last.GetRemovedHosts(), agentID) || !slices.ContainsFunc(last.GetLocks(), func(l *sallyportv1.Lock) bool { return l.GetServerId() == agentID }) {
		t.Errorf("the agent's last snapshot: removed %q, locks %v", last.GetRemovedHosts(), last.GetLocks())
	}
	again, err := w.asHost(t, agent).WatchSnapshot(t.Context(), connect.NewRequest(&sallyportv1.WatchSnapshotRequest{}))
	if err == nil {
		if again.Receive() {
			t.Error("a removed host gets another snapshot")
		}
		err = again.Err()
		again.Close()
	}
	codeIs(t, "another stream", err, connect.CodePermissionDenied)
	// A second removal is recorded neither as one nor as undone.
	_, err = w.remove(t, agentID, true)
	codeIs(t, "again", err, connect.CodeNotFound)
	if err == nil || !strings.Contains(err.Error(), "removed already") {
		t.Errorf("again: %v", err)
	}
	// One that was cut short before all names were free is ended by the next.
	if _, err := w.store.Apply(t.Context(), left...); err != nil {
		t.Fatal(err)
	}
	if got, err := w.remove(t, agentID, true); err != nil || !slices.Equal(got.GetNames(), []string{"db/" + name}) {
		t.Errorf("what was left: %v, %v", got, err)
	}
	other, _ := w.host(t, sallyport.KindAgent)
	if why := announce(other); why != "" {
		t.Errorf("its name is not free: %s", why)
	}
	if w.hostOf(t, agentID) != nil {
		t.Error("it is still listed")
	}

	// A gateway that was removed speaks for nobody.
	ping := func() error {
		_, err := sallyportv1connect.NewPublicServiceClient(w.http(t, visitor(gateway, "192.0.2.1:1")), base).Ping(t.Context(), connect.NewRequest(&sallyportv1.PingRequest{}))
		return err
	}
	if err := ping(); err != nil {
		t.Fatal(err)
	}
	if _, err := w.remove(t, gatewayID, true); err != nil {
		t.Fatal(err)
	}
	codeIs(t, "visitor by a removed gateway", ping(), connect.CodePermissionDenied)
	report.Sequence = 2
	_, err = w.asHost(t, gateway).ReportPresence(t.Context(), connect.NewRequest(report))
	codeIs(t, "presence", err, connect.CodePermissionDenied)

	var recorded []string
	for _, e := range w.events(t, audit.InstanceRemove) {
		if id, _ := e.Fields["name"].(string); id == agentID || id == gatewayID {
			recorded = append(recorded, fmt.Sprint(e.Code, " ", e.Fields["role"], " ", e.User))
		}
	}
	if want := []string{"SA011I agent local-admin:0", "SA011I  local-admin:0", "SA011I gateway local-admin:0"}; !slices.Equal(recorded, want) {
		t.Errorf("recorded %q, want %q", recorded, want)
	}
}
