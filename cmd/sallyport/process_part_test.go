package main

import (
	"log/slog"
	"os"
	"testing"

	"github.com/sallyport/sallyport/cmd/internal/notify"
	handoverv1 "github.com/sallyport/sallyport/wire/sallyport/handover/v1"
)

// TestProcessPart: the new process has the lock and the sockets, and tells the
// same service manager as the old one. It did not, and the second upgrade of a
// service went unnoticed by systemd.
func TestProcessPart(t *testing.T) {
	dir, err := os.MkdirTemp("", "sp")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	cfg := &config{DataDir: dir, Roles: []string{roleGateway}, Metrics: metricsConfig{Listen: "127.0.0.1:0"}}
	manager := notify.New("/run/test/notify")
	process := func() *node {
		n := newNode(cfg, slog.New(slog.DiscardHandler))
		n.keeping = chooseKeeping(4711, manager, "")
		return n
	}
	old, next := process(), process()
	if err := old.prepareDir(); err != nil {
		t.Fatal(err)
	}
	if err := old.listenMetrics(); err != nil {
		t.Fatal(err)
	}
	successor, err := old.keeping.successor()
	if err != nil {
		t.Fatal(err)
	}
	giver, taker := &processGiver{node: old, next: successor}, &processTaker{node: next}
	if err := giver.Copy(t.Context(), toTaker{taker}); err != nil {
		t.Fatal(err)
	}
	if err := giver.Freeze(t.Context(), toTaker{taker}); err != nil {
		t.Fatal(err)
	}
	if err := taker.Complete(t.Context()); err != nil {
		t.Fatal(err)
	}
	giver.Leave()
	k := next.keeping
	if k.manager != manager || k.how != handoverv1.Keeping_KEEPING_MANAGER || k.generation != 1 || !k.upgraded || k.leash == nil {
		t.Errorf("%+v", k)
	}
	if next.admin.Addr().String() != old.admin.Addr().String() || next.metrics.Addr().String() != old.metrics.Addr().String() {
		t.Errorf("%v, %v", next.admin.Addr(), next.metrics.Addr())
	}
	// The lock is still held, though the old process has closed it.
	third := process()
	if err := third.prepareDir(); err == nil {
		t.Error("a third process got the directory")
	}
	third.close()
	close(old.upgrades.handed)
	old.close()
	if _, err := os.Stat(dir + "/" + adminSocket); err != nil {
		t.Errorf("the old process took the socket's name away: %v", err)
	}
	next.close()
	for _, n := range []*node{old, next} {
		if err := n.keeping.leash.close(); err != nil {
			t.Error(err)
		}
	}
}
