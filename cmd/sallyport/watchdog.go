package main

import (
	"context"
	"os"
	"time"

	"github.com/sallyport/sallyport/cmd/internal/notify"
)

// reassure tells a service manager with a watchdog that this process works, as
// long as it is the main one: three times in the time that the manager waits, so
// that one of them may come while an upgrade changes who is believed. A process
// whose loops do not answer says nothing.
func (n *node) reassure(ctx context.Context) error {
	every := n.keeping.manager.Watchdog(os.Getenv(notify.WatchdogVariable), os.Getenv(notify.WatchdogPIDVariable), n.keeping.upgraded) / 3
	if every <= 0 {
		return nil
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		if n.works(ctx) {
			n.tell(n.keeping.manager.Alive())
		}
		select {
		case <-tick.C:
		case <-n.upgrades.handed:
			return nil
		case <-ctx.Done():
			return nil
		}
	}
}

// works waits until each loop has run what it was given, or ctx is done.
func (n *node) works(ctx context.Context) bool {
	if n.gateway == nil {
		return true
	}
	for _, l := range n.gateway.loops {
		ran := make(chan struct{})
		if !l.Post(func() { close(ran) }) {
			return false
		}
		select {
		case <-ran:
		case <-ctx.Done():
			return false
		}
	}
	return true
}
