package api

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/audit"
	"github.com/sallyport/sallyport/controlplane/inventory"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
)

// TestAssignmentsAreRecorded: who served what under which name, and since when, was
// nowhere in the log.
func TestAssignmentsAreRecorded(t *testing.T) {
	w, k := the(), newKeyPair(t)
	id, cert := w.hostNamed(t, sallyport.KindAgent, "web-1")
	name := "assign-" + uuid.NewString()[:8]
	c := w.asHost(t, cert)
	announce := func(list ...*sallyportv1.Resource) error {
		_, err := c.Announce(t.Context(), connect.NewRequest(&sallyportv1.AnnounceRequest{Resources: list, TlsPublicKey: k.tlsPub, SshPublicKey: k.sshPub}))
		return err
	}
	db := func(label string) *sallyportv1.Resource {
		return &sallyportv1.Resource{Kind: "db", Name: name, Protocol: "postgres", Labels: map[string]string{"env": label}}
	}
	recorded := func() (out []map[string]any) {
		t.Helper()
		for _, e := range w.events(t, audit.InstanceAssign) {
			if e.User == "agent:"+id {
				if e.Code != "SA012I" || e.UserKind != "agent" || e.Cluster != cluster {
					t.Errorf("%+v", e)
				}
				out = append(out, e.Fields)
			}
		}
		return out
	}
	key := []any{"db/" + name}
	want := []map[string]any{{"node_name": "web-1", "new": key}}
	for range 3 { // what stays as it is says nothing
		if err := announce(db("a")); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(want, recorded()); diff != "" {
		t.Errorf("new, three times:\n%s", diff)
	}
	if err := errors.Join(announce(db("b")), announce()); err != nil {
		t.Fatal(err)
	}
	want = append(want, map[string]any{"node_name": "web-1", "changed": key}, map[string]any{"node_name": "web-1", "given_up": key})
	if diff := cmp.Diff(want, recorded()); diff != "" {
		t.Errorf("changed, and given up:\n%s", diff)
	}

	// An agent cannot fill the log so, and what it cannot record it cannot have.
	var err error
	n, began := 0, time.Now()
	for ; err == nil && n < 3*assignBurst; n++ {
		err = announce(db(fmt.Sprint(n)))
	}
	codeIs(t, "too often", err, connect.CodeResourceExhausted)
	if most := assignBurst + 1 + int(time.Since(began)/assignEvery); n < assignBurst-3 || n > most {
		t.Errorf("refused at change %d, want %d at most", n, most)
	}
	had := len(recorded())
	if err := announce(db(fmt.Sprint(n - 2))); err != nil {
		t.Errorf("what it had: %v", err)
	}
	if got := len(recorded()); got != had {
		t.Errorf("%d more events", got-had)
	}
	other, _ := w.host(t, sallyport.KindAgent)
	if !w.server.assigned.take(other, time.Now()) {
		t.Error("another agent is refused")
	}
}

// TestManyNames: each is recorded, in as many events as that takes.
func TestManyNames(t *testing.T) {
	var d inventory.Difference
	for i := range 300 {
		d.New = append(d.New, fmt.Sprint("new", i))
		d.GivenUp = append(d.GivenUp, fmt.Sprint("up", i))
	}
	d.Changed = []string{"c"}
	var all inventory.Difference
	parts := split(d, namesPerEvent)
	for _, p := range parts {
		if n := len(p.New) + len(p.Changed) + len(p.GivenUp); n == 0 || n > namesPerEvent {
			t.Errorf("%d names in one event", n)
		}
		all.New, all.Changed, all.GivenUp = append(all.New, p.New...), append(all.Changed, p.Changed...), append(all.GivenUp, p.GivenUp...)
	}
	if diff := cmp.Diff(d, all); diff != "" || len(parts) != 3 {
		t.Errorf("%d parts: %s", len(parts), diff)
	}
	if parts := split(inventory.Difference{}, namesPerEvent); parts != nil {
		t.Errorf("of nothing: %v", parts)
	}
}

// TestHostQuotas: what a host has used up comes back.
func TestHostQuotas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var q hostQuotas
		took := func() (n int) {
			for range 3 * assignBurst {
				if q.take("a", time.Now()) {
					n++
				}
			}
			return n
		}
		if n := took(); n != assignBurst {
			t.Errorf("%d at once", n)
		}
		time.Sleep(3 * assignEvery)
		if n := took(); n != 3 {
			t.Errorf("%d after a while", n)
		}
	})
}

// TestRenewalIsRecorded: by the certificate's serial.
func TestRenewalIsRecorded(t *testing.T) {
	w, k := the(), newKeyPair(t)
	id, cert := w.host(t, sallyport.KindAgent)
	resp, err := w.asHost(t, cert).RenewHost(t.Context(), connect.NewRequest(&sallyportv1.RenewHostRequest{TlsPublicKey: k.tlsPub, SshPublicKey: k.sshPub}))
	if err != nil {
		t.Fatal(err)
	}
	want := parse(t, resp.Msg.GetTlsCertificate()).SerialNumber.Text(16)
	for _, e := range w.events(t, audit.CertificateCreate) {
		if e.User == "agent:"+id && e.Fields["serial"] == want {
			return
		}
	}
	t.Errorf("no event has the serial %s", want)
}
