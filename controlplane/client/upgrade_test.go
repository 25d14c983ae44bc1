package client

import (
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/sallyport/sallyport"
)

// TestUpgrade: the old process keeps up with auth and writes nothing; the new
// one knows what the old one knew, and writes.
func TestUpgrade(t *testing.T) {
	w := the()
	name := "upgrade-" + uuid.NewString()[:8]
	cfg := w.config(t, sallyport.KindAgent, sallyport.Resource{Kind: sallyport.KindTCP, Name: name, Address: "localhost:7"})
	old := w.host(t, cfg)
	run(t, old)
	until(t, "assignment", old.AssignmentChanged, func() bool { return len(old.Resources()) == 1 })
	heard(t, old)

	held := cfg
	held.Held = true
	next, err := OpenHost(held) // early, as a new process does
	if err != nil {
		t.Fatal(err)
	}
	known := old.keeper.Revision()
	if err := old.Hold(); err != nil {
		t.Fatal(err)
	}
	if err := next.Take(); err != nil {
		t.Fatal(err)
	}
	if next.ID() != old.ID() || len(next.Resources()) != 1 || next.CancelTag() != old.CancelTag() || next.keeper.Revision() < known {
		t.Errorf("the new process knows revision %d and %v; the old one %d and %v", next.keeper.Revision(), next.Resources(), old.keeper.Revision(), old.Resources())
	}

	// Until the commit the old one learns, and remembers to write it.
	lock := func(name string) {
		t.Helper()
		w.put(t, "lock", name, `{"target":{"user":"mallory"}}`)
		until(t, name, old.keeper.Changed, func() bool {
			trust, err := old.keeper.Trust()
			return err == nil && slices.ContainsFunc(trust.Locks, func(l sallyport.Lock) bool { return l.Name == name })
		})
	}
	disk := func() uint64 {
		t.Helper()
		h, err := OpenHost(held)
		if err != nil {
			t.Fatal(err)
		}
		return h.keeper.Revision()
	}
	before := disk()
	lock("upgrade-held-" + name)
	if disk() != before {
		t.Error("a process that holds has written a snapshot")
	}
	if err := old.Release(); err != nil { // the way back
		t.Fatal(err)
	}
	eventually(t, func() bool { return disk() >= old.keeper.Revision() }) // what came while it was held

	// And now the commit.
	known = old.keeper.Revision()
	if err := old.Hold(); err != nil {
		t.Fatal(err)
	}
	if err := next.Take(); err != nil {
		t.Fatal(err)
	}
	old.Leave()
	if next.keeper.Revision() < known {
		t.Errorf("the new process has revision %d, the old one had %d", next.keeper.Revision(), known)
	}
	before = disk()
	lock("upgrade-left-" + name)
	if disk() != before {
		t.Error("a process that has left has written a snapshot")
	}
	if err := old.Release(); err == nil && disk() != before {
		t.Error("a process that has left wrote after Release")
	}
	if err := next.Release(); err != nil {
		t.Fatal(err)
	}
	run(t, next)
	until(t, "the new process hears of the lock", next.keeper.Changed, func() bool { return next.keeper.Revision() >= old.keeper.Revision() })
	eventually(t, func() bool { return disk() >= old.keeper.Revision() })
}

// eventually waits for what no channel tells.
func eventually(t *testing.T, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(soon); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("not in time")
		}
	}
}

// TestHoldFullDisk: a new process must not know less than the old one.
func TestHoldFullDisk(t *testing.T) {
	s := newSigner(t)
	k := keeper(t, t.TempDir(), s)
	if err := k.Take(s.snapshot(t, 2, noon, nil)); err != nil {
		t.Fatal(err)
	}
	block := filepath.Join(k.dir, snapshotFile+".new")
	if err := os.Mkdir(block, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := k.Take(s.snapshot(t, 3, noon, nil)); err != nil {
		t.Fatal(err)
	}
	if err := k.files.hold(); err == nil {
		t.Error("held with a snapshot that is not on disk")
	}
	if err := os.Remove(block); err != nil {
		t.Fatal(err)
	}
	if err := k.files.hold(); err != nil {
		t.Fatal(err)
	}
	if r := keeper(t, k.dir, s).Revision(); r != 3 {
		t.Errorf("revision %d on disk", r)
	}
}

// TestReadRenewed: a remnant uses the certificate that the new process renewed.
func TestReadRenewed(t *testing.T) {
	w := the()
	cfg := w.config(t, sallyport.KindGateway)
	h := w.host(t, cfg)
	fresh := h.standing
	if err := writeJSON(filepath.Join(cfg.Dir, hostFile), w.aged(t, h, 4*24*time.Hour)); err != nil {
		t.Fatal(err)
	}
	old, err := OpenHost(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := old.Hold(); err != nil {
		t.Fatal(err)
	}
	old.Leave()
	if err := old.readStanding(); err != nil || !old.leaf().NotAfter.Before(h.leaf().NotAfter) {
		t.Fatalf("until %v: %v", old.leaf().NotAfter, err)
	}
	if err := writeJSON(filepath.Join(cfg.Dir, hostFile), fresh); err != nil {
		t.Fatal(err)
	}
	if err := old.readStanding(); err != nil || !old.leaf().NotAfter.Equal(h.leaf().NotAfter) {
		t.Errorf("until %v: %v", old.leaf().NotAfter, err)
	}
	foreign := w.host(t, w.config(t, sallyport.KindGateway))
	foreign.cfg.Log = slog.New(slog.DiscardHandler)
	if err := writeJSON(filepath.Join(cfg.Dir, hostFile), foreign.standing); err != nil {
		t.Fatal(err)
	}
	if err := old.readStanding(); err == nil || old.ID() != h.ID() {
		t.Error("took another host's standing")
	}
}
