package tunnel

import (
	"testing"
	"time"
	"unsafe"

	"github.com/sallyport/sallyport/dataplane/relay"
	tunnelv1 "github.com/sallyport/sallyport/wire/sallyport/tunnel/v1"
)

// setBack is a time as time.Now gives it after the clock has been set back.
func setBack(t *testing.T, at time.Time, by time.Duration) time.Time {
	t.Helper()
	back := at
	*(*uint64)(unsafe.Pointer(&back)) -= uint64(by/time.Second) << 30 // of time.Time.wall
	if back.Sub(at) != 0 || back.Unix() != at.Add(-by).Unix() {
		t.Fatalf("%v is not %v with another clock", back, at)
	}
	return back
}

// TestLimiterClockSetBack: after a clock was set back by an hour no cancel request
// passed for an hour.
func TestLimiterClockSetBack(t *testing.T) {
	var l limiter
	now := time.Now()
	if !l.allow(now, 50) || !l.allow(setBack(t, now.Add(time.Second), time.Hour), 50) {
		t.Error("not allowed")
	}
	for range 49 {
		l.allow(now.Add(time.Second), 50)
	}
	if l.allow(setBack(t, now.Add(time.Second), time.Hour), 50) {
		t.Error("the 51st within a second is allowed")
	}
}

func TestLimiterDelay(t *testing.T) {
	var l limiter
	now := time.Now()
	for i := range 10 {
		if d := l.delay(now, time.Second, 10); d != 0 {
			t.Fatalf("%d of 10 at once: %v", i, d)
		}
	}
	if d := l.delay(now, time.Second, 10); d != time.Second {
		t.Errorf("the eleventh: %v", d)
	}
	if d := l.delay(now.Add(2*time.Second), time.Second, 10); d != 0 {
		t.Errorf("in its time: %v", d)
	}
	if d := l.delay(now.Add(2*time.Second), time.Second, 10); d != time.Second {
		t.Errorf("one more: %v", d)
	}
}

// TestChangesOfNames: an agent wrote the gateway's log, and auth's store, as fast as it
// could send assignments: 130,000 lines from 4 MB.
func TestChangesOfNames(t *testing.T) {
	loops, err := relay.New(1)
	check0(t, err)
	t.Cleanup(func() { loops[0].Close() })
	g := startGateway(t, newAuthority(t), loops, nil)
	present := assigned(1, "tcp/one", "tcp/two")
	a := byHand(t, g, agentID, present)
	g.come(t)
	upsert := func(b []byte) *tunnelv1.Control {
		return &tunnelv1.Control{Message: &tunnelv1.Control_Upsert{Upsert: &tunnelv1.Upsert{Assignment: b}}}
	}

	// What is there already brings names back, and is told nobody.
	a.say(&tunnelv1.Control{Message: &tunnelv1.Control_Delete{Delete: &tunnelv1.Delete{Names: []string{"tcp/one"}}}})
	eventually(t, "delete", func() bool { return !g.hub.Live("tcp", "one") })
	a.say(upsert(present))
	eventually(t, "the name is back", func() bool { return g.hub.Live("tcp", "one") })
	if n := len(g.presence); n != 0 {
		t.Errorf("reported %d times", n)
	}

	// More changes than a start needs are heard one by one.
	var b []byte
	for range 2 * changesAtOnce {
		b, err = AppendControl(b, upsert([]byte("x")))
		check0(t, err)
	}
	began := time.Now()
	_, err = a.conn.Write(b)
	check0(t, err)
	const more = 3
	eventually(t, "those that wait are heard", func() bool { return g.hub.Status().Counters["upsert_refused"] >= changesAtOnce+more })
	if took := time.Since(began); took < (more-1)*changeEvery {
		t.Errorf("%d changes in %v", changesAtOnce+more, took)
	}
	if !g.hub.Live("tcp", "one") {
		t.Error("the tunnel is gone")
	}

	// Nobody else waits for them.
	byHand(t, g, agent2ID, assigned(1, "tcp/other"))
	if p := g.come(t); p.AgentID != agent2ID {
		t.Errorf("%+v", p)
	}
}
