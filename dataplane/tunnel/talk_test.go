package tunnel

import (
	"context"
	"crypto/tls"
	"net"
	"runtime"
	"testing"
	"time"

	"github.com/sallyport/sallyport"
	tunnelv1 "github.com/sallyport/sallyport/wire/sallyport/tunnel/v1"
)

func upMessage(n byte) *tunnelv1.Control {
	id := ID{n}
	return &tunnelv1.Control{Message: &tunnelv1.Control_StreamUp{StreamUp: &tunnelv1.StreamUp{ConnectionId: id[:]}}}
}

func TestReportsWaitForEachOther(t *testing.T) {
	r := reports{late: time.NewTimer(time.Hour)}
	now := time.Unix(1_800_000_000, 0)
	if r.add(upMessage(0), now) {
		t.Fatal("the first waits, with none written before it")
	}
	r.take(now)
	for n := byte(1); n <= 2; n++ {
		if !r.add(upMessage(n), now.Add(time.Duration(n)*time.Millisecond)) {
			t.Fatalf("report %d behind another does not wait", n)
		}
	}
	<-r.late.C // they do not wait for ever
	refused := &tunnelv1.Control{Message: &tunnelv1.Control_StreamRefused{StreamRefused: &tunnelv1.StreamRefused{}}}
	if r.add(refused, now.Add(3*time.Millisecond)) {
		t.Error("a refusal waits: a client waits for what comes of it")
	}
	all := r.take(now.Add(3 * time.Millisecond))
	if len(all) != 3 || all[0].GetStreamUp().GetConnectionId()[0] != 1 || all[1].GetStreamUp().GetConnectionId()[0] != 2 || all[2] != refused {
		t.Errorf("%v: not in their order", all)
	}
	if now = now.Add(3*time.Millisecond + reportsApart); r.add(upMessage(4), now) {
		t.Error("a report waits longer than it has to")
	}
	r.take(now)
	for n := 1; r.add(upMessage(5), now); n++ {
		if n >= mostReports {
			t.Fatalf("%d wait", n)
		}
	}
}

// TestHeldReportsBeforeGoodbye: what waits when a talk ends is said before its end.
func TestHeldReportsBeforeGoodbye(t *testing.T) {
	ca := newAuthority(t)
	l, err := tls.Listen("tcp", "127.0.0.1:0", ca.server(ca.issue(t, sallyport.KindGateway, gatewayID)))
	check0(t, err)
	defer l.Close()
	heard := make(chan *tunnelv1.Control, outbox)
	go func() {
		defer close(heard)
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		r := controlReader{r: c}
		for {
			m, err := r.next()
			if err != nil {
				return
			}
			heard <- m
		}
	}()
	raw, err := net.Dial("tcp", l.Addr().String())
	check0(t, err)
	conn := tls.Client(raw, ca.client(ca.issue(t, sallyport.KindAgent, agentID)))
	check0(t, conn.Handshake())
	talk := newTalk(conn, time.Minute, time.Minute, time.Now)
	ctx, cancel := context.WithCancelCause(t.Context())
	over := make(chan error, 1)
	go func() {
		over <- talk.run(ctx, func(*tunnelv1.Control) error { return nil }, func() {})
	}()
	const reports = 100
	for n := range byte(reports) {
		if !talk.send(upMessage(n)) {
			t.Fatal("the writer does not take reports")
		}
		for len(talk.out) > 0 {
			runtime.Gosched() // until the writer has it
		}
	}
	cancel(errDrained)
	<-over
	var n byte
	for m := range heard {
		if m.GetGoodbye() != nil {
			break
		}
		if id := m.GetStreamUp().GetConnectionId(); len(id) == 0 || id[0] != n {
			t.Fatalf("%v in place of report %d", m, n)
		}
		n++
	}
	if n != reports {
		t.Errorf("%d of %d reports before the goodbye", n, reports)
	}
}
