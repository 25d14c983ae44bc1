package main

import (
	"context"
	"encoding/json"
	"io"
	"slices"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
)

// RemoveHost removes every agent that is listed, one that is online by force.
func (a *admins) RemoveHost(_ context.Context, req *connect.Request[sallyportv1.RemoveHostRequest]) (*connect.Response[sallyportv1.RemoveHostResponse], error) {
	for i, h := range a.agents {
		if h.GetId() != req.Msg.GetId() {
			continue
		}
		if h.GetOnline() && !req.Msg.GetForce() {
			return nil, connect.NewError(connect.CodeInvalidArgument, nil)
		}
		a.agents = slices.Delete(a.agents, i, i+1)
		return connect.NewResponse(&sallyportv1.RemoveHostResponse{Kind: h.GetKind(), HostName: h.GetHostName(), Names: []string{"db/orders", "node/web-1"}}), nil
	}
	return nil, connect.NewError(connect.CodeNotFound, nil)
}

// TestNodesRm: hosts are removed by nodes rm, and as tctl says it.
func TestNodesRm(t *testing.T) {
	a := &admins{agents: []*sallyportv1.AgentStatus{
		{Id: "id-1", Kind: "agent", HostName: "web-1", Online: true, Joined: timestamppb.Now(), Resources: 2},
		{Id: "id-2", Kind: "gateway", HostName: "a\x1b]b"}, {Id: "id-3", Kind: "agent"}, {Id: "id-4", Kind: "agent"},
	}}
	dir := serveAdmins(t, a)
	run := func(args ...string) (string, error) {
		var out strings.Builder
		p := &program{ctx: t.Context(), stdin: strings.NewReader(""), stdout: &out, stderr: io.Discard}
		err := p.run(append([]string{"--data-dir=" + dir}, args...))
		return out.String(), err
	}
	list, err := run("nodes", "ls", "--all")
	if err != nil {
		t.Fatal(err)
	}
	rows := strings.Split(list, "\n")
	if len(rows) < 4 || !slices.Equal(strings.Fields(rows[0]), strings.Fields("Host ID Kind Host Name Online Joined Resources")) ||
		!slices.Equal(slices.Delete(strings.Fields(rows[2]), 4, 5), []string{"id-1", "agent", "web-1", "yes", "2"}) || strings.Contains(list, "\x1b") {
		t.Errorf("%q", list)
	}
	out, err := run("nodes", "ls", "-a", "-f", "json")
	var js []agentJSON
	if err != nil || json.Unmarshal([]byte(out), &js) != nil || len(js) != 4 || js[1].Kind != "gateway" || js[1].Online == nil || *js[1].Online || js[0].Joined == nil {
		t.Errorf("%s: %v", out, err)
	}
	if _, err := run("nodes", "rm", "id-1"); err == nil || len(a.agents) != 4 {
		t.Errorf("a host that is online was removed: %v", err)
	}
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"nodes", "rm", "--force", "id-1"}, "agent id-1 (web-1) has been removed."},
		{[]string{"rm", "proxy/id-2"}, "gateway id-2 (a\ufffd]b) has been removed."},
		{[]string{"rm", "node/id-3"}, "Free names: db/orders, node/web-1\n"},
		{[]string{"nodes", "rm", "-f", "id-4"}, "empty data directory"},
	} {
		if out, err := run(tt.args...); err != nil || !strings.Contains(out, tt.want) {
			t.Errorf("%q: %q, %v", tt.args, out, err)
		}
	}
	if _, err := run("nodes", "rm", "id-1"); err == nil || len(a.agents) > 0 {
		t.Errorf("removed twice: %v", err)
	}
}
